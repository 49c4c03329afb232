//! Named pools that nodes share (multi-pool): which node has which prefixes of which pool. A node may have any number
//! of prefixes of a pool.

use super::cluster::{ClusterPoolError, Prefixes};
use super::{Family, list};
use ipnet::IpNet;
use std::collections::BTreeMap;

/// A pool as its owner wrote it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PoolSpec {
    /// Its prefixes, of both families.
    pub cidrs: Vec<IpNet>,
    /// Length of what nodes get of it, IPv4.
    pub mask_v4: Option<u8>,
    /// Length of what nodes get of it, IPv6.
    pub mask_v6: Option<u8>,
}

/// A pool, or a prefix of it, cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PoolProblem {
    /// Nobody made it.
    #[error("there is no pool {0}")]
    Unknown(String),
    /// It has nothing of the family.
    #[error("pool {pool} has no {family} prefixes")]
    NoFamily {
        /// Its name.
        pool: String,
        /// The family.
        family: Family,
    },
    /// Every part of it is some node's.
    #[error(
        "pool {pool} is exhausted: nothing of {} is free for node {node}; more prefixes at its end would help",
        list(cidrs)
    )]
    Exhausted {
        /// Its name.
        pool: String,
        /// Its prefixes of the family.
        cidrs: Vec<IpNet>,
        /// Who asked.
        node: String,
    },
    /// It overlaps another one.
    #[error("{cidr} overlaps {other_cidr} of pool {other}")]
    Overlap {
        /// Its prefix.
        cidr: IpNet,
        /// The other pool.
        other: String,
        /// That one's prefix.
        other_cidr: IpNet,
    },
    /// A length is missing or makes no sense, or two nodes claim the same.
    #[error(transparent)]
    Prefixes(#[from] ClusterPoolError),
}

type Pool = BTreeMap<Family, Prefixes>;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct SharedPools {
    pools: BTreeMap<String, Pool>,
    specs: BTreeMap<String, PoolSpec>,
}

impl SharedPools {
    /// Makes a pool, or changes one. Nodes keep what they have of it.
    ///
    /// # Errors
    /// The pool as written cannot be used; what was there before stays.
    pub fn set(&mut self, name: &str, spec: &PoolSpec) -> Result<(), PoolProblem> {
        let mut pool = Pool::new();
        for family in Family::ALL {
            let cidrs: Vec<IpNet> = of_family(&spec.cidrs, family);
            for cidr in &cidrs {
                for (other, other_spec) in self.specs.iter().filter(|(other, _)| *other != name) {
                    let hits = |theirs: &&IpNet| theirs.contains(cidr) || cidr.contains(*theirs);
                    if let Some(theirs) = other_spec.cidrs.iter().find(hits) {
                        return Err(PoolProblem::Overlap { cidr: *cidr, other: other.clone(), other_cidr: *theirs });
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
        // Nodes may still have something of a family that the pool has no more.
        for (family, old) in self.pools.remove(name).unwrap_or_default() {
            pool.entry(family).or_insert_with(|| old.without_pools());
        }
        self.pools.insert(name.to_owned(), pool);
        self.specs.insert(name.to_owned(), spec.clone());
        Ok(())
    }

    /// A pool is gone. Nodes keep what they have of it.
    pub fn remove(&mut self, name: &str) {
        self.specs.remove(name);
        if let Some(pool) = self.pools.get_mut(name) {
            let emptied: Pool =
                std::mem::take(pool).into_iter().map(|(family, p)| (family, p.without_pools())).collect();
            *pool = emptied;
        }
    }

    /// A node has this prefix already, whatever the pools say.
    ///
    /// # Errors
    /// Another has it, or a part of it; nothing changed.
    pub fn restore(&mut self, node: &str, pool: &str, cidr: IpNet) -> Result<(), PoolProblem> {
        let family = Family::of(cidr.addr());
        if let Some((other, other_cidr)) = self.overlapping(pool, &cidr) {
            let other = format!("{other} of pool {}", other_cidr.1);
            return Err(
                ClusterPoolError::Conflict { node: node.to_owned(), cidr, other, other_cidr: other_cidr.0 }.into()
            );
        }
        let entry = self.pools.entry(pool.to_owned()).or_default();
        let prefixes = entry.entry(family).or_insert_with(Prefixes::empty);
        Ok(prefixes.restore(node, cidr)?)
    }

    /// What of other pools overlaps: the node, its prefix and its pool.
    fn overlapping(&self, pool: &str, cidr: &IpNet) -> Option<(String, (IpNet, String))> {
        let family = Family::of(cidr.addr());
        self.pools.iter().filter(|(name, _)| *name != pool).find_map(|(name, families)| {
            let (net, node) = families.get(&family)?.overlapping(cidr)?;
            Some((node.clone(), (*net, name.clone())))
        })
    }

    /// One more prefix of a pool for a node.
    ///
    /// # Errors
    /// There is no such pool, or nothing of it is left; nothing was given.
    pub fn allocate(&mut self, node: &str, pool: &str, family: Family) -> Result<IpNet, PoolProblem> {
        let unknown = || PoolProblem::Unknown(pool.to_owned());
        let spec = self.specs.get(pool).ok_or_else(unknown)?;
        let cidrs = of_family(&spec.cidrs, family);
        if cidrs.is_empty() {
            return Err(PoolProblem::NoFamily { pool: pool.to_owned(), family });
        }
        let prefixes = self.pools.get_mut(pool).and_then(|pool| pool.get_mut(&family)).ok_or_else(unknown)?;
        prefixes.assign(node).map_err(|_| {
            let (pool, node) = (pool.to_owned(), node.to_owned());
            PoolProblem::Exhausted { pool, cidrs, node }
        })
    }

    /// A node let go of a prefix.
    pub fn release(&mut self, node: &str, pool: &str, cidr: &IpNet) {
        let prefixes = self.pools.get_mut(pool).and_then(|pool| pool.get_mut(&Family::of(cidr.addr())));
        if let Some(prefixes) = prefixes {
            prefixes.release(node, cidr);
        }
    }

    /// A node is gone.
    pub fn release_node(&mut self, node: &str) {
        for prefixes in self.pools.values_mut().flat_map(BTreeMap::values_mut) {
            prefixes.release_owner(node);
        }
    }

    /// What a node has: pool and prefix.
    #[must_use]
    pub fn of_node(&self, node: &str) -> Vec<(String, IpNet)> {
        let all = self.iter().filter(|(_, _, owner)| *owner == node);
        all.map(|(pool, cidr, _)| (pool.to_owned(), cidr)).collect()
    }

    /// Everything given: pool, prefix, node.
    pub fn iter(&self) -> impl Iterator<Item = (&str, IpNet, &str)> {
        self.pools.iter().flat_map(|(name, families)| {
            families.values().flat_map(Prefixes::iter).map(move |(cidr, node)| (name.as_str(), cidr, node))
        })
    }
}

fn of_family(cidrs: &[IpNet], family: Family) -> Vec<IpNet> {
    cidrs.iter().map(IpNet::trunc).filter(|cidr| Family::of(cidr.addr()) == family).collect()
}
