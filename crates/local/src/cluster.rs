//! `weft up`, `weft down`, `weft status`: a cluster as its user sees it.

pub mod aks;
mod down;
pub mod ipam;
pub mod options;
pub mod paths;
mod probe;
mod requirements;
mod status;
mod up;

pub use down::down;
pub use options::{Config, OptionError, UpOptions};
pub use status::{NodeStatus, ProcessStatus, Status, status};
pub use up::{UpReport, up};

use paths::Paths;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Why a command on a cluster failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An option is wrong.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// Only root may do this.
    #[error("weft {0} needs root: it makes network namespaces and loads programs into the kernel (try sudo)")]
    NotRoot(&'static str),
    /// The machine lacks something.
    #[error("{0}")]
    Requirement(String),
    /// There is no such cluster.
    #[error("no cluster {0} on this machine (`weft up` makes one)")]
    Absent(String),
    /// A step failed.
    #[error("{what}: {source}")]
    Step {
        /// Which.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something did not happen in time.
    #[error("{what} (waited {seconds} s){detail}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: u64,
        /// What is known about the cause.
        detail: String,
    },
}

fn step<T>(what: impl Into<String>, result: io::Result<T>) -> Result<T, Error> {
    result.map_err(|source| Error::Step { what: what.into(), source })
}

/// Where kubectl's configuration for a cluster is.
///
/// # Errors
/// That the name is none.
pub fn kubeconfig_path(name: &str) -> Result<PathBuf, Error> {
    options::check_name(name)?;
    Ok(Paths::new(name).kubeconfig())
}

/// The socket of a node's agent.
#[must_use]
pub fn agent_socket(name: &str, node: &str) -> PathBuf {
    Paths::new(name).agent_socket(node)
}

/// Names of a cluster's nodes.
///
/// # Errors
/// That there is no such cluster.
pub fn nodes(name: &str) -> Result<Vec<String>, Error> {
    Ok(load(name)?.node_names())
}

/// The settings a cluster was made with.
///
/// # Errors
/// That there is no such cluster.
pub fn load(name: &str) -> Result<Config, Error> {
    options::check_name(name)?;
    let file = Paths::new(name).config();
    let text = match fs::read(&file) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(Error::Absent(name.to_owned())),
        other => step(format!("read {}", file.display()), other)?,
    };
    let parsed = serde_json::from_slice(&text).map_err(io::Error::other);
    step(format!("{} (`weft down` removes the cluster)", file.display()), parsed)
}

fn require_root(command: &'static str) -> Result<(), Error> {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { Err(Error::NotRoot(command)) }
}

/// One command at a time works on a cluster; the lock ends with the process.
fn lock(paths: &Paths) -> Result<nix::fcntl::Flock<fs::File>, Error> {
    step("make /run/weft", fs::create_dir_all("/run/weft"))?;
    let place = format!("/run/weft/.{}.lock", paths.cluster);
    loop {
        let file = step(format!("open {place}"), fs::OpenOptions::new().create(true).append(true).open(&place))?;
        let held = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive)
            .map_err(|(_, e)| Error::Step { what: format!("lock {place}"), source: e.into() })?;
        // `down` removes the file while it holds the lock; a lock on a removed file excludes nobody.
        let (own, named) = (held.metadata().map(|m| m.ino()), fs::metadata(&place).map(|m| m.ino()));
        if matches!((own, named), (Ok(a), Ok(b)) if a == b) {
            return Ok(held);
        }
    }
}
