//! What a change of policies would do, told before it is made: the engine of now beside one that has the change.
//!
//! Every pair of a local endpoint and a peer is compared at every port at which either version of the endpoint's
//! policy begins or ends to say something. Peers that no policy tells apart are compared once.

use crate::explain::{Judgement, Party, Question, judge, protocol_text};
use crate::policy::{Direction, Engine};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use weft_model::desired::PortPrefix;
use weft_model::id::{EndpointId, Identity, PeerClass, PolicyId, RuleId};

/// Somebody whom endpoints may talk to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// For people: `namespace/pod`, a node, a prefix.
    pub name: String,
    /// Its number, if it is an endpoint of this node.
    pub endpoint: Option<EndpointId>,
    /// Its identity.
    pub identity: Identity,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// An endpoint and a peer between whom something would change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pair {
    /// As the endpoint sees it.
    pub direction: Direction,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Which of the peers.
    pub peer: usize,
    /// Where: protocol, first and last port. Protocol 0: whatever the policies do not mention.
    pub ports: Vec<(u8, u16, u16)>,
    /// The rule that would decide, at the first of them.
    pub rule: Option<RuleId>,
}

/// What would change.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Could talk, and could not any more.
    pub denied: Vec<Pair>,
    /// The other way round.
    pub allowed: Vec<Pair>,
}

/// What policies can tell apart of a peer, in both engines.
type Likeness = Vec<[(Option<PeerClass>, Option<Identity>); 2]>;

/// Compares all pairs of local endpoints and `peers`.
#[must_use]
pub fn compare(before: &Engine, after: &Engine, peers: &[Peer]) -> Changes {
    let mut alike: BTreeMap<(Identity, Likeness), Vec<usize>> = BTreeMap::new();
    for (n, peer) in peers.iter().enumerate() {
        let seen = |engine: &Engine, address: IpAddr| (engine.peer_class(peer.identity), engine.prefix_of(address));
        let likeness = peer.addresses.iter().map(|address| [seen(before, *address), seen(after, *address)]).collect();
        // Identities of one class can differ by the ports that have names, which is part of the class; and by what is
        // exempt, which the identity tells.
        let identity = if peer.identity.reserved_name().is_some() { peer.identity } else { Identity::UNKNOWN };
        alike.entry((identity, likeness)).or_default().push(n);
    }
    let mut changes = Changes::default();
    for id in before.endpoint_ids().filter(|id| after.endpoint(*id).is_some()) {
        for direction in [Direction::Ingress, Direction::Egress] {
            if is_same(before, after, id, direction) {
                continue;
            }
            let points = points(before, after, id, direction);
            for group in alike.values() {
                // Whoever is exempt, such as the endpoint itself, says nothing of those that are like it.
                let mut asked = group.iter().filter(|n| !is_exempt(direction, id, &peers[**n])).peekable();
                let Some(model) = asked.peek().map(|n| &peers[**n]) else { continue };
                let (denied, allowed) = differences(before, after, direction, id, model, &points);
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

/// One verdict of now and one of then.
#[must_use]
pub fn compare_one(before: &Engine, after: &Engine, question: &Question) -> Option<(bool, bool, Option<RuleId>)> {
    let sides = [(Direction::Egress, question.from, question.to), (Direction::Ingress, question.to, question.from)];
    let (mut was, mut will, mut rule, mut ours) = (true, true, None, false);
    for (direction, subject, peer) in sides {
        let Some(id) = subject.endpoint else { continue };
        let ask = |engine| judge(engine, direction, id, &peer, question.protocol, question.port);
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

/// The very same policy, peers of the same classes included: nothing to compare.
fn is_same(before: &Engine, after: &Engine, id: EndpointId, direction: Direction) -> bool {
    match (policy_of(before, id, direction), policy_of(after, id, direction)) {
        (Some(PolicyId::OPEN), Some(PolicyId::OPEN)) => true,
        // A resolved policy never changes its rules; peers move only as their labels do.
        (Some(old), Some(new)) => old == new,
        (old, new) => old == new,
    }
}

/// Protocol -> first and last port of each stretch in which neither version changes its mind.
fn points(before: &Engine, after: &Engine, id: EndpointId, direction: Direction) -> BTreeMap<u8, Vec<(u16, u16)>> {
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
    let stretches = |(protocol, mut starts): (u8, BTreeSet<u32>)| {
        // Of a protocol that nobody mentions one packet says all.
        if protocol == 0 {
            return (0, vec![(0, u16::MAX)]);
        }
        starts.insert(0);
        starts.insert(0x1_0000);
        let bounds: Vec<u32> = starts.into_iter().collect();
        let port = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        (protocol, bounds.windows(2).map(|pair| (port(pair[0]), port(pair[1] - 1))).collect())
    };
    starts.into_iter().map(stretches).collect()
}

type Found = (Vec<(u8, u16, u16)>, Option<RuleId>);

fn differences(
    before: &Engine,
    after: &Engine,
    direction: Direction,
    id: EndpointId,
    peer: &Peer,
    points: &BTreeMap<u8, Vec<(u16, u16)>>,
) -> (Found, Found) {
    let (mut denied, mut allowed): (Found, Found) = ((Vec::new(), None), (Vec::new(), None));
    // A protocol that no policy mentions.
    let unmentioned = (1..=u8::MAX).rev().find(|protocol| !points.contains_key(protocol)).unwrap_or(u8::MAX);
    for (protocol, stretches) in points {
        for (first, last) in stretches {
            for address in &peer.addresses {
                let party = Party { endpoint: peer.endpoint, identity: peer.identity, address: *address };
                let asked = if *protocol == 0 { unmentioned } else { *protocol };
                let ask = |engine: &Engine| judge(engine, direction, id, &party, asked, *first);
                let (Some(now), Some(then)) = (ask(before), ask(after)) else { continue };
                if now.allows() == then.allows() {
                    continue;
                }
                let (ports, rule) = if now.allows() { &mut denied } else { &mut allowed };
                if ports.is_empty() {
                    *rule = rule_of(&then);
                }
                match ports.last_mut() {
                    // Of another address of the peer.
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

fn rule_of(judgement: &Judgement) -> Option<RuleId> {
    match judgement {
        Judgement::Entry(verdict) => Some(verdict.rule),
        _ => None,
    }
}

/// Pairs that no policy is asked about.
fn is_exempt(direction: Direction, id: EndpointId, peer: &Peer) -> bool {
    peer.endpoint == Some(id)
        || id == EndpointId::HOST && direction == Direction::Egress && peer.endpoint.is_some()
        || id != EndpointId::HOST && direction == Direction::Ingress && peer.endpoint == Some(EndpointId::HOST)
}

/// Ports, for people: `80/TCP`, `8000-8100/UDP`, `TCP`, `anything else`.
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
