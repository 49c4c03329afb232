//! Assigns pod CIDRs to nodes from the pools of the cluster.

use super::{list, nth, number, offset};
use ipnet::IpNet;
use std::collections::BTreeMap;

/// The configured pools cannot be used. The configuration must be corrected.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PoolConfigError {
    /// A node's prefix would not fit into a pool.
    #[error("pool {pool} is too small for a node's /{mask}")]
    TooSmall {
        pool: IpNet,
        /// Prefix length of what a node gets.
        mask: u8,
    },
    /// A node's prefix must hold at least one address beside the two reserved ones.
    #[error("a node's prefix length is /{mask}, expected at most /{max}")]
    Mask { mask: u8, max: u8 },
    /// Two pools overlap.
    #[error("pools {0} and {1} overlap")]
    Overlap(IpNet, IpNet),
}

/// No prefix is free for a node. Retry after a node is gone, or add a pool.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no free /{mask} for node {node} in {}: remove nodes or add a pool", list(pools))]
pub struct AssignError {
    pub node: String,
    /// Prefix length of what a node gets.
    pub mask: u8,
    /// The pools of that family.
    pub pools: Vec<IpNet>,
}

/// Two nodes claim the same addresses. One of the two objects must be corrected.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{cidr} of node {node} overlaps {other_cidr} of node {other}")]
pub struct PrefixConflict {
    pub node: String,
    pub cidr: IpNet,
    /// The node that holds `other_cidr`.
    pub other: String,
    pub other_cidr: IpNet,
}

/// The prefixes that nodes have of some pools of one family. New ones are all of one length.
#[derive(Clone, Debug)]
pub(super) struct Prefixes {
    pools: Vec<IpNet>,
    mask: u8,
    /// Prefixes with their nodes, by first address. They do not overlap.
    assigned: BTreeMap<u128, (IpNet, String)>,
    /// Where to search next: index of the pool, and of the prefix in it.
    next: (usize, u128),
}

impl Prefixes {
    /// With all of `pools` free; `None`: there are none.
    pub(super) fn new(pools: Vec<IpNet>, mask: u8, max: u8) -> Result<Option<Self>, PoolConfigError> {
        for (n, pool) in pools.iter().enumerate() {
            if let Some(other) = pools[..n].iter().find(|other| other.contains(pool) || pool.contains(*other)) {
                return Err(PoolConfigError::Overlap(*other, *pool));
            }
        }
        if pools.is_empty() {
            return Ok(None);
        }
        if mask > max {
            return Err(PoolConfigError::Mask { mask, max });
        }
        match pools.iter().find(|pool| pool.prefix_len() > mask) {
            Some(pool) => Err(PoolConfigError::TooSmall { pool: *pool, mask }),
            None => Ok(Some(Self { pools, mask, ..Self::empty() })),
        }
    }

    /// Without pools: it only records what nodes have.
    pub(super) fn empty() -> Self {
        Self { pools: Vec::new(), mask: 0, assigned: BTreeMap::new(), next: (0, 0) }
    }

    /// Keeps what is assigned, and assigns nothing more.
    pub(super) fn without_pools(self) -> Self {
        Self { assigned: self.assigned, ..Self::empty() }
    }

    fn slots(&self, pool: usize) -> u128 {
        let bits = u32::from(self.mask - self.pools[pool].prefix_len());
        1u128.checked_shl(bits).unwrap_or(u128::MAX)
    }

    fn slot(&self, pool: usize, n: u128) -> IpNet {
        let net = &self.pools[pool];
        let bits = u32::from(net.max_prefix_len() - self.mask);
        let first = nth(net, n.checked_shl(bits).unwrap_or(0));
        IpNet::new(first, self.mask).expect("the mask was checked")
    }

    pub(super) fn overlapping(&self, cidr: &IpNet) -> Option<&(IpNet, String)> {
        // Prefixes do not overlap, so only the last one that starts before the end of `cidr` can intersect it.
        let (_, last) = self.assigned.range(..=number(cidr.broadcast())).next_back()?;
        (last.0.contains(cidr) || cidr.contains(&last.0)).then_some(last)
    }

    fn insert(&mut self, cidr: IpNet, node: &str) {
        self.assigned.insert(number(cidr.network()), (cidr, node.to_owned()));
    }

    /// Assigns one more prefix to a node.
    pub(super) fn assign(&mut self, node: &str) -> Result<IpNet, AssignError> {
        let count = self.pools.len();
        let (start_pool, start_slot) = self.next;
        for step in 0..=count {
            let pool = (start_pool + step) % count.max(1);
            if pool >= count {
                break;
            }
            let first = if step == 0 { start_slot } else { 0 };
            let slots = self.slots(pool);
            let mut n = first;
            // At most as many slots are taken as prefixes are assigned, so one more step suffices.
            while n < slots && n - first <= self.assigned.len() as u128 {
                let cidr = self.slot(pool, n);
                n += 1;
                if self.overlapping(&cidr).is_none() {
                    self.insert(cidr, node);
                    self.next = (pool, n);
                    return Ok(cidr);
                }
            }
        }
        Err(AssignError { node: node.to_owned(), mask: self.mask, pools: self.pools.clone() })
    }

