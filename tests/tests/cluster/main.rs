//! Whole clusters, through the programs that users have: `weft` and `kubectl`.

mod alone;
mod bad_input;
mod clean;
mod containerd;
mod edge;
mod ipam;
mod language;
mod mesh;
mod policy;
mod resolve;
mod service_bad;
mod service_hash;
mod service_restart;
