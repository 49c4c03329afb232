//! How this node's endpoints become known to the others, and theirs to it: by CiliumEndpoints, by slices that the
//! operator makes of them, or by slices that each agent writes of its own node.
//!
//! Whatever the mode, an agent believes every source that could be in use in the cluster, so that nodes may change
//! their mode one by one:
//! - slices always, whoever wrote them;
//! - CiliumEndpoints in `cep` and `ces-node`, where there are none but for nodes of another mode. In `ces-operator`
//!   every node has some and reading them all is what the mode is there to avoid: they are read at the start, until
//!   slices have all of them, which proves that the operator is at work.
//!
//! What an agent announced in its former mode it withdraws only once the new one has it: its CiliumEndpoints when its
//! slices are written, its slices when its CiliumEndpoints are written and (`ces-operator`) in somebody's slices.

use crate::core::thread::Handle;
use crate::health::Health;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weft_k8s::convert::{Settings, endpoint_of_slice};
use weft_k8s::endpoint::manner::Manner;
use weft_k8s::endpoint::{Own, Propagation};
use weft_k8s::watch::EndpointsWatch;
use weft_k8s::{Client, endpoint, slice};
use weft_model::intent::{Change, ObjectName, RemoteEndpoint, Source};

/// An own object may differ from what this node says for so long: the newest write is on its way.
const GRACE: Duration = Duration::from_secs(5);
/// Between two looks at whether slices have what CiliumEndpoints say.
const LOOK: Duration = Duration::from_millis(500);
/// Changes that are quickly worked out.
const BRIEF_MAX: usize = 16;
/// How long what only a CiliumEndpoint said is believed after these are no longer read.
const HANDOVER_MAX: Duration = Duration::from_secs(60);

/// The writers of this node's objects, of both kinds: the one that is not used withdraws what is left.
#[derive(Clone)]
pub struct Writers {
    /// Of slices.
    pub slices: slice::Writer,
    /// Of CiliumEndpoints.
    pub endpoints: endpoint::Writer,
}

impl Writers {
    /// Starts both; `manner`: how CiliumEndpoints are written.
    #[must_use]
    pub fn start(client: &Client, node_name: &str, manner: Manner, stop: &CancellationToken) -> Self {
        Self {
            slices: slice::Writer::start(client.clone(), node_name, slice::REMOVAL_DELAY, stop.clone()),
            endpoints: endpoint::Writer::start(client.clone(), node_name, manner, stop.clone()),
        }
    }

    /// Whether an object of that name (of an endpoint: as a slice of one) shall be there.
    fn hold(&self, name: &str) -> bool {
        match endpoint_of_slice(name) {
            Some(endpoint) => self.endpoints.wants(&endpoint),
            None => self.slices.holds(name),
        }
    }
}

/// UIDs of this node's pods, by the slices of others that have them.
pub type Elsewhere = BTreeMap<String, BTreeSet<String>>;

/// Keeps this node's objects as its endpoints are.
pub async fn announce(
    core: Handle,
    mode: Propagation,
    writers: Writers,
    mut elsewhere: watch::Receiver<Elsewhere>,
    stop: CancellationToken,
) {
    let Ok(signals) = core.call(|core| core.signals()).await else { return };
    let (mut slices, mut endpoints) = (writers.slices.announced(), writers.endpoints.announced());
    // The generation that must be written before what the former mode left is withdrawn; `None`: that was told.
    let mut former: Option<u64> = None;
    let mut withdrawn = false;
    loop {
        match core.call(|core| core.announced().map(|own| (own, core.count_nodes()))).await {
            Ok(Some((own, nodes))) => {
                writers.slices.set_nodes(nodes);
                let generation = match mode {
                    Propagation::CesNode => writers.slices.set(plain(&own, |_| true)),
                    Propagation::Cep => writers.endpoints.set(own),
                    Propagation::CesOperator => {
                        let found: BTreeSet<String> =
                            elsewhere.borrow_and_update().values().flatten().cloned().collect();
                        writers.slices.withdraw_but(plain(&own, |uid| !found.contains(uid)));
                        writers.endpoints.set(own)
                    }
                };
                former.get_or_insert(generation);
            }
            Ok(None) => {}
            Err(_) => return,
        }
        loop {
            let reached = match mode {
                Propagation::CesNode => slices.borrow().generation,
                Propagation::Cep | Propagation::CesOperator => endpoints.borrow().generation,
            };
            if !withdrawn && former.is_some_and(|wanted| reached >= wanted) {
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
                changed = elsewhere.changed(), if mode == Propagation::CesOperator => {
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
                    let _ = core.call(move |core| core.set_problem("endpoint slices", problem)).await;
                }
                changed = endpoints.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let problem = endpoints.borrow_and_update().problem.clone();
                    let _ = core.call(move |core| core.set_problem("endpoint objects", problem)).await;
                }
            }
        }
    }
}

