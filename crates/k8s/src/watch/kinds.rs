//! The kinds that an agent watches.

use super::{Kind, Seen};
use crate::convert::{self, Settings};
use crate::wire::{
    self, CiliumEndpoint, CiliumEndpointSlice, CiliumIdentity, Metadata, Named, WireCidrGroup, WireCustom,
    WireEndpointSlice, WireNamespace, WireNode, WirePod, WirePolicy, WireService,
};
use serde::Deserialize;
use weft_model::id::Identity;
use weft_model::intent::{Change, ObjectName, PolicyKind, PolicyName, Source};

fn parse<'a, T: Deserialize<'a>>(json: &'a str) -> Result<T, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

/// An object of which the metadata are enough: whatever else is wrong with it, it exists.
fn judged<T: Object>(json: &str) -> Result<(Metadata, Result<T, String>), String> {
    let (metadata, object) = match serde_json::from_str::<T>(json) {
        Ok(object) => (object.metadata().clone(), Ok(object)),
        Err(error) => (parse::<Named>(json)?.metadata, Err(error.to_string())),
    };
    named(&metadata)?;
    Ok((metadata, object))
}

/// What [`judged`] needs of an object.
trait Object: serde::de::DeserializeOwned {
    fn metadata(&self) -> &Metadata;
}

impl Object for WireService {
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}

impl Object for WireEndpointSlice {
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
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
    const PAGE: u32 = 100;

    fn name(&self) -> &'static str {
        "pods"
    }

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
    const PAGE: u32 = 500;

    fn name(&self) -> &'static str {
        "namespaces"
    }

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

/// Policies of one kind.
pub(super) struct Policies {
    pub(super) kind: PolicyKind,
    pub(super) settings: Settings,
}

impl Kind for Policies {
    type Key = ObjectName;
    type News = Change;
    const PAGE: u32 = 250;

    fn name(&self) -> &'static str {
        match self.kind {
            PolicyKind::NetworkPolicy => "networkpolicies",
            PolicyKind::CiliumNetworkPolicy => "ciliumnetworkpolicies",
            PolicyKind::CiliumClusterwideNetworkPolicy => "ciliumclusterwidenetworkpolicies",
            PolicyKind::ClusterNetworkPolicy => "clusternetworkpolicies",
        }
    }

    fn path(&self) -> String {
        wire::path::policies(self.kind).to_owned()
    }

    fn may_be_missing(&self) -> bool {
        self.kind != PolicyKind::NetworkPolicy
    }

    fn read(&self, json: &str) -> Result<Seen<ObjectName, Change>, String> {
        let object: WirePolicy = parse(json)?;
        named(&object.metadata)?;
        let name = convert::policy_name(self.kind, &object);
        let change = match convert::policy(self.kind, &object, self.settings) {
            Ok(policy) => Change::Policy(policy),
            Err(problems) => Change::PolicyInvalid {
                name: name.clone(),
                resource_version: object.metadata.resource_version.clone(),
                problem: problems.to_string(),
            },
        };
        let (uid, version) = (object.metadata.uid, object.metadata.resource_version);
        Ok(Seen { key: name.object, uid, version, news: Some(change) })
    }

    fn gone(&self, key: &ObjectName, _uid: &str) -> Change {
        Change::PolicyGone(PolicyName { kind: self.kind, object: key.clone() })
    }

    fn synced(&self) -> Change {
        Change::Synced(Source::Policies(self.kind))
    }
}

/// CiliumCIDRGroups.
pub(super) struct CidrGroups;

impl Kind for CidrGroups {
    type Key = String;
    type News = Change;
    const PAGE: u32 = 250;

    fn name(&self) -> &'static str {
        "ciliumcidrgroups"
    }

    fn path(&self) -> String {
        wire::path::CIDR_GROUPS.to_owned()
    }

    fn may_be_missing(&self) -> bool {
        true
    }

    fn read(&self, json: &str) -> Result<Seen<String, Change>, String> {
        let object: WireCidrGroup = parse(json)?;
        named(&object.metadata)?;
        let (key, version) = (object.metadata.name.clone(), object.metadata.resource_version.clone());
        let news = match convert::cidr_group(object) {
            Ok(group) => Some(Change::CidrGroup(group)),
            Err(problems) => {
                tracing::warn!(group = key, %problems, "CIDR group not usable, what it held before stays");
                None
            }
        };
        Ok(Seen { key, uid: String::new(), version, news })
    }

    fn gone(&self, key: &String, _uid: &str) -> Change {
        Change::CidrGroupGone(key.clone())
    }

    fn synced(&self) -> Change {
        Change::Synced(Source::CidrGroups)
    }
}

/// Services.
pub(super) struct Services;

impl Kind for Services {
    type Key = ObjectName;
    type News = Change;
    const PAGE: u32 = 250;

