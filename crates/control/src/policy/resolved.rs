//! One resolved policy: the rules that apply to some endpoints in one direction, compiled to policy classes and their entries.
//!
//! Peer classes to which the same rules apply with the same ports share a policy class. The policy class of a peer class in a
//! policy never changes: a policy in force only gets rows for new classes, and loses those of removed ones.

use super::classes::{Class, Classes, Index, Mark};
use super::interface::{Direction, SelectorId};
use super::limits::{Limits, Overflow};
use super::peers::Peers;
use super::ports::{self, Entries};
use super::rule::{self, Rule};
use super::selector::{PeerSelector, Select};
use foldhash::HashMap;
use ipnet::{IpNet, Ipv4Net};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use weft_model::desired::{Action, CompiledPolicy, PolicyPatch, PortPrefix, Verdict};
use weft_model::id::{EndpointId, PeerClass, PolicyClass, PolicyId, RuleId};
use weft_model::intent::Protocol;

mod rest;

pub type PortName = (Protocol, String);

const EVERY_V4: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0));

/// Whether an IPv6 prefix contains the IPv4-mapped addresses. The kernel keeps IPv4 addresses in this form, so a prefix such
/// as `::/0` would match them too, unless `0.0.0.0/0` is a longer match.
fn contains_mapped(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(v6) if v6.contains(&Ipv4Addr::UNSPECIFIED.to_ipv6_mapped()))
}

/// The inputs of a resolved policy. Endpoints with equal keys share it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Key {
    pub direction: Direction,
    /// Traffic that no rule matches is allowed.
    pub default_allow: bool,
    /// Sorted.
    pub rules: Vec<RuleId>,
    /// For ingress: the subject's port numbers for the named ports in the rules.
    pub names: Vec<(PortName, Vec<u16>)>,
}

/// Room that policies take.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub entries: usize,
    /// Peer classes with a policy class of their own.
    pub rows: usize,
}

/// Verdict and ports of a rule.
#[derive(Clone, Debug)]
struct Part {
    verdict: Verdict,
    ports: Vec<PortPrefix>,
}

/// How a rule uses a selector.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Use {
    /// The numeric ports of a part.
    Numbers(u32),
    /// A named port: the number is the value of the selector's mark; with the part and the protocol.
    Name(u32, u8),
}

/// A part that applies to a class, with the value of the mark: 0, or the named port's number plus one.
type Hit = (Use, u32);

#[derive(Clone, Debug)]
struct ClassEntries {
    entries: Arc<Entries>,
    /// Peer classes that use it.
    rows: usize,
    in_kernel: bool,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Resolved {
    pub key: Key,
    pub users: BTreeSet<EndpointId>,
    /// The kernel has it, except for the changes since [`Self::commit`].
    pub in_kernel: bool,
    compiled: CompiledPolicy,
    parts: Vec<Part>,
    any: Entries,
    uses: HashMap<SelectorId, Vec<Use>>,
    /// All selectors that it holds a reference on, also those without a use.
    selectors: Vec<SelectorId>,
    prefixes: Vec<IpNet>,
    /// Some rule does not allow.
    has_denials: bool,
    by_entries: HashMap<Arc<Entries>, PolicyClass>,
    /// A cache: some policy classes by their hits.
    by_hits: HashMap<Vec<Hit>, PolicyClass>,
    by_class: BTreeMap<PolicyClass, ClassEntries>,
    /// Policy classes that may have lost their last row.
    idle: BTreeSet<PolicyClass>,
    next_class: u32,
    /// Rows that changed, with what the kernel has.
    touched: BTreeMap<PeerClass, Option<PolicyClass>>,
    rows_when_compiled: usize,
}

impl Resolved {
    /// Acquires the prefixes and selectors of the rules. `Err`: they do not fit; release what the returned policy holds all
    /// the same.
    pub fn new(id: PolicyId, key: Key, rules: &[Arc<Rule>], peers: &mut Peers) -> (Self, Result<(), Overflow>) {
        let compiled = CompiledPolicy { default_allow: key.default_allow, ..CompiledPolicy::default() };
        let mut resolved = Self {
            key,
            users: BTreeSet::new(),
            in_kernel: false,
            compiled,
            parts: Vec::new(),
            any: Entries::new(),
            uses: HashMap::default(),
            selectors: Vec::new(),
            prefixes: Vec::new(),
            has_denials: false,
            by_entries: HashMap::default(),
            by_hits: HashMap::default(),
            by_class: BTreeMap::new(),
            idle: BTreeSet::new(),
            next_class: 1,
            touched: BTreeMap::new(),
            rows_when_compiled: 0,
        };
        let result = resolved.acquire_selectors(id, rules, peers);
        (resolved, result)
    }

