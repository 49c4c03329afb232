//! Policies of every kind in one form: what a user wrote, checked, and free of Kubernetes types.

use super::ObjectName;
use crate::label::{LabelSet, NAMESPACE};
use crate::selector::{Requirement, Selector};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The kinds of objects that hold policies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum PolicyKind {
    /// networking.k8s.io/v1.
    NetworkPolicy,
    /// cilium.io/v2, of a namespace.
    CiliumNetworkPolicy,
    /// cilium.io/v2, of the cluster.
    CiliumClusterwideNetworkPolicy,
    /// policy.networking.k8s.io: the tiers of the cluster's administrator.
    ClusterNetworkPolicy,
}

impl PolicyKind {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::NetworkPolicy,
        Self::CiliumNetworkPolicy,
        Self::CiliumClusterwideNetworkPolicy,
        Self::ClusterNetworkPolicy,
    ];

    /// As objects write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "NetworkPolicy",
            Self::CiliumNetworkPolicy => "CiliumNetworkPolicy",
            Self::CiliumClusterwideNetworkPolicy => "CiliumClusterwideNetworkPolicy",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
        }
    }

    /// Whether its objects live in a namespace.
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
    /// Its kind.
    pub kind: PolicyKind,
    /// Its namespace (empty for a kind without) and name.
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
    /// Kind, namespace and name.
    pub name: PolicyName,
    /// UID.
    pub uid: String,
    /// Opaque version of the object that this was made from.
    pub resource_version: String,
    /// Its parts, each on its own: `spec` and `specs` of the cilium.io kinds; one for the others.
    pub specs: Vec<Spec>,
}

/// Rules for some subjects.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Spec {
    /// Whom the rules apply to.
    pub subject: Subject,
    /// Which tier the rules are in.
    pub tier: Tier,
    /// Whether packets to the subjects are dropped unless a rule of the normal tier allows them. Always false outside
    /// [`Tier::Normal`].
    pub isolates_ingress: bool,
    /// The same for packets from them.
    pub isolates_egress: bool,
    /// Rules for packets to the subjects. The order counts in the tiers of the administrator only.
    pub ingress: Vec<Rule>,
    /// Rules for packets from them.
    pub egress: Vec<Rule>,
    /// Copied to flow records that a rule of this decided; at most 32 printable characters.
    pub log: Option<Arc<str>>,
}

/// Whom rules apply to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Subject {
    /// Endpoints: pods with a network of their own.
    Endpoints(EndpointSelector),
    /// Nodes themselves, by the labels of the Node (plain keys).
    Nodes(Selector),
}

/// The order of evaluation: Admin, then Normal, then Baseline for what no Normal policy isolates.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Tier {
    /// Before all others; priority 0..=1000, lower first.
    Admin(u16),
    /// NetworkPolicy and the cilium.io kinds: no order, deny before allow.
    Normal,
    /// After all others; priority 0..=1000, lower first.
    Baseline(u16),
}

/// What a rule does with what it matches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum RuleAction {
    /// Let it pass.
    Allow,
    /// Drop it.
    Deny,
    /// Leave it to the next tier. Never in [`Tier::Normal`].
    Pass,
}

/// One rule: (any of the peers) and (any of the ports).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Rule {
    /// Where it stands in its object: `ingress[0]`, `specs[1].egressDeny[2]`.
    pub place: Arc<str>,
    /// What it does.
    pub action: RuleAction,
    /// `None`: any peer. Empty: nobody.
    pub peers: Option<Vec<Peer>>,
    /// `None`: any protocol and port. Empty: none.
    pub ports: Option<Vec<PortRule>>,
}

