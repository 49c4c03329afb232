//! The objects as they travel: only the fields that are used. Fields of others are skipped while parsing.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

mod metadata;
mod service;

pub(crate) use crate::wire::metadata::or_default;
pub use crate::wire::metadata::{Metadata, OwnerReference};
pub use service::{
    WireBackend, WireBackendConditions, WireBackendHints, WireBackendPort, WireClientIp, WireEndpointSlice,
    WireForZone, WireIngress, WireLoadBalancer, WireService, WireServicePort, WireServiceSpec, WireServiceStatus,
    WireSessionAffinity,
};

/// Group and version of CiliumIdentity, CiliumNode, CiliumEndpoint.
pub const CILIUM_V2: &str = "cilium.io/v2";
pub const CILIUM_V2ALPHA1: &str = "cilium.io/v2alpha1";
/// Annotation of a CiliumIdentity: since when nobody uses it.
pub const UNUSED_SINCE: &str = "weft.dev/unused-since";
pub mod path {
    use weft_model::intent::PolicyKind;

    /// Policies of a kind, of all namespaces.
    #[must_use]
    pub const fn policies(kind: PolicyKind) -> &'static str {
        match kind {
            PolicyKind::NetworkPolicy => NETWORK_POLICIES,
            PolicyKind::CiliumNetworkPolicy => CILIUM_POLICIES,
            PolicyKind::CiliumClusterwideNetworkPolicy => CILIUM_CLUSTER_POLICIES,
            PolicyKind::ClusterNetworkPolicy => CLUSTER_POLICIES,
        }
    }

    pub const IDENTITIES: &str = "/apis/cilium.io/v2/ciliumidentities";
    pub const CILIUM_NODES: &str = "/apis/cilium.io/v2/ciliumnodes";
    pub const ENDPOINTS: &str = "/apis/cilium.io/v2/ciliumendpoints";
    pub const SLICES: &str = "/apis/cilium.io/v2alpha1/ciliumendpointslices";
    pub const NODES: &str = "/api/v1/nodes";
    pub const NAMESPACES: &str = "/api/v1/namespaces";
    pub const PODS: &str = "/api/v1/pods";
    pub const NETWORK_POLICIES: &str = "/apis/networking.k8s.io/v1/networkpolicies";
    pub const CILIUM_POLICIES: &str = "/apis/cilium.io/v2/ciliumnetworkpolicies";
    pub const CILIUM_CLUSTER_POLICIES: &str = "/apis/cilium.io/v2/ciliumclusterwidenetworkpolicies";
    pub const CLUSTER_POLICIES: &str = "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies";
    pub const CIDR_GROUPS: &str = "/apis/cilium.io/v2/ciliumcidrgroups";
    pub const ADDRESS_POOLS: &str = "/apis/cilium.io/v2alpha1/ciliumpodippools";
    pub const SERVICES: &str = "/api/v1/services";
    pub const ENDPOINT_SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
    pub const LOCAL_REDIRECTS: &str = "/apis/cilium.io/v2/ciliumlocalredirectpolicies";
    pub const IP_POOLS: &str = "/apis/cilium.io/v2/ciliumloadbalancerippools";
}

