//! Why policies allow or deny a connection.
//!
//! The verdict comes from the compiled policy, looked up as the kernel does. Each rule is then evaluated on its own, as
//! written, so that the answer names every deciding rule and says why the others do not match or do not decide.

use crate::policy::{Blocked, Direction, Engine, RuleRef};
use weft_model::desired::{Action, Verdict, precedence};
use weft_model::id::{EndpointId, Identity, PolicyId};
use weft_model::intent::PolicyName;

mod question;
mod rule;

pub use question::{Party, Question};
pub use rule::protocol_text;

/// The answer of this node: `None` for the side of an endpoint that is not here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    pub egress: Option<Decision>,
    pub ingress: Option<Decision>,
}

/// What the policies of one endpoint decide.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decision {
    pub allowed: bool,
    /// One sentence for the user.
    pub reason: String,
    /// The matching rules of the highest precedence.
    pub deciding: Vec<RuleRef>,
    /// Policies that isolate the endpoint in this direction.
    pub isolating: Vec<PolicyName>,
    /// Every other rule that applies to the endpoint, and why it does not decide.
    pub others: Vec<(RuleRef, String)>,
}

impl Decision {
    fn plain(allowed: bool, reason: impl Into<String>) -> Self {
        Self { allowed, reason: reason.into(), deciding: Vec::new(), isolating: Vec::new(), others: Vec::new() }
    }
}

/// How the verdict on a connection comes about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Evaluation {
    /// Policies are not consulted for such traffic; with the reason.
    Exempt(&'static str),
    /// The endpoint drops all traffic.
    Blocked(Blocked),
    /// No policy selects the endpoint.
    Open,
    /// An entry of the compiled policy matches.
    Entry(Verdict),
    /// No entry matches; the default of the compiled policy is to allow.
    Default(bool),
}

impl Evaluation {
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

/// Evaluates the policies of endpoint `id` for a new connection with `peer`; `None`: there is no such endpoint.
#[must_use]
pub fn evaluate(
    engine: &Engine,
    direction: Direction,
    id: EndpointId,
    peer: &Party,
    protocol: u8,
    port: u16,
) -> Option<Evaluation> {
    let now = engine.endpoint(id)?;
    if peer.endpoint == Some(id) {
        return Some(Evaluation::Exempt("traffic of an endpoint to itself is always allowed"));
    }
    let own_node = peer.endpoint == Some(EndpointId::HOST) || peer.identity == Identity::HOST;
    if direction == Direction::Ingress && own_node && id != EndpointId::HOST {
        return Some(Evaluation::Exempt("traffic from a pod's own node is always allowed"));
    }
    if direction == Direction::Egress && id == EndpointId::HOST && peer.endpoint.is_some() {
        return Some(Evaluation::Exempt("traffic from a node to its own pods is always allowed"));
    }
    if let Some(problem) = &now.blocked {
        return Some(Evaluation::Blocked(problem.clone()));
    }
    let policy = match direction {
        Direction::Ingress => now.ingress,
        Direction::Egress => now.egress,
    };
    if policy == PolicyId::OPEN {
        return Some(Evaluation::Open);
    }
    let compiled = engine.compiled(policy)?;
    Some(match engine.lookup(compiled, peer.identity, peer.address, protocol, port) {
        Some(verdict) => Evaluation::Entry(verdict),
        None => Evaluation::Default(compiled.default_allow),
    })
}

/// Explains a connection by the policies in force.
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
    let evaluation = evaluate(engine, direction, id, peer, q.protocol, q.port)?;
    let mut decision = Decision::plain(evaluation.allows(), "");
    match &evaluation {
        Evaluation::Exempt(why) => return Some(Decision::plain(true, *why)),
        Evaluation::Blocked(problem) => {
            return Some(Decision::plain(false, format!("the endpoint is blocked: {problem}")));
        }
        Evaluation::Open => {
            return Some(Decision::plain(true, format!("no policy selects the endpoint for {direction}")));
        }
        Evaluation::Entry(_) | Evaluation::Default(_) => {}
    }
    let isolating = engine.isolating(id, direction).unwrap_or_default();
    decision.isolating = isolating.into_iter().map(|policy| policy.name.clone()).collect();
    let mut passed_on = None;
    let mut beaten = Vec::new();
    for (reference, rule) in engine.rules_of(id, direction) {
        match rule::matches(engine, direction, id, &rule.source, peer, q) {
            Err(why) => decision.others.push((reference.clone(), why)),
            Ok(()) => match &evaluation {
                Evaluation::Entry(verdict) if rule.verdict.precedence == verdict.precedence => {
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
    let passed_by = passed_on.map(|(_, rule)| rule);
    for (reference, action) in beaten {
        let what = match action {
            Action::Allow => "would allow it",
            Action::Deny => "would deny it",
            Action::Pass => "passes it to the next tier",
        };
        let overridden =
            if passed_by.as_ref() == Some(&reference) { "" } else { ", but a rule of higher precedence decides" };
        decision.others.push((reference, format!("{what}{overridden}")));
    }
    decision.reason = reason(&decision, &evaluation, direction, passed_by.as_ref());
    Some(decision)
}

fn reason(decision: &Decision, evaluation: &Evaluation, direction: Direction, passed_by: Option<&RuleRef>) -> String {
    let rules = decision.deciding.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let policies = decision.isolating.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let passed = passed_by.map(|rule| format!(" (passed to the next tier by {rule})")).unwrap_or_default();
    match evaluation {
        Evaluation::Entry(verdict) if verdict.action == Action::Allow => format!("allowed by {rules}{passed}"),
        Evaluation::Entry(_) => format!("denied by {rules}{passed}"),
        Evaluation::Default(true) => {
            format!("allowed by default: no rule matches, and no policy isolates the endpoint for {direction}{passed}")
        }
        _ => format!("denied by default: isolated for {direction} by {policies}, and no rule allows it{passed}"),
    }
}
