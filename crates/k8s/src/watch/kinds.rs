//! The kinds that an agent watches.

use super::{Kind, Seen};
use crate::convert;
use crate::wire::{self, CiliumEndpointSlice, CiliumIdentity, Metadata, WireNamespace, WireNode, WirePod};
use serde::Deserialize;
use serde_json::Value;
use weft_model::id::Identity;
use weft_model::intent::{Change, ObjectName, Source};

fn parse<'a, T: Deserialize<'a>>(json: &'a str) -> Result<T, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

fn named(metadata: &Metadata) -> Result<(), String> {
    if metadata.name.is_empty() { Err("metadata.name: required".to_owned()) } else { Ok(()) }
}

fn object_name(metadata: &Metadata) -> ObjectName {
    ObjectName { namespace: metadata.namespace.clone(), name: metadata.name.clone() }
}

/// Pods of one node.
pub(super) struct Pods {
    pub(super) node: String,
}

impl Kind for Pods {
    type Key = ObjectName;
    type News = Change;
    const NAME: &'static str = "pods";
    const PAGE: u32 = 100;

    fn path(&self) -> String {
        wire::path::PODS.to_owned()
    }

    fn field_selector(&self) -> Option<String> {
        Some(format!("spec.nodeName={}", self.node))
    }

    fn read(&self, json: &str) -> Result<Seen<ObjectName, Change>, String> {
        let object: WirePod = parse(json)?;
        named(&object.metadata)?;
        let version = object.metadata.resource_version.clone();
        let pod = convert::pod(object);
        Ok(Seen { key: pod.name.clone(), uid: pod.uid.clone(), version, news: Some(Change::Pod(pod)) })
    }

    fn gone(&self, key: &ObjectName, uid: &str) -> Change {
        Change::PodGone(key.clone(), uid.to_owned())
    }

    fn synced(&self) -> Change {
        Change::Synced(Source::Pods)
    }
}

/// Namespaces.
pub(super) struct Namespaces;

impl Kind for Namespaces {
    type Key = String;
    type News = Change;
    const NAME: &'static str = "namespaces";
    const PAGE: u32 = 500;

    fn path(&self) -> String {
        wire::path::NAMESPACES.to_owned()
    }

    fn read(&self, json: &str) -> Result<Seen<String, Change>, String> {
        let object: WireNamespace = parse(json)?;
        named(&object.metadata)?;
        let version = object.metadata.resource_version.clone();
        let namespace = convert::namespace(object);
        let key = namespace.name.clone();
        Ok(Seen { key, uid: String::new(), version, news: Some(Change::Namespace(namespace)) })
    }

    fn gone(&self, key: &String, _uid: &str) -> Change {
        Change::NamespaceGone(key.clone())
    }

    fn synced(&self) -> Change {
        Change::Synced(Source::Namespaces)
    }
}

/// NetworkPolicies.
pub(super) struct Policies;

#[derive(Default, Deserialize)]
#[serde(default)]
struct WirePolicy {
    metadata: Metadata,
    spec: Value,
}

impl Kind for Policies {
    type Key = ObjectName;
    type News = Change;
    const NAME: &'static str = "networkpolicies";
    const PAGE: u32 = 250;

    fn path(&self) -> String {
        wire::path::POLICIES.to_owned()
    }

    fn read(&self, json: &str) -> Result<Seen<ObjectName, Change>, String> {
        let object: WirePolicy = parse(json)?;
        named(&object.metadata)?;
        let key = object_name(&object.metadata);
        let (uid, version) = (object.metadata.uid, object.metadata.resource_version);
        let change = match convert::policy(key.clone(), uid.clone(), version.clone(), &object.spec) {
            Ok(policy) => Change::Policy(policy),
            Err(problem) => Change::PolicyInvalid {
                name: key.clone(),
                resource_version: version.clone(),
                problem: problem.to_string(),
            },
        };
        Ok(Seen { key, uid, version, news: Some(change) })
    }

    fn gone(&self, key: &ObjectName, _uid: &str) -> Change {
        Change::PolicyGone(key.clone())
    }

    fn synced(&self) -> Change {
        Change::Synced(Source::Policies)
    }
}

/// CiliumIdentities.
pub(super) struct Identities;

impl Kind for Identities {
    type Key = u32;
    type News = Change;
    const NAME: &'static str = "ciliumidentities";
    const PAGE: u32 = 500;

    fn path(&self) -> String {
        wire::path::IDENTITIES.to_owned()
    }

    fn read(&self, json: &str) -> Result<Seen<u32, Change>, String> {
        let object: CiliumIdentity = parse(json)?;
        let version = object.metadata.resource_version.clone();
        let name = object.metadata.name.clone();
        let row = convert::identity(object).map_err(|problem| format!("CiliumIdentity {name}: {problem}"))?;
        Ok(Seen { key: row.identity.raw(), uid: String::new(), version, news: Some(Change::Identity(row)) })
    }

    fn gone(&self, key: &u32, _uid: &str) -> Change {
        Change::IdentityGone(Identity::from_raw(*key))
    }

    fn synced(&self) -> Change {
        Change::Synced(Source::Identities)
    }
}

/// CiliumEndpointSlices.
pub(super) struct Slices;

impl Kind for Slices {
    type Key = String;
    type News = Change;
    const NAME: &'static str = "ciliumendpointslices";
    const PAGE: u32 = 100;

    fn path(&self) -> String {
        wire::path::SLICES.to_owned()
    }

    fn read(&self, json: &str) -> Result<Seen<String, Change>, String> {
        let object: CiliumEndpointSlice = parse(json)?;
        named(&object.metadata)?;
        let (key, version) = (object.metadata.name.clone(), object.metadata.resource_version.clone());
        let news = match convert::slice(object) {
            Ok(slice) => Some(Change::Slice(slice)),
            Err(problem) => {
                tracing::warn!(slice = key, %problem, "slice not usable, what it held before stays");
                None
            }
        };
        Ok(Seen { key, uid: String::new(), version, news })
    }

    fn gone(&self, key: &String, _uid: &str) -> Change {
        Change::SliceGone(key.clone())
    }

    fn synced(&self) -> Change {
        Change::Synced(Source::Slices)
    }
}

/// Nodes.
pub(super) struct Nodes;

impl Kind for Nodes {
    type Key = String;
    type News = Change;
    const NAME: &'static str = "nodes";
    const PAGE: u32 = 100;

    fn path(&self) -> String {
        wire::path::NODES.to_owned()
    }

    fn read(&self, json: &str) -> Result<Seen<String, Change>, String> {
        let object: WireNode = parse(json)?;
        named(&object.metadata)?;
        let (key, version) = (object.metadata.name.clone(), object.metadata.resource_version.clone());
        let news = match convert::node(&object) {
            Ok(node) => Some(Change::Node(node)),
            Err(problem) => {
                tracing::warn!(node = key, %problem, "node not usable, what was known before stays");
                None
            }
        };
        Ok(Seen { key, uid: String::new(), version, news })
    }

    fn gone(&self, key: &String, _uid: &str) -> Change {
        Change::NodeGone(key.clone())
    }

    fn synced(&self) -> Change {
        Change::Synced(Source::Nodes)
    }
}
