//! Addresses for this node's endpoints: from which pool, out of which blocks, and what the node asks for.

use super::endpoints::EndpointError;
use super::flush::{Part, Writer};
pub use crate::settings::{Ipam, PoolRule};
pub use crate::snapshot::Usage;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use weft_ipam::{
    Allocated, Block, Choice, Edges, Exchange, Family, NodePool, Outcome, OverlappingBlock, Placement, Record,
    Requested,
};
use weft_model::id::EndpointId;
use weft_model::intent::{Namespace, Pod};
use weft_settings::value::IpamMode;

/// The pool of those who ask for none.
pub const DEFAULT_POOL: &str = "default";

/// What this node has to give.
#[derive(Debug)]
pub struct Addresses {
    pool: NodePool,
    exchange: Option<Exchange>,
    rules: BTreeMap<String, PoolRule>,
    /// ADDs that found nothing, by pool and family: they are waiting.
    waiting: BTreeSet<(String, Choice)>,
    exhausted: bool,
    /// For readers, as long as nothing has changed.
    usage: Option<Usage>,
}

impl Addresses {
    /// Nothing yet.
    #[must_use]
    pub fn new(ipam: &Ipam) -> Self {
        Self {
            pool: NodePool::new(ipam.advice()),
            exchange: ipam.exchange(),
            rules: BTreeMap::new(),
            waiting: BTreeSet::new(),
            exhausted: false,
            usage: None,
        }
    }

    /// Whether blocks come by the node's object.
    #[must_use]
    pub fn exchanges_blocks(&self) -> bool {
        self.exchange.is_some()
    }

    /// The pool, to change it.
    fn pool(&mut self) -> &mut NodePool {
        self.usage = None;
        &mut self.pool
    }

    /// The node's blocks.
    #[must_use]
    pub fn blocks(&self) -> Vec<IpNet> {
        self.pool.usage().into_iter().map(|usage| usage.block.net).collect()
    }

    /// Prefix, addresses in use, addresses in all. Single addresses of a pool are one line.
    #[must_use]
    pub fn usage(&mut self) -> Usage {
        if let Some(usage) = &self.usage {
            return usage.clone();
        }
        let small = |number: u128| u64::try_from(number).unwrap_or(u64::MAX);
        let (mut lines, mut singles) = (Vec::new(), BTreeMap::<(String, Family), (u64, u64)>::new());
        for usage in self.pool.usage() {
            let net = usage.block.net;
            let (in_use, capacity) = (small(usage.in_use), small(usage.block.capacity()));
            if net.prefix_len() == net.max_prefix_len() {
                let sum = singles.entry((usage.pool, Family::of(net.addr()))).or_default();
                *sum = (sum.0 + in_use, sum.1 + capacity);
            } else {
                lines.push((net.to_string(), in_use, capacity));
            }
        }
        let singles = singles.into_iter();
        lines.extend(singles.map(|((pool, family), (used, all))| (format!("{family} addresses of {pool}"), used, all)));
        self.usage.insert(lines.into()).clone()
    }
}

impl Writer {
    /// From which pools a pod gets its addresses: what it says, else what its namespace says, else the one pool that
    /// selects it, else the default.
    pub(super) fn pool_choice(&self, pod: &Pod, namespace: Option<&Namespace>) -> Result<Choice, String> {
        let mut choice = Choice::default();
        for family in [(self.settings.ipv4, Family::V4), (self.settings.ipv6, Family::V6)] {
            let (true, family) = family else { continue };
            let pool = Some(self.pool_of(pod, namespace, family)?);
            match family {
                Family::V4 => choice.v4 = pool,
                Family::V6 => choice.v6 = pool,
            }
        }
        Ok(choice)
    }