    /// Records a prefix that a node already has, inside the pools or not.
    pub(super) fn restore(&mut self, node: &str, cidr: IpNet) -> Result<(), PrefixConflict> {
        let cidr = cidr.trunc();
        if let Some((net, other)) = self.overlapping(&cidr) {
            if other == node && *net == cidr {
                return Ok(());
            }
            let (other, other_cidr) = (other.clone(), *net);
            return Err(PrefixConflict { node: node.to_owned(), cidr, other, other_cidr });
        }
        self.insert(cidr, node);
        // Continue after it, so that the prefix of a node deleted just before a restart is not reassigned at once.
        if cidr.prefix_len() == self.mask
            && let Some((pool, start)) =
                self.pools.iter().enumerate().find_map(|(n, pool)| Some((n, offset(pool, cidr.addr())?)))
        {
            let bits = u32::from(cidr.max_prefix_len() - self.mask);
            let slot = start.checked_shr(bits).unwrap_or(0) + 1;
            self.next = self.next.max((pool, slot));
        }
        Ok(())
    }

    /// A node released a prefix.
    pub(super) fn release(&mut self, node: &str, cidr: &IpNet) {
        let first = number(cidr.network());
        if self.assigned.get(&first).is_some_and(|(net, owner)| net == cidr && owner == node) {
            self.assigned.remove(&first);
        }
    }

    /// A node was deleted.
    pub(super) fn release_owner(&mut self, node: &str) {
        self.assigned.retain(|_, (_, owner)| owner != node);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (IpNet, &str)> {
        self.assigned.values().map(|(cidr, node)| (*cidr, node.as_str()))
    }
}

/// Assigns every node one prefix per family. A node keeps what it has, and a prefix that becomes free is reassigned only
/// after all others.
#[derive(Clone, Debug)]
pub struct ClusterPool {
    v4: Option<Prefixes>,
    v6: Option<Prefixes>,
}

impl ClusterPool {
    /// With all of `pools` free.
    ///
    /// # Errors
    /// The pools overlap, or a node's prefix does not fit into one.
    pub fn new(pools: &[IpNet], mask_v4: u8, mask_v6: u8) -> Result<Self, PoolConfigError> {
        let pools: Vec<IpNet> = pools.iter().map(IpNet::trunc).collect();
        let family = |v4: bool, mask: u8, max: u8| {
            let pools: Vec<IpNet> = pools.iter().copied().filter(|pool| pool.addr().is_ipv4() == v4).collect();
            Prefixes::new(pools, mask, max)
        };
        Ok(Self { v4: family(true, mask_v4, 30)?, v6: family(false, mask_v6, 126)? })
    }

    fn family(&mut self, cidr: &IpNet) -> Option<&mut Prefixes> {
        if cidr.addr().is_ipv4() { self.v4.as_mut() } else { self.v6.as_mut() }
    }

    /// Records a prefix that a node already has. It is kept even outside the pools, which may have been configured
    /// differently when it was assigned.
    ///
    /// # Errors
    /// Another node holds some of its addresses; nothing changed.
    pub fn restore(&mut self, node: &str, cidr: IpNet) -> Result<(), PrefixConflict> {
        self.family(&cidr).map_or(Ok(()), |family| family.restore(node, cidr))
    }

    /// Returns the node's prefixes, IPv4 first, assigning those that it lacks.
    ///
    /// # Errors
    /// A pool is exhausted; nothing was assigned.
    pub fn assign(&mut self, node: &str) -> Result<Vec<IpNet>, AssignError> {
        let mut cidrs = Vec::new();
        let mut new: Vec<IpNet> = Vec::new();
        for family in self.v4.iter_mut().chain(&mut self.v6) {
            let known = family.assigned.values().find(|(_, owner)| owner == node).map(|(cidr, _)| *cidr);
            let result = known.map_or_else(|| family.assign(node).inspect(|cidr| new.push(*cidr)), Ok);
            match result {
                Ok(cidr) => cidrs.push(cidr),
                Err(error) => {
                    for cidr in new {
                        self.family(&cidr).map(|family| family.assigned.remove(&number(cidr.network())));
                    }
                    return Err(error);
                }
            }
        }
        Ok(cidrs)
    }

    /// The node was deleted.
    pub fn release(&mut self, node: &str) {
        for family in self.v4.iter_mut().chain(&mut self.v6) {
            family.release_owner(node);
        }
    }

    /// All prefixes with their nodes.
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, &str)> {
        let families = self.v4.iter().chain(&self.v6);
        families.flat_map(Prefixes::iter)
    }
}
