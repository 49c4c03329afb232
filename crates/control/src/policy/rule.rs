//! Rules in compiled form, and their numbers.

use super::interface::RuleRef;
use super::ports;
use super::selector::PeerSelector;
use foldhash::fast::RandomState;
use rpds::HashTrieMapSync;
use std::collections::VecDeque;
use std::sync::Arc;
use weft_model::desired::{Action, PortPrefix, Verdict, precedence};
use weft_model::id::RuleId;
use weft_model::intent::{self, Entity, Peer, PortMatch, Protocol, RuleAction, Tier};

/// How many deleted rules are remembered, for events about them that are still on their way.
const REMEMBERED: usize = 4096;

/// Which peers a rule matches.
#[derive(Clone, Debug)]
pub enum PeerMatch {
    Any,
    /// Peers that at least one of these selects.
    Selectors(Vec<Arc<PeerSelector>>),
}

/// One rule in compiled form.
#[derive(Clone, Debug)]
pub struct Rule {
    pub id: RuleId,
    /// As written.
    pub source: intent::Rule,
    /// The verdict of all its entries.
    pub verdict: Verdict,
    /// `spec.log.value` of its policy.
    pub log: Option<Arc<str>>,
    pub peers: PeerMatch,
    /// Numeric ports.
    pub ports: Vec<PortPrefix>,
    /// Named ports.
    pub names: Vec<(Protocol, String)>,
    /// Parts of it that cannot take effect, for the object's status.
    pub notes: Vec<String>,
}

/// Action and precedence of the rule at `index` of a policy in this tier.
#[must_use]
pub fn action_and_precedence(tier: Tier, index: usize, action: RuleAction) -> (Action, u32) {
    let index = u16::try_from(index).unwrap_or(u16::MAX);
    let plain = if action == RuleAction::Deny { Action::Deny } else { Action::Allow };
    match tier {
        Tier::Admin(priority) if action == RuleAction::Pass => {
            (Action::Pass, precedence::admin(priority, index, action))
        }
        Tier::Admin(priority) => (plain, precedence::admin(priority, index, action)),
        Tier::Normal if plain == Action::Deny => (plain, precedence::DENY),
        Tier::Normal => (plain, precedence::ALLOW),
        // There is no tier after Baseline: a Pass allows.
        Tier::Baseline(priority) => (plain, precedence::baseline(priority, index, action)),
    }
}

impl Rule {
    pub fn new(id: RuleId, rule: &intent::Rule, (action, precedence): (Action, u32), log: Option<Arc<str>>) -> Self {
        let mut notes = Vec::new();
        let peers = match &rule.peers {
            None => PeerMatch::Any,
            Some(peers) if peers.contains(&Peer::Entity(Entity::All)) => PeerMatch::Any,
            Some(peers) => {
                let mut selectors = Vec::new();
                for (n, peer) in peers.iter().enumerate() {
                    match PeerSelector::new(peer) {
                        Ok(selector) => selectors.extend(selector.map(Arc::new)),
                        Err(problem) => notes.push(format!("{}: peer {n} {problem}", rule.place)),
                    }
                }
                PeerMatch::Selectors(selectors)
            }
        };
        let (mut numbers, mut names) = (Vec::new(), Vec::new());
        match &rule.ports {
            None => numbers.push(ports::ANYTHING),
            Some(list) => {
                for port in list {
                    let protocol = port.protocol.number();
                    match &port.port {
                        PortMatch::Any => numbers.push(PortPrefix { protocol, port: 0, prefix_len: 0 }),
                        _ if !port.protocol.has_ports() => {
                            numbers.push(PortPrefix { protocol, port: 0, prefix_len: 0 });
                        }
                        PortMatch::Range(first, last) => numbers.extend(ports::split(protocol, *first, *last)),
                        PortMatch::Name(name) => names.push((port.protocol, name.clone())),
                    }
                }
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        names.sort_unstable();
        names.dedup();
        let verdict = Verdict { action, precedence, rule: id };
        Self { id, source: rule.clone(), verdict, log, peers, ports: numbers, names, notes }
    }

    /// Whether compiling this would give the same rule, so that it can keep its number.
    #[must_use]
    pub fn is_made_from(
        &self,
        rule: &intent::Rule,
        (action, precedence): (Action, u32),
        log: Option<&Arc<str>>,
    ) -> bool {
        self.verdict.action == action
            && self.verdict.precedence == precedence
            && self.log.as_ref() == log
            && self.source == *rule
    }
}

/// Rules by number. A persistent map: a clone is a cheap, immutable snapshot.
pub type RuleRefs = HashTrieMapSync<RuleId, Arc<RuleRef>, RandomState>;

/// Allocates rule numbers. A number is not reused while events may still carry it.
#[derive(Clone, Debug, Default)]
pub struct RuleNumbers {
    refs: RuleRefs,
    retired: VecDeque<RuleId>,
    next: u32,
    fresh: Vec<(RuleId, RuleRef)>,
}

impl RuleNumbers {
    /// Numbers up to this one are in use in the kernel.
    pub fn start_after(&mut self, last: RuleId) {
        self.next = self.next.max(last.0);
    }

    pub fn allocate(&mut self, rule: RuleRef) -> RuleId {
        loop {
            self.next = self.next.wrapping_add(1);
            let id = RuleId(self.next);
            if id != RuleId::NONE && !self.refs.contains_key(&id) {
                self.refs.insert_mut(id, Arc::new(rule.clone()));
                self.fresh.push((id, rule));
                return id;
            }
        }
    }

    /// The rule was deleted. Its number stays resolvable for a while.
    pub fn retire(&mut self, id: RuleId) {
        self.retired.push_back(id);
        if self.retired.len() > REMEMBERED
            && let Some(oldest) = self.retired.pop_front()
        {
            self.refs.remove_mut(&oldest);
        }
    }

    /// The rule of a number, also of a recently deleted one.
    pub fn get(&self, id: RuleId) -> Option<&RuleRef> {
        self.refs.get(&id).map(|rule| &**rule)
    }

    /// What all numbers stand or stood for.
    pub fn snapshot(&self) -> RuleRefs {
        self.refs.clone()
    }

    /// Numbers allocated since the last call.
    pub fn take_fresh(&mut self) -> Vec<(RuleId, RuleRef)> {
        std::mem::take(&mut self.fresh)
    }
}
