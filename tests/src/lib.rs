//! What the tests of the whole system share.

pub mod cluster;
pub mod containerd;
pub mod node;
pub mod packet;
pub mod quiet;
pub mod service;
