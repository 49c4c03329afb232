//! 0 to 250 pods on a node whose addresses come one by one: is an ADD slower than where the node has a whole prefix, and do
//! the addresses go back?

use crate::cluster::Cluster;
use crate::cni::Attachments;
use crate::report::{Report, percentile};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// All that a node is made for.
const PODS: usize = 250;
/// How the pods come: all of them are there before the first ADD; so many at a time, and each time their ADDs at once.
const WAYS: [(&str, usize); 2] = [("at-once", PODS), ("in-waves", 10)];
/// The addresses must have gone back by then.
const SHRINK: Duration = Duration::from_secs(60);
/// Most of each family that a node without pods holds.
const REST_MAX: usize = 24;

/// Both modes, one after the other, and the ratio.
pub fn run(bin_dir: &Path) -> Result<Report> {
    let mut report = Report::default();
    let mut p99 = Vec::new();
    for ipam in ["cluster-pool", "azure-pod-subnet"] {
        let cluster = Cluster::up_with(bin_dir, &ipam[..1], &["--nodes", "1", "--ipam", ipam])?;
        // The first attachment of a node pays for what all others find.
        cluster.pods(&[("warm", "node-1")])?;
        // Cluster DNS among them.
        let there = cluster.kubectl(&["get", "pods", "-A", "-o", "name"])?.lines().count();
        for (way, wave) in WAYS {
            let scenario = format!("{ipam}/{way}");
            let mut attachments = Attachments::new(&cluster, "node-1", "default/p0", 0)?;
            let all: Vec<usize> = (there..PODS).collect();
            for pods in all.chunks(wave) {
                cluster.apply(&pods.iter().map(|n| pod(*n)).collect::<Vec<_>>())?;
                pods.iter().try_for_each(|n| attachments.add(&format!("p{n}")))?;
            }
            let times = attachments.add_ms.clone();
            report.plain(&scenario, "cni_add_p50", percentile(&times, 0.5), "ms", times.len());
            report.plain(&scenario, "cni_add_p99", percentile(&times, 0.99), "ms", times.len());
            report.plain(&scenario, "cni_add_max", percentile(&times, 1.0), "ms", times.len());
            p99.push(percentile(&times, 0.99));
            let full = if ipam == "cluster-pool" { None } else { Some(held(&cluster)?) };
            attachments.clear()?;
            cluster.kubectl(&["delete", "pods", "-l", "app=many", "--grace-period=0", "--force"])?;
            if let Some(full) = full {
                #[allow(clippy::cast_precision_loss, reason = "a few hundred")]
                let count = |n: usize| n as f64;
                let began = Instant::now();
                let rest = shrink(&cluster)?;
                report.plain(&scenario, "held_full", count(full), "addresses", 1);
                report.plain(&scenario, "held_at_rest", count(rest), "addresses", 1);
                report.plain(&scenario, "shrink", began.elapsed().as_secs_f64(), "s", 1);
            }
        }
    }
    for (n, (way, _)) in WAYS.iter().enumerate() {
        report.plain(&format!("ratio/{way}"), "cni_add_p99", p99[n + WAYS.len()] / p99[n], "", 1);
    }
    Ok(report)
}

/// A pod that the node's own runner leaves to us.
fn pod(n: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("p{n}"), "namespace": "default", "labels": {"app": "many"},
            "annotations": {"kubernetes.io/config.mirror": "bench"}},
        "spec": {"nodeName": "node-1", "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "main", "image": "weft/toolbox"}]}})
}

/// IPv4 addresses that the node's object says it holds.
fn held(cluster: &Cluster) -> Result<usize> {
    let node: Value = serde_json::from_str(&cluster.kubectl(&["get", "ciliumnode", "node-1", "-o", "json"])?)?;
    let pools = node["spec"]["ipam"]["pools"]["allocated"].as_array().context("no allocated pools")?;
    let cidrs = pools.iter().flat_map(|pool| pool["cidrs"].as_array().into_iter().flatten());
    Ok(cidrs.filter(|cidr| cidr.as_str().is_some_and(|text| text.contains('.'))).count())
}

fn shrink(cluster: &Cluster) -> Result<usize> {
    let until = Instant::now() + SHRINK;
    loop {
        let held = held(cluster)?;
        if held <= REST_MAX {
            return Ok(held);
        }
        if Instant::now() > until {
            bail!("the node still holds {held} addresses after {} s", SHRINK.as_secs());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
