//! The node's own network: its device and addresses, forwarding, the VXLAN device, routes, programs at device and
//! sockets. Reconciled when nodes change, and once a minute against drift.

use crate::config::{Acceleration, Config, Routing};
use crate::writer::thread::{Handle, Unavailable};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use weft_datapath::node::{self, NodeDevice};
use weft_datapath::tunnel::{self, TunnelSpec};
use weft_datapath::{Hooks, NodeSettings, Timeouts, TunnelSettings, cgroup, route};
use weft_model::intent::Node;
use weft_sys::error::describe;

/// Name of the VXLAN device.
pub const TUNNEL_DEVICE: &str = "weft_vxlan";
/// Events that each CPU may report in a second; the rest is counted.
const EVENTS_PER_S: u32 = 10_000;
/// Smallest MTU with IPv6 (RFC 8200, 5).
const MTU_MIN: u32 = 1280;
/// Pause before something that failed is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// Pause between two checks for drift.
const AUDIT: Duration = Duration::from_secs(60);

/// The node's network cannot be set up.
#[derive(Debug, thiserror::Error)]
enum SetupError {
    #[error("no Node object named {0:?} with addresses yet")]
    NoNode(String),
    #[error("the Node object has no addresses")]
    NoAddresses,
    #[error("{device}: its MTU leaves {carried} bytes for pods, expected at least {MTU_MIN} for IPv6")]
    MtuTooSmall { device: String, carried: u32 },
    #[error("{step}")]
    Step {
        step: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error(transparent)]
    Tables(#[from] Unavailable),
}

/// An error of a step, for people.
fn step<E>(step: impl Into<String>) -> impl FnOnce(E) -> SetupError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |source| SetupError::Step { step: step.into(), source: source.into() }
}

