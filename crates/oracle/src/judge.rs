//! What NetworkPolicy documents say, evaluated naively: the judge of the compiler and of the kernel programs.
//!
//! Written from the documents alone, pod by pod and rule by rule, without identities, classes, prefixes or any other
//! notion of the compiler. It must stay that way: never share code with [`crate::policy`].
//!
//! Where the documents leave a choice, this is ours:
//! - Packets from a pod's own node to the pod are always allowed; packets to the node are up to policy.
//! - A pod with its node's network is the node.
//! - `ipBlock` means addresses, whoever has them.
//! - A port's name is one of a pod that the rule selects as a pod; behind an `ipBlock` of an egress rule no address
//!   has named ports.

use std::collections::BTreeMap;
use std::net::IpAddr;
use weft_model::intent::{NamedPort, ObjectName, Peer, Policy, PortMatch, PortRule, Rule};
use weft_model::selector::{Requirement, Selector};

pub mod feed;
pub mod generate;

type Labels = BTreeMap<String, String>;

/// A pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pod {
    /// Namespace and name.
    pub name: ObjectName,
    /// Labels.
    pub labels: Labels,
    /// Index of its node.
    pub node: usize,
    /// At most one per family; of a pod with its node's network: the node's.
    pub addresses: Vec<IpAddr>,
    /// Has its node's network.
    pub host_network: bool,
    /// Container ports with names.
    pub named_ports: Vec<NamedPort>,
}

/// A node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Name.
    pub name: String,
    /// At most one per family.
    pub addresses: Vec<IpAddr>,
}

/// A cluster and its policies.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct World {
    /// Name -> labels.
    pub namespaces: BTreeMap<String, Labels>,
    /// Nodes.
    pub nodes: Vec<Node>,
    /// Pods.
    pub pods: Vec<Pod>,
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
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Sender.
    pub from: End,
    /// Receiver.
    pub to: End,
    /// Family.
    pub v6: bool,
    /// IP protocol.
    pub protocol: u8,
    /// Destination port, 0 where the protocol has none.
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

    /// The pod behind an end, if it has a network of its own.
    fn pod(&self, end: End) -> Option<&Pod> {
        match end {
            End::Pod(n) => Some(&self.pods[n]).filter(|pod| !pod.host_network),
            End::Node(_) | End::World(_) => None,
        }
    }

    /// The node that an end is.
    fn node(&self, end: End) -> Option<usize> {
        match end {
            End::Pod(n) => Some(&self.pods[n]).filter(|pod| pod.host_network).map(|pod| pod.node),
            End::Node(n) => Some(n),
            End::World(_) => None,
        }
    }
}

/// Whether the packet passes.
#[must_use]
pub fn verdict(world: &World, packet: &Packet) -> bool {
    may_leave(world, packet) && may_enter(world, packet)
}

/// Whether its sender may send it.
#[must_use]
pub fn may_leave(world: &World, packet: &Packet) -> bool {
    let Some(pod) = world.pod(packet.from) else { return true };
    if packet.from == packet.to {
        return true;
    }
    allowed(world, pod, packet, packet.to, |policy| policy.egress.as_ref(), false)
}

/// Whether its receiver may receive it.
#[must_use]
pub fn may_enter(world: &World, packet: &Packet) -> bool {
    let Some(pod) = world.pod(packet.to) else { return true };
    if packet.from == packet.to || world.node(packet.from) == Some(pod.node) {
        return true;
    }
    allowed(world, pod, packet, packet.from, |policy| policy.ingress.as_ref(), true)
}

fn allowed(
    world: &World,
    subject: &Pod,
    packet: &Packet,
    other: End,
    rules: impl Fn(&Policy) -> Option<&Vec<Rule>>,
    ingress: bool,
) -> bool {
    let mut isolated = false;
    for policy in &world.policies {
        if policy.name.namespace != subject.name.namespace || !selects(&policy.pod_selector, &subject.labels) {
            continue;
        }
        if let Some(rules) = rules(policy) {
            isolated = true;
            for rule in rules {
                if rule_allows(world, policy, rule, packet, other, ingress) {
                    return true;
                }
            }
        }
    }
    !isolated
}

fn rule_allows(world: &World, policy: &Policy, rule: &Rule, packet: &Packet, other: End, ingress: bool) -> bool {
    let port_fits = |names: bool| match &rule.ports {
        None => true,
        Some(ports) => ports.iter().any(|port| port_matches(world, port, packet, names)),
    };
    match &rule.peers {
        None => port_fits(true),
        Some(peers) => peers.iter().any(|peer| {
            let by_address = matches!(peer, Peer::Block { .. });
            peer_matches(world, policy, peer, packet, other) && port_fits(ingress || !by_address)
        }),
    }
}

fn peer_matches(world: &World, policy: &Policy, peer: &Peer, packet: &Packet, other: End) -> bool {
    match peer {
        Peer::Pods { namespaces, pods } => world.pod(other).is_some_and(|pod| {
            let namespace = &pod.name.namespace;
            let in_scope = match namespaces {
                None => *namespace == policy.name.namespace,
                Some(selector) => selects(selector, &world.namespaces[namespace]),
            };
            in_scope && selects(pods, &pod.labels)
        }),
        Peer::Block { cidr, except } => world
            .address(other, packet.v6)
            .is_some_and(|address| cidr.contains(&address) && !except.iter().any(|except| except.contains(&address))),
    }
}

fn port_matches(world: &World, rule: &PortRule, packet: &Packet, names: bool) -> bool {
    if rule.protocol.number() != packet.protocol {
        return false;
    }
    match &rule.port {
        PortMatch::Any => true,
        PortMatch::Range(first, last) => (*first..=*last).contains(&packet.port),
        PortMatch::Name(name) => {
            names
                && world.pod(packet.to).is_some_and(|pod| {
                    pod.named_ports
                        .iter()
                        .any(|port| port.name == *name && port.protocol == rule.protocol && port.port == packet.port)
                })
        }
    }
}

fn selects(selector: &Selector, labels: &Labels) -> bool {
    for requirement in &selector.requirements {
        let fulfilled = match requirement {
            Requirement::In(key, values) => match labels.get(key) {
                Some(value) => values.contains(value),
                None => false,
            },
            Requirement::NotIn(key, values) => match labels.get(key) {
                Some(value) => !values.contains(value),
                None => true,
            },
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::DoesNotExist(key) => !labels.contains_key(key),
        };
        if !fulfilled {
            return false;
        }
    }
    true
}
