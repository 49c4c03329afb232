//! Why an address was not given.

use super::Family;
use std::net::IpAddr;

/// What would help when a pool is exhausted: it depends on where its addresses come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Advice {
    /// The node has one prefix, for good.
    #[default]
    Prefix,
    /// More come as pods come.
    Growing,
    /// A number that was settled when the node was made.
    Fixed,
}

impl std::fmt::Display for Advice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Prefix => "fewer pods on this node, or nodes with larger pod prefixes, would help",
            Self::Growing => {
                "more were asked for: they come when the pool or subnet has some (the CiliumNode's \
                 status.ipam.operator-status says what is in the way)"
            }
            Self::Fixed => "fewer pods on this node, or nodes with a higher max-pods, would help",
        })
    }
}

/// Of a few prefixes: which.
fn of(prefixes: &[ipnet::IpNet]) -> String {
    match prefixes.len() {
        0 => String::new(),
        1..=4 => format!(" ({})", super::list(prefixes)),
        count => format!(" ({} and {} more)", super::list(&prefixes[..3]), count - 3),
    }
}

/// An address was not given.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum IpamError {
    /// All are taken.
    #[error(
        "no free {family} address in pool {pool}{}: all {capacity} of this node are in use; {advice}",
        of(prefixes)
    )]
    Exhausted {
        /// Name of the pool.
        pool: String,
        /// The node's prefixes of it, unless they are single addresses.
        prefixes: Vec<ipnet::IpNet>,
        /// Which family ran out.
        family: Family,
        /// Addresses that the node could give if nobody had any.
        capacity: u128,
        /// What would help.
        advice: Advice,
    },
    /// The node has nothing of this pool yet.
    #[error("this node has no {family} addresses of pool {pool} yet")]
    Empty {
        /// Name of the pool.
        pool: String,
        /// The family.
        family: Family,
    },
    /// The address to restore belongs to somebody else.
    #[error("{address} belongs to {owner}")]
    Taken {
        /// The address.
        address: IpAddr,
        /// Its owner.
        owner: String,
    },
    /// The owner has another address of this family.
    #[error("{owner} already has {address}")]
    HasAnother {
        /// The owner.
        owner: String,
        /// What it has.
        address: IpAddr,
    },
    /// A block to add overlaps one that is there.
    #[error("block {block} of pool {pool} overlaps {other} of pool {other_pool}")]
    Overlap {
        /// Pool of the new one.
        pool: String,
        /// The new one.
        block: ipnet::IpNet,
        /// Pool of the old one.
        other_pool: String,
        /// The old one.
        other: ipnet::IpNet,
    },
}
