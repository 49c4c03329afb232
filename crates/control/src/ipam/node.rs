//! The addresses of a node's endpoints, out of the blocks that the node holds, by pool.
//!
//! Who has which address is kept apart from the blocks: an endpoint of a former agent has its address before anybody
//! said which blocks the node holds, and keeps it if they are taken away. No such address is ever given to another.

use super::family::{FamilyPool, Held};
use super::{Advice, Block, Family, IpamError, State};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

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

    fn slot(&mut self, family: Family) -> &mut Option<IpAddr> {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

/// From which pool an owner gets its addresses; `None`: none of that family.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Choice {
    /// IPv4.
    pub v4: Option<String>,
    /// IPv6.
    pub v6: Option<String>,
}

impl Choice {
    /// Both families from one pool.
    #[must_use]
    pub fn both(pool: &str) -> Self {
        Self { v4: Some(pool.to_owned()), v6: Some(pool.to_owned()) }
    }

    /// The pools, by family.
    pub fn iter(&self) -> impl Iterator<Item = (Family, &str)> {
        let v4 = self.v4.as_deref().map(|pool| (Family::V4, pool));
        v4.into_iter().chain(self.v6.as_deref().map(|pool| (Family::V6, pool)))
    }
}

/// Where a restored address lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placement {
    /// In a block of the node.
    Inside,
    /// In none, or none that could have given it. It is kept all the same.
    Stray,
}

