//! CNI ADD as a runtime sees it (start of the executable to its end), memory by number of endpoints, and the
//! reference bridge plugin.

use crate::cluster::Cluster;
use crate::netns::{self, Owned};
use crate::report::{Report, percentile};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

struct Call<'a> {
    plugin: &'a Path,
    plugins: &'a Path,
    config: &'a Value,
    container: &'a str,
    ns: &'a Path,
    arguments: &'a str,
}

impl Call<'_> {
    fn run(&self, command: &str) -> Result<Value> {
        let mut child = Command::new(self.plugin)
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", self.container)
            .env("CNI_NETNS", self.ns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", self.arguments)
            .env("CNI_PATH", self.plugins)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", self.plugin.display()))?;
        child.stdin.take().context("no input")?.write_all(&serde_json::to_vec(self.config)?)?;
        let output = child.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!("{command} of {}: {text}", self.container);
        }
        Ok(if text.trim().is_empty() { Value::Null } else { serde_json::from_str(&text)? })
    }
}

/// Further attachments of a running pod, made through the CNI executable; they go when this goes.
pub struct Attachments {
    plugin: PathBuf,
    bin_dir: PathBuf,
    config: Value,
    arguments: String,
    made: Vec<(String, Owned)>,
    /// Milliseconds of each ADD.
    pub add_ms: Vec<f64>,
    /// Milliseconds of each DEL.
    pub del_ms: Vec<f64>,
}

impl Attachments {
    /// Makes `count` one after the other.
    pub fn new(cluster: &Cluster, node: &str, pod: &str, count: usize) -> Result<Self> {
        let (namespace, name) = pod.split_once('/').context("a pod is named namespace/name")?;
        let bin_dir = cluster.bin_dir().to_path_buf();
        let mut attachments = Self {
            plugin: bin_dir.join("weft-cni"),
            bin_dir,
            config: json!({"cniVersion": "1.1.0", "name": "weft", "type": "weft-cni", "socket": cluster.socket(node)}),
            arguments: format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}"),
            made: Vec::new(),
            add_ms: Vec::new(),
            del_ms: Vec::new(),
        };
        attachments.grow(count)?;
        Ok(attachments)
    }

    /// Makes one, for a pod of that name in `default`.
    pub fn add(&mut self, pod: &str) -> Result<()> {
        self.arguments = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod}");
        self.grow(1)
    }

    /// Makes more.
    pub fn grow(&mut self, count: usize) -> Result<()> {
        for n in self.made.len()..self.made.len() + count {
            let container = format!("bench{}x{n}", std::process::id());
            let ns = Owned::new(&format!("pod{n}"))?;
            let start = Instant::now();
            self.call(&container, &ns.path()).run("ADD")?;
            self.add_ms.push(start.elapsed().as_secs_f64() * 1e3);
            self.made.push((container, ns));
        }
        Ok(())
    }

    /// Removes all.
    pub fn clear(&mut self) -> Result<()> {
        for (container, ns) in std::mem::take(&mut self.made) {
            let start = Instant::now();
            self.call(&container, &ns.path()).run("DEL")?;
            self.del_ms.push(start.elapsed().as_secs_f64() * 1e3);
        }
        Ok(())
    }

    fn call<'a>(&'a self, container: &'a str, ns: &'a Path) -> Call<'a> {
        Call {
            plugin: &self.plugin,
            plugins: &self.bin_dir,
            config: &self.config,
            container,
            ns,
            arguments: &self.arguments,
        }
    }
}

impl Drop for Attachments {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            eprintln!("left behind: {error:#}");
        }
    }
}

/// ADD and DEL times; the first ADD on a node that never had a pod apart.
pub fn run(cluster: &Cluster) -> Result<Report> {
    cluster.pods(&[("add", "node-1")])?;
    let mut attachments = Attachments::new(cluster, "node-1", "default/add", 100)?;
    let mut report = Report::default();
    attachments.clear()?;
    report.plain("cni", "cni_add_p50", percentile(&attachments.add_ms, 0.5), "ms", attachments.add_ms.len());
    report.plain("cni", "cni_add_p99", percentile(&attachments.add_ms, 0.99), "ms", attachments.add_ms.len());
    report.plain("cni", "cni_add_first", attachments.add_ms.first().copied().unwrap_or(f64::NAN), "ms", 1);
    report.plain("cni", "cni_del_p50", percentile(&attachments.del_ms, 0.5), "ms", attachments.del_ms.len());
    Ok(report)
}

