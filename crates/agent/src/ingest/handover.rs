//! From CiliumEndpoints, read at the start, to the slices that the operator makes of them.

use crate::writer::thread::{Handle, Unavailable};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weft_k8s::convert::endpoint_of_slice;
use weft_model::intent::{Change, ObjectName, Source};

/// How long endpoints of which there is only a CiliumEndpoint are believed after these are no longer read.
const HANDOVER_MAX: Duration = Duration::from_secs(60);

pub(super) struct Handover {
    /// Ends the watch of CiliumEndpoints.
    watch: CancellationToken,
    /// Sources that are complete.
    synced: BTreeSet<Source>,
    /// Pods' UIDs that slices must contain before the watch ends; `None` until the first sync.
    wanted: Option<BTreeSet<String>>,
    /// CiliumEndpoints that are believed: the name as a slice of one, the pod's UID.
    believed: BTreeMap<String, String>,
    /// When the watch ended.
    ended: Option<Instant>,
}

impl Handover {
    pub(super) fn new(watch: CancellationToken) -> Self {
        Self { watch, synced: BTreeSet::new(), wanted: None, believed: BTreeMap::new(), ended: None }
    }

    /// Notes a change; false: it came after the end of the watch and does not count.
    pub(super) fn accepts(&mut self, change: &Change) -> bool {
        if let Change::Synced(source) = change {
            self.synced.insert(*source);
        }
        if cilium_endpoint(change).is_none() {
            return true;
        }
        if self.ended.is_some() {
            return false;
        }
        match change {
            Change::Slice(slice) => match slice.endpoints.first() {
                Some(endpoint) => drop(self.believed.insert(slice.name.clone(), endpoint.pod_uid.clone())),
                None => drop(self.believed.remove(&slice.name)),
            },
            Change::SliceGone(name) => drop(self.believed.remove(name)),
            _ => {}
        }
        true
    }

    /// Ends the watch once slices contain everything; names of the CiliumEndpoints that need not be believed any more.
    pub(super) async fn poll(&mut self, control: &Handle) -> Result<Vec<String>, Unavailable> {
        let sources = [Source::Endpoints, Source::Slices, Source::Nodes];
        if !sources.iter().all(|source| self.synced.contains(source)) {
            return Ok(Vec::new());
        }
        let is_endpoint = |source: &str| endpoint_of_slice(source).is_some();
        let missing = control.call(move |writer| writer.known_only_from(is_endpoint)).await?;
        let wanted = self.wanted.get_or_insert_with(|| missing.clone());
        if self.ended.is_none() && wanted.is_disjoint(&missing) {
            tracing::info!(
                endpoints = self.believed.len(),
                "slices contain all endpoints: the watch of CiliumEndpoints ends"
            );
            self.watch.cancel();
            self.ended = Some(Instant::now());
        }
        let Some(ended) = self.ended else { return Ok(Vec::new()) };
        let over = ended.elapsed() >= HANDOVER_MAX;
        let covered = self.believed.iter().filter(|(_, uid)| over || !missing.contains(*uid));
        let covered: Vec<String> = covered.map(|(name, _)| name.clone()).collect();
        self.believed.retain(|name, _| !covered.contains(name));
        Ok(covered)
    }

    pub(super) fn is_over(&self) -> bool {
        self.ended.is_some() && self.believed.is_empty()
    }
}

/// The CiliumEndpoint that a change is about.
pub(crate) fn cilium_endpoint(change: &Change) -> Option<ObjectName> {
    match change {
        Change::Slice(slice) => endpoint_of_slice(&slice.name),
        Change::SliceGone(name) => endpoint_of_slice(name),
        _ => None,
    }
}
