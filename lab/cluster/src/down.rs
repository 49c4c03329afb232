//! `weft down`: removes a cluster, however it was left.

use super::{Error, lock, require_root, step};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use weft_lab_config::paths::Paths;
use weft_sys::cgroup::Cgroup;
use weft_sys::process::Process;

/// How long killed processes may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// Removes the cluster: processes, namespaces, mounts, links, groups, files. Nothing there is fine, too. Returns
/// whether there was something.
///
/// # Errors
/// What could not be removed.
pub fn down(name: &str, keep_state: bool, progress: &mut dyn FnMut(&str)) -> Result<bool, Error> {
    weft_lab_config::options::check_name(name)?;
    require_root("down")?;
    let paths = Paths::new(name);
    let lock = lock(&paths)?;
    let cgroup = step("cgroup version 2", Cgroup::at(paths.cgroup()))?;
    let something = paths.run().exists()
        || paths.lib().exists()
        || cgroup.path().exists()
        || weft_sys::netns::list().iter().any(|n| paths.owns_netns(n));
    if something {
        progress("ending its processes");
        end_processes(&paths, &cgroup)?;
        progress("removing its namespaces, mounts and files");
        step("remove its namespaces", crate::fabric::remove(&paths))?;
        unmount_below(&paths.run())?;
        step(format!("remove cgroup {}", cgroup.path().display()), patiently(|| cgroup.remove()))?;
        remove_dir(&paths.run())?;
        if !keep_state {
            unmount_below(&paths.lib())?;
            remove_dir(&paths.lib())?;
        }
    }
    // While it is held: who waits for it notices that the file is another one by then.
    let _ = fs::remove_file(format!("/run/weft/.{name}.lock"));
    drop(lock);
    for dir in ["/run/weft", "/var/lib/weft"] {
        // Only when no other cluster is left.
        let _ = fs::remove_dir(dir);
    }
    Ok(something)
}

/// Whoever is recorded, and whoever is in the cluster's group. The supervisor first: it would start the others again.
fn end_processes(paths: &Paths, cgroup: &Cgroup) -> Result<(), Error> {
    let records: Vec<Process> = fs::read_dir(paths.processes())
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Process::read(&entry.path()))
        .collect();
    if let Some(supervisor) = Process::read(&paths.processes().join("supervisor.json")) {
        supervisor.signal(Signal::SIGKILL);
    }
    for process in &records {
        process.signal(Signal::SIGKILL);
    }
    let deadline = Instant::now() + GONE_WITHIN;
    loop {
        cgroup.kill();
        let left = cgroup.populated() || records.iter().any(|p| p.alive());
        if !left {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Error::Timeout {
                what: format!("processes {:?} do not end", cgroup.processes()),
                seconds: GONE_WITHIN.as_secs(),
                detail: String::new(),
            });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Tries again for a while what a dying process may still hold.
fn patiently(mut work: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let deadline = Instant::now() + GONE_WITHIN;
    loop {
        match work() {
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => return other,
        }
    }
}

/// Unmounts everything at and below a directory, the innermost first.
fn unmount_below(dir: &Path) -> Result<(), Error> {
    let mounts = step("read /proc/self/mountinfo", fs::read_to_string("/proc/self/mountinfo"))?;
    let mut places: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|place| PathBuf::from(place.replace("\\040", " ")))
        .filter(|place| place.starts_with(dir))
        .collect();
    places.sort();
    for place in places.iter().rev() {
        let gone = umount2(place, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        step(format!("unmount {}", place.display()), gone.map_err(Into::into))?;
    }
    Ok(())
}

fn remove_dir(dir: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => step(format!("remove {}", dir.display()), other),
    }
}