    fn pool_of(&self, pod: &Pod, namespace: Option<&Namespace>, family: Family) -> Result<String, String> {
        if self.settings.ipam.mode != IpamMode::MultiPool {
            return Ok(DEFAULT_POOL.to_owned());
        }
        let wishes = [Some(&pod.address_pools), namespace.map(|namespace| &namespace.address_pools)];
        let wished = |wish: &weft_model::intent::PoolRequest| match family {
            Family::V4 => wish.v4.clone(),
            Family::V6 => wish.v6.clone(),
        };
        if let Some(name) = wishes.iter().flatten().find_map(|wish| wished(wish)) {
            return Ok(name);
        }
        let none = BTreeMap::new();
        let labels = namespace.map_or(&none, |namespace| &namespace.labels);
        let selects = |rule: &PoolRule| {
            (rule.pods.is_some() || rule.namespaces.is_some())
                && rule.families.contains(&family)
                && rule.pods.as_ref().is_none_or(|selector| selector.matches(&pod.labels))
                && rule.namespaces.as_ref().is_none_or(|selector| selector.matches(labels))
        };
        let selecting: Vec<&str> =
            self.own_pool.rules.iter().filter(|(_, rule)| selects(rule)).map(|(name, _)| name.as_str()).collect();
        match selecting.as_slice() {
            [name] => Ok((*name).to_owned()),
            [] if wishes.iter().flatten().any(|wish| wish.required) => {
                Err(format!("{}: no pool of {family} addresses selects it, and it requires one", pod.name))
            }
            [] => Ok(DEFAULT_POOL.to_owned()),
            several => Err(format!("{}: pools {} select it, expected one", pod.name, several.join(" and "))),
        }
    }

    /// An address of each family: all or nothing.
    ///
    /// # Errors
    /// A pool has none left.
    pub(super) fn allocate(&mut self, id: EndpointId, pod: &Pod) -> Result<Vec<IpAddr>, EndpointError> {
        let namespace = self.tables.namespaces.get(&pod.name.namespace).map(|namespace| &**namespace);
        let choice = self.pool_choice(pod, namespace).map_err(EndpointError::NoAddresses)?;
        let owner = id.to_string();
        match self.own_pool.pool().allocate(&owner, &choice) {
            Ok(taken) => {
                self.own_pool.waiting.retain(|(waiting, _)| *waiting != pod.uid);
                self.signals.addresses.notify_one();
                Ok(taken.addresses())
            }
            Err(error) => {
                // It counts as demand until it has one, or its pod is gone.
                if self.own_pool.waiting.insert((pod.uid.clone(), choice)) {
                    self.signals.addresses.notify_one();
                }
                let problem = self.problems.get(&Part::Addresses).map(|why| format!(" ({why})")).unwrap_or_default();
                Err(EndpointError::NoAddresses(format!("{error}{problem}")))
            }
        }
    }

    /// Claims addresses that another CNI plugin gave.
    ///
    /// # Errors
    /// Another endpoint has one of them, or a family is there twice or not in use; nothing was claimed.
    pub(super) fn claim_addresses(
        &mut self,
        id: EndpointId,
        addresses: Vec<IpAddr>,
    ) -> Result<Vec<IpAddr>, EndpointError> {
        let owner = id.to_string();
        for address in &addresses {
            let taken = if self.has_family(&IpNet::from(*address)) {
                self.own_pool.pool().restore(&owner, *address).map_err(|error| error.to_string())
            } else {
                Err(format!("{address} is of a family that pods do not have here"))
            };
            if let Err(problem) = taken {
                self.own_pool.pool().release(&owner);
                return Err(EndpointError::UnusableAddresses(problem));
            }
        }
        if addresses.is_empty() {
            return Err(EndpointError::UnusableAddresses("it gave none".to_owned()));
        }
        Ok(addresses)
    }

    /// Gives an endpoint's addresses back.
    pub(super) fn release_addresses(&mut self, id: EndpointId) {
        if !self.own_pool.pool().release(&id.to_string()).is_empty() {
            self.signals.addresses.notify_one();
            self.signals.blocks.notify_waiters();
        }
    }

    /// Makes the node's blocks its one prefix per family. Endpoints with addresses of a prefix that was taken away keep
    /// them.
    pub(super) fn set_prefixes(&mut self, cidrs: &[IpNet]) {
        if self.own_pool.exchange.is_some() {
            return;
        }
        let wanted: Vec<IpNet> = cidrs.iter().copied().filter(|cidr| self.has_family(cidr)).collect();
        let before: BTreeSet<IpNet> = self.own_pool.blocks().into_iter().collect();
        let block = |net: &IpNet| Block { net: *net, edges: Edges::Reserved, programmed: true };
        let problems = self.own_pool.pool().set_blocks(DEFAULT_POOL, &wanted.iter().map(block).collect::<Vec<_>>());
        self.blocks_changed(&before, &problems);
    }

