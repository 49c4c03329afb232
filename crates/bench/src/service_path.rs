//! Traffic through services: at sockets and packet by packet against straight to the pod, beside iptables rules for as
//! many services as clusters have, and through ports of nodes from outside.

use crate::chain::Chain;
use crate::cluster::{Cluster, Pod};
use crate::iptables::Iptables;
use crate::netns;
use crate::report::Report;
use crate::scenario::{Scenario, Settings, rounds};
use crate::traffic::{Metric, cgroup_root};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where the servers listen.
pub const SERVER_PORT: u16 = 7000;
/// Where the services are reached.
const SERVICE_PORT: u16 = 80;
/// Ports of the nodes: with the node's address, and with the client's.
const NODE_PORTS: [(&str, u16); 2] = [("snat", 30_700), ("dsr", 30_701)];
/// How many services the iptables rules are for.
const SERVICES: [(&str, u32); 3] = [("i", 100), ("j", 1000), ("k", 10_000)];
const METRICS: [Metric; 3] = [Metric::TcpRr, Metric::UdpRr, Metric::TcpCrr];

/// Measures all of it.
pub fn run(bin_dir: &Path, settings: &Settings) -> Result<Report> {
    let near = Chain::new("n", 1)?;
    // Outside, fabric, a node, fabric, the backend's node, backend.
    let edge = Chain::new("o", 4)?;
    let mut scenarios = vec![
        Scenario::chain("base-near", "base-near", &near),
        Scenario::chain("base-near/again", "base-near", &near),
        Scenario::chain("base-edge", "base-edge", &edge),
        Scenario::chain("base-edge/again", "base-edge", &edge),
    ];
    let mut tables = Vec::new();
    for (name, count) in SERVICES {
        let scenario = format!("service-iptables/{count}");
        if settings.may_want(&scenario) {
            tables.push((scenario, Iptables::new(name, count, SERVER_PORT)?));
        }
    }
    for (name, table) in &tables {
        let mut scenario = Scenario::chain(name, "base-near", &table.chain);
        scenario.port = SERVER_PORT;
        scenario.through = Some(table.service);
        scenarios.push(scenario);
    }
    for scenario in &scenarios {
        room_for_connections(&scenario.client)?;
    }
    let mut clusters = Vec::new();
    if ["service-near", "service-far", "service-edge"].iter().any(|group| settings.may_want(group)) {
        let cluster = Cluster::up_with(bin_dir, "s", &["--nodes", "2", "--fabric-ip-forwarding"])?;
        scenarios.extend(inside(&cluster)?);
        scenarios.extend(at_the_edge(&cluster, "")?);
        clusters.push(cluster);
    }
    if settings.may_want("service-edge") {
        let options = ["--nodes", "2", "--fabric-ip-forwarding", "--agent", "node-port-acceleration=native"];
        let cluster = Cluster::up_with(bin_dir, "x", &options)?;
        scenarios.extend(at_the_edge(&cluster, "-xdp")?);
        clusters.push(cluster);
    }
    rounds(&Scenario::wanted(scenarios, settings), &METRICS, settings)
}

/// A client that opens thousands of connections a second to one place for minutes.
fn room_for_connections(ns: &Path) -> Result<()> {
    netns::inside(ns, || {
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65535")?;
        std::fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1")?;
        Ok(())
    })
}

/// The pod's control group, whose short id is in the name of its namespace.
fn cgroup(cluster: &Cluster, node: &str, pod: &Pod) -> Result<PathBuf> {
    let name = pod.ns.file_name().and_then(|name| name.to_str()).context("a namespace has a name")?;
    let id = name.rsplit('-').next().context("a pod's namespace has its id")?;
    let group = cgroup_root()?.join(format!("weft-{}", cluster.name())).join(node).join("pods").join(id);
    ensure!(group.is_dir(), "{} is no control group", group.display());
    Ok(group)
}

/// A service of the name of its pods.
pub fn service(app: &str, outside: Option<(&str, u16)>) -> Value {
    let port = |protocol: &str| {
        let mut port = json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": SERVICE_PORT,
            "targetPort": SERVER_PORT});
        if let Some((_, number)) = outside {
            port["nodePort"] = number.into();
        }
        port
    };
    let kind = if outside.is_some() { "NodePort" } else { "ClusterIP" };
    let annotations = outside.map_or(json!({}), |(mode, _)| json!({"service.cilium.io/forwarding-mode": mode}));
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": app, "namespace": "default", "annotations": annotations},
        "spec": {"type": kind, "ipFamilyPolicy": "RequireDualStack", "selector": {"app": app},
            "ports": [port("TCP"), port("UDP")]}})
}

