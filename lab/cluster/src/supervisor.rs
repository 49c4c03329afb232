//! The process that keeps a cluster's other processes running: API server, operator, agents, pod runners.
//!
//! It starts what died again, and records number and start time of each. Killed itself, it takes nothing with it: its
//! successor adopts what still runs.

mod cloud;
mod crds;
pub(crate) mod dns;
mod nodes;
mod pools;
mod relay;
mod service;

use anyhow::Context;
use service::Service;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use weft_lab_client::Client;
use weft_lab_client::kubeconfig::Access;
use weft_lab_config::ipam::IpamMode;
use weft_lab_config::options::Config;
use weft_sys::cgroup::Cgroup;
use weft_sys::process::Process;

/// Port of the API server inside the fabric.
pub const FABRIC_API_PORT: u16 = 6443;

/// Name of the supervisor's own process record.
pub const RECORD: &str = "supervisor";

/// `weft internal supervisor CLUSTER`
pub fn main(args: &[OsString]) -> ExitCode {
    let cluster = args.first().map(|a| a.to_string_lossy().into_owned()).unwrap_or_default();
    match run(&cluster) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "supervisor");
            ExitCode::FAILURE
        }
    }
}

fn run(cluster: &str) -> anyhow::Result<()> {
    // A terminal that closes must not end the cluster. Fails only when this is done already.
    let _ = nix::unistd::setsid();
    let config = weft_lab_config::load(cluster)?;
    let paths = config.paths();
    let own = Process::own().context("read /proc/self/stat")?;
    own.write(&paths.processes().join(format!("{RECORD}.json")))?;
    let system = Cgroup::at(paths.cgroup())?.child("system");
    system.create()?;
    system.add(own.pid)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(supervise(config))
}

async fn supervise(config: Config) -> anyhow::Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    let paths = config.paths();
    let admin = match &config.kubeconfig {
        None => {
            tasks.spawn(api_server(&config)?.keep_running());
            paths.kubeconfig()
        }
        Some(file) => {
            let access = Access::read(file)?;
            let listen = gateway(&config);
            relay::write_kubeconfigs(&config, &access, listen)?;
            tasks.spawn(relay::serve(paths.fabric_netns(), listen, (access.host.clone(), access.port)));
            file.clone()
        }
    };
    let client = ready(&admin).await;
    crds::install(&client).await;
    if config.dns {
        let (client, config) = (client.clone(), config.clone());
        // It is done sometime; the others do not wait for it.
        tokio::spawn(async move { dns::install(&client, &config, &config.paths().dns_kubeconfig()).await });
    }
    match config.ipam {
        IpamMode::MultiPool => {
            pools::make_default(&client, &config).await;
            tasks.spawn(nodes::follow_shares(client, config.clone()));
        }
        ipam if ipam.native_only() => drop(tasks.spawn(cloud::serve(config.clone()))),
        _ => drop(tasks.spawn(nodes::follow_pod_cidrs(client, config.clone()))),
    }
    tasks.spawn(operator(&config)?.keep_running());
    tasks.spawn(outside(&config)?.keep_running());
    for node in config.node_names() {
        tasks.spawn(agent(&config, &node)?.keep_running());
        tasks.spawn(runner(&config, &node)?.keep_running());
    }
    // None of them ends by itself.
    match tasks.join_next().await {
        Some(Err(error)) => Err(error).context("a task of the supervisor"),
        _ => anyhow::bail!("a task of the supervisor ended"),
    }
}

