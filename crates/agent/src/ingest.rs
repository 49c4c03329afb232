//! From the API server's watches to the tables.
//!
//! Whatever its own mode of announcing endpoints, an agent believes every source that may be in use in the cluster:
//! - CiliumEndpointSlices always, from any writer;
//! - CiliumEndpoints in `cep` and `ces-node`, where only nodes of another mode have any. In `ces-operator` every node has
//!   some, and not to read them all is what the mode is for: they are read at the start, until slices contain all of
//!   them, which proves that the operator is at work ([`handover`]).
//!
//! This node's own objects come back here, too: one that has drifted from what this node announced is written again.

mod handover;

use crate::announce::{ForeignSlices, Writers};
use crate::ingest::handover::cilium_endpoint;
use crate::writer::thread::Handle;
use handover::Handover;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weft_health::Health;
use weft_k8s::convert::{Settings, endpoint_of_slice};
use weft_k8s::endpoint::Propagation;
use weft_k8s::watch::EndpointsWatch;
use weft_k8s::{Client, slice};
use weft_model::intent::Change;

/// How long an own object may differ from what this node announced: the newest write may be on its way.
const DRIFT_GRACE: Duration = Duration::from_secs(5);
/// How often the handover from CiliumEndpoints to slices is checked.
const HANDOVER_INTERVAL: Duration = Duration::from_millis(500);
/// Changes in a batch that is quickly applied.
const QUICK_BATCH_MAX: usize = 16;

/// Follows the cluster until `stop`.
pub async fn run(
    (control, client, health): (Handle, Client, Health),
    (node_name, mode): (String, Propagation),
    conversion: Settings,
    writers: Writers,
    foreign: watch::Sender<ForeignSlices>,
    stop: CancellationToken,
) {
    let endpoints = stop.child_token();
    let watched = EndpointsWatch { until: &endpoints, required: mode != Propagation::CesNode };
    let mut changes = weft_k8s::watch::start(&client, &node_name, conversion, watched, &stop);
    let mut handover = (mode == Propagation::CesOperator).then(|| Handover::new(endpoints));
    let mut recheck_at: Option<Instant> = None;
    // Own objects that drifted from what this node announced, as they were last seen; true: they are gone.
    let mut drifted: HashMap<String, bool> = HashMap::new();
    let mut handover_at = Instant::now() + HANDOVER_INTERVAL;
    loop {
        let recheck = recheck_at.unwrap_or_else(Instant::now);
        let mut batch = tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep_until(recheck), if recheck_at.is_some() => {
                recheck_at = None;
                if drifted.drain().any(|(name, is_gone)| !is_gone || writers.wants(&name)) {
                    writers.recheck();
                }
                continue;
            }
            () = tokio::time::sleep_until(handover_at), if handover.is_some() => {
                handover_at = Instant::now() + HANDOVER_INTERVAL;
                let covered = match &mut handover {
                    Some(handover) => handover.poll(&control).await,
                    None => Ok(Vec::new()),
                };
                let Ok(covered) = covered else { return };
                if handover.as_ref().is_some_and(Handover::is_over) {
                    handover = None;
                }
                covered.into_iter().map(Change::SliceGone).collect()
            }
            batch = changes.recv() => match batch {
                Some(batch) => batch,
                None => return,
            },
        };
        match &mut handover {
            Some(handover) => batch.retain(|change| handover.accepts(change)),
            None if mode == Propagation::CesOperator => batch.retain(|change| cilium_endpoint(change).is_none()),
            None => {}
        }
        if batch.is_empty() {
            continue;
        }
        health.apply(&batch);
        for change in &batch {
            note_drift(change, &control, &writers, &mut drifted);
        }
        if !drifted.is_empty() {
            recheck_at.get_or_insert_with(|| Instant::now() + DRIFT_GRACE);
        }
        if mode == Propagation::CesOperator {
            note_foreign_slices(&batch, &control, &writers.slices, &foreign);
        }
        let applied = if is_quick(&batch) {
            control.apply_brief(move |writer| writer.apply(batch)).await
        } else {
            control.apply(move |writer| writer.apply(batch)).await
        };
        if applied.is_err() {
            return;
        }
    }
}

/// A few endpoints of other nodes: the most frequent change, and quickly applied.
fn is_quick(batch: &[Change]) -> bool {
    batch.len() <= QUICK_BATCH_MAX
        && batch.iter().all(|change| matches!(change, Change::Slice(_) | Change::SliceGone(_)))
}

/// Notes whether an own object is as this node announced it last.
fn note_drift(change: &Change, control: &Handle, writers: &Writers, drifted: &mut HashMap<String, bool>) {
    let (name, seen) = match change {
        Change::Slice(slice) => (&slice.name, Some(slice)),
        Change::SliceGone(name) => (name, None),
        _ => return,
    };
    let own = match endpoint_of_slice(name) {
        Some(name) => writers.endpoints.wants(&name),
        None => writers.slices.is_own(name),
    };
    if !own || seen.is_some_and(|slice| control.snapshot().agrees_with(slice)) {
        drifted.remove(name);
    } else {
        drifted.insert(name.clone(), seen.is_none());
    }
}

/// Notes which of this node's pods are in slices of other writers.
fn note_foreign_slices(
    batch: &[Change],
    control: &Handle,
    own: &slice::Writer,
    foreign: &watch::Sender<ForeignSlices>,
) {
    for change in batch.iter().filter(|change| cilium_endpoint(change).is_none()) {
        let (name, uids) = match change {
            Change::Slice(slice) if !own.is_own(&slice.name) => {
                let uids = slice.endpoints.iter().map(|endpoint| &endpoint.pod_uid);
                let snapshot = control.snapshot();
                (&slice.name, uids.filter(|uid| snapshot.has_pod(uid)).cloned().collect())
            }
            Change::SliceGone(name) => (name, BTreeSet::new()),
            _ => continue,
        };
        foreign.send_if_modified(|known| match uids.is_empty() {
            true => known.remove(name).is_some(),
            false => known.insert(name.clone(), uids.clone()).as_ref() != Some(&uids),
        });
    }
}
