//! Agents ask each other which pod has an address.
//!
//! What a node knows of other nodes' pods comes through the API server, which may lag behind. A packet from or to an
//! address of the cluster's pod prefixes without an ipcache entry is not classed as world: the kernel drops it with its
//! own reason and reports it. The agent then asks the node that owns the prefix, and believes the answer as it believes a
//! slice, until a slice says the same. The sender's retransmission passes.
//!
//! gRPC over mutual TLS (`crates/api/proto/peer.proto`): client and server must present a certificate of the cluster's
//! authority for an agent ([`tls`]), and a node is asked, and believed, about the addresses of its own pod prefixes only.

mod client;
mod message;
mod server;
pub mod tls;

pub use client::{Ask, Client};
pub use message::{ADDRESSES_MAX, Labels, Pod};
pub use server::serve;

use anyhow::Context as _;
use std::sync::Arc;
use tokio::net::TcpListener;

/// Port of agents, unless the settings say otherwise.
pub const PORT: u16 = 4241;

/// Settings of both ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// This agent's certificate, and the authority that it trusts.
    pub files: tls::Files,
    /// Port of all agents.
    pub port: u16,
}

impl Settings {
    /// The certificates, and the socket on which other agents are answered.
    ///
    /// # Errors
    /// The certificates cannot be read, or the port cannot be bound.
    pub async fn open(&self) -> anyhow::Result<(Arc<tls::Credentials>, TcpListener)> {
        let credentials = Arc::new(tls::Credentials::read(self.files.clone()).context("certificates of agents")?);
        let port = self.port;
        // Both families by one socket, where there are both.
        let listener = match TcpListener::bind(("::", port)).await {
            Ok(listener) => listener,
            Err(_) => TcpListener::bind(("0.0.0.0", port)).await.with_context(|| format!("peer-port {port}"))?,
        };
        Ok((credentials, listener))
    }
}
