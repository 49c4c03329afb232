//! One resolved policy: its peers sorted into classes, and what changed since the kernel last heard of it.
//!
//! A class is a content: peers for which the same rules open the same ports share it. Classes never change; a peer
//! whose content changes moves to another class. So a change of one peer is one entry, and no number means two
//! things at any time.

use super::ports::{self, Content};
use super::prefix::widen;
use super::rule::{Peers, Rule};
use super::selector::{PeerSelector, SelectorId, Selectors};
use super::{Direction, Limits, Overflow};
use foldhash::{HashMap, HashSet};
use ipnet::{IpNet, Ipv4Net};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use weft_model::desired::{Action, CompiledPolicy, PolicyPatch, PortPrefix, Verdict};
use weft_model::id::{ClassId, EndpointId, Identity, PolicyId, RuleId};
use weft_model::intent::Protocol;

/// Precedence of a plain allow.
pub const PLAIN_ALLOW: u32 = 1;

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
    /// Its rules, sorted.
    pub rules: Vec<RuleId>,
    /// For ingress: the numbers of the subject's ports that the rules name.
    pub names: Vec<(PortName, Vec<u16>)>,
}

/// Entries and peers of all policies together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Entries.
    pub entries: usize,
    /// Peers.
    pub peers: usize,
}

/// A rule's ports, for the peers that one of its selectors or blocks matches.
#[derive(Debug)]
struct Part {
    rule: RuleId,
    ports: Vec<PortPrefix>,
    /// Ports to be looked up in each peer.
    names: Vec<PortName>,
}

#[derive(Debug)]
struct Block {
    part: usize,
    except: Arc<[IpNet]>,
}

#[derive(Debug)]
struct Class {
    content: Arc<Content>,
    peers: usize,
    in_kernel: bool,
}

/// See the module.
#[derive(Debug)]
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
    by_selector: BTreeMap<SelectorId, Vec<usize>>,
    blocks: HashMap<IpNet, Vec<Block>>,
    block_lengths: [BTreeSet<u8>; 2],
    prefixes: Vec<IpNet>,
    has_names: bool,
    /// Addresses of pods that must be told apart from others of their identity, since a port's name means another
    /// number there.
    hosts: BTreeMap<Identity, BTreeSet<IpNet>>,
    classes: HashMap<Arc<Content>, ClassId>,
    rows: BTreeMap<ClassId, Class>,
    /// Classes that may have lost their last peer.
    idle: BTreeSet<ClassId>,
    next_class: u32,
    /// Peers that changed, with the class that the kernel has.
    touched: BTreeMap<Identity, Option<ClassId>>,
}

impl Resolved {
    /// Starts one: knows its rules, not yet its peers.
    pub fn new(id: PolicyId, key: Key, rules: &[Arc<Rule>], selectors: &mut Selectors) -> Self {
        let mut resolved = Self {
            key,
            users: BTreeSet::new(),
            in_kernel: false,
            compiled: CompiledPolicy::default(),
            parts: Vec::new(),
            any: Content::new(),
            by_selector: BTreeMap::new(),
            blocks: HashMap::default(),
            block_lengths: [BTreeSet::new(), BTreeSet::new()],
            prefixes: Vec::new(),
            has_names: false,
            hosts: BTreeMap::new(),
            classes: HashMap::default(),
            rows: BTreeMap::new(),
            idle: BTreeSet::new(),
            next_class: 1,
            touched: BTreeMap::new(),
        };
        let mut any = Vec::new();
        for rule in rules {
            resolved.add_rule(id, rule, selectors, &mut any);
        }
        resolved.any = ports::reduce(any, &Content::new());
        for (prefix, rule) in &resolved.any {
            resolved.compiled.entries.insert((ClassId::ANY, *prefix), allow(*rule));
        }
        if resolved.prefixes.iter().any(holds_mapped) {
            resolved.prefixes.push(EVERY_V4);
        }
        resolved.prefixes.sort_unstable();
        resolved.prefixes.dedup();
        resolved
    }

