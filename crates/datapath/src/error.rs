//! Why a data path could not be opened.

use std::io;
use std::path::{Path, PathBuf};
use weft_model::desired::DataplaneError;

/// Why a data path could not be opened. What was in force before is in force still.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another agent.
    #[error("{} is owned by another running agent", dir.display())]
    Owned {
        /// The pin directory.
        dir: PathBuf,
    },
    /// Pins need a BPF file system.
    #[error("{} is not on a BPF file system (mount one: mount -t bpf bpf DIR)", dir.display())]
    NotBpffs {
        /// The pin directory.
        dir: PathBuf,
    },
    /// A pinned map that is not ours, or of an unknown version.
    #[error("pinned map {map} at {} has another layout: {difference}; remove the pin if nothing uses it", path.display())]
    Foreign {
        /// Its name.
        map: &'static str,
        /// The pin.
        path: PathBuf,
        /// What differs.
        difference: String,
    },
    /// A map is to become smaller than what it holds.
    #[error("map {map} shall hold {entries_max} entries, but {entries} are in it")]
    TooSmall {
        /// Its name.
        map: &'static str,
        /// The size wanted.
        entries_max: u32,
        /// What it holds.
        entries: usize,
    },
    /// The object of the kernel programs does not fit this agent. A build has both from the same sources.
    #[error("read the kernel programs' object: {why}")]
    Object {
        /// What is wrong with it.
        why: String,
    },
    /// What is in force, left by a former agent, could not be read from the maps.
    #[error("adopt what is in force")]
    Adopt(#[from] DataplaneError),
    /// The kernel refused a program.
    #[error("load the kernel program {name}: {why}")]
    Program {
        /// Its name.
        name: &'static str,
        /// The verifier's log, or the kernel's error.
        why: String,
    },
    /// A system call failed.
    #[error("{what}")]
    System {
        /// What was attempted on what.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl OpenError {
    pub(crate) fn path(what: &str, path: &Path, source: io::Error) -> Self {
        Self::System { what: format!("{what} {}", path.display()), source }
    }

    pub(crate) fn map(what: &str, map: &str, source: io::Error) -> Self {
        Self::System { what: format!("{what} map {map}"), source }
    }
}
