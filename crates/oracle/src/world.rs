//! A cluster, its policies, and packets in it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use weft_model::id::Identity;
use weft_model::intent::{self, CidrGroup, NamedPort, ObjectName, Policy};

/// Labels as objects carry them.
pub type Labels = BTreeMap<String, String>;

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub labels: Labels,
    pub service_account: String,
    /// Index of its node.
    pub node: usize,
    /// At most one per family; with `host_network` those of the node.
    pub addresses: Vec<IpAddr>,
    pub host_network: bool,
    pub named_ports: Vec<NamedPort>,
    /// Set if its labels are not known: unknown, unmanaged, health, init or ingress. Such a pod is no subject of policies.
    pub reserved: Option<Identity>,
}

impl Pod {
    /// Whether its labels identify it.
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

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Node {
    pub name: String,
    pub labels: Labels,
    /// At most one per family.
    pub addresses: Vec<IpAddr>,
}

/// A Service and the addresses in its EndpointSlices.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    pub object: intent::Service,
    pub addresses: Vec<IpAddr>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Nodes are subjects of policies.
    pub host_firewall: bool,
    /// Both families are in use, and the world has an identity per family.
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
    pub settings: Settings,
    /// Name -> labels.
    pub namespaces: BTreeMap<String, Labels>,
    pub nodes: Vec<Node>,
    pub pods: Vec<Pod>,
    /// External addresses.
    pub outside: Vec<IpAddr>,
    pub services: Vec<Service>,
    pub cidr_groups: Vec<CidrGroup>,
    /// Addresses of the API server: of nodes, or external.
    pub api_server: Vec<IpAddr>,
    pub policies: Vec<Policy>,
}

/// A sender or receiver of packets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum End {
    /// A pod, by index.
    Pod(usize),
    /// A node, by index.
    Node(usize),
    /// An external address.
    World(IpAddr),
}

/// The first packet of a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Packet {
    pub from: End,
    pub to: End,
    pub v6: bool,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port or ICMP type; 0 for other protocols.
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

    /// The index of the node, if the end is a node or a pod with `hostNetwork`.
    #[must_use]
    pub fn node(&self, end: End) -> Option<usize> {
        match end {
            End::Pod(n) => Some(&self.pods[n]).filter(|pod| pod.host_network).map(|pod| pod.node),
            End::Node(n) => Some(n),
            End::World(_) => None,
        }
    }

    /// The index of the pod, if the end is a pod without `hostNetwork`.
    #[must_use]
    pub fn pod(&self, end: End) -> Option<usize> {
        match end {
            End::Pod(n) => Some(n).filter(|n| !self.pods[*n].host_network),
            End::Node(_) | End::World(_) => None,
        }
    }

    #[must_use]
    pub fn ends(&self) -> Vec<End> {
        let pods = (0..self.pods.len()).map(End::Pod);
        let nodes = (0..self.nodes.len()).map(End::Node);
        pods.chain(nodes).chain(self.outside.iter().copied().map(End::World)).collect()
    }
}
