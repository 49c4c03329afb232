//! Network namespaces: threads that live in one, and finding the one that has an address.

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns};
use nix::unistd::Pid;
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Moves the calling thread into the namespace. Call it only on threads that end soon.
pub fn enter(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {}", path.display()))
}

/// Pins the calling thread to one CPU (the last one if there are fewer).
pub fn pin(cpu: usize) -> Result<()> {
    let cpus = std::thread::available_parallelism()?.get();
    let mut set = CpuSet::new();
    set.set(cpu.min(cpus.saturating_sub(1)))?;
    sched_setaffinity(Pid::from_raw(0), &set).context("pin to a CPU")
}

/// Runs `body` inside the namespace on a thread of its own.
pub fn inside<T: Send>(path: &Path, body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                enter(path)?;
                body()
            })
            .join()
            .unwrap_or_else(|_| anyhow::bail!("a thread in {} panicked", path.display()))
    })
}

/// The named namespace (below /run/netns) whose interfaces have `address`, among those whose name starts so.
pub fn find(prefix: &str, address: IpAddr) -> Result<PathBuf> {
    for entry in std::fs::read_dir("/run/netns").context("list /run/netns")? {
        let path = entry?.path();
        let named = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(prefix));
        if named && inside(&path, || Ok(has(address))).unwrap_or(false) {
            return Ok(path);
        }
    }
    anyhow::bail!("no namespace {prefix}* has the address {address}")
}

fn has(address: IpAddr) -> bool {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else {
        return false;
    };
    interfaces.filter_map(|interface| interface.address).any(|found| match address {
        IpAddr::V4(v4) => found.as_sockaddr_in().is_some_and(|sin| sin.ip() == v4),
        IpAddr::V6(v6) => found.as_sockaddr_in6().is_some_and(|sin6| sin6.ip() == v6),
    })
}

/// Runs a command that must succeed; its standard error is in the message if not.
pub fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("start {program}"))?;
    anyhow::ensure!(
        output.status.success(),
        "{program} {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `ip` with the words of one line.
pub fn ip(line: &str) -> Result<()> {
    run("ip", &line.split_whitespace().collect::<Vec<_>>()).map(drop)
}

/// A namespace that goes when this goes.
pub struct Owned {
    name: String,
}

impl Owned {
    /// Makes `weftbench-<pid>-<name>`.
    pub fn new(name: &str) -> Result<Self> {
        let name = format!("weftbench-{}-{name}", std::process::id());
        ip(&format!("netns add {name}"))?;
        let owned = Self { name };
        ip(&format!("-n {} link set lo up", owned.name))?;
        Ok(owned)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its path.
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if let Err(error) = ip(&format!("netns del {}", self.name)) {
            eprintln!("left behind: {error:#}");
        }
    }
}
