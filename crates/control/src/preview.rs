//! Previews a change of policies: compares the engine in force with a copy that has the change applied.
//!
//! Every pair of a local endpoint and a peer is compared at every port where an entry of either version of the endpoint's
//! policy begins or ends. Peers that no policy distinguishes are compared once.

use crate::explain::{Evaluation, Party, Question, evaluate, protocol_text};
use crate::policy::{Direction, Engine};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use weft_model::desired::PortPrefix;
use weft_model::id::{EndpointId, Identity, PeerClass, PolicyId, RuleId};

/// A pod, node or prefix that local endpoints may talk to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerInfo {
    /// For display: `namespace/pod`, a node, a prefix.
    pub name: String,
    /// Set for an endpoint of this node.
    pub endpoint: Option<EndpointId>,
    pub identity: Identity,
    pub addresses: Vec<IpAddr>,
}

/// An endpoint and a peer whose verdicts would change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pair {
    /// From the endpoint's point of view.
    pub direction: Direction,
    pub endpoint: EndpointId,
    /// Index into the peers.
    pub peer: usize,
    /// Protocol, first and last port. Protocol 0: every protocol that no policy mentions.
    pub ports: Vec<(u8, u16, u16)>,
    /// The rule that would decide at the first of the ports.
    pub rule: Option<RuleId>,
}

/// What would change.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Allowed in force, denied after the change.
    pub denied: Vec<Pair>,
    /// Denied in force, allowed after the change.
    pub allowed: Vec<Pair>,
}

/// Everything that policies can distinguish about a peer, per address in both engines.
type Signature = Vec<[(Option<PeerClass>, Option<Identity>); 2]>;

/// Compares all pairs of local endpoints and `peers`.
#[must_use]
pub fn compare(before: &Engine, after: &Engine, peers: &[PeerInfo]) -> Changes {
    let mut alike: BTreeMap<(Identity, Signature), Vec<usize>> = BTreeMap::new();
    for (n, peer) in peers.iter().enumerate() {
        let seen = |engine: &Engine, address: IpAddr| (engine.peer_class(peer.identity), engine.prefix_of(address));
        let signature = peer.addresses.iter().map(|address| [seen(before, *address), seen(after, *address)]).collect();
        // Named ports are part of the class, so identities of one class differ only in exemptions, which concern reserved
        // identities.
        let identity = if peer.identity.reserved_name().is_some() { peer.identity } else { Identity::UNKNOWN };
        alike.entry((identity, signature)).or_default().push(n);
    }
    let mut changes = Changes::default();
    for id in before.endpoint_ids().filter(|id| after.endpoint(*id).is_some()) {
        for direction in [Direction::Ingress, Direction::Egress] {
            if is_same(before, after, id, direction) {
                continue;
            }
            let ranges = ranges(before, after, id, direction);
            for group in alike.values() {
                // An exempt peer, such as the endpoint itself, does not represent others with its signature.
                let mut asked = group.iter().filter(|n| !is_exempt(direction, id, &peers[**n])).peekable();
                let Some(model) = asked.peek().map(|n| &peers[**n]) else { continue };
                let (denied, allowed) = differences(before, after, direction, id, model, &ranges);
                for (list, (ports, rule)) in [(&mut changes.denied, denied), (&mut changes.allowed, allowed)] {
                    if ports.is_empty() {
                        continue;
                    }
                    let pair = |n: &usize| Pair { direction, endpoint: id, peer: *n, ports: ports.clone(), rule };
                    list.extend(asked.clone().map(pair));
                }
            }
        }
    }
    changes
}

/// Compares the verdicts on one connection: allowed in force, allowed after the change, and the rule that changes it.
#[must_use]
pub fn compare_one(before: &Engine, after: &Engine, question: &Question) -> Option<(bool, bool, Option<RuleId>)> {
    let sides = [(Direction::Egress, question.from, question.to), (Direction::Ingress, question.to, question.from)];
    let (mut was, mut will, mut rule, mut ours) = (true, true, None, false);
    for (direction, subject, peer) in sides {
        let Some(id) = subject.endpoint else { continue };
        let ask = |engine| evaluate(engine, direction, id, &peer, question.protocol, question.port);
        let (Some(then), Some(now)) = (ask(after), ask(before)) else { continue };
        ours = true;
        was &= now.allows();
        if will && now.allows() != then.allows() {
            rule = rule_of(&then);
        }
        will &= then.allows();
    }
    ours.then_some((was, will, rule))
}

fn policy_of(engine: &Engine, id: EndpointId, direction: Direction) -> Option<PolicyId> {
    let now = engine.endpoint(id).filter(|now| now.blocked.is_none())?;
    Some(match direction {
        Direction::Ingress => now.ingress,
        Direction::Egress => now.egress,
    })
}

