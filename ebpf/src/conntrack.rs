//! Connections: one entry of `FLOWS` each, for both directions.

pub mod collect;
pub mod entry;
pub mod key;
