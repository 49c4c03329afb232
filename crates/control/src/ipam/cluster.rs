//! The prefixes of the cluster's nodes, out of the cluster's pools.

use super::{list, nth, number, offset};
use ipnet::IpNet;
use std::collections::BTreeMap;

/// A prefix was not given, or the pools make no sense.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ClusterPoolError {
    /// A node's prefix would not fit into a pool.
    #[error("pool {pool} is smaller than a node's share, /{mask}")]
    TooSmall {
        /// The pool.
        pool: IpNet,
        /// Length of a node's prefix.
        mask: u8,
    },
    /// A node's prefix must hold at least one address beside the two reserved ones.
    #[error("a node's share must be at most /{max}, not /{mask}")]
    Mask {
        /// What was asked for.
        mask: u8,
        /// The longest possible.
        max: u8,
    },
    /// Two pools overlap.
    #[error("pools {0} and {1} overlap")]
    Overlap(IpNet, IpNet),
    /// All are taken.
    #[error("no free /{mask} for node {node} in {}", list(pools))]
    Exhausted {
        /// Who asked.
        node: String,
        /// Length of a node's prefix.
        mask: u8,
        /// The pools of that family.
        pools: Vec<IpNet>,
    },
    /// Two nodes claim the same addresses.
    #[error("{cidr} of node {node} overlaps {other_cidr} of node {other}")]
    Conflict {
        /// Who asked.
        node: String,
        /// For what.
        cidr: IpNet,
        /// Who has it.
        other: String,
        /// What that one has.
        other_cidr: IpNet,
    },
}

/// The prefixes that nodes have of some pools of one family, all of the same length.
#[derive(Clone, Debug)]
pub(super) struct Prefixes {
    pools: Vec<IpNet>,
    mask: u8,
    /// Prefixes given, with their nodes, by their first address. None overlaps another.
    given: BTreeMap<u128, (IpNet, String)>,
    /// Where to look next: number of the pool and of the share in it.
    next: (usize, u128),
}

impl Prefixes {
    /// All of `pools` is free; `None`: there are none.
    pub(super) fn new(pools: Vec<IpNet>, mask: u8, max: u8) -> Result<Option<Self>, ClusterPoolError> {
        for (n, pool) in pools.iter().enumerate() {
            if let Some(other) = pools[..n].iter().find(|other| other.contains(pool) || pool.contains(*other)) {
                return Err(ClusterPoolError::Overlap(*other, *pool));
            }
        }
        if pools.is_empty() {
            return Ok(None);
        }
        if mask > max {
            return Err(ClusterPoolError::Mask { mask, max });
        }
        match pools.iter().find(|pool| pool.prefix_len() > mask) {
            Some(pool) => Err(ClusterPoolError::TooSmall { pool: *pool, mask }),
            None => Ok(Some(Self { pools, mask, ..Self::empty() })),
        }
    }

    /// Without pools: it only remembers who has what.
    pub(super) fn empty() -> Self {
        Self { pools: Vec::new(), mask: 0, given: BTreeMap::new(), next: (0, 0) }
    }

    /// What was given stays given; nothing more is.
    pub(super) fn without_pools(self) -> Self {
        Self { given: self.given, ..Self::empty() }
    }

    fn shares(&self, pool: usize) -> u128 {
        let bits = u32::from(self.mask - self.pools[pool].prefix_len());
        1u128.checked_shl(bits).unwrap_or(u128::MAX)
    }

    fn share(&self, pool: usize, n: u128) -> IpNet {
        let net = &self.pools[pool];
        let bits = u32::from(net.max_prefix_len() - self.mask);
        let first = nth(net, n.checked_shl(bits).unwrap_or(0));
        IpNet::new(first, self.mask).expect("the mask was checked")
    }

    pub(super) fn overlapping(&self, cidr: &IpNet) -> Option<&(IpNet, String)> {
        // None overlap, so the last one that starts before our end is the only one that can reach into us.
        let (_, last) = self.given.range(..=number(cidr.broadcast())).next_back()?;
        (last.0.contains(cidr) || cidr.contains(&last.0)).then_some(last)
    }

    fn give(&mut self, cidr: IpNet, node: &str) {
        self.given.insert(number(cidr.network()), (cidr, node.to_owned()));
    }

