//! The cloud under the nodes: who decides which addresses a node's interface carries. One trait; behind it Azure
//! Resource Manager ([`azure`]), or the network of a cluster on one machine ([`fabric`]).
//!
//! The cloud is the judge: an address is assigned to one node at most, and what is not assigned is not carried.
#![forbid(unsafe_code)]

pub mod azure;
mod error;
pub mod fabric;

pub use error::CloudError;

use futures::future::BoxFuture;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A node, as the cloud can find it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct NodeRef {
    /// Name of the Node.
    pub name: String,
    /// `spec.providerID` of the Node; empty where there is none.
    #[serde(default)]
    pub provider_id: String,
}

/// New blocks to assign.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Wanted {
    /// IPv6.
    pub ipv6: bool,
    /// Prefix length of a block; 32 and 128: single addresses.
    pub length: u8,
    /// How many.
    pub count: u32,
}

/// An answer of the cloud.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, CloudError>>;

/// See the crate.
pub trait Cloud: Send + Sync {
    /// Blocks that the node's interface carries for pods.
    fn assigned<'a>(&'a self, node: &'a NodeRef) -> Answer<'a, BTreeSet<IpNet>>;

    /// Assigns new blocks; which ones, the cloud decides. Answers everything that the interface carries then, which may
    /// be less than was wanted if the subnet had less: then the next attempt gets [`CloudError::SubnetFull`].
    fn assign<'a>(&'a self, node: &'a NodeRef, wanted: &'a [Wanted]) -> Answer<'a, BTreeSet<IpNet>>;

    /// Assigns these very blocks again.
    fn restore<'a>(&'a self, node: &'a NodeRef, blocks: &'a [IpNet]) -> Answer<'a, ()>;

    /// Takes blocks from the interface. Those that it does not carry are fine.
    fn unassign<'a>(&'a self, node: &'a NodeRef, blocks: &'a [IpNet]) -> Answer<'a, ()>;

    /// Frees what nodes have that are not among these: they are gone for good. A cloud that frees addresses with the
    /// machine has nothing to do.
    fn retain<'a>(&'a self, nodes: &'a [String]) -> Answer<'a, ()>;
}
