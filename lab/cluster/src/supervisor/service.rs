//! One process that must always run.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};
use weft_sys::cgroup::Cgroup;
use weft_sys::process::Process;

/// The first pause before a restart; each quick death doubles it.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Who ran this long did not die of its start.
const STEADY: Duration = Duration::from_secs(10);
/// A log longer than this begins anew when its process does; the one before is kept.
const LOG_MAX_BYTES: u64 = 8 << 20;

/// What runs, where, and under which record.
#[derive(Clone, Debug)]
pub(super) struct Service {
    /// For logs and the record.
    pub name: String,
    /// Executable.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Namespace, if not the machine's.
    pub netns: Option<String>,
    /// Control group.
    pub cgroup: Cgroup,
    /// Where number and start time are written.
    pub record: PathBuf,
    /// Where its output goes.
    pub log: PathBuf,
    /// Our own executable, which enters the namespace.
    pub lab: PathBuf,
}

impl Service {
    /// Runs it, and again, for ever. One that a former supervisor started is adopted.
    pub(super) async fn keep_running(self) {
        let mut pause = PAUSE_MIN;
        if let Some(old) = Process::read(&self.record).filter(|p| p.alive()) {
            tracing::info!(name = %self.name, pid = old.pid, "adopted");
            while old.alive() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            tracing::warn!(name = %self.name, "ended");
            tokio::time::sleep(pause).await;
        }
        loop {
            let began = Instant::now();
            match self.spawn() {
                Ok(mut child) => {
                    let status = child.wait().await;
                    tracing::warn!(name = %self.name, ?status, "ended");
                }
                Err(error) => tracing::error!(name = %self.name, %error, "does not start"),
            }
            pause = if began.elapsed() > STEADY { PAUSE_MIN } else { pause };
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn spawn(&self) -> io::Result<tokio::process::Child> {
        self.cgroup.create()?;
        if fs::metadata(&self.log).is_ok_and(|m| m.len() > LOG_MAX_BYTES) {
            fs::rename(&self.log, self.log.with_extension("log.1"))?;
        }
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = tokio::process::Command::new(&self.lab);
        command.args(["internal", "enter"]);
        if let Some(netns) = &self.netns {
            command.arg("--netns").arg(weft_sys::netns::path(netns));
        }
        command.arg("--cgroup").arg(self.cgroup.path());
        command.arg("--").arg(&self.program).args(&self.args);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir("/");
        let child = command.spawn()?;
        if let Some(process) = child.id().and_then(Process::of) {
            process.write(&self.record)?;
            tracing::info!(name = %self.name, pid = process.pid, "started");
        }
        Ok(child)
    }
}
