//! One more command in a running container: `weft internal exec DIR [--tty FILE] -- COMMAND...`.

use super::ContainerDir;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::SigSet;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// What runtimes answer when the command cannot be run, and when it is not there.
const CODE_NOT_RUNNABLE: u8 = 126;
const CODE_NOT_FOUND: u8 = 127;

/// `weft internal exec`: runs a command in a container, as its first process would.
pub fn main(args: &[OsString]) -> ExitCode {
    let mut args = args.iter().cloned();
    let dir = ContainerDir(args.next().map_or_else(PathBuf::new, PathBuf::from));
    let mut tty = None;
    let command: Vec<OsString> = loop {
        match args.next() {
            Some(arg) if arg == "--tty" => tty = args.next().map(PathBuf::from),
            Some(arg) if arg == "--" => break args.collect(),
            Some(other) => break std::iter::once(other).chain(args).collect(),
            None => break Vec::new(),
        }
    };
    match run(&dir, tty.as_deref(), &command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("exec: {error}");
            let code = if error.kind() == io::ErrorKind::NotFound { CODE_NOT_FOUND } else { CODE_NOT_RUNNABLE };
            ExitCode::from(code)
        }
    }
}

fn run(dir: &ContainerDir, tty: Option<&Path>, command: &[OsString]) -> io::Result<u8> {
    let spec = dir.read_spec()?;
    let first = dir.first_process().ok_or_else(|| io::Error::other("the container does not run"))?;
    let (program, args) = command.split_first().ok_or_else(|| io::Error::other("expected a command"))?;
    let terminal = match tty {
        None => None,
        Some(place) => {
            // The first terminal that the leader of a session opens becomes the session's.
            nix::unistd::setsid()?;
            Some(File::options().read(true).write(true).open(place)?)
        }
    };
    let namespaces =
        ["net", "uts", "ipc", "pid", "mnt"].map(|name| File::open(format!("/proc/{}/ns/{name}", first.pid)));
    std::fs::write(spec.cgroup.join("cgroup.procs"), "0")?;
    for namespace in namespaces {
        setns(namespace?, CloneFlags::empty())?;
    }
    // The terminal's signals are for the command, not for this process.
    SigSet::all().thread_block()?;
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(spec.env.iter().cloned()).current_dir(&spec.working_dir);
    if let Some((user, group)) = spec.user {
        command.uid(user).gid(group);
    }
    if let Some(terminal) = terminal {
        command.env("TERM", "xterm");
        command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal);
    }
    super::unblock_signals(&mut command);
    let spawned = command.spawn();
    let mut child = spawned.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", Path::new(program).display())))?;
    let status = child.wait()?;
    let code = status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(1);
    Ok(u8::try_from(code & 0xff).unwrap_or(1))
}
