//! Why a connection passes or does not: asked of the policies in force, answered with rules and words.
//!
//! The verdict is the compiled policy's, found as the kernel finds it. The rules are then judged one by one from what
//! was written, so that the answer names all that decide, and says of each other one what became of it.

use crate::policy::{Direction, Engine, RuleRef};
use std::net::IpAddr;
use weft_model::desired::{Action, Verdict, precedence};
use weft_model::id::{EndpointId, Identity, PolicyId};
use weft_model::intent::PolicyName;

mod rule;

pub use rule::protocol_text;

/// One end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Party {
    /// Its number, if it is an endpoint of this node (or [`EndpointId::HOST`], the node itself).
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
    /// Destination port, the type of an ICMP message, 0 where the protocol has neither.
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
    /// The rules that decide: of all that match, those that come first.
    pub deciding: Vec<RuleRef>,
    /// Policies that isolate the endpoint in this direction.
    pub isolating: Vec<PolicyName>,
    /// The other rules that were looked at, and what became of each.
    pub others: Vec<(RuleRef, String)>,
}

impl Decision {
    fn plain(allowed: bool, reason: impl Into<String>) -> Self {
        Self { allowed, reason: reason.into(), deciding: Vec::new(), isolating: Vec::new(), others: Vec::new() }
    }
}

/// A verdict without the words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Judgement {
    /// No policy is asked: why.
    Exempt(&'static str),
    /// The endpoint is closed: why.
    Blocked(String),
    /// No policy applies to the endpoint.
    Open,
    /// An entry matches.
    Entry(Verdict),
    /// None does: it passes or not.
    Default(bool),
}

impl Judgement {
    /// Whether it passes.
    #[must_use]
    pub fn allows(&self) -> bool {
        match self {
            Self::Exempt(_) | Self::Open => true,
            Self::Blocked(_) => false,
            Self::Entry(verdict) => verdict.action == Action::Allow,
            Self::Default(allowed) => *allowed,
        }
    }
}

/// What the policies of endpoint `id` say of a new connection with `peer`; `None`: there is no such endpoint.
#[must_use]
pub fn judge(
    engine: &Engine,
    direction: Direction,
    id: EndpointId,
    peer: &Party,
    protocol: u8,
    port: u16,
) -> Option<Judgement> {
    let now = engine.endpoint(id)?;
    if peer.endpoint == Some(id) {
        return Some(Judgement::Exempt("whoever talks to itself is not asked"));
    }
    let own_node = peer.endpoint == Some(EndpointId::HOST) || peer.identity == Identity::HOST;
    if direction == Direction::Ingress && own_node && id != EndpointId::HOST {
        return Some(Judgement::Exempt("a pod's own node may always talk to it"));
    }
    if direction == Direction::Egress && id == EndpointId::HOST && peer.endpoint.is_some() {
        return Some(Judgement::Exempt("a node may always talk to its own pods"));
    }
    if let Some(problem) = &now.blocked {
        return Some(Judgement::Blocked(problem.clone()));
    }
    let policy = match direction {
        Direction::Ingress => now.ingress,
        Direction::Egress => now.egress,
    };
    if policy == PolicyId::OPEN {
        return Some(Judgement::Open);
    }
    let compiled = engine.compiled(policy)?;
    Some(match engine.lookup(compiled, peer.identity, peer.address, protocol, port) {
        Some(verdict) => Judgement::Entry(verdict),
        None => Judgement::Default(compiled.default_allow),
    })
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
    let judgement = judge(engine, direction, id, peer, q.protocol, q.port)?;
    let mut decision = Decision::plain(judgement.allows(), "");
    match &judgement {
        Judgement::Exempt(why) => return Some(Decision::plain(true, *why)),
        Judgement::Blocked(problem) => {
            return Some(Decision::plain(false, format!("the endpoint is blocked: {problem}")));
        }
        Judgement::Open => return Some(Decision::plain(true, format!("no policy applies for {direction}"))),
        Judgement::Entry(_) | Judgement::Default(_) => {}
    }
    let isolating = engine.isolating(id, direction).unwrap_or_default();
    decision.isolating = isolating.into_iter().map(|policy| policy.name.clone()).collect();
    let mut passed_on = None;
    let mut beaten = Vec::new();
    for (reference, rule) in engine.rules_of(id, direction) {
        match rule::matches(engine, direction, id, &rule.source, peer, q) {
            Err(why) => decision.others.push((reference.clone(), why)),
            Ok(()) => match &judgement {
                Judgement::Entry(verdict) if rule.verdict.precedence == verdict.precedence => {
                    decision.deciding.push(reference.clone());
                }
                _ => {
                    if rule.verdict.action == Action::Pass && rule.verdict.precedence >= precedence::ADMIN {
                        let first = passed_on.as_ref().is_none_or(|(best, _)| rule.verdict.precedence > *best);
                        if first {
                            passed_on = Some((rule.verdict.precedence, reference.clone()));
                        }
                    }
                    beaten.push((reference.clone(), rule.verdict.action));
                }
            },
        }
    }
    let left_by = passed_on.map(|(_, rule)| rule);
    for (reference, action) in beaten {
        let what = match action {
            Action::Allow => "would allow it",
            Action::Deny => "would deny it",
            Action::Pass => "leaves it to the next tier",
        };
        let outdone = if left_by.as_ref() == Some(&reference) { "" } else { ", but does not decide" };
        decision.others.push((reference, format!("{what}{outdone}")));
    }
    decision.reason = reason(&decision, &judgement, direction, left_by.as_ref());
    Some(decision)
}

fn reason(decision: &Decision, judgement: &Judgement, direction: Direction, left_by: Option<&RuleRef>) -> String {
    let rules = decision.deciding.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let policies = decision.isolating.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let left = left_by.map(|rule| format!(" (left to the next tier by {rule})")).unwrap_or_default();
    match judgement {
        Judgement::Entry(verdict) if verdict.action == Action::Allow => format!("allowed by {rules}{left}"),
        Judgement::Entry(_) => format!("denied by {rules}{left}"),
        Judgement::Default(true) => format!("no rule says anything else, and nothing isolates for {direction}{left}"),
        _ => format!("isolated for {direction} by {policies}, and no rule allows it{left}"),
    }
}
