//! Interfaces of the agent.
//!
//! - [`agent`], [`cni`], [`flow`]: on its node, JSON lines over a unix socket, one request a line, one answer a line
//!   (`observe` answers with many). Plain enough for the CNI executable to speak it without a runtime.
//! - `peer` (feature `grpc`): between nodes, gRPC.

pub mod agent;
pub mod cluster;
pub mod cni;
pub mod failure;
pub mod flow;
#[cfg(feature = "grpc")]
pub mod peer;
