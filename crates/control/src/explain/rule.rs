//! Evaluates one rule as written: whether it matches a connection, and if not, which part of it does not.

use super::question::{Party, Question};
use crate::policy::{Direction, Engine, PeerSelector, pod_numbers};
use ipnet::IpNet;
use weft_model::id::{EndpointId, Identity, PeerScope};
use weft_model::intent::{Peer, PortMatch, PortRule, Protocol, Rule};
use weft_model::label::LabelSet;

/// What of a peer a rule matched.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Labels,
    Address,
}

/// Whether the rule matches; if not, a text on what does not.
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
                return Err(no_peer_matches(peers, peer, direction));
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
        " (named ports do not apply to peers that are matched by CIDR)"
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
    // `Err`: the peer matches nothing, which is a problem of the policy object and reported there.
    let selector = PeerSelector::new(written).ok().flatten()?;
    if selector.matches(labels) {
        return Some(By::Labels);
    }
    selector.holds(&IpNet::from(peer.address), peer.identity.scope()).then_some(By::Address)
}

fn no_peer_matches(peers: &[Peer], peer: &Party, direction: Direction) -> String {
    let verb = match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    if peers.is_empty() {
        return format!("its `{verb}` selects no peer");
    }
    for written in peers {
        if let Peer::Cidr { cidr, except, .. } = written
            && cidr.contains(&peer.address)
        {
            return match except.iter().find(|except| except.contains(&peer.address)) {
                Some(except) => format!("{} is in {cidr}, but excluded by except {except}", peer.address),
                None => {
                    let kind = if peer.identity.scope() == PeerScope::Node { "nodes" } else { "pods" };
                    format!("{} is in {cidr}, but this CIDR rule does not match {kind} of the cluster", peer.address)
                }
            };
        }
    }
    let who = match peer.identity.reserved_name() {
        Some(name) => format!("{} ({name})", peer.address),
        None => format!("{} (identity {})", peer.address, peer.identity),
    };
    format!("its `{verb}` does not select {who}")
}

/// `TCP`, `ICMPv6`, `protocol 99`.
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
