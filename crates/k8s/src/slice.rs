//! The CiliumEndpointSlices of this node, written by this node: what the cluster knows of its endpoints.
//!
//! The agent states the full set; the writer makes the objects match with as few writes as it takes. Every write is
//! conditional on the version that it was planned from. Only slices that carry this node's label are ever touched.

mod plan;
pub mod shared;

use crate::client::{Client, Preconditions, segment};
use crate::error::Error;
use crate::list::with_query;
use crate::retry::Backoff;
use crate::wire::{CILIUM_V2ALPHA1, CiliumEndpointSlice, CoreEndpoint, Metadata, Named, path};
use plan::{Held, Write};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weft_model::intent::{ObjectName, RemoteEndpoint};

/// Label of a slice: the node that wrote it (its name, or a hash of a name that is too long for a label).
pub const NODE_LABEL: &str = "weft.dev/node";
/// How long after a write the next one is made. What comes after a quiet time is written at once; what comes in a burst
/// gathers while the former write is on its way, and for this long.
const PACE: Duration = Duration::from_millis(50);
/// How long it takes at least until it is written that an endpoint is gone, if no endpoint comes to the same slice
/// meanwhile: then it is written along. If one of its addresses is given again, it is written at once; where it goes to
/// another node's pod, that node's word is the newer one and counts. So removals can wait, and what does not wait for
/// them is what is urgent: they are spread out, by [`REMOVAL_SPREAD`] and [`REMOVAL_PACE`].
pub const REMOVAL_DELAY: Duration = Duration::from_secs(5);
/// Beyond that, each node waits for a random part of this for every node of the cluster: a workload that ends on all of
/// them at once is some 25 writes a second, of which each is an event for every node.
pub const REMOVAL_SPREAD: Duration = Duration::from_millis(40);
pub const REMOVAL_SPREAD_MAX: Duration = Duration::from_secs(60);
/// Between two writes of a node that only remove.
pub const REMOVAL_PACE: Duration = Duration::from_millis(500);

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Announced {
    /// The newest set ([`Writer::set`]) that is wholly written.
    pub generation: u64,
    pub slices: usize,
    /// Why the last try failed, until one succeeds.
    pub problem: Option<String>,
}

#[derive(Clone, Default)]
struct Wanted {
    generation: u64,
    endpoints: Arc<BTreeMap<ObjectName, RemoteEndpoint>>,
    nodes: u32,
    /// Nothing is added to what the slices hold.
    withdrawing: bool,
}

/// Handle of the writer's task. Cheap to clone; its calls never wait.
#[derive(Clone)]
pub struct Writer {
    wanted: Arc<watch::Sender<Wanted>>,
    announced: watch::Receiver<Announced>,
    recheck: Arc<Notify>,
    stem: Arc<str>,
    names: Arc<Mutex<BTreeSet<String>>>,
}

