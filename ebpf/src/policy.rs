//! Network policies.

pub mod enforce;
pub mod host;
pub mod lookup;
