//! The one writer: owns the tables and the reconcilers and runs them in order. Plain state, driven by method calls from
//! one thread ([`thread`]); time is passed in, the kernel is behind [`Kernel`], so that tests drive it step by step.
//! Readers never come here: after each flush it publishes a [`Snapshot`].
//!
//! Order rules, wherever something changes:
//! - a policy is written before an endpoint uses it, and removed after no endpoint does;
//! - an endpoint's policy is in force before its address is known to anybody;
//! - a backend's address and policy are in force before a frontend leads there;
//! - nothing that a former agent left is removed before every source delivered all it has.

pub mod endpoints;
pub mod explain;
mod flush;
pub mod identities;
pub mod ipam;
mod nodes;
pub mod preview;
mod restore;
pub mod thread;

pub use crate::settings::Settings;
pub use crate::snapshot::Progress;
pub use flush::{Part, Signals, Writer};

#[cfg(test)]
mod races;
#[cfg(test)]
pub(crate) mod tests;
