//! The addresses of one pool and family on a node: its blocks, and which address is allocated next.
//!
//! Fresh addresses are allocated before used ones, and of those the one that has been free for longest, so that a client
//! with a stale address reaches nothing rather than another pod.

use super::{Family, number};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

/// Whether the first and the last address of a block may be allocated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Edges {
    /// No: the block is a network of its own.
    Reserved,
    /// Yes: the block is a part of a larger network.
    Usable,
}

/// A block that a node holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block {
    pub net: IpNet,
    pub edges: Edges,
    /// The network between the nodes routes it to this node. Until then no address of it is allocated.
    pub programmed: bool,
}

impl Block {
    /// First and last allocatable address, if there are any.
    pub(super) fn range(&self) -> Option<(u128, u128)> {
        let (first, last) = (number(self.net.network()), number(self.net.broadcast()));
        match self.edges {
            Edges::Usable => Some((first, last)),
            Edges::Reserved => {
                let (first, last) = (first.checked_add(1)?, last.checked_sub(1)?);
                (first <= last).then_some((first, last))
            }
        }
    }

    /// Number of allocatable addresses.
    #[must_use]
    pub fn capacity(&self) -> u128 {
        self.range().map_or(0, |(first, last)| (last - first).saturating_add(1))
    }
}

/// The state of an address on its node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum State {
    /// Can be allocated.
    Available,
    /// Has an owner.
    Assigned,
    /// Its block is not routed to this node yet.
    PendingProgramming,
    /// Its block is being released, and is not allocated from any more.
    PendingRelease,
}

#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) block: Block,
    /// The next address that was never allocated; `None`: all were.
    fresh: Option<u128>,
    pub(super) releasing: bool,
    /// Taken from the node while addresses of it have owners. It is dropped with the last of them.
    pub(super) revoked: bool,
}

impl Held {
    pub(super) fn usable(&self) -> bool {
        self.block.programmed && !self.releasing && !self.revoked
    }

    fn contains(&self, address: u128) -> bool {
        self.block.range().is_some_and(|(first, last)| (first..=last).contains(&address))
    }

    pub(super) fn state(&self) -> State {
        match (self.releasing || self.revoked, self.block.programmed) {
            (true, _) => State::PendingRelease,
            (false, false) => State::PendingProgramming,
            (false, true) => State::Available,
        }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct FamilyPool {
    family: Family,
    /// By first address; none overlaps another.
    pub(super) blocks: BTreeMap<u128, Held>,
    /// Released addresses, oldest first. Those that are not in `released` any more are skipped.
    queue: VecDeque<u128>,
    released: BTreeSet<u128>,
}

impl FamilyPool {
    pub(super) fn new(family: Family) -> Self {
        Self { family, blocks: BTreeMap::new(), queue: VecDeque::new(), released: BTreeSet::new() }
    }

    pub(super) fn overlapping(&self, net: &IpNet) -> Option<IpNet> {
        // Blocks do not overlap, so only the last one that starts before the end of `net` can intersect it.
        let (_, held) = self.blocks.range(..=number(net.broadcast())).next_back()?;
        let other = held.block.net;
        (other.contains(net) || net.contains(&other)).then_some(other)
    }

    pub(super) fn insert(&mut self, block: Block) {
        let fresh = block.range().map(|(first, _)| first);
        let held = Held { block, fresh, releasing: false, revoked: false };
        self.blocks.insert(number(block.net.network()), held);
    }

    pub(super) fn get_mut(&mut self, net: &IpNet) -> Option<&mut Held> {
        self.blocks.get_mut(&number(net.network())).filter(|held| held.block.net == *net)
    }

    pub(super) fn remove(&mut self, net: &IpNet) {
        if self.get_mut(net).is_some() {
            self.blocks.remove(&number(net.network()));
            let (first, last) = (number(net.network()), number(net.broadcast()));
            let gone: Vec<u128> = self.released.range(first..=last).copied().collect();
            for address in gone {
                self.released.remove(&address);
            }
            let released = &self.released;
            self.queue.retain(|address| released.contains(address));
        }
    }

    pub(super) fn block_of(&self, address: IpAddr) -> Option<&Held> {
        let address = number(address);
        let (_, held) = self.blocks.range(..=address).next_back()?;
        held.contains(address).then_some(held)
    }

    /// Allocates a free address.
    pub(super) fn take(&mut self, taken: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        let family = self.family;
        let free = |address: u128| !taken(family.address(address));
        for held in self.blocks.values_mut().filter(|held| held.usable()) {
            let Some((_, last)) = held.block.range() else { continue };
            while let Some(address) = held.fresh {
                held.fresh = address.checked_add(1).filter(|next| *next <= last);
                if free(address) && !self.released.contains(&address) {
                    return Some(family.address(address));
                }
            }
        }
        // The oldest in a usable block; those in other blocks keep their position.
        let at = self.queue.iter().position(|address| {
            self.released.contains(address)
                && free(*address)
                && self.blocks.range(..=*address).next_back().is_some_and(|(_, held)| held.usable())
        })?;
        let address = self.queue.remove(at).expect("the position was just found");
        self.released.remove(&address);
        Some(family.address(address))
    }

    /// The address has an owner: it is no longer queued for reuse.
    pub(super) fn claim(&mut self, address: IpAddr) {
        if self.released.remove(&number(address)) {
            self.queue.retain(|queued| *queued != number(address));
        }
    }

    /// The address has no owner any more.
    pub(super) fn release(&mut self, address: IpAddr) {
        let number = number(address);
        // It counts as used, also if it was restored and never allocated here.
        if self.released.insert(number) {
            self.queue.push_back(number);
        }
    }
}
