//! Clients outside and backends of other nodes, with real traffic: direct server return, and connections that pass
//! through the first node at its device (XDP).

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::net::IpAddr;
use std::time::Duration;
use weft_oracle::effort::effort;
use weft_tests::cluster::{Cluster, eventually};
use weft_tests::service::{Case, Client, Expect, OUTSIDE};

const NODE_PORT: u16 = 30_095;
const SNAT_PORT: u16 = 30_096;
/// Seconds of load in which the agents of both nodes are started again.
const RESTART_S: u64 = 20;
/// Addresses that the network takes to the first node.
const SERVED: [&str; 2] = ["203.0.113.7", "2001:db8:7::7"];

#[test]
fn direct_native() -> Result<()> {
    direct("en", "native", "disabled")
}

#[test]
fn direct_vxlan() -> Result<()> {
    direct("ev", "vxlan", "disabled")
}

#[test]
fn direct_native_at_the_device() -> Result<()> {
    direct("ex", "native", "native")
}

/// Node-1 is where clients come to; `far` is on node-2, `near` on node-1.
fn direct(label: &str, routing: &str, acceleration: &str) -> Result<()> {
    let acceleration = format!("node-port-acceleration={acceleration}");
    let accelerated = acceleration.ends_with("native");
    let cluster = Cluster::up(
        label,
        &[
            "--nodes",
            "2",
            "--routing",
            routing,
            "--node-port-mode",
            "dsr",
            "--fabric-route",
            "203.0.113.0/24=node-1",
            "--fabric-route",
            "2001:db8:7::/64=node-1",
            "--agent",
            &acceleration,
            "--agent",
            "external-ips-allowed=203.0.113.0/24,2001:db8:7::/64",
        ],
    )?;
    cluster.pod("far", "node-2", "role: server")?;
    cluster.pod("near", "node-1", "role: server")?;
    let spec = |selector: &str, port: u16| {
        let one = |name: &str, protocol: &str| {
            format!("{{name: {name}, port: 80, targetPort: 8080, protocol: {protocol}, nodePort: {port}}}")
        };
        format!("type: NodePort, selector: {{{selector}}}, ports: [{}, {}]", one("t", "TCP"), one("u", "UDP"))
    };
    let external = format!("externalIPs: [{:?}, {:?}], ", SERVED[0], SERVED[1]);
    cluster.service("far", &format!("{external}{}", spec("app: far", NODE_PORT)))?;
    cluster.service("both", &spec("role: server", NODE_PORT + 10))?;
    cluster.service("masked", &spec("app: far", SNAT_PORT))?;
    let snat = "service.cilium.io/forwarding-mode=snat";
    cluster.kubectl(&["annotate", "service", "masked", snat])?;

    let nodes = cluster.node_ips("node-1")?;
    let outside: [IpAddr; 2] = [OUTSIDE[0].parse()?, OUTSIDE[1].parse()?];
    let mut cases = Vec::new();
    for family in 0..2 {
        let served: IpAddr = SERVED[family].parse()?;
        for protocol in ["tcp", "udp"] {
            let seen = Expect::from("far", outside[family]);
            cases.push(Case::new("a port of the node", protocol, nodes[family], NODE_PORT, seen.clone()));
            cases.push(Case::new("an address of the service", protocol, served, 80, seen));
            let either = Expect::Answer { pods: vec!["near".into(), "far".into()], peers: vec![outside[family]] };
            cases.push(Case::new("backends here and there", protocol, nodes[family], NODE_PORT + 10, either));
            let masked = Expect::from("far", nodes[family]);
            cases.push(Case::new("a service that says otherwise", protocol, nodes[family], SNAT_PORT, masked));
        }
    }
    let all = [(Client::Outside, cases)];
    cluster.meets(&all)?;

    straight(&cluster, nodes, accelerated).context("answers go straight")?;
    sizes(&cluster, nodes).context("packets as large as they get")?;
    policies(&cluster, nodes, outside).context("policies")?;
    restarts(&cluster, nodes).context("agents that are killed")?;
    cluster.meets(&all)?;
    cluster.down()
}

/// Packets that came by a node's link into the fabric.
fn sent(cluster: &Cluster, node: &str) -> Result<u64> {
    let text = cluster.in_netns("fabric", &["cat", &format!("/sys/class/net/{node}/statistics/rx_packets")])?;
    Ok(text.trim().parse()?)
}

