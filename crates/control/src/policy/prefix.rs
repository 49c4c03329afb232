//! The address prefixes that policies in use name, each with its number.
//!
//! The kernel finds the longest of all of them that holds a peer's address. So every policy must know every prefix that
//! lies inside one of its own: before a prefix is written to the kernel, the policies have its class, and a prefix leaves
//! the kernel before the policies forget it. A prefix is three peers, one for each [`PeerScope`].

use foldhash::HashMap;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use weft_model::id::{Identity, PeerScope};

#[derive(Clone, Debug)]
struct Row {
    number: Identity,
    users: usize,
    in_kernel: bool,
}

/// The prefixes in use.
#[derive(Clone, Debug, Default)]
pub struct Prefixes {
    rows: BTreeMap<IpNet, Row>,
    numbers: HashMap<Identity, IpNet>,
    lengths: [BTreeMap<u8, usize>; 2],
    next: u32,
    /// Not in the kernel yet.
    fresh: BTreeSet<IpNet>,
    /// Lost their last user.
    unused: BTreeSet<IpNet>,
}

fn family(net: &IpNet) -> usize {
    usize::from(matches!(net, IpNet::V6(_)))
}

/// The prefix of `len` bits around `net`.
pub fn widen(net: &IpNet, len: u8) -> Option<IpNet> {
    IpNet::new(net.addr(), len).ok().map(|net| net.trunc())
}

impl Prefixes {
    /// The kernel has it from before. Whether that can be.
    pub fn adopt(&mut self, net: IpNet, number: Identity) -> bool {
        let net = net.trunc();
        let is_base = number.is_cidr() && number == number.in_scope(PeerScope::World);
        if !is_base || self.rows.contains_key(&net) || self.numbers.contains_key(&number) {
            return false;
        }
        self.insert(net, number, 0, true);
        self.next = self.next.max((number.raw() & !Identity::CIDR_SCOPE) >> 2);
        self.unused.insert(net);
        true
    }

    fn insert(&mut self, net: IpNet, number: Identity, users: usize, in_kernel: bool) {
        self.numbers.insert(number, net);
        *self.lengths[family(&net)].entry(net.prefix_len()).or_default() += 1;
        self.rows.insert(net, Row { number, users, in_kernel });
    }

    /// One more user. Returns its number, and whether it is new. `None`: `limit` prefixes are in use, or all numbers.
    pub fn acquire(&mut self, net: IpNet, limit: usize) -> Option<(Identity, bool)> {
        if let Some(row) = self.rows.get_mut(&net) {
            row.users += 1;
            self.unused.remove(&net);
            return Some((row.number, false));
        }
        if self.rows.len() >= limit.min(Identity::CIDR_MAX as usize) {
            return None;
        }
        let number = loop {
            self.next = self.next % Identity::CIDR_MAX + 1;
            let number = Identity::cidr(self.next).expect("1..=CIDR_MAX");
            if !self.numbers.contains_key(&number) {
                break number;
            }
        };
        self.insert(net, number, 1, false);
        self.fresh.insert(net);
        Some((number, true))
    }

    /// One user less.
    pub fn release(&mut self, net: &IpNet) {
        if let Some(row) = self.rows.get_mut(net) {
            row.users = row.users.saturating_sub(1);
            if row.users == 0 {
                self.unused.insert(*net);
            }
        }
    }

    /// It could not be used after all, and nobody heard of it.
    pub fn discard(&mut self, net: &IpNet) {
        self.remove(net);
    }

    /// Drops those without users which the kernel never had. Returns their numbers.
    pub fn drop_unborn(&mut self) -> Vec<Identity> {
        let unborn: Vec<IpNet> = self.unused.iter().copied().filter(|net| !self.rows[net].in_kernel).collect();
        unborn.iter().filter_map(|net| self.remove(net)).collect()
    }

    /// Those that the kernel does not have yet; from now on it counts as having them.
    pub fn take_fresh(&mut self) -> Vec<(IpNet, Identity)> {
        let mut fresh = Vec::new();
        for net in std::mem::take(&mut self.fresh) {
            if let Some(row) = self.rows.get_mut(&net) {
                row.in_kernel = true;
                fresh.push((net, row.number));
            }
        }
        fresh
    }

    /// Drops those without users.
    pub fn take_unused(&mut self) -> Vec<(IpNet, Identity)> {
        let unused: Vec<IpNet> = self.unused.iter().copied().collect();
        unused.iter().filter_map(|net| self.remove(net).map(|number| (*net, number))).collect()
    }

    fn remove(&mut self, net: &IpNet) -> Option<Identity> {
        self.unused.remove(net);
        self.fresh.remove(net);
        let row = self.rows.remove(net)?;
        self.numbers.remove(&row.number);
        let lengths = &mut self.lengths[family(net)];
        if let Some(count) = lengths.get_mut(&net.prefix_len()) {
            *count -= 1;
            if *count == 0 {
                lengths.remove(&net.prefix_len());
            }
        }
        Some(row.number)
    }

    /// The prefix of a number, that of any scope.
    pub fn net(&self, number: Identity) -> Option<IpNet> {
        self.numbers.get(&number.in_scope(PeerScope::World)).copied()
    }

    /// The number of a prefix.
    pub fn number(&self, net: &IpNet) -> Option<Identity> {
        self.rows.get(net).map(|row| row.number)
    }

    /// The longest prefix that holds `address`.
    pub fn longest(&self, address: IpAddr) -> Option<(IpNet, Identity)> {
        let host = IpNet::from(address);
        self.lengths[family(&host)].keys().rev().find_map(|len| {
            let net = widen(&host, *len)?;
            self.number(&net).map(|number| (net, number))
        })
    }

    /// Those inside `net`, and perhaps a few around it.
    pub fn near(&self, net: &IpNet) -> impl Iterator<Item = (IpNet, Identity)> {
        let last = IpNet::new(net.broadcast(), net.max_prefix_len()).expect("the longest there is");
        let first = IpNet::new(net.network(), 0).expect("the shortest there is");
        self.rows.range(first..=last).map(|(net, row)| (*net, row.number))
    }

    /// All.
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, Identity)> {
        self.rows.iter().map(|(net, row)| (*net, row.number))
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.rows.len()
    }
}
