//! Rules as the compiler reads them, and their numbers.

use super::ports;
use super::selector::PeerSelector;
use super::{Direction, RuleRef};
use foldhash::HashMap;
use ipnet::IpNet;
use std::collections::VecDeque;
use std::sync::Arc;
use weft_model::desired::PortPrefix;
use weft_model::id::RuleId;
use weft_model::intent::{self, ObjectName, Peer, PortMatch, Protocol};

/// Numbers of rules that are gone can still be named: events about them may be under way.
const REMEMBERED: usize = 4096;

/// Who a rule is about.
#[derive(Debug)]
pub enum Peers {
    /// Anybody.
    Any,
    /// These.
    Some {
        /// Pods.
        selectors: Vec<Arc<PeerSelector>>,
        /// Addresses, and what is left out of each.
        blocks: Vec<(IpNet, Arc<[IpNet]>)>,
    },
}

/// One rule, ready to be resolved.
#[derive(Debug)]
pub struct Rule {
    /// Its number.
    pub id: RuleId,
    /// As it was written.
    pub source: intent::Rule,
    /// Who.
    pub peers: Peers,
    /// Ports that have a number.
    pub ports: Vec<PortPrefix>,
    /// Ports that have a name.
    pub names: Vec<(Protocol, String)>,
}

impl Rule {
    /// Prepares a rule. Appends to `problems` what can not be honoured.
    pub fn new(id: RuleId, namespace: &str, rule: &intent::Rule, place: &str, problems: &mut Vec<String>) -> Self {
        let peers = match &rule.peers {
            None => Peers::Any,
            Some(peers) => {
                let (mut selectors, mut blocks) = (Vec::new(), Vec::new());
                for (n, peer) in peers.iter().enumerate() {
                    match peer {
                        Peer::Pods { namespaces, pods } => {
                            match PeerSelector::new(namespace, namespaces.as_ref(), pods) {
                                Ok(selector) => selectors.push(Arc::new(selector)),
                                Err(key) => problems.push(format!(
                                    "{place}: peer {n} selects by the pod label {key:?}, which is not part of a pod's \
                                     identity: it selects nobody"
                                )),
                            }
                        }
                        Peer::Block { cidr, except } => {
                            let except = except.iter().map(IpNet::trunc).collect();
                            blocks.push((cidr.trunc(), except));
                        }
                    }
                }
                Peers::Some { selectors, blocks }
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
        Self { id, source: rule.clone(), peers, ports: numbers, names }
    }
}

/// The numbers of rules. A number is given once and never again.
#[derive(Debug, Default)]
pub struct RuleNumbers {
    refs: HashMap<RuleId, RuleRef>,
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
    pub fn give(&mut self, kind: &'static str, name: &ObjectName, direction: Direction, index: usize) -> RuleId {
        loop {
            self.next = self.next.wrapping_add(1);
            let id = RuleId(self.next);
            if id != RuleId::NONE && !self.refs.contains_key(&id) {
                let rule = RuleRef { kind, object: name.clone(), direction, index };
                self.refs.insert(id, rule.clone());
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
            self.refs.remove(&oldest);
        }
    }

    /// What a number stands or stood for.
    pub fn get(&self, id: RuleId) -> Option<&RuleRef> {
        self.refs.get(&id)
    }

    /// Numbers given since the last call.
    pub fn take_fresh(&mut self) -> Vec<(RuleId, RuleRef)> {
        std::mem::take(&mut self.fresh)
    }
}
