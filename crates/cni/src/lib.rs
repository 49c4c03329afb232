//! The CNI executable: parse, ask the agent, print. It never touches a link or a map itself, so a crash of it at any
//! point leaves nothing that the agent does not know of.
//!
//! CNI spec 1.1.0 (and results for 0.3.0 to 1.0.0): <https://www.cni.dev/docs/spec/>.

pub mod client;
pub mod config;
pub mod delegate;
pub mod env;
pub mod error;
pub mod plugin;
pub mod queue;
pub mod result;
