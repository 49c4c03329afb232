//! Network namespaces: open ones, and ones with a name, as iproute2 keeps them: a file under `/run/netns` on which the
//! namespace is mounted.
//!
//! A thread that has entered a namespace never goes back to the pool: every entry happens on a thread of its own.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs, statfs};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// An open network namespace. It lives at least as long as this.
#[derive(Debug)]
pub struct NetNs {
    file: File,
}

impl NetNs {
    /// The namespace that is bound at a path, or that of a process (`/proc/PID/ns/net`).
    ///
    /// # Errors
    /// There is none.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if fstatfs(&file)?.filesystem_type() != NSFS_MAGIC {
            let problem = format!("{} is not a namespace", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        Ok(Self { file })
    }

    /// The calling thread's namespace.
    ///
    /// # Errors
    /// The process file system is not there.
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// A new namespace without a name: it goes with the last descriptor or process in it.
    ///
    /// # Errors
    /// A system call failed.
    pub fn create() -> io::Result<Self> {
        own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Self::current()
        })
    }

    /// Runs `work` in the namespace, on a thread of its own, and waits for it. Sockets that it opens stay in the
    /// namespace.
    ///
    /// # Errors
    /// The namespace could not be entered, or `work` panicked.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        own_thread(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })
    }

    /// Device and inode: the same for the same namespace, whatever the path.
    ///
    /// # Errors
    /// A system call failed.
    pub fn identity(&self) -> io::Result<(u64, u64)> {
        let metadata = self.file.metadata()?;
        Ok((metadata.dev(), metadata.ino()))
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Where the named namespaces are.
pub const DIR: &str = "/run/netns";

/// The file of a namespace.
#[must_use]
pub fn path(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

/// There is such a namespace.
#[must_use]
pub fn exists(name: &str) -> bool {
    statfs(&path(name)).is_ok_and(|s| s.filesystem_type() == NSFS_MAGIC)
}

/// Names of all namespaces, and of files left by ones that are gone.
#[must_use]
pub fn list() -> Vec<String> {
    let Ok(entries) = fs::read_dir(DIR) else { return Vec::new() };
    entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect()
}

/// Makes a namespace with a name; one that exists is left as it is.
///
/// # Errors
/// What the kernel says.
pub fn create(name: &str) -> io::Result<()> {
    if exists(name) {
        return Ok(());
    }
    fs::create_dir_all(DIR)?;
    let file = path(name);
    fs::write(&file, b"")?;
    let made = own_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        mount(Some("/proc/thread-self/ns/net"), &file, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Ok(())
    });
    if made.is_err() {
        let _ = fs::remove_file(&file);
    }
    made
}

/// Removes a namespace's name; the namespace ends with its last process. Absent is fine.
///
/// # Errors
/// What the kernel says.
pub fn remove(name: &str) -> io::Result<()> {
    let file = path(name);
    // Twice mounted happens when two made it at once; EINVAL means that nothing is mounted any more.
    while umount2(&file, MntFlags::MNT_DETACH).is_ok() {}
    let removed = match fs::remove_file(&file) {
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => own_thread(|| remove_covered(&file)),
        other => other,
    };
    removed.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
}

/// Removes a file that is still mounted upon where no path leads. The first `ip netns add` after a boot mounts [`DIR`]
/// upon itself with all that is mounted in it: whatever was there before is then there twice, once out of reach below.
/// A mount namespace of the thread's own can take away what covers it, and a file that is no mount point where its
/// remover is goes from under its mounts everywhere else.
fn remove_covered(file: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    // What is unmounted here must stay where everybody else is.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    loop {
        while umount2(file, MntFlags::MNT_DETACH).is_ok() {}
        match fs::remove_file(file) {
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy => umount2(DIR, MntFlags::MNT_DETACH).map_err(|_| e)?,
            other => return other,
        }
    }
}

/// Moves the calling thread into a namespace for good.
///
/// # Errors
/// What the kernel says.
pub fn enter(file: &Path) -> io::Result<()> {
    let handle = fs::File::open(file)?;
    setns(handle, CloneFlags::CLONE_NEWNET)?;
    Ok(())
}

/// Runs `work` on a thread inside the namespace.
///
/// # Errors
/// That the namespace cannot be entered, or what `work` says.
pub fn within<T: Send>(file: &Path, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    NetNs::open(file)?.run(work)?
}

fn own_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("weft-netns".into()).stack_size(512 << 10);
        match thread.spawn_scoped(scope, work)?.join() {
            Ok(result) => result,
            Err(_) => Err(io::Error::other("a thread in a network namespace panicked")),
        }
    })
}

/// The number by which programs know the calling thread's namespace.
///
/// # Errors
/// A system call failed.
pub fn cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let (mut cookie, mut length) = (0_u64, libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?);
    // SAFETY: `cookie` is writable for `length` bytes.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}
