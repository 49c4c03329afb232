//! A cluster, its policies, and packets in it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use weft_model::id::Identity;
use weft_model::intent::{self, CidrGroup, NamedPort, ObjectName, Policy};

/// Labels as objects carry them.
pub type Labels = BTreeMap<String, String>;

/// A pod.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pod {
    /// Name of its namespace.
    pub namespace: String,
    /// Its own.
    pub name: String,
    /// Labels.
    pub labels: Labels,
    /// Service account.
    pub service_account: String,
    /// Index of its node.
    pub node: usize,
    /// At most one per family; of a pod with its node's network: the node's.
    pub addresses: Vec<IpAddr>,
    /// Has its node's network.
    pub host_network: bool,
    /// Container ports with names.
    pub named_ports: Vec<NamedPort>,
    /// What stands for it where its labels are not known or it has none: one of the reserved identities unknown,
    /// unmanaged, health, init, ingress. Such a pod is no subject of policies.
    pub reserved: Option<Identity>,
}

impl Pod {
    /// Whether labels say who it is: it has a network of its own and is managed.
    #[must_use]
    pub const fn is_managed(&self) -> bool {
        !self.host_network && self.reserved.is_none()
    }

    /// `namespace/name`.
    #[must_use]
    pub fn object(&self) -> ObjectName {
        ObjectName { namespace: self.namespace.clone(), name: self.name.clone() }
    }
}

/// A node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: Labels,
    /// At most one per family.
    pub addresses: Vec<IpAddr>,
}

/// A Service and the addresses in its slices.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// The object.
    pub object: intent::Service,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
}

/// How the cluster is set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Nodes are subjects of policies.
    pub host_firewall: bool,
    /// Both families are in use; the world outside is known by family.
    pub dual_stack: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { host_firewall: true, dual_stack: true }
    }
}

/// A cluster and its policies.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct World {
    /// How it is set up.
    pub settings: Settings,
    /// Name -> labels.
    pub namespaces: BTreeMap<String, Labels>,
    /// Nodes.
    pub nodes: Vec<Node>,
    /// Pods.
    pub pods: Vec<Pod>,
    /// Addresses outside that packets come from and go to.
    pub outside: Vec<IpAddr>,
    /// Services.
    pub services: Vec<Service>,
    /// CIDR groups.
    pub cidr_groups: Vec<CidrGroup>,
    /// Addresses of the API server: of nodes, or outside.
    pub api_server: Vec<IpAddr>,
    /// Policies.
    pub policies: Vec<Policy>,
}

/// Who sends or receives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum End {
    /// A pod, by index.
    Pod(usize),
    /// A node, by index.
    Node(usize),
    /// Somebody outside.
    World(IpAddr),
}

/// The first packet of a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Packet {
    /// Sender.
    pub from: End,
    /// Receiver.
    pub to: End,
    /// Family.
    pub v6: bool,
    /// IP protocol.
    pub protocol: u8,
    /// Destination port; of ICMP the type; 0 where the protocol has none.
    pub port: u16,
}

impl World {
    /// The address of an end in a family.
    #[must_use]
    pub fn address(&self, end: End, v6: bool) -> Option<IpAddr> {
        let of = |addresses: &[IpAddr]| addresses.iter().copied().find(|address| address.is_ipv6() == v6);
        match end {
            End::Pod(n) => of(&self.pods[n].addresses),
            End::Node(n) => of(&self.nodes[n].addresses),
            End::World(address) => of(&[address]),
        }
    }

    /// The node that an end is: a node, or a pod with its network.
    #[must_use]
    pub fn node(&self, end: End) -> Option<usize> {
        match end {
            End::Pod(n) => Some(&self.pods[n]).filter(|pod| pod.host_network).map(|pod| pod.node),
            End::Node(n) => Some(n),
            End::World(_) => None,
        }
    }

    /// The pod that an end is, by index, if it has a network of its own.
    #[must_use]
    pub fn pod(&self, end: End) -> Option<usize> {
        match end {
            End::Pod(n) => Some(n).filter(|n| !self.pods[*n].host_network),
            End::Node(_) | End::World(_) => None,
        }
    }

    /// Everybody who can send or receive.
    #[must_use]
    pub fn ends(&self) -> Vec<End> {
        let pods = (0..self.pods.len()).map(End::Pod);
        let nodes = (0..self.nodes.len()).map(End::Node);
        pods.chain(nodes).chain(self.outside.iter().copied().map(End::World)).collect()
    }
}
