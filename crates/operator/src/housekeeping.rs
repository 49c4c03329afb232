//! What is left behind: slices and CiliumNodes of nodes that are gone, CiliumEndpoints without a pod, identities that
//! nobody uses.
//!
//! Slow and careful: nothing is deleted on first sight, every deletion is conditional on the version that was judged,
//! and an agent that misses an identity of its own makes it anew under the same number.

use crate::config::Config;
use crate::metrics::Metrics;
use crate::nodes::Known;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use weft_k8s::identity::Held;
use weft_k8s::{Client, Error, endpoint, identity, node, pod, slice};

/// Writes to identities in one round, at most.
const IDENTITIES_PER_ROUND: usize = 500;

/// What a round remembers for the next.
#[derive(Default)]
pub struct Memory {
    /// Nodes (as in slices' labels) that were missing, since when.
    missing: BTreeMap<String, Instant>,
    /// Identities that were unused, since when.
    unused: BTreeMap<u32, Instant>,
    /// CiliumEndpoints that had no pod in the last round, by UID.
    orphans: BTreeSet<String>,
}

/// Rounds, until it is dropped.
pub(crate) async fn run(config: &Config, client: &Client, mut known: Known, metrics: &Metrics) {
    let Some(interval) = config.gc_seconds else { return std::future::pending().await };
    let mut memory = Memory::default();
    loop {
        // Without all nodes known every node would seem gone.
        let Ok(nodes) = known.wait_for(Option::is_some).await.map(|nodes| nodes.clone().unwrap_or_default()) else {
            return;
        };
        let names: BTreeSet<String> = nodes.keys().cloned().collect();
        if let Err(error) = round(config, client, &names, &mut memory, metrics).await {
            tracing::warn!(%error, "housekeeping failed, trying again later");
        }
        // A missing node is looked at again when its grace is over, and a node that goes is noticed at once.
        let next = if memory.missing.is_empty() { interval } else { interval.min(config.node_grace_seconds) };
        let next = next.max(Duration::from_millis(100));
        let _ = tokio::time::timeout(next, one_gone(&mut known, &names)).await;
    }
}

/// Waits until one of `names` is a node no more.
async fn one_gone(known: &mut Known, names: &BTreeSet<String>) {
    let gone = |nodes: &Option<Arc<BTreeMap<String, String>>>| {
        nodes.as_ref().is_some_and(|nodes| names.iter().any(|name| !nodes.contains_key(name)))
    };
    // An error means that the watch has ended, which the next round finds out.
    let _ = known.wait_for(gone).await;
}

/// One round. `nodes`: the nodes that exist.
///
/// # Errors
/// The first request that failed; what was done until then stays done.
pub async fn round(
    config: &Config,
    client: &Client,
    nodes: &BTreeSet<String>,
    memory: &mut Memory,
    metrics: &Metrics,
) -> Result<(), Error> {
    // Identities before those who use them: one that is made meanwhile is not judged, one that is put to use meanwhile
    // is seen to be used.
    let identities = match config.identity_grace_seconds {
        Some(_) => Some(identity::list(client).await?),
        None => None,
    };
    let slices = slice::list(client).await?;
    let labels: BTreeSet<String> = nodes.iter().map(|name| slice::label_value(name)).collect();
    let mut missing: BTreeSet<String> =
        slices.iter().filter_map(|slice| slice.node.clone()).filter(|node| !labels.contains(node)).collect();
    let orphans: Vec<String> =
        node::list_cilium_nodes(client).await?.into_iter().filter(|name| !nodes.contains(name)).collect();
    missing.extend(orphans.iter().map(|name| slice::label_value(name)));
    let now = Instant::now();
    memory.missing.retain(|node, _| missing.contains(node));
    for node in missing {
        memory.missing.entry(node).or_insert(now);
    }
    let over = |node: &str| memory.missing.get(node).is_some_and(|since| now - *since >= config.node_grace_seconds);
    for slice in slices.iter().filter(|slice| slice.node.as_deref().is_some_and(over)) {
        let owner = slice.node.as_deref().unwrap_or_default();
        // The watch may lag: ask once more (a label that is a hash names no node, so there the watch must do).
        if owner.len() > 63 || !node::exists(client, owner).await.unwrap_or(true) {
            tracing::info!(slice = slice.name, node = owner, "deleting an endpoint slice of a node that is gone");
            ignore_conflict(slice::delete(client, slice).await)?;
            metrics.collected.get_or_create(&vec![("kind", "slice")]).inc();
        }
    }
    for name in orphans.iter().filter(|name| over(&slice::label_value(name))) {
        if !node::exists(client, name).await.unwrap_or(true) {
            tracing::info!(node = name, "deleting the CiliumNode of a node that is gone");
            node::delete_cilium_node(client, name).await?;
            metrics.collected.get_or_create(&vec![("kind", "node")]).inc();
        }
    }
    let endpoints = endpoint::list(client).await?;
    orphans_of_pods(client, &endpoints, memory, metrics).await?;
    if let (Some(identities), Some(grace)) = (identities, config.identity_grace_seconds) {
        let mut used: BTreeSet<u32> = slices.iter().flat_map(|slice| slice.identities.iter().copied()).collect();
        used.extend(endpoints.iter().map(|endpoint| endpoint.identity));
        let (began, all) = (Instant::now(), identities.len());
        let outcome = collect(client, identities, &used, grace, memory).await;
        let label = vec![("outcome", if outcome.is_ok() { "success" } else { "fail" })];
        metrics.identity_rounds.get_or_create(&label).inc();
        metrics.identity_latency.get_or_create(&label).set(began.elapsed().as_secs_f64());
        let deleted = outcome?;
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        metrics.identities.get_or_create(&vec![("status", "alive")]).set(count(all - deleted));
        metrics.identities.get_or_create(&vec![("status", "deleted")]).set(count(deleted));
    }
    Ok(())
}

