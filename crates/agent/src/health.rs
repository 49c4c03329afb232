//! Answers to load balancers that ask whether this node is worth sending to.
//!
//! - Per Service of type LoadBalancer with `externalTrafficPolicy: Local`: its `healthCheckNodePort` at the node's
//!   addresses says how many ready backends are here: 200, or 503 with none.
//! - With `--healthz-bind-address`: `/healthz` and `/livez`, as load balancers ask kube-proxy.

use crate::core::Progress;
use crate::http;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use weft_model::intent::{Change, Node, ObjectName};

/// Pause before a port that could not be had is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// What is asked for, and what is here.
#[derive(Default)]
struct Tables {
    /// Ports of Services.
    ports: BTreeMap<ObjectName, u16>,
    /// Per slice: its Service and its ready endpoints on this node.
    slices: BTreeMap<ObjectName, (ObjectName, BTreeSet<IpAddr>)>,
    /// The node's addresses.
    addresses: Vec<IpAddr>,
}

impl Tables {
    /// A pod of both families has an endpoint in each: it counts once.
    fn local_endpoints(&self, service: &ObjectName) -> usize {
        let of = self.slices.values().filter(|(name, _)| name == service);
        let all: BTreeSet<_> = of.flat_map(|(_, endpoints)| endpoints).collect();
        let v4 = all.iter().filter(|address| address.is_ipv4()).count();
        v4.max(all.len() - v4)
    }

    /// Where somebody must listen, and for which Service. Of two that have the same port, the first one by name counts.
    fn wanted(&self) -> BTreeMap<SocketAddr, ObjectName> {
        let mut wanted = BTreeMap::new();
        for (name, port) in &self.ports {
            for address in &self.addresses {
                wanted.entry(SocketAddr::new(*address, *port)).or_insert_with(|| name.clone());
            }
        }
        wanted
    }
}

/// See the module.
#[derive(Clone)]
pub struct Health {
    node: Arc<str>,
    tables: Arc<Mutex<Tables>>,
    changed: Arc<Notify>,
    progress: watch::Receiver<Progress>,
}

impl Health {
    /// Of the node of that name.
    #[must_use]
    pub fn new(node: &str, progress: watch::Receiver<Progress>) -> Self {
        Self { node: node.into(), tables: Arc::default(), changed: Arc::default(), progress }
    }

    /// Takes in what a watcher delivered.
    pub fn hear(&self, changes: &[Change]) {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = false;
        for change in changes {
            match change {
                Change::Service(service) => {
                    let port = service.routing.as_ref().and_then(|routing| routing.health_check_node_port);
                    let before = match port {
                        Some(port) => tables.ports.insert(service.name.clone(), port),
                        None => tables.ports.remove(&service.name),
                    };
                    changed |= before != port;
                }
                Change::ServiceGone(name) => changed |= tables.ports.remove(name).is_some(),
                Change::Backends(slice) => {
                    let local = slice
                        .endpoints
                        .iter()
                        .filter(|endpoint| endpoint.ready && endpoint.node.as_deref() == Some(&*self.node));
                    let local: BTreeSet<IpAddr> = local.map(|endpoint| endpoint.address).collect();
                    if local.is_empty() {
                        tables.slices.remove(&slice.slice);
                    } else {
                        tables.slices.insert(slice.slice.clone(), (slice.service.clone(), local));
                    }
                }
                Change::BackendsGone(slice) => drop(tables.slices.remove(slice)),
                Change::Node(Node { name, addresses, .. }) if **name == *self.node => {
                    changed |= tables.addresses != *addresses;
                    tables.addresses.clone_from(addresses);
                }
                _ => {}
            }
        }
        if changed {
            self.changed.notify_one();
        }
    }

    fn is_ready(&self) -> bool {
        self.progress.borrow().ready
    }

    /// What a load balancer is told of a Service.
    fn answer(&self, service: &ObjectName) -> http::Answer {
        let count = self.tables.lock().unwrap_or_else(PoisonError::into_inner).local_endpoints(service);
        let healthy = self.is_ready();
        let body = json!({
            "service": {"namespace": service.namespace, "name": service.name},
            "localEndpoints": count,
            "serviceProxyHealthy": healthy,
        });
        http::Answer { ok: healthy && count > 0, weight: Some(count), kind: http::JSON, body: body.to_string() }
    }

    /// What is told of the node as a whole. `/livez` and `/healthz` differ for a node that is about to go, which is no
    /// matter of this one's.
    fn node_answer(&self, path: &str) -> Option<http::Answer> {
        if !matches!(path, "/healthz" | "/livez") {
            return None;
        }
        let (ok, now) = (self.is_ready(), jiff::Timestamp::now().to_string());
        // In force without a pause: as of now, or not at all.
        let body = if ok { json!({"lastUpdated": now, "currentTime": now}) } else { json!({"currentTime": now}) };
        Some(http::Answer { ok, weight: None, kind: http::JSON, body: body.to_string() })
    }

    /// Listens where Services ask for it, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut serving: BTreeMap<SocketAddr, (ObjectName, CancellationToken)> = BTreeMap::new();
        loop {
            let wanted = self.tables.lock().unwrap_or_else(PoisonError::into_inner).wanted();
            serving.retain(|at, (service, running)| {
                let stays = wanted.get(at) == Some(service) && !running.is_cancelled();
                if !stays {
                    running.cancel();
                }
                stays
            });
            let mut missing = false;
            for (at, service) in wanted {
                if serving.contains_key(&at) {
                    continue;
                }
                match listen(at) {
                    Ok(listener) => {
                        let running = stop.child_token();
                        let (health, name) = (self.clone(), service.clone());
                        let answer = move |_: &str| Some(health.answer(&name));
                        tokio::spawn(http::serve(listener, answer, running.clone()));
                        serving.insert(at, (service, running));
                    }
                    Err(error) => {
                        tracing::warn!(%service, %at, %error, "cannot listen at the healthCheckNodePort, trying again");
                        missing = true;
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.changed.notified() => {}
                () = tokio::time::sleep(RETRY), if missing => {}
            }
        }
    }

    /// Answers for the node as a whole, until `stop`.
    pub async fn run_node(self, at: SocketAddr, stop: CancellationToken) {
        loop {
            match listen(at) {
                Ok(listener) => {
                    let health = self.clone();
                    return http::serve(listener, move |path: &str| health.node_answer(path), stop).await;
                }
                Err(error) => tracing::warn!(%at, %error, "cannot listen at the healthz-bind-address, trying again"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }
}

fn listen(at: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::from_std(weft_datapath::listen(at)?)
}

#[cfg(test)]
mod tests;
