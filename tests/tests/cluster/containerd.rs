//! Debian's containerd as the runtime, driven through CRI: its pods have an address per family, reach and are reached,
//! obey NetworkPolicy, survive their runtime, and leave nothing.

use anyhow::{Context as _, Result, ensure};
use std::collections::BTreeSet;
use weft_tests::cluster::{Cluster, PORT, Pod, eventually};
use weft_tests::containerd::{Containerd, CriPod};
use weft_tests::node;

#[test]
fn native() -> Result<()> {
    containerd("ctn", "native")
}

#[test]
fn vxlan() -> Result<()> {
    containerd("ctv", "vxlan")
}

/// Two pods of containerd on one node, one of the embedded runner beside them, and one on another node.
struct Stage<'a> {
    cluster: &'a Cluster,
    runtime: Containerd<'a>,
    server: CriPod,
    client: CriPod,
    near: Pod,
    far: Pod,
}

fn containerd(label: &str, routing: &str) -> Result<()> {
    let cluster = Cluster::up(label, &["--routing", routing, "--nodes", "2", "--no-dns"])?;
    lives(&cluster)?;
    cluster.down()
}

fn lives(cluster: &Cluster) -> Result<()> {
    let near = cluster.pod("near", "node-1", "role: client")?;
    let far = cluster.pod("far", "node-2", "role: client")?;
    let without = eventually("other nodes' pods of the past to be forgotten", || {
        let state = node::state(cluster, "node-1")?;
        // Two nodes and two pods, an address of each family each.
        ensure!(state.contains("map \"IPCACHE\": 8 entries"), "{state:#?}");
        Ok(state)
    })?;

    let runtime = Containerd::start(cluster, "node-1")?;
    let before = everything(cluster, &runtime)?;
    let server = runtime.run_pod("server", "role: server")?;
    let client = runtime.run_pod("client", "role: client")?;
    let mut stage = Stage { cluster, runtime, server, client, near, far };
    addresses(&stage).context("addresses")?;
    mesh(&stage).context("everybody reaches everybody")?;
    policy(&stage).context("NetworkPolicy")?;
    nobody(&stage).context("a pod that is not there")?;

    stage.runtime.kill_and_start().context("containerd, killed")?;
    mesh(&stage).context("after containerd was killed")?;
    stopped(&stage).context("StopPodSandbox")?;
    let Stage { runtime, .. } = stage;
    eventually("nothing to be left of containerd's pods", || {
        let after = everything(cluster, &runtime)?;
        same(&before, &after)
    })?;
    runtime.stop()?;
    same(&without, &node::state(cluster, "node-1")?).context("containerd is gone")
}

fn everything(cluster: &Cluster, runtime: &Containerd<'_>) -> Result<BTreeSet<String>> {
    Ok(&node::state(cluster, "node-1")? | &runtime.state()?)
}

fn same(before: &BTreeSet<String>, after: &BTreeSet<String>) -> Result<()> {
    let differs: Vec<_> = before.symmetric_difference(after).collect();
    ensure!(differs.is_empty(), "differs: {differs:#?}");
    Ok(())
}

/// One address of each family, out of the node's prefixes; the agent has the same ones for this pod.
fn addresses(stage: &Stage<'_>) -> Result<()> {
    let node = stage.cluster.kubectl(&["get", "node", "node-1", "-o", "jsonpath={.spec.podCIDRs[*]}"])?;
    let prefixes: Vec<ipnet::IpNet> = node.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let endpoints = stage.cluster.weft_json(&["endpoint", "list", "--node", "node-1"])?;
    for one in [&stage.server, &stage.client] {
        let pod = &one.pod;
        let families: Vec<bool> = pod.addresses.iter().map(std::net::IpAddr::is_ipv4).collect();
        ensure!(families == [true, false], "{pod:?} has not an address per family");
        for address in &pod.addresses {
            ensure!(prefixes.iter().any(|prefix| prefix.contains(address)), "{address} is not of {prefixes:?}");
            let known = endpoints.as_array().context("endpoints")?.iter().map(ToString::to_string);
            let known = known.filter(|text| text.contains(&format!("\"{address}")) && text.contains(&pod.name));
            ensure!(known.count() == 1, "{address} of {} among {endpoints}", pod.name);
        }
    }
    Ok(())
}

