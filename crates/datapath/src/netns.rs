//! Network namespaces.

use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

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
        use nix::sys::statfs::{FsType, fstatfs};
        /// Magic number of the kernel's namespace file system.
        const NSFS: u32 = 0x6e73_6673;
        let file = File::open(path)?;
        if fstatfs(&file)?.filesystem_type() != FsType(NSFS.into()) {
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
        let unshared = || -> io::Result<Self> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Self::current()
        };
        std::thread::scope(|scope| match scope.spawn(unshared).join() {
            Ok(netns) => netns,
            Err(_) => Err(io::Error::other("panic while making a network namespace")),
        })
    }

    /// Runs `work` in the namespace, on a thread of its own, and waits for it. Sockets that it opens stay in the
    /// namespace.
    ///
    /// # Errors
    /// The namespace could not be entered, or `work` panicked.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        let entered = |()| work();
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("weft-netns".into())
                .stack_size(512 << 10)
                .spawn_scoped(scope, || setns(&self.file, CloneFlags::CLONE_NEWNET).map(entered))?;
            match thread.join() {
                Ok(result) => Ok(result?),
                Err(_) => Err(io::Error::other("panic in a network namespace")),
            }
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

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
