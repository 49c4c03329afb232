//! What makes a pod's containers: processes in namespaces and a control group of their own.
//!
//! Each container has a small process beside it (`shim`) that outlives the pod runner, keeps its log and writes down
//! how it ended. Inside, `init` is the first process: it builds the file system, starts the command, passes signals on.

pub mod exec;
pub mod init;
mod rootfs;
pub mod shim;

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use weft_sys::process::Process;

/// The image that is built in.
pub const TOOLBOX_IMAGE: &str = "weft/toolbox";

/// Where a container's files come from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Image {
    /// The programs of this machine, and our own as `/weft`.
    Toolbox {
        /// Our own.
        weft: PathBuf,
    },
    /// A directory of this machine; what the container writes is kept apart and thrown away.
    Directory(PathBuf),
}

/// A directory of the machine that a container sees.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Mount {
    /// On the machine.
    pub source: PathBuf,
    /// In the container.
    pub target: PathBuf,
    /// Cannot be written.
    pub read_only: bool,
}

/// All that is needed to start a container.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Files.
    pub image: Image,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Environment, whole.
    pub env: Vec<(String, String)>,
    /// Directory that the command starts in.
    pub working_dir: String,
    /// User and group, if not root.
    pub user: Option<(u32, u32)>,
    /// Name of the machine as it sees it.
    pub hostname: String,
    /// Network namespace.
    pub netns: PathBuf,
    /// Control group.
    pub cgroup: PathBuf,
    /// Where its output goes.
    pub log: PathBuf,
    /// Contents of /etc/resolv.conf.
    pub resolv_conf: String,
    /// Contents of /etc/hosts.
    pub hosts: String,
    /// More mounts.
    pub mounts: Vec<Mount>,
    /// The command reads from a pipe that stays open (`stdin: true`).
    pub stdin: bool,
}

/// How a container ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Exit {
    /// Its code; 128 + number for a signal.
    pub code: i32,
    /// It never ran: why.
    pub error: Option<String>,
    /// When, in RFC 3339.
    pub at: String,
}

/// The files of one start of a container.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContainerDir(pub PathBuf);

impl ContainerDir {
    /// [`ContainerSpec`].
    #[must_use]
    pub fn spec(&self) -> PathBuf {
        self.0.join("spec.json")
    }

    /// Record of the container's first process.
    #[must_use]
    pub fn init(&self) -> PathBuf {
        self.0.join("init.json")
    }

    /// Record of the process beside it.
    #[must_use]
    pub fn shim(&self) -> PathBuf {
        self.0.join("shim.json")
    }

    /// [`Exit`], once it ended.
    #[must_use]
    pub fn exit(&self) -> PathBuf {
        self.0.join("exit.json")
    }

    /// Why the command was not started, written by the first process.
    #[must_use]
    pub fn error(&self) -> PathBuf {
        self.0.join("error")
    }

    /// Reads the specification.
    ///
    /// # Errors
    /// Of the file system, or that it is not one.
    pub fn read_spec(&self) -> std::io::Result<ContainerSpec> {
        serde_json::from_slice(&std::fs::read(self.spec())?).map_err(std::io::Error::other)
    }

    /// Reads how it ended.
    #[must_use]
    pub fn read_exit(&self) -> Option<Exit> {
        serde_json::from_slice(&std::fs::read(self.exit()).ok()?).ok()
    }

    /// Its first process, while it runs.
    #[must_use]
    pub fn first_process(&self) -> Option<Process> {
        Process::read(&self.init()).filter(|p| p.alive())
    }
}

/// Now, in RFC 3339 with nanoseconds, as container logs have it.
#[must_use]
pub fn now() -> String {
    format!("{:.9}", jiff::Timestamp::now())
}

/// The command starts with no signal blocked, whatever its parent has.
fn unblock_signals(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    let unblock = || nix::sys::signal::SigSet::empty().thread_set_mask().map_err(Into::into);
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; pthread_sigmask is one, and nothing here
    // allocates or locks.
    unsafe {
        command.pre_exec(unblock);
    }
}

fn directory(args: &[std::ffi::OsString]) -> ContainerDir {
    ContainerDir(args.first().map_or_else(PathBuf::new, |dir| Path::new(dir).to_owned()))
}