/// Both families answer, and it is this pod that answers, to the asker's own address.
fn reaches(stage: &Stage<'_>, from: &CriPod, options: &str, to: &Pod) -> Result<()> {
    let answers = stage.runtime.connect(from, options, &to.addresses, PORT)?;
    for (answer, own) in answers.iter().zip(&from.pod.addresses) {
        let expected = answer.starts_with("ok") && answer.contains(&format!("pod={} ", to.name));
        ensure!(
            expected && answer.contains(&own.to_string()),
            "{} -> {} {options}: {answers:?}",
            from.pod.name,
            to.name
        );
    }
    Ok(())
}

/// Nothing comes back, in either family.
fn times_out(stage: &Stage<'_>, from: &CriPod, options: &str, to: &Pod) -> Result<()> {
    let answers = stage.runtime.connect(from, &format!("{options} --timeout 0.7"), &to.addresses, PORT)?;
    let all = answers.iter().all(|answer| answer == "timeout");
    ensure!(all, "{} -> {} {options}: {answers:?}, expected timeout", from.pod.name, to.name);
    Ok(())
}

fn mesh(stage: &Stage<'_>) -> Result<()> {
    let Stage { cluster, server, client, near, far, .. } = stage;
    for options in ["--tcp", "--udp"] {
        for from in [server, client] {
            for to in [&server.pod, &client.pod, near, far] {
                reaches(stage, from, options, to)?;
            }
        }
        for from in [near, far] {
            for to in [server, client] {
                cluster.reaches(from, options, &to.pod, PORT)?;
            }
        }
    }
    Ok(())
}

const SERVER: &str = "podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress]";

fn policy(stage: &Stage<'_>) -> Result<()> {
    let Stage { cluster, server, client, near, far, .. } = stage;
    cluster.policy("deny", &format!("{{{SERVER}}}"))?;
    for options in ["--tcp", "--udp"] {
        times_out(stage, client, options, &server.pod)?;
        cluster.times_out(near, options, &server.pod, PORT)?;
        cluster.times_out(far, options, &server.pod, PORT)?;
        reaches(stage, server, options, &client.pod)?;
    }
    // By labels of a pod that containerd runs, and of one on another node.
    cluster.policy(
        "allow",
        &format!(
            "{{{SERVER}, ingress: [{{from: [{{podSelector: {{matchLabels: {{app: client}}}}}}, \
             {{podSelector: {{matchLabels: {{app: far}}}}}}], ports: [{{port: {PORT}}}]}}]}}"
        ),
    )?;
    reaches(stage, client, "--tcp", &server.pod)?;
    cluster.reaches(far, "--tcp", &server.pod, PORT)?;
    times_out(stage, client, "--udp", &server.pod)?;
    cluster.times_out(near, "--tcp", &server.pod, PORT)?;
    cluster.no_policy("allow")?;
    cluster.no_policy("deny")?;

    cluster.policy("deny", "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress]}")?;
    times_out(stage, client, "--tcp", &server.pod)?;
    times_out(stage, client, "--udp", far)?;
    reaches(stage, server, "--tcp", &client.pod)?;
    cluster.no_policy("deny")
}

/// Without a Pod object there is no sandbox: what CNI answers reaches the caller, and containerd takes everything back.
fn nobody(stage: &Stage<'_>) -> Result<()> {
    let before = everything(stage.cluster, &stage.runtime)?;
    let error = match stage.runtime.run_sandbox("nobody", "0") {
        Ok(id) => anyhow::bail!("sandbox {id} was made"),
        Err(error) => format!("{error:#}"),
    };
    ensure!(error.contains("no such pod"), "another error: {error}");
    eventually("nothing to be left of it", || same(&before, &everything(stage.cluster, &stage.runtime)?))
}

/// A stopped pod is out of reach at once, stopping it again is fine, and its neighbour does not notice.
fn stopped(stage: &Stage<'_>) -> Result<()> {
    let Stage { cluster, runtime, server, client, far, .. } = stage;
    runtime.stop_pod(server)?;
    runtime.stop_pod(server)?;
    for answer in runtime.connect(client, "--timeout 0.7", &server.pod.addresses, PORT)? {
        ensure!(!answer.starts_with("ok"), "a stopped pod answers: {answer}");
    }
    for answer in cluster.connect(far, "--timeout 0.7", &server.pod.addresses, PORT)? {
        ensure!(!answer.starts_with("ok"), "a stopped pod answers: {answer}");
    }
    reaches(stage, client, "--tcp", far)?;
    runtime.remove_pod(server)?;
    ensure!(runtime.sandboxes()?.len() == 1, "sandboxes: {:?}", runtime.sandboxes()?);
    // Removing what runs stops it first.
    runtime.stop_pod(client)?;
    runtime.remove_pod(client)
}
