//! The pin directory: where a node's maps and links live on when no agent runs.
//!
//! ```text
//! <bpf-dir>/               locked by the agent that owns the node
//! <bpf-dir>/v4/maps/NAME   v4: weft_abi::LAYOUT_VERSION
//! <bpf-dir>/v3/links/<device>-{ingress,egress}
//! <bpf-dir>/v3/links/<device>-device-xdp
//! <bpf-dir>/v3/links/socket-<call>
//! <bpf-dir>/v3/programs/<object and maps>/NAME
//! ```

use crate::error::OpenError;
use crate::sys;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Between two attempts at the lock.
const LOCK_RETRY: Duration = Duration::from_millis(10);
/// Marks a pin that is being prepared. (Names on a BPF file system must not contain dots.)
const NEW_SUFFIX: &str = "-new";

/// A locked pin directory.
#[derive(Debug)]
pub struct PinDir {
    version: PathBuf,
    /// Held for as long as the directory is used.
    _lock: Flock<File>,
}

impl PinDir {
    /// Opens, and where needed makes, the directory.
    ///
    /// # Errors
    /// It is on no BPF file system and `mount_bpffs` is off, somebody else owns it, or a system call failed.
    pub fn open(dir: &Path, mount_bpffs: bool, lock_wait: Duration) -> Result<Self, OpenError> {
        ensure_bpffs(dir, mount_bpffs)?;
        fs::create_dir_all(dir).map_err(|source| OpenError::path("create", dir, source))?;
        let lock = lock(dir, lock_wait)?;
        let version = dir.join(format!("v{}", weft_abi::LAYOUT_VERSION));
        let pins = Self { version, _lock: lock };
        for sub in [pins.maps(), pins.links(), pins.programs()] {
            fs::create_dir_all(&sub).map_err(|source| OpenError::path("create", &sub, source))?;
        }
        Ok(pins)
    }

    /// Where this and other versions are.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.version.parent().map_or_else(PathBuf::new, Path::to_owned)
    }

    /// This version's directory.
    #[must_use]
    pub fn version(&self) -> &Path {
        &self.version
    }

    /// Where maps are pinned.
    #[must_use]
    pub fn maps(&self) -> PathBuf {
        self.version.join("maps")
    }

    /// Where links are pinned.
    #[must_use]
    pub fn links(&self) -> PathBuf {
        self.version.join("links")
    }

    /// Where verified programs are pinned.
    #[must_use]
    pub fn programs(&self) -> PathBuf {
        self.version.join("programs")
    }

    /// The pinned map of that name, if there is one.
    ///
    /// # Errors
    /// The pin cannot be opened.
    pub fn map(&self, name: &str) -> Result<Option<OwnedFd>, OpenError> {
        let path = self.maps().join(name);
        match sys::object_get(&path) {
            Ok(fd) => Ok(Some(fd)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(OpenError::path("open the pinned map", &path, source)),
        }
    }

    /// Pins a map under its name.
    ///
    /// # Errors
    /// A system call failed.
    pub fn pin_map(&self, name: &str, map: &OwnedFd) -> Result<(), OpenError> {
        let path = self.maps().join(name);
        sys::object_pin(map.as_fd(), &path).map_err(|source| OpenError::path("pin the map", &path, source))
    }

    /// Puts a map in the place of the one that is pinned, in one step.
    ///
    /// # Errors
    /// A system call failed; the old pin stands.
    pub fn repin_map(&self, name: &str, map: &OwnedFd) -> Result<(), OpenError> {
        let new = self.maps().join(format!("{name}{NEW_SUFFIX}"));
        let path = self.maps().join(name);
        remove_if_there(&new).map_err(|source| OpenError::path("remove", &new, source))?;
        sys::object_pin(map.as_fd(), &new).map_err(|source| OpenError::path("pin the map", &new, source))?;
        fs::rename(&new, &path).map_err(|source| OpenError::path("replace the pinned map", &path, source))
    }
}

/// Removes a file or pin; one that is not there is removed.
///
/// # Errors
/// A system call failed.
pub fn remove_if_there(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_bpffs(path: &Path) -> io::Result<bool> {
    Ok(statfs(path)?.filesystem_type() == BPF_FS_MAGIC)
}

/// Makes sure that `dir`, or the nearest parent that exists, is on a BPF file system.
fn ensure_bpffs(dir: &Path, mount_bpffs: bool) -> Result<(), OpenError> {
    let existing = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    if is_bpffs(existing).map_err(|source| OpenError::path("inspect", existing, source))? {
        return Ok(());
    }
    if !mount_bpffs {
        return Err(OpenError::NotBpffs { dir: dir.to_owned() });
    }
    fs::create_dir_all(dir).map_err(|source| OpenError::path("create", dir, source))?;
    mount(
        Some("bpffs"),
        dir,
        Some("bpf"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some("mode=0700"),
    )
    .map_err(|errno| OpenError::path("mount a BPF file system on", dir, errno.into()))
}

/// Takes the lock. A former agent that was killed may hold it for a moment longer.
fn lock(dir: &Path, wait: Duration) -> Result<Flock<File>, OpenError> {
    let deadline = Instant::now() + wait;
    let mut file = File::open(dir).map_err(|source| OpenError::path("open", dir, source))?;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, nix::errno::Errno::EWOULDBLOCK)) if Instant::now() < deadline => file = back,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Err(OpenError::Owned { dir: dir.to_owned() }),
            Err((_, errno)) => return Err(OpenError::path("lock", dir, errno.into())),
        }
        std::thread::sleep(LOCK_RETRY);
    }
}
