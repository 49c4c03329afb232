//! CiliumEndpoints: one object per pod, for the modes in which agents write them.
//!
//! The agent states the full set of its node's endpoints; the writer makes the objects match. An object belongs to its
//! pod (owner reference with the UID) and carries the node's label; what is deleted is deleted by UID, so that a late
//! word about an old pod never hits the object of a new one with the same name.

pub mod style;

use crate::client::{Client, PatchKind, Preconditions, segment};
use crate::convert;
use crate::discovery::confirm_absent;
use crate::error::Error;
use crate::retry::Backoff;
use crate::slice::{NODE_LABEL, label_value};
use crate::wire::{
    CILIUM_V2, CiliumEndpoint, EndpointEncryption, EndpointIdentity, EndpointStatus, Metadata, OwnerReference, path,
};
use futures::StreamExt as _;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use style::{Limiter, WriteStyle};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weft_model::intent::{ObjectName, RemoteEndpoint};

/// How often the objects are compared with what they should be, though nothing was heard.
const AUDIT: Duration = Duration::from_secs(300);
/// Annotation of a CiliumNode: how its agent makes its endpoints known, as in [`Propagation::as_str`].
pub const PROPAGATION: &str = "weft.dev/endpoint-propagation";

/// How the endpoints of a node become known to the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Propagation {
    /// A CiliumEndpoint per pod, which every agent watches.
    Cep,
    /// A CiliumEndpoint per pod, which the operator copies into slices; agents watch the slices.
    CesOperator,
    /// Each agent writes the slices of its own node.
    #[default]
    CesNode,
}

impl Propagation {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cep => "cep",
            Self::CesOperator => "ces-operator",
            Self::CesNode => "ces-node",
        }
    }

    /// The same, read; `None`: something else.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        [Self::Cep, Self::CesOperator, Self::CesNode].into_iter().find(|mode| mode.as_str() == text)
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Own {
    pub endpoint: RemoteEndpoint,
    pub id: u16,
    /// Labels of the identity: `source:key=value`.
    pub labels: Vec<String>,
    pub service_account: String,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Announced {
    /// The newest set ([`Writer::set`]) that is wholly written.
    pub generation: u64,
    pub objects: usize,
    /// Why the last try failed, until one succeeds.
    pub problem: Option<String>,
}

#[derive(Clone, Default)]
struct Wanted {
    generation: u64,
    endpoints: Arc<BTreeMap<ObjectName, Own>>,
}

/// Handle of the writer's task. Cheap to clone; its calls never wait.
#[derive(Clone)]
pub struct Writer {
    wanted: Arc<watch::Sender<Wanted>>,
    announced: watch::Receiver<Announced>,
    recheck: Arc<Notify>,
}

impl Writer {
    /// Starts the writer of `node_name`. Nothing is written before the first [`Writer::set`].
    #[must_use]
    pub fn start(client: Client, node_name: &str, style: WriteStyle, stop: CancellationToken) -> Self {
        let (wanted, wanted_reader) = watch::channel(Wanted::default());
        let (announcing, announced) = watch::channel(Announced::default());
        let recheck = Arc::new(Notify::new());
        let turns = Arc::new(Turns { client, label: label_value(node_name), style, limiter: Limiter::new(style) });
        let task = Task { turns, held: None, announcing };
        let again = Arc::clone(&recheck);
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task.run(wanted_reader, again) => {}
            }
        });
        Self { wanted: Arc::new(wanted), announced, recheck }
    }

    /// States the full set of this node's endpoints; returns its generation. The first call must come only when all
    /// endpoints that survived a restart are known: what is not in the set is withdrawn.
    pub fn set(&self, endpoints: BTreeMap<ObjectName, Own>) -> u64 {
        let mut generation = 0;
        self.wanted.send_modify(|wanted| {
            wanted.generation += 1;
            wanted.endpoints = Arc::new(endpoints);
            generation = wanted.generation;
        });
        generation
    }

    /// Whether an object of that name shall be there.
    #[must_use]
    pub fn wants(&self, name: &ObjectName) -> bool {
        self.wanted.borrow().endpoints.contains_key(name)
    }

    /// Progress, to look at or to wait on.
    #[must_use]
    pub fn announced(&self) -> watch::Receiver<Announced> {
        self.announced.clone()
    }

    /// Reads this node's objects anew and mends them: for when somebody else changed or deleted one.
    pub fn recheck(&self) {
        self.recheck.notify_one();
    }
}