fn accelerated(cluster: &Cluster, node: &str) -> Result<u64> {
    let status: Value = serde_json::from_str(&cluster.weft(&["status", "--node", node, "-o", "json"])?)?;
    status["accelerated"].as_u64().with_context(|| format!("accelerated: {status}"))
}

/// The first node sends on what the client sends, and no answer.
fn straight(cluster: &Cluster, nodes: [IpAddr; 2], at_device: bool) -> Result<()> {
    let seconds = effort(1, 3);
    let packets = 1000 * seconds;
    for (port, direct) in [(NODE_PORT, true), (SNAT_PORT, false)] {
        for node in nodes {
            for protocol in ["udp", "tcp"] {
                let links = ["outside", "node-1", "node-2"];
                let count = || -> Result<Vec<u64>> { links.iter().map(|link| sent(cluster, link)).collect() };
                let (before, done_before) = (count()?, accelerated(cluster, "node-1")?);
                let options = format!("stream run --{protocol} --rate 1000 --duration {seconds} {node} {port}");
                let report = cluster.background_in("outside", &options)?.finish()?;
                ensure!(report["sent"] == packets && report["lost"] == 0 && report["error"] == Value::Null, "{report}");
                let after = count()?;
                let [client, first, second] = [0, 1, 2].map(|n| after[n] - before[n]);
                let done = accelerated(cluster, "node-1")? - done_before;
                let what = format!(
                    "{node} {protocol}, direct: {direct}: {client} by the client, {first} by node-1, {second} by node-2, \
                     {done} at the device"
                );
                println!("{what}");
                ensure!(protocol == "tcp" || client >= packets && second >= packets, "{what}");
                // By the first node go the client's packets, and the answers unless they go straight.
                let back = first as f64 - client as f64;
                ensure!(if direct { back < second as f64 / 2.0 } else { back > second as f64 / 2.0 }, "{what}");
                ensure!(if at_device { done >= first / 2 } else { done == 0 }, "{what}");
            }
        }
    }
    Ok(())
}

/// Segments and datagrams that fill the network's packets, and datagrams that do not fit one.
fn sizes(cluster: &Cluster, nodes: [IpAddr; 2]) -> Result<()> {
    for node in nodes {
        for (protocol, size) in [("tcp", 8192), ("udp", 1400), ("udp", 1452), ("udp", 4000)] {
            // The first ones may only teach the client how large packets may be.
            let options = format!("stream run --{protocol} --rate 200 --duration 1 --size {size} {node} {NODE_PORT}");
            cluster.background_in("outside", &options)?.finish()?;
            let report = cluster.background_in("outside", &options)?.finish()?;
            ensure!(report["lost"] == 0 && report["error"] == Value::Null, "{size} bytes by {protocol}: {report}");
        }
    }
    Ok(())
}

/// The backend's policy is asked about the client itself.
fn policies(cluster: &Cluster, nodes: [IpAddr; 2], outside: [IpAddr; 2]) -> Result<()> {
    let allow = |blocks: &[String]| {
        let from: Vec<String> = blocks.iter().map(|block| format!("{{ipBlock: {{cidr: {block:?}}}}}")).collect();
        let from = from.join(", ");
        cluster
            .policy("client", &format!("{{podSelector: {{matchLabels: {{app: far}}}}, ingress: [{{from: [{from}]}}]}}"))
    };
    let cases = |expect: [Expect; 2]| {
        let mut cases = Vec::new();
        for (node, expect) in nodes.into_iter().zip(expect) {
            for protocol in ["tcp", "udp"] {
                cases.push(Case::new("under a policy", protocol, node, NODE_PORT, expect.clone()));
            }
        }
        [(Client::Outside, cases)]
    };
    allow(&[format!("{}/32", outside[0]), format!("{}/128", outside[1])])?;
    cluster.meets(&cases(outside.map(|one| Expect::from("far", one))))?;
    allow(&[format!("{}/32", nodes[0]), format!("{}/128", nodes[1])])?;
    cluster.meets(&cases([Expect::Timeout, Expect::Timeout]))?;
    cluster.no_policy("client")
}

