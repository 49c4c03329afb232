//! The embedded cluster: a network of namespaces, nodes, and the programs that run on them, on one machine; `weft up`,
//! `weft down`, `weft status` as their user sees them.
//!
//! It exists so that nothing but a Linux kernel is needed to use and to test Weft. The agents and the operator that
//! run in it are the ones of a real cluster, and know nothing of it.

mod down;
pub mod fabric;
pub mod internal;
mod probe;
mod requirements;
mod status;
pub mod supervisor;
mod up;

pub use down::down;
pub use status::{NodeStatus, ProcessStatus, Status, status};
pub use up::{UpReport, up};

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use weft_lab_config::paths::Paths;
use weft_lab_config::{ClusterError, OptionError};

/// The program that all processes of the embedded cluster run, except those that a real cluster has too.
pub const PROGRAM: &str = "weft-lab";

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
    /// There is no such cluster, or its settings cannot be read.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
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
