//! ICMP errors: of others about tracked connections, and our own about rejected packets.

pub mod error;
pub mod reject;