impl Writer {
    /// Starts the writer of `node_name`. It writes nothing before the first [`Writer::set`]. That endpoints are gone is
    /// written after `removal_delay` at the earliest (zero: at once), everything else at once.
    #[must_use]
    pub fn start(client: Client, node_name: &str, removal_delay: Duration, stop: CancellationToken) -> Self {
        let (wanted, wanted_reader) = watch::channel(Wanted::default());
        let (announcing, announced) = watch::channel(Announced::default());
        let recheck = Arc::new(Notify::new());
        let task = Task {
            client,
            label: label_value(node_name),
            stem: stem(node_name),
            held: None,
            taken: BTreeSet::new(),
            announcing,
            removal_delay,
            writes: 0,
            names: Arc::default(),
        };
        let names = Arc::clone(&task.names);
        let again = Arc::clone(&recheck);
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task.run(wanted_reader, again) => {}
            }
        });
        Self { wanted: Arc::new(wanted), announced, recheck, stem: stem(node_name).into(), names }
    }

    /// States the full set of this node's endpoints; returns its generation. The first call must come only when all
    /// endpoints that survived a restart are known: what is not in the set is withdrawn.
    pub fn set(&self, endpoints: BTreeMap<ObjectName, RemoteEndpoint>) -> u64 {
        self.want(endpoints, false)
    }

    /// The same for a node whose endpoints are made known in another way: what is not in the set is withdrawn, but
    /// nothing is added to what the slices hold.
    pub fn withdraw_but(&self, endpoints: BTreeMap<ObjectName, RemoteEndpoint>) -> u64 {
        self.want(endpoints, true)
    }

    fn want(&self, endpoints: BTreeMap<ObjectName, RemoteEndpoint>, withdrawing: bool) -> u64 {
        let mut generation = 0;
        self.wanted.send_modify(|wanted| {
            wanted.generation += 1;
            wanted.endpoints = Arc::new(endpoints);
            wanted.withdrawing = withdrawing;
            generation = wanted.generation;
        });
        generation
    }

    /// States how many nodes the cluster has: the more, the longer removals may wait.
    pub fn set_nodes(&self, nodes: usize) {
        self.wanted.send_if_modified(|wanted| {
            wanted.nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
            false
        });
    }

    /// Progress, to look at or to wait on.
    #[must_use]
    pub fn announced(&self) -> watch::Receiver<Announced> {
        self.announced.clone()
    }

    /// Whether a slice of this name is one of this node's.
    #[must_use]
    pub fn is_own(&self, slice: &str) -> bool {
        slice.starts_with(&*self.stem)
    }

    /// Whether a slice of this name is in the API, as far as this writer wrote or read.
    #[must_use]
    pub fn holds(&self, slice: &str) -> bool {
        self.names.lock().expect("a panic ends the process").contains(slice)
    }

    /// Reads this node's slices anew and mends them: for when somebody else changed or deleted one.
    pub fn recheck(&self) {
        self.recheck.notify_one();
    }
}

struct Task {
    client: Client,
    label: String,
    stem: String,
    /// This node's slices as they are in the API; `None`: to be read.
    held: Option<BTreeMap<String, Held>>,
    taken: BTreeSet<String>,
    announcing: watch::Sender<Announced>,
    removal_delay: Duration,
    writes: u64,
    /// Names of what is held, for others to look at.
    names: Arc<Mutex<BTreeSet<String>>>,
}

/// What came of an attempt to write.
enum Wrote {
    All,
    Removals,
}

