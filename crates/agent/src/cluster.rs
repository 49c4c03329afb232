//! [`Cluster`] over the API server, and what is written there on behalf of this node: its CiliumNode, its conditions,
//! the numbers of new label sets (for its endpoints: [`crate::announce`]). All of it beside the path of an ADD, but
//! for a number that nobody made yet.

use super::snapshot::Progress;
use crate::attach::obtain_identity;
use crate::ports::{Cluster, ClusterError, Created};
use crate::writer::Part;
use crate::writer::thread::Handle;
use futures::future::{BoxFuture, FutureExt as _};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_control::service::{Object, Reason};
use weft_k8s::endpoint::Propagation;
use weft_k8s::{Client, event, identity, node, pod};
use weft_model::intent::{IdentityLabels, Namespace, ObjectName, Pod};

/// Pause before something that failed is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// How often the node's objects are read again: a kubelet that registers anew brings its taint back.
const AUDIT: Duration = Duration::from_secs(60);
/// Pause between two reports of problems of objects: every change of any table wakes the reporters, and few are about
/// these.
const REPORT_PAUSE: Duration = Duration::from_secs(1);

/// The API server.
pub struct ApiServer {
    client: Client,
}

impl ApiServer {
    /// Over a client.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client }
    }
}

fn failed(what: String) -> impl FnOnce(weft_k8s::Error) -> ClusterError {
    move |source| ClusterError { what, source: Some(Box::new(source)) }
}

impl Cluster for ApiServer {
    fn pod<'a>(&'a self, name: &'a ObjectName) -> BoxFuture<'a, Result<Option<Pod>, ClusterError>> {
        async move { pod::get(&self.client, name).await.map_err(failed(format!("read pod {name}"))) }.boxed()
    }

    fn namespace<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Namespace>, ClusterError>> {
        async move { pod::namespace(&self.client, name).await.map_err(failed(format!("read namespace {name}"))) }
            .boxed()
    }

    fn create_identity<'a>(&'a self, row: &'a IdentityLabels) -> BoxFuture<'a, Result<Created, ClusterError>> {
        async move {
            let outcome = identity::create(&self.client, row).await;
            match outcome.map_err(failed(format!("create identity {}", row.identity)))? {
                identity::Outcome::Created => Ok(Created::Yes),
                identity::Outcome::Exists(labels) if labels == row.labels => Ok(Created::Yes),
                identity::Outcome::Exists(labels) => {
                    Ok(Created::Taken(IdentityLabels { identity: row.identity, labels, unused: false }))
                }
            }
        }
        .boxed()
    }
}

/// Writes an Event for every policy object of which something is not in force.
pub async fn report_policies(
    writer: Handle,
    client: Client,
    mut progress: watch::Receiver<Progress>,
    stop: CancellationToken,
) {
    let mut reported = BTreeSet::new();
    loop {
        let problems: BTreeSet<_> = writer.snapshot().policy.problems().into_iter().collect();
        for problem @ (name, reason, text) in problems.difference(&reported) {
            let about = event::About {
                kind: name.kind.name(),
                api_version: weft_k8s::convert::api_version(name.kind),
                namespace: name.object.namespace.clone(),
                name: name.object.name.clone(),
                uid: String::new(),
            };
            if let Err(error) = event::warn(&client, &about, reason, text, "weft-agent").await {
                tracing::debug!(policy = %problem.0, %error, "cannot write an event");
            }
        }
        reported = problems;
        let again = tokio::time::Instant::now() + REPORT_PAUSE;
        tokio::select! {
            () = stop.cancelled() => return,
            changed = progress.changed() => if changed.is_err() { return },
        }
        tokio::time::sleep_until(again).await;
    }
}

