//! Announces this node's endpoints to the cluster: as CiliumEndpoints, by CiliumEndpointSlices that the operator makes of
//! them, or by slices that each agent writes for its own node.
//!
//! Nodes may change their mode one by one. What an agent announced in its former mode it withdraws only once the new mode
//! has it: its CiliumEndpoints when its slices are written, its slices when its CiliumEndpoints are written and
//! (`ces-operator`) in the operator's slices.

use crate::writer::Part;
use crate::writer::thread::Handle;
use std::collections::{BTreeMap, BTreeSet};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_k8s::convert::endpoint_of_slice;
use weft_k8s::endpoint::style::WriteStyle;
use weft_k8s::endpoint::{Own, Propagation};
use weft_k8s::{Client, endpoint, slice};
use weft_model::intent::{ObjectName, RemoteEndpoint};

/// The writers of this node's objects, of both kinds: the one that is not used withdraws what is left.
#[derive(Clone)]
pub struct Writers {
    /// Of CiliumEndpointSlices.
    pub slices: slice::Writer,
    /// Of CiliumEndpoints.
    pub endpoints: endpoint::Writer,
}

impl Writers {
    /// Starts both; `style`: how CiliumEndpoints are written.
    #[must_use]
    pub fn start(client: &Client, node_name: &str, style: WriteStyle, stop: &CancellationToken) -> Self {
        Self {
            slices: slice::Writer::start(client.clone(), node_name, slice::REMOVAL_DELAY, stop.clone()),
            endpoints: endpoint::Writer::start(client.clone(), node_name, style, stop.clone()),
        }
    }

    /// Whether the object of that name (a CiliumEndpoint: as a slice of one) shall exist.
    pub(crate) fn wants(&self, name: &str) -> bool {
        match endpoint_of_slice(name) {
            Some(endpoint) => self.endpoints.wants(&endpoint),
            None => self.slices.holds(name),
        }
    }

    /// Compares what is in the API server with what shall be there.
    pub(crate) fn recheck(&self) {
        self.slices.recheck();
        self.endpoints.recheck();
    }
}

/// UIDs of this node's pods, by the slices of other writers that contain them.
pub type ForeignSlices = BTreeMap<String, BTreeSet<String>>;

/// Keeps this node's objects as its endpoints are, until `stop`.
pub async fn run(
    control: Handle,
    mode: Propagation,
    writers: Writers,
    mut foreign: watch::Receiver<ForeignSlices>,
    stop: CancellationToken,
) {
    let Ok(signals) = control.call(|control| control.signals()).await else { return };
    let (mut slices, mut endpoints) = (writers.slices.announced(), writers.endpoints.announced());
    // The generation that must be written before the former mode's objects are withdrawn.
    let mut first_generation: Option<u64> = None;
    let mut withdrawn = false;
    loop {
        let snapshot = control.snapshot();
        if let Some(own) = snapshot.announced() {
            writers.slices.set_nodes(snapshot.nodes.len());
            let generation = match mode {
                Propagation::CesNode => writers.slices.set(endpoints_of(&own, |_| true)),
                Propagation::Cep => writers.endpoints.set(own),
                Propagation::CesOperator => {
                    let covered: BTreeSet<String> = foreign.borrow_and_update().values().flatten().cloned().collect();
                    writers.slices.withdraw_but(endpoints_of(&own, |uid| !covered.contains(uid)));
                    writers.endpoints.set(own)
                }
            };
            first_generation.get_or_insert(generation);
        }
        loop {
            let written = match mode {
                Propagation::CesNode => slices.borrow().generation,
                Propagation::Cep | Propagation::CesOperator => endpoints.borrow().generation,
            };
            if !withdrawn && first_generation.is_some_and(|wanted| written >= wanted) {
                withdrawn = true;
                match mode {
                    Propagation::CesNode => drop(writers.endpoints.set(BTreeMap::new())),
                    Propagation::Cep => drop(writers.slices.withdraw_but(BTreeMap::new())),
                    Propagation::CesOperator => {}
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = signals.endpoints.notified() => break,
                changed = foreign.changed(), if mode == Propagation::CesOperator => {
                    if changed.is_err() {
                        return;
                    }
                    if slices.borrow().slices > 0 {
                        break;
                    }
                }
                changed = slices.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let problem = slices.borrow_and_update().problem.clone();
                    let _ = control.call(move |control| control.set_problem(Part::EndpointSlices, problem)).await;
                }
                changed = endpoints.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let problem = endpoints.borrow_and_update().problem.clone();
                    let _ = control.call(move |control| control.set_problem(Part::EndpointObjects, problem)).await;
                }
            }
        }
    }
}

fn endpoints_of(
    own: &BTreeMap<ObjectName, Own>,
    wanted: impl Fn(&str) -> bool,
) -> BTreeMap<ObjectName, RemoteEndpoint> {
    let wanted = own.iter().filter(|(_, own)| wanted(&own.endpoint.pod_uid));
    wanted.map(|(name, own)| (name.clone(), own.endpoint.clone())).collect()
}
