//! Allocates addresses to the endpoints of a node from the blocks that the node holds, by pool.
//!
//! Owners are kept apart from blocks: an endpoint of a previous agent has its address before the blocks of the node are
//! known, and keeps it if a block is revoked. Such an address is never allocated to another endpoint.

use super::family::{FamilyPool, Held};
use super::{Advice, AllocateError, Block, Family, OverlappingBlock, RestoreError, State};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// The addresses of one owner, at most one per family.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Allocation {
    pub v4: Option<IpAddr>,
    pub v6: Option<IpAddr>,
}

impl Allocation {
    /// IPv4 first.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.v4.into_iter().chain(self.v6).collect()
    }

    fn slot(&mut self, family: Family) -> &mut Option<IpAddr> {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

/// The pool per family that an owner gets its addresses from; `None`: no address of that family.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Choice {
    pub v4: Option<String>,
    pub v6: Option<String>,
}

impl Choice {
    /// Both families from one pool.
    #[must_use]
    pub fn both(pool: &str) -> Self {
        Self { v4: Some(pool.to_owned()), v6: Some(pool.to_owned()) }
    }

    pub fn iter(&self) -> impl Iterator<Item = (Family, &str)> {
        let v4 = self.v4.as_deref().map(|pool| (Family::V4, pool));
        v4.into_iter().chain(self.v6.as_deref().map(|pool| (Family::V6, pool)))
    }
}

/// Whether a restored address is in a block of the node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placement {
    Inside,
    /// It is in none, or on a reserved edge. It is kept all the same.
    Stray,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Usage {
    pub pool: String,
    pub block: Block,
    /// Addresses with an owner.
    pub in_use: u128,
    /// State of the addresses without an owner.
    pub state: State,
}

type Families = BTreeMap<Family, FamilyPool>;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct NodePool {
    pools: BTreeMap<String, Families>,
    owners: BTreeMap<IpAddr, Arc<str>>,
    by_owner: BTreeMap<Arc<str>, Allocation>,
    advice: Advice,
}

impl NodePool {
    #[must_use]
    pub fn new(advice: Advice) -> Self {
        Self { advice, ..Self::default() }
    }

    /// Replaces the blocks of a pool. A block that is removed while addresses of it have owners is revoked: it stays until the
    /// last of them is released, and is not allocated from. A block that is being released stays so while it is listed.
    /// Returns the blocks that were ignored.
    pub fn set_blocks(&mut self, pool: &str, blocks: &[Block]) -> Vec<OverlappingBlock> {
        let listed: BTreeSet<IpNet> = blocks.iter().map(|block| block.net.trunc()).collect();
        let held: Vec<IpNet> = self.blocks_of(pool).map(|held| held.block.net).collect();
        for net in held.iter().filter(|net| !listed.contains(net)) {
            self.drop_block(pool, net);
        }
        let mut problems = Vec::new();
        for block in blocks {
            let block = Block { net: block.net.trunc(), ..*block };
            let family = Family::of(block.net.addr());
            if let Some(held) = self.family(pool, family).get_mut(&block.net) {
                held.revoked = false;
                held.block.programmed |= block.programmed;
                continue;
            }
            let other = self
                .pools
                .iter()
                .find_map(|(name, families)| Some((name.clone(), families.get(&family)?.overlapping(&block.net)?)));
            match other {
                Some((other_pool, other)) => {
                    let pool = pool.to_owned();
                    problems.push(OverlappingBlock { pool, block: block.net, other_pool, other });
                }
                None => self.family(pool, family).insert(block),
            }
        }
        problems
    }

    /// The pools that have blocks.
    #[must_use]
    pub fn pools(&self) -> Vec<String> {
        self.pools.keys().cloned().collect()
    }

    fn family(&mut self, pool: &str, family: Family) -> &mut FamilyPool {
        let families = self.pools.entry(pool.to_owned()).or_default();
        families.entry(family).or_insert_with(|| FamilyPool::new(family))
    }