    fn add_rule(&mut self, id: PolicyId, rule: &Rule, selectors: &mut Selectors, any: &mut Vec<(PortPrefix, RuleId)>) {
        let mut part = Part { rule: rule.id, ports: rule.ports.clone(), names: Vec::new() };
        match self.key.direction {
            Direction::Ingress => {
                for (name, numbers) in self.key.names.iter().filter(|(name, _)| rule.names.contains(name)) {
                    part.ports.extend(numbers.iter().flat_map(|port| ports::split(name.0.number(), *port, *port)));
                }
            }
            Direction::Egress => part.names.clone_from(&rule.names),
        }
        self.has_names |= !part.names.is_empty();
        let index = self.parts.len();
        match &rule.peers {
            Peers::Any => {
                any.extend(part.ports.drain(..).map(|prefix| (prefix, rule.id)));
                if !part.names.is_empty() {
                    // Only a pod's ports have names.
                    let every_pod = selectors.acquire(&Arc::new(PeerSelector::EVERY_POD), id);
                    self.by_selector.entry(every_pod).or_default().push(index);
                }
            }
            Peers::Some { selectors: selected, blocks } => {
                for selector in selected {
                    let parts = self.by_selector.entry(selectors.acquire(selector, id)).or_default();
                    if parts.last() != Some(&index) {
                        parts.push(index);
                    }
                }
                for (net, except) in blocks {
                    self.prefixes.push(*net);
                    self.prefixes.extend(except.iter());
                    self.block_lengths[usize::from(net.addr().is_ipv6())].insert(net.prefix_len());
                    self.blocks.entry(*net).or_default().push(Block { part: index, except: Arc::clone(except) });
                }
            }
        }
        self.parts.push(part);
    }

    /// Prefixes that it names.
    pub fn prefixes(&self) -> &[IpNet] {
        &self.prefixes
    }

    /// Addresses of pods of `identity` that it tells apart.
    pub fn hosts_mut(&mut self, identity: Identity) -> &mut BTreeSet<IpNet> {
        self.hosts.entry(identity).or_default()
    }

    /// All addresses of pods that it tells apart.
    pub fn hosts(&self) -> impl Iterator<Item = &IpNet> {
        self.hosts.values().flatten()
    }

    /// The identities whose pods it tells apart at this address.
    pub fn identities_at(&self, host: &IpNet) -> impl Iterator<Item = Identity> {
        self.hosts.iter().filter(|(_, hosts)| hosts.contains(host)).map(|(identity, _)| *identity)
    }

    /// Selectors that it uses.
    pub fn selectors(&self) -> impl Iterator<Item = SelectorId> {
        self.by_selector.keys().copied()
    }

    /// Whether it allows prefixes.
    pub fn has_blocks(&self) -> bool {
        !self.blocks.is_empty()
    }

    /// Whether it asks for its peers' named ports.
    pub fn has_names(&self) -> bool {
        self.has_names
    }

    /// As the kernel shall have it.
    pub fn compiled(&self) -> &CompiledPolicy {
        &self.compiled
    }

    /// Whether it has anything under `peer`.
    pub fn knows(&self, peer: Identity) -> bool {
        self.compiled.peers.contains_key(&peer)
    }

    /// Entries and peers in it.
    pub fn usage(&self) -> Usage {
        Usage { entries: self.compiled.entries.len(), peers: self.compiled.peers.len() }
    }

    /// Sorted numbers of the parts that apply to a peer which these selectors select.
    pub fn parts_of_identity(&self, selectors: &[SelectorId]) -> Vec<usize> {
        let lists = selectors.iter().filter_map(|id| self.by_selector.get(id));
        let mut parts: Vec<usize> = lists.flatten().copied().collect();
        parts.sort_unstable();
        parts.dedup();
        parts
    }

    /// The same for the addresses of a prefix.
    pub fn parts_of_prefix(&self, net: &IpNet) -> Vec<usize> {
        let mut parts = Vec::new();
        for len in self.block_lengths[usize::from(net.addr().is_ipv6())].range(..=net.prefix_len()) {
            let blocks = widen(net, *len).and_then(|wider| self.blocks.get(&wider));
            let matching = blocks.into_iter().flatten().filter(|block| !block.except.iter().any(|e| e.contains(net)));
            parts.extend(matching.map(|block| block.part));
        }
        parts.sort_unstable();
        parts.dedup();
        parts
    }

    /// What these parts allow by number.
    pub fn by_number(&self, parts: &[usize]) -> Vec<(PortPrefix, RuleId)> {
        let ports = |part: &Part| part.ports.iter().map(|prefix| (*prefix, part.rule)).collect::<Vec<_>>();
        parts.iter().flat_map(|n| ports(&self.parts[*n])).collect()
    }

    /// What these parts allow by name; `numbers` tells a name's numbers.
    pub fn by_name(&self, parts: &[usize], numbers: impl Fn(&PortName) -> Vec<u16>) -> Vec<(PortPrefix, RuleId)> {
        let mut entries = Vec::new();
        for part in parts.iter().map(|n| &self.parts[*n]) {
            for name in &part.names {
                for port in numbers(name) {
                    entries.extend(ports::split(name.0.number(), port, port).iter().map(|p| (*p, part.rule)));
                }
            }
        }
        entries
    }