fn plain(own: &BTreeMap<ObjectName, Own>, wanted: impl Fn(&str) -> bool) -> BTreeMap<ObjectName, RemoteEndpoint> {
    let wanted = own.iter().filter(|(_, own)| wanted(&own.endpoint.pod_uid));
    wanted.map(|(name, own)| (name.clone(), own.endpoint.clone())).collect()
}

/// Cluster to tables. Own objects that say something else than this node does, for longer than a write takes, are
/// read and mended.
pub async fn watch(
    (core, client, health): (Handle, Client, Health),
    (node_name, mode): (String, Propagation),
    conversion: Settings,
    writers: Writers,
    elsewhere: watch::Sender<Elsewhere>,
    stop: CancellationToken,
) {
    let endpoints = stop.child_token();
    let watched = EndpointsWatch { until: &endpoints, required: mode != Propagation::CesNode };
    let mut changes = weft_k8s::watch::start(&client, &node_name, conversion, watched, &stop);
    let mut handover = (mode == Propagation::CesOperator).then(|| Handover::new(endpoints));
    let mut recheck_at: Option<Instant> = None;
    // Own objects that said something else than this node when they were last heard of; true: they are gone.
    let mut strange: HashMap<String, bool> = HashMap::new();
    let mut look_at = Instant::now() + LOOK;
    loop {
        let recheck = recheck_at.unwrap_or_else(Instant::now);
        let mut batch = tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep_until(recheck), if recheck_at.is_some() => {
                recheck_at = None;
                if strange.drain().any(|(name, is_gone)| !is_gone || writers.hold(&name)) {
                    writers.slices.recheck();
                    writers.endpoints.recheck();
                }
                continue;
            }
            () = tokio::time::sleep_until(look_at), if handover.is_some() => {
                look_at = Instant::now() + LOOK;
                let gone = handover.as_mut().map(|handover| handover.look(&core)).unwrap_or_default();
                if handover.as_ref().is_some_and(Handover::is_over) {
                    handover = None;
                }
                gone.into_iter().map(Change::SliceGone).collect()
            }
            batch = changes.recv() => match batch {
                Some(batch) => batch,
                None => return,
            },
        };
        match &mut handover {
            Some(handover) => batch.retain(|change| handover.take(change)),
            None if mode == Propagation::CesOperator => batch.retain(|change| of_endpoint(change).is_none()),
            None => {}
        }
        if batch.is_empty() {
            continue;
        }
        health.hear(&batch);
        for change in &batch {
            note_strange(change, &core, &writers, &mut strange);
        }
        if !strange.is_empty() {
            recheck_at.get_or_insert_with(|| Instant::now() + GRACE);
        }
        if mode == Propagation::CesOperator {
            note_elsewhere(&batch, &core, &writers.slices, &elsewhere);
        }
        let told = if is_brief(&batch) {
            core.tell_brief(move |core| core.apply(batch)).await
        } else {
            core.tell(move |core| core.apply(batch)).await
        };
        if told.is_err() {
            return;
        }
    }
}

/// Some endpoints of other nodes: what comes in most often, and is quickly done.
fn is_brief(batch: &[Change]) -> bool {
    batch.len() <= BRIEF_MAX && batch.iter().all(|change| matches!(change, Change::Slice(_) | Change::SliceGone(_)))
}