/// Both engines have the same resolved policy: nothing to compare.
fn is_same(before: &Engine, after: &Engine, id: EndpointId, direction: Direction) -> bool {
    match (policy_of(before, id, direction), policy_of(after, id, direction)) {
        (Some(PolicyId::OPEN), Some(PolicyId::OPEN)) => true,
        // The rules of a policy number never change, and peers change class only with their labels.
        (Some(old), Some(new)) => old == new,
        (old, new) => old == new,
    }
}

/// Per protocol, the port ranges within which neither version changes its verdict.
fn ranges(before: &Engine, after: &Engine, id: EndpointId, direction: Direction) -> BTreeMap<u8, Vec<(u16, u16)>> {
    let mut starts: BTreeMap<u8, BTreeSet<u32>> = BTreeMap::new();
    for engine in [before, after] {
        let policy = policy_of(engine, id, direction).filter(|policy| *policy != PolicyId::OPEN);
        let Some(compiled) = policy.and_then(|policy| engine.compiled(policy)) else { continue };
        for PortPrefix { protocol, port, prefix_len } in compiled.entries.keys().map(|(_, prefix)| *prefix) {
            let starts = starts.entry(protocol).or_default();
            starts.insert(u32::from(port));
            starts.insert(u32::from(port) + (0x1_0000 >> prefix_len.min(16)));
        }
    }
    starts.entry(0).or_default();
    let split = |(protocol, mut starts): (u8, BTreeSet<u32>)| {
        // One probe represents all protocols that no policy mentions.
        if protocol == 0 {
            return (0, vec![(0, u16::MAX)]);
        }
        starts.insert(0);
        starts.insert(0x1_0000);
        let bounds: Vec<u32> = starts.into_iter().collect();
        let port = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        (protocol, bounds.windows(2).map(|pair| (port(pair[0]), port(pair[1] - 1))).collect())
    };
    starts.into_iter().map(split).collect()
}

type Found = (Vec<(u8, u16, u16)>, Option<RuleId>);

fn differences(
    before: &Engine,
    after: &Engine,
    direction: Direction,
    id: EndpointId,
    peer: &PeerInfo,
    ranges: &BTreeMap<u8, Vec<(u16, u16)>>,
) -> (Found, Found) {
    let (mut denied, mut allowed): (Found, Found) = ((Vec::new(), None), (Vec::new(), None));
    // A protocol that no policy mentions.
    let unmentioned = (1..=u8::MAX).rev().find(|protocol| !ranges.contains_key(protocol)).unwrap_or(u8::MAX);
    for (protocol, ports) in ranges {
        for (first, last) in ports {
            for address in &peer.addresses {
                let party = Party { endpoint: peer.endpoint, identity: peer.identity, address: *address };
                let asked = if *protocol == 0 { unmentioned } else { *protocol };
                let ask = |engine: &Engine| evaluate(engine, direction, id, &party, asked, *first);
                let (Some(now), Some(then)) = (ask(before), ask(after)) else { continue };
                if now.allows() == then.allows() {
                    continue;
                }
                let (ports, rule) = if now.allows() { &mut denied } else { &mut allowed };
                if ports.is_empty() {
                    *rule = rule_of(&then);
                }
                match ports.last_mut() {
                    // The same range at another address of the peer.
                    Some((same, _, end)) if same == protocol && *end == *last => {}
                    Some((same, _, end)) if same == protocol && u32::from(*end) + 1 == u32::from(*first) => {
                        *end = *last
                    }
                    _ => ports.push((*protocol, *first, *last)),
                }
            }
        }
    }
    (denied, allowed)
}

fn rule_of(evaluation: &Evaluation) -> Option<RuleId> {
    match evaluation {
        Evaluation::Entry(verdict) => Some(verdict.rule),
        _ => None,
    }
}

/// Whether policies are not consulted for this pair.
fn is_exempt(direction: Direction, id: EndpointId, peer: &PeerInfo) -> bool {
    peer.endpoint == Some(id)
        || id == EndpointId::HOST && direction == Direction::Egress && peer.endpoint.is_some()
        || id != EndpointId::HOST && direction == Direction::Ingress && peer.endpoint == Some(EndpointId::HOST)
}

/// `80/TCP`, `8000-8100/UDP`, `TCP`, `anything else`.
#[must_use]
pub fn ports_text((protocol, first, last): (u8, u16, u16)) -> String {
    if protocol == 0 {
        return "anything else".to_owned();
    }
    let name = protocol_text(protocol);
    let is_icmp = matches!(protocol, 1 | 58);
    match (first, last) {
        (0, u16::MAX) => name,
        (first, last) if is_icmp && first == last => format!("{name} type {first}"),
        (first, last) if is_icmp => format!("{name} types {first}-{last}"),
        (first, last) if first == last => format!("{first}/{name}"),
        (first, last) => format!("{first}-{last}/{name}"),
    }
}