    /// Names that these parts ask for.
    pub fn names(&self, parts: &[usize]) -> HashSet<&PortName> {
        parts.iter().flat_map(|n| &self.parts[*n].names).collect()
    }

    /// Entries as a content of this policy.
    pub fn content(&self, entries: Vec<(PortPrefix, RuleId)>) -> Content {
        ports::reduce(entries, &self.any)
    }

    /// The class of a content; `None` for nothing. A new class must get a peer before the next [`Self::commit`].
    pub fn class_for(
        &mut self,
        content: Content,
        usage: &mut Usage,
        limits: &Limits,
    ) -> Result<Option<ClassId>, Overflow> {
        if content.is_empty() {
            return Ok(None);
        }
        if let Some(class) = self.classes.get(&content) {
            return Ok(Some(*class));
        }
        limits.check_policy(self.compiled.entries.len() + content.len(), self.compiled.peers.len())?;
        limits.check_total(usage.entries + content.len(), usage.peers)?;
        let class = ClassId(self.next_class);
        self.next_class += 1;
        for (prefix, rule) in &content {
            self.compiled.entries.insert((class, *prefix), allow(*rule));
        }
        usage.entries += content.len();
        let content = Arc::new(content);
        self.classes.insert(Arc::clone(&content), class);
        self.rows.insert(class, Class { content, peers: 0, in_kernel: false });
        self.idle.insert(class);
        Ok(Some(class))
    }

    /// Puts a peer into a class. Refused, and nothing changed, if that would exceed a limit.
    pub fn set_peer(
        &mut self,
        peer: Identity,
        new: Option<ClassId>,
        usage: &mut Usage,
        limits: &Limits,
    ) -> Result<(), Overflow> {
        let old = self.compiled.peers.get(&peer).copied();
        if old == new {
            return Ok(());
        }
        if new.is_some() && old.is_none() {
            limits.check_policy(self.compiled.entries.len(), self.compiled.peers.len() + 1)?;
            limits.check_total(usage.entries, usage.peers + 1)?;
        }
        self.touched.entry(peer).or_insert(old);
        if let Some(class) = new {
            self.compiled.peers.insert(peer, class);
            self.rows.get_mut(&class).expect("of a known class").peers += 1;
            usage.peers += usize::from(old.is_none());
        } else {
            self.compiled.peers.remove(&peer);
            usage.peers -= 1;
        }
        if let Some(class) = old {
            let row = self.rows.get_mut(&class).expect("of a known class");
            row.peers -= 1;
            if row.peers == 0 {
                self.idle.insert(class);
            }
        }
        Ok(())
    }

    /// Whether something changed since the last [`Self::commit`].
    pub fn is_changed(&self) -> bool {
        !self.touched.is_empty() || !self.idle.is_empty()
    }

    /// What changed: peers that may do more than before, and peers that may not do all that they could. The kernel
    /// counts as having it from now on.
    pub fn commit(&mut self, usage: &mut Usage) -> (PolicyPatch, PolicyPatch) {
        let (mut wider, mut other) = (PolicyPatch::default(), PolicyPatch::default());
        for (peer, before) in std::mem::take(&mut self.touched) {
            match self.compiled.peers.get(&peer) {
                Some(now) if before == Some(*now) => {}
                Some(now) => {
                    let grows = before.is_none_or(|before| {
                        let content = &self.rows[now].content;
                        self.rows[&before].content.keys().all(|prefix| ports::covers(content, *prefix))
                    });
                    let patch = if grows { &mut wider } else { &mut other };
                    patch.put_peers.insert(peer, *now);
                    let row = self.rows.get_mut(now).expect("of a known class");
                    if !std::mem::replace(&mut row.in_kernel, true) {
                        wider.put_entries.extend(row.content.iter().map(|(p, rule)| ((*now, *p), allow(*rule))));
                    }
                }
                None if before.is_some() => {
                    other.del_peers.insert(peer);
                }
                None => {}
            }
        }
        for class in std::mem::take(&mut self.idle) {
            if self.rows.get(&class).is_none_or(|row| row.peers > 0) {
                continue;
            }
            let row = self.rows.remove(&class).expect("just looked at");
            self.classes.remove(&row.content);
            usage.entries -= row.content.len();
            for prefix in row.content.keys() {
                self.compiled.entries.remove(&(class, *prefix));
                if row.in_kernel {
                    other.del_entries.insert((class, *prefix));
                }
            }
        }
        self.in_kernel = true;
        (wider, other)
    }
}

fn allow(rule: RuleId) -> Verdict {
    Verdict { action: Action::Allow, precedence: PLAIN_ALLOW, rule }
}
