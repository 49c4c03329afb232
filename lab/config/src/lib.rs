//! Settings of an embedded cluster: the options of `weft up` and of `weft cluster create`, what they amount to once
//! checked, and the names and places of everything that the cluster has on its machine.

pub mod aks;
pub mod ipam;
pub mod names;
pub mod options;
pub mod paths;

pub use options::{Config, OptionError, UpOptions};
pub use weft_api::cluster::ClusterError;

/// The settings a cluster was made with.
///
/// # Errors
/// That there is no such cluster, or that its settings cannot be read.
pub fn load(name: &str) -> Result<Config, ClusterError> {
    weft_api::cluster::read(name)
}
