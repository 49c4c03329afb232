//! Tests the policy compiler against the oracle: feeds random worlds to policy engines as an agent would, and compares the
//! compiled verdicts with those of the oracle.
//!
//! Only this crate depends on both. Its tests use it, and `fuzz-policy` runs it for any length of time.

pub mod cluster;
pub mod compare;
pub mod feed;

pub use cluster::{Agent, Cluster};
