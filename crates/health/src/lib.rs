//! Health checks for load balancers that ask whether to send traffic to this node.
//!
//! - Per Service of type LoadBalancer with `externalTrafficPolicy: Local`: its `healthCheckNodePort`, at the node's
//!   addresses, answers 200 with the number of ready backends on this node, or 503 if there is none.
//! - With `--healthz-bind-address`: `/healthz` and `/livez`, as kube-proxy answers them.

mod listen;

pub use listen::listen;

use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use weft_daemon::http::{self, JSON, Limits, Response, StatusCode};
use weft_daemon::tasks::lock;
use weft_model::intent::{Change, Node, ObjectName};

/// Pause before a port that cannot be bound is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How much of a load balancer's traffic this node should get.
const WEIGHT: &str = "x-load-balancing-endpoint-weight";

/// Services with a port for health checks, and their backends on this node.
#[derive(Default)]
struct Tables {
    /// `healthCheckNodePort` by Service.
    ports: BTreeMap<ObjectName, u16>,
    /// By EndpointSlice: its Service and its ready endpoints on this node.
    slices: BTreeMap<ObjectName, (ObjectName, BTreeSet<IpAddr>)>,
    /// The node's addresses.
    addresses: Vec<IpAddr>,
}

impl Tables {
    /// A pod with addresses of both families has an endpoint in each: it counts once.
    fn local_endpoints(&self, service: &ObjectName) -> usize {
        let of = self.slices.values().filter(|(name, _)| name == service);
        let all: BTreeSet<_> = of.flat_map(|(_, endpoints)| endpoints).collect();
        let v4 = all.iter().filter(|address| address.is_ipv4()).count();
        v4.max(all.len() - v4)
    }

    /// Where to listen, and for which Service. If two Services claim the same port, the first by name gets it.
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

/// The health checks of one node. Cheap to clone.
#[derive(Clone)]
pub struct Health {
    node: Arc<str>,
    tables: Arc<Mutex<Tables>>,
    changed: Arc<Notify>,
    is_ready: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Ports that Services may have here.
    allowed: RangeInclusive<u16>,
}

impl Health {
    /// Health checks of the node named `node`, healthy while `is_ready`.
    #[must_use]
    pub fn new(node: &str, is_ready: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self {
            node: node.into(),
            tables: Arc::default(),
            changed: Arc::default(),
            is_ready: Arc::new(is_ready),
            allowed: 1..=u16::MAX,
        }
    }

    /// Leaves out ports outside the range: a Service must not make the agent listen at any port of the node.
    #[must_use]
    pub fn within(self, allowed: RangeInclusive<u16>) -> Self {
        Self { allowed, ..self }
    }

    /// Applies what the watchers delivered.
    pub fn apply(&self, changes: &[Change]) {
        let mut tables = lock(&self.tables);
        let mut changed = false;
        for change in changes {
            match change {
                Change::Service(service) => {
                    let port = service.routing.as_ref().and_then(|routing| routing.health_check_node_port);
                    let port = port.filter(|port| self.allowed.contains(port));
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

    fn service_response(&self, service: &ObjectName) -> Response<String> {
        let count = lock(&self.tables).local_endpoints(service);
        let healthy = (self.is_ready)();
        let body = json!({
            "service": {"namespace": service.namespace, "name": service.name},
            "localEndpoints": count,
            "serviceProxyHealthy": healthy,
        });
        let mut response = http::response(status(healthy && count > 0), JSON, body.to_string());
        response.headers_mut().insert(WEIGHT, count.into());
        response
    }

    /// Of the node as a whole. For kube-proxy `/livez` and `/healthz` differ on a node that is about to be deleted; this
    /// agent does not know of that.
    fn node_response(&self, path: &str) -> Option<Response<String>> {
        if !matches!(path, "/healthz" | "/livez") {
            return None;
        }
        let (ok, now) = ((self.is_ready)(), jiff::Timestamp::now().to_string());
        // What is in force is so all the time: as of now, or not at all.
        let body = if ok { json!({"lastUpdated": now, "currentTime": now}) } else { json!({"currentTime": now}) };
        Some(http::response(status(ok), JSON, body.to_string()))
    }

    /// Listens at the ports that Services ask for, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut serving: BTreeMap<SocketAddr, (ObjectName, CancellationToken)> = BTreeMap::new();
        let mut servers = JoinSet::new();
        loop {
            let wanted = lock(&self.tables).wanted();
            serving.retain(|at, (service, running)| {
                let stays = wanted.get(at) == Some(service);
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
                match listener(at) {
                    Ok(listener) => {
                        let running = stop.child_token();
                        let (health, name) = (self.clone(), service.clone());
                        let answer = move |_: &str| Some(health.service_response(&name));
                        servers.spawn(http::serve(listener, Limits::default(), answer, running.clone()));
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
                Some(_) = servers.join_next() => {}
                () = tokio::time::sleep(RETRY), if missing => {}
            }
        }
    }

    /// Answers for the node as a whole, until `stop`.
    pub async fn run_node(self, at: SocketAddr, stop: CancellationToken) {
        loop {
            match listener(at) {
                Ok(listener) => {
                    let health = self.clone();
                    let answer = move |path: &str| health.node_response(path);
                    return http::serve(listener, Limits::default(), answer, stop).await;
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

fn status(ok: bool) -> StatusCode {
    if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

fn listener(at: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::from_std(listen(at)?)
}

#[cfg(test)]
mod tests;