    fn has_family(&self, cidr: &IpNet) -> bool {
        if cidr.addr().is_ipv4() { self.settings.ipv4 } else { self.settings.ipv6 }
    }

    fn blocks_changed(&mut self, before: &BTreeSet<IpNet>, problems: &[OverlappingBlock]) {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        self.set_problem(Part::Blocks, (!problems.is_empty()).then(|| problems.join("; ")));
        let now = self.own_pool.blocks();
        self.tables.own_blocks = self.own_pool.exchanges_blocks().then(|| now.clone());
        if now.iter().copied().collect::<BTreeSet<_>>() == *before {
            return;
        }
        if let Err(error) = self.state.set_pod_cidrs(&now) {
            self.set_problem(Part::PodCidrs, Some(format!("cannot write the file: {error}")));
        }
        self.nodes_changed();
        self.signals.nodes_announce.notify_one();
        self.touch();
        self.signals.blocks.notify_waiters();
    }

    /// What a former agent's node had: its endpoints keep their addresses before anybody can be asked. Where blocks come
    /// and go, nothing new is given of these before the API server confirmed them.
    pub(super) fn restore_blocks(&mut self, cidrs: &[IpNet]) {
        let (edges, programmed) = match &self.own_pool.exchange {
            None => (Edges::Reserved, true),
            Some(_) if self.settings.ipam.mode == IpamMode::Overlay => (Edges::Reserved, false),
            Some(_) => (Edges::Usable, false),
        };
        let known = cidrs.iter().filter(|cidr| self.has_family(cidr));
        let blocks: Vec<Block> = known.map(|net| Block { net: *net, edges, programmed }).collect();
        self.own_pool.pool().set_blocks(DEFAULT_POOL, &blocks);
        self.tables.own_blocks = self.own_pool.exchanges_blocks().then(|| self.own_pool.blocks());
        self.restore_addresses();
    }

    /// Takes the addresses that endpoints have.
    pub(super) fn restore_addresses(&mut self) {
        self.unpublished = true;
        for endpoint in self.tables.endpoints.values() {
            let record = &endpoint.record;
            for address in &record.addresses {
                match self.own_pool.pool().restore(&record.id.to_string(), *address) {
                    Ok(Placement::Inside | Placement::Stray) => {}
                    Err(error) => tracing::error!(endpoint = %record.id, %error, "two endpoints have one address"),
                }
            }
        }
    }

