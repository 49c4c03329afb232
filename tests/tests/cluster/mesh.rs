//! Every pod reaches every pod, the world and nobody it should not, in both families and both routing modes.

use anyhow::{Context as _, Result, ensure};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Command;
use weft_tests::cluster::{Cluster, PORT};
use weft_tests::service::{Case, Client, Expect};

#[test]
fn native() -> Result<()> {
    mesh("mn", "native")
}

#[test]
fn vxlan() -> Result<()> {
    mesh("mv", "vxlan")
}

fn mesh(label: &str, routing: &str) -> Result<()> {
    let cluster = Cluster::up(label, &["--routing", routing])?;
    cluster.kubectl(&["create", "deployment", "web", "--image=weft/toolbox", "--replicas=6"])?;
    let pods = cluster.pods("app=web", 6)?;
    let nodes: BTreeSet<&str> = pods.iter().map(|pod| pod.node.as_str()).collect();
    ensure!(nodes.len() == 3, "six replicas are on {nodes:?} only");
    for pod in &pods {
        ensure!(
            pod.addresses.len() == 2 && pod.addresses[0].is_ipv4() && pod.addresses[1].is_ipv6(),
            "{pod:?} has not an address per family"
        );
    }

    // All pairs, each pod with all of its own in one process.
    let mut all = Vec::new();
    for from in &pods {
        let mut cases = Vec::new();
        for protocol in ["tcp", "udp", "sctp"] {
            for to in &pods {
                let expect = Expect::from_any(&[&to.name]);
                let case = |address: &IpAddr| Case::new("a pod", protocol, *address, PORT, expect.clone());
                cases.extend(to.addresses.iter().map(case));
            }
        }
        all.push((Client::Pod(from.clone()), cases));
    }
    let wrong = cluster.all_failing(&all)?;
    ensure!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), all.len() * all[0].1.len(), wrong.join("\n"));
    world(&cluster, &pods[0])?;
    hosts(&cluster, &pods)?;
    let log = cluster.kubectl(&["logs", &pods[0].name])?;
    ensure!(log.contains("serves TCP, HTTP, UDP and SCTP"), "kubectl logs: {log}");

    let again = cluster.weft(&["up"])?;
    ensure!(again.contains("was up already"), "weft up again: {again}");
    cluster.kubectl(&["scale", "deployment", "web", "--replicas=1"])?;
    cluster.pods("app=web", 1)?;
    cluster.down()
}

/// The world sees the node's address, never the pod's.
fn world(cluster: &Cluster, from: &weft_tests::cluster::Pod) -> Result<()> {
    let outside: Vec<IpAddr> = vec!["198.51.100.10".parse()?, "2001:db8:100::10".parse()?];
    for options in ["--tcp", "--udp"] {
        for answer in cluster.connect(from, options, &outside, PORT)? {
            ensure!(answer.starts_with("ok pod=outside"), "{options}: {answer}");
            let seen = answer.split("peer=").nth(1).context("no peer in the answer")?;
            ensure!(seen.starts_with("172.31.0.") || seen.starts_with("[fd31::"), "the world saw {seen}");
        }
    }
    for address in outside {
        let ping = cluster.kubectl(&["exec", &from.name, "--", "/weft", "toolbox", "ping", &address.to_string()])?;
        ensure!(ping.starts_with("ok"), "ping {address}: {ping}");
    }
    Ok(())
}

/// A node reaches its own pods and those of other nodes.
fn hosts(cluster: &Cluster, pods: &[weft_tests::cluster::Pod]) -> Result<()> {
    for pod in pods {
        for address in &pod.addresses {
            let netns = format!("/run/netns/weft-{}-node-1", cluster.name());
            let output = Command::new(cluster.bin_dir().join("weft"))
                .args(["internal", "enter", "--netns", &netns, "--"])
                .arg(cluster.bin_dir().join("weft"))
                .args(["toolbox", "connect", &address.to_string()])
                .output()?;
            let answer = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(answer.starts_with("ok"), "node-1 -> {pod:?} {address}: {answer}");
        }
    }
    Ok(())
}