/// Memory of the agent and of its maps with 0 (one pod), 50, 100 and 250 further endpoints.
pub fn memory(cluster: &Cluster) -> Result<Report> {
    cluster.pods(&[("memory", "node-2")])?;
    let mut attachments = Attachments::new(cluster, "node-2", "default/memory", 0)?;
    let mut report = Report::default();
    for endpoints in [0, 50, 100, 250] {
        attachments.grow(endpoints - attachments.made.len())?;
        let scenario = format!("endpoints-{endpoints}");
        report.plain(&scenario, "rss_mib", resident_mib(cluster.agent_pid("node-2")?)?, "MiB", 1);
        report.plain(&scenario, "map_mib", maps_mib(&cluster.socket("node-2"))?, "MiB", 1);
    }
    Ok(report)
}

fn resident_mib(pid: i32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).context("no VmRSS value")?.parse::<f64>()? / 1024.0)
}

fn maps_mib(socket: &Path) -> Result<f64> {
    let mut stream = UnixStream::connect(socket)?;
    let mut line = serde_json::to_vec(&weft_api::agent::Request::Maps)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    match serde_json::from_str(&answer)? {
        weft_api::agent::Response::Maps(maps) => {
            Ok(maps.iter().map(|map| map.memory_bytes).sum::<u64>() as f64 / (1024.0 * 1024.0))
        }
        other => bail!("the agent answered {other:?}"),
    }
}

/// Two namespaces joined by the reference bridge plugin, on a "host" namespace of its own.
pub struct Bridge {
    plugins: PathBuf,
    config: Value,
    state: PathBuf,
    // Dropped after the attachments were removed.
    ends: Vec<Owned>,
    _host: Owned,
    host_path: PathBuf,
    addresses: [IpAddr; 2],
}

impl Bridge {
    /// Makes it.
    pub fn new(plugins: &Path) -> Result<Self> {
        anyhow::ensure!(
            plugins.join("bridge").exists(),
            "{} has no `bridge`: install containernetworking-plugins",
            plugins.display()
        );
        let state = std::env::temp_dir().join(format!("weftbench-{}-ipam", std::process::id()));
        let config = json!({"cniVersion": "1.0.0", "name": "bench", "type": "bridge", "bridge": "br0", "isGateway": true,
            "ipam": {"type": "host-local", "dataDir": state,
                "ranges": [[{"subnet": "10.98.0.0/24"}], [{"subnet": "fd98::/64"}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}});
        let host = Owned::new("bridge")?;
        let mut bridge = Self {
            plugins: plugins.to_path_buf(),
            config,
            state,
            ends: vec![Owned::new("bridge-a")?, Owned::new("bridge-b")?],
            host_path: host.path(),
            _host: host,
            addresses: [IpAddr::from([0, 0, 0, 0]); 2],
        };
        for n in 0..2 {
            let result = bridge.call(n, "ADD")?;
            for ip in result["ips"].as_array().into_iter().flatten() {
                let text = ip["address"].as_str().context("an address")?;
                let address: IpAddr = text.split('/').next().unwrap_or_default().parse()?;
                bridge.addresses[usize::from(address.is_ipv6())] = address;
            }
        }
        Ok(bridge)
    }

    fn call(&self, n: usize, command: &str) -> Result<Value> {
        let plugin = self.plugins.join("bridge");
        let container = format!("bench{}b{n}", std::process::id());
        let ns = self.ends[n].path();
        let call = Call {
            plugin: &plugin,
            plugins: &self.plugins,
            config: &self.config,
            container: &container,
            ns: &ns,
            arguments: "",
        };
        netns::inside(&self.host_path, || call.run(command))
    }

    /// Where the client runs.
    pub fn client(&self) -> PathBuf {
        self.ends[0].path()
    }

    /// Where the server runs.
    pub fn server(&self) -> PathBuf {
        self.ends[1].path()
    }

    /// The server's.
    pub fn addresses(&self) -> Result<[IpAddr; 2]> {
        anyhow::ensure!(self.addresses[1].is_ipv6(), "the bridge plugin gave no IPv6 address");
        Ok(self.addresses)
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        for n in 0..self.ends.len() {
            if let Err(error) = self.call(n, "DEL") {
                eprintln!("left behind: {error:#}");
            }
        }
        if let Err(error) = std::fs::remove_dir_all(&self.state) {
            eprintln!("left behind: {}: {error}", self.state.display());
        }
    }
}