    /// One more for a node.
    pub(super) fn assign(&mut self, node: &str) -> Result<IpNet, ClusterPoolError> {
        let count = self.pools.len();
        let (start_pool, start_share) = self.next;
        for step in 0..=count {
            let pool = (start_pool + step) % count.max(1);
            if pool >= count {
                break;
            }
            let first = if step == 0 { start_share } else { 0 };
            let shares = self.shares(pool);
            let mut n = first;
            // At most as many are taken as were given: the search ends after that many and one.
            while n < shares && n - first <= self.given.len() as u128 {
                let cidr = self.share(pool, n);
                n += 1;
                if self.overlapping(&cidr).is_none() {
                    self.give(cidr, node);
                    self.next = (pool, n);
                    return Ok(cidr);
                }
            }
        }
        Err(ClusterPoolError::Exhausted { node: node.to_owned(), mask: self.mask, pools: self.pools.clone() })
    }

    /// A node has this one already, wherever it lies.
    pub(super) fn restore(&mut self, node: &str, cidr: IpNet) -> Result<(), ClusterPoolError> {
        let cidr = cidr.trunc();
        if let Some((net, other)) = self.overlapping(&cidr) {
            if other == node && *net == cidr {
                return Ok(());
            }
            let (other, other_cidr) = (other.clone(), *net);
            return Err(ClusterPoolError::Conflict { node: node.to_owned(), cidr, other, other_cidr });
        }
        self.give(cidr, node);
        // Go on after it: what a node that is gone had just before a restart is not given at once.
        if cidr.prefix_len() == self.mask
            && let Some((pool, start)) =
                self.pools.iter().enumerate().find_map(|(n, pool)| Some((n, offset(pool, cidr.addr())?)))
        {
            let bits = u32::from(cidr.max_prefix_len() - self.mask);
            let share = start.checked_shr(bits).unwrap_or(0) + 1;
            self.next = self.next.max((pool, share));
        }
        Ok(())
    }

    /// A node let go of one.
    pub(super) fn release(&mut self, node: &str, cidr: &IpNet) {
        let first = number(cidr.network());
        if self.given.get(&first).is_some_and(|(net, owner)| net == cidr && owner == node) {
            self.given.remove(&first);
        }
    }

    /// A node is gone.
    pub(super) fn release_owner(&mut self, node: &str) {
        self.given.retain(|_, (_, owner)| owner != node);
    }

    /// Prefixes and nodes.
    pub(super) fn iter(&self) -> impl Iterator<Item = (IpNet, &str)> {
        self.given.values().map(|(cidr, node)| (*cidr, node.as_str()))
    }
}

/// Gives every node a prefix per family. A node keeps what it has; nothing is given twice; a prefix that comes free
/// is given again only after all others.
#[derive(Clone, Debug)]
pub struct ClusterPool {
    v4: Option<Prefixes>,
    v6: Option<Prefixes>,
}

impl ClusterPool {
    /// All of `pools` is free.
    ///
    /// # Errors
    /// The pools make no sense.
    pub fn new(pools: &[IpNet], mask_v4: u8, mask_v6: u8) -> Result<Self, ClusterPoolError> {
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

    /// A node has this prefix already. It is kept even if it lies outside the pools, which may have been smaller or
    /// larger when it was given.
    ///
    /// # Errors
    /// [`ClusterPoolError::Conflict`]; nothing changed.
    pub fn restore(&mut self, node: &str, cidr: IpNet) -> Result<(), ClusterPoolError> {
        self.family(&cidr).map_or(Ok(()), |family| family.restore(node, cidr))
    }

    /// The node's prefixes, IPv4 first: those that it has, or new ones.
    ///
    /// # Errors
    /// [`ClusterPoolError::Exhausted`]; nothing was given.
    pub fn assign(&mut self, node: &str) -> Result<Vec<IpNet>, ClusterPoolError> {
        let mut cidrs = Vec::new();
        let mut new: Vec<IpNet> = Vec::new();
        for family in self.v4.iter_mut().chain(&mut self.v6) {
            let known = family.given.values().find(|(_, owner)| owner == node).map(|(cidr, _)| *cidr);
            let result = known.map_or_else(|| family.assign(node).inspect(|cidr| new.push(*cidr)), Ok);
            match result {
                Ok(cidr) => cidrs.push(cidr),
                Err(error) => {
                    for cidr in new {
                        self.family(&cidr).map(|family| family.given.remove(&number(cidr.network())));
                    }
                    return Err(error);
                }
            }
        }
        Ok(cidrs)
    }

    /// The node is gone.
    pub fn release(&mut self, node: &str) {
        for family in self.v4.iter_mut().chain(&mut self.v6) {
            family.release_owner(node);
        }
    }

    /// Prefixes and nodes.
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, &str)> {
        let families = self.v4.iter().chain(&self.v6);
        families.flat_map(Prefixes::iter)
    }
}
