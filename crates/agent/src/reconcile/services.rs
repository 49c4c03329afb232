//! Services, hostPorts and local redirects: from the compiler of Services to the kernel's service maps.

mod gone;
mod view;

pub use view::View;

use super::reconciler::{Context, Reconciler, Rows};
use crate::metrics;
pub use crate::reconcile::services::gone::Gone;
use crate::settings::Settings;
use crate::tables::Tables;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::mpsc::Sender;
use std::time::Instant;
use weft_api::agent as api;
use weft_control::service::{self as engine, Engine, Event, ListedPort, LocalPod, Object, Outcome};
use weft_model::desired::DataplaneError;
use weft_model::intent::{Change, ObjectName, Protocol};
use weft_model::reconcile::Queue;
use weft_model::table::Consumer;
use weft_sys::error::describe;

const NAME: &str = "services";
/// Plans of one pass; what is left waits for the next.
const PLANS_MAX: usize = 10_000;

/// See the module.
pub struct Services {
    /// The compiler.
    pub engine: Engine,
    /// Follow the pods and endpoints of this node.
    local: (Consumer, Consumer),
    /// Pods that the compiler knows.
    pods: BTreeSet<ObjectName>,
    /// A write failed on the way: what the kernel holds is to be read.
    drifted: bool,
    /// The compiler may have something to plan.
    has_news: bool,
    /// Its one row is the plan at hand. What does not fit is refused object by object, which is no failure of the plan.
    queue: Queue<&'static str>,
    /// Where backends that are gone are sent.
    gone: Option<Sender<Gone>>,
    metrics: metrics::Services,
    /// Since when Services wait to be in force.
    waiting: BTreeMap<ObjectName, Instant>,
    view: View,
}

impl Services {
    pub(super) fn new(settings: &Settings, tables: &mut Tables) -> Self {
        let settings = engine::Settings {
            node_name: settings.node_name.clone(),
            ipv4: settings.ipv4,
            ipv6: settings.ipv6,
            node_ports: settings.node_ports.clone(),
            forwarding: settings.forwarding,
            table_size: settings.maglev_table_size,
            allowed: engine::Allowed {
                external_ips: settings.external_ips_allowed.clone(),
                reserved_ports: settings.host_ports_reserved.clone(),
                pod_ranges: settings.pod_ranges.clone(),
                api_server: settings.api_server.clone(),
            },
        };
        #[expect(clippy::cast_possible_truncation, reason = "any number will do")]
        let first = RandomState::new().hash_one(0_u8) as u32;
        Self {
            engine: Engine::new(settings, first),
            local: (tables.pods.subscribe(), tables.endpoints.subscribe()),
            pods: BTreeSet::new(),
            drifted: false,
            has_news: true,
            queue: Queue::default(),
            gone: None,
            metrics: metrics::Services::default(),
            waiting: BTreeMap::new(),
            view: View::default(),
        }
    }

    /// What is counted of Services. Shared, not copied.
    #[must_use]
    pub fn metrics(&self) -> metrics::Services {
        self.metrics.clone()
    }

    /// Backends that are gone are sent there from now on.
    pub fn send_gone_backends(&mut self, to: Sender<Gone>) {
        self.gone = Some(to);
    }

    /// For readers: what is in force now.
    #[must_use]
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// These are in force.
    fn count(&mut self, events: BTreeMap<Object, Event>) {
        for (object, event) in events {
            let labels = [("action", event.as_str())];
            self.metrics.events.get_or_create(&labels).inc();
            let Object::Service(name) = &object else { continue };
            self.view.count(event);
            if let Some(since) = self.waiting.remove(name) {
                self.metrics.delay.get_or_create(&labels).observe(since.elapsed().as_secs_f64());
            }
        }
    }

