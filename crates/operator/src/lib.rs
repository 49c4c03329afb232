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

use config::Config;
use metrics::Metrics;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
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
    metrics::serve(&config, &metrics, &stop).await?;
    leader::run(&config, &client, &stop, |term| duties(config.clone(), client.clone(), metrics.clone(), term)).await
}

/// The work of one term.
async fn duties(config: Config, client: Client, metrics: Metrics, term: CancellationToken) {
    metrics.leading.set(1);
    let crds = async {
        if !config.install_crds {
            return;
        }
        while let Err(error) = weft_k8s::crd::install_missing(&client).await {
            tracing::warn!(%error, "cannot create the custom resource definitions, trying again");
            tokio::time::sleep(CRD_RETRY).await;
        }
    };
    let (watched, known) = nodes::watch(client.clone(), term.clone());
    let readers = nodes::readers(client.clone(), term.clone());
    let work = async {
        tokio::join!(
            crds,
            ipam::run(&config, &client, watched),
            housekeeping::run(&config, &client, known.clone(), &metrics),
            batch::run(&config, &client, known, readers, &metrics),
            weft_k8s::status::run(&client, config.policies, term.clone()),
            services::run(&config, &client, term.clone()),
        );
    };
    // Dropping the work ends it at its next await: nothing is written after the term.
    tokio::select! {
        () = term.cancelled() => {}
        () = work => {}
    }
    metrics.leading.set(0);
}
