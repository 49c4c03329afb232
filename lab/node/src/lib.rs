//! The pod runner: what the kubelet and the container runtime are on a real node.
//!
//! It registers its node, watches the pods that are bound to it, and makes them so: network namespace, attachment
//! through the CNI executable, control group, containers. It runs inside the node's network namespace. Everything
//! that it must know after a restart is in files below the node's directory; its death ends no container.
//!
//! Mirror pods it leaves alone, as the kubelet does: objects of pods that somebody else on the node runs.

mod cni;
mod containers;
mod environment;
mod events;
mod image;
mod logs;
pub mod pod;
mod probe;
pub mod record;
mod register;
mod resolv;
mod sandbox;
mod server;
mod status;
mod worker;

use record::PodDir;
use serde_json::Value;
use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use weft_lab_client::Client;
use weft_lab_client::follow::{Change, follow};
use weft_lab_client::kubeconfig::Access;
use weft_lab_config::options::Config;
use worker::Wanted;

/// What all parts of a runner share.
pub(crate) struct Node {
    /// The cluster's settings.
    pub config: Config,
    /// The node's name.
    pub name: String,
    /// Its number, from 1.
    pub number: u8,
    /// To the API server.
    pub client: Client,
    /// Events about pods.
    pub events: events::Events,
}

impl Node {
    /// Records and files of the pods.
    fn pods(&self) -> PathBuf {
        self.config.paths().node(&self.name).join("pods")
    }

    /// A pod's directory of logs.
    fn pod_logs(&self, record: &record::Record) -> PathBuf {
        let pod = format!("{}_{}_{}", record.namespace, record.name, record.uid);
        self.config.paths().logs().join("pods").join(&self.name).join(pod)
    }

    /// The executable that containers of the built-in images see as `/weft`.
    fn program(&self) -> PathBuf {
        self.config.bin_dir.join("weft-lab")
    }

    /// The CNI executables and configuration that the agent installed.
    fn network(&self) -> cni::Network {
        let dir = self.config.paths().node(&self.name).join("cni");
        cni::Network { bin_dir: dir.join("bin"), conf_dir: dir.join("conf") }
    }
}

/// `weft internal node CLUSTER NODE`
pub fn main(args: &[OsString]) -> ExitCode {
    let text = |n: usize| args.get(n).map(|a| a.to_string_lossy().into_owned()).unwrap_or_default();
    match run(&text(0), &text(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "pod runner");
            ExitCode::FAILURE
        }
    }
}

fn run(cluster: &str, name: &str) -> anyhow::Result<()> {
    let config = weft_lab_config::load(cluster)?;
    let number = config.node_names().iter().position(|n| n == name);
    let number = number.and_then(|n| u8::try_from(n + 1).ok());
    let number = number.ok_or_else(|| anyhow::anyhow!("{name}: expected one of {:?}", config.node_names()))?;
    let client = Client::new(Access::read(&config.paths().node_kubeconfig())?)?;
    let events = events::Events::new(client.clone(), name);
    let node = Arc::new(Node { config, name: name.to_owned(), number, client, events });
    std::fs::create_dir_all(node.pods())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(node))
}

async fn serve(node: Arc<Node>) -> anyhow::Result<()> {
    let (sender, changes) = mpsc::channel(256);
    let selector = format!("fieldSelector=spec.nodeName%3D{}", node.name);
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(follow(node.client.clone(), "/api/v1/pods".into(), selector, sender));
    tasks.spawn(register::keep(Arc::clone(&node)));
    let socket = server::bind(&node.config.paths().runner_socket(&node.name))?;
    tasks.spawn(server::serve(Arc::clone(&node), socket));
    tasks.spawn(dispatch(node, changes));
    // None of them ends by itself.
    match tasks.join_next().await {
        Some(Err(error)) => Err(error.into()),
        _ => anyhow::bail!("a task of the pod runner ended"),
    }
}

/// Gives every pod its worker, and tells it what is wanted.
async fn dispatch(node: Arc<Node>, mut changes: mpsc::Receiver<Change>) {
    let (finished_sender, mut finished) = mpsc::channel::<String>(256);
    let mut workers: HashMap<String, watch::Sender<Wanted>> = HashMap::new();
    // A vanished pod whose worker is still removing it must not be forgotten: it may be asked for again.
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            change = changes.recv() => {
                let Some(change) = change else { return };
                for (uid, wanted) in decide(&node, &workers, change) {
                    if let Some(worker) = workers.get(&uid) {
                        worker.send_replace(wanted);
                        continue;
                    }
                    let (sender, receiver) = watch::channel(wanted);
                    workers.insert(uid.clone(), sender);
                    let (node, finished) = (Arc::clone(&node), finished_sender.clone());
                    tasks.spawn(async move {
                        worker::run(node, &uid, receiver).await;
                        let _ = finished.send(uid).await;
                    });
                }
            }
            uid = finished.recv() => {
                if let Some(uid) = uid {
                    workers.remove(&uid);
                }
            }
            Some(result) = tasks.join_next() => {
                if let Err(error) = result {
                    // A bug in a worker must not take the node's other pods with it.
                    tracing::error!(%error, "a pod's worker");
                }
            }
        }
    }
}

/// The annotation of a mirror pod.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// What a change means for which pod.
fn decide(node: &Node, workers: &HashMap<String, watch::Sender<Wanted>>, change: Change) -> Vec<(String, Wanted)> {
    let uid = |pod: &Value| pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    let is_mirror = |pod: &Value| pod["metadata"]["annotations"][MIRROR].is_string();
    match change {
        Change::Put(pod) if is_mirror(&pod) => Vec::new(),
        Change::Put(pod) => vec![(uid(&pod), Wanted::Pod(Arc::new(pod)))],
        Change::Gone(pod) => {
            let uid = uid(&pod);
            if workers.contains_key(&uid) { vec![(uid, Wanted::Nothing)] } else { Vec::new() }
        }
        Change::All(mut pods) => {
            pods.retain(|pod| !is_mirror(pod));
            let mut known: Vec<String> = workers.keys().cloned().collect();
            known.extend(record::load_all(&node.pods()).into_iter().map(|r| r.uid));
            known.sort();
            known.dedup();
            known.retain(|k| !pods.iter().any(|p| uid(p) == *k));
            let gone = known.into_iter().map(|uid| (uid, Wanted::Nothing));
            pods.into_iter().map(|p| (uid(&p), Wanted::Pod(Arc::new(p)))).chain(gone).collect()
        }
    }
}

impl Node {
    /// Where a pod's record is.
    fn pod_dir(&self, uid: &str) -> PodDir {
        PodDir::new(&self.pods(), uid)
    }
}

/// How long a request that failed waits before it is tried again.
const RETRY: Duration = Duration::from_millis(500);
