//! The addresses of a node's endpoints, out of the node's prefixes.

use super::{nth, offset};
use foldhash::{HashMap, HashMapExt};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

/// An address was not given.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum IpamError {
    /// All are taken.
    #[error("no free address in {pool}: all {capacity} are in use")]
    Exhausted {
        /// The prefix.
        pool: IpNet,
        /// Addresses that it can give.
        capacity: u128,
    },
    /// The address to restore belongs to somebody else.
    #[error("{address} belongs to {owner}")]
    Taken {
        /// The address.
        address: IpAddr,
        /// Its owner.
        owner: String,
    },
    /// The owner has another address of this family.
    #[error("{owner} already has {address}")]
    HasAnother {
        /// The owner.
        owner: String,
        /// What it has.
        address: IpAddr,
    },
    /// The address to restore is in none of the node's prefixes, or reserved.
    #[error("{0} is not an address that this node can give")]
    Foreign(IpAddr),
}

/// The addresses of one prefix. The first and the last one are never given. Fresh addresses are given before used
/// ones, and of the used ones that which has been free for the longest time: who still thinks of an old owner finds
/// nobody rather than somebody else.
#[derive(Clone, Debug)]
pub struct AddressPool {
    net: IpNet,
    /// Addresses, less the two reserved ones.
    capacity: u128,
    /// Offset of the next address that nobody had yet.
    next: u128,
    owners: BTreeMap<u128, String>,
    by_owner: HashMap<String, u128>,
    /// Given back, oldest first; entries that are not in `released` any more count for nothing.
    queue: VecDeque<u128>,
    released: BTreeSet<u128>,
}

impl AddressPool {
    /// All of `net` is free.
    #[must_use]
    pub fn new(net: IpNet) -> Self {
        let net = net.trunc();
        let bits = u32::from(net.max_prefix_len() - net.prefix_len());
        let capacity = 1u128.checked_shl(bits).map_or(u128::MAX - 1, |count| count.saturating_sub(2));
        Self {
            net,
            capacity,
            next: 1,
            owners: BTreeMap::new(),
            by_owner: HashMap::new(),
            queue: VecDeque::new(),
            released: BTreeSet::new(),
        }
    }

    /// The prefix.
    #[must_use]
    pub fn net(&self) -> IpNet {
        self.net
    }

    /// Addresses that it can give, taken ones included.
    #[must_use]
    pub fn capacity(&self) -> u128 {
        self.capacity
    }

    /// Addresses in use.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.owners.len()
    }

    /// The owner's address: the one that it has, or a new one.
    ///
    /// # Errors
    /// [`IpamError::Exhausted`]
    pub fn allocate(&mut self, owner: &str) -> Result<IpAddr, IpamError> {
        if let Some(offset) = self.by_owner.get(owner) {
            return Ok(nth(&self.net, *offset));
        }
        let offset = self
            .fresh()
            .or_else(|| self.oldest())
            .ok_or(IpamError::Exhausted { pool: self.net, capacity: self.capacity })?;
        self.give(offset, owner);
        Ok(nth(&self.net, offset))
    }

    fn fresh(&mut self) -> Option<u128> {
        while self.next <= self.capacity {
            let offset = self.next;
            self.next += 1;
            if !self.owners.contains_key(&offset) && !self.released.contains(&offset) {
                return Some(offset);
            }
        }
        None
    }

    fn oldest(&mut self) -> Option<u128> {
        while let Some(offset) = self.queue.pop_front() {
            if self.released.remove(&offset) {
                return Some(offset);
            }
        }
        None
    }

    fn give(&mut self, offset: u128, owner: &str) {
        self.owners.insert(offset, owner.to_owned());
        self.by_owner.insert(owner.to_owned(), offset);
    }

    /// The owner has this address already.
    ///
    /// # Errors
    /// All but [`IpamError::Exhausted`]; nothing changed.
    pub fn restore(&mut self, owner: &str, address: IpAddr) -> Result<(), IpamError> {
        let offset = offset(&self.net, address)
            .filter(|offset| (1..=self.capacity).contains(offset))
            .ok_or(IpamError::Foreign(address))?;
        if let Some(known) = self.by_owner.get(owner).copied() {
            let has = nth(&self.net, known);
            return if known == offset {
                Ok(())
            } else {
                Err(IpamError::HasAnother { owner: owner.to_owned(), address: has })
            };
        }
        if let Some(other) = self.owners.get(&offset) {
            return Err(IpamError::Taken { address, owner: other.clone() });
        }
        if self.released.remove(&offset) {
            self.queue.retain(|queued| *queued != offset);
        }
        self.give(offset, owner);
        Ok(())
    }

    /// The owner needs its address no more. Returns it, if there was one.
    pub fn release(&mut self, owner: &str) -> Option<IpAddr> {
        let offset = self.by_owner.remove(owner)?;
        self.owners.remove(&offset);
        self.queue.push_back(offset);
        self.released.insert(offset);
        Some(nth(&self.net, offset))
    }

    /// The address of an owner.
    #[must_use]
    pub fn address_of(&self, owner: &str) -> Option<IpAddr> {
        self.by_owner.get(owner).map(|offset| nth(&self.net, *offset))
    }

    /// Addresses and owners, by address.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, &str)> {
        self.owners.iter().map(|(offset, owner)| (nth(&self.net, *offset), owner.as_str()))
    }
}