/// Waits, as long as it takes, until the API server answers.
async fn ready(kubeconfig: &Path) -> Client {
    loop {
        if let Ok(access) = Access::read(kubeconfig)
            && let Ok(client) = Client::new(access)
        {
            match client.get("/readyz").await {
                Ok(_) => return client,
                Err(error) => tracing::debug!(%error, "API server"),
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The fabric's own address that nodes reach the API server at.
fn gateway(config: &Config) -> SocketAddr {
    let address = config.gateways().first().copied().expect("a cluster has at least one family");
    SocketAddr::new(address, FABRIC_API_PORT)
}

fn join<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn service(config: &Config, name: &str, program: &str) -> anyhow::Result<Service> {
    let paths = config.paths();
    Ok(Service {
        name: name.to_owned(),
        program: config.bin_dir.join(program),
        args: Vec::new(),
        netns: None,
        cgroup: Cgroup::at(paths.cgroup())?.child("system"),
        record: paths.processes().join(format!("{name}.json")),
        log: paths.logs().join(format!("{name}.log")),
        lab: config.bin_dir.join(crate::PROGRAM),
    })
}

fn api_server(config: &Config) -> anyhow::Result<Service> {
    let paths = config.paths();
    let mut service = service(config, "apiserver", crate::PROGRAM)?;
    service.args(["internal", "apiserver", "--cluster", &config.name]);
    service.option("--data-dir", paths.lib().join("apiserver"));
    service.option("--listen", format!("127.0.0.1:{}", config.port));
    service.option("--netns", weft_sys::netns::path(&paths.fabric_netns()));
    for address in config.gateways() {
        service.option("--netns-listen", SocketAddr::new(address, FABRIC_API_PORT).to_string());
    }
    service.option("--kubeconfig", paths.kubeconfig());
    service.option("--node-kubeconfig", paths.node_kubeconfig());
    service.option("--dns-kubeconfig", paths.dns_kubeconfig());
    for node in config.node_names() {
        let dir = paths.node(&node).join("peer");
        service.option("--agent-certificates", format!("{node}={}", dir.display()));
    }
    service.option("--run-dir", paths.run());
    service.option("--ip-families", config.families());
    service.option("--pod-cidr", join(&config.pod_cidrs));
    service.option("--service-cidr", join(&config.service_cidrs));
    Ok(service)
}

fn operator(config: &Config) -> anyhow::Result<Service> {
    let mut service = service(config, "operator", "weft-operator")?;
    service.netns = Some(config.paths().fabric_netns());
    service.option("--kubeconfig", config.paths().node_kubeconfig());
    service.option("--pod-cidr", join(&config.pod_cidrs));
    service.option("--node-mask-v4", weft_lab_config::options::NODE_MASK_V4.to_string());
    service.option("--node-mask-v6", config.node_mask_v6.to_string());
    service.option("--lease-namespace", "kube-system");
    service.option("--ipam", config.ipam.name());
    if config.ipam.native_only() {
        service.option("--cloud", format!("unix:{}", config.paths().cloud_socket().display()));
    }
    // What the agents take for valid.
    for key in
        ["endpoint-propagation", "extended-protocols", "external-ips-allowed", "host-firewall", "node-port-range"]
    {
        if let Some(value) = config.agent.get(key) {
            service.option(&format!("--{key}"), value);
        }
    }
    Ok(service)
}

/// The world's only host answers like any toolbox pod.
fn outside(config: &Config) -> anyhow::Result<Service> {
    let mut service = service(config, "outside", crate::PROGRAM)?;
    service.netns = Some(config.paths().outside_netns());
    service.args(["toolbox", "serve", "--name", "outside"]);
    Ok(service)
}

/// The group of all processes of a node: its agent, its runner, its pods'.
fn node_cgroup(config: &Config, node: &str) -> anyhow::Result<Cgroup> {
    let group = Cgroup::at(config.paths().cgroup())?.child(node);
    group.create()?;
    Ok(group)
}

fn agent(config: &Config, node: &str) -> anyhow::Result<Service> {
    let paths = config.paths();
    let dir = paths.node(node);
    for part in ["agent", "cni/bin", "cni/conf"] {
        std::fs::create_dir_all(dir.join(part))?;
    }
    std::fs::create_dir_all(paths.bpf().join(node))?;
    let mut service = service(config, &format!("agent-{node}"), "weft-agent")?;
    service.netns = Some(paths.node_netns(node));
    service.cgroup = node_cgroup(config, node)?.child("agent");
    service.args.extend(agent_arguments(config, node)?.into_iter().map(OsString::from));
    Ok(service)
}

/// Command line of a node's agent.
pub(crate) fn agent_arguments(config: &Config, node: &str) -> anyhow::Result<Vec<String>> {
    let paths = config.paths();
    let dir = paths.node(node);
    let cgroup = Cgroup::at(paths.cgroup())?.child(node);
    let text = |path: &Path| path.display().to_string();
    let mut place = vec![
        ("node-name", node.to_owned()),
        ("cluster-name", config.name.clone()),
        ("device", crate::fabric::NODE_LINK.to_owned()),
        ("kubeconfig", text(&paths.node_kubeconfig())),
        ("socket", text(&paths.agent_socket(node))),
        ("state-dir", text(&dir.join("agent"))),
        ("bpf-dir", text(&paths.bpf().join(node))),
        ("cgroup-root", text(cgroup.path())),
        ("cni-bin-dir", text(&dir.join("cni/bin"))),
        ("cni-conf-dir", text(&dir.join("cni/conf"))),
    ];
    // The authority is the embedded API server's.
    if config.kubeconfig.is_none() {
        let peer = dir.join("peer");
        place.push(("peer-certificate", text(&peer.join("agent.crt"))));
        place.push(("peer-key", text(&peer.join("agent.key"))));
        place.push(("peer-authority", text(&peer.join("ca.crt"))));
    }
    let number = config.node_names().iter().position(|name| name == node).and_then(|at| u8::try_from(at + 1).ok());
    let number = number.with_context(|| format!("node {node} is not of cluster {}", config.name))?;
    Ok(config.agent_arguments(number, place, &dir.join("host-local"))?)
}

fn runner(config: &Config, node: &str) -> anyhow::Result<Service> {
    let paths = config.paths();
    let mut service = service(config, &format!("runner-{node}"), crate::PROGRAM)?;
    service.netns = Some(paths.node_netns(node));
    service.cgroup = node_cgroup(config, node)?.child("runner");
    service.args(["internal", "node", &config.name, node]);
    Ok(service)
}

impl Service {
    fn args<const N: usize>(&mut self, args: [&str; N]) {
        self.args.extend(args.iter().map(OsString::from));
    }

    fn option(&mut self, name: &str, value: impl Into<PathBuf>) {
        self.args.push(name.into());
        self.args.push(value.into().into_os_string());
    }
}
