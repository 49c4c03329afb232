//! Random worlds and packets from a seed, small enough that rules, peers and ports meet often.

use super::{End, Node, Packet, Pod, World};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use weft_model::intent::{NamedPort, ObjectName, Peer, Policy, PortMatch, PortRule, Protocol, Rule};
use weft_model::selector::{Requirement, Selector};

/// A small generator of pseudo-random numbers (splitmix64): the same seed gives the same numbers everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of `0..n`; 0 if there is none.
    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.bits() % (n.max(1) as u64)).expect("less than a usize")
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of `items`, which are some.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    fn port(&mut self) -> u16 {
        match self.below(4) {
            0 => u16::try_from(self.bits() & 0xffff).expect("16 bits"),
            _ => *self.pick(PORTS),
        }
    }
}

const NAMESPACES: &[&str] = &["a", "b", "c"];
const KEYS: &[&str] = &["app", "tier", "app.kubernetes.io/name"];
const VALUES: &[&str] = &["x", "y", "z"];
/// No part of identities, so only good for choosing subjects.
const OWN_KEY: &str = "pod-template-hash";
const PORT_NAMES: &[&str] = &["web", "dns", "metrics"];
const PORTS: &[u16] = &[0, 1, 53, 79, 80, 81, 443, 8000, 8050, 8080, 8100, 9090, 32767, 32768, 65534, 65535];
const OUTSIDE: &[&str] =
    &["198.51.100.10", "203.0.113.7", "10.1.2.3", "1.2.3.4", "2001:db8:100::10", "fd44:ffff::1", "2600::1"];