/// The addresses of one owner, at most one per family.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Allocation {
    /// IPv4.
    pub v4: Option<IpAddr>,
    /// IPv6.
    pub v6: Option<IpAddr>,
}

impl Allocation {
    /// Those that there are, IPv4 first.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.v4.into_iter().chain(self.v6).collect()
    }
}

/// The prefixes of a node, at most one per family. An owner gets an address of each or none.
#[derive(Clone, Debug, Default)]
pub struct NodePool {
    v4: Option<AddressPool>,
    v6: Option<AddressPool>,
}

impl NodePool {
    /// All of `nets` is free; of each family the first one is used.
    #[must_use]
    pub fn new(nets: &[IpNet]) -> Self {
        let first = |v4: bool| nets.iter().find(|net| net.addr().is_ipv4() == v4).map(|net| AddressPool::new(*net));
        Self { v4: first(true), v6: first(false) }
    }

    fn pools(&mut self) -> impl Iterator<Item = &mut AddressPool> {
        self.v4.iter_mut().chain(&mut self.v6)
    }

    /// The pools, IPv4 first.
    pub fn families(&self) -> impl Iterator<Item = &AddressPool> {
        self.v4.iter().chain(&self.v6)
    }

    /// The owner's addresses: those that it has, or new ones.
    ///
    /// # Errors
    /// [`IpamError::Exhausted`]; nothing was given.
    pub fn allocate(&mut self, owner: &str) -> Result<Allocation, IpamError> {
        let had_v4 = self.v4.as_ref().is_some_and(|pool| pool.address_of(owner).is_some());
        let v4 = self.v4.as_mut().map(|pool| pool.allocate(owner)).transpose()?;
        match self.v6.as_mut().map(|pool| pool.allocate(owner)).transpose() {
            Ok(v6) => Ok(Allocation { v4, v6 }),
            Err(error) => {
                if !had_v4 && let Some(pool) = &mut self.v4 {
                    pool.release(owner);
                }
                Err(error)
            }
        }
    }

    /// The owner has this address already.
    ///
    /// # Errors
    /// All but [`IpamError::Exhausted`]; nothing changed.
    pub fn restore(&mut self, owner: &str, address: IpAddr) -> Result<(), IpamError> {
        let pool = self.pools().find(|pool| pool.net.contains(&address)).ok_or(IpamError::Foreign(address))?;
        pool.restore(owner, address)
    }

    /// The owner needs its addresses no more. Returns those that it had.
    pub fn release(&mut self, owner: &str) -> Vec<IpAddr> {
        self.pools().filter_map(|pool| pool.release(owner)).collect()
    }

    /// The addresses of an owner.
    #[must_use]
    pub fn addresses_of(&self, owner: &str) -> Vec<IpAddr> {
        self.families().filter_map(|pool| pool.address_of(owner)).collect()
    }

    /// Addresses and owners.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, &str)> {
        self.families().flat_map(AddressPool::iter)
    }
}
