//! An embedded cluster for the length of a benchmark.

use crate::netns;
use anyhow::{Context, Result, bail};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::{Value, json};
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A cluster that goes when this goes.
pub struct Cluster {
    bin_dir: PathBuf,
    name: String,
    kubeconfig: String,
}

/// A running pod.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its namespace in the kernel.
    pub ns: PathBuf,
    /// IPv4, IPv6.
    pub addresses: [IpAddr; 2],
}

/// See [`Cluster::client`].
pub struct Client {
    runtime: tokio::runtime::Runtime,
    policies: kube::Api<NetworkPolicy>,
}

impl Client {
    /// Creates a NetworkPolicy in `default`.
    pub fn create(&self, policy: &Value) -> Result<()> {
        let policy = serde_json::from_value(policy.clone())?;
        self.runtime.block_on(self.policies.create(&kube::api::PostParams::default(), &policy))?;
        Ok(())
    }
}

impl Cluster {
    /// `weft up` with this routing.
    pub fn up(bin_dir: &Path, routing: &str, nodes: usize) -> Result<Self> {
        Self::up_with(bin_dir, &routing[..1], nodes, &["--routing", routing])
    }

    /// `weft up` with these options; `label` tells clusters of one run apart.
    pub fn up_with(bin_dir: &Path, label: &str, nodes: usize, options: &[&str]) -> Result<Self> {
        let name = format!("bench{label}{}", std::process::id());
        let mut cluster = Self { bin_dir: bin_dir.to_path_buf(), name, kubeconfig: String::new() };
        let nodes = nodes.to_string();
        println!("starting a cluster of {nodes} nodes, {} ...", options.join(" "));
        let fixed = ["up", "--name", &cluster.name, "--nodes", &nodes];
        cluster.weft(&[&fixed[..], options].concat())?;
        cluster.kubeconfig = cluster.weft(&["kubeconfig", "--name", &cluster.name])?.trim().to_owned();
        Ok(cluster)
    }

    /// Name of the cluster.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Directory of the binaries.
    pub fn bin_dir(&self) -> &Path {
        &self.bin_dir
    }

    /// Runs the CLI.
    pub fn weft(&self, arguments: &[&str]) -> Result<String> {
        netns::run(&self.bin_dir.join("weft").to_string_lossy(), arguments)
    }

    /// The agent's socket of a node.
    pub fn socket(&self, node: &str) -> PathBuf {
        Path::new("/run/weft").join(&self.name).join(node).join("agent.sock")
    }

    /// Runs kubectl.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let mut all = vec!["--kubeconfig", self.kubeconfig.as_str()];
        all.extend(arguments);
        netns::run("kubectl", &all)
    }

    /// A client of the API server whose connection is open already.
    pub fn client(&self) -> Result<Client> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(async {
            let kubeconfig = kube::config::Kubeconfig::read_from(&self.kubeconfig)?;
            let options = kube::config::KubeConfigOptions::default();
            let client = kube::Client::try_from(kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?)?;
            client.apiserver_version().await?;
            anyhow::Ok(client)
        })?;
        Ok(Client { runtime, policies: kube::Api::namespaced(client, "default") })
    }

    /// `kubectl apply` of objects; returns when the API server has them.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let mut child = Command::new("kubectl")
            .args(["--kubeconfig", &self.kubeconfig, "apply", "--validate=false", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("start kubectl")?;
        child.stdin.take().context("kubectl has no input")?.write_all(&serde_json::to_vec(&list)?)?;
        if !child.wait()?.success() {
            bail!("kubectl apply failed");
        }
        Ok(())
    }

    /// Starts toolbox pods (name, node) and waits until they are Ready.
    pub fn pods(&self, pods: &[(&str, &str)]) -> Result<Vec<Pod>> {
        let objects: Vec<_> = pods
            .iter()
            .map(|(name, node)| {
                json!({"apiVersion": "v1", "kind": "Pod",
                    "metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
                    "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0,
                        "containers": [{"name": "main", "image": "weft/toolbox"}]}})
            })
            .collect();
        self.apply(&objects)?;
        pods.iter().map(|(name, _)| self.pod(name)).collect()
    }

    fn pod(&self, name: &str) -> Result<Pod> {
        let deadline = Instant::now() + Duration::from_secs(60);
        self.kubectl(&["wait", "--for=condition=Ready", "--timeout=60s", &format!("pod/{name}")])?;
        loop {
            let pod: Value = serde_json::from_str(&self.kubectl(&["get", "pod", name, "-o", "json"])?)?;
            let ips: Vec<IpAddr> = pod["status"]["podIPs"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|ip| ip["ip"].as_str()?.parse().ok())
                .collect();
            let v4 = ips.iter().find(|ip| ip.is_ipv4());
            let v6 = ips.iter().find(|ip| ip.is_ipv6());
            if let (Some(v4), Some(v6)) = (v4, v6) {
                let ns = netns::find(&format!("weft-{}-pod-", self.name), *v4)?;
                return Ok(Pod { ns, addresses: [*v4, *v6] });
            }
            if Instant::now() > deadline {
                bail!("pod {name} has no addresses of both families: {}", pod["status"]);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Pid of a node's agent.
    pub fn agent_pid(&self, node: &str) -> Result<i32> {
        for entry in std::fs::read_dir("/proc")? {
            let path = entry?.path();
            let Some(pid) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else {
                continue;
            };
            let Ok(command) = std::fs::read(path.join("cmdline")) else {
                continue;
            };
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            let program = command.split(' ').next().unwrap_or_default();
            if program.ends_with("weft-agent")
                && command.contains(&format!("/{}/", self.name))
                && command.contains(node)
            {
                return Ok(pid);
            }
        }
        bail!("no weft-agent of {node} runs")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.weft(&["down", "--name", &self.name]) {
            eprintln!("left behind: {error:#}");
        }
    }
}
