//! The node agent: watches the cluster, works out what the kernel shall hold, and makes it so; answers CNI.
//!
//! [`app`] puts everything together; [`tables`] is what the node knows, [`reconcile`] makes the kernel match, [`writer`]
//! owns both and is the only writer of maps; [`snapshot`] is what readers see; [`attach`] makes and
//! removes endpoints; [`machine`] prepares the node; [`cluster`] talks to the API server; [`resolver`] asks other agents; [`restart`] takes over from the agent before.
#![forbid(unsafe_code)]

pub mod announce;
pub mod app;
pub mod attach;
pub mod cluster;
pub mod config;
#[cfg(test)]
mod fakes;
pub mod ingest;
pub mod install;
pub mod ipam;
pub mod kernel;
pub mod local;
pub mod machine;
pub mod metrics;
pub mod ports;
pub mod reconcile;
pub mod resolver;
pub mod restart;
pub mod server;
pub mod settings;
pub mod snapshot;
pub mod state;
pub mod tables;
pub mod uninstall;
pub mod writer;