/// What the nodes dropped.
fn drops(cluster: &Cluster) -> Result<String> {
    let nodes = ["node-1", "node-2"].map(|node| cluster.weft(&["status", "--node", node]));
    let mut lines = Vec::new();
    for text in nodes {
        lines.extend(text?.lines().filter(|line| line.starts_with("dropped")).map(str::to_owned));
        lines.push(String::new());
    }
    Ok(lines.join("\n"))
}

/// Connections and streams outlive both nodes' agents, and new ones are made meanwhile.
fn restarts(cluster: &Cluster, nodes: [IpAddr; 2]) -> Result<()> {
    let mut loads = Vec::new();
    let mut streams = Vec::new();
    for node in nodes {
        let options = format!("load --hold 20 --rate 50 --duration {RESTART_S} --timeout 3 {node} {NODE_PORT}");
        loads.push(cluster.background_in("outside", &options)?);
        let options = format!("stream run --udp --rate 500 --duration {RESTART_S} {node} {NODE_PORT}");
        streams.push(cluster.background_in("outside", &options)?);
    }
    std::thread::sleep(Duration::from_secs(1));
    for name in ["node-1", "node-2"] {
        let old = cluster.kill(&format!("agent-{name}"))?;
        cluster.agent_again(name, old)?;
    }
    for load in loads {
        let report = load.finish().context("the load")?;
        let well = report["held"] == 20 && report["broken"] == 0 && report["ok"] == report["opened"];
        let dropped = if well { String::new() } else { drops(cluster)? };
        ensure!(well, "{report}\n{dropped}");
    }
    for stream in streams {
        let report = stream.finish().context("the stream")?;
        ensure!(report["lost"] == 0 && report["error"] == Value::Null, "{report}");
    }
    Ok(())
}

/// With the node's address, at its device.
#[test]
fn masked_at_the_device() -> Result<()> {
    let cluster = Cluster::up("em", &["--nodes", "2", "--agent", "node-port-acceleration=native"])?;
    cluster.pod("far", "node-2", "role: server")?;
    let one = |name: &str, protocol: &str| {
        format!("{{name: {name}, port: 80, targetPort: 8080, protocol: {protocol}, nodePort: {NODE_PORT}}}")
    };
    let ports = format!("ports: [{}, {}]", one("t", "TCP"), one("u", "UDP"));
    cluster.service("far", &format!("type: NodePort, selector: {{app: far}}, {ports}"))?;
    let nodes = cluster.node_ips("node-1")?;
    let mut cases = Vec::new();
    for node in nodes {
        for protocol in ["tcp", "udp"] {
            cases.push(Case::new("a port of the node", protocol, node, NODE_PORT, Expect::from("far", node)));
        }
    }
    cluster.meets(&[(Client::Outside, cases.clone())])?;
    for node in nodes {
        for protocol in ["udp", "tcp"] {
            let before = accelerated(&cluster, "node-1")?;
            let options = format!("stream run --{protocol} --rate 1000 --duration 3 {node} {NODE_PORT}");
            let report = cluster.background_in("outside", &options)?.finish()?;
            ensure!(report["sent"] == 3000 && report["lost"] == 0 && report["error"] == Value::Null, "{report}");
            let done = accelerated(&cluster, "node-1")? - before;
            println!("{node} {protocol}: {done} packets at the device");
            ensure!(done >= if protocol == "udp" { 5900 } else { 3000 }, "{done} packets at the device");
        }
    }
    sizes(&cluster, nodes)?;
    restarts(&cluster, nodes)?;
    // Pods reach the outside and each other as ever.
    let near = cluster.pod("near", "node-1", "role: client")?;
    let far = cluster.pods("app=far", 1)?.remove(0);
    cluster.reaches(&near, "--tcp", &far, 8080)?;
    // Somebody who looks sees the flows: they pass by the program that tells.
    let observer = cluster.observer()?;
    eventually("packets to pass by the program that tells", || {
        let before = accelerated(&cluster, "node-1")?;
        let options = format!("stream run --udp --rate 1000 --duration 1 {} {NODE_PORT}", nodes[0]);
        let report = cluster.background_in("outside", &options)?.finish()?;
        ensure!(report["lost"] == 0, "{report}");
        let done = accelerated(&cluster, "node-1")? - before;
        ensure!(done == 0, "{done} packets at the device");
        Ok(())
    })?;
    drop(observer);
    cluster.meets(&[(Client::Outside, cases)])?;
    cluster.down()
}
