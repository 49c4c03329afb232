//! The pools: which of them may serve an address, and which conflict with each other.

use super::share::Shares;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use weft_model::intent::{AddressRange, IpPool, LoadBalancerRequest};

/// The state of a pool, for its status.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PoolState {
    /// What it overlaps; while it does, no address of it is allocated.
    pub conflict: Option<String>,
    pub total: u128,
    pub used: u128,
}

struct Row<'a> {
    pool: &'a IpPool,
    /// What it overlaps.
    conflict: Option<String>,
    /// Per range, where the search for a free address continues; `None`: the range is used up. A cursor suffices, since
    /// within one plan no address is freed.
    next: Vec<Option<IpAddr>>,
}

/// Why a pool does not serve an address to a Service.
pub(super) enum Denial<'a> {
    NoPool,
    NotSelected(&'a str),
    Disabled(&'a str),
    Conflict(&'a str),
}

impl fmt::Display for Denial<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPool => f.write_str("no pool contains this address"),
            Self::NotSelected(pool) => write!(f, "its pool {pool} does not select this Service"),
            Self::Disabled(pool) => write!(f, "its pool {pool} is disabled"),
            Self::Conflict(pool) => write!(f, "its pool {pool} overlaps another; see the status of the pool"),
        }
    }
}

/// All pools, the oldest first.
pub(super) struct Pools<'a> {
    rows: Vec<Row<'a>>,
    /// There are more, which could not be parsed.
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

    /// The pools that select a Service.
    fn of(&self, request: &LoadBalancerRequest) -> impl Iterator<Item = &Row<'a>> {
        self.rows.iter().filter(|row| row.pool.selector.matches(&request.labels))
    }

    /// Whether a pool that selects the Service contains the address. Then it may keep it, even if the pool is disabled or
    /// in conflict.
    pub(super) fn may_keep(&self, request: &LoadBalancerRequest, address: IpAddr) -> bool {
        let has = |row: &Row<'_>| row.pool.ranges.iter().any(|range| holds(range, address));
        self.of(request).any(has) || self.incomplete && !self.rows.iter().any(has)
    }

    /// Whether the address may be allocated to the Service.
    pub(super) fn may_allocate(&self, request: &LoadBalancerRequest, address: IpAddr) -> Result<(), Denial<'a>> {
        let mut denial = Denial::NoPool;
        for row in self.rows.iter().filter(|row| row.pool.ranges.iter().any(|range| holds(range, address))) {
            let name = row.pool.name.as_str();
            denial = if !row.pool.selector.matches(&request.labels) {
                Denial::NotSelected(name)
            } else if row.pool.disabled {
                Denial::Disabled(name)
            } else if row.conflict.is_some() {
                Denial::Conflict(name)
            } else {
                return Ok(());
            };
        }
        Err(denial)
    }

    fn serves(row: &Row<'_>, request: &LoadBalancerRequest) -> bool {
        !row.pool.disabled && row.conflict.is_none() && row.pool.selector.matches(&request.labels)
    }

    /// Whether any pool serves the Service addresses of a family, free or not.
    pub(super) fn has_any(&self, request: &LoadBalancerRequest, v4: bool) -> bool {
        let of_family = |row: &&Row<'_>| row.pool.ranges.iter().any(|range| range.first.is_ipv4() == v4);
        self.rows.iter().filter(|row| Self::serves(row, request)).any(|row| of_family(&row))
    }

    /// The first address that is not in use.
    pub(super) fn first_free(
        &mut self,
        request: &LoadBalancerRequest,
        v4: bool,
        is_taken: impl Fn(IpAddr) -> bool,
    ) -> Option<IpAddr> {
        for row in self.rows.iter_mut().filter(|row| Self::serves(row, request)) {
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

/// The first two ranges of one pool that overlap.
fn within(pool: &IpPool) -> Option<String> {
    let ranges = &pool.ranges;
    let overlap = |n: usize| ranges[..n].iter().find(|other| overlap(other, &ranges[n])).map(|other| (n, other));
    let (n, other) = (0..ranges.len()).find_map(overlap)?;
    Some(format!("its blocks {} and {} overlap", show(other), show(&ranges[n])))
}

/// The first ranges of two pools that overlap.
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

fn holds(range: &AddressRange, address: IpAddr) -> bool {
    range.first.is_ipv4() == address.is_ipv4() && range.first <= address && address <= range.last
}
