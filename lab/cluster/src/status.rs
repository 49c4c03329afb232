//! `weft status`: what runs of a cluster, and what is wrong with it.

use super::Error;
use super::up::{is_ready, supervisor};
use serde::Serialize;
use serde_json::{Value, json};
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use weft_lab_client::Client;
use weft_lab_client::kubeconfig::Access;
use weft_lab_config::{Config, load};
use weft_sys::process::Process;

/// State of a cluster.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// `native` or `vxlan`.
    pub routing: String,
    /// Families.
    pub ip_families: String,
    /// For kubectl.
    pub kubeconfig: PathBuf,
    /// The cluster's processes.
    pub processes: Vec<ProcessStatus>,
    /// The API server answers.
    pub api_server: bool,
    /// Nodes.
    pub nodes: Vec<NodeStatus>,
    /// Pods by phase.
    pub pods: Vec<(String, usize)>,
    /// What is wrong, one sentence each; empty: all is well.
    pub problems: Vec<String>,
}

/// A process of the cluster.
#[derive(Clone, Debug, Serialize)]
pub struct ProcessStatus {
    /// Name.
    pub name: String,
    /// Number; none: it does not run.
    pub pid: Option<u32>,
    /// Resident memory.
    pub memory_kib: u64,
}

/// A node.
#[derive(Clone, Debug, Serialize)]
pub struct NodeStatus {
    /// Name.
    pub name: String,
    /// The API server says that it is ready.
    pub ready: bool,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// Its pods' prefixes.
    pub pod_cidrs: Vec<String>,
    /// Pods bound to it.
    pub pods: usize,
    /// What its agent answers to `status`; null when it does not.
    pub agent: Value,
}

/// Looks at a cluster.
///
/// # Errors
/// That there is none of that name.
pub fn status(name: &str) -> Result<Status, Error> {
    let config = load(name)?;
    let paths = config.paths();
    let mut status = Status {
        name: config.name.clone(),
        routing: config.routing.name().to_owned(),
        ip_families: config.families(),
        kubeconfig: paths.kubeconfig(),
        processes: processes(&paths.processes()),
        api_server: false,
        nodes: Vec::new(),
        pods: Vec::new(),
        problems: Vec::new(),
    };
    if supervisor(&paths).is_none() {
        status.problems.push("the supervisor does not run: `weft up` starts it again, `weft down` cleans up".into());
    }
    for process in status.processes.iter().filter(|p| p.pid.is_none() && p.name != crate::supervisor::RECORD) {
        let log = paths.logs().join(format!("{}.log", process.name));
        status.problems.push(format!("{} does not run; last: {}", process.name, last_line(&log)));
    }
    let objects = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::Step { what: "start".into(), source })?
        .block_on(objects(&config));
    match objects {
        Ok((nodes, pods)) => {
            status.api_server = true;
            describe(&config, &nodes, &pods, &mut status);
        }
        Err(error) => status.problems.push(format!("API server: {error}")),
    }
    Ok(status)
}

async fn objects(config: &Config) -> Result<(Value, Value), String> {
    let file = config.kubeconfig.clone().unwrap_or_else(|| config.paths().kubeconfig());
    let access = Access::read(&file).map_err(|e| e.to_string())?;
    let client = Client::new(access).map_err(|e| e.to_string())?;
    let nodes = client.get("/api/v1/nodes").await.map_err(|e| e.to_string())?;
    let pods = client.get("/api/v1/pods").await.map_err(|e| e.to_string())?;
    Ok((nodes, pods))
}

fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn describe(config: &Config, nodes: &Value, pods: &Value, status: &mut Status) {
    for name in config.node_names() {
        let node = items(nodes).iter().find(|n| n["metadata"]["name"] == name.as_str());
        let agent = ask_agent(&config.paths().agent_socket(&name)).unwrap_or(Value::Null);
        let ready = node.is_some_and(is_ready);
        if !ready {
            status.problems.push(format!("{name} is not Ready{}", node.map(not_ready_because).unwrap_or_default()));
        }
        if agent.is_null() {
            let log = config.paths().logs().join(format!("agent-{name}.log"));
            status.problems.push(format!("the agent of {name} does not answer; last: {}", last_line(&log)));
        }
        for field in ["problems", "waiting_for"] {
            status.problems.extend(strings(&agent[field]).iter().map(|p| format!("agent of {name}: {p}")));
        }
        status.nodes.push(NodeStatus {
            ready,
            addresses: node
                .and_then(|n| n["status"]["addresses"].as_array())
                .into_iter()
                .flatten()
                .filter(|a| a["type"] == "InternalIP")
                .filter_map(|a| a["address"].as_str().map(str::to_owned))
                .collect(),
            pod_cidrs: node.map(|n| strings(&n["spec"]["podCIDRs"])).unwrap_or_default(),
            pods: items(pods).iter().filter(|p| p["spec"]["nodeName"] == name.as_str()).count(),
            agent,
            name,
        });
    }
    for pod in items(pods) {
        let phase = pod["status"]["phase"].as_str().unwrap_or("Pending").to_owned();
        match status.pods.iter_mut().find(|(p, _)| *p == phase) {
            Some((_, count)) => *count += 1,
            None => status.pods.push((phase, 1)),
        }
    }
}

