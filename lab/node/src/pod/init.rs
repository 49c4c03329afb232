//! The first process of a container: builds the file system, starts the command, passes signals on, buries orphans.

use super::{ContainerDir, ContainerSpec, rootfs};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// What shells answer for a command that is not there, and for one that cannot be run.
const CODE_NOT_FOUND: u8 = 127;
const CODE_NOT_RUNNABLE: u8 = 126;

/// `weft internal init DIR`
pub fn main(args: &[OsString]) -> ExitCode {
    let dir = super::directory(args);
    // Opened before the file system changes: the way to tell why.
    let report = std::fs::File::create(dir.error());
    match prepare(&dir).and_then(|spec| start(&spec)) {
        Ok(child) => {
            // Nothing went wrong: no report. The directory is out of sight by now, an empty file says the same.
            ExitCode::from(watch(child))
        }
        Err((code, error)) => {
            use io::Write;
            if let Ok(mut file) = report {
                let _ = write!(file, "{error}");
            }
            ExitCode::from(code)
        }
    }
}

fn prepare(dir: &ContainerDir) -> Result<ContainerSpec, (u8, String)> {
    let broken = |e: io::Error| (CODE_NOT_RUNNABLE, e.to_string());
    let spec = dir.read_spec().map_err(broken)?;
    std::fs::write(spec.cgroup.join("cgroup.procs"), "0")
        .map_err(|e| (CODE_NOT_RUNNABLE, format!("join {}: {e}", spec.cgroup.display())))?;
    nix::unistd::sethostname(&spec.hostname).map_err(|e| broken(e.into()))?;
    rootfs::build(&dir.0, &spec).map_err(broken)?;
    Ok(spec)
}

fn start(spec: &ContainerSpec) -> Result<Pid, (u8, String)> {
    let (program, args) =
        spec.command.split_first().ok_or_else(|| (CODE_NOT_FOUND, "the container has no command".to_owned()))?;
    // Signals wait until `watch` takes them; the command itself starts with none blocked.
    SigSet::all().thread_block().map_err(|e| (CODE_NOT_RUNNABLE, e.to_string()))?;
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(spec.env.iter().cloned()).current_dir(&spec.working_dir);
    // A program named without a directory is looked for in the container's own PATH, which std takes from `envs`.
    if let Some((user, group)) = spec.user {
        command.uid(user).gid(group);
    }
    super::unblock_signals(&mut command);
    let child = command.spawn().map_err(|e| {
        let code = if e.kind() == io::ErrorKind::NotFound { CODE_NOT_FOUND } else { CODE_NOT_RUNNABLE };
        (code, format!("run {program}: {e}"))
    })?;
    Ok(Pid::from_raw(child.id().cast_signed()))
}

/// Passes signals to the command until it ends; then everything else in here ends, too, with this process.
fn watch(command: Pid) -> u8 {
    let all = SigSet::all();
    loop {
        if let Some(code) = bury(command) {
            return code;
        }
        match all.wait() {
            Ok(Signal::SIGCHLD) | Err(_) => {}
            Ok(signal) => {
                let _ = kill(command, signal);
            }
        }
    }
}

fn bury(command: Pid) -> Option<u8> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == command => return u8::try_from(code & 0xff).ok(),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == command => {
                return u8::try_from(128 + signal as i32).ok();
            }
            Ok(WaitStatus::StillAlive) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}
