//! CiliumPodIPPools (multi-pool): which node has which prefixes of which pool. A node may have any number of prefixes of a
//! pool.

use super::cluster::{PoolConfigError, PrefixConflict, Prefixes};
use super::{Family, list};
use ipnet::IpNet;
use std::collections::BTreeMap;

/// The spec of a CiliumPodIPPool.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PoolSpec {
    /// Of both families.
    pub cidrs: Vec<IpNet>,
    /// Length of the IPv4 prefixes that nodes get.
    pub mask_v4: Option<u8>,
    /// Length of the IPv6 prefixes that nodes get.
    pub mask_v6: Option<u8>,
}

/// A pool cannot be set as written; the previous version stays. The CiliumPodIPPool must be corrected.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SetPoolError {
    /// It overlaps another pool.
    #[error("{cidr} overlaps {other_cidr} of pool {other}")]
    Overlap { cidr: IpNet, other: String, other_cidr: IpNet },
    /// Its prefixes overlap each other, or a mask size is out of range.
    #[error(transparent)]
    Config(#[from] PoolConfigError),
    /// Two nodes hold the same addresses of it.
    #[error(transparent)]
    Conflict(#[from] PrefixConflict),
}

/// A node gets no prefix of a pool. Retry when the pool has changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AllocatePrefixError {
    #[error("CiliumPodIPPool {0} does not exist; create it, or correct the pool that pods ask for")]
    UnknownPool(String),
    #[error("pool {pool} has no {family} prefixes; add one, or ask for another pool")]
    NoFamily { pool: String, family: Family },
    /// Every part of it belongs to some node.
    #[error("pool {pool} is exhausted: nothing of {} is free for node {node}; append prefixes to it", list(cidrs))]
    Exhausted {
        pool: String,
        /// The prefixes of the family.
        cidrs: Vec<IpNet>,
        node: String,
    },
}

type Pool = BTreeMap<Family, Prefixes>;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct SharedPools {
    pools: BTreeMap<String, Pool>,
    specs: BTreeMap<String, PoolSpec>,
}

impl SharedPools {
    /// Upserts a pool. Nodes keep what they have of it.
    ///
    /// # Errors
    /// The previous version stays.
    pub fn set(&mut self, name: &str, spec: &PoolSpec) -> Result<(), SetPoolError> {
        let mut pool = Pool::new();
        for family in Family::ALL {
            let cidrs: Vec<IpNet> = of_family(&spec.cidrs, family);
            for cidr in &cidrs {
                for (other, other_spec) in self.specs.iter().filter(|(other, _)| *other != name) {
                    let hits = |theirs: &&IpNet| theirs.contains(cidr) || cidr.contains(*theirs);
                    if let Some(theirs) = other_spec.cidrs.iter().find(hits) {
                        return Err(SetPoolError::Overlap { cidr: *cidr, other: other.clone(), other_cidr: *theirs });
                    }
                }
            }
            let (mask, max) = match family {
                Family::V4 => (spec.mask_v4.unwrap_or(27), 32),
                Family::V6 => (spec.mask_v6.unwrap_or(124), 128),
            };
            if let Some(mut prefixes) = Prefixes::new(cidrs, mask, max)? {
                let old = self.pools.get(name).and_then(|old| old.get(&family));
                for (cidr, node) in old.into_iter().flat_map(Prefixes::iter) {
                    prefixes.restore(node, cidr)?;
                }
                pool.insert(family, prefixes);
            }
        }
        // Nodes may still have prefixes of a family that the pool has no more.
        for (family, old) in self.pools.remove(name).unwrap_or_default() {
            pool.entry(family).or_insert_with(|| old.without_pools());
        }
        self.pools.insert(name.to_owned(), pool);
        self.specs.insert(name.to_owned(), spec.clone());
        Ok(())
    }