fn not_ready_because(node: &Value) -> String {
    node["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|c| c["type"] == "Ready" && c["status"] != "True")
        .and_then(|c| c["message"].as_str())
        .map(|message| format!(": {message}"))
        .unwrap_or_default()
}

/// The agent's answer to `status`, as it is.
fn ask_agent(socket: &Path) -> Option<Value> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    writeln!(stream, "{}", json!({"method": "status"})).ok()?;
    let mut line = String::new();
    BufReader::new(stream.take(1 << 20)).read_line(&mut line).ok()?;
    let mut answer: Value = serde_json::from_str(&line).ok()?;
    (answer["type"] == "status").then(|| answer["value"].take())
}

/// All recorded processes.
fn processes(dir: &Path) -> Vec<ProcessStatus> {
    let mut found: Vec<ProcessStatus> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().strip_suffix(".json")?.to_owned();
            let pid = Process::read(&entry.path()).filter(|p| p.alive()).map(|p| p.pid);
            Some(ProcessStatus { name, pid, memory_kib: pid.map_or(0, memory_kib) })
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

fn memory_kib(pid: u32) -> u64 {
    fs::read_to_string(format!("/proc/{pid}/status"))
        .unwrap_or_default()
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:"))
        .and_then(|l| l.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0)
}

/// The end of a log that tells why a process died.
fn last_line(log: &Path) -> String {
    let tail = || -> std::io::Result<String> {
        let mut file = fs::File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(4096)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok(text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or_default().to_owned())
    };
    tail().unwrap_or_else(|e| format!("{}: {e}", log.display()))
}

/// What is known about why a cluster does not come up: indented lines behind an error message.
pub(super) fn problems(config: &Config) -> String {
    // On a thread of its own: it waits for answers by itself, which a waiting thread must not do once more.
    let looked = std::thread::scope(|scope| scope.spawn(|| status(&config.name)).join());
    let status = match looked {
        Ok(Ok(status)) => status,
        Ok(Err(error)) => return format!(": {error}"),
        Err(_) => return String::new(),
    };
    let mut text = String::from(":");
    for problem in &status.problems {
        text.push_str("\n  ");
        text.push_str(problem);
    }
    text.push_str(&format!("\n  logs: {}", config.paths().logs().display()));
    text
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "cluster {}: {} routing, {}", self.name, self.routing, self.ip_families)?;
        let yes = |on| if on { "answers" } else { "does not answer" };
        writeln!(f, "API server: {}; kubeconfig {}", yes(self.api_server), self.kubeconfig.display())?;
        for node in &self.nodes {
            let state = if node.ready { "Ready" } else { "not Ready" };
            let agent = match node.agent["ready"].as_bool() {
                Some(true) => "agent ready",
                Some(false) => "agent starting",
                None => "agent does not answer",
            };
            let endpoints = node.agent["endpoints"].as_u64().map(|n| format!(", {n} endpoints")).unwrap_or_default();
            writeln!(
                f,
                "{}: {state}, {agent}{endpoints}, {} pods, addresses {}, pods' prefixes {}",
                node.name,
                node.pods,
                node.addresses.join(" "),
                node.pod_cidrs.join(" ")
            )?;
        }
        let pods: Vec<String> = self.pods.iter().map(|(phase, count)| format!("{count} {phase}")).collect();
        writeln!(f, "pods: {}", if pods.is_empty() { "none".to_owned() } else { pods.join(", ") })?;
        for process in &self.processes {
            match process.pid {
                Some(pid) => writeln!(f, "process {}: pid {pid}, {} KiB", process.name, process.memory_kib)?,
                None => writeln!(f, "process {}: does not run", process.name)?,
            }
        }
        if self.problems.is_empty() {
            return writeln!(f, "no problems");
        }
        self.problems.iter().try_for_each(|problem| writeln!(f, "problem: {problem}"))
    }
}
