//! What several sources say of one remote endpoint, merged. Pure.
//!
//! An endpoint is a pod's UID: a late word about an old pod never touches a new one with the same name or address. A
//! source is a slice (or a CiliumEndpoint, which is told as a slice of one). The source that spoke last of an endpoint
//! is believed; when it takes its word back, the one before it is, and only when none is left the endpoint is gone. So
//! an endpoint that moves between slices, or from one way of propagation to another, is never gone in between,
//! whatever the order of the news.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weft_model::intent::{EndpointSlice, RemoteEndpoint};

/// What a word changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Merged {
    /// The endpoint is so now.
    Put(Arc<RemoteEndpoint>),
    /// No source has this UID any more.
    Gone(String),
}

/// Of one endpoint, the sources in the order in which they spoke; the last one holds.
type Words = Vec<(Arc<str>, Arc<RemoteEndpoint>)>;

/// See the module.
#[derive(Debug, Default)]
pub struct Remotes {
    /// By UID.
    rows: BTreeMap<Arc<str>, Words>,
    /// The UIDs that each source has.
    sources: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
}

impl Remotes {
    /// Everything a source says, in place of what it said before. Endpoints for which `skip` holds are left out.
    pub fn set(&mut self, slice: &EndpointSlice, skip: impl Fn(&RemoteEndpoint) -> bool) -> Vec<Merged> {
        let (name, before) = match self.sources.remove_entry(slice.name.as_str()) {
            Some(known) => known,
            None => (slice.name.as_str().into(), BTreeSet::new()),
        };
        let mut merged = Vec::new();
        let mut after: BTreeSet<Arc<str>> = BTreeSet::new();
        for endpoint in slice.endpoints.iter().filter(|endpoint| !skip(endpoint)) {
            let uid = match self.rows.get_key_value(endpoint.pod_uid.as_str()) {
                Some((uid, _)) => uid.clone(),
                None => endpoint.pod_uid.as_str().into(),
            };
            let words = self.rows.entry(uid.clone()).or_default();
            after.insert(uid);
            let said = words.iter().position(|(source, _)| *source == name);
            if said.is_some_and(|at| *words[at].1 == *endpoint) {
                continue;
            }
            let word = Arc::new(endpoint.clone());
            let news = words.last().is_none_or(|(_, held)| **held != *endpoint);
            if let Some(at) = said {
                words.remove(at);
            }
            words.push((name.clone(), word.clone()));
            if news {
                merged.push(Merged::Put(word));
            }
        }
        for uid in before.difference(&after) {
            merged.extend(self.take_back(&name, uid));
        }
        if !after.is_empty() {
            self.sources.insert(name, after);
        }
        merged
    }

    /// A source is gone.
    pub fn remove(&mut self, name: &str) -> Vec<Merged> {
        let Some((name, uids)) = self.sources.remove_entry(name) else { return Vec::new() };
        uids.iter().filter_map(|uid| self.take_back(&name, uid)).collect()
    }

    fn take_back(&mut self, source: &Arc<str>, uid: &Arc<str>) -> Option<Merged> {
        let words = self.rows.get_mut(uid)?;
        let at = words.iter().position(|(held, _)| held == source)?;
        let was_last = at + 1 == words.len();
        let (_, gone) = words.remove(at);
        match words.last() {
            None => {
                self.rows.remove(uid);
                Some(Merged::Gone(uid.to_string()))
            }
            Some((_, now)) if was_last && **now != *gone => Some(Merged::Put(now.clone())),
            Some(_) => None,
        }
    }

    /// Whether an endpoint of this UID is told by a source for which `of` holds.
    #[must_use]
    pub fn is_told(&self, uid: &str, of: impl Fn(&str) -> bool) -> bool {
        self.rows.get(uid).is_some_and(|words| words.iter().any(|(source, _)| of(source)))
    }

    /// UIDs of which some source for which `of` holds tells.
    pub fn told_by<'a>(&'a self, of: impl Fn(&str) -> bool + 'a) -> impl Iterator<Item = &'a str> {
        let told = move |words: &Words| words.iter().any(|(source, _)| of(source));
        self.rows.iter().filter(move |(_, words)| told(words)).map(|(uid, _)| &**uid)
    }

    /// UIDs of which some source for which `of` holds tells, and no other.
    pub fn told_only<'a>(&'a self, of: impl Fn(&str) -> bool + 'a) -> impl Iterator<Item = &'a str> {
        let only = move |words: &Words| !words.is_empty() && words.iter().all(|(source, _)| of(source));
        self.rows.iter().filter(move |(_, words)| only(words)).map(|(uid, _)| &**uid)
    }
}

#[cfg(test)]
mod tests;
