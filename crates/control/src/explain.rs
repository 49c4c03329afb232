//! Why a connection passes or does not: asked of the policies in force, answered with rules and words.
//!
//! The verdict is the compiled policy's, found as the kernel finds it. The rules are then judged one by one, so that
//! the answer names all that allow, or says of each what does not fit.

use crate::policy::{Direction, Engine, PortName, Rule, RulePeers, RuleRef, lookup, pod_numbers};
use ipnet::IpNet;
use std::fmt::Write;
use std::net::IpAddr;
use weft_model::id::{EndpointId, Identity, PolicyId};
use weft_model::intent::{ObjectName, PortMatch, PortRule};

/// One end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Party {
    /// Its number, if it is an endpoint of this node.
    pub endpoint: Option<EndpointId>,
    /// Its identity, as this node's kernel knows it.
    pub identity: Identity,
    /// Its address.
    pub address: IpAddr,
}

/// Would a new connection pass?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Question {
    /// Who opens it.
    pub from: Party,
    /// Who is to accept it.
    pub to: Party,
    /// IP protocol.
    pub protocol: u8,
    /// Destination port, 0 where the protocol has none.
    pub port: u16,
}

/// The answer, as far as this node knows: the side of an endpoint elsewhere is `None`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Leaving `from`.
    pub egress: Option<Decision>,
    /// Entering `to`.
    pub ingress: Option<Decision>,
}

/// What one end's policies say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decision {
    /// It passes.
    pub allowed: bool,
    /// Why, in a sentence.
    pub reason: String,
    /// Rules that allow it.
    pub allowing: Vec<RuleRef>,
    /// Policies that isolate the endpoint in this direction: kind and name.
    pub isolating: Vec<(&'static str, ObjectName)>,
    /// Rules that do not allow it, and why.
    pub others: Vec<(RuleRef, String)>,
}

impl Decision {
    fn plain(allowed: bool, reason: impl Into<String>) -> Self {
        Self { allowed, reason: reason.into(), allowing: Vec::new(), isolating: Vec::new(), others: Vec::new() }
    }
}

/// Answers a question from what is in force.
#[must_use]
pub fn explain(engine: &Engine, question: &Question) -> Answer {
    let side = |direction: Direction| {
        let (subject, peer) = match direction {
            Direction::Ingress => (&question.to, &question.from),
            Direction::Egress => (&question.from, &question.to),
        };
        decide(engine, direction, subject.endpoint?, peer, question)
    };
    Answer { egress: side(Direction::Egress), ingress: side(Direction::Ingress) }
}

fn decide(engine: &Engine, direction: Direction, id: EndpointId, peer: &Party, q: &Question) -> Option<Decision> {
    let now = engine.endpoint(id)?;
    if peer.endpoint == Some(id) {
        return Some(Decision::plain(true, "a pod may always talk to itself"));
    }
    if let Some(problem) = &now.blocked {
        return Some(Decision::plain(false, format!("the endpoint is blocked: {problem}")));
    }
    if direction == Direction::Ingress && peer.identity == Identity::HOST {
        return Some(Decision::plain(true, "a pod's own node may always talk to it"));
    }
    let policy = match direction {
        Direction::Ingress => now.ingress,
        Direction::Egress => now.egress,
    };
    if policy == PolicyId::OPEN {
        return Some(Decision::plain(true, format!("no policy isolates the pod for {direction}")));
    }
    let compiled = engine.compiled(policy)?;
    let verdict = lookup(compiled, peer.identity, engine.prefix_of(peer.address), q.protocol, q.port);
    let mut decision = Decision::plain(verdict.is_some(), "");
    for (kind, name, rules) in engine.rules_of(id, direction) {
        decision.isolating.push((kind, name.clone()));
        for (index, rule) in rules.iter().enumerate() {
            let rule_ref = RuleRef { kind, object: name.clone(), direction, index };
            match judge(engine, direction, id, rule, peer, q) {
                Ok(()) => decision.allowing.push(rule_ref),
                Err(why) => decision.others.push((rule_ref, why)),
            }
        }
    }
    decision.reason = reason(&decision, direction);
    Some(decision)
}

