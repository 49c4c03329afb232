//! The compiler on trial: worlds of the oracle become what agents would tell their policy engines, and what the
//! engines make of them is compared with what the oracle says.
//!
//! Neither side knows the other, only this crate knows both. Tests use it, and `fuzz-policy` runs it for as long as
//! one likes.

pub mod cluster;
pub mod compare;
pub mod feed;

pub use cluster::{Agent, Cluster};
