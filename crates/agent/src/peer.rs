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
mod resolver;
mod server;
pub mod tls;

pub use client::{Ask, Client};
pub use message::{Labels, Pod};
pub use resolver::{Resolver, Unknown, is_answer, unknown_addresses};
pub use server::serve;

use crate::writer::thread::Handle;
use anyhow::Context as _;
use std::sync::Arc;
use tokio::net::TcpListener;
use weft_daemon::tasks::Tasks;

/// Settings of both ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// This agent's certificate, and the authority that it trusts.
    pub files: tls::Files,
    /// Port of all agents.
    pub port: u16,
}

/// Starts server and resolver.
///
/// # Errors
/// The certificates cannot be read, or the port cannot be bound.
pub async fn start(settings: &Settings, core: &Handle, tasks: &Tasks) -> anyhow::Result<Unknown> {
    let credentials = Arc::new(tls::Credentials::read(settings.files.clone()).context("certificates of agents")?);
    let port = settings.port;
    // Both families by one socket, where there are both.
    let listener = match TcpListener::bind(("::", port)).await {
        Ok(listener) => listener,
        Err(_) => TcpListener::bind(("0.0.0.0", port)).await.with_context(|| format!("peer-port {port}"))?,
    };
    let own = core.clone();
    let find = move |addresses: &[std::net::IpAddr]| own.snapshot().own_pods(addresses);
    tasks.spawn("peer-server", serve(listener, credentials.clone(), find, tasks.stop().clone()));
    let (resolver, unknown) = Resolver::new(core.clone(), Client::new(credentials, port));
    tasks.spawn("peer-resolver", resolver.run(tasks.stop().clone()));
    Ok(unknown)
}

/// Port of agents, unless the settings say otherwise.
pub const PORT: u16 = 4241;
/// Addresses in one request, at most.
const ADDRESSES_MAX: usize = 64;
