//! Where a decided packet goes, and how it gets there.

pub mod route;
pub mod send;
pub mod vxlan;
