//! Network namespaces by name, as iproute2 keeps them: a file under `/run/netns` on which the namespace is mounted.
//!
//! A thread that has entered a namespace never goes back to the pool: every entry happens on a thread of its own.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, statfs};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where the namespaces are.
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

/// Makes a namespace; one that exists is left as it is.
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
    own_thread(|| {
        enter(file)?;
        work()
    })
}

fn own_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        scope.spawn(work).join().unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
    })
}
