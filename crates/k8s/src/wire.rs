//! The objects as they travel: only the fields that are used. Fields of others are skipped while parsing.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

mod service;

pub use service::{
    WireBackend, WireBackendConditions, WireBackendHints, WireBackendPort, WireClientIp, WireEndpointSlice,
    WireForZone, WireIngress, WireLoadBalancer, WireService, WireServicePort, WireServiceSpec, WireServiceStatus,
    WireSessionAffinity,
};

/// Group and version of CiliumIdentity, CiliumNode, CiliumEndpoint.
pub const CILIUM_V2: &str = "cilium.io/v2";
/// Group and version of CiliumEndpointSlice.
pub const CILIUM_V2ALPHA1: &str = "cilium.io/v2alpha1";
/// Collections' paths.
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

    /// CiliumIdentities.
    pub const IDENTITIES: &str = "/apis/cilium.io/v2/ciliumidentities";
    /// CiliumNodes.
    pub const CILIUM_NODES: &str = "/apis/cilium.io/v2/ciliumnodes";
    /// CiliumEndpoints of all namespaces.
    pub const ENDPOINTS: &str = "/apis/cilium.io/v2/ciliumendpoints";
    /// CiliumEndpointSlices.
    pub const SLICES: &str = "/apis/cilium.io/v2alpha1/ciliumendpointslices";
    /// Nodes.
    pub const NODES: &str = "/api/v1/nodes";
    /// Namespaces.
    pub const NAMESPACES: &str = "/api/v1/namespaces";
    /// Pods of all namespaces.
    pub const PODS: &str = "/api/v1/pods";
    /// NetworkPolicies of all namespaces.
    pub const NETWORK_POLICIES: &str = "/apis/networking.k8s.io/v1/networkpolicies";
    /// CiliumNetworkPolicies of all namespaces.
    pub const CILIUM_POLICIES: &str = "/apis/cilium.io/v2/ciliumnetworkpolicies";
    /// CiliumClusterwideNetworkPolicies.
    pub const CILIUM_CLUSTER_POLICIES: &str = "/apis/cilium.io/v2/ciliumclusterwidenetworkpolicies";
    /// ClusterNetworkPolicies.
    pub const CLUSTER_POLICIES: &str = "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies";
    /// CiliumCIDRGroups.
    pub const CIDR_GROUPS: &str = "/apis/cilium.io/v2/ciliumcidrgroups";
    /// CiliumPodIPPools.
    pub const ADDRESS_POOLS: &str = "/apis/cilium.io/v2alpha1/ciliumpodippools";
    /// Services of all namespaces.
    pub const SERVICES: &str = "/api/v1/services";
    /// EndpointSlices of Services, of all namespaces.
    pub const ENDPOINT_SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
    /// CiliumLocalRedirectPolicies of all namespaces.
    pub const LOCAL_REDIRECTS: &str = "/apis/cilium.io/v2/ciliumlocalredirectpolicies";
    /// CiliumLoadBalancerIPPools.
    pub const IP_POOLS: &str = "/apis/cilium.io/v2/ciliumloadbalancerippools";
}

/// Object metadata.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Name.
    pub name: String,
    /// Namespace; empty for cluster-scoped kinds.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// UID.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Version.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "or_default")]
    pub annotations: BTreeMap<String, String>,
    /// Owners.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub owner_references: Vec<OwnerReference>,
    /// When it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<String>,
    /// Set while the object is on its way out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion_timestamp: Option<String>,
}

/// `null` where a list, map or object belongs reads as an empty one, as in Go clients.
pub(crate) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// An owner.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerReference {
    /// Group and version.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
}

/// Any object, by its metadata.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Named {
    /// Metadata.
    #[serde(default)]
    pub metadata: Metadata,
}

/// CiliumIdentity.
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

/// CiliumEndpointSlice.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CiliumEndpointSlice {
    /// `cilium.io/v2alpha1`.
    #[serde(rename = "apiVersion", default)]
    pub api_version: String,
    /// `CiliumEndpointSlice`.
    #[serde(default)]
    pub kind: String,
    /// Metadata.
    #[serde(default)]
    pub metadata: Metadata,
    /// Namespace of all its endpoints.
    #[serde(default)]
    pub namespace: String,
    /// The endpoints.
    #[serde(default, deserialize_with = "or_default")]
    pub endpoints: Vec<CoreEndpoint>,
}

/// One endpoint in a slice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreEndpoint {
    /// The pod's name.
    #[serde(default)]
    pub name: String,
    /// Identity.
    #[serde(default)]
    pub id: i64,
    /// The pod's UID.
    #[serde(rename = "pod-uid", default, skip_serializing_if = "String::is_empty")]
    pub pod_uid: String,
    /// Addresses.
    #[serde(default, deserialize_with = "or_default")]
    pub networking: Networking,
    /// Ports with names.
    #[serde(rename = "named-ports", default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub named_ports: Vec<WirePort>,
}

/// Addresses of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Networking {
    /// Pairs.
    #[serde(default, deserialize_with = "or_default")]
    pub addressing: Vec<AddressPair>,
    /// Address of its node.
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

/// A named port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WirePort {
    /// Name.
    #[serde(default)]
    pub name: String,
    /// Number.
    #[serde(default)]
    pub port: u16,
    /// `TCP`, `UDP`, `SCTP`.
    #[serde(default)]
    pub protocol: String,
}

/// CiliumEndpoint.
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
    /// Everything else.
    #[serde(default, deserialize_with = "or_default")]
    pub status: EndpointStatus,
}

