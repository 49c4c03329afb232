//! What the programs cost, by the kernel's own run-time statistics.

use crate::cluster::Cluster;
use crate::path::policy;
use crate::report::{Figure, Report, median};
use crate::scenario::{Attempts, Scenario, Settings};
use crate::service_path::{SERVER_PORT, answers, cluster_ips, service};
use crate::traffic::{Metric, Way, slice};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Nanoseconds a run of each program: over slices of UDP request-response on established flows, and of TCP connections
/// of one exchange; straight to the pod, and packet by packet through a service.
pub fn run(cluster: &Cluster, settings: &Settings) -> Result<Report> {
    // A client for each way: a datagram straight to the backend from a port that the same client uses through the service is
    // ambiguous, and dropped.
    let pods = cluster.pods(&[
        ("cost-client", "node-1"),
        ("cost-service-client", "node-1"),
        ("cost-server", "node-1"),
        ("cost-remote", "node-2"),
    ])?;
    let [client, service_client, server, remote] = pods.as_slice() else { anyhow::bail!("four pods were asked for") };
    cluster.apply(&[policy("cost-server", 10), policy("cost-remote", 10)])?;
    for name in ["cost-server", "cost-remote"] {
        cluster.weft(&["policy", "wait", "--name", cluster.name(), &format!("default/{name}")])?;
    }
    let _statistics = aya::sys::enable_stats(aya::sys::Stats::RunTime).context("turn on run-time statistics")?;
    let mut ways = Vec::new();
    for (place, peer) in [("same-node", server), ("native", remote)] {
        let app = if place == "native" { "cost-remote" } else { "cost-server" };
        cluster.apply(&[service(app, None)])?;
        let frontends = cluster_ips(cluster, app)?;
        let mut scenario = Scenario::pods(app, app, service_client, peer);
        scenario.port = SERVER_PORT;
        scenario.through = Some(frontends);
        answers(&scenario)?;
        for (family, name) in ["ipv4", "ipv6"].into_iter().enumerate() {
            let way = Way {
                bind: SocketAddr::new(peer.addresses[family], SERVER_PORT),
                ..Way::direct(&client.ns, &peer.ns, peer.addresses[family])
            };
            let through = Way { client: &service_client.ns, through: Some(frontends[family]), ..way };
            ways.push((place.to_owned(), name, way));
            ways.push((format!("{place}-service"), name, through));
        }
    }
    let mut samples: BTreeMap<(String, &str, String), Vec<f64>> = BTreeMap::new();
    let mut attempts = Attempts::default();
    for _ in 0..settings.rounds {
        for (scenario, name, way) in &ways {
            for (metric, unit) in [(Metric::UdpRr, "prog_ns"), (Metric::TcpCrr, "crr_prog_ns")] {
                let (before, after) = attempts.measure(|| {
                    let before = totals()?;
                    slice(way, metric, settings.slice).with_context(|| format!("{scenario} {metric:?} {name}"))?;
                    Ok((before, totals()?))
                })?;
                let mut busy: BTreeMap<String, (f64, u64)> = BTreeMap::new();
                for (id, (program, time, runs)) in after {
                    let (old_time, old_runs) = before.get(&id).map_or((0.0, 0), |(_, time, runs)| (*time, *runs));
                    if runs - old_runs > 1000 {
                        let sum = busy.entry(program).or_default();
                        sum.0 += time - old_time;
                        sum.1 += runs - old_runs;
                    }
                }
                for (program, (time, runs)) in busy {
                    samples
                        .entry((format!("{scenario}/{program}"), *name, unit.into()))
                        .or_default()
                        .push(time / runs as f64);
                }
            }
        }
    }
    let mut report = Report::default();
    report.note(attempts.summary());
    for ((scenario, family, metric), values) in samples {
        report.add(Figure {
            scenario,
            metric,
            family: family.into(),
            value: median(&values),
            unit: "ns".into(),
            base: String::new(),
            ratio: None,
            rounds: values.len(),
            aa: None,
        });
    }
    Ok(report)
}

type Totals = BTreeMap<u32, (String, f64, u64)>;

fn totals() -> Result<Totals> {
    let mut totals = Totals::new();
    for program in aya::programs::loaded_programs() {
        let Ok(program) = program else { continue };
        if let Some(name) = program.name_as_str().filter(|name| name.starts_with("weft_")) {
            totals.insert(program.id(), (name.to_owned(), program.run_time().as_nanos() as f64, program.run_count()));
        }
    }
    Ok(totals)
}
