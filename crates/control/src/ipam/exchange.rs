//! How a node's agent and the operator talk about blocks: by the node's object, which only changes if nobody else changed
//! it meanwhile. The agent writes what it needs and strikes out what it lets go of; the operator adds.
//!
//! Every turn begins with the object as it is now and ends with what became of the agent's write. Two rules keep an
//! address from having two masters:
//! - A write whose fate is unknown may still arrive. What it struck out is not used again until a later answer settles it.
//! - A write of a former agent may still arrive as well. Nothing is given before a write of this agent was accepted:
//!   what was on its way before it is refused from then on.

use super::{Block, Edges, Family, Growth, IpamError, NodePool};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};

/// Blocks by pool.
pub type Told = BTreeMap<String, BTreeSet<IpNet>>;
/// Addresses by pool and family.
pub type Needed = BTreeMap<(String, Family), u32>;

/// What the object says about address management.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Record {
    /// What the node has.
    pub told: Told,
    /// What it asks for.
    pub needed: Needed,
}

/// What became of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It was accepted.
    Written,
    /// It was refused, and will never take effect.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// An agent's side of it.
#[derive(Clone, Debug)]
pub struct Exchange {
    growth: Growth,
    edges: Edges,
    /// A write of this agent was accepted.
    accepted: bool,
    /// What was last read of the object, or written to it.
    record: Record,
}

impl Exchange {
    /// A new agent's.
    #[must_use]
    pub fn new(growth: Growth, edges: Edges) -> Self {
        Self { growth, edges, accepted: false, record: Record::default() }
    }

    /// Blocks that may be given.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Begins a turn. `demand`: by pool, the pods that have an address or will want one; `exhausted`: the subnet has
    /// nothing left. Answers what to write, if anything.
    pub fn begin(
        &mut self,
        pool: &mut NodePool,
        now: &Record,
        demand: &Needed,
        exhausted: bool,
    ) -> (Option<Record>, Vec<IpamError>) {
        let problems = self.take_in(pool, now.clone());
        let mut next = Record::default();
        for ((name, family), demand) in demand {
            let held = u32::try_from(pool.held(name, *family)).unwrap_or(u32::MAX);
            next.needed.insert((name.clone(), *family), self.growth.wanted(*demand, exhausted));
            let surplus = self.growth.surplus(held, *demand, exhausted);
            if surplus > 0 {
                pool.retire(name, *family, u128::from(surplus));
            }
        }
        // Of a pool that no pod here wants any more, everything idle goes.
        for name in pool.pools() {
            for family in Family::ALL.into_iter().filter(|family| !demand.contains_key(&(name.clone(), *family))) {
                pool.retire(&name, family, u128::MAX);
            }
        }
        let retired: BTreeSet<(String, IpNet)> = pool.retired().into_iter().collect();
        for (name, nets) in &now.told {
            let kept: BTreeSet<IpNet> =
                nets.iter().filter(|net| !retired.contains(&(name.clone(), **net))).copied().collect();
            if !kept.is_empty() {
                next.told.insert(name.clone(), kept);
            }
        }
        // Lost from the object (somebody deleted it) and in use all the same: the node has it, and says so.
        for (name, net) in pool.orphaned() {
            next.told.entry(name).or_default().insert(net);
        }
        let write = next != *now || !self.accepted;
        (write.then_some(next), problems)
    }

    /// Ends a turn that had something to write.
    pub fn end(&mut self, pool: &mut NodePool, written: Record, outcome: Outcome) -> Vec<IpamError> {
        match outcome {
            Outcome::Written => {
                self.accepted = true;
                self.take_in(pool, written)
            }
            Outcome::Refused => {
                for (name, net) in pool.retired() {
                    pool.keep(&name, &net);
                }
                Vec::new()
            }
            Outcome::Unknown => Vec::new(),
        }
    }

    fn take_in(&mut self, pool: &mut NodePool, record: Record) -> Vec<IpamError> {
        let mut problems = Vec::new();
        let names: BTreeSet<String> = pool.pools().into_iter().chain(record.told.keys().cloned()).collect();
        let none = BTreeSet::new();
        for name in names {
            let nets = record.told.get(&name).unwrap_or(&none);
            let block = |net: &IpNet| Block { net: *net, edges: self.edges, programmed: self.accepted };
            problems.extend(pool.set_blocks(&name, &nets.iter().map(block).collect::<Vec<_>>()));
        }
        self.record = record;
        problems
    }
}
