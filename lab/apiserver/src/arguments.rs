//! `weft internal apiserver`: from arguments to a running server and its controllers.

use super::api::{Api, Settings};
use super::pki::Pki;
use super::server::{Config, serve};
use super::store::Store;
use anyhow::{Context, bail};
use clap::Parser;
use ipnet::IpNet;
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Parser)]
#[command(name = "weft internal apiserver", no_binary_name = true)]
struct Arguments {
    /// Certificates for agents: NODE=DIRECTORY.
    #[arg(long = "agent-certificates", value_name = "NODE=DIRECTORY")]
    agent_certificates: Vec<String>,
    /// Name of the cluster.
    #[arg(long, default_value = "weft")]
    cluster: String,
    /// Where the objects and the authority are kept.
    #[arg(long)]
    data_dir: PathBuf,
    /// Addresses to listen on.
    #[arg(long, value_delimiter = ',')]
    listen: Vec<SocketAddr>,
    /// Network namespace of further addresses.
    #[arg(long)]
    netns: Option<PathBuf>,
    /// Addresses to listen on in that namespace.
    #[arg(long, value_delimiter = ',', requires = "netns")]
    netns_listen: Vec<SocketAddr>,
    /// Where to write the administrator's kubeconfig.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Where to write the kubeconfig that nodes use.
    #[arg(long)]
    node_kubeconfig: Option<PathBuf>,
    /// Where to write the kubeconfig of cluster DNS.
    #[arg(long)]
    dns_kubeconfig: Option<PathBuf>,
    /// Where the nodes' runners have their sockets.
    #[arg(long)]
    run_dir: PathBuf,
    /// Ranges of services' cluster addresses; the first one's family is the default.
    #[arg(long, value_delimiter = ',')]
    service_cidr: Vec<IpNet>,
    /// Ranges of pods' addresses; they are given to nodes by the operator, not here.
    #[arg(long, value_delimiter = ',')]
    pod_cidr: Vec<IpNet>,
    /// Families of the cluster.
    #[arg(long, value_delimiter = ',', default_value = "ipv4,ipv6")]
    ip_families: Vec<String>,
}

/// Runs the server until SIGTERM or SIGINT.
#[must_use]
pub fn main(args: Vec<OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(args) {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(2);
        }
    };
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.listen.is_empty() && arguments.netns_listen.is_empty() {
        bail!("--listen: expected at least one address");
    }
    let families = families(&arguments.ip_families)?;
    let service_cidrs =
        arguments.service_cidr.iter().copied().filter(|c| families.contains(&c.addr().is_ipv4())).collect();
    let endpoints = if arguments.netns_listen.is_empty() { &arguments.listen } else { &arguments.netns_listen };
    let settings = Settings { service_cidrs, endpoints: endpoints.clone() };
    std::fs::create_dir_all(&arguments.data_dir)
        .with_context(|| format!("--data-dir {}", arguments.data_dir.display()))?;
    let mut listeners = Vec::new();
    for address in &arguments.listen {
        listeners.push(TcpListener::bind(address).with_context(|| format!("--listen {address}"))?);
    }
    if let Some(netns) = &arguments.netns {
        listeners.extend(listen_in(netns, &arguments.netns_listen)?);
    }
    let names = names(arguments, &settings);
    let pki = Pki::create_or_load(&arguments.data_dir.join("pki"), &names).context("certificates")?;
    let store = Store::open(&arguments.data_dir.join("objects.redb")).context("store")?;
    let api = Api::new(store, settings);
    let servers = [
        (&arguments.kubeconfig, listeners.first().map(TcpListener::local_addr).transpose()?, "admin"),
        (&arguments.node_kubeconfig, arguments.netns_listen.first().or(arguments.listen.first()).copied(), "node"),
    ];
    for (file, address, user) in servers {
        if let (Some(file), Some(address)) = (file, address) {
            pki.write_kubeconfig(file, &arguments.cluster, &format!("https://{address}"), user)?;
        }
    }
    if let (Some(file), Some(address)) = (&arguments.dns_kubeconfig, endpoints.first()) {
        let server = format!("https://{address}");
        pki.write_account_kubeconfig(file, &arguments.cluster, &server, ("kube-system", "cluster-dns"))?;
    }
    for agent in &arguments.agent_certificates {
        let (node, dir) = agent
            .split_once('=')
            .with_context(|| format!("--agent-certificates: expected NODE=DIRECTORY, found {agent}"))?;
        pki.write_agent(std::path::Path::new(dir), node)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build()?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let controllers = tokio::spawn(crate::controller::run(api.clone(), stop.clone()));
        let config = Config { api, listeners, pki, run_dir: arguments.run_dir.clone() };
        let server = tokio::spawn(serve(config, stop.clone()));
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
            () = stop.cancelled() => {}
        }
        stop.cancel();
        server.await??;
        controllers.await?;
        Ok(())
    })
}

/// Whether each family is IPv4.
fn families(names: &[String]) -> anyhow::Result<Vec<bool>> {
    names
        .iter()
        .map(|name| match name.to_ascii_lowercase().as_str() {
            "ipv4" => Ok(true),
            "ipv6" => Ok(false),
            _ => bail!("--ip-families: {name:?}: expected ipv4 or ipv6"),
        })
        .collect()
}

/// Everything that the server is called.
fn names(arguments: &Arguments, settings: &Settings) -> Vec<String> {
    let fixed = ["localhost", "127.0.0.1", "::1", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
    let mut names: Vec<String> = fixed.iter().map(|n| (*n).to_owned()).collect();
    names.push(format!("kubernetes.default.svc.{}", weft_lab_config::options::DOMAIN));
    names.extend(
        (0..settings.service_cidrs.len()).filter_map(|n| settings.service_address(n, 1)).map(|a| a.to_string()),
    );
    let addresses = arguments.listen.iter().chain(&arguments.netns_listen).map(SocketAddr::ip);
    names.extend(addresses.filter(|a: &IpAddr| !a.is_unspecified()).map(|a| a.to_string()));
    names.sort();
    names.dedup();
    names
}

/// Binds sockets in another network namespace: a socket stays where it was made.
fn listen_in(netns: &Path, addresses: &[SocketAddr]) -> anyhow::Result<Vec<TcpListener>> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            weft_sys::netns::enter(netns).with_context(|| format!("--netns {}", netns.display()))?;
            let bind = |a: &SocketAddr| TcpListener::bind(a).with_context(|| format!("--netns-listen {a}"));
            addresses.iter().map(bind).collect()
        });
        thread.join().unwrap_or_else(|_| bail!("--netns {}: the thread panicked", netns.display()))
    })
}
