//! What can go wrong with the addresses of a node, by what the caller can do about it.

use super::Family;
use ipnet::IpNet;
use std::net::IpAddr;

/// What helps when a pool is exhausted; it depends on where its addresses come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Advice {
    /// The node has one prefix that never changes.
    #[default]
    Prefix,
    /// The node requests more as its pods need them.
    Growing,
    /// The number was fixed when the node was created.
    Fixed,
}

impl std::fmt::Display for Advice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Prefix => "run fewer pods on this node, or give nodes larger pod CIDRs",
            Self::Growing => {
                "more were requested and are added as soon as the pool or subnet has some (for what prevents it see \
                 status.ipam.operator-status of the CiliumNode)"
            }
            Self::Fixed => "run fewer pods on this node, or create nodes with a higher max-pods",
        })
    }
}

/// The first few of the prefixes, in parentheses.
fn some_of(prefixes: &[IpNet]) -> String {
    match prefixes.len() {
        0 => String::new(),
        1..=4 => format!(" ({})", super::list(prefixes)),
        count => format!(" ({} and {} more)", super::list(&prefixes[..3]), count - 3),
    }
}

/// An endpoint gets no address. Retry after another one was released, or after the node received more blocks.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AllocateError {
    /// Every address has an owner.
    #[error(
        "no free {family} address in pool {pool}{}: all {capacity} of this node are in use; {advice}",
        some_of(prefixes)
    )]
    Exhausted {
        pool: String,
        /// The node's prefixes of the pool, unless they are single addresses.
        prefixes: Vec<IpNet>,
        family: Family,
        /// Addresses that the node could allocate if none had an owner.
        capacity: u128,
        advice: Advice,
    },
    /// The node has received no block of this pool yet.
    #[error("this node has no {family} addresses of pool {pool} yet")]
    Empty { pool: String, family: Family },
}

/// An address cannot be restored to its owner: the recorded state contradicts itself. Retrying does not help.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RestoreError {
    /// Another owner has the address.
    #[error("address {address} of endpoint {owner} is already allocated to endpoint {holder}")]
    Taken { address: IpAddr, owner: String, holder: String },
    /// The owner has another address of this family.
    #[error("endpoint {owner} cannot have {address}: it already has {held}")]
    HasAnother { owner: String, address: IpAddr, held: IpAddr },
}

/// A block was not added to the node, since the node already has some of its addresses. The API object that lists both
/// must be corrected.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("block {block} of pool {pool} is ignored: it overlaps {other} of pool {other_pool}")]
pub struct OverlappingBlock {
    pub pool: String,
    pub block: IpNet,
    pub other_pool: String,
    pub other: IpNet,
}
