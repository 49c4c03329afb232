//! The pools: which address is whose to give, which pools are in conflict.

use super::share::Shares;
use super::{PoolState, holds};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use weft_model::intent::{AddressRange, IpPool, LoadBalancerRequest};

struct Row<'a> {
    pool: &'a IpPool,
    /// What it overlaps.
    conflict: Option<String>,
    /// Per range: where the search for a free address goes on; `None`: the range is used up. Within one plan addresses
    /// are only taken.
    next: Vec<Option<IpAddr>>,
}

/// All pools, the oldest first.
pub(super) struct Pools<'a> {
    rows: Vec<Row<'a>>,
    /// There are more, which cannot be read.
    incomplete: bool,
}

impl<'a> Pools<'a> {
    pub(super) fn new(pools: &'a BTreeMap<String, IpPool>, incomplete: bool) -> Self {
        let mut order: Vec<&IpPool> = pools.values().collect();
        order.sort_by(|a, b| (&a.created, &a.name).cmp(&(&b.created, &b.name)));
        let mut rows: Vec<Row<'a>> = Vec::new();
        for (n, pool) in order.iter().enumerate() {
            let conflict = within(pool).or_else(|| order[..n].iter().find_map(|older| between(pool, older)));
            let next = pool.ranges.iter().map(|range| Some(range.first)).collect();
            rows.push(Row { pool, conflict, next });
        }
        Self { rows, incomplete }
    }

    /// The pools that are for a Service.
    fn of(&self, request: &LoadBalancerRequest) -> impl Iterator<Item = &Row<'a>> {
        self.rows.iter().filter(|row| row.pool.selector.matches(&request.labels))
    }

    /// Whether a pool that is for the Service has the address: then it may keep it, even if nobody gets a new one.
    pub(super) fn hold(&self, request: &LoadBalancerRequest, address: IpAddr) -> bool {
        let has = |row: &Row<'_>| row.pool.ranges.iter().any(|range| holds(range, address));
        self.of(request).any(has) || self.incomplete && !self.rows.iter().any(has)
    }

    /// Whether the Service may get the address anew.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn may_give(&self, request: &LoadBalancerRequest, address: IpAddr) -> Result<(), String> {
        let mut why = "no pool has this address".to_owned();
        for row in self.rows.iter().filter(|row| row.pool.ranges.iter().any(|range| holds(range, address))) {
            let name = &row.pool.name;
            why = if !row.pool.selector.matches(&request.labels) {
                format!("pool {name}, which has this address, is not for this Service")
            } else if row.pool.disabled {
                format!("pool {name}, which has this address, is disabled")
            } else if row.conflict.is_some() {
                format!("pool {name}, which has this address, overlaps another")
            } else {
                return Ok(());
            };
        }
        Err(why)
    }

    fn gives(row: &Row<'_>, request: &LoadBalancerRequest) -> bool {
        !row.pool.disabled && row.conflict.is_none() && row.pool.selector.matches(&request.labels)
    }

    /// Whether there are pools of a family at all.
    pub(super) fn has_any(&self, request: &LoadBalancerRequest, v4: bool) -> bool {
        let of_family = |row: &&Row<'_>| row.pool.ranges.iter().any(|range| range.first.is_ipv4() == v4);
        self.rows.iter().filter(|row| Self::gives(row, request)).any(|row| of_family(&row))
    }

    /// The first address that nobody has.
    pub(super) fn first_free(
        &mut self,
        request: &LoadBalancerRequest,
        v4: bool,
        is_taken: impl Fn(IpAddr) -> bool,
    ) -> Option<IpAddr> {
        for row in self.rows.iter_mut().filter(|row| Self::gives(row, request)) {
            for (range, next) in
                row.pool.ranges.iter().zip(&mut row.next).filter(|(range, _)| range.first.is_ipv4() == v4)
            {
                while let Some(address) = *next {
                    if !is_taken(address) {
                        return Some(address);
                    }
                    *next = after(address).filter(|after| *after <= range.last);
                }
            }
        }
        None
    }

    /// How all of them stand.
    pub(super) fn states(self, shares: &Shares<'_>) -> BTreeMap<String, PoolState> {
        let state = |row: Row<'_>| {
            let total = row.pool.ranges.iter().fold(0_u128, |sum, range| sum.saturating_add(size(range)));
            let used = shares.taken().filter(|address| row.pool.ranges.iter().any(|range| holds(range, *address)));
            let used = used.count() as u128;
            (row.pool.name.clone(), PoolState { conflict: row.conflict, total, used })
        };
        self.rows.into_iter().map(state).collect()
    }
}

/// Ranges of one pool that overlap.
fn within(pool: &IpPool) -> Option<String> {
    let ranges = &pool.ranges;
    let overlap = |n: usize| ranges[..n].iter().find(|other| overlap(other, &ranges[n])).map(|other| (n, other));
    let (n, other) = (0..ranges.len()).find_map(overlap)?;
    Some(format!("its blocks {} and {} overlap", show(other), show(&ranges[n])))
}

/// Ranges of two pools that overlap.
fn between(pool: &IpPool, older: &IpPool) -> Option<String> {
    let hit =
        |range: &AddressRange| older.ranges.iter().find(|other| overlap(other, range)).map(|other| (*range, *other));
    let (range, other) = pool.ranges.iter().find_map(hit)?;
    Some(format!("{} overlaps {} of the older pool {}", show(&range), show(&other), older.name))
}

fn overlap(a: &AddressRange, b: &AddressRange) -> bool {
    a.first.is_ipv4() == b.first.is_ipv4() && a.first <= b.last && b.first <= a.last
}

fn show(range: &AddressRange) -> String {
    format!("{}-{}", range.first, range.last)
}

fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => u32::from(v4).checked_add(1).map(|next| IpAddr::V4(Ipv4Addr::from(next))),
        IpAddr::V6(v6) => u128::from(v6).checked_add(1).map(|next| IpAddr::V6(Ipv6Addr::from(next))),
    }
}

fn size(range: &AddressRange) -> u128 {
    let number = |address: IpAddr| match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    };
    number(range.last).saturating_sub(number(range.first)).saturating_add(1)
}
