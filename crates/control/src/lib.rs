//! What the node shall enforce, worked out from what the cluster wants: pure functions and state machines over
//! [`weft_model`]. No I/O, no clocks, no threads: everything that happens is passed in, everything to be done is
//! returned as data.

pub mod expand;
pub mod explain;
pub mod identity;
pub mod ipam;
pub mod lbipam;
pub mod pack;
pub mod policy;
pub mod preview;
pub mod remotes;
pub mod service;
