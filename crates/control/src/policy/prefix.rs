//! The address prefixes that policies in use name, each with its number.
//!
//! The kernel looks up the longest of all prefixes that contains a peer's address. So every policy needs rows for all
//! prefixes inside its own: the policies get the class of a prefix before the kernel gets the prefix, and lose it only
//! after the kernel lost the prefix. A prefix is three peers, one per [`PeerScope`].

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

/// Index of the family in tables by prefix length.
pub fn family(net: &IpNet) -> usize {
    usize::from(matches!(net, IpNet::V6(_)))
}

/// The prefix of `len` bits that contains `net`.
pub fn widen(net: &IpNet, len: u8) -> Option<IpNet> {
    IpNet::new(net.addr(), len).ok().map(|net| net.trunc())
}

impl Prefixes {
    /// Adopts a prefix that the kernel has. `false`: its number is invalid or used twice.
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

    /// Adds a reference. Returns the number, and whether the prefix is new. `None`: `limit` prefixes, or all numbers, are in
    /// use.
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

    /// Drops a reference.
    pub fn release(&mut self, net: &IpNet) {
        if let Some(row) = self.rows.get_mut(net) {
            row.users = row.users.saturating_sub(1);
            if row.users == 0 {
                self.unused.insert(*net);
            }
        }
    }

    /// Removes a prefix that was just acquired and not yet returned to anyone.
    pub fn discard(&mut self, net: &IpNet) {
        self.remove(net);
    }

    /// Removes the prefixes without users that the kernel never had. Returns their numbers.
    pub fn drop_unwritten(&mut self) -> Vec<Identity> {
        let unwritten: Vec<IpNet> = self.unused.iter().copied().filter(|net| !self.rows[net].in_kernel).collect();
        unwritten.iter().filter_map(|net| self.remove(net)).collect()
    }

    /// Returns the prefixes that the kernel does not have yet. From now on it counts as having them.
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

    /// Removes the prefixes without users.
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

    /// The prefix of a number of any scope.
    pub fn net(&self, number: Identity) -> Option<IpNet> {
        self.numbers.get(&number.in_scope(PeerScope::World)).copied()
    }

    pub fn number(&self, net: &IpNet) -> Option<Identity> {
        self.rows.get(net).map(|row| row.number)
    }

    /// The longest prefix that contains `address`.
    pub fn longest(&self, address: IpAddr) -> Option<(IpNet, Identity)> {
        let host = IpNet::from(address);
        self.lengths[family(&host)].keys().rev().find_map(|len| {
            let net = widen(&host, *len)?;
            self.number(&net).map(|number| (net, number))
        })
    }

    /// The prefixes inside `net`, and possibly a few others.
    pub fn near(&self, net: &IpNet) -> impl Iterator<Item = (IpNet, Identity)> {
        let last = IpNet::new(net.broadcast(), net.max_prefix_len()).expect("the longest there is");
        let first = IpNet::new(net.network(), 0).expect("the shortest there is");
        self.rows.range(first..=last).map(|(net, row)| (*net, row.number))
    }

    pub fn iter(&self) -> impl Iterator<Item = (IpNet, Identity)> {
        self.rows.iter().map(|(net, row)| (*net, row.number))
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }
}
