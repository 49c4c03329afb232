//! Between the engine of Services and the kernel: tells it of this node's pods, carries out its plans.

use super::{Core, Settings, describe};
use crate::metrics;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::mpsc::Sender;
use std::time::Instant;
use weft_api::agent as api;
use weft_control::service::{self as engine, Engine, Event, ListedPort, LocalPod, Object, Outcome, Reason};
use weft_model::desired::{BackendEntry, BackendId, DataplaneError, Frontend, ServiceTables};
use weft_model::intent::{Change, ObjectName, Protocol};

/// Plans of one flush; what is left waits for the next.
const PLANS_MAX: usize = 10_000;

/// Backends that are gone.
pub type Gone = Vec<(BackendId, BackendEntry)>;

/// See the module.
pub struct Services {
    pub(super) engine: Engine,
    /// Pods or endpoints of this node have changed.
    pods_changed: bool,
    /// Pods that the engine knows.
    pods: BTreeSet<ObjectName>,
    /// A write failed on the way: what the kernel holds is to be read.
    out_of_step: bool,
    /// Who wants to know of backends that are gone.
    gone: Option<Sender<Gone>>,
    metrics: metrics::Services,
    /// Since when Services wait for something to be in force.
    waiting: BTreeMap<ObjectName, Instant>,
}

impl Services {
    pub(super) fn new(settings: &Settings) -> Self {
        let settings = engine::Settings {
            node_name: settings.node_name.clone(),
            ipv4: settings.ipv4,
            ipv6: settings.ipv6,
            node_ports: settings.node_ports.clone(),
            forwarding: settings.forwarding,
            table_size: settings.maglev_table_size,
        };
        #[expect(clippy::cast_possible_truncation, reason = "any number will do")]
        let first = RandomState::new().hash_one(0_u8) as u32;
        Self {
            engine: Engine::new(settings, first),
            pods_changed: false,
            pods: BTreeSet::new(),
            out_of_step: false,
            gone: None,
            metrics: metrics::Services::default(),
            waiting: BTreeMap::new(),
        }
    }

    /// Hears of a change.
    pub(super) fn take(&mut self, change: &Change) {
        self.engine.hear(change);
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
        self.pods_changed |= matches!(change, Change::Pod(_) | Change::PodGone(..));
    }

    /// Pods or endpoints of this node have changed.
    pub(super) fn note_pods(&mut self) {
        self.pods_changed = true;
    }

    /// These are in force.
    fn count(&mut self, events: BTreeMap<Object, Event>) {
        for (object, event) in events {
            let labels = [("action", event.as_str())];
            self.metrics.events.get_or_create(&labels).inc();
            if let Object::Service(name) = &object
                && let Some(since) = self.waiting.remove(name)
            {
                self.metrics.delay.get_or_create(&labels).observe(since.elapsed().as_secs_f64());
            }
        }
    }

    /// What a former agent left.
    pub(super) fn adopt(&mut self, tables: ServiceTables) {
        self.engine.adopt(tables);
    }
}

impl Core {
    /// What is counted of Services.
    #[must_use]
    pub fn service_metrics(&self) -> metrics::Services {
        self.services.metrics.clone()
    }

    /// Who is to be told of backends that are gone from now on.
    pub fn tell_of_gone_backends(&mut self, to: Sender<Gone>) {
        self.services.gone = Some(to);
    }

    /// Puts everything that has changed behind Services in force. What does not fit is told of its object, and keeps
    /// what it had; only what the kernel could not do is a failure.
    pub(super) fn write_services(&mut self) -> Result<(), ()> {
        self.tell_of_pods();
        match self.carry_out_plans() {
            Ok(()) => {
                self.problems.remove("services");
                Ok(())
            }
            Err(error) => {
                self.services.out_of_step = true;
                self.note_failure("services", &error);
                Err(())
            }
        }
    }

    fn carry_out_plans(&mut self) -> Result<(), DataplaneError> {
        if self.services.out_of_step {
            self.services.engine.adopt(self.dataplane.services()?);
            self.services.out_of_step = false;
        }
        for _ in 0..PLANS_MAX {
            if self.services.engine.plan().is_none() {
                // Whoever waits still has changed nothing.
                self.services.waiting.clear();
                break;
            }
            let events = self.services.engine.planned_events();
            let Some(patch) = self.services.engine.plan() else { break };
            match self.dataplane.patch_services(patch) {
                Ok(()) => {
                    self.services.count(events);
                    let gone = self.services.engine.done(Outcome::Written);
                    if let Some(to) = self.services.gone.as_ref().filter(|_| !gone.is_empty()) {
                        // Nobody listens any more only while the agent ends.
                        let _ = to.send(gone);
                    }
                }
                Err(full @ DataplaneError::MapFull { .. }) => {
                    self.services.engine.done(Outcome::Refused(describe(&full)));
                }
                Err(error) => {
                    self.services.engine.done(Outcome::Failed);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Tells the engine of this node's pods: those whose endpoints are up, with what the watcher knows of them.
    fn tell_of_pods(&mut self) {
        if !std::mem::take(&mut self.services.pods_changed) {
            return;
        }
        let mut pods: BTreeMap<&ObjectName, LocalPod> = BTreeMap::new();
        for endpoint in self.endpoints.rows.values().filter(|endpoint| endpoint.is_active()) {
            let record = &endpoint.record;
            let Some(pod) = self.pods.get(&record.pod).filter(|pod| pod.uid == record.pod_uid && !pod.finished) else {
                continue;
            };
            let local = pods.entry(&pod.name).or_insert_with(|| LocalPod {
                name: pod.name.clone(),
                labels: pod.labels.clone(),
                addresses: Vec::new(),
                ready: pod.ready,
                host_ports: pod.host_ports.clone(),
            });
            local.addresses.extend(&record.addresses);
        }
        let engine = &mut self.services.engine;
        let known: BTreeSet<ObjectName> = pods.keys().map(|name| (*name).clone()).collect();
        self.services.pods.difference(&known).for_each(|gone| engine.remove_pod(gone));
        pods.into_values().for_each(|pod| engine.put_pod(pod));
        self.services.pods = known;
    }

    /// Services, pods with hostPorts and local redirects of which something is not in force, and why.
    #[must_use]
    pub fn service_problems(&self) -> Vec<(Object, Reason, String)> {
        let problems = self.services.engine.problems().into_iter();
        problems
            .flat_map(|(object, problems)| {
                problems.into_iter().map(move |problem| (object.clone(), problem.reason, problem.text))
            })
            .collect()
    }

    /// What is in force of Services.
    #[must_use]
    pub fn list_services(&self) -> Vec<api::Service> {
        self.services.engine.list().into_iter().map(listed).collect()
    }

    /// How many Services have a frontend in force.
    pub(super) fn count_services(&self) -> usize {
        self.services.engine.count()
    }

    /// The object of which an address and port are a frontend, or a backend: of several the first.
    #[must_use]
    pub fn service_at(&self, address: IpAddr, port: u16, protocol: Protocol) -> Option<ObjectName> {
        let engine = &self.services.engine;
        let frontend = Frontend { address, port, protocol };
        let of_node = || {
            let any = if address.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
            let own = self.own_addresses().contains(&address);
            own.then(|| engine.object_at(&Frontend { address: any, ..frontend })).flatten()
        };
        let object = engine.object_at(&frontend).or_else(|| engine.object_behind(address, port, protocol));
        Some(object.or_else(of_node)?.name().clone())
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
