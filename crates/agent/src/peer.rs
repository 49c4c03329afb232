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
pub use resolver::{Resolver, Unknown, is_answer, unknown_addresses};
pub use server::serve;

use crate::core::thread::Handle;
use anyhow::Context as _;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How agents ask each other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Who this agent is, and whom it trusts.
    pub files: tls::Files,
    /// Where all agents answer.
    pub port: u16,
}

/// Starts both ends.
///
/// # Errors
/// The certificates or the port cannot be had.
pub async fn start(
    settings: &Settings,
    core: &Handle,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> anyhow::Result<Unknown> {
    let credentials = Arc::new(tls::Credentials::read(settings.files.clone()).context("certificates of agents")?);
    let port = settings.port;
    // Both families by one socket, where there are both.
    let listener = match TcpListener::bind(("::", port)).await {
        Ok(listener) => listener,
        Err(_) => TcpListener::bind(("0.0.0.0", port)).await.with_context(|| format!("peer-port {port}"))?,
    };
    let own = core.clone();
    let find = move |addresses: &[std::net::IpAddr]| own.look(|core| core.own_pods(addresses));
    tasks.spawn(serve(listener, credentials.clone(), find, stop.clone()));
    let (resolver, unknown) = Resolver::new(core.clone(), Client::new(credentials, port));
    tasks.spawn(resolver.run(stop.clone()));
    Ok(unknown)
}

/// Port of agents, where nothing else is said.
pub const PORT: u16 = 4241;
/// The one method.
const RESOLVE: &str = "/weft.peer.v1.Peer/Resolve";
/// Addresses in one question, at most.
const ADDRESSES_MAX: usize = 64;
/// Bytes of a message, at most.
const MESSAGE_MAX: usize = 1 << 20;
