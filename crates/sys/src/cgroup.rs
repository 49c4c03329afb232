//! Control groups of version 2: every process of a cluster is in one, so that all can be found and ended.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where cgroup version 2 is mounted; found by its type, since distributions mount it in different places.
///
/// # Errors
/// That it is mounted nowhere.
pub fn root() -> io::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            Some((fields.next()?, fields.next()?))
        })
        .find(|(_, kind)| *kind == "cgroup2")
        .map(|(place, _)| PathBuf::from(place))
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "cgroup version 2 is not mounted (mount -t cgroup2)"))
}

/// A control group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// The group of this name below the root; it need not exist.
    ///
    /// # Errors
    /// That cgroup version 2 is not there.
    pub fn at(name: impl AsRef<Path>) -> io::Result<Self> {
        Ok(Self(root()?.join(name)))
    }

    /// A group below this one.
    #[must_use]
    pub fn child(&self, name: impl AsRef<Path>) -> Self {
        Self(self.0.join(name))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes it, and hands down the controllers that limits need where the machine has them.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn create(&self) -> io::Result<()> {
        fs::create_dir_all(&self.0)
    }

    /// Lets children of this group have memory and process limits; without the controllers there are no limits.
    pub fn delegate(&self) {
        for controller in ["+memory", "+pids"] {
            let _ = fs::write(self.0.join("cgroup.subtree_control"), controller);
        }
    }

    /// Sets a limit; a controller that the machine lacks is no error.
    pub fn limit(&self, file: &str, value: u64) {
        let _ = fs::write(self.0.join(file), value.to_string());
    }

    /// Moves a process in.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add(&self, pid: u32) -> io::Result<()> {
        fs::write(self.0.join("cgroup.procs"), pid.to_string())
    }

    /// Processes in it and below.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        let mut pids: Vec<u32> = fs::read_to_string(self.0.join("cgroup.procs"))
            .unwrap_or_default()
            .lines()
            .filter_map(|l| l.parse().ok())
            .collect();
        for child in self.children() {
            pids.extend(child.processes());
        }
        pids
    }

    /// Some process lives in it or below.
    #[must_use]
    pub fn populated(&self) -> bool {
        fs::read_to_string(self.0.join("cgroup.events")).is_ok_and(|text| text.contains("populated 1"))
    }

    fn children(&self) -> Vec<Self> {
        let Ok(entries) = fs::read_dir(&self.0) else { return Vec::new() };
        entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| Self(e.path())).collect()
    }

    /// Ends all processes in it and below with SIGKILL.
    pub fn kill(&self) {
        let at_once = fs::write(self.0.join("cgroup.kill"), "1").is_ok();
        if !at_once {
            for pid in self.processes() {
                if let Ok(pid) = i32::try_from(pid) {
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
                }
            }
        }
    }

    /// Removes it and everything below; absent is fine.
    ///
    /// # Errors
    /// That processes are still in it.
    pub fn remove(&self) -> io::Result<()> {
        for child in self.children() {
            child.remove()?;
        }
        match fs::remove_dir(&self.0) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}
