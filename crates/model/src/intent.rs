//! What the cluster wants, free of Kubernetes types. Written by the watchers and by CNI calls, read by control.

use crate::id::Identity;
use crate::label::LabelSet;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;

mod load_balancer;
mod policy;
mod service;

pub use load_balancer::{AddressRange, IpPool, LoadBalancerRequest, SharingNamespaces};
pub use policy::{
    CidrGroups, Covers, EndpointSelector, Entity, Peer, Policy, PolicyKind, PolicyName, PortMatch, PortRule, Protocol,
    Rule, RuleAction, Services, Spec, Subject, Tier,
};
pub use service::{
    Algorithm, Backend, Backends, Forwarding, HostPort, LocalRedirect, RedirectFrontend, RedirectPort, Routing,
    Service, ServicePort, Topology,
};

/// `namespace/name`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct ObjectName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl std::fmt::Display for ObjectName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A container port with a name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct NamedPort {
    /// Its name.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Number.
    pub port: u16,
}

/// A pod, as far as the network cares.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Pod {
    /// Namespace and name.
    pub name: ObjectName,
    /// UID.
    pub uid: String,
    /// The node it is bound to.
    pub node: Option<String>,
    /// Labels as written.
    pub labels: BTreeMap<String, String>,
    /// Service account.
    pub service_account: String,
    /// Uses its node's network.
    pub host_network: bool,
    /// Container ports that have a name.
    pub named_ports: Vec<NamedPort>,
    /// Where its addresses are to come from.
    pub address_pools: PoolWish,
    /// Ports of the node that its containers ask for.
    pub host_ports: Vec<HostPort>,
    /// Its condition `Ready` is true.
    pub ready: bool,
    /// Succeeded or Failed.
    pub finished: bool,
}

/// How the operator's words begin when a subnet has no address left: agents stop asking ahead of demand then.
pub const SUBNET_FULL: &str = "the subnet is full";

/// Which pools of addresses a pod, or all pods of a namespace, ask for.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct PoolWish {
    /// For IPv4.
    pub v4: Option<String>,
    /// For IPv6.
    pub v6: Option<String>,
    /// No address rather than one of the default pool.
    pub required: bool,
}

/// A namespace.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Namespace {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Where its pods' addresses are to come from, unless they say otherwise.
    pub address_pools: PoolWish,
}

/// A node.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Addresses by which other nodes reach it, at most one per family.
    pub addresses: Vec<IpAddr>,
    /// Its pods' prefixes, at most one per family.
    pub pod_cidrs: Vec<IpNet>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// A CiliumIdentity.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct IdentityLabels {
    /// The number.
    pub identity: Identity,
    /// The labels.
    pub labels: LabelSet,
    /// Marked as used by nobody: it may be removed at any moment, unless who takes it up says so first.
    pub unused: bool,
}

/// An endpoint as its own node announces it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct RemoteEndpoint {
    /// The pod.
    pub name: ObjectName,
    /// Its UID.
    pub pod_uid: String,
    /// Its identity.
    pub identity: Identity,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its node's address.
    pub node: IpAddr,
    /// Its named ports.
    pub named_ports: Vec<NamedPort>,
}

/// A CiliumEndpointSlice.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct EndpointSlice {
    /// Name of the slice.
    pub name: String,
    /// What it holds.
    pub endpoints: Vec<RemoteEndpoint>,
    /// When it was last written.
    pub written: Written,
}

/// When an object was written, as the API server counts writes: of two objects the one with the higher number was
/// written later. 0: not known. It is no part of what the object says: two that say the same at different times are
/// equal.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written(pub u64);

impl Written {
    /// From an object's resource version.
    #[must_use]
    pub fn read(resource_version: &str) -> Self {
        Self(resource_version.parse().unwrap_or(0))
    }
}

impl PartialEq for Written {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Written {}

impl Hash for Written {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

/// A CiliumCIDRGroup.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct CidrGroup {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its prefixes.
    pub cidrs: Vec<IpNet>,
}

/// A change of one row, or news of a source.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Change {
    /// A pod of this node.
    Pod(Pod),
    /// It is gone.
    PodGone(ObjectName, String),
    /// A namespace.
    Namespace(Namespace),
    /// It is gone.
    NamespaceGone(String),
    /// A policy.
    Policy(Policy),
    /// A policy object that cannot be used. What was in force before under its name stays in force.
    PolicyInvalid {
        /// Its name.
        name: PolicyName,
        /// Opaque version of the object.
        resource_version: String,
        /// The field and what was expected.
        problem: String,
    },
    /// It is gone.
    PolicyGone(PolicyName),
    /// A CiliumCIDRGroup.
    CidrGroup(CidrGroup),
    /// It is gone.
    CidrGroupGone(String),
    /// A Service.
    Service(Service),
    /// It is gone.
    ServiceGone(ObjectName),
    /// What is behind a Service.
    Backends(Backends),
    /// That EndpointSlice is gone.
    BackendsGone(ObjectName),
    /// A CiliumLocalRedirectPolicy.
    LocalRedirect(LocalRedirect),
    /// It is gone.
    LocalRedirectGone(ObjectName),
    /// An identity.
    Identity(IdentityLabels),
    /// It is gone.
    IdentityGone(Identity),
    /// A slice.
    Slice(EndpointSlice),
    /// It is gone.
    SliceGone(String),
    /// A node.
    Node(Node),
    /// It is gone.
    NodeGone(String),
    /// A source delivered all that existed when it started.
    Synced(Source),
}

/// Sources of changes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Source {
    /// Pods of this node.
    Pods,
    /// Namespaces.
    Namespaces,
    /// Policies of one kind.
    Policies(PolicyKind),
    /// CiliumCIDRGroups.
    CidrGroups,
    /// Services.
    Services,
    /// EndpointSlices of Services.
    Backends,
    /// CiliumLocalRedirectPolicies.
    LocalRedirects,
    /// CiliumIdentities.
    Identities,
    /// CiliumEndpointSlices.
    Slices,
    /// CiliumEndpoints; their changes are those of slices.
    Endpoints,
    /// Nodes.
    Nodes,
}
