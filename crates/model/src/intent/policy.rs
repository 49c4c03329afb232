//! All kinds of policies in one validated form, free of Kubernetes types.

use super::name::ObjectName;
use crate::label::{LabelSet, NAMESPACE};
use crate::selector::{Requirement, Selector};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The kinds of policy objects.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum PolicyKind {
    /// networking.k8s.io/v1.
    NetworkPolicy,
    /// cilium.io/v2, namespaced.
    CiliumNetworkPolicy,
    /// cilium.io/v2, cluster-scoped.
    CiliumClusterwideNetworkPolicy,
    /// policy.networking.k8s.io: the Admin and Baseline tiers.
    ClusterNetworkPolicy,
}

impl PolicyKind {
    pub const ALL: [Self; 4] = [
        Self::NetworkPolicy,
        Self::CiliumNetworkPolicy,
        Self::CiliumClusterwideNetworkPolicy,
        Self::ClusterNetworkPolicy,
    ];

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "NetworkPolicy",
            Self::CiliumNetworkPolicy => "CiliumNetworkPolicy",
            Self::CiliumClusterwideNetworkPolicy => "CiliumClusterwideNetworkPolicy",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
        }
    }

    #[must_use]
    pub const fn is_namespaced(self) -> bool {
        matches!(self, Self::NetworkPolicy | Self::CiliumNetworkPolicy)
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A policy object: `NetworkPolicy shop/web`, `CiliumClusterwideNetworkPolicy lock`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct PolicyName {
    pub kind: PolicyKind,
    /// The namespace is empty for cluster-scoped kinds.
    pub object: ObjectName,
}

impl PolicyName {
    /// `shop/web`, or the bare name of an object without a namespace.
    #[must_use]
    pub fn path(&self) -> String {
        if self.object.namespace.is_empty() { self.object.name.clone() } else { self.object.to_string() }
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.path())
    }
}

/// A policy object, validated.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Policy {
    pub name: PolicyName,
    pub uid: String,
    pub resource_version: String,
    /// `spec` and `specs` of the cilium.io kinds, each independent; one for the other kinds.
    pub specs: Vec<Spec>,
}

/// Rules for a set of subjects.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Spec {
    pub subject: Subject,
    pub tier: Tier,
    /// Ingress is denied by default for the subjects. Only in [`Tier::Normal`].
    pub isolates_ingress: bool,
    /// Egress, likewise.
    pub isolates_egress: bool,
    /// The order matters only in the Admin and Baseline tiers.
    pub ingress: Vec<Rule>,
    pub egress: Vec<Rule>,
    /// Copied to the flows that a rule of this decides; at most 32 printable characters.
    pub log: Option<Arc<str>>,
}

/// What rules apply to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Subject {
    /// Pods without `hostNetwork`.
    Endpoints(EndpointSelector),
    /// Nodes, by the labels of the Node (keys without source).
    Nodes(Selector),
}

/// Tiers in the order of evaluation. Baseline applies only where no Normal policy isolates the subject.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Tier {
    /// Evaluated first; priority 0..=1000, lower first.
    Admin(u16),
    /// NetworkPolicy and the cilium.io kinds: unordered, deny wins over allow.
    Normal,
    /// Evaluated last; priority 0..=1000, lower first.
    Baseline(u16),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum RuleAction {
    Allow,
    Deny,
    /// Pass to the next tier. Never in [`Tier::Normal`].
    Pass,
}

/// One rule. It matches if any of its peers and any of its ports match.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Rule {
    /// Its field in the object: `ingress[0]`, `specs[1].egressDeny[2]`.
    pub place: Arc<str>,
    pub action: RuleAction,
    /// `None`: any peer. Empty: none.
    pub peers: Option<Vec<Peer>>,
    /// `None`: any protocol and port. Empty: none.
    pub ports: Option<Vec<PortRule>>,
}

/// An entry of a rule's `from` or `to`: what the rule selects as the other end of a connection.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Peer {
    /// Endpoints by their labels.
    Endpoints(EndpointSelector),
    Cidr {
        cidr: IpNet,
        /// Prefixes inside it that are excluded.
        except: Vec<IpNet>,
        /// Which addresses of the cluster it matches.
        covers: Covers,
    },
    Entity(Entity),
    /// CiliumCIDRGroups. Expanded to [`Peer::Cidr`] before policies are compiled.
    CidrGroups {
        groups: CidrGroups,
        /// Which addresses of the cluster it matches.
        covers: Covers,
    },
    /// The backends of Services. Expanded to [`Peer::Endpoints`] and [`Peer::Cidr`] before policies are compiled.
    Services(Services),
    /// Nodes by the labels of the Node (keys without source). Expanded to [`Peer::Cidr`] before policies are compiled.
    Nodes(Selector),
}

