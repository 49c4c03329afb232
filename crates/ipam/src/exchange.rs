//! The agent's side of the block exchange with the operator, through the CiliumNode with optimistic locking. The agent
//! writes how many addresses it requests and removes blocks that it releases; the operator adds blocks.
//!
//! Every round begins with the current object and ends with the outcome of the agent's write. Two rules keep an address
//! from being allocated on two nodes:
//! - A write with unknown outcome may still be applied. Blocks that it releases are not used until a later read or write
//!   tells the outcome. A conflict of the next write does not: it may be the earlier write that changed the object.
//! - A write of a previous agent process may still be applied too. Nothing is allocated before a write of this process was
//!   accepted: by then earlier writes conflict.

use super::{Block, Edges, Family, Growth, NodePool, OverlappingBlock};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};

/// Blocks by pool.
pub type Allocated = BTreeMap<String, BTreeSet<IpNet>>;
/// Addresses by pool and family.
pub type Requested = BTreeMap<(String, Family), u32>;

/// The IPAM part of the CiliumNode spec.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Record {
    pub allocated: Allocated,
    pub requested: Requested,
}

/// The outcome of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Written,
    /// It conflicted or was rejected, and will never take effect.
    Refused,
    /// It timed out, and may still take effect.
    Unknown,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Exchange {
    growth: Growth,
    edges: Edges,
    /// A write of this process was accepted.
    accepted: bool,
    /// A write had an unknown outcome, and none was accepted since.
    uncertain: bool,
    /// A write conflicted after one with unknown outcome. Neither can be applied any more: the next read tells which of the
    /// blocks they release are still this node's.
    read_decides: bool,
    /// As last read or written.
    record: Record,
}

impl Exchange {
    #[must_use]
    pub fn new(growth: Growth, edges: Edges) -> Self {
        Self { growth, edges, accepted: false, uncertain: false, read_decides: false, record: Record::default() }
    }

    /// The object as last read or written.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Begins a round. `demand`: by pool, the pods that have an address or wait for one; `exhausted`: the subnet has no free
    /// address. Returns what to write, if anything, and blocks that were ignored.
    pub fn begin(
        &mut self,
        pool: &mut NodePool,
        now: &Record,
        demand: &Requested,
        exhausted: bool,
    ) -> (Option<Record>, Vec<OverlappingBlock>) {
        let problems = self.sync_blocks(pool, now.clone());
        if std::mem::take(&mut self.read_decides) {
            self.uncertain = false;
            cancel_releases(pool);
        }
        let mut next = Record::default();
        for ((name, family), demand) in demand {
            let held = u32::try_from(pool.held(name, *family)).unwrap_or(u32::MAX);
            next.requested.insert((name.clone(), *family), self.growth.wanted(*demand, exhausted));
            let surplus = self.growth.surplus(held, *demand, exhausted);
            if surplus > 0 {
                pool.release_idle(name, *family, u128::from(surplus));
            }
        }
        // Release everything idle of pools that no pod here uses any more.
        for name in pool.pools() {
            for family in Family::ALL.into_iter().filter(|family| !demand.contains_key(&(name.clone(), *family))) {
                pool.release_idle(&name, family, u128::MAX);
            }
        }
        let releasing: BTreeSet<(String, IpNet)> = pool.releasing().into_iter().collect();
        for (name, nets) in &now.allocated {
            let kept: BTreeSet<IpNet> =
                nets.iter().filter(|net| !releasing.contains(&(name.clone(), **net))).copied().collect();
            if !kept.is_empty() {
                next.allocated.insert(name.clone(), kept);
            }
        }
        // The object lost these blocks, for example since it was deleted, but endpoints use them: add them again.
        for (name, net) in pool.revoked() {
            next.allocated.entry(name).or_default().insert(net);
        }
        let write = next != *now || !self.accepted;
        (write.then_some(next), problems)
    }

    /// Ends a round with the outcome of its write.
    pub fn end(&mut self, pool: &mut NodePool, written: Record, outcome: Outcome) -> Vec<OverlappingBlock> {
        match outcome {
            Outcome::Written => {
                (self.accepted, self.uncertain, self.read_decides) = (true, false, false);
                self.sync_blocks(pool, written)
            }
            Outcome::Refused if self.uncertain => {
                self.read_decides = true;
                Vec::new()
            }
            Outcome::Refused => {
                cancel_releases(pool);
                Vec::new()
            }
            Outcome::Unknown => {
                self.uncertain = true;
                Vec::new()
            }
        }
    }

    fn sync_blocks(&mut self, pool: &mut NodePool, record: Record) -> Vec<OverlappingBlock> {
        let mut problems = Vec::new();
        let names: BTreeSet<String> = pool.pools().into_iter().chain(record.allocated.keys().cloned()).collect();
        let none = BTreeSet::new();
        for name in names {
            let nets = record.allocated.get(&name).unwrap_or(&none);
            let block = |net: &IpNet| Block { net: *net, edges: self.edges, programmed: self.accepted };
            problems.extend(pool.set_blocks(&name, &nets.iter().map(block).collect::<Vec<_>>()));
        }
        self.record = record;
        problems
    }
}

fn cancel_releases(pool: &mut NodePool) {
    for (name, net) in pool.releasing() {
        pool.cancel_release(&name, &net);
    }
}