    fn acquire_selectors(&mut self, id: PolicyId, rules: &[Arc<Rule>], peers: &mut Peers) -> Result<(), Overflow> {
        let mut nets = BTreeSet::new();
        for selector in rules.iter().flat_map(|rule| selectors(rule)) {
            if let PeerSelector::Cidr { cidr, except, .. } = &**selector {
                nets.insert(*cidr);
                nets.extend(except.iter());
            }
        }
        if nets.iter().any(contains_mapped) {
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
        self.any = ports::reduce(any, &Entries::new());
        for (key, verdict) in &self.any {
            self.compiled.entries.insert(key.of(PolicyClass::ANY), *verdict);
        }
        Ok(())
    }

    fn acquire(&mut self, select: Select, id: PolicyId, peers: &mut Peers) -> Result<SelectorId, Overflow> {
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
        let mut names_at_peers: &[PortName] = &[];
        match self.key.direction {
            Direction::Ingress => {
                for (name, numbers) in self.key.names.iter().filter(|(name, _)| rule.names.contains(name)) {
                    part.ports.extend(numbers.iter().flat_map(|port| ports::split(name.0.number(), *port, *port)));
                }
            }
            Direction::Egress => names_at_peers = &rule.names,
        }
        let index = u32::try_from(self.parts.len()).expect("rules have 32 bit numbers");
        // Only pods have named ports.
        let every_pod = [Arc::new(PeerSelector::EVERY_POD)];
        let selectors: &[Arc<PeerSelector>] = match &rule.peers {
            rule::PeerMatch::Any => {
                any.extend(part.ports.drain(..).map(|prefix| (prefix, rule.verdict)));
                if names_at_peers.is_empty() { &[] } else { &every_pod }
            }
            rule::PeerMatch::Selectors(selectors) => selectors,
        };
        for selector in selectors {
            if part.ports.is_empty() && names_at_peers.is_empty() {
                continue;
            }
            let id_of = self.acquire(Select::Peer(Arc::clone(selector)), id, peers)?;
            if !part.ports.is_empty() {
                self.uses.entry(id_of).or_default().push(Use::Numbers(index));
            }
            if matches!(**selector, PeerSelector::Cidr { .. }) {
                continue;
            }
            for name in names_at_peers {
                let named = self.acquire(Select::Named(Arc::clone(selector), name.clone()), id, peers)?;
                self.uses.entry(named).or_default().push(Use::Name(index, name.0.number()));
            }
        }
        self.parts.push(part);
        Ok(())
    }

    pub fn prefixes(&self) -> &[IpNet] {
        &self.prefixes
    }

    pub fn selectors(&self) -> &[SelectorId] {
        &self.selectors
    }

    pub fn compiled(&self) -> &CompiledPolicy {
        &self.compiled
    }

    pub fn usage(&self) -> Usage {
        Usage { entries: self.compiled.entries.len(), rows: self.compiled.classes.len() }
    }

    /// Whether it may allow too much while it lacks a row.
    pub fn is_strict(&self) -> bool {
        self.has_denials || self.compiled.rest != PolicyClass::ANY
    }

    /// Whether classes of identities that none of its selectors selects need rows.
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

    fn entries_of(&self, hits: &[Hit]) -> Entries {
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

    /// The classes that its selectors mark, with what applies to each.
    fn marked_classes(&self, classes: &Classes) -> BTreeMap<Index, Vec<Hit>> {
        let mut marked: BTreeSet<Index> = BTreeSet::new();
        for selector in self.uses.keys() {
            marked.extend(classes.of(*selector));
        }
        // Classes without peers count while the kernel may still have rows of them.
        let row = |class: Index| Some(classes.get(class)).filter(|row| row.members > 0 || row.in_kernel);
        marked.into_iter().filter_map(|class| Some((class, self.hits(&row(class)?.key)))).collect()
    }

    /// Adds the rows of all classes.
    pub fn fill(&mut self, peers: &Peers, usage: &mut Usage, limits: &Limits) -> Result<(), Overflow> {
        let marked = self.marked_classes(peers.classes());
        if let Some(entries) = self.best_rest(peers, &marked) {
            let policy_class = self.class_of_entries(entries, usage, limits)?;
            self.compiled.rest = policy_class;
            self.by_class.get_mut(&policy_class).expect("just made").rows += 1;
        }
        for (class, hits) in &marked {
            let policy_class = self.class_of_hits(hits, usage, limits)?;
            self.set_row(peers.classes().get(*class), Some(policy_class), usage, limits)?;
        }
        if self.has_rest() {
            for (class, row) in peers.classes().iter() {
                if !row.is_prefix && !marked.contains_key(&class) {
                    self.set_row(row, Some(PolicyClass::ANY), usage, limits)?;
                }
            }
        }
        self.rows_when_compiled = self.compiled.classes.len();
        Ok(())
    }

    /// Adds the row of a class.
    pub fn add_row(&mut self, class: &Class, usage: &mut Usage, limits: &Limits) -> Result<(), Overflow> {
        let hits = self.hits(&class.key);
        let policy_class = self.class_of_hits(&hits, usage, limits)?;
        self.set_row(class, Some(policy_class), usage, limits)
    }

    /// Removes the row of a class that was removed, or whose row does not fit.
    pub fn remove_row(&mut self, class: &Class, usage: &mut Usage, limits: &Limits) {
        let removed = self.set_row(class, None, usage, limits);
        debug_assert!(removed.is_ok(), "removing a row needs no room");
    }

    fn class_of_hits(&mut self, hits: &[Hit], usage: &mut Usage, limits: &Limits) -> Result<PolicyClass, Overflow> {
        if let Some(policy_class) = self.by_hits.get(hits) {
            return Ok(*policy_class);
        }
        let policy_class = self.class_of_entries(self.entries_of(hits), usage, limits)?;
        self.by_hits.insert(hits.to_vec(), policy_class);
        Ok(policy_class)
    }

    fn class_of_entries(
        &mut self,
        entries: Entries,
        usage: &mut Usage,
        limits: &Limits,
    ) -> Result<PolicyClass, Overflow> {
        if entries.is_empty() {
            return Ok(PolicyClass::ANY);
        }
        if let Some(policy_class) = self.by_entries.get(&entries) {
            return Ok(*policy_class);
        }
        limits.check_policy(self.compiled.entries.len() + entries.len(), self.compiled.classes.len())?;
        limits.check_total(usage.entries + entries.len(), usage.rows)?;
        let policy_class = PolicyClass(self.next_class);
        self.next_class += 1;
        for (key, verdict) in &entries {
            self.compiled.entries.insert(key.of(policy_class), *verdict);
        }
        usage.entries += entries.len();
        let entries = Arc::new(entries);
        self.by_entries.insert(Arc::clone(&entries), policy_class);
        self.by_class.insert(policy_class, ClassEntries { entries, rows: 0, in_kernel: false });
        self.idle.insert(policy_class);
        Ok(policy_class)
    }

    /// Sets the policy class of a peer class; `None`: the class is removed. Nothing changes if that would exceed a limit.
    fn set_row(
        &mut self,
        class: &Class,
        policy_class: Option<PolicyClass>,
        usage: &mut Usage,
        limits: &Limits,
    ) -> Result<(), Overflow> {
        let implied = if class.is_prefix { PolicyClass::ANY } else { self.compiled.rest };
        let new = policy_class.filter(|policy_class| *policy_class != implied);
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
        if let Some(policy_class) = new.and_then(|new| self.by_class.get_mut(&new)) {
            policy_class.rows += 1;
        }
        if let Some(old) = old
            && let Some(policy_class) = self.by_class.get_mut(&old)
        {
            policy_class.rows -= 1;
            if policy_class.rows == 0 {
                self.idle.insert(old);
            }
        }
        Ok(())
    }

    /// The entries for the peers of a class, beside those for any peer.
    fn entries_at(&self, class: PeerClass, is_prefix: bool) -> Option<&Entries> {
        let implied = if is_prefix || class == PeerClass(0) { PolicyClass::ANY } else { self.compiled.rest };
        let policy_class = self.compiled.classes.get(&class).copied().unwrap_or(implied);
        self.by_class.get(&policy_class).map(|policy_class| &*policy_class.entries)
    }

    /// Whether a peer that moves from one class to another is allowed at least as much here, and whether anything changes
    /// for it.
    pub fn compare(&self, from: PeerClass, to: PeerClass, is_prefix: bool) -> (bool, bool) {
        let (from, to) = (self.entries_at(from, is_prefix), self.entries_at(to, is_prefix));
        if from == to {
            return (true, false);
        }
        let none = Entries::new();
        (ports::only_grows(from.unwrap_or(&none), to.unwrap_or(&none)), true)
    }

    /// Whether something changed since the last [`Self::commit`].
    pub fn is_changed(&self) -> bool {
        !self.touched.is_empty() || !self.idle.is_empty()
    }

    /// Returns what is new and what is removed since the last call. From now on the kernel counts as having it.
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
        let used = new.put_classes.values().chain([&self.compiled.rest]).copied().collect::<BTreeSet<_>>();
        for id in used {
            if let Some(policy_class) = self.by_class.get_mut(&id)
                && !std::mem::replace(&mut policy_class.in_kernel, true)
            {
                new.put_entries.extend(policy_class.entries.iter().map(|(key, verdict)| (key.of(id), *verdict)));
            }
        }
        let mut any_removed = false;
        for id in std::mem::take(&mut self.idle) {
            if self.by_class.get(&id).is_none_or(|policy_class| policy_class.rows > 0) {
                continue;
            }
            let policy_class = self.by_class.remove(&id).expect("just looked at");
            self.by_entries.remove(&policy_class.entries);
            any_removed = true;
            usage.entries -= policy_class.entries.len();
            for key in policy_class.entries.keys() {
                self.compiled.entries.remove(&key.of(id));
                if policy_class.in_kernel {
                    gone.del_entries.insert(key.of(id));
                }
            }
        }
        if any_removed {
            let by_class = &self.by_class;
            self.by_hits.retain(|_, id| *id == PolicyClass::ANY || by_class.contains_key(id));
        }
        self.in_kernel = true;
        (new, gone)
    }
}

fn selectors(rule: &Rule) -> &[Arc<PeerSelector>] {
    match &rule.peers {
        rule::PeerMatch::Any => &[],
        rule::PeerMatch::Selectors(selectors) => selectors,
    }
}