/// Whether an own object says what this node says. The newest write may be on its way: judged is what it last said.
fn note_strange(change: &Change, core: &Handle, writers: &Writers, strange: &mut HashMap<String, bool>) {
    let (name, agrees) = match change {
        Change::Slice(slice) => (&slice.name, Some(slice)),
        Change::SliceGone(name) => (name, None),
        _ => return,
    };
    let own = match endpoint_of_slice(name) {
        Some(name) => writers.endpoints.wants(&name),
        None => writers.slices.is_own(name),
    };
    if !own || agrees.is_some_and(|slice| core.look(|core| core.agrees_with(slice))) {
        strange.remove(name);
    } else {
        strange.insert(name.clone(), agrees.is_none());
    }
}

/// The CiliumEndpoint that a change is about.
fn of_endpoint(change: &Change) -> Option<ObjectName> {
    match change {
        Change::Slice(slice) => endpoint_of_slice(&slice.name),
        Change::SliceGone(name) => endpoint_of_slice(name),
        _ => None,
    }
}

/// Which of this node's pods are in slices of others.
fn note_elsewhere(batch: &[Change], core: &Handle, own: &slice::Writer, elsewhere: &watch::Sender<Elsewhere>) {
    for change in batch.iter().filter(|change| of_endpoint(change).is_none()) {
        let (name, uids) = match change {
            Change::Slice(slice) if !own.is_own(&slice.name) => {
                let uids = slice.endpoints.iter().map(|endpoint| &endpoint.pod_uid);
                (&slice.name, core.look(|core| uids.filter(|uid| core.has_pod(uid)).cloned().collect()))
            }
            Change::SliceGone(name) => (name, BTreeSet::new()),
            _ => continue,
        };
        elsewhere.send_if_modified(|known| match uids.is_empty() {
            true => known.remove(name).is_some(),
            false => known.insert(name.clone(), uids.clone()).as_ref() != Some(&uids),
        });
    }
}

/// From CiliumEndpoints, read at the start, to the operator's slices.
struct Handover {
    /// Ends the reading of CiliumEndpoints.
    reading: CancellationToken,
    /// Sources that are complete.
    synced: BTreeSet<Source>,
    /// Those that slices must have before the reading ends; `None` until everything was read once.
    wanted: Option<BTreeSet<String>>,
    /// What is believed: the slice's name, the pod's UID.
    believed: BTreeMap<String, String>,
    /// When the reading ended.
    ended: Option<Instant>,
}

impl Handover {
    fn new(reading: CancellationToken) -> Self {
        Self { reading, synced: BTreeSet::new(), wanted: None, believed: BTreeMap::new(), ended: None }
    }

    /// Notes a change; false: it comes too late to be believed.
    fn take(&mut self, change: &Change) -> bool {
        if let Change::Synced(source) = change {
            self.synced.insert(*source);
        }
        if of_endpoint(change).is_none() {
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

    /// Names of those that need not be believed any more.
    fn look(&mut self, core: &Handle) -> Vec<String> {
        let sources = [Source::Endpoints, Source::Slices, Source::Nodes];
        if !sources.iter().all(|source| self.synced.contains(source)) {
            return Vec::new();
        }
        let missing = core.look(|core| core.told_by_endpoints_only());
        let wanted = self.wanted.get_or_insert_with(|| missing.clone());
        if self.ended.is_none() && wanted.is_disjoint(&missing) {
            tracing::info!(
                endpoints = self.believed.len(),
                "slices have all endpoints: CiliumEndpoints are no longer read"
            );
            self.reading.cancel();
            self.ended = Some(Instant::now());
        }
        let Some(ended) = self.ended else { return Vec::new() };
        let over = ended.elapsed() >= HANDOVER_MAX;
        let gone = self.believed.iter().filter(|(_, uid)| over || !missing.contains(*uid));
        let gone: Vec<String> = gone.map(|(name, _)| name.clone()).collect();
        self.believed.retain(|name, _| !gone.contains(name));
        gone
    }

    fn is_over(&self) -> bool {
        self.ended.is_some() && self.believed.is_empty()
    }
}
