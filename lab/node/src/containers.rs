//! Starting and stopping containers, and what became of them.

use super::record::{ContainerRecord, PodDir, Record};
use super::{Node, environment, image, resolv, sandbox};
use crate::pod::{ContainerDir, ContainerSpec, Exit};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use weft_lab_config::options::DOMAIN;
use weft_sys::files::{PRIVATE, write_atomically};
use weft_sys::process::Process;

/// How a container is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Never started.
    New,
    /// Runs.
    Running,
    /// Ended.
    Ended(Exit),
}

/// Looks at the current start of a container.
pub(super) fn state(dir: &PodDir, name: &str, record: Option<&ContainerRecord>) -> State {
    let Some(attempt) = record.and_then(|r| r.attempt) else { return State::New };
    let files = dir.container(name, attempt);
    if let Some(exit) = files.read_exit() {
        return State::Ended(exit);
    }
    if Process::read(&files.shim()).is_some_and(|p| p.alive()) {
        return State::Running;
    }
    // It may have written its end just now.
    State::Ended(files.read_exit().unwrap_or_else(|| Exit { code: 137, error: None, at: crate::pod::now() }))
}

/// Starts a container anew. The record is kept before anything runs.
///
/// # Errors
/// Reason and message of its waiting state.
pub(super) async fn start(
    node: &Node,
    dir: &PodDir,
    record: &mut Record,
    pod: &Value,
    container: &Value,
) -> Result<oneshot::Receiver<()>, image::Problem> {
    let failed = |message: String| image::Problem { reason: "CreateContainerError", message };
    let wrong = |message: String| image::Problem { reason: "CreateContainerConfigError", message };
    let name = container["name"].as_str().unwrap_or_default().to_owned();
    let found = image::find(node, container["image"].as_str().unwrap_or_default())?;
    let env = environment::variables(node, record, pod, container).await.map_err(wrong)?;
    let command = image::command(&found, container)?.iter().map(|part| environment::expand(part, &env)).collect();
    let mounts = environment::mounts(node, dir, record, pod, container).await.map_err(wrong)?;
    let old = record.containers.entry(name.clone()).or_default();
    let attempt = old.attempt.map_or(0, |n| n + 1);
    old.restarts = attempt;
    old.attempt = Some(attempt);
    old.id = format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
    old.started = crate::pod::now();
    let files = dir.container(&name, attempt);
    let hostname = environment::hostname(node, record, pod);
    let machine = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let spec = ContainerSpec {
        image: found,
        command,
        working_dir: container["workingDir"].as_str().filter(|d| !d.is_empty()).unwrap_or("/").to_owned(),
        user: user(pod, container),
        hostname: hostname.clone(),
        netns: record.netns.clone(),
        cgroup: sandbox::cgroup(node, record).map_err(|e| failed(e.to_string()))?.path().to_owned(),
        log: log(node, record, &name, attempt),
        resolv_conf: resolv::conf(pod, &record.namespace, DOMAIN, &node.config.dns_addresses(), &machine),
        hosts: resolv::hosts(pod, &record.namespace, DOMAIN, &hostname, &record.addresses),
        mounts,
        stdin: container["stdin"] == true,
        env,
    };
    write_spec(&files, &spec).map_err(|e| failed(format!("keep the container's specification: {e}")))?;
    // What is two starts ago is of no use any more; the log of the last one is.
    if let Some(old) = attempt.checked_sub(2) {
        let _ = fs::remove_dir_all(dir.container(&name, old).0);
        let _ = fs::remove_file(log(node, record, &name, old));
    }
    dir.save(record).map_err(|e| failed(format!("keep the pod's record: {e}")))?;
    launch(node, &files).await.map_err(|e| failed(format!("start: {e}")))
}

fn write_spec(files: &ContainerDir, spec: &ContainerSpec) -> io::Result<()> {
    fs::create_dir_all(&files.0)?;
    write_atomically(&files.spec(), &serde_json::to_vec(spec).map_err(io::Error::other)?, PRIVATE)
}

/// Starts the process beside the container. It belongs to the node, not to the pod: the pod's end must not end it.
/// What is returned answers, or breaks, when that process has ended.
async fn launch(node: &Node, files: &ContainerDir) -> io::Result<oneshot::Receiver<()>> {
    let group = weft_sys::cgroup::Cgroup::at(node.config.paths().cgroup())?.child(&node.name).child("shims");
    group.create()?;
    let mut child = tokio::process::Command::new(node.program())
        .args(["internal", "container"])
        .arg(&files.0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .current_dir("/")
        .spawn()?;
    if let Some(pid) = child.id() {
        group.add(pid)?;
        if let Some(process) = Process::of(pid) {
            process.write(&files.shim())?;
        }
    }
    let (sender, receiver) = oneshot::channel();
    tokio::spawn(async move {
        let _ = child.wait().await;
        let _ = sender.send(());
    });
    Ok(receiver)
}

/// Returns when the current start of a container has ended. For one that a former runner started, by looking.
pub(super) async fn ended(files: ContainerDir) {
    const LOOK_EVERY: Duration = Duration::from_millis(100);
    // While the process beside it lives, its end cannot be missed; afterwards the file says how it ended.
    while files.read_exit().is_none() && Process::read(&files.shim()).is_some_and(|p| p.alive()) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What a container has after its hook, however long that took, unless it has to end at once.
const AFTER_HOOK_MIN: Duration = Duration::from_secs(2);

/// Does what is to be done before, asks a container to end, waits as long as it may take, then ends it. The deadline may
/// come closer meanwhile.
pub(super) async fn stop(
    files: ContainerDir,
    before: impl Future<Output = ()> + Send,
    mut deadline: watch::Receiver<Instant>,
) {
    let runs = || files.read_exit().is_none() && Process::read(&files.shim()).is_some_and(|p| p.alive());
    if !runs() {
        return;
    }
    let first_deadline = *deadline.borrow();
    if first_deadline > Instant::now() {
        let hooked = tokio::select! {
            () = before => true,
            () = ended(files.clone()) => return,
            () = passed(&mut deadline) => false,
        };
        if let Some(first) = files.first_process() {
            first.signal(Signal::SIGTERM);
        }
        let patience = async {
            passed(&mut deadline).await;
            // Whose deadline was brought forward does not wait for that, either.
            if !hooked && *deadline.borrow() == first_deadline {
                tokio::time::sleep(AFTER_HOOK_MIN).await;
            }
        };
        tokio::select! {
            () = ended(files.clone()) => return,
            () = patience => {}
        }
    }
    // Between its start and its record there may be nobody to signal yet.
    while runs() {
        if let Some(first) = files.first_process() {
            first.signal(Signal::SIGKILL);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Returns when the deadline is over, wherever it is by then.
async fn passed(deadline: &mut watch::Receiver<Instant>) {
    loop {
        let until = *deadline.borrow_and_update();
        tokio::select! {
            () = tokio::time::sleep_until(until) => return,
            Ok(()) = deadline.changed() => {}
        }
    }
}

/// The log of one start.
pub(super) fn log(node: &Node, record: &Record, name: &str, attempt: u32) -> PathBuf {
    node.pod_logs(record).join(name).join(format!("{attempt}.log"))
}

fn user(pod: &Value, container: &Value) -> Option<(u32, u32)> {
    let own = &container["securityContext"];
    let common = &pod["spec"]["securityContext"];
    let number =
        |field: &str| own[field].as_u64().or_else(|| common[field].as_u64()).and_then(|n| u32::try_from(n).ok());
    let user = number("runAsUser")?;
    Some((user, number("runAsGroup").unwrap_or(0)))
}
