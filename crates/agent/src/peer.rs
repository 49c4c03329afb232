//! Agents ask each other who has an address.
//!
//! What a node knows of other nodes' pods comes through the API server, which may be late. A packet from (or to) an
//! address of the cluster's pods that nobody told of yet is not classed as the world: the kernel drops it with its own
//! reason, and says so. The agent then asks the node that the address belongs to, directly, and what that one answers is
//! believed like a slice until a slice says the same. The sender's next try passes.
//!
//! gRPC over mutual TLS (`crates/api/proto/peer.proto`): who asks and who answers must show a certificate of the cluster's
//! authority for an agent ([`tls`]), and a node is asked, and believed, about the addresses of its own pod prefixes only.

mod client;
mod message;
mod resolver;
mod server;
pub mod tls;

pub use client::{Ask, Client};
pub use message::{Labels, Pod};
pub use resolver::{Resolver, Unknown, unknown_addresses};
pub use server::serve;

/// Port of agents, where nothing else is said.
pub const PORT: u16 = 4241;
/// The one method.
const RESOLVE: &str = "/weft.peer.v1.Peer/Resolve";
/// Addresses in one question, at most.
const ADDRESSES_MAX: usize = 64;
/// Bytes of a message, at most.
const MESSAGE_MAX: usize = 1 << 20;