/// A block and how much of it is in use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Usage {
    /// Pool.
    pub pool: String,
    /// The block.
    pub block: Block,
    /// Addresses with an owner.
    pub in_use: u128,
    /// What addresses without one are.
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
    /// Without blocks.
    #[must_use]
    pub fn new(advice: Advice) -> Self {
        Self { advice, ..Self::default() }
    }

    /// Makes the blocks of a pool exactly these. A block that is taken away while addresses of it have owners stays
    /// until the last of them goes, and gives nothing any more. A block on its way back stays on its way while it is
    /// listed. Answers what could not be added.
    pub fn set_blocks(&mut self, pool: &str, blocks: &[Block]) -> Vec<IpamError> {
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
                    problems.push(IpamError::Overlap { pool, block: block.net, other_pool, other });
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

    /// The owner's addresses: those that it has, or new ones.
    ///
    /// # Errors
    /// A pool is empty or exhausted; nothing was given then.
    pub fn allocate(&mut self, owner: &str, choice: &Choice) -> Result<Allocation, IpamError> {
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
                        self.family(pool, family).give_back(address);
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

    fn take(&mut self, pool: &str, family: Family) -> Result<IpAddr, IpamError> {
        let capacity = self.capacity(pool, family);
        let name = || pool.to_owned();
        let Some(found) = self.pools.get_mut(pool).and_then(|families| families.get_mut(&family)) else {
            return Err(IpamError::Empty { pool: name(), family });
        };
        let owners = &self.owners;
        found.take(|address| owners.contains_key(&address)).ok_or_else(|| match capacity {
            0 if found.blocks.is_empty() => IpamError::Empty { pool: name(), family },
            capacity => {
                let nets = found.blocks.values().map(|held| held.block.net);
                let prefixes = nets.filter(|net| net.prefix_len() < net.max_prefix_len()).collect();
                IpamError::Exhausted { pool: name(), prefixes, family, capacity, advice: self.advice }
            }
        })
    }

    /// The owner has this address already.
    ///
    /// # Errors
    /// [`IpamError::Taken`], [`IpamError::HasAnother`]; nothing changed.
    pub fn restore(&mut self, owner: &str, address: IpAddr) -> Result<Placement, IpamError> {
        if let Some(other) = self.owners.get(&address).filter(|other| ***other != *owner) {
            return Err(IpamError::Taken { address, owner: other.to_string() });
        }
        let family = Family::of(address);
        let owner: Arc<str> = owner.into();
        let mut allocation = self.by_owner.get(&owner).copied().unwrap_or_default();
        if let Some(has) = allocation.slot(family).filter(|has| *has != address) {
            return Err(IpamError::HasAnother { owner: owner.to_string(), address: has });
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

    /// The pool whose block has this address.
    fn holder(&self, address: IpAddr) -> Option<String> {
        let family = Family::of(address);
        let holds = |families: &Families| families.get(&family).is_some_and(|pool| pool.block_of(address).is_some());
        self.pools.iter().find(|(_, families)| holds(families)).map(|(name, _)| name.clone())
    }

    /// The owner needs its addresses no more. Returns those that it had.
    pub fn release(&mut self, owner: &str) -> Vec<IpAddr> {
        let addresses = self.by_owner.remove(owner).map(|allocation| allocation.addresses()).unwrap_or_default();
        for address in &addresses {
            self.owners.remove(address);
            let Some(pool) = self.holder(*address) else { continue };
            let family = self.family(&pool, Family::of(*address));
            family.give_back(*address);
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

    /// Addresses of a pool that this node could give if nobody had any.
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

    /// What an address is to this node; `None`: nothing.
    #[must_use]
    pub fn state(&self, address: IpAddr) -> Option<State> {
        if self.owners.contains_key(&address) {
            return Some(State::Assigned);
        }
        let pool = self.holder(address)?;
        self.pools.get(&pool)?.get(&Family::of(address))?.block_of(address).map(Held::state)
    }

    /// How many addresses of a pool and family are held for good, and how many of them have owners. What is on its way
    /// back or was taken away does not count.
    #[must_use]
    pub fn held(&self, pool: &str, family: Family) -> u128 {
        let of_family = self.blocks_of(pool).filter(|held| Family::of(held.block.net.addr()) == family);
        let stays = of_family.filter(|held| !held.releasing && !held.revoked);
        stays.fold(0, |sum, held| sum.saturating_add(held.block.capacity()))
    }

    /// Sets out to give back up to `count` addresses of a pool and family, in whole blocks that nobody uses: those
    /// first that were not programmed yet. Nobody gets an address of them any more.
    pub fn retire(&mut self, pool: &str, family: Family, count: u128) -> Vec<IpNet> {
        let mut idle: Vec<Block> = self
            .blocks_of(pool)
            .filter(|held| Family::of(held.block.net.addr()) == family && !held.releasing && !held.revoked)
            .map(|held| held.block)
            .filter(|block| self.in_use(&block.net) == 0)
            .collect();
        // The last ones go: the first blocks fill first, so the last are idle for the longest time.
        idle.sort_by_key(|block| (block.programmed, std::cmp::Reverse(block.net)));
        let mut left = count;
        let mut retired = Vec::new();
        for block in idle {
            if block.capacity() <= left {
                left -= block.capacity();
                if let Some(held) = self.family(pool, family).get_mut(&block.net) {
                    held.releasing = true;
                    retired.push(block.net);
                }
            }
        }
        retired
    }

    /// Blocks that are on their way back, by pool.
    #[must_use]
    pub fn retired(&self) -> Vec<(String, IpNet)> {
        let usage = self.usage().into_iter();
        let listed = |pool: &str, net: &IpNet| self.blocks_of(pool).any(|held| held.block.net == *net && !held.revoked);
        usage
            .filter(|usage| usage.state == State::PendingRelease && listed(&usage.pool, &usage.block.net))
            .map(|usage| (usage.pool, usage.block.net))
            .collect()
    }

    /// Blocks that were taken away while addresses of them have owners, by pool.
    #[must_use]
    pub fn orphaned(&self) -> Vec<(String, IpNet)> {
        let blocks = self.pools.keys().flat_map(|name| self.blocks_of(name).map(move |held| (name, held)));
        blocks.filter(|(_, held)| held.revoked).map(|(name, held)| (name.clone(), held.block.net)).collect()
    }

    /// A block does not go back after all.
    pub fn keep(&mut self, pool: &str, net: &IpNet) {
        if let Some(held) = self.family(pool, Family::of(net.addr())).get_mut(net) {
            held.releasing = false;
        }
    }
}
