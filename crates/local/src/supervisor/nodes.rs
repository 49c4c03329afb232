//! Tells the fabric which pod prefixes each node has: exactly those of `Node.spec.podCIDRs`.

use crate::client::Client;
use crate::client::follow::{Change, follow};
use crate::cluster::options::Config;
use crate::fabric::{self, PodCidrs};
use ipnet::IpNet;
use serde_json::Value;
use std::time::Duration;
use tokio::sync::mpsc;

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
