//! Tells the fabric which pod prefixes each node has: exactly those of `Node.spec.podCIDRs`.

use crate::fabric::{self, PodCidrs};
use ipnet::IpNet;
use serde_json::Value;
use std::time::Duration;
use tokio::sync::mpsc;
use weft_lab_client::Client;
use weft_lab_client::follow::{Change, follow};
use weft_lab_config::options::{Config, FABRIC_V4, FABRIC_V6, OUTSIDE_V4, OUTSIDE_V6};

/// Follows the nodes for ever.
pub(super) async fn follow_pod_cidrs(client: Client, config: Config) {
    let (sender, mut changes) = mpsc::channel(64);
    let watch = follow(client, "/api/v1/nodes".into(), String::new(), sender);
    let apply = async {
        let mut wanted = PodCidrs::new();
        while let Some(change) = changes.recv().await {
            let before = wanted.clone();
            match change {
                Change::All(nodes) => wanted = nodes.iter().filter_map(|n| pod_cidrs(n, &config)).collect(),
                Change::Put(node) => wanted.extend(pod_cidrs(&node, &config)),
                Change::Gone(node) => {
                    wanted.remove(node["metadata"]["name"].as_str().unwrap_or_default());
                }
            }
            if wanted != before {
                carry(&config, &wanted).await;
            }
        }
    };
    tokio::join!(watch, apply);
}

/// Follows what nodes have of shared pools, for ever.
pub(super) async fn follow_shares(client: Client, config: Config) {
    let (sender, mut changes) = mpsc::channel(64);
    let watch = follow(client, "/apis/cilium.io/v2/ciliumnodes".into(), String::new(), sender);
    let apply = async {
        let mut wanted = PodCidrs::new();
        while let Some(change) = changes.recv().await {
            let before = wanted.clone();
            match change {
                Change::All(nodes) => wanted = nodes.iter().filter_map(|n| shares(n, &config)).collect(),
                Change::Put(node) => wanted.extend(shares(&node, &config)),
                Change::Gone(node) => {
                    wanted.remove(node["metadata"]["name"].as_str().unwrap_or_default());
                }
            }
            if wanted != before {
                carry(&config, &wanted).await;
            }
        }
    };
    tokio::join!(watch, apply);
}

/// A node's prefixes of shared pools; none that are the nodes' own network or the outside.
fn shares(node: &Value, config: &Config) -> Option<(String, Vec<IpNet>)> {
    let name = node["metadata"]["name"].as_str().filter(|n| config.node_names().iter().any(|own| own == n))?;
    let pools = node["spec"]["ipam"]["pools"]["allocated"].as_array().into_iter().flatten();
    let texts = pools.flat_map(|pool| pool["cidrs"].as_array().into_iter().flatten()).filter_map(Value::as_str);
    let foreign = [FABRIC_V4.into(), FABRIC_V6.into(), OUTSIDE_V4.into(), OUTSIDE_V6.into()];
    let overlaps = |net: &IpNet| foreign.iter().any(|other: &IpNet| other.contains(net) || net.contains(other));
    let nets = texts.filter_map(|text| text.parse().ok()).filter(|net| !overlaps(net)).collect();
    Some((name.to_owned(), nets))
}

async fn carry(config: &Config, wanted: &PodCidrs) {
    for _ in 0..5 {
        match fabric::apply(config, wanted) {
            Ok(()) => {
                tracing::info!(?wanted, "the fabric carries");
                return;
            }
            Err(error) => tracing::error!(%error, "the fabric's routes"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// A node's prefixes; only those inside the pods' range, so that no node can claim somebody else's addresses.
fn pod_cidrs(node: &Value, config: &Config) -> Option<(String, Vec<IpNet>)> {
    let name = node["metadata"]["name"].as_str().filter(|n| config.node_names().iter().any(|own| own == n))?;
    let mut texts: Vec<&str> =
        node["spec"]["podCIDRs"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if texts.is_empty() {
        texts.extend(node["spec"]["podCIDR"].as_str());
    }
    let nets = texts
        .iter()
        .filter_map(|text| text.parse::<IpNet>().ok())
        .filter(|net| config.pod_cidrs.iter().any(|pool| pool.contains(net)))
        .collect();
    Some((name.to_owned(), nets))
}