    fn carry_out_plans(&mut self, cx: &mut Context<'_>) -> Result<(), DataplaneError> {
        if self.drifted {
            self.engine.adopt(cx.kernel.services()?);
            self.view.rebuild();
            self.drifted = false;
        }
        for _ in 0..PLANS_MAX {
            if self.engine.plan().is_none() {
                // A Service that still waits changed nothing.
                self.waiting.clear();
                self.has_news = false;
                break;
            }
            let events = self.engine.planned_events();
            let Some(patch) = self.engine.plan() else { break };
            match cx.kernel.patch_services(patch) {
                Ok(()) => {
                    let named = view::Named::by(patch);
                    self.count(events);
                    let gone = self.engine.done(Outcome::Written);
                    self.view.update(named, &gone, &self.engine);
                    if let Some(to) = self.gone.as_ref().filter(|_| !gone.is_empty()) {
                        // Nobody receives any more only while the agent ends.
                        let _ = to.send(gone);
                    }
                }
                Err(full @ DataplaneError::MapFull { .. }) => {
                    self.engine.done(Outcome::Refused(describe(&full)));
                }
                Err(error) => {
                    self.engine.done(Outcome::Failed);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Brings the compiler in line with this node's pods: those whose endpoints are up, with what the watcher knows of
    /// them.
    fn update_pods(&mut self, cx: &mut Context<'_>) {
        let (pods, endpoints) = (cx.tables.pods.drain(&self.local.0), cx.tables.endpoints.drain(&self.local.1));
        if pods.is_empty() && endpoints.is_empty() {
            return;
        }
        self.has_news = true;
        let mut pods: BTreeMap<&ObjectName, LocalPod> = BTreeMap::new();
        for endpoint in cx.tables.endpoints.values().filter(|endpoint| endpoint.is_active()) {
            let record = &endpoint.record;
            let Some(pod) = cx.tables.pods.get(&record.pod).filter(|pod| pod.uid == record.pod_uid && !pod.finished)
            else {
                continue;
            };
            let local = pods.entry(&pod.name).or_insert_with(|| LocalPod {
                name: pod.name.clone(),
                labels: pod.labels.clone(),
                addresses: Vec::new(),
                ready: pod.ready,
                host_ports: pod.host_ports.clone(),
                age: pod.age.clone(),
            });
            local.addresses.extend(&record.addresses);
        }
        let known: BTreeSet<ObjectName> = pods.keys().map(|name| (*name).clone()).collect();
        self.pods.difference(&known).for_each(|gone| self.engine.remove_pod(gone));
        pods.into_values().for_each(|pod| self.engine.put_pod(pod));
        self.pods = known;
    }

    /// What is in force of Services, for people.
    #[must_use]
    pub fn list(&self) -> Vec<api::Service> {
        self.engine.list().into_iter().map(listed).collect()
    }
}

impl Reconciler for Services {
    fn name(&self) -> &'static str {
        NAME
    }

    fn observe(&mut self, change: &Change) {
        self.engine.apply(change);
        let service = match change {
            Change::Service(service) => Some(&service.name),
            Change::ServiceGone(name) => Some(name),
            Change::Backends(slice) => {
                let ending = slice.endpoints.iter().filter(|endpoint| endpoint.terminating).count();
                self.metrics.terminating.inc_by(ending as u64);
                Some(&slice.service)
            }
            _ => None,
        };
        if let Some(name) = service {
            self.waiting.entry(name.clone()).or_insert_with(Instant::now);
        }
        // Of these there are most, and they are about pods of other nodes.
        self.has_news |= !matches!(change, Change::Slice(_) | Change::SliceGone(_) | Change::Identity(_));
    }

    fn adopt(&mut self, cx: &mut Context<'_>) -> Result<(), DataplaneError> {
        self.engine.adopt(cx.kernel.services()?);
        self.view.rebuild();
        Ok(())
    }

    /// What does not fit is a problem of its object, which keeps what it had; only what the kernel could not do is a
    /// failure.
    fn reconcile(&mut self, cx: &mut Context<'_>) {
        self.update_pods(cx);
        let is_due = !self.queue.take_due(cx.now).is_empty();
        if !self.has_news && !is_due {
            return;
        }
        match self.carry_out_plans(cx) {
            Ok(()) => self.queue.done(&"plan"),
            Err(error) => {
                self.drifted = true;
                super::reconciler::failed(&mut self.queue, (NAME, "plan"), cx.now, &error);
            }
        }
        self.view.finish(&self.engine);
    }

    fn rows(&self) -> &dyn Rows {
        &self.queue
    }

    fn rows_mut(&mut self) -> &mut dyn Rows {
        &mut self.queue
    }
}

/// For people.
fn listed(port: ListedPort) -> api::Service {
    let kind = match &port.object {
        Object::Service(_) => "Service",
        Object::Pod(_) => "HostPort",
        Object::Redirect(_) => "LocalRedirect",
    };
    let (dsr, affinity_s) = port
        .frontends
        .first()
        .map(|(_, entry)| (entry.forwarding == weft_model::intent::Forwarding::Dsr, entry.affinity_s))
        .unwrap_or_default();
    api::Service {
        kind: kind.to_owned(),
        namespace: port.object.name().namespace.clone(),
        name: port.object.name().name.clone(),
        port: port.port,
        protocol: protocol_name(port.protocol).to_owned(),
        frontends: port
            .frontends
            .iter()
            .map(|(frontend, entry)| api::ServiceFrontend {
                kind: kind_name(entry.kind).to_owned(),
                address: frontend.address,
                port: frontend.port,
                internal_local: entry.internal_local,
                external_local: entry.external_local,
                source_ranges: entry.source_ranges,
            })
            .collect(),
        backends: port
            .backends
            .iter()
            .map(|backend| api::ServiceBackend {
                address: backend.entry.address,
                port: backend.entry.port,
                state: if backend.entry.terminating { "terminating" } else { "active" }.to_owned(),
                local: backend.entry.local,
                internal: backend.internal,
                external: backend.external,
            })
            .collect(),
        affinity_s,
        algorithm: match port.algorithm {
            weft_model::intent::Algorithm::Random => "random",
            weft_model::intent::Algorithm::Maglev => "maglev",
        }
        .to_owned(),
        forwarding: if dsr { "dsr" } else { "snat" }.to_owned(),
    }
}

fn kind_name(kind: weft_model::desired::FrontendKind) -> &'static str {
    use weft_model::desired::FrontendKind;
    match kind {
        FrontendKind::ClusterIp => "ClusterIP",
        FrontendKind::NodePort => "NodePort",
        FrontendKind::HostPort => "HostPort",
        FrontendKind::LoadBalancer => "LoadBalancer",
        FrontendKind::ExternalIp => "ExternalIP",
        FrontendKind::Redirect => "LocalRedirect",
    }
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        _ => "SCTP",
    }
}
