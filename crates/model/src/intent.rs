//! The declared state of the cluster, free of Kubernetes types. Produced by watchers and CNI calls, consumed by control.

use crate::id::Identity;
use crate::label::LabelSet;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;

mod load_balancer;
mod name;
mod policy;
mod service;

pub use crate::intent::name::{Age, NamedPort, ObjectName};
pub use load_balancer::{AddressRange, IpPool, LoadBalancerRequest, SharingNamespaces};
pub use policy::{
    CidrGroups, Covers, EndpointSelector, Entity, Peer, Policy, PolicyKind, PolicyName, PortMatch, PortRule, Protocol,
    Rule, RuleAction, Services, Spec, Subject, Tier,
};
pub use service::{
    Algorithm, Backend, Backends, Forwarding, HostPort, LocalRedirect, RedirectFrontend, RedirectPort, Routing,
    Service, ServicePort, Topology,
};

/// The parts of a Pod that matter to the network.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Pod {
    pub name: ObjectName,
    pub uid: String,
    /// The node that it is bound to.
    pub node: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub service_account: String,
    pub host_network: bool,
    pub named_ports: Vec<NamedPort>,
    /// The address pools that its annotations select.
    pub address_pools: PoolRequest,
    pub host_ports: Vec<HostPort>,
    /// Condition `Ready` is true.
    pub ready: bool,
    /// Phase is Succeeded or Failed.
    pub finished: bool,
    pub age: Age,
}

/// Prefix of the error in `status.ipam.operator-status` of a CiliumNode when its subnet has no free address. Agents then
/// stop requesting ahead of demand. It is a text, since this API has no field for a reason.
pub const SUBNET_FULL: &str = "the subnet is full";

/// The address pools that a pod, or the pods of a namespace, select by annotation.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct PoolRequest {
    pub v4: Option<String>,
    pub v6: Option<String>,
    /// Fail rather than fall back to the default pool.
    pub required: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Namespace {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    /// The default for its pods.
    pub address_pools: PoolRequest,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Node {
    pub name: String,
    /// Addresses by which other nodes reach it, at most one per family.
    pub addresses: Vec<IpAddr>,
    /// At most one per family.
    pub pod_cidrs: Vec<IpNet>,
    pub labels: BTreeMap<String, String>,
}

/// A CiliumIdentity.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct IdentityLabels {
    pub identity: Identity,
    pub labels: LabelSet,
    /// Marked for garbage collection: it may be deleted at any moment, unless an agent that uses it removes the mark first.
    pub unused: bool,
}

/// An endpoint as its own node publishes it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct RemoteEndpoint {
    pub name: ObjectName,
    pub pod_uid: String,
    pub identity: Identity,
    pub addresses: Vec<IpAddr>,
    /// Address of its node.
    pub node: IpAddr,
    pub named_ports: Vec<NamedPort>,
}

/// A CiliumEndpointSlice, or a CiliumEndpoint as a slice of one. Not to be confused with the EndpointSlice of a Service,
/// which is [`Backends`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct EndpointSlice {
    pub name: String,
    pub endpoints: Vec<RemoteEndpoint>,
    pub written: Written,
}

/// The resource version of an object as a number, to compare which of two objects was written later. 0: not known. It is
/// not part of the content: objects that differ in nothing else are equal.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written(pub u64);

impl Written {
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
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub cidrs: Vec<IpNet>,
}

/// Why a source cannot be read.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SourceProblem {
    /// What was attempted, why it failed, and what to do.
    pub text: String,
    /// The source was complete before, so its objects are known. Otherwise a rule that references one of them must assume
    /// the worst.
    pub listed: bool,
}

