//! Leader election by a Lease. A leader that cannot renew it stops its duties before another operator may take it.

use crate::config::Config;
use anyhow::Context;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weft_daemon::tasks::EndedEarly;
use weft_k8s::Client;
use weft_k8s::lease::{Candidate, Standing};

/// Name of the Lease.
pub const LEASE: &str = "weft-operator";

/// Competes for the lease until `stop`; runs `duties` while it holds it. These must last until their term ends.
///
/// # Errors
/// The lease's names cannot be names, or the duties ended before their term: the lease is released for another operator.
pub async fn run<D, F>(config: &Config, client: &Client, stop: &CancellationToken, duties: D) -> anyhow::Result<()>
where
    D: Fn(CancellationToken) -> F,
    F: Future<Output = Result<(), EndedEarly>> + Send + 'static,
{
    let duration = config.lease_seconds;
    let identity = identity();
    let mut candidate =
        Candidate::new(&config.lease_namespace, LEASE, identity.clone(), duration).context("lease-namespace")?;
    let mut leader_seen = String::new();
    while !stop.is_cancelled() {
        match candidate.stand(client, Instant::now()).await {
            Ok(Standing::Leader) => {
                tracing::info!(identity, "leading");
                let term = stop.child_token();
                let mut work = JoinSet::new();
                work.spawn(duties(term.clone()));
                let ended = tokio::select! {
                    () = hold(&mut candidate, client, duration, &term) => {
                        term.cancel();
                        work.join_next().await
                    }
                    ended = work.join_next() => ended,
                };
                let early = !term.is_cancelled();
                term.cancel();
                if early || stop.is_cancelled() {
                    resign(&mut candidate, client).await;
                }
                if let Some(ended) = ended {
                    ended.context("a duty of the leader failed")?.context("the leader cannot do its duties")?;
                }
                anyhow::ensure!(!early, "the leader's duties ended before their term");
                if stop.is_cancelled() {
                    return Ok(());
                }
                tracing::warn!(identity, "lost the lease, standing by");
                leader_seen.clear();
            }
            Ok(Standing::Standby { leader }) => {
                if leader != leader_seen {
                    tracing::info!(leader, "standing by");
                    leader_seen = leader;
                }
            }
            Err(error) => tracing::warn!(%error, lease = LEASE, "cannot read or take the lease, trying again"),
        }
        pause(duration / 7, stop).await;
    }
    Ok(())
}

/// Renews until the term ends, another operator holds the lease, or it could not be renewed for two thirds of its
/// duration: the last third is the margin within which all our writes have ended.
async fn hold(candidate: &mut Candidate, client: &Client, duration: Duration, term: &CancellationToken) {
    let renew_timeout = duration * 2 / 3;
    let mut renewed = Instant::now();
    loop {
        pause(duration / 7, term).await;
        if term.is_cancelled() {
            return;
        }
        let began = Instant::now();
        let answer = tokio::time::timeout_at(renewed + renew_timeout, candidate.stand(client, began)).await;
        match answer {
            Ok(Ok(Standing::Leader)) => renewed = began,
            Ok(Ok(Standing::Standby { leader })) => {
                tracing::warn!(leader, "another operator holds the lease");
                return;
            }
            Ok(Err(error)) if renewed.elapsed() < renew_timeout => tracing::warn!(%error, "cannot renew the lease"),
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

async fn resign(candidate: &mut Candidate, client: &Client) {
    match tokio::time::timeout(Duration::from_secs(2), candidate.resign(client)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "cannot release the lease"),
        Err(_) => tracing::warn!("cannot release the lease: no answer within 2 s"),
    }
}

async fn pause(time: Duration, stop: &CancellationToken) {
    let _ = tokio::time::timeout(time, stop.cancelled()).await;
}

/// This process, and no other: host, process number, random number.
fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let random = RandomState::new().hash_one(std::process::id());
    format!("{}-{}-{random:016x}", host.trim(), std::process::id())
}