fn reason(decision: &Decision, direction: Direction) -> String {
    let names = |list: &mut dyn Iterator<Item = String>| list.collect::<Vec<_>>().join(", ");
    let mut text = if decision.allowed {
        let rules = names(&mut decision.allowing.iter().map(ToString::to_string));
        return format!("allowed by {rules}");
    } else {
        let policies = names(&mut decision.isolating.iter().map(|(kind, name)| format!("{kind} {name}")));
        format!("isolated for {direction} by {policies}, and no rule allows it")
    };
    for (n, (rule, why)) in decision.others.iter().enumerate() {
        let separator = if n == 0 { ": " } else { "; " };
        // Writing to a string does not fail.
        let _ = write!(text, "{separator}{rule}: {why}");
    }
    text
}

/// Whether one rule allows it; if not, what does not fit.
fn judge(
    engine: &Engine,
    direction: Direction,
    id: EndpointId,
    rule: &Rule,
    peer: &Party,
    q: &Question,
) -> Result<(), String> {
    let (by_selector, by_address) = match &rule.peers {
        RulePeers::Any => (true, true),
        RulePeers::Some { selectors, blocks } => {
            let labels = engine.labels(peer.identity);
            let by_selector = selectors.iter().any(|selector| labels.is_some_and(|labels| selector.matches(labels)));
            let mut by_address = false;
            let mut left_out = None;
            for (net, except) in blocks.iter().filter(|(net, _)| net.contains(&peer.address)) {
                match except.iter().find(|except| except.contains(&peer.address)) {
                    Some(except) => left_out = Some((net, except)),
                    None => by_address = true,
                }
            }
            if !by_selector && !by_address {
                return Err(who_is_selected(peer, direction, left_out, selectors.len() + blocks.len()));
            }
            (by_selector, by_address)
        }
    };
    let protocol_fits = |protocol: u8| protocol == q.protocol;
    for prefix in &rule.ports {
        let covered =
            prefix.prefix_len == 0 || crate::policy::ports::truncate(q.port, prefix.prefix_len) == prefix.port;
        if prefix.protocol == 0 || (protocol_fits(prefix.protocol) && covered) {
            return Ok(());
        }
    }
    for name in rule.names.iter().filter(|name| protocol_fits(name.0.number())) {
        let fits = match direction {
            Direction::Ingress => engine.own_numbers(id, name).contains(&q.port),
            Direction::Egress => by_selector && numbers_at(engine, peer, name).contains(&q.port),
        };
        if fits {
            return Ok(());
        }
    }
    let asked = port_text(q.protocol, q.port);
    let list: Vec<String> = rule.source.ports.iter().flatten().map(describe).collect();
    let unnamed = direction == Direction::Egress && !by_selector && by_address && !rule.names.is_empty();
    let hint = if unnamed { " (named ports mean nothing behind an ipBlock)" } else { "" };
    Err(format!("its ports are {}, not {asked}{hint}", list.join(", ")))
}

fn numbers_at(engine: &Engine, peer: &Party, name: &PortName) -> Vec<u16> {
    let pods = engine.pods_of(peer.identity).iter().filter(|pod| pod.addresses.contains(&peer.address));
    pods.flat_map(|pod| pod_numbers(pod, name)).collect()
}

fn who_is_selected(peer: &Party, direction: Direction, left_out: Option<(&IpNet, &IpNet)>, peers: usize) -> String {
    let verb = match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    if let Some((net, except)) = left_out {
        return format!("{} is in {net} but left out by except {except}", peer.address);
    }
    if peers == 0 {
        return format!("its `{verb}` selects nobody");
    }
    let who = match peer.identity.reserved_name() {
        Some(name) => format!("{} ({name})", peer.address),
        None => format!("{} (identity {})", peer.address, peer.identity),
    };
    format!("its `{verb}` does not select {who}")
}

fn protocol_text(protocol: u8) -> String {
    match protocol {
        1 => "ICMP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        58 => "ICMPv6".to_owned(),
        132 => "SCTP".to_owned(),
        other => format!("protocol {other}"),
    }
}

fn port_text(protocol: u8, port: u16) -> String {
    match protocol {
        6 | 17 | 132 => format!("{port}/{}", protocol_text(protocol)),
        _ => protocol_text(protocol),
    }
}

fn describe(port: &PortRule) -> String {
    let protocol = protocol_text(port.protocol.number());
    match &port.port {
        PortMatch::Any => format!("every {protocol} port"),
        PortMatch::Range(first, last) if first == last => format!("{first}/{protocol}"),
        PortMatch::Range(first, last) => format!("{first}-{last}/{protocol}"),
        PortMatch::Name(name) => format!("{name}/{protocol}"),
    }
}

#[cfg(test)]
mod tests;
