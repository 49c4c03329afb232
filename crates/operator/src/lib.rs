//! What a cluster needs once: pod CIDRs for its nodes, addresses for load balancers, a word on whether policies and
//! services are valid, slices made of CiliumEndpoints where agents read them, and the housekeeping of what nodes leave
//! behind.
//!
//! Any number of operators may run; one leads (a Lease decides), and only that one writes.
#![forbid(unsafe_code)]

pub mod batch;
pub mod config;
pub mod housekeeping;
pub mod ipam;
pub mod leader;
pub mod metrics;
pub mod nodes;
mod services;
pub mod shares;

use config::{Config, Mode};
use metrics::Metrics;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use weft_cloud::Cloud;
use weft_daemon::tasks::{EndedEarly, Tasks};
use weft_k8s::Client;

/// How often missing definitions are tried again.
const CRD_RETRY: Duration = Duration::from_secs(5);

/// Runs until `stop`: stands by, and while it leads, does the work.
///
/// # Errors
/// When the configuration does not allow even to begin.
pub async fn run(config: Config, client: Client, stop: CancellationToken) -> anyhow::Result<()> {
    // Nonsense in the pools is said at once, not by whoever comes to lead.
    ipam::pool(&config)?;
    let metrics = Metrics::new();
    let tasks = Tasks::new(stop.clone());
    metrics::serve(&config, &metrics, &tasks).await?;
    let duties = |term| duties(config.clone(), client.clone(), metrics.clone(), term);
    tokio::select! {
        led = leader::run(&config, &client, &stop, duties) => led,
        early = tasks.ended_early() => Err(early.into()),
    }
}

/// Gives nodes what they give their pods, as the mode says.
async fn addresses(
    config: &Config,
    client: &Client,
    mut nodes: tokio::sync::mpsc::Receiver<Vec<nodes::Event>>,
    term: &CancellationToken,
) {
    match config.mode() {
        Mode::ClusterPool => ipam::run(config, client, nodes).await,
        Mode::Elsewhere => while nodes.recv().await.is_some() {},
        Mode::MultiPool => shares::run(client, nodes, shares::Source::Pools, term).await,
        Mode::Cloud { v4, v6 } => {
            let cloud: Box<dyn Cloud> = match &config.cloud {
                config::Cloud::Unix(socket) => Box::new(weft_cloud::fabric::Fabric::new(socket.clone())),
                config::Cloud::Azure => {
                    let settings = weft_cloud::azure::Settings {
                        pod_subnet: config.pod_subnet_id.clone(),
                        client_id: config.azure_client_id.clone(),
                        ..weft_cloud::azure::Settings::default()
                    };
                    match weft_cloud::azure::Azure::new(&settings) {
                        Ok(azure) => Box::new(azure),
                        Err(error) => return tracing::error!(%error, "no addresses are given"),
                    }
                }
            };
            shares::run(client, nodes, shares::Source::Cloud { cloud, v4, v6 }, term).await;
        }
    }
}

/// The work of one term.
///
/// # Errors
/// A duty ended although the term goes on.
async fn duties(config: Config, client: Client, metrics: Metrics, term: CancellationToken) -> Result<(), EndedEarly> {
    metrics.leading.set(1);
    let (nodes, watched, known) = nodes::watch(client.clone(), term.clone());
    let (cilium_nodes, readers) = nodes::readers(client.clone(), term.clone());
    // Dropping the work ends it at its next await: nothing is written after the term.
    let ended = tokio::select! {
        biased;
        () = term.cancelled() => None,
        name = named("definitions", definitions(&config, &client)) => Some(name),
        name = named("nodes", nodes) => Some(name),
        name = named("cilium-nodes", cilium_nodes) => Some(name),
        name = named("addresses", addresses(&config, &client, watched, &term)) => Some(name),
        name = named("housekeeping", housekeeping::run(&config, &client, known.clone(), &metrics)) => Some(name),
        name = named("endpoint-slices", batch::run(&config, &client, known, readers, &metrics)) => Some(name),
        name = named("policy-status", weft_k8s::status::run(&client, config.policies(), term.clone())) => Some(name),
        name = named("services", services::run(&config, &client, term.clone())) => Some(name),
    };
    metrics.leading.set(0);
    match ended {
        None => Ok(()),
        Some(name) => Err(EndedEarly { name }),
    }
}

async fn named(name: &'static str, work: impl Future<Output = ()>) -> &'static str {
    work.await;
    name
}

/// Creates the custom resource definitions that are missing.
async fn definitions(config: &Config, client: &Client) {
    if config.install_crds {
        while let Err(error) = weft_k8s::crd::install_missing(client).await {
            tracing::warn!(%error, "cannot create the custom resource definitions, trying again");
            tokio::time::sleep(CRD_RETRY).await;
        }
    }
    std::future::pending().await
}
