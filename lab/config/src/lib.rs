//! Settings of an embedded cluster: the options of `weft up` and of `weft cluster create`, what they amount to once
//! checked, and the names and places of everything that the cluster has on its machine.

pub mod aks;
pub mod ipam;
pub mod names;
pub mod options;
pub mod paths;

pub use options::{Config, OptionError, UpOptions};

use paths::Paths;
use std::fs;
use std::io;

/// Why a cluster's settings cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The name is none.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// There is no such cluster.
    #[error("no cluster {0} on this machine (`weft up` makes one)")]
    Absent(String),
    /// The file of the settings cannot be read.
    #[error("{what}: {source}")]
    Read {
        /// What was attempted.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// The settings a cluster was made with.
///
/// # Errors
/// That there is no such cluster, or that its settings cannot be read.
pub fn load(name: &str) -> Result<Config, ConfigError> {
    options::check_name(name)?;
    let file = Paths::new(name).config();
    let text = match fs::read(&file) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(ConfigError::Absent(name.to_owned())),
        Err(source) => return Err(ConfigError::Read { what: format!("read {}", file.display()), source }),
        Ok(text) => text,
    };
    serde_json::from_slice(&text).map_err(|error| ConfigError::Read {
        what: format!("{} (`weft down` removes the cluster)", file.display()),
        source: error.into(),
    })
}
