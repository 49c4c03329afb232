//! Killing the agent costs services nothing: no connection that is open, none that is opened while it is away, and what
//! changed meanwhile holds once it is back.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::time::{Duration, Instant};
use weft_oracle::effort::effort;
use weft_tests::cluster::{Cluster, eventually};
use weft_tests::service::{Case, Client, Expect};

/// How often the agents are killed: in the gate, and in a run of full size.
const KILLS: [usize; 2] = [4, 10];
/// Seconds of load in a round, and when no more kills begin in it.
const LOAD_S: u64 = 25;
const KILL_UNTIL_S: u64 = 17;
const NODE_PORT: u16 = 30_090;

#[test]
fn at_sockets() -> Result<()> {
    killed("srs", true)
}

#[test]
fn by_packet() -> Result<()> {
    killed("srp", false)
}

fn killed(label: &str, at_sockets: bool) -> Result<()> {
    let cluster = Cluster::up(label, &["--nodes", "2", "--agent", &format!("socket-lb={at_sockets}")])?;
    cluster.pod("near", "node-1", "role: server")?;
    cluster.pod("far", "node-2", "role: server")?;
    let client = cluster.pod("client", "node-1", "role: client")?;
    let port = |name: &str, protocol: &str| {
        format!("{{name: {name}, port: 80, targetPort: 8080, protocol: {protocol}, nodePort: {NODE_PORT}}}")
    };
    let ports = format!("ports: [{}, {}]", port("t", "TCP"), port("u", "UDP"));
    cluster.service("web", &format!("type: NodePort, selector: {{role: server}}, {ports}"))?;
    let (to, node) = (cluster.cluster_ips("web")?, cluster.node_ips("node-1")?);
    let both = Expect::from_any(&["near", "far"]);
    let mut cases = Vec::new();
    for family in 0..2 {
        for protocol in ["tcp", "udp"] {
            cases.push(Case::new("ClusterIP", protocol, to[family], 80, both.clone()));
            cases.push(Case::new("NodePort", protocol, node[family], NODE_PORT, both.clone()));
        }
    }
    let all = [(Client::Pod(client.clone()), cases.clone()), (Client::Outside, outside_only(&cases))];
    cluster.meets(&all)?;

    let most = effort(KILLS[0], KILLS[1]);
    let mut kills = 0;
    for round in 0.. {
        if kills == most {
            break;
        }
        ensure!(round < most, "only {kills} kills in {round} rounds");
        let began = Instant::now();
        let mut loads = Vec::new();
        for family in 0..2 {
            let load = format!("--hold 20 --rate 100 --duration {LOAD_S} --timeout 2");
            loads.push(cluster.in_background(&client, "load", &load, (to[family], 80).into())?);
            let through = format!("load {load} {} {NODE_PORT}", node[family]);
            loads.push(cluster.background_in("outside", &through)?);
        }
        let mut streams = Vec::new();
        for family in 0..2 {
            let stream = format!("--udp --rate 1000 --duration {LOAD_S}");
            streams.push(cluster.in_background(&client, "stream run", &stream, (to[family], 80).into())?);
            let through = format!("stream run {stream} {} {NODE_PORT}", node[family]);
            streams.push(cluster.background_in("outside", &through)?);
        }
        while kills < most && began.elapsed() < Duration::from_secs(KILL_UNTIL_S) {
            let name = ["node-1", "node-2"][kills % 2];
            let old = cluster.kill(&format!("agent-{name}"))?;
            // Something to catch up with: a service that comes, and one that goes.
            let extra = "selector: {role: server}, ports: [{port: 80, targetPort: 8080}]";
            cluster.service(&format!("extra-{kills}"), extra)?;
            if kills > 0 {
                cluster.kubectl(&["delete", "service", &format!("extra-{}", kills - 1)])?;
            }
            cluster.agent_again(name, old).with_context(|| format!("after kill {kills}"))?;
            kills += 1;
        }
        for load in loads {
            let report = load.finish().context("the load")?;
            ensure!(report["held"] == 20 && report["broken"] == 0, "open connections: {report}");
            let opened = report["opened"].as_u64().context("opened")?;
            ensure!(report["ok"] == opened && opened > 50 * LOAD_S, "new connections: {report}");
        }
        for stream in streams {
            let report = stream.finish().context("the stream")?;
            ensure!(report["lost"] == 0 && report["error"] == Value::Null, "packets of a stream: {report}");
            ensure!(report["sent"] == 1000 * LOAD_S, "the stream was too little: {report}");
        }
    }
    cluster.meets(&all)?;
    let newest = cluster.cluster_ips(&format!("extra-{}", most - 1))?;
    let cases = newest.map(|to| Case::new("a service that came meanwhile", "tcp", to, 80, both.clone())).to_vec();
    cluster.meets(&[(Client::Pod(client), cases)])?;
    eventually("the services that went", || {
        let list = cluster.weft(&["service", "list"])?;
        for n in 0..most - 1 {
            ensure!(!list.contains(&format!("default/extra-{n} ")), "extra-{n} is still there: {list}");
        }
        Ok(())
    })?;
    cluster.down()
}

/// Who is outside reaches the ports of nodes only.
fn outside_only(cases: &[Case]) -> Vec<Case> {
    cases.iter().filter(|case| case.what == "NodePort").cloned().collect()
}
