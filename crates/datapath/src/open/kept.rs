//! Verified programs are pinned, under a hash of the object and of the maps that they were made from. A restarted agent takes
//! them from there: verifying them takes seconds.

use super::object::OBJECT;
use crate::error::OpenError;
use crate::hooks::{Programs, programs};
use crate::pins::PinDir;
use crate::sys;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::{fs, io};

/// Where the programs of this object with these maps are pinned.
pub(super) struct Kept {
    all: PathBuf,
    own: PathBuf,
}

impl Kept {
    /// # Errors
    /// A map is not readable.
    pub(super) fn new(pins: &PinDir, maps: &BTreeMap<&'static str, Arc<OwnedFd>>) -> Result<Self, OpenError> {
        let mut hash = Fnv::new();
        hash.update(OBJECT);
        for (name, map) in maps {
            // The kernel gives an id once until the machine restarts, and no pin outlives that.
            let info = sys::map_info(map.as_fd()).map_err(|source| OpenError::map("inspect", name, source))?;
            hash.update(name.as_bytes());
            hash.update(&info.id.to_ne_bytes());
        }
        let all = pins.programs();
        Ok(Self { own: all.join(format!("{:016x}", hash.0)), all })
    }

    /// The programs, if every one is there.
    ///
    /// # Errors
    /// A pin is there and cannot be opened.
    pub(super) fn take(&self) -> Result<Option<Programs>, OpenError> {
        let mut found = BTreeMap::new();
        for name in programs() {
            let path = self.own.join(name);
            match sys::object_get(&path).and_then(|fd| sys::require_program(fd.as_fd()).map(|()| fd)) {
                Ok(fd) => found.insert(name, fd),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(source) => return Err(OpenError::path("open the pinned program", &path, source)),
            };
        }
        Ok(Some(Programs::new(found)))
    }

    /// Pins the programs, in the place of all others.
    ///
    /// # Errors
    /// A system call failed.
    pub(super) fn put(&self, programs: &Programs) -> Result<(), OpenError> {
        let failed = |source| OpenError::path("pin the programs in", &self.own, source);
        remove_all_but(&self.all, None).map_err(failed)?;
        fs::create_dir_all(&self.own).map_err(failed)?;
        for (name, program) in programs.all() {
            sys::object_pin(program, &self.own.join(name)).map_err(failed)?;
        }
        Ok(())
    }

    /// Removes what other objects, or other maps, have left.
    ///
    /// # Errors
    /// A system call failed.
    pub(super) fn prune(&self) -> Result<(), OpenError> {
        remove_all_but(&self.all, Some(&self.own)).map_err(|source| OpenError::path("prune", &self.all, source))
    }
}

fn remove_all_but(all: &PathBuf, keep: Option<&PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(all)? {
        let path = entry?.path();
        if Some(&path) != keep {
            fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

/// FNV-1a, 64 bits.
struct Fnv(u64);

impl Fnv {
    const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn update(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