    fn name(&self) -> &'static str {
        "services"
    }

    fn path(&self) -> String {
        wire::path::SERVICES.to_owned()
    }

    fn read(&self, json: &str) -> Result<Seen<ObjectName, Change>, String> {
        let (metadata, object) = judged::<WireService>(json)?;
        let key = object_name(&metadata);
        let news = match object.and_then(|object| convert::service(object).map_err(|problems| problems.to_string())) {
            Ok(service) => Some(Change::Service(service)),
            Err(problem) => {
                tracing::warn!(service = %key, problem, "Service not usable, what was in force before stays");
                None
            }
        };
        Ok(Seen { key, uid: String::new(), version: metadata.resource_version, news })
    }

    fn gone(&self, key: &ObjectName, _uid: &str) -> Change {
        Change::ServiceGone(key.clone())
    }

    fn synced(&self) -> Change {
        Change::Synced(Source::Services)
    }
}

/// EndpointSlices of Services.
pub(super) struct Backends;

impl Kind for Backends {
    type Key = ObjectName;
    type News = Change;
    const PAGE: u32 = 100;

    fn name(&self) -> &'static str {
        "endpointslices"
    }

    fn path(&self) -> String {
        wire::path::ENDPOINT_SLICES.to_owned()
    }

    fn read(&self, json: &str) -> Result<Seen<ObjectName, Change>, String> {
        let (metadata, object) = judged::<WireEndpointSlice>(json)?;
        let key = object_name(&metadata);
        let news = match object.and_then(|object| convert::backends(object).map_err(|problems| problems.to_string())) {
            Ok(Some(backends)) => Some(Change::Backends(backends)),
            // It may have been some Service's before.
            Ok(None) => Some(Change::BackendsGone(key.clone())),
            Err(problem) => {
                tracing::warn!(slice = %key, problem, "EndpointSlice not usable, what it held before stays");
                None
            }
        };
        Ok(Seen { key, uid: String::new(), version: metadata.resource_version, news })
    }

    fn gone(&self, key: &ObjectName, _uid: &str) -> Change {
        Change::BackendsGone(key.clone())
    }

    fn synced(&self) -> Change {
        Change::Synced(Source::Backends)
    }
}

/// CiliumLocalRedirectPolicies.
pub(super) struct LocalRedirects;

impl Kind for LocalRedirects {
    type Key = ObjectName;
    type News = Change;
    const PAGE: u32 = 250;

    fn name(&self) -> &'static str {
        "ciliumlocalredirectpolicies"
    }

    fn path(&self) -> String {
        wire::path::LOCAL_REDIRECTS.to_owned()
    }

    fn may_be_missing(&self) -> bool {
        true
    }

    fn read(&self, json: &str) -> Result<Seen<ObjectName, Change>, String> {
        let object: WireCustom = parse(json)?;
        named(&object.metadata)?;
        let (key, version) = (object_name(&object.metadata), object.metadata.resource_version.clone());
        let news = match convert::local_redirect(object) {
            Ok(redirect) => Some(Change::LocalRedirect(redirect)),
            Err(problems) => {
                tracing::warn!(policy = %key, %problems, "CiliumLocalRedirectPolicy not usable, what was in force stays");
                None
            }
        };
        Ok(Seen { key, uid: String::new(), version, news })
    }

    fn gone(&self, key: &ObjectName, _uid: &str) -> Change {
        Change::LocalRedirectGone(key.clone())
    }

    fn synced(&self) -> Change {
        Change::Synced(Source::LocalRedirects)
    }
}

/// CiliumIdentities.
pub(super) struct Identities;

impl Kind for Identities {
    type Key = u32;
    type News = Change;
    const PAGE: u32 = 500;

    fn name(&self) -> &'static str {
        "ciliumidentities"
    }

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
    const PAGE: u32 = 100;

    fn name(&self) -> &'static str {
        "ciliumendpointslices"
    }

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

/// CiliumEndpoints, told as slices of one endpoint each ([`convert::endpoint_slice_name`]).
pub(super) struct Endpoints {
    /// A server that does not know the kind has no answer, rather than no objects.
    pub(super) required: bool,
}

impl Kind for Endpoints {
    type Key = ObjectName;
    type News = Change;
    const PAGE: u32 = 500;

    fn name(&self) -> &'static str {
        "ciliumendpoints"
    }

    fn path(&self) -> String {
        wire::path::ENDPOINTS.to_owned()
    }

    fn may_be_missing(&self) -> bool {
        !self.required
    }

    fn read(&self, json: &str) -> Result<Seen<ObjectName, Change>, String> {
        let object: CiliumEndpoint = parse(json)?;
        named(&object.metadata)?;
        let (key, version) = (object_name(&object.metadata), object.metadata.resource_version.clone());
        let uid = object.metadata.uid.clone();
        let news = match convert::endpoint(object) {
            Ok(slice) => Some(Change::Slice(slice)),
            Err(problem) => {
                tracing::warn!(endpoint = %key, %problem, "CiliumEndpoint not usable, what it held before stays");
                None
            }
        };
        Ok(Seen { key, uid, version, news })
    }

    fn gone(&self, key: &ObjectName, _uid: &str) -> Change {
        Change::SliceGone(convert::endpoint_slice_name(key))
    }

    fn synced(&self) -> Change {
        Change::Synced(Source::Endpoints)
    }
}

/// Nodes.
pub(super) struct Nodes;

impl Kind for Nodes {
    type Key = String;
    type News = Change;
    const PAGE: u32 = 100;

    fn name(&self) -> &'static str {
        "nodes"
    }

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