    /// Families that are on but have nothing to give from.
    pub(super) fn missing_families(&self) -> Vec<&'static str> {
        if self.settings.ipam.mode == IpamMode::Delegated {
            return Vec::new();
        }
        let has = |family| self.own_pool.pool.capacity(DEFAULT_POOL, family) > 0;
        let families = [(self.settings.ipv4, Family::V4, "IPv4"), (self.settings.ipv6, Family::V6, "IPv6")];
        families.into_iter().filter(|(on, family, _)| *on && !has(*family)).map(|(_, _, name)| name).collect()
    }

    /// Whether another CNI plugin gives addresses.
    #[must_use]
    pub fn is_delegated(&self) -> bool {
        self.settings.ipam.mode == IpamMode::Delegated
    }

    /// Whether blocks come by the node's object.
    #[must_use]
    pub fn exchanges_blocks(&self) -> bool {
        self.own_pool.exchanges_blocks()
    }

    /// Whether an ADD that found nothing may hope for more.
    #[must_use]
    pub fn may_grow(&self) -> bool {
        matches!(self.settings.ipam.mode, IpamMode::MultiPool | IpamMode::PodSubnet)
            || (self.exchanges_blocks() && !self.missing_families().is_empty())
    }

    /// By pool and family: the pods of this node that have an address or will want one.
    fn demand(&self) -> Requested {
        let mut demand = Requested::new();
        let default =
            (self.settings.ipv4.then_some(Family::V4)).into_iter().chain(self.settings.ipv6.then_some(Family::V6));
        demand.extend(default.map(|family| ((DEFAULT_POOL.to_owned(), family), 0)));
        let mut count = |choice: &Choice, times: u32| {
            for (family, pool) in choice.iter() {
                *demand.entry((pool.to_owned(), family)).or_default() += times;
            }
        };
        let mut attached: BTreeMap<&str, u32> = BTreeMap::new();
        for endpoint in self.tables.endpoints.values() {
            *attached.entry(&endpoint.record.pod_uid).or_default() += 1;
        }
        let waiting: BTreeMap<&str, &Choice> =
            self.own_pool.waiting.iter().map(|(uid, choice)| (uid.as_str(), choice)).collect();
        let mut counted: BTreeSet<&str> = BTreeSet::new();
        for pod in self.tables.pods.values().filter(|pod| !pod.host_network && !pod.finished) {
            if let Ok(choice) =
                self.pool_choice(pod, self.tables.namespaces.get(&pod.name.namespace).map(|namespace| &**namespace))
            {
                counted.insert(&pod.uid);
                // A pod is one attachment; a new sandbox beside the old one makes it two for a while.
                let more = u32::from(waiting.contains_key(pod.uid.as_str()));
                count(&choice, (attached.get(pod.uid.as_str()).copied().unwrap_or(0) + more).max(1));
            }
        }
        for (_, choice) in waiting.iter().filter(|(uid, _)| !counted.contains(**uid)) {
            count(choice, 1);
        }
        // Endpoints of pods that are gone still have theirs.
        let rest: u32 = attached.iter().filter(|(uid, _)| !counted.contains(**uid)).map(|(_, n)| n).sum();
        for ((pool, _), count) in &mut demand {
            if pool == DEFAULT_POOL {
                *count = count.saturating_add(rest);
            }
        }
        demand
    }

    /// Begins a turn with the operator: see [`Exchange::begin`]. `None`: there is nothing to write.
    pub fn begin_turn(&mut self, now: &Record, problem: &str) -> Option<Record> {
        self.own_pool.exhausted = problem.starts_with(weft_model::intent::SUBNET_FULL);
        self.set_problem(Part::Addresses, (!problem.is_empty()).then(|| problem.to_owned()));
        let uids: BTreeSet<&str> = self.tables.pods.values().map(|pod| pod.uid.as_str()).collect();
        self.own_pool.waiting.retain(|(uid, _)| uids.contains(uid.as_str()));
        let (demand, exhausted) = (self.demand(), self.own_pool.exhausted);
        let before: BTreeSet<IpNet> = self.own_pool.blocks().into_iter().collect();
        let mut exchange = self.own_pool.exchange.take()?;
        let now = Record { allocated: self.of_families(&now.allocated), requested: now.requested.clone() };
        let (write, problems) = exchange.begin(self.own_pool.pool(), &now, &demand, exhausted);
        self.own_pool.exchange = Some(exchange);
        self.blocks_changed(&before, &problems);
        write
    }

    /// Ends it.
    pub fn end_turn(&mut self, written: Record, outcome: Outcome) {
        let before: BTreeSet<IpNet> = self.own_pool.blocks().into_iter().collect();
        let Some(mut exchange) = self.own_pool.exchange.take() else { return };
        let problems = exchange.end(self.own_pool.pool(), written, outcome);
        self.own_pool.exchange = Some(exchange);
        self.blocks_changed(&before, &problems);
        if outcome == Outcome::Written {
            // The first accepted write makes blocks usable without changing which they are.
            self.touch();
            self.signals.blocks.notify_waiters();
        }
    }

    fn of_families(&self, allocated: &Allocated) -> Allocated {
        let of = |nets: &BTreeSet<IpNet>| nets.iter().copied().filter(|net| self.has_family(net)).collect();
        allocated.iter().map(|(pool, nets)| (pool.clone(), of(nets))).collect()
    }

    /// Shared pools, as they are now.
    pub fn set_pool_rules(&mut self, rules: BTreeMap<String, PoolRule>) {
        self.own_pool.rules = rules;
        self.signals.addresses.notify_one();
    }

    /// What another node has of shared pools.
    pub fn set_share(&mut self, node: &str, nets: Vec<IpNet>) {
        let before = self.tables.shares.revision();
        if nets.is_empty() {
            self.tables.shares.remove(node);
        } else {
            self.tables.shares.insert(node.to_owned(), nets);
        }
        let changed = self.tables.shares.revision() != before;
        if changed {
            self.nodes_changed();
            self.touch();
        }
    }
}