#[derive(Clone, Debug, Default, Deserialize)]
pub struct Named {
    #[serde(default)]
    pub metadata: Metadata,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CiliumIdentity {
    /// `cilium.io/v2`.
    #[serde(rename = "apiVersion", default)]
    pub api_version: String,
    /// `CiliumIdentity`.
    #[serde(default)]
    pub kind: String,
    /// The name is the number, in decimal.
    #[serde(default)]
    pub metadata: Metadata,
    /// `source:key` -> value.
    #[serde(rename = "security-labels", default, deserialize_with = "or_default")]
    pub security_labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CiliumEndpointSlice {
    /// `cilium.io/v2alpha1`.
    #[serde(rename = "apiVersion", default)]
    pub api_version: String,
    /// `CiliumEndpointSlice`.
    #[serde(default)]
    pub kind: String,
    #[serde(default)]
    pub metadata: Metadata,
    #[serde(default)]
    pub namespace: String,
    #[serde(default, deserialize_with = "or_default")]
    pub endpoints: Vec<CoreEndpoint>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreEndpoint {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub id: i64,
    #[serde(rename = "pod-uid", default, skip_serializing_if = "String::is_empty")]
    pub pod_uid: String,
    #[serde(default, deserialize_with = "or_default")]
    pub networking: Networking,
    #[serde(rename = "named-ports", default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub named_ports: Vec<WirePort>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Networking {
    #[serde(default, deserialize_with = "or_default")]
    pub addressing: Vec<AddressPair>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node: String,
}

/// An address of either or both families.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressPair {
    /// IPv4.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ipv4: String,
    /// IPv6.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ipv6: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WirePort {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub port: u16,
    /// `TCP`, `UDP`, `SCTP`.
    #[serde(default)]
    pub protocol: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CiliumEndpoint {
    /// `cilium.io/v2`.
    #[serde(rename = "apiVersion", default)]
    pub api_version: String,
    /// `CiliumEndpoint`.
    #[serde(default)]
    pub kind: String,
    /// Named as the pod, which owns it.
    #[serde(default)]
    pub metadata: Metadata,
    #[serde(default, deserialize_with = "or_default")]
    pub status: EndpointStatus,
}

/// Status of a CiliumEndpoint. Lists are written even if empty, so that a merge patch empties them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct EndpointStatus {
    pub id: i64,
    #[serde(deserialize_with = "or_default")]
    pub identity: EndpointIdentity,
    #[serde(deserialize_with = "or_default")]
    pub networking: Networking,
    #[serde(deserialize_with = "or_default")]
    pub encryption: EndpointEncryption,
    #[serde(deserialize_with = "or_default")]
    pub named_ports: Vec<WirePort>,
    pub service_account: String,
    /// `ready`.
    pub state: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointIdentity {
    pub id: i64,
    /// `source:key=value`.
    #[serde(deserialize_with = "or_default")]
    pub labels: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointEncryption {
    /// Index of the key; 0: none.
    pub key: i64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CiliumNode {
    /// `cilium.io/v2`.
    #[serde(rename = "apiVersion", default)]
    pub api_version: String,
    /// `CiliumNode`.
    #[serde(default)]
    pub kind: String,
    #[serde(default)]
    pub metadata: Metadata,
    #[serde(default)]
    pub spec: CiliumNodeSpec,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CiliumNodeSpec {
    #[serde(default, deserialize_with = "or_default")]
    pub addresses: Vec<CiliumNodeAddress>,
    #[serde(default, deserialize_with = "or_default")]
    pub ipam: CiliumNodeIpam,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootid: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CiliumNodeAddress {
    /// `InternalIP`.
    #[serde(rename = "type", default)]
    pub kind: String,
    #[serde(default)]
    pub ip: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CiliumNodeIpam {
    #[serde(rename = "podCIDRs", default, deserialize_with = "or_default")]
    pub pod_cidrs: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireNode {
    pub metadata: Metadata,
    #[serde(deserialize_with = "or_default")]
    pub spec: WireNodeSpec,
    #[serde(deserialize_with = "or_default")]
    pub status: WireNodeStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireNodeSpec {
    #[serde(rename = "podCIDR", deserialize_with = "or_default")]
    pub pod_cidr: String,
    #[serde(rename = "podCIDRs", deserialize_with = "or_default")]
    pub pod_cidrs: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub taints: Vec<serde_json::Value>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireNodeStatus {
    #[serde(deserialize_with = "or_default")]
    pub addresses: Vec<WireNodeAddress>,
    #[serde(deserialize_with = "or_default")]
    pub conditions: Vec<WireCondition>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireNodeAddress {
    /// `InternalIP` and others.
    #[serde(rename = "type")]
    pub kind: String,
    pub address: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireCondition {
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False`, `Unknown`.
    pub status: String,
    #[serde(deserialize_with = "or_default")]
    pub reason: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireNamespace {
    pub metadata: Metadata,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WirePod {
    pub metadata: Metadata,
    #[serde(deserialize_with = "or_default")]
    pub spec: WirePodSpec,
    #[serde(deserialize_with = "or_default")]
    pub status: WirePodStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WirePodSpec {
    #[serde(deserialize_with = "or_default")]
    pub node_name: String,
    #[serde(deserialize_with = "or_default")]
    pub host_network: bool,
    #[serde(deserialize_with = "or_default")]
    pub service_account_name: String,
    #[serde(deserialize_with = "or_default")]
    pub containers: Vec<WireContainer>,
    /// Containers that run before them, or beside them.
    #[serde(deserialize_with = "or_default")]
    pub init_containers: Vec<WireContainer>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WireContainer {
    #[serde(deserialize_with = "or_default")]
    pub ports: Vec<WireContainerPort>,
    /// `Always` on an init container: it runs beside the others.
    #[serde(deserialize_with = "or_default")]
    pub restart_policy: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WireContainerPort {
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    #[serde(deserialize_with = "or_default")]
    pub container_port: i64,
    /// Protocol; TCP if not given.
    #[serde(deserialize_with = "or_default")]
    pub protocol: String,
    /// Port of the node; 0: none.
    #[serde(deserialize_with = "or_default")]
    pub host_port: i64,
    /// Address of the node that `host_port` is at; empty: all.
    #[serde(rename = "hostIP", deserialize_with = "or_default")]
    pub host_ip: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WirePodStatus {
    #[serde(deserialize_with = "or_default")]
    pub phase: String,
    #[serde(deserialize_with = "or_default")]
    pub conditions: Vec<WireCondition>,
}

/// A policy of any kind. What is in it, the converters judge.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WirePolicy {
    pub metadata: Metadata,
    pub spec: serde_json::Value,
    /// More of them, in the cilium.io kinds.
    pub specs: serde_json::Value,
}

/// An object of a custom kind. What is in it, the converters judge.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireCustom {
    pub metadata: Metadata,
    pub spec: serde_json::Value,
}

pub type WireCidrGroup = WireCustom;

pub type WirePool = WireCustom;