/// Declares every kind of object that is watched: the source of its changes, what the source is called in status, and
/// the changes that it sends. [`Change`], [`Source`], the list of all sources and their names follow from this list: a
/// kind that is added here has to be complete before anything is removed from the kernel, and shows in status.
macro_rules! kinds {
    ($($source:ident $(of $part:ty)?, $name:expr => { $($(#[$doc:meta])* $change:ident $fields:tt),* $(,)? })+) => {
        /// An event of a watcher: an upserted or deleted object, or the end of the initial list.
        #[derive(Clone, PartialEq, Eq, Hash, Debug)]
        pub enum Change {
            $($($(#[$doc])* $change $fields,)*)+
            /// The source has delivered its initial list.
            Synced(Source),
            /// A source cannot be read, or can again (`None`). What it sent before stays in force.
            SourceProblem(Source, Option<SourceProblem>),
        }

        /// Sources of changes: one per kind of object that is watched.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[allow(missing_docs, reason = "the list of kinds says what each is")]
        pub enum Source {
            $($source $(($part))?,)+
        }

        impl Source {
            /// All of them.
            pub fn all() -> impl Iterator<Item = Self> {
                std::iter::empty()$(.chain(kinds!(@all $source $($part)?)))+
            }
        }

        impl std::fmt::Display for Source {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self {
                    $(kinds!(@pattern $source part $($part)?) => f.write_str(kinds!(@name $name, part $($part)?)),)+
                }
            }
        }
    };
    (@all $source:ident) => { std::iter::once(Source::$source) };
    (@all $source:ident $part:ty) => { <$part>::ALL.into_iter().map(Source::$source) };
    (@pattern $source:ident $binding:ident) => { Source::$source };
    (@pattern $source:ident $binding:ident $part:ty) => { Source::$source($binding) };
    (@name $name:expr, $binding:ident) => { $name };
    (@name $name:expr, $binding:ident $part:ty) => { $name(*$binding) };
}

kinds! {
    Pods, "Pods of this node" => {
        /// A pod of this node.
        Pod(Pod),
        /// Its name and UID.
        PodGone(ObjectName, String),
    }
    Namespaces, "Namespaces" => {
        Namespace(Namespace),
        NamespaceGone(String),
    }
    Policies of PolicyKind, PolicyKind::name => {
        Policy(Policy),
        /// A policy object that is invalid. Its previous version stays in force.
        PolicyInvalid {
            /// Its name.
            name: PolicyName,
            /// Opaque version of the object.
            resource_version: String,
            /// The field and what was expected.
            problem: String,
        },
        PolicyGone(PolicyName),
    }
    CidrGroups, "CiliumCIDRGroups" => {
        CidrGroup(CidrGroup),
        CidrGroupGone(String),
    }
    Services, "Services" => {
        Service(Service),
        ServiceGone(ObjectName),
    }
    Backends, "EndpointSlices" => {
        /// An EndpointSlice of a Service.
        Backends(Backends),
        BackendsGone(ObjectName),
    }
    LocalRedirects, "CiliumLocalRedirectPolicies" => {
        LocalRedirect(LocalRedirect),
        LocalRedirectGone(ObjectName),
    }
    Identities, "CiliumIdentities" => {
        Identity(IdentityLabels),
        IdentityGone(Identity),
    }
    Slices, "CiliumEndpointSlices" => {
        /// A CiliumEndpointSlice, or a CiliumEndpoint as a slice of one.
        Slice(EndpointSlice),
        SliceGone(String),
    }
    // Their changes are those of slices.
    Endpoints, "CiliumEndpoints" => {}
    Nodes, "Nodes" => {
        Node(Node),
        NodeGone(String),
    }
}

#[cfg(test)]
mod tests {
    /// The list with one kind more.
    #[allow(dead_code, reason = "declared to be counted; only some variants are made")]
    mod listed {
        use crate::intent::{CidrGroup, Namespace, PolicyKind, SourceProblem};

        kinds! {
            Namespaces, "Namespaces" => {
                Namespace(Namespace),
            }
            Policies of PolicyKind, PolicyKind::name => {}
            ServicePrefixes, "prefixes of Services" => {
                ServicePrefix(CidrGroup),
                ServicePrefixGone(String),
            }
        }
    }

    #[test]
    fn a_kind_is_a_line() {
        let names: Vec<String> = listed::Source::all().map(|source| source.to_string()).collect();
        let mut expected = vec!["Namespaces"];
        expected.extend(super::PolicyKind::ALL.map(super::PolicyKind::name));
        expected.push("prefixes of Services");
        assert_eq!(names, expected);
        let change = listed::Change::ServicePrefixGone("a".to_owned());
        assert_ne!(change, listed::Change::Synced(listed::Source::ServicePrefixes));
    }

    #[test]
    fn every_source_is_listed_once() {
        let all: Vec<super::Source> = super::Source::all().collect();
        assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), all.len());
        assert!(super::PolicyKind::ALL.iter().all(|kind| all.contains(&super::Source::Policies(*kind))));
    }
}