/// Writes an Event for every Service, pod with hostPorts and local redirect policy of which something is not in force
/// here, once for each problem. What is the same on all nodes the operator reports.
pub async fn report_services(
    writer: Handle,
    client: Client,
    mut progress: watch::Receiver<Progress>,
    stop: CancellationToken,
) {
    let mut reported = BTreeSet::new();
    loop {
        let mut problems: BTreeSet<_> = writer.snapshot().services.problems().iter().cloned().collect();
        problems.retain(|(object, reason, _)| {
            matches!(object, Object::Pod(_)) || matches!(reason, Reason::NoRoom | Reason::TooManyBackends)
        });
        for (object, reason, text) in problems.difference(&reported) {
            let (kind, api_version) = match object {
                Object::Service(_) => ("Service", "v1"),
                Object::Pod(_) => ("Pod", "v1"),
                Object::Redirect(_) => ("CiliumLocalRedirectPolicy", "cilium.io/v2"),
            };
            let ObjectName { namespace, name } = object.name().clone();
            let about = event::About { kind, api_version, namespace, name, uid: String::new() };
            if let Err(error) = event::warn(&client, &about, reason.as_str(), text, "weft-agent").await {
                tracing::debug!(%object, %error, "cannot write an event");
            }
        }
        reported = problems;
        let again = tokio::time::Instant::now() + REPORT_PAUSE;
        tokio::select! {
            () = stop.cancelled() => return,
            changed = progress.changed() => if changed.is_err() { return },
        }
        tokio::time::sleep_until(again).await;
    }
}

/// Gets identities for label sets that endpoints changed to, or whose objects were deleted.
pub async fn obtain_identities(writer: Handle, cluster: Arc<dyn Cluster>, stop: CancellationToken) {
    let Ok(signals) = writer.call(|writer| writer.signals()).await else { return };
    loop {
        let Ok(wanted) = writer.call(|writer| writer.wanted_identities()).await else { return };
        let mut problem = None;
        for labels in wanted {
            match obtain_identity(&writer, &*cluster, &labels).await {
                Ok(_) => {
                    let _ = writer.call(move |writer| writer.identity_obtained(&labels)).await;
                }
                Err(error) => problem = Some(weft_sys::error::describe(&error)),
            }
        }
        let failed = problem.is_some();
        let _ = writer.call(move |writer| writer.set_problem(Part::Identities, problem)).await;
        tokio::select! {
            () = stop.cancelled() => return,
            () = signals.identities.notified() => {}
            () = tokio::time::sleep(RETRY), if failed => {}
        }
    }
}

/// Keeps this node's CiliumNode, and its condition and taint once pods may come.
pub async fn announce_node(
    writer: Handle,
    client: Client,
    (node_name, propagation): (String, Propagation),
    mut progress: watch::Receiver<Progress>,
    stop: CancellationToken,
) {
    let Ok(signals) = writer.call(|writer| writer.signals()).await else { return };
    // Agents that started together do not audit together for ever.
    let audit = AUDIT + weft_k8s::slice::random_part(AUDIT);
    loop {
        let name = node_name.clone();
        let Ok(own) = writer.call(|writer| writer.own_node()).await else { return };
        let mut problem = None;
        if let Some(own) = own {
            let announcement = node::Announcement {
                name: name.clone(),
                addresses: own.addresses,
                pod_cidrs: own.pod_cidrs,
                propagation,
                boot_id: std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned()),
            };
            // Both write only what differs.
            let announced = node::announce(&client, &announcement).await;
            let ready = progress.borrow_and_update().ready;
            let conditions = if ready { node::set_network_ready(&client, &name).await } else { Ok(()) };
            problem = announced.and(conditions).err().map(|error| weft_sys::error::describe(&error));
        }
        let (pause, ready) = (if problem.is_some() { RETRY } else { audit }, progress.borrow().ready);
        let _ = writer.call(move |writer| writer.set_problem(Part::NodeObject, problem)).await;
        tokio::select! {
            () = stop.cancelled() => return,
            () = signals.nodes_announce.notified() => {}
            changed = progress.wait_for(|progress| progress.ready), if !ready => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
    }
}
