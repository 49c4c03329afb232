//! The address prefixes that policies in use name, each with its number.
//!
//! The kernel finds the longest of all of them that holds a peer's address and looks its number up in the policy.
//! So every policy must know every prefix that lies inside one of its own: before a prefix is written to the
//! kernel, the policies have its class, and a prefix leaves the kernel before the policies forget it.

use foldhash::HashMap;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use weft_model::id::Identity;

#[derive(Debug)]
struct Row {
    number: Identity,
    users: usize,
    in_kernel: bool,
}

/// The prefixes in use.
#[derive(Debug, Default)]
pub struct Prefixes {
    rows: BTreeMap<IpNet, Row>,
    numbers: HashMap<Identity, IpNet>,
    lengths: [BTreeMap<u8, usize>; 2],
    next: u32,
    /// Not in the policies yet.
    added: BTreeSet<IpNet>,
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
    /// The kernel has it from before.
    pub fn adopt(&mut self, net: IpNet, number: Identity) {
        let net = net.trunc();
        if !number.is_cidr() || self.rows.contains_key(&net) || self.numbers.contains_key(&number) {
            return;
        }
        self.insert(net, number, 0, true);
        self.next = self.next.max(number.raw() & !Identity::CIDR_SCOPE);
        self.unused.insert(net);
        self.added.insert(net);
    }

    fn insert(&mut self, net: IpNet, number: Identity, users: usize, in_kernel: bool) {
        self.numbers.insert(number, net);
        *self.lengths[family(&net)].entry(net.prefix_len()).or_default() += 1;
        self.rows.insert(net, Row { number, users, in_kernel });
    }

    /// One more user. `None`: `limit` prefixes are in use, or all numbers.
    pub fn acquire(&mut self, net: IpNet, limit: usize) -> Option<Identity> {
        if let Some(row) = self.rows.get_mut(&net) {
            row.users += 1;
            self.unused.remove(&net);
            return Some(row.number);
        }
        if self.rows.len() >= limit.min(0x00ff_ffff) {
            return None;
        }
        let number = loop {
            self.next = self.next % 0x00ff_ffff + 1;
            let number = Identity::cidr(self.next).expect("1..=0xff_ffff");
            if !self.numbers.contains_key(&number) {
                break number;
            }
        };
        self.insert(net, number, 1, false);
        self.added.insert(net);
        self.fresh.insert(net);
        Some(number)
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

    /// Prefixes that the policies do not know yet.
    pub fn take_added(&mut self) -> BTreeSet<IpNet> {
        std::mem::take(&mut self.added)
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
        self.added.remove(net);
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

    /// The prefix of a number.
    pub fn net(&self, number: Identity) -> Option<IpNet> {
        self.numbers.get(&number).copied()
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

    /// All.
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, Identity)> {
        self.rows.iter().map(|(net, row)| (*net, row.number))
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.rows.len()
    }
}
