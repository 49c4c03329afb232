//! What a cluster needs once: pod CIDRs for its nodes, and the housekeeping of what nodes leave behind.
//!
//! Any number of operators may run; one leads (a Lease decides), and only that one writes.
#![forbid(unsafe_code)]

pub mod config;
pub mod housekeeping;
pub mod ipam;
pub mod leader;
pub mod nodes;

use config::Config;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use weft_k8s::Client;

/// Runs until `stop`: stands by, and while it leads, does the work.
///
/// # Errors
/// When the configuration does not allow even to begin.
pub async fn run(config: Config, client: Client, stop: CancellationToken) -> anyhow::Result<()> {
    // Nonsense in the pools is said at once, not by whoever comes to lead.
    ipam::pool(&config)?;
    leader::run(&config, &client, &stop, |term| duties(config.clone(), client.clone(), term)).await
}

/// The work of one term.
async fn duties(config: Config, client: Client, term: CancellationToken) {
    let crds = async {
        while config.install_crds {
            match weft_k8s::crd::install_missing(&client).await {
                Ok(()) => break,
                Err(error) => tracing::warn!(%error, "cannot create the custom resource definitions, trying again"),
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    };
    let (watched, known) = nodes::watch(client.clone(), term.clone());
    let work = async {
        tokio::join!(
            crds,
            ipam::run(&config, &client, watched),
            housekeeping::run(&config, &client, known),
        );
    };
    // Dropping the work ends it at its next await: nothing is written after the term.
    tokio::select! {
        () = term.cancelled() => {}
        () = work => {}
    }
}
