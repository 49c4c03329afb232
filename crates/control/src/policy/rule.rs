//! Rules as the compiler reads them, and their numbers.

use super::RuleRef;
use super::ports;
use super::selector::PeerSelector;
use foldhash::fast::RandomState;
use rpds::HashTrieMapSync;
use std::collections::VecDeque;
use std::sync::Arc;
use weft_model::desired::{Action, PortPrefix, Verdict, precedence};
use weft_model::id::RuleId;
use weft_model::intent::{self, Entity, Peer, PortMatch, Protocol, RuleAction, Tier};

/// Numbers of rules that are gone can still be named: events about them may be under way.
const REMEMBERED: usize = 4096;

/// Who a rule is about.
#[derive(Clone, Debug)]
pub enum Peers {
    /// Anybody.
    Any,
    /// Whom one of these selects.
    Some(Vec<Arc<PeerSelector>>),
}

/// One rule, ready to be resolved.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Its number.
    pub id: RuleId,
    /// As it was written.
    pub source: intent::Rule,
    /// What its entries say.
    pub verdict: Verdict,
    /// Copied to what it decides.
    pub log: Option<Arc<str>>,
    /// Who.
    pub peers: Peers,
    /// Ports that have a number.
    pub ports: Vec<PortPrefix>,
    /// Ports that have a name.
    pub names: Vec<(Protocol, String)>,
    /// What of it can not be honoured.
    pub notes: Vec<String>,
}

/// What an entry of the rule at `index` of a list of `spec` does, and how strongly.
#[must_use]
pub fn strength(tier: Tier, index: usize, action: RuleAction) -> (Action, u32) {
    let index = u16::try_from(index).unwrap_or(u16::MAX);
    let plain = if action == RuleAction::Deny { Action::Deny } else { Action::Allow };
    match tier {
        Tier::Admin(priority) if action == RuleAction::Pass => {
            (Action::Pass, precedence::admin(priority, index, action))
        }
        Tier::Admin(priority) => (plain, precedence::admin(priority, index, action)),
        Tier::Normal if plain == Action::Deny => (plain, precedence::DENY),
        Tier::Normal => (plain, precedence::ALLOW),
        // What the last tier leaves to the next passes.
        Tier::Baseline(priority) => (plain, precedence::baseline(priority, index, action)),
    }
}

impl Rule {
    /// Prepares a rule.
    pub fn new(id: RuleId, rule: &intent::Rule, (action, precedence): (Action, u32), log: Option<Arc<str>>) -> Self {
        let mut notes = Vec::new();
        let peers = match &rule.peers {
            None => Peers::Any,
            Some(peers) if peers.contains(&Peer::Entity(Entity::All)) => Peers::Any,
            Some(peers) => {
                let mut selectors = Vec::new();
                for (n, peer) in peers.iter().enumerate() {
                    match PeerSelector::new(peer) {
                        Ok(selector) => selectors.extend(selector.map(Arc::new)),
                        Err(problem) => notes.push(format!("{}: peer {n} {problem}", rule.place)),
                    }
                }
                Peers::Some(selectors)
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

    /// Whether it is made from this.
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

/// What rules' numbers stand for. Persistent: a clone costs nothing and never changes.
pub type RuleRefs = HashTrieMapSync<RuleId, Arc<RuleRef>, RandomState>;

/// The numbers of rules. A number is given once and never again.
#[derive(Clone, Debug, Default)]
pub struct RuleNumbers {
    refs: RuleRefs,
    gone: VecDeque<RuleId>,
    next: u32,
    fresh: Vec<(RuleId, RuleRef)>,
}

impl RuleNumbers {
    /// Numbers up to this one were given before.
    pub fn start_after(&mut self, last: RuleId) {
        self.next = self.next.max(last.0);
    }

    /// A number for a rule.
    pub fn give(&mut self, rule: RuleRef) -> RuleId {
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

    /// Its rule is no more.
    pub fn retire(&mut self, id: RuleId) {
        self.gone.push_back(id);
        if self.gone.len() > REMEMBERED
            && let Some(oldest) = self.gone.pop_front()
        {
            self.refs.remove_mut(&oldest);
        }
    }

    /// What a number stands or stood for.
    pub fn get(&self, id: RuleId) -> Option<&RuleRef> {
        self.refs.get(&id).map(|rule| &**rule)
    }

    /// What all numbers stand or stood for.
    pub fn snapshot(&self) -> RuleRefs {
        self.refs.clone()
    }

    /// Numbers given since the last call.
    pub fn take_fresh(&mut self) -> Vec<(RuleId, RuleRef)> {
        std::mem::take(&mut self.fresh)
    }
}