    fn blocks_of<'a>(&'a self, pool: &str) -> impl Iterator<Item = &'a Held> {
        self.pools
            .get(pool)
            .into_iter()
            .flat_map(|families| families.values())
            .flat_map(|family| family.blocks.values())
    }

    fn drop_block(&mut self, pool: &str, net: &IpNet) {
        let in_use = self.in_use(net) > 0;
        let family = self.family(pool, Family::of(net.addr()));
        if in_use {
            if let Some(held) = family.get_mut(net) {
                held.revoked = true;
            }
        } else {
            family.remove(net);
        }
    }

    /// Returns the owner's addresses, allocating those that it lacks.
    ///
    /// # Errors
    /// A pool is empty or exhausted; nothing was allocated then.
    pub fn allocate(&mut self, owner: &str, choice: &Choice) -> Result<Allocation, AllocateError> {
        let mut allocation = self.by_owner.get(owner).copied().unwrap_or_default();
        let mut new = Vec::new();
        for (family, pool) in choice.iter() {
            if allocation.slot(family).is_some() {
                continue;
            }
            match self.take(pool, family) {
                Ok(address) => {
                    *allocation.slot(family) = Some(address);
                    new.push((pool, family, address));
                }
                Err(error) => {
                    for (pool, family, address) in new {
                        self.family(pool, family).release(address);
                    }
                    return Err(error);
                }
            }
        }
        let owner: Arc<str> = owner.into();
        for (_, _, address) in new {
            self.owners.insert(address, owner.clone());
        }
        if allocation != Allocation::default() {
            self.by_owner.insert(owner, allocation);
        }
        Ok(allocation)
    }

    fn take(&mut self, pool: &str, family: Family) -> Result<IpAddr, AllocateError> {
        let capacity = self.capacity(pool, family);
        let name = || pool.to_owned();
        let Some(found) = self.pools.get_mut(pool).and_then(|families| families.get_mut(&family)) else {
            return Err(AllocateError::Empty { pool: name(), family });
        };
        let owners = &self.owners;
        found.take(|address| owners.contains_key(&address)).ok_or_else(|| match capacity {
            0 if found.blocks.is_empty() => AllocateError::Empty { pool: name(), family },
            capacity => {
                let nets = found.blocks.values().map(|held| held.block.net);
                let prefixes = nets.filter(|net| net.prefix_len() < net.max_prefix_len()).collect();
                AllocateError::Exhausted { pool: name(), prefixes, family, capacity, advice: self.advice }
            }
        })
    }

    /// Records an address that the owner already has.
    ///
    /// # Errors
    /// Nothing changed.
    pub fn restore(&mut self, owner: &str, address: IpAddr) -> Result<Placement, RestoreError> {
        if let Some(other) = self.owners.get(&address).filter(|other| ***other != *owner) {
            return Err(RestoreError::Taken { address, owner: owner.to_owned(), holder: other.to_string() });
        }
        let family = Family::of(address);
        let owner: Arc<str> = owner.into();
        let mut allocation = self.by_owner.get(&owner).copied().unwrap_or_default();
        if let Some(held) = allocation.slot(family).filter(|held| *held != address) {
            return Err(RestoreError::HasAnother { owner: owner.to_string(), address, held });
        }
        *allocation.slot(family) = Some(address);
        self.by_owner.insert(owner.clone(), allocation);
        self.owners.insert(address, owner);
        match self.holder(address) {
            Some(pool) => {
                self.family(&pool, family).claim(address);
                Ok(Placement::Inside)
            }
            None => Ok(Placement::Stray),
        }
    }

    /// The pool that has this address in a block.
    fn holder(&self, address: IpAddr) -> Option<String> {
        let family = Family::of(address);
        let holds = |families: &Families| families.get(&family).is_some_and(|pool| pool.block_of(address).is_some());
        self.pools.iter().find(|(_, families)| holds(families)).map(|(name, _)| name.clone())
    }

    /// Releases the owner's addresses and returns them.
    pub fn release(&mut self, owner: &str) -> Vec<IpAddr> {
        let addresses = self.by_owner.remove(owner).map(|allocation| allocation.addresses()).unwrap_or_default();
        for address in &addresses {
            self.owners.remove(address);
            let Some(pool) = self.holder(*address) else { continue };
            let family = self.family(&pool, Family::of(*address));
            family.release(*address);
            let revoked = family.block_of(*address).filter(|held| held.revoked).map(|held| held.block.net);
            if let Some(net) = revoked.filter(|net| self.in_use(net) == 0) {
                self.family(&pool, Family::of(*address)).remove(&net);
            }
        }
        addresses
    }

    /// The addresses of an owner.
    #[must_use]
    pub fn addresses_of(&self, owner: &str) -> Vec<IpAddr> {
        self.by_owner.get(owner).map(Allocation::addresses).unwrap_or_default()
    }

    /// Addresses and owners, by address.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, &str)> {
        self.owners.iter().map(|(address, owner)| (*address, &**owner))
    }

    fn in_use(&self, net: &IpNet) -> u128 {
        self.owners.range(net.network()..=net.broadcast()).count() as u128
    }

    /// Allocatable addresses of a pool and family, with and without owner.
    #[must_use]
    pub fn capacity(&self, pool: &str, family: Family) -> u128 {
        let of_family = self.blocks_of(pool).filter(|held| Family::of(held.block.net.addr()) == family);
        of_family.filter(|held| held.usable()).fold(0, |sum, held| sum.saturating_add(held.block.capacity()))
    }

    /// Every block and how much of it is in use.
    #[must_use]
    pub fn usage(&self) -> Vec<Usage> {
        let pools = self.pools.iter();
        let blocks = pools.flat_map(|(name, families)| {
            families.values().flat_map(move |family| family.blocks.values().map(move |held| (name, held)))
        });
        let usage = |(name, held): (&String, &Held)| {
            let in_use = self.in_use(&held.block.net);
            Usage { pool: name.clone(), block: held.block, in_use, state: held.state() }
        };
        blocks.map(usage).collect()
    }

    /// The state of an address; `None`: it is in no block and has no owner.
    #[must_use]
    pub fn state(&self, address: IpAddr) -> Option<State> {
        if self.owners.contains_key(&address) {
            return Some(State::Assigned);
        }
        let pool = self.holder(address)?;
        self.pools.get(&pool)?.get(&Family::of(address))?.block_of(address).map(Held::state)
    }

    /// Addresses of a pool and family in blocks that are neither being released nor revoked.
    #[must_use]
    pub fn held(&self, pool: &str, family: Family) -> u128 {
        let of_family = self.blocks_of(pool).filter(|held| Family::of(held.block.net.addr()) == family);
        let stays = of_family.filter(|held| !held.releasing && !held.revoked);
        stays.fold(0, |sum, held| sum.saturating_add(held.block.capacity()))
    }

    /// Begins to release up to `count` addresses of a pool and family, in whole unused blocks, those first that are not
    /// programmed yet. They are not allocated from any more.
    pub fn release_idle(&mut self, pool: &str, family: Family, count: u128) -> Vec<IpNet> {
        let mut idle: Vec<Block> = self
            .blocks_of(pool)
            .filter(|held| Family::of(held.block.net.addr()) == family && !held.releasing && !held.revoked)
            .map(|held| held.block)
            .filter(|block| self.in_use(&block.net) == 0)
            .collect();
        // The last blocks: the first ones fill first, so the last are idle for longest.
        idle.sort_by_key(|block| (block.programmed, std::cmp::Reverse(block.net)));
        let mut left = count;
        let mut released = Vec::new();
        for block in idle {
            if block.capacity() <= left {
                left -= block.capacity();
                if let Some(held) = self.family(pool, family).get_mut(&block.net) {
                    held.releasing = true;
                    released.push(block.net);
                }
            }
        }
        released
    }

    /// Blocks that are being released, with their pool.
    #[must_use]
    pub fn releasing(&self) -> Vec<(String, IpNet)> {
        let usage = self.usage().into_iter();
        let listed = |pool: &str, net: &IpNet| self.blocks_of(pool).any(|held| held.block.net == *net && !held.revoked);
        usage
            .filter(|usage| usage.state == State::PendingRelease && listed(&usage.pool, &usage.block.net))
            .map(|usage| (usage.pool, usage.block.net))
            .collect()
    }

    /// Revoked blocks, with their pool.
    #[must_use]
    pub fn revoked(&self) -> Vec<(String, IpNet)> {
        let blocks = self.pools.keys().flat_map(|name| self.blocks_of(name).map(move |held| (name, held)));
        blocks.filter(|(_, held)| held.revoked).map(|(name, held)| (name.clone(), held.block.net)).collect()
    }

    /// Keeps a block that was being released.
    pub fn cancel_release(&mut self, pool: &str, net: &IpNet) {
        if let Some(held) = self.family(pool, Family::of(net.addr())).get_mut(net) {
            held.releasing = false;
        }
    }
}
