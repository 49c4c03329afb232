//! Slices made of CiliumEndpoints, while the operator is configured for it or an agent says that it reads them.
//!
//! Whoever takes this up first reads every slice that is there and takes it over, then every CiliumEndpoint, and only
//! then writes: a new leader deletes nothing because it does not know it yet. When nobody reads them any more, the
//! slices that this operator made go, after a grace.

use crate::config::Config;
use crate::metrics::Metrics;
use crate::nodes::{Known, Readers};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use weft_control::pack::{Packer, Queue, Turn};
use weft_k8s::convert::endpoint_of_slice;
use weft_k8s::endpoint::Propagation;
use weft_k8s::slice::{NODE_LABEL, shared};
use weft_k8s::watch::{Kind, Seen, endpoints, follow};
use weft_k8s::wire::{Metadata, Named, path};
use weft_k8s::{Client, Error};
use weft_model::intent::{Change, ObjectName};

/// Annotation of a namespace whose slices go first.
const PRIORITY_ANNOTATION: &str = "cilium.io/ces-namespace";
/// Pause before reading what is there is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Makes slices whenever somebody reads them, until it is dropped.
pub(crate) async fn run(config: &Config, client: &Client, known: Known, mut readers: Readers, metrics: &Metrics) {
    let configured = config.endpoint_propagation == Propagation::CesOperator;
    loop {
        // Until all agents were heard nothing is decided.
        let Ok(wanted) = readers.wait_for(Option::is_some).await.map(|read| configured || *read == Some(true)) else {
            return;
        };
        if wanted {
            let mut unread = readers.clone();
            tokio::select! {
                () = make(config, client, known.clone(), metrics) => {}
                _ = unread.wait_for(|read| *read == Some(false)), if !configured => {}
            }
            continue;
        }
        let again = readers.wait_for(|read| *read == Some(true));
        if tokio::time::timeout(config.node_grace_seconds, again).await.is_ok() {
            continue;
        }
        match wind_down(client).await {
            Ok(()) => {
                if readers.wait_for(|read| *read == Some(true)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot remove slices that nobody reads, trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn wind_down(client: &Client) -> Result<(), Error> {
    for slice in shared::list(client).await?.into_iter().filter(|slice| slice.ours) {
        tracing::info!(slice = slice.name, "deleting a slice of the operator's: agents read their nodes' own");
        match shared::delete(client, &slice.name, &slice.version).await {
            Err(error) if !error.is_conflict() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// One life of the slices: what is there is taken over, then kept as the CiliumEndpoints are.
async fn make(config: &Config, client: &Client, known: Known, metrics: &Metrics) {
    let stored = loop {
        match shared::list(client).await {
            Ok(stored) => break stored,
            Err(error) => {
                tracing::warn!(%error, "cannot read the slices, trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    let nodes = || known.borrow().as_ref().map_or(0, |nodes| nodes.len());
    let mut work = Work {
        client,
        metrics,
        packer: Packer::new(config.ces_endpoints_max),
        queue: Queue::new(Duration::from_millis(config.ces_delay_ms), config.ces_rate_limits.of(nodes())),
        versions: BTreeMap::new(),
        listed: Some(BTreeSet::new()),
        priority: BTreeSet::new(),
        changes: BTreeMap::new(),
        start: Instant::now(),
        random: RandomState::new(),
        drawn: 0,
    };
    for slice in stored {
        work.adopt(slice);
    }
    let stop = CancellationToken::new();
    let _stopped_with_this: DropGuard = stop.clone().drop_guard();
    let (sender, mut told) = mpsc::channel(64);
    endpoints(client, sender, stop.clone());
    let (sender, mut namespaces) = mpsc::channel(8);
    follow(client.clone(), Namespaces, sender, stop.clone());
    let (sender, mut slices) = mpsc::channel(64);
    follow(client.clone(), Slices, sender, stop.clone());
    loop {
        // Before every CiliumEndpoint is known, what is missing is not gone.
        let wake = work.listed.is_none().then(|| work.queue.wake(work.now())).flatten();
        let sleep = tokio::time::sleep_until(work.start + wake.unwrap_or_default());
        tokio::select! {
            batch = told.recv() => match batch {
                Some(batch) => batch.into_iter().for_each(|change| work.apply(change)),
                None => return,
            },
            batch = namespaces.recv() => match batch {
                Some(batch) => batch.into_iter().for_each(|event| work.apply_namespace(event)),
                None => return,
            },
            batch = slices.recv() => match batch {
                Some(batch) => batch.into_iter().for_each(|event| work.apply_slice(event)),
                None => return,
            },
            () = sleep, if wake.is_some() => {
                work.queue.set_rate(config.ces_rate_limits.of(nodes()));
                while let Some(turn) = work.queue.next(work.now()) {
                    work.write(turn).await;
                }
            }
        }
    }
}

struct Work<'a> {
    client: &'a Client,
    metrics: &'a Metrics,
    packer: Packer,
    queue: Queue,
    /// Versions of the slices that exist.
    versions: BTreeMap<String, String>,
    /// CiliumEndpoints of the first list, while it is not complete.
    listed: Option<BTreeSet<ObjectName>>,
    /// Namespaces that go first.
    priority: BTreeSet<String>,
    /// Endpoints that were put into, and taken out of, slices that wait.
    changes: BTreeMap<String, (u32, u32)>,
    start: Instant,
    random: RandomState,
    drawn: u64,
}

impl Work<'_> {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn adopt(&mut self, slice: shared::Stored) {
        self.versions.insert(slice.name.clone(), slice.version);
        let readable = slice.endpoints.is_some();
        let whole = self.packer.adopt(&slice.name, &slice.namespace, slice.endpoints.unwrap_or_default());
        if !(whole && readable) || self.packer.content(&slice.name).is_none() {
            self.dirty(&slice.name);
        }
    }

    fn dirty(&mut self, slice: &str) {
        let priority = self.packer.namespace(slice).is_some_and(|namespace| self.priority.contains(namespace));
        self.queue.changed(slice, priority, self.start.elapsed());
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Slice(slice) => {
                let Some(name) = endpoint_of_slice(&slice.name) else { return };
                let Some(endpoint) = slice.endpoints.into_iter().next() else { return self.gone(&name) };
                if let Some(listed) = &mut self.listed {
                    listed.insert(name);
                }
                let (random, drawn) = (&self.random, &mut self.drawn);
                let fresh = || {
                    *drawn += 1;
                    slice_name(random.hash_one(*drawn))
                };
                if let Some(slice) = self.packer.put(endpoint, fresh) {
                    self.changes.entry(slice.clone()).or_default().0 += 1;
                    self.dirty(&slice);
                }
            }
            Change::SliceGone(name) => {
                if let Some(name) = endpoint_of_slice(&name) {
                    self.gone(&name);
                }
            }
            Change::Synced(_) => {
                let Some(listed) = self.listed.take() else { return };
                let changed = self.packer.retain(|name| listed.contains(name));
                tracing::info!(endpoints = listed.len(), slices = self.versions.len(), "making slices");
                changed.iter().for_each(|slice| self.dirty(slice));
            }
            _ => {}
        }
    }

    fn gone(&mut self, name: &ObjectName) {
        if let Some(listed) = &mut self.listed {
            listed.remove(name);
        }
        if let Some(slice) = self.packer.remove(name) {
            self.changes.entry(slice.clone()).or_default().1 += 1;
            self.dirty(&slice);
        }
    }

    fn apply_namespace(&mut self, event: NamespaceEvent) {
        match event {
            NamespaceEvent::Applied(name, true) => drop(self.priority.insert(name)),
            NamespaceEvent::Applied(name, false) | NamespaceEvent::Deleted(name) => drop(self.priority.remove(&name)),
            NamespaceEvent::Synced => {}
        }
    }

    /// Somebody else changed or deleted a slice: it is written anew.
    fn apply_slice(&mut self, event: SliceEvent) {
        match event {
            SliceEvent::Applied(name, version) => {
                if self.versions.get(&name).is_some_and(|known| is_newer(&version, known)) {
                    self.versions.insert(name.clone(), version);
                    self.dirty(&name);
                }
            }
            SliceEvent::Deleted(name) => {
                if self.versions.remove(&name).is_some() {
                    self.dirty(&name);
                }
            }
            SliceEvent::Synced => {}
        }
    }

    async fn write(&mut self, turn: Turn) {
        let name = turn.slice.clone();
        let version = self.versions.get(&name).cloned();
        let outcome = match (self.packer.content(&name), &version) {
            (Some((namespace, endpoints)), version) => {
                self.metrics.endpoints_per_slice.observe(endpoints.len() as f64);
                shared::write(self.client, &name, version.as_deref(), namespace, &endpoints).await.map(Some)
            }
            (None, Some(version)) => shared::delete(self.client, &name, version).await.map(|()| None),
            (None, None) => Ok(None),
        };
        let queue = if turn.priority { "fast" } else { "standard" };
        self.metrics.queueing_delay.get_or_create(&vec![("queue", queue)]).observe(turn.waited.as_secs_f64());
        let (result, why) = match &outcome {
            Ok(_) => ("success", ""),
            Err(error) if error.is_conflict() => ("fail", "transient"),
            Err(_) => ("fail", "fatal"),
        };
        self.metrics.slice_writes.get_or_create(&vec![("outcome", result), ("failure_type", why)]).inc();
        match outcome {
            Ok(version) => {
                if let Some((put, taken)) = self.changes.remove(&name) {
                    let family = &self.metrics.changes_per_slice;
                    family.get_or_create(&vec![("opcode", "cepinsert")]).observe(f64::from(put));
                    family.get_or_create(&vec![("opcode", "cepremove")]).observe(f64::from(taken));
                }
                match version {
                    Some(version) => drop(self.versions.insert(name, version)),
                    None => {
                        self.versions.remove(&name);
                        self.packer.deleted(&name);
                    }
                }
            }
            Err(error) => {
                tracing::warn!(slice = name, %error, "cannot write a slice, trying again");
                // What is there now, if it can be had: the next try is planned from it.
                if let Ok(found) = shared::read(self.client, &name).await {
                    match found {
                        Some(found) => drop(self.versions.insert(name, found.version)),
                        None => drop(self.versions.remove(&name)),
                    }
                }
                self.queue.failed(turn, self.start.elapsed());
            }
        }
    }
}

fn is_newer(version: &str, than: &str) -> bool {
    match (version.parse::<u64>(), than.parse::<u64>()) {
        (Ok(version), Ok(than)) => version > than,
        _ => version != than,
    }
}

/// A name such as tools expect: `ces-`, nine letters, `-`, five letters.
fn slice_name(random: u64) -> String {
    const LETTERS: &[u8; 28] = b"bcdfghjklmnpqrstvwxyz2456789";
    let mut rest = random;
    let mut draw = |count: usize| -> String {
        let letters = (0..count).map(|_| {
            let letter = LETTERS[usize::try_from(rest % 28).expect("below 28")];
            rest /= 28;
            char::from(letter)
        });
        letters.collect()
    };
    format!("ces-{}-{}", draw(9), draw(5))
}

struct Namespaces;

#[derive(Hash)]
enum NamespaceEvent {
    /// Its slices go first, or not.
    Applied(String, bool),
    Deleted(String),
    Synced,
}

impl Kind for Namespaces {
    type Key = String;
    type Event = NamespaceEvent;
    const PAGE: u32 = 500;

    fn path(&self) -> &'static str {
        path::NAMESPACES
    }

    fn read(&self, json: &str) -> Result<Seen<String, NamespaceEvent>, String> {
        let metadata = metadata(json)?;
        let first = metadata.annotations.get(PRIORITY_ANNOTATION).is_some_and(|value| value == "priority");
        let event = Some(NamespaceEvent::Applied(metadata.name.clone(), first));
        Ok(Seen { key: metadata.name, uid: String::new(), version: metadata.resource_version, event })
    }

    fn gone(&self, key: &String, _uid: &str) -> NamespaceEvent {
        NamespaceEvent::Deleted(key.clone())
    }

    fn synced(&self) -> NamespaceEvent {
        NamespaceEvent::Synced
    }
}

struct Slices;

#[derive(Hash)]
enum SliceEvent {
    /// Name and version; of nodes' slices nothing is told.
    Applied(String, String),
    Deleted(String),
    Synced,
}

impl Kind for Slices {
    type Key = String;
    type Event = SliceEvent;
    const PAGE: u32 = 100;

    fn path(&self) -> &'static str {
        path::SLICES
    }

    fn read(&self, json: &str) -> Result<Seen<String, SliceEvent>, String> {
        let metadata = metadata(json)?;
        let event = (!metadata.labels.contains_key(NODE_LABEL))
            .then(|| SliceEvent::Applied(metadata.name.clone(), metadata.resource_version.clone()));
        Ok(Seen { key: metadata.name, uid: metadata.uid, version: metadata.resource_version, event })
    }

    fn gone(&self, key: &String, _uid: &str) -> SliceEvent {
        SliceEvent::Deleted(key.clone())
    }

    fn synced(&self) -> SliceEvent {
        SliceEvent::Synced
    }
}

fn metadata(json: &str) -> Result<Metadata, String> {
    let Named { metadata } =
        Named::deserialize(&mut serde_json::Deserializer::from_str(json)).map_err(|error| error.to_string())?;
    if metadata.name.is_empty() {
        return Err("metadata.name: required".to_owned());
    }
    Ok(metadata)
}
