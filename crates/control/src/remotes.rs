//! What several sources say of one remote endpoint, merged. Pure.
//!
//! An endpoint is a pod's UID: a late word about an old pod never touches a new one with the same name or address. A
//! source is a slice (or a CiliumEndpoint, which is told as a slice of one). The source that spoke last of an endpoint
//! is believed; when it takes its word back, the one before it is, and only when none is left the endpoint is gone. So
//! an endpoint that moves between slices, or from one way of propagation to another, is never gone in between,
//! whatever the order of the news.

use foldhash::HashMap;
use std::collections::BTreeMap;
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
    rows: HashMap<Arc<str>, Words>,
    /// What each source says. An endpoint of which it says the same as before costs no look at anything else: a slice
    /// comes anew as a whole for one endpoint that changed.
    sources: HashMap<Arc<str>, Box<[Arc<RemoteEndpoint>]>>,
}

impl Remotes {
    /// Everything a source says, in place of what it said before. Endpoints for which `skip` holds are left out.
    pub fn set(&mut self, slice: &EndpointSlice, skip: impl Fn(&RemoteEndpoint) -> bool) -> Vec<Merged> {
        let (name, before) = match self.sources.remove_entry(slice.name.as_str()) {
            Some(known) => known,
            None => (slice.name.as_str().into(), Box::default()),
        };
        let mut endpoints: Vec<&RemoteEndpoint> = slice.endpoints.iter().filter(|endpoint| !skip(endpoint)).collect();
        let mut uids: Vec<&str> = endpoints.iter().map(|endpoint| endpoint.pod_uid.as_str()).collect();
        uids.sort_unstable();
        if uids.windows(2).any(|pair| pair[0] == pair[1]) {
            // Of two words of one source about one endpoint the last counts.
            let last: BTreeMap<&str, &RemoteEndpoint> =
                endpoints.iter().map(|endpoint| (endpoint.pod_uid.as_str(), *endpoint)).collect();
            endpoints = last.into_values().collect();
        }
        let mut merged = Vec::new();
        let mut after: Vec<Arc<RemoteEndpoint>> = Vec::with_capacity(endpoints.len());
        for (n, endpoint) in endpoints.into_iter().enumerate() {
            // Mostly it is where it was.
            let there = before.get(n).filter(|said| ***said == *endpoint);
            if let Some(said) = there.or_else(|| before.iter().find(|said| ***said == *endpoint)) {
                after.push(said.clone());
                continue;
            }
            let word = Arc::new(endpoint.clone());
            after.push(word.clone());
            let words = match self.rows.get_mut(endpoint.pod_uid.as_str()) {
                Some(words) => words,
                None => self.rows.entry(endpoint.pod_uid.as_str().into()).or_insert_with(|| Vec::with_capacity(1)),
            };
            let news = words.last().is_none_or(|(_, held)| **held != *endpoint);
            words.retain(|(source, _)| *source != name);
            words.push((name.clone(), word.clone()));
            if news {
                merged.push(Merged::Put(word));
            }
        }
        for said in before.iter().filter(|said| uids.binary_search(&said.pod_uid.as_str()).is_err()) {
            merged.extend(self.take_back(&name, &said.pod_uid));
        }
        if !after.is_empty() {
            self.sources.insert(name, after.into_boxed_slice());
        }
        merged
    }

    /// A source is gone.
    pub fn remove(&mut self, name: &str) -> Vec<Merged> {
        let Some((name, said)) = self.sources.remove_entry(name) else { return Vec::new() };
        said.iter().filter_map(|endpoint| self.take_back(&name, &endpoint.pod_uid)).collect()
    }

    fn take_back(&mut self, source: &Arc<str>, uid: &str) -> Option<Merged> {
        let words = self.rows.get_mut(uid)?;
        let at = words.iter().position(|(held, _)| held == source)?;
        let was_last = at + 1 == words.len();
        let (_, gone) = words.remove(at);
        match words.last() {
            None => {
                self.rows.remove(uid);
                Some(Merged::Gone(uid.to_owned()))
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
