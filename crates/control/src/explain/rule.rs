//! One rule, judged from what was written: does it match, and if not, what does not fit?

use super::{Party, Question};
use crate::policy::{Direction, Engine, pod_numbers};
use weft_model::id::{EndpointId, Identity, PeerScope};
use weft_model::intent::{EndpointSelector, Entity, Peer, PortMatch, PortRule, Protocol, Rule};
use weft_model::label::{LabelSet, is_carried};

/// How a peer was found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Labels,
    Address,
}

/// Whether the rule matches; if not, what does not fit.
pub(super) fn matches(
    engine: &Engine,
    direction: Direction,
    id: EndpointId,
    rule: &Rule,
    peer: &Party,
    q: &Question,
) -> Result<(), String> {
    let by_labels = match &rule.peers {
        None => true,
        Some(peers) => {
            let labels = labels_of(engine, peer.identity);
            let found: Vec<By> = peers.iter().filter_map(|written| selects(written, &labels, peer)).collect();
            if found.is_empty() {
                return Err(nobody(peers, peer, direction));
            }
            found.contains(&By::Labels)
        }
    };
    let Some(ports) = &rule.ports else { return Ok(()) };
    let fits = |port: &PortRule| {
        port.protocol.number() == q.protocol
            && match &port.port {
                PortMatch::Any => true,
                PortMatch::Range(first, last) => !port.protocol.has_ports() || (*first..=*last).contains(&q.port),
                PortMatch::Name(name) => {
                    let name = (port.protocol, name.clone());
                    match direction {
                        Direction::Ingress => engine.own_numbers(id, &name).contains(&q.port),
                        Direction::Egress => {
                            let pods = engine.pods_of(peer.identity).iter();
                            let mut there = pods.filter(|pod| pod.addresses.contains(&peer.address));
                            by_labels && there.any(|pod| pod_numbers(pod, &name).contains(&q.port))
                        }
                    }
                }
            }
    };
    if ports.iter().any(fits) {
        return Ok(());
    }
    let names = ports.iter().any(|port| matches!(port.port, PortMatch::Name(_)));
    let hint = if direction == Direction::Egress && !by_labels && names {
        " (named ports mean nothing behind an address)"
    } else {
        ""
    };
    let list: Vec<String> = ports.iter().map(describe).collect();
    let list = if list.is_empty() { "none".to_owned() } else { list.join(", ") };
    Err(format!("its ports are {list}, not {}{hint}", port_text(q.protocol, q.port)))
}

fn labels_of(engine: &Engine, identity: Identity) -> LabelSet {
    let known = engine.labels(identity).map(|labels| LabelSet::clone(labels));
    known.unwrap_or_else(|| LabelSet::reserved(identity))
}

fn selects(written: &Peer, labels: &LabelSet, peer: &Party) -> Option<By> {
    match written {
        Peer::Endpoints(selector) => (can_be_judged(selector) && selector.matches(labels)).then_some(By::Labels),
        Peer::Entity(entity) => is_of(*entity, labels).then_some(By::Labels),
        Peer::Cidr { cidr, except, covers } => {
            let in_scope = match peer.identity.scope() {
                PeerScope::World => true,
                PeerScope::Node => covers.nodes,
                PeerScope::Pod => covers.pods,
            };
            let there = cidr.contains(&peer.address) && !except.iter().any(|except| except.contains(&peer.address));
            (in_scope && there).then_some(By::Address)
        }
        // Written out before policies are compiled.
        Peer::CidrGroups { .. } | Peer::Services(_) | Peer::Nodes(_) => None,
    }
}

/// Identities do not carry every label of their pods.
fn can_be_judged(selector: &EndpointSelector) -> bool {
    selector.requirements.iter().all(|requirement| is_carried(requirement.key()))
}

fn is_of(entity: Entity, labels: &LabelSet) -> bool {
    let has = |name: &str| labels.get(&format!("reserved:{name}")).is_some();
    match entity {
        Entity::All => true,
        Entity::None | Entity::KubeApiserver => false,
        Entity::World => has("world"),
        Entity::WorldIpv4 => has("world-ipv4"),
        Entity::WorldIpv6 => has("world-ipv6"),
        Entity::Host => has("host"),
        Entity::RemoteNode => has("remote-node"),
        Entity::Ingress => has("ingress"),
        Entity::Health => has("health"),
        Entity::Init => has("init"),
        Entity::Unmanaged => has("unmanaged"),
        Entity::Cluster => !labels.0.is_empty() && !has("world"),
    }
}

fn nobody(peers: &[Peer], peer: &Party, direction: Direction) -> String {
    let verb = match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    if peers.is_empty() {
        return format!("its `{verb}` selects nobody");
    }
    for written in peers {
        if let Peer::Cidr { cidr, except, .. } = written
            && cidr.contains(&peer.address)
        {
            return match except.iter().find(|except| except.contains(&peer.address)) {
                Some(except) => format!("{} is in {cidr} but left out by except {except}", peer.address),
                None => format!("{} is in {cidr}, but prefixes do not match addresses of the cluster", peer.address),
            };
        }
    }
    let who = match peer.identity.reserved_name() {
        Some(name) => format!("{} ({name})", peer.address),
        None => format!("{} (identity {})", peer.address, peer.identity),
    };
    format!("its `{verb}` does not select {who}")
}

/// A protocol's name, or number.
#[must_use]
pub fn protocol_text(protocol: u8) -> String {
    let known = [
        Protocol::Tcp,
        Protocol::Udp,
        Protocol::Sctp,
        Protocol::Icmp,
        Protocol::Icmpv6,
        Protocol::Vrrp,
        Protocol::Igmp,
        Protocol::Gre,
        Protocol::IpIp,
        Protocol::Ipv6,
        Protocol::Esp,
        Protocol::Ah,
    ];
    match known.into_iter().find(|known| known.number() == protocol) {
        Some(Protocol::Icmpv6) => "ICMPv6".to_owned(),
        Some(known) => format!("{known:?}").to_uppercase(),
        None => format!("protocol {protocol}"),
    }
}

fn port_text(protocol: u8, port: u16) -> String {
    match protocol {
        6 | 17 | 132 => format!("{port}/{}", protocol_text(protocol)),
        1 | 58 => format!("{} type {port}", protocol_text(protocol)),
        _ => protocol_text(protocol),
    }
}

fn describe(port: &PortRule) -> String {
    let protocol = protocol_text(port.protocol.number());
    let is_icmp = matches!(port.protocol, Protocol::Icmp | Protocol::Icmpv6);
    match &port.port {
        _ if !port.protocol.has_ports() => protocol,
        PortMatch::Any if is_icmp => format!("every {protocol} message"),
        PortMatch::Any => format!("every {protocol} port"),
        PortMatch::Range(first, _) if is_icmp => format!("{protocol} type {first}"),
        PortMatch::Range(first, last) if first == last => format!("{first}/{protocol}"),
        PortMatch::Range(first, last) => format!("{first}-{last}/{protocol}"),
        PortMatch::Name(name) => format!("{name}/{protocol}"),
    }
}
