//! From "apply" to the first dropped packet, enforcement off -> on included, among 100 policies and 100 endpoints.

use crate::cluster::{Client, Cluster, Pod};
use crate::cni::Attachments;
use crate::netns;
use crate::report::{Report, percentile};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const TIMES: usize = 20;

/// Measures it.
pub fn run(cluster: &Cluster) -> Result<Report> {
    let pods = cluster.pods(&[("apply-client", "node-1"), ("apply-server", "node-1")])?;
    let [client, server] = pods.as_slice() else { anyhow::bail!("two pods were asked for") };
    let _endpoints = Attachments::new(cluster, "node-1", "default/apply-client", 98)?;
    let others: Vec<Value> = (0..100).map(|n| crate::path::policy(&format!("other-{n}"), 3)).collect();
    cluster.apply(&others)?;
    cluster.weft(&["policy", "wait", "--name", cluster.name(), "default/other-99"])?;

    let deny = |n: usize| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": format!("deny-{n}"), "namespace": "default"},
            "spec": {"podSelector": {"matchLabels": {"app": "apply-server"}}, "policyTypes": ["Ingress"]}})
    };
    let api_client = cluster.client()?;
    let mut api = Vec::new();
    let mut drops = Vec::new();
    for n in 0..TIMES {
        let (accepted, dropped) = once(&api_client, client, server, &deny(n))?;
        api.push(accepted);
        drops.push(dropped);
        cluster.kubectl(&["delete", "networkpolicy", &format!("deny-{n}"), "--wait=true"])?;
        cluster.weft(&["policy", "wait", "--name", cluster.name(), "--gone", &format!("default/deny-{n}")])?;
    }
    let mut report = Report::default();
    report.plain("policy-off-on", "api_accepts_p50", percentile(&api, 0.5), "ms", TIMES);
    report.plain("policy-off-on", "policy_in_force_p50", percentile(&drops, 0.5), "ms", TIMES);
    report.plain("policy-off-on", "policy_in_force_p99", percentile(&drops, 0.99), "ms", TIMES);
    Ok(report)
}

/// Milliseconds from sending the object to the answer of the API server, and to the last packet that passed.
fn once(api: &Client, client: &Pod, server: &Pod, policy: &Value) -> Result<(f64, f64)> {
    let (stop, start) = (AtomicBool::new(false), Instant::now());
    let last_passed_ns = AtomicU64::new(0);
    let passed = AtomicU64::new(0);
    let address = SocketAddr::new(server.addresses[0], 7777);
    std::thread::scope(|scope| {
        scope.spawn(|| -> Result<()> {
            netns::enter(&server.ns)?;
            let socket = UdpSocket::bind(address)?;
            socket.set_read_timeout(Some(Duration::from_millis(20)))?;
            let mut buffer = [0; 64];
            while !stop.load(Ordering::Relaxed) {
                if socket.recv_from(&mut buffer).is_ok() {
                    last_passed_ns.store(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
                    passed.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(())
        });
        scope.spawn(|| -> Result<()> {
            netns::enter(&client.ns)?;
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            while !stop.load(Ordering::Relaxed) {
                // A refused send (the server socket is not there yet) is as good as a lost packet.
                if socket.send_to(&[0; 16], address).is_err() {
                    continue;
                }
                std::thread::sleep(Duration::from_micros(100));
            }
            Ok(())
        });
        let measured = (|| {
            wait(|| passed.load(Ordering::Relaxed) > 100, "packets to pass before the policy")?;
            let sent_ns = start.elapsed().as_nanos() as u64;
            api.create(policy)?;
            let accepted = (start.elapsed().as_nanos() as u64 - sent_ns) as f64 / 1e6;
            let now_ns = || start.elapsed().as_nanos() as u64;
            wait(
                || now_ns().saturating_sub(last_passed_ns.load(Ordering::Relaxed)) > 300_000_000,
                "the policy to take hold",
            )?;
            let last = last_passed_ns.load(Ordering::Relaxed);
            Ok((accepted, last.saturating_sub(sent_ns) as f64 / 1e6))
        })();
        stop.store(true, Ordering::Relaxed);
        measured
    })
}

fn wait(fact: impl Fn() -> bool, what: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !fact() {
        if Instant::now() > deadline {
            return Err(anyhow::anyhow!("waited 10 s for {what}")).context("policy benchmark");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
