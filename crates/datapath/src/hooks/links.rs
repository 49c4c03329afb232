//! The loaded programs and the pinned links by which they are attached.

use crate::sys;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The programs, loaded.
#[derive(Debug)]
pub(crate) struct Programs(BTreeMap<&'static str, OwnedFd>);

impl Programs {
    /// One descriptor for each of [`programs`].
    pub(crate) fn new(loaded: BTreeMap<&'static str, OwnedFd>) -> Self {
        Self(loaded)
    }

    /// All of them by name.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        self.0.iter().map(|(name, fd)| (*name, fd.as_fd()))
    }

    pub(super) fn get(&self, name: &'static str) -> BorrowedFd<'_> {
        self.0[name].as_fd()
    }
}

/// Attaches the programs to devices of the calling thread's network namespace. Cheap to clone, usable by any thread.
#[derive(Clone, Debug)]
pub struct Hooks {
    pub(super) links: PathBuf,
    pub(super) programs: Arc<Programs>,
}

impl Hooks {
    pub(crate) fn new(links: PathBuf, programs: Programs) -> Self {
        Self { links, programs: Arc::new(programs) }
    }
}

/// The link at a pin, if there is one.
pub(super) fn pinned(path: &Path) -> io::Result<Option<OwnedFd>> {
    match sys::object_get(path) {
        Ok(link) => Ok(Some(link)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces a link's program; `false` if what it was attached to has gone in the meantime.
pub(super) fn update(link: &OwnedFd, program: BorrowedFd<'_>) -> io::Result<bool> {
    match sys::link_update(link.as_fd(), program) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(false),
        Err(error) => Err(error),
    }
}
