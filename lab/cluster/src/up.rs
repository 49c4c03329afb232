//! `weft up`: makes a cluster, or finishes one that was interrupted, and waits until it works.

use super::{Error, PROGRAM, lock, probe, require_root, requirements, step};
use crate::supervisor::RECORD;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use weft_lab_client::Client;
use weft_lab_client::kubeconfig::Access;
use weft_lab_config::paths::Paths;
use weft_lab_config::{ClusterError, Config, UpOptions, load};
use weft_sys::cgroup::Cgroup;
use weft_sys::files::{PRIVATE, write_atomically};
use weft_sys::process::Process;

/// How long everything may take together.
const UP_WITHIN: Duration = Duration::from_secs(60);

/// A cluster that works.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UpReport {
    /// It was up before.
    pub already: bool,
    /// For kubectl.
    pub kubeconfig: PathBuf,
    /// Names of the nodes.
    pub nodes: Vec<String>,
    /// How long it took.
    pub took: Duration,
}

/// Makes the cluster, or makes sure that it is up.
///
/// # Errors
/// What is wrong with the options or the machine, or what did not become ready.
pub fn up(options: &UpOptions, progress: &mut dyn FnMut(&str)) -> Result<UpReport, Error> {
    let began = Instant::now();
    let wanted = options.check()?;
    require_root("up")?;
    let paths = wanted.paths();
    let _lock = lock(&paths)?;
    let config = match load(&wanted.name) {
        Ok(existing) => match options.conflict(&existing, &wanted) {
            Some(conflict) => return Err(conflict.into()),
            None => existing,
        },
        Err(ClusterError::Absent(_)) => fresh(wanted)?,
        Err(other) => return Err(other.into()),
    };
    let running = supervisor(&paths).is_some();
    if !running {
        progress(&format!("making {} nodes ({}, {})", config.nodes, config.families(), config.routing.name()));
        make(&config)?;
    }
    let runtime = step("start", tokio::runtime::Builder::new_current_thread().enable_all().build())?;
    runtime.block_on(async {
        let waiting = Waiting { config: &config, deadline: began + UP_WITHIN };
        let client = waiting.api_server(progress).await?;
        waiting.nodes(&client, progress).await?;
        if !running {
            progress("probing pod to pod on and between all nodes");
            probe::run(&client, &config, waiting.deadline).await?;
        }
        if config.dns {
            waiting.dns(&client, progress).await?;
        }
        Ok(UpReport {
            already: running,
            kubeconfig: paths.kubeconfig(),
            nodes: config.node_names(),
            took: began.elapsed(),
        })
    })
}

/// Directory of this program: the others are beside it unless it is told otherwise.
fn bin_dir() -> std::io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.parent().unwrap_or(Path::new("/")).to_owned())
}

/// Completes the settings of a new cluster and keeps them.
fn fresh(mut config: Config) -> Result<Config, Error> {
    if config.bin_dir.as_os_str().is_empty() {
        config.bin_dir = step("find the programs", bin_dir())?;
    }
    config.bin_dir = step("find the programs", std::path::absolute(&config.bin_dir))?;
    requirements::check(&config)?;
    let listener = step("find a free port", std::net::TcpListener::bind("127.0.0.1:0"))?;
    config.port = step("find a free port", listener.local_addr())?.port();
    let paths = config.paths();
    let mut dirs = fs::DirBuilder::new();
    let made = dirs.recursive(true).mode(0o700).create(paths.lib());
    step(format!("make {}", paths.lib().display()), made)?;
    let text = serde_json::to_vec_pretty(&config).map_err(std::io::Error::other);
    let text = step("write the settings", text)?;
    step(format!("write {}", paths.config().display()), write_atomically(&paths.config(), &text, PRIVATE))?;
    Ok(config)
}

/// The supervisor, if it runs.
pub(super) fn supervisor(paths: &Paths) -> Option<Process> {
    Process::read(&paths.processes().join(format!("{RECORD}.json"))).filter(|p| p.alive())
}

