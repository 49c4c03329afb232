//! The machine under the pods: its device and addresses, forwarding, the VXLAN device, routes. Follows the nodes of
//! the cluster for as long as the agent runs, and mends what somebody else undid.

use crate::config::{Acceleration, Config, Routing};
use crate::core::describe;
use crate::core::thread::Handle;
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

/// Name of the VXLAN device.
pub const TUNNEL_DEVICE: &str = "weft_vxlan";
/// Events that each CPU may report in a second; the rest is counted.
const EVENTS_PER_S: u32 = 10_000;
/// Smallest MTU with IPv6 (RFC 8200, 5).
const MTU_MIN: u32 = 1280;
/// Pause before something that failed is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// Pause between two looks at a machine that is well.
const AUDIT: Duration = Duration::from_secs(60);

/// Keeps the machine set up until `stop`.
pub async fn run(core: Handle, config: Arc<Config>, hooks: Hooks, mtu: Arc<AtomicU32>, stop: CancellationToken) {
    let Ok(signals) = core.call(|core| core.signals()).await else { return };
    let mut configured: Option<NodeSettings> = None;
    loop {
        let Ok(nodes) = core.call(|core| core.carried_nodes()).await else { return };
        let problem = set_up(&core, &config, &hooks, nodes, &mut configured, &mtu).await.err();
        let pause = if problem.is_some() { RETRY } else { AUDIT };
        if core.call(move |core| core.set_node_ready(problem)).await.is_err() {
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
    core: &Handle,
    config: &Arc<Config>,
    hooks: &Hooks,
    nodes: BTreeMap<String, Node>,
    configured: &mut Option<NodeSettings>,
    mtu: &Arc<AtomicU32>,
) -> Result<(), String> {
    let Some(own) = nodes.get(&config.node_name).cloned() else {
        return Err(format!("no Node object named {:?} with addresses yet", config.node_name));
    };
    let (for_device, hooks_there) = (config.clone(), hooks.clone());
    let (device, settings) = blocking(move || prepare(&for_device, &own, &nodes)).await?;
    mtu.store(u32::from(settings.pod_mtu), Ordering::Relaxed);
    if configured.as_ref() != Some(&settings) {
        let written = settings.clone();
        let done = core.call(move |core| core.configure(&written)).await.map_err(|error| error.to_string())?;
        done.map_err(|error| describe(&error))?;
    }
    // Programs come after the configuration that they read.
    let tunnel = settings.tunnel.as_ref().map(|tunnel| tunnel.ifindex);
    let for_sockets = config.clone();
    blocking(move || {
        let failed = |error: &dyn std::error::Error| format!("attach programs: {}", describe(error));
        hooks_there.attach_device(&device.name, device.ifindex).map_err(|error| failed(&error))?;
        edge(&for_sockets, &hooks_there, &device)
            .map_err(|error| format!("node-port-acceleration: {}: {}", device.name, describe(&error)))?;
        if let Some(ifindex) = tunnel {
            hooks_there.attach_tunnel(TUNNEL_DEVICE, ifindex).map_err(|error| failed(&error))?;
        }
        sockets(&for_sockets, &hooks_there).map_err(|error| format!("sockets: {}", describe(&error)))
    })
    .await?;
    *configured = Some(settings);
    Ok(())
}

/// What passes through the node at its device, where it shall.
fn edge(config: &Config, hooks: &Hooks, device: &NodeDevice) -> std::io::Result<()> {
    // By tunnel all of it is left to the programs behind.
    if config.node_port_acceleration == Acceleration::Disabled || config.routing == Routing::Vxlan {
        return hooks.detach_edge().map(drop);
    }
    match hooks.attach_edge(&device.name, device.ifindex) {
        Err(error) if config.node_port_acceleration == Acceleration::BestEffort => {
            tracing::warn!(device = device.name, error = describe(&error), "no acceleration at the edge");
            Ok(())
        }
        done => done,
    }
}

/// Services at the sockets of the node and its pods, where they shall be.
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
fn prepare(config: &Config, own: &Node, nodes: &BTreeMap<String, Node>) -> Result<(NodeDevice, NodeSettings), String> {
    let name = match &config.device {
        Some(name) => Some(name.clone()),
        None => own.addresses.iter().find_map(|address| device_with(*address)),
    };
    let device = node::discover(name.as_deref()).map_err(|error| describe(&error))?;
    node::prepare(config.ipv4, config.ipv6, &device.name).map_err(|error| describe(&error))?;
    node::reserve_ports(&config.node_ports).map_err(|error| describe(&error))?;
    let address = |ipv4: bool| own.addresses.iter().copied().find(|address| address.is_ipv4() == ipv4);
    let tunnel = match config.routing {
        Routing::Native => {
            tunnel::remove(TUNNEL_DEVICE).map_err(|error| describe(&error))?;
            None
        }
        Routing::Vxlan => Some(address(true).or(address(false)).ok_or("the Node object has no addresses")?),
    };
    let overhead = match tunnel {
        None => 0,
        Some(source) => tunnel::overhead(source.is_ipv6()),
    };
    let carried = device.mtu.saturating_sub(overhead);
    if config.ipv6 && carried < MTU_MIN {
        return Err(format!("{} carries {carried} bytes for pods; IPv6 needs {MTU_MIN}", device.name));
    }
    let pod_mtu = config.mtu.map_or(carried, |mtu| mtu.min(carried)).min(u32::from(u16::MAX));
    let tunnel = match tunnel {
        None => None,
        Some(source) => {
            let spec = TunnelSpec { name: TUNNEL_DEVICE.to_owned(), port: config.tunnel_port, mtu: pod_mtu };
            let ifindex = tunnel::ensure(&spec).map_err(|error| describe(&error))?;
            Some(TunnelSettings { ifindex, port: config.tunnel_port, source })
        }
    };
    route::set_unreachable(&own.pod_cidrs).map_err(|error| describe(&error))?;
    if let Some(tunnel) = &tunnel {
        let others = nodes.values().filter(|node| node.name != own.name);
        let pods: Vec<IpNet> = others.flat_map(|node| node.pod_cidrs.iter().copied()).collect();
        route::set_tunnel(&pods, tunnel.ifindex, &own.addresses, pod_mtu).map_err(|error| describe(&error))?;
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
        nat_ports: node::nat_ports(&config.node_ports).map_err(|error| describe(&error))?,
        guard: config.node_port_bind_protection.clone(),
        masquerade_v4: config.masquerade && config.ipv4,
        masquerade_v6: config.masquerade && config.ipv6,
        dual_stack: config.ipv4 && config.ipv6,
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

async fn blocking<R: Send + 'static>(work: impl FnOnce() -> Result<R, String> + Send + 'static) -> Result<R, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?
}