/// CiliumEndpoints whose pods are gone, though nobody collected them: seen twice, and asked once more.
async fn orphans_of_pods(
    client: &Client,
    endpoints: &[endpoint::Listed],
    memory: &mut Memory,
    metrics: &Metrics,
) -> Result<(), Error> {
    if endpoints.is_empty() {
        memory.orphans.clear();
        return Ok(());
    }
    // Pods after their endpoints: a pod that comes meanwhile has no endpoint here yet.
    let pods = pod::uids(client).await?;
    let orphaned = |endpoint: &&endpoint::Listed| {
        !endpoint.pod_uid.is_empty() && pods.get(&endpoint.name) != Some(&endpoint.pod_uid)
    };
    let before = std::mem::take(&mut memory.orphans);
    for endpoint in endpoints.iter().filter(orphaned) {
        if !before.contains(&endpoint.uid) {
            memory.orphans.insert(endpoint.uid.clone());
            continue;
        }
        let now = pod::get(client, &endpoint.name).await?;
        if now.is_none_or(|pod| pod.uid != endpoint.pod_uid) {
            tracing::info!(endpoint = %endpoint.name, "deleting a CiliumEndpoint whose pod is gone");
            endpoint::remove(client, endpoint).await?;
            metrics.endpoints_collected.get_or_create(&vec![("outcome", "success")]).inc();
        }
    }
    Ok(())
}

/// Marks what is unused, unmarks what is used again, deletes what has been unused for long enough: by the mark, so that
/// it survives a change of leaders, and by our own clock, so that a wrong clock elsewhere cannot hurry it.
async fn collect(
    client: &Client,
    identities: Vec<Held>,
    used: &BTreeSet<u32>,
    grace: Duration,
    memory: &mut Memory,
) -> Result<usize, Error> {
    let now = Instant::now();
    let exists: BTreeSet<u32> = identities.iter().map(|held| held.identity.raw()).collect();
    memory.unused.retain(|number, _| exists.contains(number) && !used.contains(number));
    let (mut writes, mut deleted) = (0, 0);
    for held in identities {
        if writes >= IDENTITIES_PER_ROUND {
            break;
        }
        let number = held.identity.raw();
        let marked: Option<jiff::Timestamp> = held.unused_since.as_ref().and_then(|since| since.parse().ok());
        match (used.contains(&number), marked) {
            (true, _) if held.unused_since.is_some() => ignore_conflict(identity::mark(client, &held, None).await)?,
            (true, _) => continue,
            (false, None) => {
                memory.unused.insert(number, now);
                let since = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
                ignore_conflict(identity::mark(client, &held, Some(&since)).await)?;
            }
            (false, Some(since)) => {
                let seen = *memory.unused.entry(number).or_insert(now);
                let by_mark = jiff::Timestamp::now().duration_since(since);
                // Two rounds of ours, or the whole grace where that is shorter.
                let ours = (now - seen) >= grace.min(Duration::from_secs(600));
                if !ours || by_mark < jiff::SignedDuration::try_from(grace).unwrap_or(jiff::SignedDuration::MAX) {
                    continue;
                }
                tracing::info!(identity = number, "deleting an identity that nobody uses");
                ignore_conflict(identity::delete(client, &held).await)?;
                memory.unused.remove(&number);
                deleted += 1;
            }
        }
        writes += 1;
    }
    Ok(deleted)
}

/// Somebody changed it in between: it is judged anew in the next round.
fn ignore_conflict(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.is_conflict() || error.is_not_found() => Ok(()),
        other => other,
    }
}