/// An object as it is in the API.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Held {
    uid: String,
    pod_uid: String,
    status: EndpointStatus,
    made: Option<Instant>,
}

impl Held {
    fn of(object: CiliumEndpoint) -> (ObjectName, Self) {
        let name = ObjectName { namespace: object.metadata.namespace, name: object.metadata.name };
        let pod = object.metadata.owner_references.into_iter().find(|owner| owner.kind == "Pod");
        let pod_uid = pod.map(|owner| owner.uid).unwrap_or_default();
        (name, Self { uid: object.metadata.uid, pod_uid, status: object.status, made: None })
    }
}

struct Turns {
    client: Client,
    label: String,
    style: WriteStyle,
    limiter: Limiter,
}

struct Task {
    turns: Arc<Turns>,
    /// This node's objects as they are in the API; `None`: to be read.
    held: Option<BTreeMap<ObjectName, Held>>,
    announcing: watch::Sender<Announced>,
}

impl Task {
    async fn run(mut self, mut wanted: watch::Receiver<Wanted>, recheck: Arc<Notify>) {
        // Generation 0 is no statement.
        if wanted.changed().await.is_err() {
            return;
        }
        let mut retry = Backoff::default();
        loop {
            tokio::time::sleep(self.turns.style.gathers()).await;
            let now = wanted.borrow_and_update().clone();
            match self.write(&now.endpoints).await {
                Ok(()) => {
                    retry.reset();
                    let objects = self.held.as_ref().map_or(0, BTreeMap::len);
                    self.announcing.send_replace(Announced { generation: now.generation, objects, problem: None });
                    let round = self.round();
                    tokio::select! {
                        changed = wanted.changed() => if changed.is_err() { return },
                        () = recheck.notified() => self.held = None,
                        () = tokio::time::sleep_until(round.unwrap_or_else(Instant::now)), if round.is_some() => {}
                        () = tokio::time::sleep(AUDIT), if objects > 0 => self.held = None,
                    }
                }
                Err(error) => {
                    self.held = None;
                    let pause = retry.next();
                    let why = error.to_string();
                    let retry_ms = pause.as_millis() as u64;
                    tracing::warn!(retry_ms, why, "cannot write this node's CiliumEndpoints");
                    self.announcing.send_modify(|announced| announced.problem = Some(why));
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    async fn write(&mut self, endpoints: &BTreeMap<ObjectName, Own>) -> Result<(), Error> {
        if self.held.is_none() {
            self.held = Some(self.read().await?);
        }
        let held = self.held.as_ref().expect("read above");
        let names: BTreeSet<&ObjectName> = endpoints.keys().chain(held.keys()).collect();
        let style = self.turns.style;
        let differs = |name: &&&ObjectName| match (endpoints.get(**name), held.get(**name)) {
            (Some(own), Some(held)) => {
                held.pod_uid != own.endpoint.pod_uid || held.status != status(own, style.state(held.made))
            }
            (None, None) => false,
            _ => true,
        };
        let jobs = names.iter().filter(differs).map(|name| {
            let (own, held) = (endpoints.get(*name).cloned(), held.get(*name).cloned());
            let (turns, name) = (self.turns.clone(), (*name).clone());
            async move {
                let outcome = turns.write_one(&name, own.as_ref(), held).await;
                (name, outcome)
            }
        });
        let jobs: Vec<_> = jobs.collect();
        let outcomes: Vec<_> = futures::stream::iter(jobs).buffer_unordered(style.side_by_side()).collect().await;
        let held = self.held.as_mut().expect("read above");
        let mut result = Ok(());
        for (name, outcome) in outcomes {
            match outcome {
                Ok(Some(object)) => drop(held.insert(name, object)),
                Ok(None) => drop(held.remove(&name)),
                Err(error) => result = Err(error),
            }
        }
        result
    }

    /// When the next object is to say something else of its endpoint's state.
    fn round(&self) -> Option<Instant> {
        let held = self.held.iter().flat_map(BTreeMap::values).filter(|held| held.status.state != "ready");
        held.filter_map(|held| held.made).min().map(|made| made + style::ROUND)
    }

    async fn read(&self) -> Result<BTreeMap<ObjectName, Held>, Error> {
        let mut held = BTreeMap::new();
        let Turns { client, label, .. } = &*self.turns;
        let query = [("labelSelector", format!("{NODE_LABEL}={label}"))];
        let listed = crate::list::each(client, path::ENDPOINTS, 100, &query, |object: CiliumEndpoint| {
            // The server's word on the label is checked: a wrong answer must not cost another node its objects.
            if object.metadata.labels.get(NODE_LABEL) == Some(label) {
                held.extend([Held::of(object)]);
            }
        });
        match listed.await {
            Ok(()) => Ok(held),
            // A cluster without the kind has no objects of it.
            Err(error) => confirm_absent(client, path::ENDPOINTS, error).await.map(|()| BTreeMap::new()),
        }
    }
}

impl Turns {
    /// Brings one object to what it should be; answers what is there now.
    async fn write_one(&self, name: &ObjectName, own: Option<&Own>, held: Option<Held>) -> Result<Option<Held>, Error> {
        let Some(own) = own else {
            if let Some(held) = held {
                self.delete(name, &held.uid).await?;
            }
            return Ok(None);
        };
        let mut held = held;
        if let Some(old) = held.take_if(|held| held.pod_uid != own.endpoint.pod_uid) {
            self.delete(name, &old.uid).await?;
        }
        if held.is_none() {
            if self.style == WriteStyle::Upstream {
                self.limiter.turn().await;
                held = self.client.find::<CiliumEndpoint>(&object_path(name)?).await?.map(|found| Held::of(found).1);
                held = held.filter(|held| held.pod_uid == own.endpoint.pod_uid);
            }
            if held.is_none() {
                match self.create(name, own).await {
                    Ok(made) => return Ok(Some(made)),
                    Err(error) if error.is_already_exists() => {
                        let Some(found) = self.client.find::<CiliumEndpoint>(&object_path(name)?).await? else {
                            return Err(error);
                        };
                        let found = Held::of(found).1;
                        if found.pod_uid != own.endpoint.pod_uid {
                            // Of two pods with one name the one that the API server knows is the living one.
                            let living = crate::pod::get(&self.client, name).await?.map(|pod| pod.uid);
                            if living.as_ref() != Some(&own.endpoint.pod_uid) {
                                return Ok(None);
                            }
                            self.delete(name, &found.uid).await?;
                            return self.create(name, own).await.map(Some);
                        }
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        let made = held.and_then(|held| held.made);
        let wanted = status(own, self.style.state(made));
        let patch = json!({"metadata": metadata(&self.label, own), "status": wanted});
        self.limiter.turn().await;
        let object: CiliumEndpoint = self.client.patch(&object_path(name)?, PatchKind::Merge, &patch).await?;
        self.complete(own, object, made, wanted).await.map(Some)
    }

    async fn create(&self, name: &ObjectName, own: &Own) -> Result<Held, Error> {
        self.limiter.turn().await;
        let now = Some(Instant::now());
        let object = object(&self.label, own, self.style.state(now));
        let made: CiliumEndpoint = self.client.create(&collection(name)?, &object).await?;
        self.complete(own, made, now, object.status).await
    }

    /// Definitions with a status subresource ignore the status of the object itself: there it is written on its own.
    async fn complete(
        &self,
        own: &Own,
        object: CiliumEndpoint,
        made: Option<Instant>,
        wanted: EndpointStatus,
    ) -> Result<Held, Error> {
        if object.status == wanted {
            return Ok(Held { made, ..Held::of(object).1 });
        }
        let patch = json!({"metadata": metadata(&self.label, own), "status": wanted});
        let path = format!("{}/status", object_path(&own.endpoint.name)?);
        match self.client.patch::<CiliumEndpoint>(&path, PatchKind::Merge, &patch).await {
            Ok(object) => Ok(Held { made, ..Held::of(object).1 }),
            // No subresource: the server keeps something else than it was given, such as fields that its definition lacks.
            Err(error) if error.is_not_found() => Ok(Held { made, status: wanted, ..Held::of(object).1 }),
            Err(error) => Err(error),
        }
    }

    async fn delete(&self, name: &ObjectName, uid: &str) -> Result<(), Error> {
        self.limiter.turn().await;
        delete(&self.client, name, uid).await
    }
}

async fn delete(client: &Client, name: &ObjectName, uid: &str) -> Result<(), Error> {
    let same = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
    match client.delete(&object_path(name)?, &same).await {
        // Another object of that name by now: nothing of ours is left.
        Err(error) if error.is_conflict() => Ok(()),
        other => other,
    }
}

fn metadata(label: &str, own: &Own) -> serde_json::Value {
    json!({"labels": {NODE_LABEL: label}, "ownerReferences": [owner(own)]})
}

fn owner(own: &Own) -> OwnerReference {
    OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        name: own.endpoint.name.name.clone(),
        uid: own.endpoint.pod_uid.clone(),
    }
}

fn object(label: &str, own: &Own, state: &str) -> CiliumEndpoint {
    CiliumEndpoint {
        api_version: CILIUM_V2.to_owned(),
        kind: "CiliumEndpoint".to_owned(),
        metadata: Metadata {
            name: own.endpoint.name.name.clone(),
            namespace: own.endpoint.name.namespace.clone(),
            labels: BTreeMap::from([(NODE_LABEL.to_owned(), label.to_owned())]),
            owner_references: vec![owner(own)],
            ..Metadata::default()
        },
        status: status(own, state),
    }
}

fn status(own: &Own, state: &str) -> EndpointStatus {
    let core = convert::slice_endpoint(&own.endpoint);
    EndpointStatus {
        id: i64::from(own.id),
        identity: EndpointIdentity { id: core.id, labels: own.labels.clone() },
        networking: core.networking,
        encryption: EndpointEncryption::default(),
        named_ports: core.named_ports,
        service_account: own.service_account.clone(),
        state: state.to_owned(),
    }
}

fn collection(name: &ObjectName) -> Result<String, Error> {
    Ok(format!("{}/namespaces/{}/ciliumendpoints", "/apis/cilium.io/v2", segment("namespace", &name.namespace)?))
}

fn object_path(name: &ObjectName) -> Result<String, Error> {
    Ok(format!("{}/{}", collection(name)?, segment("pod", &name.name)?))
}

/// A CiliumEndpoint as the operator's housekeeping sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    pub name: ObjectName,
    pub uid: String,
    /// The pod that it says it belongs to; empty: it does not say.
    pub pod_uid: String,
    pub identity: u32,
}

/// All CiliumEndpoints of the cluster; none where the kind is not known.
pub async fn list(client: &Client) -> Result<Vec<Listed>, Error> {
    let mut all = Vec::new();
    let listed = crate::list::each(client, path::ENDPOINTS, 500, &[], |object: CiliumEndpoint| {
        let (name, held) = Held::of(object);
        let identity = u32::try_from(held.status.identity.id).unwrap_or(0);
        all.push(Listed { name, uid: held.uid, pod_uid: held.pod_uid, identity });
    });
    match listed.await {
        Ok(()) => Ok(all),
        Err(error) => confirm_absent(client, path::ENDPOINTS, error).await.map(|()| Vec::new()),
    }
}

/// Deletes a CiliumEndpoint, if it is still the same one.
pub async fn remove(client: &Client, endpoint: &Listed) -> Result<(), Error> {
    delete(client, &endpoint.name, &endpoint.uid).await
}