/// One peer.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Peer {
    /// Endpoints by their labels.
    Endpoints(EndpointSelector),
    /// Addresses.
    Cidr {
        /// The prefix.
        cidr: IpNet,
        /// Prefixes inside it that are left out.
        except: Vec<IpNet>,
        /// Whether addresses of the cluster count.
        covers: Covers,
    },
    /// A group with a name of its own.
    Entity(Entity),
    /// Addresses of CiliumCIDRGroups. Replaced by [`Peer::Cidr`] before policies are compiled.
    CidrGroups {
        /// Which groups.
        groups: CidrGroups,
        /// Whether addresses of the cluster count.
        covers: Covers,
    },
    /// What is behind Services. Replaced by [`Peer::Endpoints`] and [`Peer::Cidr`] before policies are compiled.
    Services(Services),
    /// Nodes by the labels of the Node (plain keys). Replaced by [`Peer::Cidr`] before policies are compiled.
    Nodes(Selector),
}

/// Which addresses of the cluster a prefix matches beside those outside of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Covers {
    /// Those of pods.
    pub pods: bool,
    /// Those of nodes.
    pub nodes: bool,
}

impl Covers {
    /// Every address literally.
    pub const ALL: Self = Self { pods: true, nodes: true };
    /// Addresses outside the cluster only.
    pub const WORLD: Self = Self { pods: false, nodes: false };
}

/// Which CiliumCIDRGroups.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum CidrGroups {
    /// The one of this name.
    Name(String),
    /// By their labels (plain keys).
    Selector(Selector),
}

/// Which Services.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Services {
    /// The one of this name.
    Name(ObjectName),
    /// By their labels (plain keys), in this namespace or in all.
    Selector {
        /// `None`: in every namespace.
        namespace: Option<String>,
        /// On the Service's own labels.
        selector: Selector,
    },
}

/// Groups of peers that have names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Entity {
    /// Everything.
    All,
    /// Everything outside the cluster.
    World,
    /// Of that, IPv4.
    WorldIpv4,
    /// Of that, IPv6.
    WorldIpv6,
    /// The endpoint's own node.
    Host,
    /// All other nodes.
    RemoteNode,
    /// The addresses of the API server, wherever they are.
    KubeApiserver,
    /// Ingress proxies.
    Ingress,
    /// Health endpoints.
    Health,
    /// Endpoints whose labels are not known yet.
    Init,
    /// Pods that this network does not manage.
    Unmanaged,
    /// Everything inside the cluster: nodes, pods, and the others above but for the world.
    Cluster,
    /// Nobody.
    None,
}

/// Endpoints by labels. Keys carry their source: `k8s:app`, `reserved:host`; `any:app` is a label of any source.
/// Of a pod in namespace `shop` the key [`NAMESPACE`] has the value `shop`, and the labels of the namespace stand behind
/// [`crate::label::NAMESPACE_LABELS`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct EndpointSelector {
    /// Only pods of this namespace.
    pub namespace: Option<String>,
    /// All must hold.
    pub requirements: Vec<Requirement>,
}

impl EndpointSelector {
    /// Every pod.
    pub const EVERY_POD: Self = Self { namespace: None, requirements: Vec::new() };

    /// Whether a requirement names what is selected by a `reserved:` label: then it need not be a pod.
    #[must_use]
    pub fn names_reserved(&self) -> bool {
        self.requirements.iter().any(names_reserved)
    }

    /// Whether an endpoint with these labels is selected: a pod, or something else that a requirement names by a
    /// `reserved:` label.
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

/// One protocol and port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortRule {
    /// Protocol.
    pub protocol: Protocol,
    /// Port; for [`Protocol::Icmp`] and [`Protocol::Icmpv6`] the type of the message.
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

/// A protocol that policies can name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// 6.
    Tcp,
    /// 17.
    Udp,
    /// 132.
    Sctp,
    /// 1; ports are types of messages.
    Icmp,
    /// 58; ports are types of messages.
    Icmpv6,
    /// 112.
    Vrrp,
    /// 2.
    Igmp,
    /// 47.
    Gre,
    /// 4.
    IpIp,
    /// 41.
    Ipv6,
    /// 50.
    Esp,
    /// 51.
    Ah,
}

impl Protocol {
    /// IANA number.
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

    /// Whether its packets have a port (or a type) that rules can name.
    #[must_use]
    pub const fn has_ports(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp | Self::Sctp | Self::Icmp | Self::Icmpv6)
    }
}
