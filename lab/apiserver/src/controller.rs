//! The controllers of the embedded cluster: small, level-triggered, in the API server's process.
//!
//! Each looks at the whole of what it is for whenever something of it changed, and makes the rest agree. They read
//! the store itself, so that what they did a moment ago is what they see.

mod condition;
mod deployment;
mod endpoints;
mod event;
mod garbage;
mod kubernetes;
mod namespace;
mod node;
mod replicaset;
pub mod scheduler;

use crate::api::Api;
use crate::error::ApiError;
use futures::future::BoxFuture;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Changes that come together are answered together.
const SETTLE: Duration = Duration::from_millis(5);
/// A pass happens at least this often: some things depend on time.
const RESYNC: Duration = Duration::from_secs(5);
/// The same, where seconds count: a pod that is ready for long enough.
const RESYNC_SOON: Duration = Duration::from_secs(1);
/// After a failed pass.
const RETRY: Duration = Duration::from_millis(500);

type Pass = for<'a> fn(&'a Api) -> BoxFuture<'a, Result<(), ApiError>>;

/// Runs all controllers until `stop` is cancelled.
pub async fn run(api: Api, stop: CancellationToken) {
    let all: [(&'static str, &'static [&'static str], Pass); 8] = [
        ("namespace", &[], |api| Box::pin(namespace::pass(api))),
        ("garbage", &[], |api| Box::pin(garbage::pass(api))),
        ("deployment", &["deployments.apps", "replicasets.apps"], |api| Box::pin(deployment::pass(api))),
        ("replicaset", &["replicasets.apps", "pods"], |api| Box::pin(replicaset::pass(api))),
        ("scheduler", &["pods", "nodes"], |api| Box::pin(scheduler::pass(api))),
        ("kubernetes", &["services", "endpointslices.discovery.k8s.io"], |api| Box::pin(kubernetes::pass(api))),
        ("node", &["nodes", "leases.coordination.k8s.io"], |api| Box::pin(node::pass(api))),
        ("event", &["events"], |api| Box::pin(event::expire(api))),
    ];
    let mut tasks = JoinSet::new();
    {
        let (api, stop) = (api.clone(), stop.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = endpoints::run(&api) => {}
                () = stop.cancelled() => {}
            }
        });
    }
    for (name, resources, pass) in all {
        let (api, stop) = (api.clone(), stop.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = follow(&api, name, resources, pass) => {}
                () = stop.cancelled() => {}
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a controller failed: the server stops, to be started again");
            stop.cancel();
        }
    }
}

/// Passes for ever: at once, and when one of the resources (none: any) changes.
async fn follow(api: &Api, name: &str, resources: &[&str], pass: Pass) {
    let mut published = api.store().subscribe();
    loop {
        let seen = *published.borrow_and_update();
        if let Err(error) = pass(api).await {
            // Conflicts and losses of a race heal with the next pass.
            tracing::debug!(controller = name, %error, "a pass failed");
            tokio::time::sleep(RETRY).await;
            continue;
        }
        let mut reached = seen;
        let deadline = tokio::time::Instant::now() + if name == "replicaset" { RESYNC_SOON } else { RESYNC };
        loop {
            match tokio::time::timeout_at(deadline, published.changed()).await {
                Err(_) => break,
                Ok(Err(_)) => return,
                Ok(Ok(())) => {}
            }
            let wanted = |e: &crate::store::Event| resources.is_empty() || resources.contains(&e.key.resource.as_ref());
            match api.store().since(reached, usize::MAX, wanted) {
                Ok((events, up_to)) if events.is_empty() => reached = up_to,
                _ => break,
            }
        }
        tokio::time::sleep(SETTLE).await;
    }
}

/// Some refusals mean that somebody was faster.
fn lost_race(error: &ApiError) -> bool {
    matches!(error.code, 404 | 409)
}

/// Takes such refusals for success.
fn unless_lost<T>(result: Result<T, ApiError>) -> Result<(), ApiError> {
    match result {
        Err(error) if !lost_race(&error) => Err(error),
        _ => Ok(()),
    }
}
