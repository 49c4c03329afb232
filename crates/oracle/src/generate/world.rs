//! Random worlds and packets.

use super::policy::policy;
use crate::random::Random;
use crate::world::{End, Labels, Node, Packet, Pod, Service, Settings, World};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;
use weft_model::id::Identity;
use weft_model::intent::{self, CidrGroup, NamedPort, ObjectName, PortMatch, PortRule, Protocol};

pub(super) const NAMESPACES: &[&str] = &["a", "b", "c"];
pub(super) const KEYS: &[&str] = &["app", "tier", "app.kubernetes.io/name"];
pub(super) const VALUES: &[&str] = &["x", "y", "z"];
/// No parts of identities, so only good for choosing subjects.
pub(super) const OWN_KEYS: &[&str] = &["pod-template-hash", "statefulset.kubernetes.io/pod-name"];
/// Labels that a pod may set but that must be ignored.
const FORGED_KEYS: &[&str] =
    &["io.kubernetes.pod.namespace", "io.cilium.k8s.policy.serviceaccount", "io.cilium.k8s.namespace.labels.team"];
/// Labels of namespaces, nodes, Services and CIDR groups.
pub(super) const OTHER_KEYS: &[&str] = &["team", "zone"];
pub(super) const ACCOUNTS: &[&str] = &["default", "robot"];
pub(super) const PORT_NAMES: &[&str] = &["web", "dns"];
const PORTS: &[u16] = &[0, 1, 22, 53, 79, 80, 81, 443, 8000, 8050, 8080, 8100, 9090, 10250, 32767, 32768, 65534, 65535];
const OUTSIDE: &[&str] =
    &["198.51.100.10", "203.0.113.7", "10.1.2.3", "1.2.3.4", "2001:db8:100::10", "fd44:ffff::1", "2600::1", "2600::2"];
