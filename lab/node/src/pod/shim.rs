//! The process beside a container: starts it in its namespaces, keeps its log, writes down how it ended.

use super::{ContainerDir, ContainerSpec, Exit, now};
use nix::sched::{CloneFlags, unshare};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use weft_sys::files::{PRIVATE, write_atomically};
use weft_sys::process::Process;

/// A longer line is written in parts.
const LINE_MAX: u64 = 16 * 1024;
/// A longer log begins anew; the one before is kept.
const LOG_MAX_BYTES: u64 = 10 << 20;
/// The code of a container that could not be started, as container runtimes have it.
const CODE_CANNOT_START: i32 = 128;

/// `weft internal container DIR`
pub fn main(args: &[OsString]) -> ExitCode {
    let dir = super::directory(args);
    let exit = run(&dir).unwrap_or_else(|e| Exit { code: CODE_CANNOT_START, error: Some(e.to_string()), at: now() });
    let written =
        serde_json::to_vec(&exit).map_err(io::Error::other).and_then(|t| write_atomically(&dir.exit(), &t, PRIVATE));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft internal container: {}: {error}", dir.exit().display());
            ExitCode::FAILURE
        }
    }
}

fn run(dir: &ContainerDir) -> io::Result<Exit> {
    // Neither the runner's terminal nor its end concern it. Fails only when this is done already.
    let _ = nix::unistd::setsid();
    let spec = dir.read_spec()?;
    let log = Arc::new(Mutex::new(Log::open(&spec.log)?));
    let mut child = spawn(dir, &spec)?;
    if let Some(process) = Process::of(child.id()) {
        process.write(&dir.init())?;
    }
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    // Held open until the end: a command that reads waits instead of seeing an end.
    let stdin = child.stdin.take();
    let status = std::thread::scope(|scope| {
        scope.spawn(|| stdout.map(|pipe| copy(pipe, "stdout", &log)));
        scope.spawn(|| stderr.map(|pipe| copy(pipe, "stderr", &log)));
        child.wait()
    })?;
    drop(stdin);
    let error = std::fs::read_to_string(dir.error()).ok().filter(|text| !text.is_empty());
    Ok(Exit { code: code(status), error, at: now() })
}

/// Starts the first process. On a thread of its own: one that has unshared its children's process namespace can start
/// no more threads, and the log needs two.
fn spawn(dir: &ContainerDir, spec: &ContainerSpec) -> io::Result<Child> {
    weft_sys::netns::within(&spec.netns, || {
        unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC)?;
        Command::new("/proc/self/exe")
            .args(["internal", "init"])
            .arg(&dir.0)
            .env_clear()
            .stdin(if spec.stdin { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
    })
}

fn code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(CODE_CANNOT_START)
}

/// A container's log in the form that Kubernetes' container runtimes use.
struct Log {
    place: PathBuf,
    file: File,
    length: u64,
}

impl Log {
    fn open(place: &Path) -> io::Result<Self> {
        if let Some(dir) = place.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(place)?;
        let length = file.metadata()?.len();
        Ok(Self { place: place.to_owned(), file, length })
    }

    fn line(&mut self, stream: &str, line: &[u8], whole: bool) -> io::Result<()> {
        let mut text = format!("{} {stream} {} ", now(), if whole { 'F' } else { 'P' }).into_bytes();
        text.extend_from_slice(line);
        text.push(b'\n');
        if self.length > LOG_MAX_BYTES {
            std::fs::rename(&self.place, self.place.with_extension("log.1"))?;
            *self = Self::open(&self.place)?;
        }
        self.length += text.len() as u64;
        self.file.write_all(&text)
    }
}

fn copy(pipe: impl Read, stream: &str, log: &Mutex<Log>) {
    let mut reader = BufReader::new(pipe);
    loop {
        let mut line = Vec::new();
        match reader.by_ref().take(LINE_MAX).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let whole = line.last() == Some(&b'\n');
        if whole {
            line.pop();
        }
        // A full disk must not stop the container; its lines are lost then.
        let _ = log.lock().unwrap_or_else(PoisonError::into_inner).line(stream, &line, whole);
    }
}
