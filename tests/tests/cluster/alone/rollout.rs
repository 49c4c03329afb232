//! A rolling update of ten backends under load: no new connection is refused or lost, and no stream to a backend that
//! stays is cut.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::IpAddr;
use weft_tests::cluster::{Cluster, Stream, eventually};
use weft_tests::quiet;
use weft_tests::service::{Client, target};

/// Of the deployment that is rolled.
const BACKENDS: usize = 10;
/// Behind the same service, left alone.
const STEADY: usize = 2;
/// New connections a second, and streams that stay: half of them in each family.
const RATE: usize = 500;
const STREAMS: usize = 100;
/// Seconds of load; the update must fit in.
const LOAD_S: u64 = 60;
/// How long a pod that shall end takes new connections, and how long it may take to end: as servers behind a service
/// must, it goes on until everybody knows, also where many things wait for one disk.
const DRAIN_S: u64 = 8;
const GRACE_S: u64 = 12;
/// A pod is ready once it listens, not once its process runs: else its first clients are refused, rightly.
const READY: &str = "readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}";

#[test]
fn at_sockets() -> Result<()> {
    rollout("ros", true)
}

#[test]
fn by_packet() -> Result<()> {
    rollout("rop", false)
}

fn deployment(name: &str, replicas: usize) -> String {
    format!(
        "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: {name}}}, spec: {{replicas: {replicas}, \
         selector: {{matchLabels: {{part: {name}}}}}, strategy: {{rollingUpdate: {{maxUnavailable: 1, maxSurge: 2}}}}, \
         template: {{metadata: {{labels: {{part: {name}, app: web}}}}, spec: {{terminationGracePeriodSeconds: {GRACE_S}, \
         containers: [{{name: toolbox, image: weft/toolbox, args: [serve, --drain, '{DRAIN_S}'], {READY}}}]}}}}}}}}"
    )
}

fn names(cluster: &Cluster, selector: &str, count: usize) -> Result<BTreeSet<String>> {
    Ok(cluster.pods(selector, count)?.into_iter().map(|pod| pod.name).collect())
}

fn rollout(label: &str, at_sockets: bool) -> Result<()> {
    let _quiet = quiet::alone()?;
    let cluster = Cluster::up(label, &["--nodes", "2", "--agent", &format!("socket-lb={at_sockets}")])?;
    cluster.apply(&format!("{}\n---\n{}", deployment("web", BACKENDS), deployment("steady", STEADY)))?;
    cluster.service("web", "selector: {app: web}, ports: [{port: 80, targetPort: 8080}]")?;
    let client = cluster.pod("client", "node-1", "role: client")?;
    let old = names(&cluster, "part=web", BACKENDS)?;
    let steady = names(&cluster, "part=steady", STEADY)?;
    let to = cluster.cluster_ips("web")?;
    for one in to {
        eventually("all backends to be in use", || {
            let pods = cluster.answering(&Client::Pod(client.clone()), &target("tcp", one, 80), 20 * BACKENDS)?;
            ensure!(pods.len() == BACKENDS + STEADY, "{pods:?}");
            Ok(())
        })?;
    }
    let load = |one: IpAddr| -> Result<Stream> {
        let options = format!("--hold {} --rate {} --duration {LOAD_S} --timeout 2", STREAMS / 2, RATE / 2);
        cluster.in_background(&client, "load", &options, (one, 80).into())
    };
    let mut loads = [load(to[0])?, load(to[1])?];
    for load in &mut loads {
        eventually("the streams", || {
            let report = load.report()?;
            ensure!(report["held"] == STREAMS / 2, "{report}");
            Ok(())
        })?;
    }
    cluster.kubectl(&["rollout", "restart", "deployment", "web"])?;
    cluster.kubectl(&["rollout", "status", "deployment", "web", "--timeout", &format!("{}s", LOAD_S - 10)])?;
    let new = names(&cluster, "part=web", BACKENDS)?;
    ensure!(new.is_disjoint(&old), "the update left {:?}", new.intersection(&old));
    let mut cut_by_old = 0;
    for load in loads {
        let report = load.finish().context("the load")?;
        cut_by_old += whole(&report, &steady, &old)?;
    }
    // Else nothing was shown: the update did end backends that were in use.
    ensure!(cut_by_old > 0, "no stream was to a backend that ended");
    ensure!(names(&cluster, "part=steady", STEADY)? == steady, "a backend that was to stay did not");
    cluster.down()
}

/// What a load reports is as it should be; the number of streams that ended with their backend.
fn whole(report: &Value, steady: &BTreeSet<String>, old: &BTreeSet<String>) -> Result<usize> {
    let count = |what: &str| report[what].as_u64().with_context(|| format!("no {what}: {report}"));
    let opened = count("opened")?;
    ensure!(opened > RATE as u64 / 2 * LOAD_S / 2, "the load was too little: {report}");
    ensure!(count("ok")? == opened, "connections were lost: {report}");
    let (held, broken) = (&report["held_by"], report["broken_by"].as_object().context("broken_by")?);
    ensure!(steady.iter().any(|pod| held[pod].as_u64() > Some(0)), "no stream to a backend that stays: {report}");
    for pod in broken.keys() {
        ensure!(!steady.contains(pod), "streams to {pod}, which stays, were cut: {report}");
        ensure!(old.contains(pod), "streams to {pod}, which is new, were cut: {report}");
    }
    Ok(broken.len())
}