/// Keeps the node's network set up until `stop`.
pub async fn run(control: Handle, config: Arc<Config>, hooks: Hooks, mtu: Arc<AtomicU32>, stop: CancellationToken) {
    let Ok(signals) = control.call(|control| control.signals()).await else { return };
    let mut configured: Option<NodeSettings> = None;
    loop {
        let Ok(nodes) = control.call(|control| control.carried_nodes()).await else { return };
        let done = set_up(&control, &config, &hooks, nodes, &mut configured, &mtu).await;
        let problem = done.err().map(|error| describe(&error));
        let pause = if problem.is_some() { RETRY } else { AUDIT };
        if control.call(move |control| control.set_node_ready(problem)).await.is_err() {
            return;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = signals.nodes.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn set_up(
    control: &Handle,
    config: &Arc<Config>,
    hooks: &Hooks,
    nodes: BTreeMap<String, Node>,
    configured: &mut Option<NodeSettings>,
    mtu: &Arc<AtomicU32>,
) -> Result<(), SetupError> {
    let Some(own) = nodes.get(&config.node_name).cloned() else {
        return Err(SetupError::NoNode(config.node_name.clone()));
    };
    let (for_device, hooks_there) = (config.clone(), hooks.clone());
    let (device, settings) = blocking(move || prepare(&for_device, &own, &nodes)).await?;
    mtu.store(u32::from(settings.pod_mtu), Ordering::Relaxed);
    if configured.as_ref() != Some(&settings) {
        let written = settings.clone();
        control
            .call(move |control| control.configure(&written))
            .await?
            .map_err(step("write the node's configuration"))?;
    }
    // Programs come after the configuration that they read.
    let tunnel = settings.tunnel.as_ref().map(|tunnel| tunnel.ifindex);
    let for_sockets = config.clone();
    blocking(move || {
        let attach = |device: &str| format!("attach programs to {device}");
        hooks_there.attach_device(&device.name, device.ifindex).map_err(step(attach(&device.name)))?;
        edge(&for_sockets, &hooks_there, &device)
            .map_err(step(format!("node-port-acceleration: attach to {}", device.name)))?;
        if let Some(ifindex) = tunnel {
            hooks_there.attach_tunnel(TUNNEL_DEVICE, ifindex).map_err(step(attach(TUNNEL_DEVICE)))?;
        }
        sockets(&for_sockets, &hooks_there).map_err(step("attach programs to sockets"))
    })
    .await?;
    *configured = Some(settings);
    Ok(())
}

/// XDP at the node's device, where the settings ask for it.
fn edge(config: &Config, hooks: &Hooks, device: &NodeDevice) -> std::io::Result<()> {
    // With tunnels the tc programs do all of it.
    if config.node_port_acceleration == Acceleration::Disabled || config.routing == Routing::Vxlan {
        return hooks.detach_edge().map(drop);
    }
    match hooks.attach_edge(&device.name, device.ifindex) {
        Err(error) if config.node_port_acceleration == Acceleration::BestEffort => {
            tracing::warn!(
                device = device.name,
                error = describe(&error),
                "no node-port-acceleration: XDP cannot be attached, tc does the work"
            );
            Ok(())
        }
        done => done,
    }
}

/// Service translation at the sockets of the node and its pods, where the settings ask for it.
fn sockets(config: &Config, hooks: &Hooks) -> std::io::Result<()> {
    if !config.socket_lb {
        return hooks.detach_sockets().map(drop);
    }
    match &config.cgroup_root {
        Some(group) => hooks.attach_sockets(group),
        None => hooks.attach_sockets(&cgroup::root()?),
    }
}

/// Everything on the machine but maps and programs.
fn prepare(
    config: &Config,
    own: &Node,
    nodes: &BTreeMap<String, Node>,
) -> Result<(NodeDevice, NodeSettings), SetupError> {
    let name = match &config.device {
        Some(name) => Some(name.clone()),
        None => own.addresses.iter().find_map(|address| device_with(*address)),
    };
    let device = node::discover(name.as_deref()).map_err(step("find the node's device"))?;
    node::prepare(config.ip_families.ipv4, config.ip_families.ipv6, &device.name)
        .map_err(step(format!("configure {}", device.name)))?;
    node::reserve_ports(&config.node_port_range).map_err(step("reserve node ports"))?;
    let address = |ipv4: bool| own.addresses.iter().copied().find(|address| address.is_ipv4() == ipv4);
    let tunnel = match config.routing {
        Routing::Native => {
            tunnel::remove(TUNNEL_DEVICE).map_err(step(format!("remove {TUNNEL_DEVICE}")))?;
            None
        }
        Routing::Vxlan => Some(address(true).or(address(false)).ok_or(SetupError::NoAddresses)?),
    };
    let overhead = match tunnel {
        None => 0,
        Some(source) => tunnel::overhead(source.is_ipv6()),
    };
    let carried = device.mtu.saturating_sub(overhead);
    if config.ip_families.ipv6 && carried < MTU_MIN {
        return Err(SetupError::MtuTooSmall { device: device.name, carried });
    }
    let pod_mtu = config.mtu.map_or(carried, |mtu| mtu.min(carried)).min(u32::from(u16::MAX));
    let tunnel = match tunnel {
        None => None,
        Some(source) => {
            let spec = TunnelSpec { name: TUNNEL_DEVICE.to_owned(), port: config.tunnel_port, mtu: pod_mtu };
            let ifindex = tunnel::ensure(&spec).map_err(step(format!("create {TUNNEL_DEVICE}")))?;
            Some(TunnelSettings { ifindex, port: config.tunnel_port, source })
        }
    };
    route::set_unreachable(&own.pod_cidrs).map_err(step("set routes of this node's pod prefixes"))?;
    if let Some(tunnel) = &tunnel {
        let others = nodes.values().filter(|node| node.name != own.name);
        let pods: Vec<IpNet> = others.flat_map(|node| node.pod_cidrs.iter().copied()).collect();
        route::set_tunnel(&pods, tunnel.ifindex, &own.addresses, pod_mtu)
            .map_err(step("set routes through the tunnel"))?;
    }
    let settings = NodeSettings {
        device_ifindex: device.ifindex,
        device_mac: device.mac,
        tunnel,
        node_v4: address(true)
            .or(device.v4.map(IpAddr::V4))
            .and_then(|ip| if let IpAddr::V4(v4) = ip { Some(v4) } else { None }),
        node_v6: address(false)
            .or(device.v6.map(IpAddr::V6))
            .and_then(|ip| if let IpAddr::V6(v6) = ip { Some(v6) } else { None }),
        pod_mtu: u16::try_from(pod_mtu).unwrap_or(u16::MAX),
        nat_ports: node::nat_ports(&config.node_port_range).map_err(step("choose ports for masquerading"))?,
        guard: config.port_guard(),
        masquerade_v4: config.masquerades() && config.ip_families.ipv4,
        masquerade_v6: config.masquerades() && config.ip_families.ipv6,
        dual_stack: config.ip_families.ipv4 && config.ip_families.ipv6,
        timeouts: Timeouts::default(),
        events_per_s: EVENTS_PER_S,
    };
    Ok((device, settings))
}

/// The device that has an address.
fn device_with(address: IpAddr) -> Option<String> {
    let addresses = nix::ifaddrs::getifaddrs().ok()?;
    addresses
        .filter(|interface| {
            let found = interface.address.as_ref().and_then(|storage| {
                let v4 = storage.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
                v4.or_else(|| storage.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
            });
            found == Some(address)
        })
        .map(|interface| interface.interface_name)
        .next()
}

async fn blocking<R: Send + 'static>(
    work: impl FnOnce() -> Result<R, SetupError> + Send + 'static,
) -> Result<R, SetupError> {
    tokio::task::spawn_blocking(work).await.map_err(step("wait for a blocking call"))?
}
