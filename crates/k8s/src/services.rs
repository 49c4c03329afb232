//! Services, their EndpointSlices, local redirects and pools of addresses, as the operator sees them: what is wrong with
//! them, who wants addresses, and what is written back into their statuses.

use crate::client::{Client, PatchKind, segment};
use crate::convert;
use crate::error::Error;
use crate::watch::{Absence, Kind, Seen, follow};
use crate::wire::{CILIUM_V2, Metadata, Named, WireCustom, WireEndpointSlice, WireService, path};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::net::IpAddr;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use weft_model::intent::{IpPool, LoadBalancerRequest, LocalRedirect, ObjectName, Service};

/// Condition of a Service: whether it has the addresses that it asks for. Its presence says that they are ours.
pub const REQUEST_SATISFIED: &str = "cilium.io/IPAMRequestSatisfied";
/// Condition of a pool: whether it overlaps another.
pub const POOL_CONFLICT: &str = "cilium.io/PoolConflict";
const BATCHES_MAX: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Part {
    Service,
    EndpointSlice,
    LocalRedirect,
    IpPool,
}

impl Part {
    pub const ALL: [Self; 4] = [Self::Service, Self::EndpointSlice, Self::LocalRedirect, Self::IpPool];

    #[must_use]
    pub const fn kind(self) -> (&'static str, &'static str) {
        match self {
            Self::Service => ("Service", "v1"),
            Self::EndpointSlice => ("EndpointSlice", "discovery.k8s.io/v1"),
            Self::LocalRedirect => ("CiliumLocalRedirectPolicy", CILIUM_V2),
            Self::IpPool => ("CiliumLoadBalancerIPPool", CILIUM_V2),
        }
    }

