//! What would change if objects were applied or deleted.

use super::flush::Writer;
use crate::reconcile::policy::rule_reference;
use std::collections::BTreeMap;
use std::net::IpAddr;
use weft_api::agent::{Preview, PreviewChange, PreviewExample};
use weft_control::explain::{Party, Question};
use weft_control::policy::{Direction, Engine};
use weft_control::preview::{self, Pair, PeerInfo};
use weft_model::id::{EndpointId, RuleId};
use weft_model::intent::Change;

/// Examples of each kind that are listed.
const EXAMPLES: usize = 10;
/// Stretches of ports that an example lists.
const PORTS: usize = 6;

/// A connection, seen or dropped.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Who opened it.
    pub from: IpAddr,
    /// Who was to accept it.
    pub to: IpAddr,
    /// IP protocol.
    pub protocol: u8,
    /// Destination port, or the type of an ICMP message.
    pub port: u16,
}

/// Copies of what is in force and of what would be: compared without holding anything up.
pub struct Comparison {
    before: Engine,
    after: Engine,
    peers: Vec<PeerInfo>,
    names: BTreeMap<EndpointId, String>,
    live: Vec<(Question, String)>,
    dropped: Vec<(Question, String)>,
}

impl Writer {
    /// Prepares a comparison with what would be in force after `changes`.
    #[must_use]
    pub fn compare(&self, changes: &[Change], live: &[Seen], dropped: &[Seen]) -> Comparison {
        let before = self.reconcilers.policy.engine.clone();
        let (mut after, mut expander) = (before.clone(), self.reconcilers.policy.expander.clone());
        changes.iter().for_each(|change| expander.apply(change));
        after.apply(expander.take_changes());
        let mut names: BTreeMap<EndpointId, String> =
            self.tables.endpoints.values().map(|row| (row.record.id, row.record.pod.to_string())).collect();
        names.insert(EndpointId::HOST, format!("node {}", self.settings.node_name));
        let peers = self.peers(&before, &after);
        let questions = |seen: &[Seen]| seen.iter().map(|seen| self.question(*seen)).collect();
        Comparison { peers, names, live: questions(live), dropped: questions(dropped), before, after }
    }

    fn pod_with(&self, address: IpAddr) -> Option<String> {
        let local = self.tables.endpoints.with_address(address).map(|endpoint| endpoint.record.pod.to_string());
        local.or_else(|| self.tables.addresses.pod(address).map(|name| name.to_string()))
    }

    fn question(&self, seen: Seen) -> (Question, String) {
        let (from, to) = (self.party(seen.from), self.party(seen.to));
        let name = |address: IpAddr| match self.pod_with(address) {
            Some(pod) => pod,
            None => {
                self.tables.addresses.node(address).map_or_else(|| address.to_string(), |node| format!("node {node}"))
            }
        };
        let question = Question { from, to, protocol: seen.protocol, port: seen.port };
        (question, format!("{} -> {}", name(seen.from), name(seen.to)))
    }

    /// Everybody whom endpoints may talk to: pods, nodes, the prefixes that policies name, and the rest of the world.
    fn peers(&self, before: &Engine, after: &Engine) -> Vec<PeerInfo> {
        let mut by_name: BTreeMap<String, PeerInfo> = BTreeMap::new();
        let mut add = |name: String, party: Party| {
            let empty = || PeerInfo {
                name: name.clone(),
                endpoint: party.endpoint,
                identity: party.identity,
                addresses: Vec::new(),
            };
            by_name.entry(name.clone()).or_insert_with(empty).addresses.push(party.address);
        };
        for (address, _) in self.tables.addresses.all() {
            let party = self.party(address);
            match (self.pod_with(address), self.tables.addresses.node(address)) {
                (Some(pod), _) => add(pod, party),
                (None, Some(node)) => add(format!("node {node}"), party),
                (None, None) => {}
            }
        }
        let prefixes: std::collections::BTreeSet<_> =
            [before, after].into_iter().flat_map(|engine| engine.desired().cidrs.into_keys()).collect();
        for prefix in prefixes {
            let party = self.party(prefix.addr());
            if party.identity.reserved_name().is_some_and(|name| name.starts_with("world")) {
                add(prefix.to_string(), party);
            }
        }
        // Addresses for documentation stand for what no policy names.
        for (name, address) in [("world, IPv4", IpAddr::from([192, 0, 2, 1])), ("world, IPv6", documentation_v6())] {
            if before.prefix_of(address).or(after.prefix_of(address)).is_none() {
                add(name.to_owned(), self.party(address));
            }
        }
        by_name.into_values().collect()
    }
}

fn documentation_v6() -> IpAddr {
    IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1_u16])
}

impl Comparison {
    /// Compares. May take a while on a large cluster.
    #[must_use]
    pub fn run(&self) -> Preview {
        let changes = preview::compare(&self.before, &self.after, &self.peers);
        let (mut cut, mut passing) = (PreviewChange::default(), PreviewChange::default());
        for (list, into, denied) in [(&self.live, &mut cut, true), (&self.dropped, &mut passing, false)] {
            for (question, text) in list {
                if let Some((was, will, rule)) = preview::compare_one(&self.before, &self.after, question)
                    && was == denied
                    && will != denied
                {
                    self.note(into, question, text, rule);
                }
            }
        }
        Preview {
            endpoints: self.before.endpoint_ids().count() as u64,
            peers: self.peers.len() as u64,
            newly_denied: self.pairs(&changes.denied),
            newly_allowed: self.pairs(&changes.allowed),
            connections: (self.live.len() + self.dropped.len()) as u64,
            connections_cut: cut,
            drops_passing: passing,
        }
    }

    fn rule(&self, rule: Option<RuleId>) -> Option<weft_api::flow::PolicyRef> {
        let rule = rule?;
        self.after.rule(rule).or_else(|| self.before.rule(rule)).map(rule_reference)
    }

    fn pairs(&self, pairs: &[Pair]) -> PreviewChange {
        let example = |pair: &Pair| {
            let mut ports: Vec<String> = pair.ports.iter().take(PORTS).map(|port| preview::ports_text(*port)).collect();
            if pair.ports.len() > PORTS {
                ports.push("...".to_owned());
            }
            PreviewExample {
                direction: pair.direction.to_string(),
                endpoint: self.names.get(&pair.endpoint).cloned().unwrap_or_else(|| pair.endpoint.to_string()),
                peer: self.peers[pair.peer].name.clone(),
                ports,
                rule: self.rule(pair.rule),
            }
        };
        PreviewChange { count: pairs.len() as u64, examples: pairs.iter().take(EXAMPLES).map(example).collect() }
    }

    fn note(&self, into: &mut PreviewChange, question: &Question, text: &str, rule: Option<RuleId>) {
        into.count += 1;
        if into.examples.len() < EXAMPLES {
            let (from, to) = text.split_once(" -> ").unwrap_or((text, ""));
            let outgoing = question.from.endpoint.is_some();
            let direction = if outgoing { Direction::Egress } else { Direction::Ingress };
            into.examples.push(PreviewExample {
                direction: direction.to_string(),
                endpoint: if outgoing { from } else { to }.to_owned(),
                peer: if outgoing { to } else { from }.to_owned(),
                ports: vec![preview::ports_text((question.protocol, question.port, question.port))],
                rule: self.rule(rule),
            });
        }
    }
}
