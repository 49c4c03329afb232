//! One resolved policy: the rules that count for some endpoints in one direction, made into classes and entries.
//!
//! A class here is a content: peers for which the same rules say the same of the same ports share it. What a class of
//! all peers of the node ([`PeerClass`]) comes to in a policy never changes: policies in force only learn of new ones,
//! and forget those that are no more.

use super::classes::{Class as Peer, Classes, Index, Mark};
use super::peers::Peers;
use super::ports::{self, Content};
use super::rule::{self, Rule};
use super::selector::{PeerSelector, Select};
use super::{Direction, Limits, Overflow, SelectorId};
use foldhash::HashMap;
use ipnet::{IpNet, Ipv4Net};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use weft_model::desired::{Action, CompiledPolicy, PolicyPatch, PortPrefix, Verdict};
use weft_model::id::{EndpointId, PeerClass, PolicyClass, PolicyId, RuleId};
use weft_model::intent::Protocol;

mod rest;

/// A named port.
pub type PortName = (Protocol, String);

/// Every IPv4 address.
const EVERY_V4: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0));

/// The kernel keeps IPv4 addresses as IPv6 ones, so a short IPv6 prefix such as `::/0` would be the longest match of
/// an IPv4 address too, unless there is an IPv4 prefix for every address.
fn holds_mapped(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(v6) if v6.contains(&Ipv4Addr::UNSPECIFIED.to_ipv6_mapped()))
}

/// What makes a resolved policy: endpoints with an equal key share it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Key {
    /// Direction.
    pub direction: Direction,
    /// What no rule is about passes.
    pub default_allow: bool,
    /// Its rules, sorted.
    pub rules: Vec<RuleId>,
    /// For ingress: the numbers of the subject's ports that the rules name.
    pub names: Vec<(PortName, Vec<u16>)>,
}

/// Entries and rows of all policies together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Entries.
    pub entries: usize,
    /// Rows: what classes of peers come to.
    pub rows: usize,
}

/// A rule's ports, for the peers that one of its selectors selects.
#[derive(Clone, Debug)]
struct Part {
    verdict: Verdict,
    ports: Vec<PortPrefix>,
}

/// What a selector means for a class.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Use {
    /// The ports of a part.
    Numbers(u32),
    /// The port that the selector tells, for the rule of a part.
    Name(u32, u8),
}

/// A part that applies to a class, and the port (and one) that it asks the peers for; 0: its own ports.
type Hit = (Use, u32);

#[derive(Clone, Debug)]
struct Class {
    content: Arc<Content>,
    rows: usize,
    in_kernel: bool,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// What it was made from.
    pub key: Key,
    /// Endpoints that have it.
    pub users: BTreeSet<EndpointId>,
    /// The kernel has it, but for the pending changes.
    pub in_kernel: bool,
    compiled: CompiledPolicy,
    parts: Vec<Part>,
    any: Content,
    uses: HashMap<SelectorId, Vec<Use>>,
    /// All that it holds, those without a use as well.
    selectors: Vec<SelectorId>,
    prefixes: Vec<IpNet>,
    /// Some rule does something else than to allow.
    has_denials: bool,
    classes: HashMap<Arc<Content>, PolicyClass>,
    /// The same by what makes a content; not all of them.
    known: HashMap<Vec<Hit>, PolicyClass>,
    rows: BTreeMap<PolicyClass, Class>,
    /// Classes that may have lost their last row.
    idle: BTreeSet<PolicyClass>,
    next_class: u32,
    /// Rows that changed, with what the kernel has.
    touched: BTreeMap<PeerClass, Option<PolicyClass>>,
    rows_when_made: usize,
}

impl Resolved {
    /// Starts one: takes hold of the prefixes and selectors that its rules name. `Err`: they do not fit. Then what it
    /// took hold of is to be released all the same.
    pub fn new(id: PolicyId, key: Key, rules: &[Arc<Rule>], peers: &mut Peers) -> (Self, Result<(), Overflow>) {
        let compiled = CompiledPolicy { default_allow: key.default_allow, ..CompiledPolicy::default() };
        let mut resolved = Self {
            key,
            users: BTreeSet::new(),
            in_kernel: false,
            compiled,
            parts: Vec::new(),
            any: Content::new(),
            uses: HashMap::default(),
            selectors: Vec::new(),
            prefixes: Vec::new(),
            has_denials: false,
            classes: HashMap::default(),
            known: HashMap::default(),
            rows: BTreeMap::new(),
            idle: BTreeSet::new(),
            next_class: 1,
            touched: BTreeMap::new(),
            rows_when_made: 0,
        };
        let result = resolved.take_hold(id, rules, peers);
        (resolved, result)
    }