const PROTOCOLS: &[Protocol] = &[Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

fn owned(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
    labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// Random labels of a pod.
pub fn pod_labels(random: &mut Random) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    for key in KEYS.iter().chain([&OWN_KEY]) {
        if random.chance(60) {
            labels.insert((*key).to_owned(), (*random.pick(VALUES)).to_owned());
        }
    }
    labels
}

/// Random labels of a namespace, with the one that the API server sets.
pub fn namespace_labels(random: &mut Random, name: &str) -> BTreeMap<String, String> {
    let mut labels = owned(&[("kubernetes.io/metadata.name", name)]);
    if random.chance(60) {
        labels.insert("team".to_owned(), (*random.pick(VALUES)).to_owned());
    }
    labels
}

/// Random named ports.
pub fn named_ports(random: &mut Random) -> Vec<NamedPort> {
    let mut ports = Vec::new();
    for name in PORT_NAMES {
        if random.chance(50) {
            let (protocol, port) = (*random.pick(PROTOCOLS), *random.pick(&[80, 8080, 53, 9090]));
            ports.push(NamedPort { name: (*name).to_owned(), protocol, port });
        }
    }
    ports
}

/// A world: nodes, namespaces, pods, policies.
#[must_use]
pub fn world(random: &mut Random) -> World {
    let mut world = World::default();
    for name in NAMESPACES {
        world.namespaces.insert((*name).to_owned(), namespace_labels(random, name));
    }
    for n in 1..=2 + random.below(2) {
        let addresses = vec![ip(&format!("172.31.0.{}", 10 + n)), ip(&format!("fd31::{}", 10 + n))];
        world.nodes.push(Node { name: format!("node-{n}"), addresses });
    }
    for n in 0..3 + random.below(8) {
        let pod = pod(random, &world, n);
        world.pods.push(pod);
    }
    for n in 0..random.below(11) {
        let policy = policy(random, &world, n);
        world.policies.push(policy);
    }
    world
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("a literal address")
}

/// A pod for `world`, number `n` by name and address.
pub fn pod(random: &mut Random, world: &World, n: usize) -> Pod {
    let node = random.below(world.nodes.len());
    let host_network = random.chance(8);
    let (v4, v6) = (ip(&format!("10.244.{node}.{}", n + 2)), ip(&format!("fd44:0:0:{node}::{:x}", n + 2)));
    let addresses = if host_network { world.nodes[node].addresses.clone() } else { vec![v4, v6] };
    // Often the labels of another pod, so that identities have several.
    let like = (!world.pods.is_empty() && random.chance(40)).then(|| random.pick(&world.pods));
    let namespace = like.map_or_else(|| (*random.pick(NAMESPACES)).to_owned(), |pod| pod.name.namespace.clone());
    let labels = like.map_or_else(|| pod_labels(random), |pod| pod.labels.clone());
    let named_ports = named_ports(random);
    Pod { name: ObjectName { namespace, name: format!("pod-{n}") }, labels, node, addresses, host_network, named_ports }
}

/// A policy for `world`, number `n` by name.
pub fn policy(random: &mut Random, world: &World, n: usize) -> Policy {
    let types = random.below(3);
    let mut rules = |on: bool| {
        on.then(|| {
            let count = random.below(4);
            (0..count).map(|_| rule(random, world)).collect::<Vec<_>>()
        })
    };
    let (ingress, egress) = (rules(types != 1), rules(types != 0));
    Policy {
        kind: "NetworkPolicy",
        name: ObjectName { namespace: (*random.pick(NAMESPACES)).to_owned(), name: format!("policy-{n}") },
        uid: format!("policy-uid-{n}"),
        resource_version: random.bits().to_string(),
        pod_selector: selector(random, &[KEYS, &[OWN_KEY]].concat(), 30),
        ingress,
        egress,
    }
}

/// A rule.
fn rule(random: &mut Random, world: &World) -> Rule {
    let peers = (!random.chance(15)).then(|| {
        let count = random.below(4);
        (0..count).map(|_| peer(random, world)).collect()
    });
    let ports = (!random.chance(30)).then(|| {
        let count = 1 + random.below(3);
        (0..count).map(|_| port_rule(random)).collect()
    });
    Rule { peers, ports }
}

fn peer(random: &mut Random, world: &World) -> Peer {
    if random.chance(35) {
        return block(random, world);
    }
    let pods = selector(random, KEYS, 30);
    let namespaces = random.chance(50).then(|| {
        if random.chance(40) {
            let name = (*random.pick(NAMESPACES)).to_owned();
            let key = "kubernetes.io/metadata.name".to_owned();
            Selector { requirements: vec![Requirement::In(key, BTreeSet::from([name]))] }
        } else {
            selector(random, &["team"], 40)
        }
    });
    Peer::Pods { namespaces, pods }
}

fn block(random: &mut Random, world: &World) -> Peer {
    let address = any_address(random, world);
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let len = match random.below(6) {
        0 => 0,
        1 => bits,
        2 => bits / 2,
        3 => bits - 8,
        _ => random.below(bits + 1),
    };
    let cidr = net(address, len);
    let mut except = Vec::new();
    for _ in 0..random.below(3) {
        let inside = any_address(random, world);
        if cidr.contains(&inside) && len < bits {
            except.push(net(inside, len + 1 + random.below(bits - len)));
        }
    }
    Peer::Block { cidr, except }
}

fn net(address: IpAddr, len: usize) -> IpNet {
    let len = u8::try_from(len).expect("at most 128");
    IpNet::new(address, len).expect("at most the family's bits").trunc()
}

/// The address of somebody in or outside the world.
pub fn any_address(random: &mut Random, world: &World) -> IpAddr {
    let inside: Vec<IpAddr> = world
        .pods
        .iter()
        .flat_map(|pod| &pod.addresses)
        .chain(world.nodes.iter().flat_map(|node| &node.addresses))
        .copied()
        .collect();
    if inside.is_empty() || random.chance(40) { ip(random.pick::<&str>(OUTSIDE)) } else { *random.pick(&inside) }
}

fn port_rule(random: &mut Random) -> PortRule {
    let protocol = *random.pick(PROTOCOLS);
    let port = match random.below(5) {
        0 => PortMatch::Any,
        1 | 2 => PortMatch::Name((*random.pick(PORT_NAMES)).to_owned()),
        3 => {
            let (one, other) = (random.port(), random.port());
            PortMatch::Range(one.min(other), one.max(other))
        }
        _ => {
            let port = random.port();
            PortMatch::Range(port, port)
        }
    };
    PortRule { protocol, port }
}

/// A selector on `keys`, empty in `empty` of 100 cases.
fn selector(random: &mut Random, keys: &[&str], empty: usize) -> Selector {
    let mut requirements = Vec::new();
    if !random.chance(empty) {
        for _ in 0..=random.below(2) {
            let key = (*random.pick(keys)).to_owned();
            let mut one = BTreeSet::from([(*random.pick(VALUES)).to_owned()]);
            let other = (*random.pick(VALUES)).to_owned();
            requirements.push(match random.below(8) {
                0..4 => Requirement::In(key, one),
                4 => {
                    one.insert(other);
                    Requirement::In(key, one)
                }
                5 => Requirement::NotIn(key, one),
                6 => Requirement::Exists(key),
                _ => Requirement::DoesNotExist(key),
            });
        }
    }
    Selector { requirements }
}

/// A packet between two ends of `world`, `None` if the dice gave two that can not talk.
pub fn packet(random: &mut Random, world: &World) -> Option<Packet> {
    let v6 = random.chance(50);
    let (from, to) = (end(random, world, 75), end(random, world, 75));
    world.address(from, v6)?;
    world.address(to, v6)?;
    let (protocol, port) = match random.below(8) {
        0 => (if v6 { 58 } else { 1 }, 0),
        n => {
            // Often a port that the receiver has a name for.
            let names = if let End::Pod(to) = to { world.pods[to].named_ports.as_slice() } else { &[] };
            if !names.is_empty() && random.chance(40) {
                let named = random.pick(names);
                (named.protocol.number(), named.port)
            } else {
                (PROTOCOLS[n % 3].number(), random.port())
            }
        }
    };
    Some(Packet { from, to, v6, protocol, port })
}

fn end(random: &mut Random, world: &World, pods: usize) -> End {
    if !world.pods.is_empty() && random.chance(pods) {
        return End::Pod(random.below(world.pods.len()));
    }
    if random.chance(40) {
        return End::Node(random.below(world.nodes.len()));
    }
    End::World(ip(random.pick::<&str>(OUTSIDE)))
}