/// Everything up to a running supervisor. Each step leaves alone what is there.
fn make(config: &Config) -> Result<(), Error> {
    requirements::check(config)?;
    let paths = config.paths();
    for dir in [paths.logs(), paths.processes()] {
        step(format!("make {}", dir.display()), fs::create_dir_all(&dir))?;
    }
    let private = fs::set_permissions(paths.run(), fs::Permissions::from_mode(0o700));
    step(format!("protect {}", paths.run().display()), private)?;
    requirements::mount_bpf(&paths)?;
    let group = step("cgroup version 2", Cgroup::at(paths.cgroup()))?;
    step(format!("make cgroup {}", group.path().display()), group.create())?;
    group.delegate();
    step("make the network between the nodes", crate::fabric::create(config))?;
    let place = paths.logs().join("supervisor.log");
    let log = step(format!("open {}", place.display()), fs::OpenOptions::new().create(true).append(true).open(&place))?;
    let log_too = step("open the log", log.try_clone())?;
    let child = Command::new(config.bin_dir.join(PROGRAM))
        .args(["internal", "supervisor", &config.name])
        .env("WEFT_BIN_DIR", &config.bin_dir)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(log_too)
        .current_dir("/")
        .spawn();
    step("start the supervisor", child).map(drop)
}

struct Waiting<'a> {
    config: &'a Config,
    deadline: Instant,
}

impl Waiting<'_> {
    async fn api_server(&self, progress: &mut dyn FnMut(&str)) -> Result<Client, Error> {
        progress("starting the API server");
        let kubeconfig = self.config.kubeconfig.clone().unwrap_or_else(|| self.config.paths().kubeconfig());
        loop {
            let problem = match Access::read(&kubeconfig).map_err(|e| e.to_string()) {
                Ok(access) => match Client::new(access) {
                    Ok(client) => match client.get("/readyz").await {
                        Ok(_) => return Ok(client),
                        Err(e) => e.to_string(),
                    },
                    Err(e) => e.to_string(),
                },
                Err(e) => e,
            };
            self.pause("the API server does not answer", || format!(": {problem}")).await?;
        }
    }

    async fn nodes(&self, client: &Client, progress: &mut dyn FnMut(&str)) -> Result<(), Error> {
        progress("waiting for the nodes to be Ready");
        loop {
            let mut missing = self.config.node_names();
            if let Ok(list) = client.get("/api/v1/nodes").await {
                for node in list["items"].as_array().into_iter().flatten().filter(|n| is_ready(n)) {
                    missing.retain(|name| node["metadata"]["name"] != name.as_str());
                }
            }
            if missing.is_empty() {
                return Ok(());
            }
            let what = format!("{} not Ready", missing.join(", "));
            self.pause(&what, || super::status::problems(self.config)).await?;
        }
    }

    async fn dns(&self, client: &Client, progress: &mut dyn FnMut(&str)) -> Result<(), Error> {
        progress("waiting for cluster DNS");
        let path = crate::supervisor::dns::path();
        loop {
            let deployment = client.get(&path).await.unwrap_or_default();
            if deployment["status"]["availableReplicas"].as_u64().is_some_and(|n| n > 0) {
                return Ok(());
            }
            let told =
                || format!("; see kubectl -n kube-system describe {}", path.rsplit("/apis/").next().unwrap_or(""));
            self.pause("cluster DNS is not available", told).await?;
        }
    }

    async fn pause(&self, what: &str, detail: impl FnOnce() -> String) -> Result<(), Error> {
        if Instant::now() > self.deadline {
            let seconds = UP_WITHIN.as_secs();
            return Err(Error::Timeout { what: what.to_owned(), seconds, detail: detail() });
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        Ok(())
    }
}

/// The node's condition Ready is True, and no taint keeps pods away that waits for the network.
pub(super) fn is_ready(node: &Value) -> bool {
    let condition = |kind: &str, status: &str| {
        node["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|c| c["type"] == kind && c["status"] == status)
    };
    let tainted = node["spec"]["taints"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|t| t["effect"] == "NoSchedule" || t["effect"] == "NoExecute");
    condition("Ready", "True") && !condition("NetworkUnavailable", "True") && !tainted
}