    fn take_hold(&mut self, id: PolicyId, rules: &[Arc<Rule>], peers: &mut Peers) -> Result<(), Overflow> {
        let mut nets = BTreeSet::new();
        for selector in rules.iter().flat_map(|rule| selectors(rule)) {
            if let PeerSelector::Cidr { cidr, except, .. } = &**selector {
                nets.insert(*cidr);
                nets.extend(except.iter());
            }
        }
        if nets.iter().any(holds_mapped) {
            nets.insert(EVERY_V4);
        }
        for net in nets {
            peers.acquire_prefix(net)?;
            self.prefixes.push(net);
        }
        let mut any = Vec::new();
        let result = rules.iter().try_for_each(|rule| self.add_rule(id, rule, peers, &mut any));
        self.selectors.sort_unstable();
        self.selectors.dedup();
        result?;
        self.any = ports::reduce(any, &Content::new());
        for (place, verdict) in &self.any {
            self.compiled.entries.insert(place.of(PolicyClass::ANY), *verdict);
        }
        Ok(())
    }

    fn hold(&mut self, select: Select, id: PolicyId, peers: &mut Peers) -> Result<SelectorId, Overflow> {
        let selector = peers.acquire(select, id)?;
        self.selectors.push(selector);
        Ok(selector)
    }

    fn add_rule(
        &mut self,
        id: PolicyId,
        rule: &Rule,
        peers: &mut Peers,
        any: &mut Vec<(PortPrefix, Verdict)>,
    ) -> Result<(), Overflow> {
        let mut part = Part { verdict: rule.verdict, ports: rule.ports.clone() };
        self.has_denials |= rule.verdict.action != Action::Allow;
        let mut asked: &[PortName] = &[];
        match self.key.direction {
            Direction::Ingress => {
                for (name, numbers) in self.key.names.iter().filter(|(name, _)| rule.names.contains(name)) {
                    part.ports.extend(numbers.iter().flat_map(|port| ports::split(name.0.number(), *port, *port)));
                }
            }
            Direction::Egress => asked = &rule.names,
        }
        let index = u32::try_from(self.parts.len()).expect("rules have 32 bit numbers");
        // Only a pod's ports have names.
        let every_pod = [Arc::new(PeerSelector::EVERY_POD)];
        let selectors: &[Arc<PeerSelector>] = match &rule.peers {
            rule::Peers::Any => {
                any.extend(part.ports.drain(..).map(|prefix| (prefix, rule.verdict)));
                if asked.is_empty() { &[] } else { &every_pod }
            }
            rule::Peers::Some(selectors) => selectors,
        };
        for selector in selectors {
            if part.ports.is_empty() && asked.is_empty() {
                continue;
            }
            let id_of = self.hold(Select::Peer(Arc::clone(selector)), id, peers)?;
            if !part.ports.is_empty() {
                self.uses.entry(id_of).or_default().push(Use::Numbers(index));
            }
            if matches!(**selector, PeerSelector::Cidr { .. }) {
                continue;
            }
            for name in asked {
                let named = self.hold(Select::Named(Arc::clone(selector), name.clone()), id, peers)?;
                self.uses.entry(named).or_default().push(Use::Name(index, name.0.number()));
            }
        }
        self.parts.push(part);
        Ok(())
    }

    /// Prefixes that it holds.
    pub fn prefixes(&self) -> &[IpNet] {
        &self.prefixes
    }

    /// Selectors that it holds.
    pub fn selectors(&self) -> &[SelectorId] {
        &self.selectors
    }

    /// As the kernel shall have it.
    pub fn compiled(&self) -> &CompiledPolicy {
        &self.compiled
    }

    /// Entries and rows in it.
    pub fn usage(&self) -> Usage {
        Usage { entries: self.compiled.entries.len(), rows: self.compiled.classes.len() }
    }

    /// Whether more may pass if it does not know of some class.
    pub fn is_strict(&self) -> bool {
        self.has_denials || self.compiled.rest != PolicyClass::ANY
    }

    /// Whether classes of identities that no selector of it selects need rows.
    pub fn has_rest(&self) -> bool {
        self.compiled.rest != PolicyClass::ANY
    }

