//! Network address translation.

pub mod checksum;
pub mod masquerade;
pub mod rewrite;
pub mod sctp;