/// Status of a CiliumEndpoint. Lists are written even if empty, so that a merge patch empties them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct EndpointStatus {
    /// Number on its node.
    pub id: i64,
    /// Identity.
    #[serde(deserialize_with = "or_default")]
    pub identity: EndpointIdentity,
    /// Addresses.
    #[serde(deserialize_with = "or_default")]
    pub networking: Networking,
    /// Encryption.
    #[serde(deserialize_with = "or_default")]
    pub encryption: EndpointEncryption,
    /// Ports with names.
    #[serde(deserialize_with = "or_default")]
    pub named_ports: Vec<WirePort>,
    /// Service account of the pod.
    pub service_account: String,
    /// `ready`.
    pub state: String,
}

/// Identity of a CiliumEndpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointIdentity {
    /// Number.
    pub id: i64,
    /// `source:key=value`.
    #[serde(deserialize_with = "or_default")]
    pub labels: Vec<String>,
}

/// Encryption of a CiliumEndpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointEncryption {
    /// Index of the key; 0: none.
    pub key: i64,
}

/// CiliumNode.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CiliumNode {
    /// `cilium.io/v2`.
    #[serde(rename = "apiVersion", default)]
    pub api_version: String,
    /// `CiliumNode`.
    #[serde(default)]
    pub kind: String,
    /// Named as the Node.
    #[serde(default)]
    pub metadata: Metadata,
    /// What the node says of itself.
    #[serde(default)]
    pub spec: CiliumNodeSpec,
}

/// Specification of a CiliumNode.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CiliumNodeSpec {
    /// Addresses.
    #[serde(default, deserialize_with = "or_default")]
    pub addresses: Vec<CiliumNodeAddress>,
    /// Pod CIDRs.
    #[serde(default, deserialize_with = "or_default")]
    pub ipam: CiliumNodeIpam,
    /// Changes with each boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootid: Option<String>,
}

/// An address of a CiliumNode.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CiliumNodeAddress {
    /// `InternalIP`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// The address.
    #[serde(default)]
    pub ip: String,
}

/// Address management of a CiliumNode.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CiliumNodeIpam {
    /// Pod CIDRs.
    #[serde(rename = "podCIDRs", default, deserialize_with = "or_default")]
    pub pod_cidrs: Vec<String>,
}

/// Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireNode {
    /// Metadata.
    pub metadata: Metadata,
    /// Specification.
    #[serde(deserialize_with = "or_default")]
    pub spec: WireNodeSpec,
    /// Status.
    #[serde(deserialize_with = "or_default")]
    pub status: WireNodeStatus,
}

/// Specification of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireNodeSpec {
    /// First pod CIDR.
    #[serde(rename = "podCIDR", deserialize_with = "or_default")]
    pub pod_cidr: String,
    /// All pod CIDRs.
    #[serde(rename = "podCIDRs", deserialize_with = "or_default")]
    pub pod_cidrs: Vec<String>,
    /// Taints, whole.
    #[serde(deserialize_with = "or_default")]
    pub taints: Vec<serde_json::Value>,
}

/// Status of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireNodeStatus {
    /// Addresses.
    #[serde(deserialize_with = "or_default")]
    pub addresses: Vec<WireNodeAddress>,
    /// Conditions.
    #[serde(deserialize_with = "or_default")]
    pub conditions: Vec<WireCondition>,
}

/// An address of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireNodeAddress {
    /// `InternalIP` and others.
    #[serde(rename = "type")]
    pub kind: String,
    /// The address.
    pub address: String,
}

/// A condition.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireCondition {
    /// Type.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False`, `Unknown`.
    pub status: String,
    /// Reason.
    #[serde(deserialize_with = "or_default")]
    pub reason: String,
}

/// Namespace.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireNamespace {
    /// Metadata.
    pub metadata: Metadata,
}

/// Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WirePod {
    /// Metadata.
    pub metadata: Metadata,
    /// Specification.
    #[serde(deserialize_with = "or_default")]
    pub spec: WirePodSpec,
    /// Status.
    #[serde(deserialize_with = "or_default")]
    pub status: WirePodStatus,
}

/// Specification of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WirePodSpec {
    /// The node it is bound to.
    #[serde(deserialize_with = "or_default")]
    pub node_name: String,
    /// Uses the node's network.
    #[serde(deserialize_with = "or_default")]
    pub host_network: bool,
    /// Service account.
    #[serde(deserialize_with = "or_default")]
    pub service_account_name: String,
    /// Containers.
    #[serde(deserialize_with = "or_default")]
    pub containers: Vec<WireContainer>,
    /// Containers that run before them, or beside them.
    #[serde(deserialize_with = "or_default")]
    pub init_containers: Vec<WireContainer>,
}

/// A container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WireContainer {
    /// Ports.
    #[serde(deserialize_with = "or_default")]
    pub ports: Vec<WireContainerPort>,
    /// `Always` on an init container: it runs beside the others.
    #[serde(deserialize_with = "or_default")]
    pub restart_policy: String,
}

/// A port of a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WireContainerPort {
    /// Name.
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    /// Number.
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

/// Status of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WirePodStatus {
    /// Phase.
    #[serde(deserialize_with = "or_default")]
    pub phase: String,
    /// Conditions.
    #[serde(deserialize_with = "or_default")]
    pub conditions: Vec<WireCondition>,
}

/// A policy of any kind. What is in it, the converters judge.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WirePolicy {
    /// Metadata.
    pub metadata: Metadata,
    /// Specification.
    pub spec: serde_json::Value,
    /// More of them, in the cilium.io kinds.
    pub specs: serde_json::Value,
}

/// An object of a custom kind. What is in it, the converters judge.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireCustom {
    /// Metadata.
    pub metadata: Metadata,
    /// Specification.
    pub spec: serde_json::Value,
}

/// CiliumCIDRGroup.
pub type WireCidrGroup = WireCustom;

/// CiliumPodIPPool.
pub type WirePool = WireCustom;