    const fn path(self) -> &'static str {
        match self {
            Self::Service => path::SERVICES,
            Self::EndpointSlice => path::ENDPOINT_SLICES,
            Self::LocalRedirect => path::LOCAL_REDIRECTS,
            Self::IpPool => path::IP_POOLS,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Row {
    pub name: ObjectName,
    pub uid: String,
    pub version: String,
    /// What it says, or why it cannot be used.
    pub content: Result<Content, String>,
    /// The addresses of a Service's load balancer, as they stand.
    pub ingress: Vec<Value>,
    pub conditions: Vec<Value>,
    /// A Service that is to have addresses of pools.
    pub request: Option<LoadBalancerRequest>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Content {
    Service(Service),
    /// An EndpointSlice; of interest is only that it can be used.
    EndpointSlice,
    LocalRedirect(LocalRedirect),
    IpPool(IpPool),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    /// It exists. Boxed: most events are of one kind.
    Applied(Part, Box<Row>),
    /// It exists, but is not even of the kind's form. What it said before stands.
    Unreadable(Part, ObjectName, String, String),
    Deleted(Part, ObjectName),
    Synced(Part),
}

/// Watches all of them until `stop`.
#[must_use]
pub fn watch(client: &Client, stop: &CancellationToken) -> mpsc::Receiver<Vec<Event>> {
    let (sender, receiver) = mpsc::channel(BATCHES_MAX);
    for part in Part::ALL {
        follow(client.clone(), Watched(part), sender.clone(), stop.clone());
    }
    receiver
}

struct Watched(Part);

/// What the converters have no use for.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Rest {
    status: Option<Status>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    conditions: Option<Vec<Value>>,
    load_balancer: Option<LoadBalancer>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct LoadBalancer {
    ingress: Option<Vec<Value>>,
}

/// What was read of an object, for [`Row`].
type Read = (Metadata, Result<Content, String>, Option<LoadBalancerRequest>);

fn parse<T: DeserializeOwned>(json: &str) -> Result<T, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

fn read(part: Part, json: &str) -> Result<Read, String> {
    Ok(match part {
        Part::Service => {
            let object: WireService = parse(json)?;
            let (metadata, request) = (object.metadata.clone(), convert::load_balancer_request(&object));
            let service = convert::service(object).map(Content::Service);
            (metadata, service.map_err(|problems| problems.to_string()), request)
        }
        Part::EndpointSlice => {
            let object: WireEndpointSlice = parse(json)?;
            let metadata = object.metadata.clone();
            let slice = convert::backends(object).map(|_| Content::EndpointSlice);
            (metadata, slice.map_err(|problems| problems.to_string()), None)
        }
        Part::LocalRedirect => {
            let object: WireCustom = parse(json)?;
            let metadata = object.metadata.clone();
            let policy = convert::local_redirect(object).map(Content::LocalRedirect);
            (metadata, policy.map_err(|problems| problems.to_string()), None)
        }
        Part::IpPool => {
            let object: WireCustom = parse(json)?;
            let metadata = object.metadata.clone();
            let pool = convert::ip_pool(object).map(Content::IpPool);
            (metadata, pool.map_err(|problems| problems.to_string()), None)
        }
    })
}

impl Kind for Watched {
    type Key = ObjectName;
    type Event = Event;
    const PAGE: u32 = 250;

    fn path(&self) -> &'static str {
        self.0.path()
    }

    fn absence(&self) -> Absence {
        match self.0 {
            Part::Service | Part::EndpointSlice => Absence::Never,
            // Without them the operator only warns of less.
            Part::LocalRedirect => Absence::Tolerated,
            // An unknown pool is not an empty one: no address is given or taken.
            Part::IpPool => Absence::Confirmed,
        }
    }

    fn read(&self, json: &str) -> Result<Seen<ObjectName, Event>, String> {
        let (metadata, event) = match read(self.0, json) {
            Err(problem) => {
                let metadata = parse::<Named>(json)?.metadata;
                let name = ObjectName { namespace: metadata.namespace.clone(), name: metadata.name.clone() };
                let event = Event::Unreadable(self.0, name, metadata.uid.clone(), problem);
                (metadata, event)
            }
            Ok((metadata, content, request)) => {
                let name = ObjectName { namespace: metadata.namespace.clone(), name: metadata.name.clone() };
                // Of slices there are many, and nothing is written into them.
                let has_status = self.0 != Part::EndpointSlice;
                let status =
                    if has_status { parse::<Rest>(json)?.status.unwrap_or_default() } else { Status::default() };
                let row = Row {
                    name,
                    uid: metadata.uid.clone(),
                    version: if has_status { metadata.resource_version.clone() } else { String::new() },
                    content,
                    ingress: status.load_balancer.and_then(|given| given.ingress).unwrap_or_default(),
                    conditions: status.conditions.unwrap_or_default(),
                    request,
                };
                (metadata, Event::Applied(self.0, Box::new(row)))
            }
        };
        if metadata.name.is_empty() {
            return Err("metadata.name: required".to_owned());
        }
        let key = ObjectName { namespace: metadata.namespace, name: metadata.name };
        Ok(Seen { key, uid: metadata.uid, version: metadata.resource_version, event: Some(event) })
    }

    fn gone(&self, key: &ObjectName, _uid: &str) -> Event {
        Event::Deleted(self.0, key.clone())
    }

    fn synced(&self) -> Event {
        Event::Synced(self.0)
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Condition {
    pub kind: &'static str,
    /// `True`, `False`, `Unknown`.
    pub status: &'static str,
    pub reason: &'static str,
    pub message: String,
}

/// The conditions after these are set. Others stay; the time of the last transition is that of the status.
#[must_use]
pub fn with_conditions(held: &[Value], wanted: &[Condition]) -> Vec<Value> {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let mut all = held.to_vec();
    for Condition { kind, status, reason, message } in wanted {
        let known = all.iter_mut().find(|condition| condition["type"] == *kind);
        let since = known.as_ref().filter(|known| known["status"] == *status).map(|known| &known["lastTransitionTime"]);
        let since = since.filter(|since| since.is_string()).cloned().unwrap_or_else(|| json!(now));
        let condition =
            json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since});
        match known {
            Some(known) => *known = condition,
            None => all.push(condition),
        }
    }
    all
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Version {
    metadata: Metadata,
}

/// Writes the addresses of a Service's load balancer and its conditions, if it is still of `version`. Its new version.
pub async fn write_service(
    client: &Client,
    name: &ObjectName,
    version: &str,
    addresses: &[IpAddr],
    conditions: &[Value],
) -> Result<String, Error> {
    let namespace = segment("namespace", &name.namespace)?;
    let path = format!("{}/{namespace}/services/{}/status", path::NAMESPACES, segment("service", &name.name)?);
    let ingress: Vec<Value> = addresses.iter().map(|address| json!({"ip": address})).collect();
    // `null` takes the field away: an empty list would stand there.
    let ingress = if ingress.is_empty() { Value::Null } else { Value::Array(ingress) };
    let body = json!({"metadata": {"resourceVersion": version},
        "status": {"loadBalancer": {"ingress": ingress}, "conditions": conditions}});
    Ok(client.patch::<Version>(&path, PatchKind::Merge, &body).await?.metadata.resource_version)
}

/// Writes the conditions of a pool, if it is still of `version`. Its new version.
pub async fn write_pool(client: &Client, name: &str, version: &str, conditions: &[Value]) -> Result<String, Error> {
    let path = format!("{}/{}/status", path::IP_POOLS, segment("pool", name)?);
    let body = json!({"metadata": {"resourceVersion": version}, "status": {"conditions": conditions}});
    Ok(client.patch::<Version>(&path, PatchKind::Merge, &body).await?.metadata.resource_version)
}
