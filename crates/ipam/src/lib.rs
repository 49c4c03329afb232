//! IPAM. The operator's side decides which node has which prefixes ([`ClusterPool`], [`SharedPools`], [`plan`]), the
//! agent's side which endpoint has which address ([`NodePool`]) and how many addresses the node holds ([`Growth`]). All of
//! them are restored from what exists before they allocate anything.
//!
//! In every mode a node holds *blocks*: its one pod CIDR, some smaller prefixes of several pools, or single addresses, which
//! are blocks of one.

mod cluster;
mod demand;
mod error;
mod exchange;
mod family;
pub mod lbipam;
mod node;
mod operator;
mod shared;

pub use cluster::{AssignError, ClusterPool, PoolConfigError, PrefixConflict};
pub use demand::{Growth, Watermarks};
pub use error::{Advice, AllocateError, OverlappingBlock, RestoreError};
pub use exchange::{Allocated, Exchange, Outcome, Record, Requested};
pub use family::{Block, Edges, State};
pub use node::{Allocation, Choice, NodePool, Placement, Usage};
pub use operator::{Needs, Plan, plan};
pub use shared::{AllocatePrefixError, PoolSpec, SetPoolError, SharedPools};

use ipnet::IpNet;
use std::net::IpAddr;

/// An address family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Prefix length of a single address.
    #[must_use]
    pub fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    fn address(self, number: u128) -> IpAddr {
        match self {
            Self::V4 => {
                let number = u32::try_from(number).expect("numbers come from addresses of this family");
                IpAddr::from(number.to_be_bytes())
            }
            Self::V6 => IpAddr::from(number.to_be_bytes()),
        }
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

/// The address `offset` after the first one of `net`.
fn nth(net: &IpNet, offset: u128) -> IpAddr {
    match net {
        IpNet::V4(v4) => {
            let offset = u32::try_from(offset).expect("offsets stay inside the prefix");
            IpAddr::from((u32::from(v4.network()) + offset).to_be_bytes())
        }
        IpNet::V6(v6) => IpAddr::from((u128::from(v6.network()) + offset).to_be_bytes()),
    }
}

/// Offset of `address` in `net`; `None` if it is outside.
fn offset(net: &IpNet, address: IpAddr) -> Option<u128> {
    net.contains(&address).then(|| number(address) - number(net.network()))
}

fn list(nets: &[IpNet]) -> String {
    nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