    fn hits(&self, key: &[Mark]) -> Vec<Hit> {
        let mut hits = Vec::new();
        for mark in key {
            for apply in self.uses.get(&mark.selector).into_iter().flatten() {
                hits.push((*apply, mark.value));
            }
        }
        hits.sort_unstable();
        hits.dedup();
        hits
    }

    fn content(&self, hits: &[Hit]) -> Content {
        let mut entries = Vec::new();
        for (apply, value) in hits {
            match apply {
                Use::Numbers(part) => {
                    let part = &self.parts[*part as usize];
                    entries.extend(part.ports.iter().map(|ports| (*ports, part.verdict)));
                }
                Use::Name(part, protocol) => {
                    let Some(port) = value.checked_sub(1).and_then(|port| u16::try_from(port).ok()) else { continue };
                    let verdict = self.parts[*part as usize].verdict;
                    entries.extend(ports::split(*protocol, port, port).into_iter().map(|ports| (ports, verdict)));
                }
            }
        }
        ports::reduce(entries, &self.any)
    }

    /// Classes of which its selectors say something, with what applies to each.
    fn concerned(&self, classes: &Classes) -> BTreeMap<Index, Vec<Hit>> {
        let mut concerned: BTreeSet<Index> = BTreeSet::new();
        for selector in self.uses.keys() {
            concerned.extend(classes.of(*selector));
        }
        // Those without peers count as long as the kernel may still have peers there.
        let row = |class: Index| Some(classes.get(class)).filter(|row| row.members > 0 || row.in_kernel);
        concerned.into_iter().filter_map(|class| Some((class, self.hits(&row(class)?.key)))).collect()
    }

    /// Looks at all classes. Refused if they do not fit.
    pub fn fill(&mut self, peers: &Peers, usage: &mut Usage, limits: &Limits) -> Result<(), Overflow> {
        let concerned = self.concerned(peers.classes());
        if let Some(content) = self.best_rest(peers, &concerned) {
            let class = self.class_for(content, usage, limits)?;
            self.compiled.rest = class;
            self.rows.get_mut(&class).expect("just made").rows += 1;
        }
        for (class, hits) in &concerned {
            let content = self.class_of_hits(hits, usage, limits)?;
            self.set_row(peers.classes().get(*class), Some(content), usage, limits)?;
        }
        if self.has_rest() {
            for (class, row) in peers.classes().iter() {
                if !row.is_prefix && !concerned.contains_key(&class) {
                    self.set_row(row, Some(PolicyClass::ANY), usage, limits)?;
                }
            }
        }
        self.rows_when_made = self.compiled.classes.len();
        Ok(())
    }

    /// Looks at one class.
    pub fn learn(&mut self, class: &Peer, usage: &mut Usage, limits: &Limits) -> Result<(), Overflow> {
        let hits = self.hits(&class.key);
        let content = self.class_of_hits(&hits, usage, limits)?;
        self.set_row(class, Some(content), usage, limits)
    }

    /// A class is no more, or its row does not fit.
    pub fn forget(&mut self, class: &Peer, usage: &mut Usage, limits: &Limits) {
        let forgotten = self.set_row(class, None, usage, limits);
        debug_assert!(forgotten.is_ok(), "removing a row needs no room");
    }

    fn class_of_hits(&mut self, hits: &[Hit], usage: &mut Usage, limits: &Limits) -> Result<PolicyClass, Overflow> {
        if let Some(class) = self.known.get(hits) {
            return Ok(*class);
        }
        let class = self.class_for(self.content(hits), usage, limits)?;
        self.known.insert(hits.to_vec(), class);
        Ok(class)
    }

    fn class_for(&mut self, content: Content, usage: &mut Usage, limits: &Limits) -> Result<PolicyClass, Overflow> {
        if content.is_empty() {
            return Ok(PolicyClass::ANY);
        }
        if let Some(class) = self.classes.get(&content) {
            return Ok(*class);
        }
        limits.check_policy(self.compiled.entries.len() + content.len(), self.compiled.classes.len())?;
        limits.check_total(usage.entries + content.len(), usage.rows)?;
        let class = PolicyClass(self.next_class);
        self.next_class += 1;
        for (place, verdict) in &content {
            self.compiled.entries.insert(place.of(class), *verdict);
        }
        usage.entries += content.len();
        let content = Arc::new(content);
        self.classes.insert(Arc::clone(&content), class);
        self.rows.insert(class, Class { content, rows: 0, in_kernel: false });
        self.idle.insert(class);
        Ok(class)
    }

