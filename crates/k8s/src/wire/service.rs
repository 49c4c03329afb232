//! Services and EndpointSlices as they travel. Numbers are wider than they should be, so that a wrong one is judged by
//! the converters, which name the field.

use super::metadata::{Metadata, or_default};
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireService {
    pub metadata: Metadata,
    #[serde(deserialize_with = "or_default")]
    pub spec: WireServiceSpec,
    #[serde(deserialize_with = "or_default")]
    pub status: WireServiceStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WireServiceSpec {
    #[serde(deserialize_with = "or_default")]
    pub selector: BTreeMap<String, String>,
    /// `ClusterIP`, `NodePort`, `LoadBalancer`, `ExternalName`.
    #[serde(rename = "type", deserialize_with = "or_default")]
    pub kind: String,
    /// First address, or `None`.
    #[serde(rename = "clusterIP", deserialize_with = "or_default")]
    pub cluster_ip: String,
    #[serde(rename = "clusterIPs", deserialize_with = "or_default")]
    pub cluster_ips: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub ip_families: Vec<String>,
    /// `SingleStack`, `PreferDualStack`, `RequireDualStack`.
    #[serde(deserialize_with = "or_default")]
    pub ip_family_policy: String,
    #[serde(deserialize_with = "or_default")]
    pub ports: Vec<WireServicePort>,
    /// Addresses that others route to the nodes.
    #[serde(rename = "externalIPs", deserialize_with = "or_default")]
    pub external_ips: Vec<String>,
    /// `None` or `ClientIP`.
    #[serde(deserialize_with = "or_default")]
    pub session_affinity: String,
    #[serde(deserialize_with = "or_default")]
    pub session_affinity_config: WireSessionAffinity,
    /// `Cluster` or `Local`.
    #[serde(deserialize_with = "or_default")]
    pub internal_traffic_policy: String,
    /// `Cluster` or `Local`.
    #[serde(deserialize_with = "or_default")]
    pub external_traffic_policy: String,
    #[serde(deserialize_with = "or_default")]
    pub load_balancer_source_ranges: Vec<String>,
    /// Who serves the load balancer; empty: whoever does by default.
    #[serde(deserialize_with = "or_default")]
    pub load_balancer_class: String,
    /// The old way to ask for an address.
    #[serde(rename = "loadBalancerIP", deserialize_with = "or_default")]
    pub load_balancer_ip: String,
    /// Where load balancers ask whether the node has backends.
    #[serde(deserialize_with = "or_default")]
    pub health_check_node_port: i64,
    #[serde(deserialize_with = "or_default")]
    pub publish_not_ready_addresses: bool,
    /// `PreferClose`, `PreferSameZone`, `PreferSameNode`.
    #[serde(deserialize_with = "or_default")]
    pub traffic_distribution: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WireServicePort {
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    /// Protocol; TCP if not given.
    #[serde(deserialize_with = "or_default")]
    pub protocol: String,
    #[serde(deserialize_with = "or_default")]
    pub port: i64,
    /// Number at the nodes; 0: none.
    #[serde(deserialize_with = "or_default")]
    pub node_port: i64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireSessionAffinity {
    /// Of `ClientIP`.
    #[serde(rename = "clientIP", deserialize_with = "or_default")]
    pub client_ip: WireClientIp,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WireClientIp {
    pub timeout_seconds: Option<i64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WireServiceStatus {
    #[serde(deserialize_with = "or_default")]
    pub load_balancer: WireLoadBalancer,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireLoadBalancer {
    #[serde(deserialize_with = "or_default")]
    pub ingress: Vec<WireIngress>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireIngress {
    /// The address; empty where it has a name instead.
    #[serde(deserialize_with = "or_default")]
    pub ip: String,
    /// `VIP`: packets keep it as destination; `Proxy`: they do not.
    #[serde(rename = "ipMode", deserialize_with = "or_default")]
    pub ip_mode: String,
}

/// EndpointSlice (discovery.k8s.io).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WireEndpointSlice {
    pub metadata: Metadata,
    /// `IPv4`, `IPv6`, `FQDN`.
    #[serde(deserialize_with = "or_default")]
    pub address_type: String,
    #[serde(deserialize_with = "or_default")]
    pub ports: Vec<WireBackendPort>,
    #[serde(deserialize_with = "or_default")]
    pub endpoints: Vec<WireBackend>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireBackendPort {
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    /// Protocol; TCP if not given.
    #[serde(deserialize_with = "or_default")]
    pub protocol: String,
    pub port: Option<i64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WireBackend {
    /// Its addresses: names of one thing, of which the first is used.
    #[serde(deserialize_with = "or_default")]
    pub addresses: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub conditions: WireBackendConditions,
    #[serde(deserialize_with = "or_default")]
    pub node_name: String,
    #[serde(deserialize_with = "or_default")]
    pub zone: String,
    #[serde(deserialize_with = "or_default")]
    pub hints: WireBackendHints,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireBackendConditions {
    /// Takes new connections; absent: yes.
    pub ready: Option<bool>,
    /// Answers; absent: as `ready`.
    pub serving: Option<bool>,
    /// Is about to end; absent: no.
    pub terminating: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WireBackendHints {
    #[serde(deserialize_with = "or_default")]
    pub for_zones: Vec<WireForZone>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireForZone {
    #[serde(deserialize_with = "or_default")]
    pub name: String,
}