/// Which addresses of the cluster a CIDR rule matches, besides those outside of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Covers {
    pub pods: bool,
    pub nodes: bool,
}

impl Covers {
    /// Every address in the CIDR.
    pub const ALL: Self = Self { pods: true, nodes: true };
    /// Only addresses outside the cluster.
    pub const WORLD: Self = Self { pods: false, nodes: false };
}

/// A reference to CiliumCIDRGroups.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum CidrGroups {
    Name(String),
    /// By labels (keys without source).
    Selector(Selector),
}

/// A reference to Services.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Services {
    Name(ObjectName),
    /// By labels (keys without source).
    Selector {
        /// `None`: in every namespace.
        namespace: Option<String>,
        selector: Selector,
    },
}

/// Predefined groups of peers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Entity {
    All,
    /// Everything outside the cluster.
    World,
    WorldIpv4,
    WorldIpv6,
    /// The endpoint's own node.
    Host,
    /// All other nodes.
    RemoteNode,
    /// The addresses of the API server, inside or outside the cluster.
    KubeApiserver,
    Ingress,
    Health,
    /// Endpoints whose labels are not known yet.
    Init,
    /// Pods that another network plugin manages.
    Unmanaged,
    /// Everything inside the cluster: all of the above but the world.
    Cluster,
    None,
}

/// Selects endpoints by labels. Keys have a source: `k8s:app`, `reserved:host`; `any:app` matches a label of any source.
/// A pod in namespace `shop` has the label [`NAMESPACE`] with value `shop`, and the labels of its namespace with the prefix
/// [`crate::label::NAMESPACE_LABELS`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct EndpointSelector {
    /// Only pods of this namespace.
    pub namespace: Option<String>,
    /// All must hold.
    pub requirements: Vec<Requirement>,
}

impl EndpointSelector {
    pub const EVERY_POD: Self = Self { namespace: None, requirements: Vec::new() };

    /// Whether a requirement names a `reserved:` label. Only then can it select something other than a pod.
    #[must_use]
    pub fn names_reserved(&self) -> bool {
        self.requirements.iter().any(names_reserved)
    }

    #[must_use]
    pub fn matches(&self, labels: &LabelSet) -> bool {
        let in_scope = match (labels.get(NAMESPACE), &self.namespace) {
            (Some(namespace), Some(own)) => namespace == own,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (None, None) => self.names_reserved(),
        };
        in_scope && self.requirements.iter().all(|requirement| holds(requirement, labels))
    }
}

fn names_reserved(requirement: &Requirement) -> bool {
    matches!(requirement, Requirement::In(key, _) | Requirement::Exists(key) if key.starts_with("reserved:"))
}

fn holds(requirement: &Requirement, labels: &LabelSet) -> bool {
    match requirement {
        Requirement::In(key, allowed) => labels.any(key, |value| allowed.contains(value)),
        Requirement::NotIn(key, denied) => !labels.any(key, |value| denied.contains(value)),
        Requirement::Exists(key) => labels.any(key, |_| true),
        Requirement::DoesNotExist(key) => !labels.any(key, |_| true),
    }
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortRule {
    pub protocol: Protocol,
    /// For [`Protocol::Icmp`] and [`Protocol::Icmpv6`] the type of the message.
    pub port: PortMatch,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PortMatch {
    Any,
    /// Inclusive.
    Range(u16, u16),
    /// A named container port: of the subject for ingress, of each peer for egress.
    Name(String),
}

/// A protocol that rules can name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
    /// Ports are message types.
    Icmp,
    /// Ports are message types.
    Icmpv6,
    Vrrp,
    Igmp,
    Gre,
    IpIp,
    Ipv6,
    Esp,
    Ah,
}

impl Protocol {
    /// IANA protocol number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
            Self::Icmp => 1,
            Self::Icmpv6 => 58,
            Self::Vrrp => 112,
            Self::Igmp => 2,
            Self::Gre => 47,
            Self::IpIp => 4,
            Self::Ipv6 => 41,
            Self::Esp => 50,
            Self::Ah => 51,
        }
    }

    /// Whether its packets have a port (or ICMP type) that rules can match.
    #[must_use]
    pub const fn has_ports(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp | Self::Sctp | Self::Icmp | Self::Icmpv6)
    }
}