    /// What a class of peers comes to; `None`: nothing, since it is no more. Refused, and nothing changed, if that would
    /// exceed a limit.
    fn set_row(
        &mut self,
        class: &Peer,
        content: Option<PolicyClass>,
        usage: &mut Usage,
        limits: &Limits,
    ) -> Result<(), Overflow> {
        let implied = if class.is_prefix { PolicyClass::ANY } else { self.compiled.rest };
        let new = content.filter(|content| *content != implied);
        let old = self.compiled.classes.get(&class.number).copied();
        if old == new {
            return Ok(());
        }
        if new.is_some() && old.is_none() {
            limits.check_policy(self.compiled.entries.len(), self.compiled.classes.len() + 1)?;
            limits.check_total(usage.entries, usage.rows + 1)?;
        }
        self.touched.entry(class.number).or_insert(old);
        match new {
            Some(new) => {
                self.compiled.classes.insert(class.number, new);
                usage.rows += usize::from(old.is_none());
            }
            None => {
                self.compiled.classes.remove(&class.number);
                usage.rows -= 1;
            }
        }
        if let Some(row) = new.and_then(|new| self.rows.get_mut(&new)) {
            row.rows += 1;
        }
        if let Some(old) = old
            && let Some(row) = self.rows.get_mut(&old)
        {
            row.rows -= 1;
            if row.rows == 0 {
                self.idle.insert(old);
            }
        }
        Ok(())
    }

    /// What is decided for the peers of a class beside what is decided for anybody.
    fn content_at(&self, class: PeerClass, is_prefix: bool) -> Option<&Content> {
        let implied = if is_prefix || class == PeerClass(0) { PolicyClass::ANY } else { self.compiled.rest };
        let id = self.compiled.classes.get(&class).copied().unwrap_or(implied);
        self.rows.get(&id).map(|row| &*row.content)
    }

    /// Whether a peer that goes from one class to another keeps all that it may do here, and whether anything changes
    /// for it at all.
    pub fn compare(&self, from: PeerClass, to: PeerClass, is_prefix: bool) -> (bool, bool) {
        let (from, to) = (self.content_at(from, is_prefix), self.content_at(to, is_prefix));
        if from == to {
            return (true, false);
        }
        let none = Content::new();
        (ports::only_grows(from.unwrap_or(&none), to.unwrap_or(&none)), true)
    }

    /// Whether something changed since the last [`Self::commit`].
    pub fn is_changed(&self) -> bool {
        !self.touched.is_empty() || !self.idle.is_empty()
    }

    /// What changed: what is new, and what is no more. The kernel counts as having it from now on.
    pub fn commit(&mut self, usage: &mut Usage) -> (PolicyPatch, PolicyPatch) {
        let (mut new, mut gone) = (PolicyPatch::default(), PolicyPatch::default());
        for (class, before) in std::mem::take(&mut self.touched) {
            match self.compiled.classes.get(&class) {
                Some(now) if before == Some(*now) => {}
                Some(now) => {
                    new.put_classes.insert(class, *now);
                }
                None if before.is_some() => {
                    gone.del_classes.insert(class);
                }
                None => {}
            }
        }
        let unknown = new.put_classes.values().chain([&self.compiled.rest]).copied().collect::<BTreeSet<_>>();
        for class in unknown {
            if let Some(row) = self.rows.get_mut(&class)
                && !std::mem::replace(&mut row.in_kernel, true)
            {
                new.put_entries.extend(row.content.iter().map(|(place, verdict)| (place.of(class), *verdict)));
            }
        }
        let mut is_forgotten = false;
        for class in std::mem::take(&mut self.idle) {
            if self.rows.get(&class).is_none_or(|row| row.rows > 0) {
                continue;
            }
            let row = self.rows.remove(&class).expect("just looked at");
            self.classes.remove(&row.content);
            is_forgotten = true;
            usage.entries -= row.content.len();
            for place in row.content.keys() {
                self.compiled.entries.remove(&place.of(class));
                if row.in_kernel {
                    gone.del_entries.insert(place.of(class));
                }
            }
        }
        if is_forgotten {
            let rows = &self.rows;
            self.known.retain(|_, class| *class == PolicyClass::ANY || rows.contains_key(class));
        }
        self.in_kernel = true;
        (new, gone)
    }
}

fn selectors(rule: &Rule) -> &[Arc<PeerSelector>] {
    match &rule.peers {
        rule::Peers::Any => &[],
        rule::Peers::Some(selectors) => selectors,
    }
}