fn get(cluster: &Cluster, kind: &str, name: &str) -> Result<Value> {
    Ok(serde_json::from_str(&cluster.kubectl(&["get", kind, name, "-o", "json"])?)?)
}

/// One address per family, IPv4 first.
fn both<'a>(texts: impl Iterator<Item = &'a str>) -> Result<[IpAddr; 2]> {
    let mut all: Vec<IpAddr> = texts.map(|text| Ok(text.parse()?)).collect::<Result<_>>()?;
    all.sort();
    <[IpAddr; 2]>::try_from(all).map_err(|all| anyhow::anyhow!("{all:?}: expected an address of each family"))
}

pub fn cluster_ips(cluster: &Cluster, name: &str) -> Result<[SocketAddr; 2]> {
    let object = get(cluster, "service", name)?;
    let ips = object["spec"]["clusterIPs"].as_array().context("clusterIPs")?;
    Ok(both(ips.iter().filter_map(Value::as_str))?.map(|ip| SocketAddr::new(ip, SERVICE_PORT)))
}

/// Through a ClusterIP, on one node and across nodes. Every scenario has a client of its own, so that none finds the
/// ports of another in use.
fn inside(cluster: &Cluster) -> Result<Vec<Scenario>> {
    const WAYS: [&str; 5] = ["direct", "direct-again", "hooked", "packet", "socket"];
    let mut wanted: Vec<(String, &str)> =
        vec![("near-server".to_owned(), "node-1"), ("far-server".to_owned(), "node-2")];
    for place in ["near", "far"] {
        wanted.extend(WAYS.map(|way| (format!("{place}-{way}"), "node-1")));
    }
    let named: Vec<(&str, &str)> = wanted.iter().map(|(name, node)| (name.as_str(), *node)).collect();
    let mut pods = cluster.pods(&named)?.into_iter();
    let (Some(near), Some(far)) = (pods.next(), pods.next()) else { anyhow::bail!("two servers were asked for") };
    let mut scenarios = Vec::new();
    for (place, server) in [("near", near), ("far", far)] {
        let app = format!("{place}-server");
        cluster.apply(&[service(&app, None)])?;
        let through = cluster_ips(cluster, &app)?;
        let base = format!("service-{place}/direct");
        for (way, client) in WAYS.iter().zip(pods.by_ref()) {
            room_for_connections(&client.ns)?;
            let name = format!("service-{place}/{}", way.replace("direct-again", "direct/again"));
            let mut scenario = Scenario::pods(&name, &base, &client, &server);
            scenario.port = SERVER_PORT;
            if *way == "hooked" || *way == "socket" {
                scenario.cgroup = Some(cgroup(cluster, "node-1", &client)?);
            }
            if *way == "packet" || *way == "socket" {
                scenario.through = Some(through);
                answers(&scenario)?;
            }
            if place == "near" {
                scenario.bases.push("base-near".to_owned());
            }
            scenarios.push(scenario);
        }
    }
    Ok(scenarios)
}

/// From outside through ports of node-1 to pods on node-2. `how`: end of the scenarios' names.
fn at_the_edge(cluster: &Cluster, how: &str) -> Result<Vec<Scenario>> {
    let outside = PathBuf::from(format!("/run/netns/weft-{}-outside", cluster.name()));
    room_for_connections(&outside)?;
    let node = get(cluster, "node", "node-1")?;
    let internal = node["status"]["addresses"].as_array().context("addresses")?.iter();
    let node = both(internal.filter(|one| one["type"] == "InternalIP").filter_map(|one| one["address"].as_str()))?;
    let mut scenarios = Vec::new();
    for (mode, port) in NODE_PORTS {
        let app = format!("edge-{mode}");
        let server = cluster.pods(&[(&app, "node-2")])?.pop().context("a pod was asked for")?;
        cluster.apply(&[service(&app, Some((mode, port)))])?;
        let name = format!("service-edge/{mode}{how}");
        let mut scenario = Scenario::new(&name, "base-edge", outside.clone(), server.ns.clone(), server.addresses);
        scenario.port = SERVER_PORT;
        scenario.through = Some(node.map(|ip| SocketAddr::new(ip, port)));
        answers(&scenario)?;
        scenarios.push(scenario);
    }
    Ok(scenarios)
}

/// Waits until the service is in force: until a first slice in each family succeeds.
pub fn answers(scenario: &Scenario) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    for family in 0..2 {
        while let Err(error) = scenario.slice(Metric::TcpRr, family, Duration::from_millis(20)) {
            if Instant::now() > deadline {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    Ok(())
}
