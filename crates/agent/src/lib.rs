//! The node agent: watches the cluster, works out what the kernel shall hold, and makes it so; answers CNI.
//!
//! [`app`] puts everything together; [`core`] holds the tables and is the only writer of maps; [`attach`] makes and
//! removes endpoints; [`node`] prepares the machine; [`announce`] tells the cluster.

pub mod addresses;
pub mod attach;
pub mod config;
pub mod core;
pub mod install;
pub mod ports;
pub mod server;
pub mod state;
