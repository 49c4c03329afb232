//! Traffic: same node, across nodes natively and by VXLAN, with policies and while observed, and the reference bridge
//! plugin, each against plain kernel forwarding over the same number of links.

use crate::chain::Chain;
use crate::cluster::Cluster;
use crate::cni::Bridge;
use crate::report::Report;
use crate::scenario::{Scenario, Settings, rounds};
use crate::traffic::Metric;
use anyhow::{Context, Result};
use serde_json::{Value, json};

/// The chains and the bridge plugin alone: what Weft is compared with, and whether this machine is quiet enough.
pub fn baseline(settings: &Settings) -> Result<Report> {
    let near = Chain::new("n", 1)?;
    let far = Chain::new("f", 3)?;
    let bridge = Bridge::new(&settings.cni_plugins).context("the reference bridge plugin")?;
    let scenarios = [
        Scenario::chain("base-near", "base-near", &near),
        Scenario::chain("base-near/again", "base-near", &near),
        bridged(&bridge)?,
        Scenario::chain("base-far", "base-far", &far),
        Scenario::chain("base-far/again", "base-far", &far),
    ];
    rounds(&scenarios, &Metric::ALL, settings)
}

fn bridged(bridge: &Bridge) -> Result<Scenario> {
    Ok(Scenario::new("bridge", "base-near", bridge.client(), bridge.server(), bridge.addresses()?))
}

/// A NetworkPolicy for pods labelled `app`, of `rules` rules, of which the last lets everything of the namespace in.
pub fn policy(app: &str, rules: usize) -> Value {
    let mut ingress: Vec<Value> = (1..rules)
        .map(|n| {
            json!({"from": [{"podSelector": {"matchLabels": {"bench": format!("peer-{n}")}}}],
                "ports": [{"protocol": "TCP", "port": 1000 + n}]})
        })
        .collect();
    ingress.push(json!({"from": [{"podSelector": {}}]}));
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": app, "namespace": "default"},
        "spec": {"podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Ingress"], "ingress": ingress}})
}

/// Measures all of it.
pub fn run(native: &Cluster, vxlan: &Cluster, settings: &Settings) -> Result<Report> {
    let near = Chain::new("n", 1)?;
    let far = Chain::new("f", 3)?;
    let pods = native.pods(&[
        ("client", "node-1"),
        ("plain", "node-1"),
        ("policy-1", "node-1"),
        ("policy-1000", "node-1"),
        ("remote", "node-2"),
    ])?;
    let [client, plain, one, thousand, remote] = pods.as_slice() else { anyhow::bail!("five pods were asked for") };
    native.apply(&[policy("policy-1", 1), policy("policy-1000", 1000)])?;
    for name in ["policy-1", "policy-1000"] {
        native.weft(&["policy", "wait", "--name", native.name(), &format!("default/{name}")])?;
    }
    let tunnel = vxlan.pods(&[("client", "node-1"), ("remote", "node-2")])?;
    let [tunnel_client, tunnel_remote] = tunnel.as_slice() else { anyhow::bail!("two pods were asked for") };
    let bridge = Bridge::new(&settings.cni_plugins).context("the reference bridge plugin")?;

    let mut observed = Scenario::pods("same-node/observe", "base-near", client, plain);
    observed.observe = vec![native.socket("node-1")];
    let scenarios = vec![
        Scenario::chain("base-near", "base-near", &near),
        Scenario::chain("base-near/again", "base-near", &near),
        Scenario::pods("same-node", "base-near", client, plain),
        Scenario::pods("same-node/policy-1", "base-near", client, one),
        Scenario::pods("same-node/policy-1000", "base-near", client, thousand),
        observed,
        bridged(&bridge)?,
        Scenario::chain("base-far", "base-far", &far),
        Scenario::chain("base-far/again", "base-far", &far),
        Scenario::pods("native", "base-far", client, remote),
        Scenario::pods("vxlan", "base-far", tunnel_client, tunnel_remote),
    ];
    rounds(&Scenario::wanted(scenarios, settings), &Metric::ALL, settings)
}
