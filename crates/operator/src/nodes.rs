//! The cluster's nodes as the operator needs them: names and pod CIDRs.

use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use weft_k8s::Client;
use weft_k8s::endpoint::{PROPAGATION, Propagation};
use weft_k8s::watch::{Absence, Kind, Seen, follow};
use weft_k8s::wire::{Metadata, Named, path};

/// A node.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Row {
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Pod CIDRs as written.
    pub pod_cidrs: Vec<String>,
    /// How the cloud calls the machine; empty if there is none.
    pub provider_id: String,
}

/// What happens to nodes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    /// It exists.
    Applied(Row),
    /// It is gone.
    Deleted(String),
    /// All that exist were told.
    Synced,
}

/// Names and UIDs of the nodes that exist; `None` until all are known.
pub type Known = watch::Receiver<Option<Arc<BTreeMap<String, String>>>>;

struct Nodes;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Object {
    metadata: Metadata,
    spec: Spec,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Spec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
    #[serde(rename = "providerID")]
    provider_id: Option<String>,
}

impl Kind for Nodes {
    type Key = String;
    type Event = Event;
    const PAGE: u32 = 100;

    fn path(&self) -> &'static str {
        path::NODES
    }

    fn read(&self, json: &str) -> Result<Seen<String, Event>, String> {
        let object: Object = serde_json::from_str(json).map_err(|error| error.to_string())?;
        let (name, uid) = (object.metadata.name, object.metadata.uid);
        if name.is_empty() {
            return Err("metadata.name: required".to_owned());
        }
        let several = object.spec.pod_cidrs.filter(|cidrs| !cidrs.is_empty());
        let pod_cidrs = several.unwrap_or_else(|| object.spec.pod_cidr.into_iter().filter(|c| !c.is_empty()).collect());
        let provider_id = object.spec.provider_id.unwrap_or_default();
        let row = Row { name: name.clone(), uid: uid.clone(), pod_cidrs, provider_id };
        Ok(Seen { key: name, uid, version: object.metadata.resource_version, event: Some(Event::Applied(row)) })
    }

    fn gone(&self, key: &String, _uid: &str) -> Event {
        Event::Deleted(key.clone())
    }

    fn synced(&self) -> Event {
        Event::Synced
    }
}

/// Watches the nodes until `stop`, for as long as the future is polled: as events, and as the set of those that exist.
pub(crate) fn watch(
    client: Client,
    stop: CancellationToken,
) -> (impl Future<Output = ()> + Send, mpsc::Receiver<Vec<Event>>, Known) {
    let (sender, mut receiver) = mpsc::channel(8);
    follow(client, Nodes, sender, stop);
    let (forward, forwarded) = mpsc::channel(8);
    let (knowing, known) = watch::channel(None);
    let work = async move {
        let (mut names, mut synced) = (BTreeMap::new(), false);
        while let Some(batch) = receiver.recv().await {
            for event in &batch {
                match event {
                    Event::Applied(row) => drop(names.insert(row.name.clone(), row.uid.clone())),
                    Event::Deleted(name) => drop(names.remove(name)),
                    Event::Synced => synced = true,
                }
            }
            if synced {
                knowing.send_if_modified(|known: &mut Option<Arc<BTreeMap<String, String>>>| {
                    let differs = known.as_deref() != Some(&names);
                    if differs {
                        *known = Some(Arc::new(names.clone()));
                    }
                    differs
                });
            }
            if forward.send(batch).await.is_err() {
                return;
            }
        }
    };
    (work, forwarded, known)
}

/// Whether any agent says that it reads the slices that the operator makes; `None` until all were heard.
pub type Readers = watch::Receiver<Option<bool>>;

struct CiliumNodes;

#[derive(Hash)]
enum Mode {
    Applied(String, bool),
    Deleted(String),
    Synced,
}

impl Kind for CiliumNodes {
    type Key = String;
    type Event = Mode;
    const PAGE: u32 = 500;

    fn path(&self) -> &'static str {
        path::CILIUM_NODES
    }

    fn absence(&self) -> Absence {
        Absence::Confirmed
    }

    fn read(&self, json: &str) -> Result<Seen<String, Mode>, String> {
        let Named { metadata } = serde_json::from_str(json).map_err(|error| error.to_string())?;
        if metadata.name.is_empty() {
            return Err("metadata.name: required".to_owned());
        }
        let mode = metadata.annotations.get(PROPAGATION).and_then(|mode| Propagation::read(mode));
        let event = Mode::Applied(metadata.name.clone(), mode == Some(Propagation::CesOperator));
        Ok(Seen { key: metadata.name, uid: metadata.uid, version: metadata.resource_version, event: Some(event) })
    }

    fn gone(&self, key: &String, _uid: &str) -> Mode {
        Mode::Deleted(key.clone())
    }

    fn synced(&self) -> Mode {
        Mode::Synced
    }
}

/// Watches what agents say of their mode, until `stop`, for as long as the future is polled.
pub(crate) fn readers(client: Client, stop: CancellationToken) -> (impl Future<Output = ()> + Send, Readers) {
    let (sender, mut receiver) = mpsc::channel(8);
    follow(client, CiliumNodes, sender, stop);
    let (telling, told) = watch::channel(None);
    let work = async move {
        let (mut readers, mut synced) = (BTreeSet::new(), false);
        while let Some(batch) = receiver.recv().await {
            for event in batch {
                match event {
                    Mode::Applied(name, true) => drop(readers.insert(name)),
                    Mode::Applied(name, false) | Mode::Deleted(name) => drop(readers.remove(&name)),
                    Mode::Synced => synced = true,
                }
            }
            if synced {
                telling.send_if_modified(|told| told.replace(!readers.is_empty()) != Some(!readers.is_empty()));
            }
        }
    };
    (work, told)
}