    /// Deletes a pool. Nodes keep what they have of it.
    pub fn remove(&mut self, name: &str) {
        self.specs.remove(name);
        if let Some(pool) = self.pools.get_mut(name) {
            let emptied: Pool =
                std::mem::take(pool).into_iter().map(|(family, p)| (family, p.without_pools())).collect();
            *pool = emptied;
        }
    }

    /// Records a prefix that a node already has, inside the pool or not.
    ///
    /// # Errors
    /// Another node has some of its addresses; nothing changed.
    pub fn restore(&mut self, node: &str, pool: &str, cidr: IpNet) -> Result<(), PrefixConflict> {
        let family = Family::of(cidr.addr());
        if let Some((other, other_cidr)) = self.overlapping(pool, &cidr) {
            let other = format!("{other} of pool {}", other_cidr.1);
            return Err(PrefixConflict { node: node.to_owned(), cidr, other, other_cidr: other_cidr.0 });
        }
        let entry = self.pools.entry(pool.to_owned()).or_default();
        let prefixes = entry.entry(family).or_insert_with(Prefixes::empty);
        prefixes.restore(node, cidr)
    }

    /// The prefix of another pool that overlaps: the node, the prefix and the pool.
    fn overlapping(&self, pool: &str, cidr: &IpNet) -> Option<(String, (IpNet, String))> {
        let family = Family::of(cidr.addr());
        self.pools.iter().filter(|(name, _)| *name != pool).find_map(|(name, families)| {
            let (net, node) = families.get(&family)?.overlapping(cidr)?;
            Some((node.clone(), (*net, name.clone())))
        })
    }

    /// Allocates one more prefix of a pool to a node.
    ///
    /// # Errors
    /// Nothing was allocated.
    pub fn allocate(&mut self, node: &str, pool: &str, family: Family) -> Result<IpNet, AllocatePrefixError> {
        let unknown = || AllocatePrefixError::UnknownPool(pool.to_owned());
        let spec = self.specs.get(pool).ok_or_else(unknown)?;
        let cidrs = of_family(&spec.cidrs, family);
        if cidrs.is_empty() {
            return Err(AllocatePrefixError::NoFamily { pool: pool.to_owned(), family });
        }
        let prefixes = self.pools.get_mut(pool).and_then(|pool| pool.get_mut(&family)).ok_or_else(unknown)?;
        prefixes.assign(node).map_err(|_| {
            let (pool, node) = (pool.to_owned(), node.to_owned());
            AllocatePrefixError::Exhausted { pool, cidrs, node }
        })
    }

    /// A node released a prefix.
    pub fn release(&mut self, node: &str, pool: &str, cidr: &IpNet) {
        let prefixes = self.pools.get_mut(pool).and_then(|pool| pool.get_mut(&Family::of(cidr.addr())));
        if let Some(prefixes) = prefixes {
            prefixes.release(node, cidr);
        }
    }

    /// A node was deleted.
    pub fn release_node(&mut self, node: &str) {
        for prefixes in self.pools.values_mut().flat_map(BTreeMap::values_mut) {
            prefixes.release_owner(node);
        }
    }

    /// Pools and prefixes of a node.
    #[must_use]
    pub fn of_node(&self, node: &str) -> Vec<(String, IpNet)> {
        let all = self.iter().filter(|(_, _, owner)| *owner == node);
        all.map(|(pool, cidr, _)| (pool.to_owned(), cidr)).collect()
    }

    /// All prefixes: pool, prefix, node.
    pub fn iter(&self) -> impl Iterator<Item = (&str, IpNet, &str)> {
        self.pools.iter().flat_map(|(name, families)| {
            families.values().flat_map(Prefixes::iter).map(move |(cidr, node)| (name.as_str(), cidr, node))
        })
    }
}

fn of_family(cidrs: &[IpNet], family: Family) -> Vec<IpNet> {
    cidrs.iter().map(IpNet::trunc).filter(|cidr| Family::of(cidr.addr()) == family).collect()
}
