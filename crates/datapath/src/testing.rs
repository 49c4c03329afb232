//! What the tests that run as root share. Everything goes with the fixture, also after a panic.

use crate::netns::NetNs;
use crate::{Datapath, Options};
use nix::mount::{MntFlags, umount2};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A name that no other test, and no other run, has at this time.
pub(crate) fn unique(prefix: &str) -> String {
    format!("{prefix}{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// A BPF file system of its own.
pub(crate) struct BpfDir {
    pub(crate) path: PathBuf,
}

impl BpfDir {
    pub(crate) fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root");
        Self { path: std::env::temp_dir().join(unique("weft-datapath-")) }
    }

    /// Something in the directory of this version's layouts.
    pub(crate) fn inside(&self, path: &str) -> PathBuf {
        self.path.join(format!("v{}", weft_abi::LAYOUT_VERSION)).join(path)
    }

    /// With the maps alone.
    pub(crate) fn options(&self) -> Options {
        Options { maps_only: true, ..self.all() }
    }

    /// With the programs.
    pub(crate) fn all(&self) -> Options {
        let mut options = Options::new(&self.path);
        options.lock_wait = Duration::from_millis(50);
        options
    }

    /// Opens the maps alone.
    pub(crate) fn open(&self) -> Datapath {
        Datapath::open(&self.options()).map_err(|error| describe(&error)).expect("opens").0
    }

    /// Opens it with the programs.
    pub(crate) fn open_all(&self) -> Datapath {
        Datapath::open(&self.all()).map_err(|error| describe(&error)).expect("opens").0
    }
}

impl Drop for BpfDir {
    fn drop(&mut self) {
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        let _ = std::fs::remove_dir(&self.path);
    }
}

pub(crate) use weft_sys::error::describe;

/// Runs a test in a network namespace of its own.
pub(crate) fn in_netns(test: impl FnOnce() + Send) {
    let netns = NetNs::create().expect("needs root");
    netns.run(test).expect("enters");
}