impl Task {
    async fn run(mut self, mut wanted: watch::Receiver<Wanted>, recheck: Arc<Notify>) {
        // Generation 0 is no statement.
        if wanted.changed().await.is_err() {
            return;
        }
        let mut retry = Backoff::default();
        let mut removals_due: Option<Instant> = None;
        let mut next = Instant::now();
        loop {
            tokio::time::sleep_until(next).await;
            let now = wanted.borrow_and_update().clone();
            let due = removals_due.is_some_and(|due| due <= Instant::now());
            let removals = if self.removal_delay.is_zero() { usize::MAX } else { usize::from(due) };
            let before = self.writes;
            let outcome = self.write(&now, removals).await;
            let names = self.held.iter().flat_map(BTreeMap::keys).cloned().collect();
            *self.names.lock().expect("a panic ends the process") = names;
            if self.writes != before {
                next = Instant::now() + PACE;
            }
            match outcome {
                Ok(Wrote::Removals) => {
                    retry.reset();
                    self.announcing.send_modify(|announced| announced.problem = None);
                    if due {
                        removals_due = Some(Instant::now() + REMOVAL_PACE);
                    }
                    let wait = || self.removal_delay + random_part(removal_spread(now.nodes));
                    let due = *removals_due.get_or_insert_with(|| Instant::now() + wait());
                    tokio::select! {
                        changed = wanted.changed() => if changed.is_err() { return },
                        () = recheck.notified() => self.held = None,
                        () = tokio::time::sleep_until(due) => {}
                    }
                }
                Ok(Wrote::All) => {
                    retry.reset();
                    removals_due = None;
                    let slices = self.held.as_ref().map_or(0, BTreeMap::len);
                    self.announcing.send_replace(Announced { generation: now.generation, slices, problem: None });
                    tokio::select! {
                        changed = wanted.changed() => if changed.is_err() { return },
                        () = recheck.notified() => self.held = None,
                    }
                }
                Err(error) => {
                    // What is there is no longer certain.
                    self.held = None;
                    let pause = retry.next();
                    let why = error.to_string();
                    tracing::warn!(
                        retry_ms = pause.as_millis() as u64,
                        why,
                        "cannot write this node's endpoint slices"
                    );
                    self.announcing.send_modify(|announced| announced.problem = Some(why));
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// Writes all but removals, and of these so many.
    async fn write(&mut self, wanted: &Wanted, mut removals: usize) -> Result<Wrote, Error> {
        if self.held.is_none() {
            self.held = Some(self.read().await?);
        }
        loop {
            let held = self.held.as_ref().expect("read above, and kept by every write");
            let mut writes = if wanted.withdrawing {
                let known = |name: &ObjectName| held.values().any(|slice| slice.holds(name));
                let kept = wanted.endpoints.iter().filter(|(name, _)| known(name));
                let kept = kept.map(|(name, endpoint)| (name.clone(), endpoint.clone())).collect();
                plan::plan(&kept, held, &self.taken, &self.stem)
            } else {
                plan::plan(&wanted.endpoints, held, &self.taken, &self.stem)
            };
            if writes.is_empty() {
                return Ok(Wrote::All);
            }
            let all = writes.len();
            let in_use = wanted.endpoints.values().flat_map(|endpoint| endpoint.addresses.iter().copied()).collect();
            writes.retain(|write| {
                let can_wait = write.only_removes(held) && !write.frees(held, &in_use);
                let turn = !can_wait || removals > 0;
                removals -= usize::from(turn && can_wait);
                turn
            });
            if writes.is_empty() {
                return Ok(Wrote::Removals);
            }
            let left = writes.len() < all;
            let mut replan = false;
            for write in writes {
                replan |= !self.apply(write).await?;
            }
            if !replan {
                return Ok(if left { Wrote::Removals } else { Wrote::All });
            }
        }
    }

    async fn read(&self) -> Result<BTreeMap<String, Held>, Error> {
        let mut held = BTreeMap::new();
        let query = [("labelSelector", format!("{NODE_LABEL}={}", self.label))];
        crate::list::each(&self.client, path::SLICES, 50, &query, |slice: CiliumEndpointSlice| {
            // The server's word on the label is checked: a wrong answer must not cost another node its slices.
            if slice.metadata.labels.get(NODE_LABEL) == Some(&self.label) {
                held.insert(slice.metadata.name.clone(), Held::from(slice));
            }
        })
        .await?;
        Ok(held)
    }

    /// False: the name was somebody else's, plan anew.
    async fn apply(&mut self, write: Write) -> Result<bool, Error> {
        self.writes += 1;
        let held = self.held.as_mut().expect("read before anything is planned");
        match write {
            Write::Create { name, namespace, endpoints } => {
                let object = object(&name, "", &self.label, &namespace, endpoints);
                match self.client.create::<Named>(path::SLICES, &object).await {
                    Ok(made) => {
                        let version = made.metadata.resource_version;
                        held.insert(name, Held { version, namespace, endpoints: object.endpoints });
                        Ok(true)
                    }
                    Err(error) if error.is_already_exists() => {
                        let found: Option<CiliumEndpointSlice> = self.client.find(&slice_path(&name)?).await?;
                        match found {
                            Some(slice) if slice.metadata.labels.get(NODE_LABEL) == Some(&self.label) => {
                                held.insert(name, Held::from(slice));
                            }
                            Some(_) => {
                                self.taken.insert(name);
                            }
                            None => {}
                        }
                        Ok(false)
                    }
                    Err(error) => Err(error),
                }
            }
            Write::Update { name, endpoints } => {
                let Some(known) = held.get_mut(&name) else { return Ok(false) };
                let object = object(&name, &known.version, &self.label, &known.namespace, endpoints);
                let made: Named = self.client.replace(&slice_path(&name)?, &object).await?;
                known.version = made.metadata.resource_version;
                known.endpoints = object.endpoints;
                Ok(true)
            }
            Write::Delete { name } => {
                let Some(known) = held.get(&name) else { return Ok(false) };
                let unchanged = Preconditions { uid: None, resource_version: Some(known.version.clone()) };
                self.client.delete(&slice_path(&name)?, &unchanged).await?;
                held.remove(&name);
                Ok(true)
            }
        }
    }
}

/// How much longer than [`REMOVAL_DELAY`] removals may wait in a cluster of so many nodes.
#[must_use]
pub fn removal_spread(nodes: u32) -> Duration {
    REMOVAL_SPREAD.saturating_mul(nodes.saturating_sub(1)).min(REMOVAL_SPREAD_MAX)
}

/// From nothing to all of it: so that those who began together do not go on together.
#[must_use]
pub fn random_part(of: Duration) -> Duration {
    of.mul_f64(RandomState::new().hash_one(0_u8) as f64 / u64::MAX as f64)
}

fn object(
    name: &str,
    version: &str,
    label: &str,
    namespace: &str,
    endpoints: Vec<CoreEndpoint>,
) -> CiliumEndpointSlice {
    CiliumEndpointSlice {
        api_version: CILIUM_V2ALPHA1.to_owned(),
        kind: "CiliumEndpointSlice".to_owned(),
        metadata: Metadata {
            name: name.to_owned(),
            resource_version: version.to_owned(),
            labels: BTreeMap::from([(NODE_LABEL.to_owned(), label.to_owned())]),
            ..Metadata::default()
        },
        namespace: namespace.to_owned(),
        endpoints,
    }
}

fn slice_path(name: &str) -> Result<String, Error> {
    Ok(format!("{}/{}", path::SLICES, segment("slice", name)?))
}

/// A node's name as a label's value, which has room for 63 characters only.
#[must_use]
pub fn label_value(node_name: &str) -> String {
    if node_name.len() <= 63 { node_name.to_owned() } else { letters(node_name, 20) }
}

/// What all slices of a node begin with.
fn stem(node_name: &str) -> String {
    let readable: String = node_name.chars().take(100).collect();
    format!("{}-{}-", readable.trim_end_matches(['-', '.']), letters(node_name, 8))
}

/// `count` letters that stand for `text`.
fn letters(text: &str, count: usize) -> String {
    const ALPHABET: &[u8; 31] = b"0123456789bcdfghjklmnpqrstvwxyz";
    Sha256::digest(text).iter().take(count).map(|byte| char::from(ALPHABET[usize::from(byte % 31)])).collect()
}

/// A slice as the operator's housekeeping sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Owned {
    pub name: String,
    pub resource_version: String,
    /// Value of [`NODE_LABEL`]; `None`: not written by an agent of ours.
    pub node: Option<String>,
    pub identities: BTreeSet<u32>,
}

pub async fn list(client: &Client) -> Result<Vec<Owned>, Error> {
    let mut all = Vec::new();
    crate::list::each(client, path::SLICES, 100, &[], |mut slice: CiliumEndpointSlice| {
        all.push(Owned {
            node: slice.metadata.labels.remove(NODE_LABEL),
            identities: slice.endpoints.iter().filter_map(|endpoint| u32::try_from(endpoint.id).ok()).collect(),
            name: slice.metadata.name,
            resource_version: slice.metadata.resource_version,
        });
    })
    .await?;
    Ok(all)
}

/// Deletes a slice, if it is still as it was read.
pub async fn delete(client: &Client, slice: &Owned) -> Result<(), Error> {
    let unchanged = Preconditions { uid: None, resource_version: Some(slice.resource_version.clone()) };
    client.delete(&slice_path(&slice.name)?, &unchanged).await
}

/// Where the collection is, with a selector of one node's slices: for tests and tools.
#[must_use]
pub fn own_path(node_name: &str) -> String {
    with_query(path::SLICES, &[("labelSelector", format!("{NODE_LABEL}={}", label_value(node_name)))])
}
