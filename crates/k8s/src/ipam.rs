//! Address management between agents and operator: `spec.ipam.pools` of the CiliumNode. `requested` is the agent's,
//! `allocated` what the node has; the operator adds to it, the agent strikes out. Every write is conditional on the
//! version that was read.

use crate::client::{Client, PatchKind, segment};
use crate::convert::{self, Problem};
use crate::error::Error;
use crate::watch::{Absence, Kind, Seen};
use crate::wire::{Metadata, WirePool, or_default, path};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// Written with every write of an agent's first turn: so that it is a change, whatever else it says.
const TERM: &str = "network.weft.io/ipam-term";

/// What a node asks for and has of a pool.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Share {
    /// IPv4 addresses asked for.
    pub needed_v4: u32,
    /// IPv6 addresses asked for.
    pub needed_v6: u32,
    pub cidrs: BTreeSet<IpNet>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct NodeShares {
    pub name: String,
    pub uid: String,
    pub version: String,
    pub pools: BTreeMap<String, Share>,
    /// What kept the operator from giving all that was asked for; empty: nothing.
    pub problem: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Object {
    metadata: Metadata,
    #[serde(deserialize_with = "or_default")]
    spec: Spec,
    #[serde(deserialize_with = "or_default")]
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Spec {
    #[serde(deserialize_with = "or_default")]
    ipam: Ipam,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Ipam {
    #[serde(deserialize_with = "or_default")]
    pools: Pools,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Pools {
    #[serde(deserialize_with = "or_default")]
    requested: Vec<Requested>,
    #[serde(deserialize_with = "or_default")]
    allocated: Vec<Allocated>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Requested {
    pool: String,
    #[serde(deserialize_with = "or_default")]
    needed: Needed,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Needed {
    #[serde(rename = "ipv4-addrs")]
    v4: u32,
    #[serde(rename = "ipv6-addrs")]
    v6: u32,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Allocated {
    pool: String,
    #[serde(deserialize_with = "or_default")]
    cidrs: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    #[serde(deserialize_with = "or_default")]
    ipam: StatusIpam,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct StatusIpam {
    #[serde(rename = "operator-status", deserialize_with = "or_default")]
    operator: OperatorStatus,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct OperatorStatus {
    #[serde(deserialize_with = "or_default")]
    error: String,
}

fn shares(object: Object) -> Result<NodeShares, Problem> {
    let mut pools: BTreeMap<String, Share> = BTreeMap::new();
    for (n, asked) in object.spec.ipam.pools.requested.into_iter().enumerate() {
        if asked.pool.is_empty() {
            return Err(Problem::new(format!("spec.ipam.pools.requested[{n}].pool"), "required: the pool's name"));
        }
        let share = pools.entry(asked.pool).or_default();
        (share.needed_v4, share.needed_v6) = (asked.needed.v4, asked.needed.v6);
    }
    for (n, given) in object.spec.ipam.pools.allocated.into_iter().enumerate() {
        let field = format!("spec.ipam.pools.allocated[{n}]");
        if given.pool.is_empty() {
            return Err(Problem::new(format!("{field}.pool"), "required: the pool's name"));
        }
        let share = pools.entry(given.pool).or_default();
        for (k, text) in given.cidrs.iter().enumerate() {
            let net = text.parse::<IpNet>().ok().filter(|net| net.trunc() == *net);
            let expected = || Problem::new(format!("{field}.cidrs[{k}]"), format!("{text:?}, expected a prefix"));
            share.cidrs.insert(net.ok_or_else(expected)?);
        }
    }
    Ok(NodeShares {
        name: object.metadata.name,
        uid: object.metadata.uid,
        version: object.metadata.resource_version,
        pools,
        problem: object.status.ipam.operator.error,
    })
}

fn node_path(name: &str) -> Result<String, Error> {
    Ok(format!("{}/{}", path::CILIUM_NODES, segment("node", name)?))
}

/// A node's part as the API server has it now; `None`: there is no such CiliumNode.
pub async fn read(client: &Client, name: &str) -> Result<Option<NodeShares>, Error> {
    let Some(object) = client.find::<Object>(&node_path(name)?).await? else { return Ok(None) };
    let unusable =
        |problem: Problem| Error::Manifest { what: format!("CiliumNode {name}"), problem: problem.to_string() };
    shares(object).map(Some).map_err(unusable)
}

/// Writes a node's part, if the object is still of that version. `term`: of an agent's first write.
pub async fn write(
    client: &Client,
    name: &str,
    version: &str,
    pools: &BTreeMap<String, Share>,
    term: Option<&str>,
) -> Result<(), Error> {
    let asks = |(_, share): &(&String, &Share)| share.needed_v4 > 0 || share.needed_v6 > 0;
    let requested = pools.iter().filter(asks).map(|(pool, share)| Requested {
        pool: pool.clone(),
        needed: Needed { v4: share.needed_v4, v6: share.needed_v6 },
    });
    let given = pools.iter().filter(|(_, share)| !share.cidrs.is_empty());
    let allocated = given.map(|(pool, share)| Allocated {
        pool: pool.clone(),
        cidrs: share.cidrs.iter().map(ToString::to_string).collect(),
    });
    let pools = Pools { requested: requested.collect(), allocated: allocated.collect() };
    let mut patch = json!({
        "metadata": {"resourceVersion": version},
        "spec": {"ipam": {"pools": pools}},
    });
    if let Some(term) = term {
        patch["metadata"]["annotations"] = json!({TERM: term});
    }
    client.patch::<serde::de::IgnoredAny>(&node_path(name)?, PatchKind::Merge, &patch).await.map(|_| ())
}

/// Says in the CiliumNode what keeps the operator from giving all that was asked for; empty: nothing.
pub async fn tell(client: &Client, name: &str, problem: &str) -> Result<(), Error> {
    let patch = json!({"status": {"ipam": {"operator-status": {"error": problem}}}});
    let path = format!("{}/status", node_path(name)?);
    client.patch::<serde::de::IgnoredAny>(&path, PatchKind::Merge, &patch).await.map(|_| ())
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum ShareEvent {
    Applied(NodeShares),
    Deleted(String),
    Synced,
}

/// CiliumNodes, as far as address management is concerned: of all nodes, or of one.
#[derive(Clone, Debug)]
pub struct Shares {
    pub only: Option<String>,
}

impl Kind for Shares {
    type Key = String;
    type Event = ShareEvent;
    const PAGE: u32 = 250;

    fn path(&self) -> &'static str {
        path::CILIUM_NODES
    }

    fn field_selector(&self) -> Option<String> {
        self.only.as_ref().map(|name| format!("metadata.name={name}"))
    }

    fn absence(&self) -> Absence {
        Absence::Confirmed
    }

    fn read(&self, json: &str) -> Result<Seen<String, ShareEvent>, String> {
        let object: Object = serde_json::from_str(json).map_err(|error| error.to_string())?;
        let (key, uid) = (object.metadata.name.clone(), object.metadata.uid.clone());
        let version = object.metadata.resource_version.clone();
        if key.is_empty() {
            return Err("metadata.name: required".to_owned());
        }
        let event = shares(object).map(ShareEvent::Applied);
        let event =
            event.inspect_err(|problem| tracing::warn!(node = key, %problem, "a CiliumNode cannot be used")).ok();
        Ok(Seen { key, uid, version, event })
    }

    fn gone(&self, key: &String, _uid: &str) -> ShareEvent {
        ShareEvent::Deleted(key.clone())
    }

    fn synced(&self) -> ShareEvent {
        ShareEvent::Synced
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum PoolEvent {
    Applied(convert::Pool),
    Deleted(String),
    Synced,
}

#[derive(Clone, Copy, Debug)]
pub struct AddressPools;

impl Kind for AddressPools {
    type Key = String;
    type Event = PoolEvent;
    const PAGE: u32 = 250;

    fn path(&self) -> &'static str {
        path::ADDRESS_POOLS
    }

    fn absence(&self) -> Absence {
        Absence::Confirmed
    }

    fn read(&self, json: &str) -> Result<Seen<String, PoolEvent>, String> {
        let object: WirePool = serde_json::from_str(json).map_err(|error| error.to_string())?;
        let (key, version) = (object.metadata.name.clone(), object.metadata.resource_version.clone());
        if key.is_empty() {
            return Err("metadata.name: required".to_owned());
        }
        let event = convert::pool(object).map(PoolEvent::Applied);
        let event = event.inspect_err(|problem| tracing::warn!(pool = key, %problem, "a pool cannot be used")).ok();
        Ok(Seen { key, uid: String::new(), version, event })
    }

    fn gone(&self, key: &String, _uid: &str) -> PoolEvent {
        PoolEvent::Deleted(key.clone())
    }

    fn synced(&self) -> PoolEvent {
        PoolEvent::Synced
    }
}
