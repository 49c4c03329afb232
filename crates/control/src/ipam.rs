//! Addresses: which node has which prefix ([`ClusterPool`], the operator's side), which endpoint has which address
//! ([`NodePool`], the node's side). Both are restored from what exists before they give anything away.

mod cluster;
mod node;

pub use cluster::{ClusterPool, ClusterPoolError};
pub use node::{AddressPool, Allocation, IpamError, NodePool};

use ipnet::IpNet;
use std::net::IpAddr;

/// The address as a number.
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

/// Offset of `address` in `net`, `None` if it is not inside.
fn offset(net: &IpNet, address: IpAddr) -> Option<u128> {
    net.contains(&address).then(|| number(address) - number(net.network()))
}
