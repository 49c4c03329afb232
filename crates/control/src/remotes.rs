//! Merges what several sources publish about remote endpoints.
//!
//! Endpoints are keyed by pod UID, so a late event about an old pod never affects a new one with the same name or address.
//! A source is a slice (a CiliumEndpoint counts as a slice of one). The source that changed an endpoint last wins; when it
//! drops the endpoint, the source before it wins again, and the endpoint is deleted when no source has it any more. So an
//! endpoint that moves between slices, or from one way of propagation to another, is never deleted in between, whatever
//! the order of the events.

use foldhash::HashMap;
use std::collections::BTreeMap;
use std::sync::Arc;
use weft_model::intent::{EndpointSlice, RemoteEndpoint};

/// A change of a merged endpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RemoteChange {
    Upsert(Arc<RemoteEndpoint>),
    /// By UID: no source has it any more.
    Delete(String),
}

/// The versions of one endpoint with their sources, in the order of their last change. The last one wins.
type Versions = Vec<(Arc<str>, Arc<RemoteEndpoint>)>;

/// See the module.
#[derive(Debug, Default)]
pub struct Remotes {
    /// By UID.
    rows: HashMap<Arc<str>, Versions>,
    /// The last content of each source. A slice arrives whole for each endpoint that changed in it: endpoints that equal
    /// their last version are skipped by comparing with this alone.
    sources: HashMap<Arc<str>, Box<[Arc<RemoteEndpoint>]>>,
}

impl Remotes {
    /// Replaces the content of a source. Endpoints for which `skip` holds are ignored.
    pub fn set(&mut self, slice: &EndpointSlice, skip: impl Fn(&RemoteEndpoint) -> bool) -> Vec<RemoteChange> {
        let (name, before) = match self.sources.remove_entry(slice.name.as_str()) {
            Some(known) => known,
            None => (slice.name.as_str().into(), Box::default()),
        };
        let mut endpoints: Vec<&RemoteEndpoint> = slice.endpoints.iter().filter(|endpoint| !skip(endpoint)).collect();
        let mut uids: Vec<&str> = endpoints.iter().map(|endpoint| endpoint.pod_uid.as_str()).collect();
        uids.sort_unstable();
        if uids.windows(2).any(|pair| pair[0] == pair[1]) {
            // If a source lists an endpoint twice, the last one counts.
            let last: BTreeMap<&str, &RemoteEndpoint> =
                endpoints.iter().map(|endpoint| (endpoint.pod_uid.as_str(), *endpoint)).collect();
            endpoints = last.into_values().collect();
        }
        let mut merged = Vec::new();
        let mut after: Vec<Arc<RemoteEndpoint>> = Vec::with_capacity(endpoints.len());
        for (n, endpoint) in endpoints.into_iter().enumerate() {
            // Usually it is at the same position as before.
            let same_place = before.get(n).filter(|known| ***known == *endpoint);
            if let Some(known) = same_place.or_else(|| before.iter().find(|known| ***known == *endpoint)) {
                after.push(known.clone());
                continue;
            }
            let version = Arc::new(endpoint.clone());
            after.push(version.clone());
            let versions = match self.rows.get_mut(endpoint.pod_uid.as_str()) {
                Some(versions) => versions,
                None => self.rows.entry(endpoint.pod_uid.as_str().into()).or_insert_with(|| Vec::with_capacity(1)),
            };
            let is_new = versions.last().is_none_or(|(_, current)| **current != *endpoint);
            versions.retain(|(source, _)| *source != name);
            versions.push((name.clone(), version.clone()));
            if is_new {
                merged.push(RemoteChange::Upsert(version));
            }
        }
        for dropped in before.iter().filter(|known| uids.binary_search(&known.pod_uid.as_str()).is_err()) {
            merged.extend(self.drop_version(&name, &dropped.pod_uid));
        }
        if !after.is_empty() {
            self.sources.insert(name, after.into_boxed_slice());
        }
        merged
    }

    /// Deletes a source.
    pub fn remove(&mut self, name: &str) -> Vec<RemoteChange> {
        let Some((name, endpoints)) = self.sources.remove_entry(name) else { return Vec::new() };
        endpoints.iter().filter_map(|endpoint| self.drop_version(&name, &endpoint.pod_uid)).collect()
    }

    fn drop_version(&mut self, source: &Arc<str>, uid: &str) -> Option<RemoteChange> {
        let versions = self.rows.get_mut(uid)?;
        let at = versions.iter().position(|(other, _)| other == source)?;
        let was_last = at + 1 == versions.len();
        let (_, gone) = versions.remove(at);
        match versions.last() {
            None => {
                self.rows.remove(uid);
                Some(RemoteChange::Delete(uid.to_owned()))
            }
            Some((_, now)) if was_last && **now != *gone => Some(RemoteChange::Upsert(now.clone())),
            Some(_) => None,
        }
    }

    /// Whether a source that matches `of` has this endpoint.
    #[must_use]
    pub fn has_source(&self, uid: &str, of: impl Fn(&str) -> bool) -> bool {
        self.rows.get(uid).is_some_and(|versions| versions.iter().any(|(source, _)| of(source)))
    }

    /// UIDs of the endpoints that a source that matches `of` has.
    pub fn uids_from<'a>(&'a self, of: impl Fn(&str) -> bool + 'a) -> impl Iterator<Item = &'a str> {
        let has = move |versions: &Versions| versions.iter().any(|(source, _)| of(source));
        self.rows.iter().filter(move |(_, versions)| has(versions)).map(|(uid, _)| &**uid)
    }

    /// UIDs of the endpoints that only sources that match `of` have.
    pub fn uids_only_from<'a>(&'a self, of: impl Fn(&str) -> bool + 'a) -> impl Iterator<Item = &'a str> {
        let only = move |versions: &Versions| !versions.is_empty() && versions.iter().all(|(source, _)| of(source));
        self.rows.iter().filter(move |(_, versions)| only(versions)).map(|(uid, _)| &**uid)
    }
}

#[cfg(test)]
mod tests;
