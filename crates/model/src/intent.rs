//! What the cluster wants, free of Kubernetes types. Written by the watchers and by CNI calls, read by control.

use crate::id::Identity;
use crate::label::LabelSet;
use crate::selector::Selector;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// `namespace/name`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
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

/// A transport protocol that policies can name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// 6.
    Tcp,
    /// 17.
    Udp,
    /// 132.
    Sctp,
}

impl Protocol {
    /// IANA number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
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
    /// Succeeded or Failed.
    pub finished: bool,
}

/// A namespace.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Namespace {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
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
}

/// A CiliumIdentity.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct IdentityLabels {
    /// The number.
    pub identity: Identity,
    /// The labels.
    pub labels: LabelSet,
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
}

/// A policy object, validated. `None` for a direction: the policy does not isolate it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Policy {
    /// Kind, for people: `NetworkPolicy`.
    pub kind: &'static str,
    /// Namespace and name.
    pub name: ObjectName,
    /// UID.
    pub uid: String,
    /// Opaque version of the object that this was made from.
    pub resource_version: String,
    /// Pods of the policy's namespace that it applies to.
    pub pod_selector: Selector,
    /// Rules for packets to them.
    pub ingress: Option<Vec<Rule>>,
    /// Rules for packets from them.
    pub egress: Option<Vec<Rule>>,
}

/// One allow rule: (any of the peers) and (any of the ports).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Rule {
    /// `None`: any peer.
    pub peers: Option<Vec<Peer>>,
    /// `None`: any protocol and port.
    pub ports: Option<Vec<PortRule>>,
}

/// One peer.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Peer {
    /// Pods by labels.
    Pods {
        /// Namespaces by their labels; `None`: the policy's own.
        namespaces: Option<Selector>,
        /// Pods by their labels.
        pods: Selector,
    },
    /// Addresses, of pods and nodes as well.
    Block {
        /// The prefix.
        cidr: IpNet,
        /// Prefixes inside it that are left out.
        except: Vec<IpNet>,
    },
}

/// One protocol and port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortRule {
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: PortMatch,
}

/// Ports.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PortMatch {
    /// All of the protocol.
    Any,
    /// From first to last, inclusive.
    Range(u16, u16),
    /// A container port's name: of the subject (ingress), of each peer (egress).
    Name(String),
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
        name: ObjectName,
        /// Opaque version of the object.
        resource_version: String,
        /// The field and what was expected.
        problem: String,
    },
    /// It is gone.
    PolicyGone(ObjectName),
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
    /// NetworkPolicies.
    Policies,
    /// CiliumIdentities.
    Identities,
    /// CiliumEndpointSlices.
    Slices,
    /// Nodes.
    Nodes,
}