pub(super) const PROTOCOLS: &[Protocol] = &[Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
/// Those without ports.
pub(super) const BARE_PROTOCOLS: &[Protocol] =
    &[Protocol::Vrrp, Protocol::Igmp, Protocol::Gre, Protocol::IpIp, Protocol::Ipv6, Protocol::Esp, Protocol::Ah];
/// Types of messages of ICMP and ICMPv6.
pub(super) const ICMP_TYPES: &[u16] = &[0, 3, 8, 128, 129, 135, 255];

/// The name of a namespace, often one that has pods.
pub(super) fn namespace(random: &mut Random, world: &World) -> String {
    match pick_of(random, &world.pods) {
        Some(pod) if random.chance(70) => pod.namespace.clone(),
        _ => (*random.pick(NAMESPACES)).to_owned(),
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("a literal address")
}

/// Labels with some of `keys`, each with `percent` of 100.
pub(super) fn labels(random: &mut Random, keys: &[&str], percent: usize) -> Labels {
    let keys = random.some(keys, percent);
    keys.iter().map(|key| ((*key).to_owned(), (*random.pick(VALUES)).to_owned())).collect()
}

/// Random labels of a pod.
pub fn pod_labels(random: &mut Random) -> Labels {
    let mut all = labels(random, KEYS, 60);
    all.extend(labels(random, OWN_KEYS, 30));
    if random.chance(10) {
        let value = *random.pick(&["a", "b", "x", "robot"]);
        all.insert((*random.pick(FORGED_KEYS)).to_owned(), value.to_owned());
    }
    all
}

/// Random labels of a namespace, with the one that the API server sets.
pub fn namespace_labels(random: &mut Random, name: &str) -> Labels {
    let mut all = labels(random, &["team"], 60);
    all.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
    all
}

/// Random named ports.
pub fn named_ports(random: &mut Random) -> Vec<NamedPort> {
    let names = random.some(PORT_NAMES, 50);
    let port = |name: &&str| {
        let (protocol, port) = (*random.pick(PROTOCOLS), *random.pick(&[80, 8080, 53, 9090]));
        NamedPort { name: (*name).to_owned(), protocol, port }
    };
    names.iter().map(port).collect()
}

/// A world: nodes, namespaces, pods, Services, groups, policies.
#[must_use]
pub fn world(random: &mut Random) -> World {
    let settings = Settings { host_firewall: !random.chance(15), dual_stack: !random.chance(15) };
    let mut world = World { settings, ..World::default() };
    for name in NAMESPACES {
        world.namespaces.insert((*name).to_owned(), namespace_labels(random, name));
    }
    for n in 1..=2 + random.below(2) {
        let addresses = both(random, settings, ip(&format!("172.31.0.{}", 10 + n)), ip(&format!("fd31::{}", 10 + n)));
        world.nodes.push(Node { name: format!("node-{n}"), labels: labels(random, OTHER_KEYS, 50), addresses });
    }
    for n in 0..2 + random.below(5) {
        let pod = pod(random, &world, n);
        world.pods.push(pod);
    }
    for address in OUTSIDE.iter().map(|text| ip(text)).filter(|address| settings.dual_stack || address.is_ipv4()) {
        if random.chance(40) {
            world.outside.push(address);
        }
    }
    world.api_server = api_server(random, &world);
    for n in 0..1 + random.below(2) {
        let service = service(random, &world, n);
        world.services.push(service);
    }
    for n in 0..1 + random.below(2) {
        let group = cidr_group(random, &world, n);
        world.cidr_groups.push(group);
    }
    for n in 0..*random.pick(&[0, 1, 2, 2, 3, 4, 5, 6, 7]) {
        let policy = policy(random, &world, n);
        world.policies.push(policy);
    }
    world
}

fn both(random: &mut Random, settings: Settings, v4: IpAddr, v6: IpAddr) -> Vec<IpAddr> {
    match random.below(20) {
        _ if !settings.dual_stack => vec![v4],
        0 => vec![v4],
        1 => vec![v6, v4],
        _ => vec![v4, v6],
    }
}

/// A pod for `world`, number `n` by name and address.
pub fn pod(random: &mut Random, world: &World, n: usize) -> Pod {
    let node = if random.chance(60) { 0 } else { random.below(world.nodes.len()) };
    let host_network = random.chance(8);
    let (v4, v6) = (ip(&format!("10.244.{node}.{}", n + 2)), ip(&format!("fd44:0:0:{node}::{:x}", n + 2)));
    let addresses =
        if host_network { world.nodes[node].addresses.clone() } else { both(random, world.settings, v4, v6) };
    // Often the labels of another pod, so that identities have several.
    let like = (!world.pods.is_empty() && random.chance(40)).then(|| random.pick(&world.pods));
    let namespace = like.map_or_else(|| namespace(random, world), |pod| pod.namespace.clone());
    let labels = like.map_or_else(|| pod_labels(random), |pod| pod.labels.clone());
    let service_account = like.map_or_else(|| (*random.pick(ACCOUNTS)).to_owned(), |pod| pod.service_account.clone());
    let reserved = (!host_network && random.chance(8)).then(|| reserved(random));
    let named_ports = if reserved.is_some() { Vec::new() } else { named_ports(random) };
    let name = format!("pod-{n}");
    Pod { namespace, name, labels, service_account, node, addresses, host_network, named_ports, reserved }
}

/// Unknown, unmanaged, health, init, ingress.
pub(super) fn reserved(random: &mut Random) -> Identity {
    Identity::from_raw(*random.pick(&[0, 3, 4, 5, 8]))
}

pub(super) fn api_server(random: &mut Random, world: &World) -> Vec<IpAddr> {
    match random.below(10) {
        0..4 => world.nodes[random.below(world.nodes.len())].addresses.clone(),
        4..6 if !world.outside.is_empty() => vec![*random.pick(&world.outside)],
        6 => vec![any_address(random, world)],
        _ => Vec::new(),
    }
}

pub(super) fn service(random: &mut Random, world: &World, n: usize) -> Service {
    let mut name = ObjectName { namespace: namespace(random, world), name: format!("service-{n}") };
    // Those of a pod, or any.
    let mut selector = match pick_of(random, &world.pods) {
        Some(pod) if random.chance(40) => {
            name.namespace.clone_from(&pod.namespace);
            pod.labels.iter().filter(|(key, _)| KEYS.contains(&key.as_str())).take(1).map(owned).collect()
        }
        _ if random.chance(40) => labels(random, KEYS, 50),
        _ => BTreeMap::new(),
    };
    let mut addresses = (0..random.below(3)).map(|_| any_address(random, world)).collect();
    if n == 0 && random.chance(20) {
        name = ObjectName { namespace: "default".to_owned(), name: "kubernetes".to_owned() };
        selector = BTreeMap::new();
        addresses = world.api_server.clone();
    }
    Service {
        object: intent::Service { name, labels: labels(random, OTHER_KEYS, 50), selector, ..Default::default() },
        addresses,
    }
}

fn owned((key, value): (&String, &String)) -> (String, String) {
    (key.clone(), value.clone())
}

pub(super) fn cidr_group(random: &mut Random, world: &World, n: usize) -> CidrGroup {
    let cidrs = (0..random.below(3)).map(|_| cidr(random, world)).collect();
    CidrGroup { name: format!("group-{n}"), labels: labels(random, OTHER_KEYS, 50), cidrs }
}

/// A prefix around an address in or outside the world.
pub(super) fn cidr(random: &mut Random, world: &World) -> IpNet {
    let address = any_address(random, world);
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let len = match random.below(6) {
        0 => 0,
        1 | 2 => bits,
        3 => bits / 2,
        4 => bits - 8,
        _ => random.below(bits + 1),
    };
    net(address, len)
}

pub(super) fn net(address: IpAddr, len: usize) -> IpNet {
    let len = u8::try_from(len).expect("at most 128");
    IpNet::new(address, len).expect("at most the family's bits").trunc()
}

/// An address in or outside the world.
pub fn any_address(random: &mut Random, world: &World) -> IpAddr {
    let inside: Vec<IpAddr> = world
        .pods
        .iter()
        .flat_map(|pod| &pod.addresses)
        .chain(world.nodes.iter().flat_map(|node| &node.addresses))
        .copied()
        .collect();
    match random.below(100) {
        0..30 if !world.outside.is_empty() => *random.pick(&world.outside),
        0..40 => ip(random.pick::<&str>(OUTSIDE)),
        _ if inside.is_empty() => ip(OUTSIDE[0]),
        _ => *random.pick(&inside),
    }
}

/// A packet between two ends of `world`, `None` if the dice gave two that can not talk.
pub fn packet(random: &mut Random, world: &World) -> Option<Packet> {
    let v6 = world.settings.dual_stack && random.chance(50);
    let (from, to) = (end(random, world)?, end(random, world)?);
    world.address(from, v6)?;
    world.address(to, v6)?;
    let (protocol, port) = traffic(random, world, to, v6);
    Some(Packet { from, to, v6, protocol, port })
}

fn end(random: &mut Random, world: &World) -> Option<End> {
    match random.below(100) {
        0..70 if !world.pods.is_empty() => Some(End::Pod(random.below(world.pods.len()))),
        0..85 => Some(End::Node(random.below(world.nodes.len()))),
        _ if world.outside.is_empty() => None,
        _ => Some(End::World(*random.pick(&world.outside))),
    }
}

/// Protocol and port of a packet to `to`: often such that a rule names it, or nearly.
pub fn traffic(random: &mut Random, world: &World, to: End, v6: bool) -> (u8, u16) {
    let names = if let End::Pod(to) = to { world.pods[to].named_ports.as_slice() } else { &[] };
    if !names.is_empty() && random.chance(25) {
        let named = random.pick(names);
        return (named.protocol.number(), named.port);
    }
    if random.chance(60)
        && let Some(rule) = some_port(random, world)
    {
        let (PortMatch::Range(first, last), protocol) = (&rule.port, rule.protocol) else {
            return (rule.protocol.number(), if rule.protocol.has_ports() { *random.pick(ICMP_TYPES) } else { 0 });
        };
        let port = match random.below(6) {
            0 => first.saturating_sub(1),
            1 => last.saturating_add(1),
            2 => *last,
            _ => *first,
        };
        return (protocol.number(), if protocol.number() == 1 || protocol.number() == 58 { port & 255 } else { port });
    }
    match random.below(10) {
        0 | 1 => (if v6 { 58 } else { 1 }, *random.pick(ICMP_TYPES)),
        2 => (random.pick(BARE_PROTOCOLS).number(), 0),
        _ => (random.pick(PROTOCOLS).number(), port(random)),
    }
}

fn some_port<'a>(random: &mut Random, world: &'a World) -> Option<&'a PortRule> {
    let policy = pick_of(random, &world.policies)?;
    let spec = pick_of(random, &policy.specs)?;
    let rules = if random.chance(50) { &spec.ingress } else { &spec.egress };
    let rule = pick_of(random, rules)?;
    pick_of(random, rule.ports.as_ref()?)
}

pub(super) fn pick_of<'a, T>(random: &mut Random, items: &'a [T]) -> Option<&'a T> {
    (!items.is_empty()).then(|| random.pick(items))
}

pub(super) fn port(random: &mut Random) -> u16 {
    match random.below(6) {
        0 => u16::try_from(random.bits() & 0xffff).expect("16 bits"),
        _ => *random.pick(PORTS),
    }
}
