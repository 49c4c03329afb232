//! What Services mean, said once more and as plainly as can be: per frontend, from the whole world, each time anew.

use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use weft_control::service::{LocalPod, Object, Settings};
use weft_model::desired::{Frontend, FrontendKind, ServiceTables, SetId};
use weft_model::intent::{
    Age, Algorithm, Backends, Forwarding, HostPort, LocalRedirect, ObjectName, Protocol, RedirectFrontend,
    RedirectPort, Routing, ServicePort, Topology,
};

#[derive(Clone, Default)]
pub struct World {
    pub services: BTreeMap<ObjectName, Routing>,
    pub slices: BTreeMap<ObjectName, Backends>,
    pub redirects: BTreeMap<ObjectName, LocalRedirect>,
    pub pods: BTreeMap<ObjectName, LocalPod>,
    pub zone: Option<String>,
    /// Of Services.
    pub ages: BTreeMap<ObjectName, Age>,
    /// Addresses of the node `n1`.
    pub host: Vec<IpAddr>,
    /// Addresses of the node `n2`, and where its pods are.
    pub other: (Vec<IpAddr>, Vec<IpNet>),
}

/// Address, port, local, terminating.
pub type End = (IpAddr, u16, bool, bool);

/// A frontend with everything behind it, without numbers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Meaning {
    pub kind: FrontendKind,
    pub internal: BTreeSet<End>,
    pub external: BTreeSet<End>,
    pub affinity_s: Option<u32>,
    pub forwarding: Forwarding,
    pub external_local: bool,
    pub internal_local: bool,
    pub skip_from_backend: bool,
    pub ranges: Option<BTreeSet<IpNet>>,
    pub tables: bool,
}

struct Endpoint {
    end: (IpAddr, u16),
    ready: bool,
    serving: bool,
    terminating: bool,
    local: bool,
    zones: BTreeSet<String>,
}

impl World {
    /// Everything that every object would have if it were alone: in the order in which its ports name it.
    pub fn wishes(&self, settings: &Settings) -> BTreeMap<Frontend, BTreeMap<Object, Meaning>> {
        let mut wishes: BTreeMap<Frontend, BTreeMap<Object, Meaning>> = BTreeMap::new();
        let mut wish = |object: Object, frontend: Frontend, meaning: Meaning| {
            wishes.entry(frontend).or_default().entry(object).or_insert(meaning);
        };
        for (name, routing) in &self.services {
            for port in &routing.ports {
                for (frontend, mut meaning) in self.service(name, routing, port, settings) {
                    // Without a backend there is no table.
                    meaning.tables &= !meaning.internal.is_empty() || !meaning.external.is_empty();
                    wish(Object::Service(name.clone()), frontend, meaning);
                }
            }
        }
        for pod in self.pods.values() {
            for host_port in &pod.host_ports {
                if !self.may_be_hosted(host_port, settings) {
                    continue;
                }
                for address in pod.addresses.iter().filter(|address| on(settings, address.is_ipv6())) {
                    let any: IpAddr = if address.is_ipv6() { "::" } else { "0.0.0.0" }.parse().unwrap();
                    let at = host_port.host_ip.unwrap_or(any);
                    if at.is_ipv6() == address.is_ipv6() {
                        let end = BTreeSet::from([(*address, host_port.container_port, true, false)]);
                        let meaning = Meaning {
                            internal: end.clone(),
                            external: end,
                            ..plain(FrontendKind::HostPort, settings.forwarding)
                        };
                        let frontend = Frontend { address: at, port: host_port.port, protocol: host_port.protocol };
                        wish(Object::Pod(pod.name.clone()), frontend, meaning);
                    }
                }
            }
        }
        for redirect in self.redirects.values() {
            let RedirectFrontend::Address { address, ports } = &redirect.frontend else { continue };
            if self.is_of_others(*address, settings) {
                continue;
            }
            for port in ports {
                let Some(target) = target(redirect, ports.len(), &port.name, port.protocol) else { continue };
                let internal = self.local(redirect, target, address.is_ipv6());
                if !internal.is_empty() && on(settings, address.is_ipv6()) {
                    let frontend = Frontend { address: *address, port: port.port, protocol: port.protocol };
                    let meaning = Meaning {
                        internal,
                        skip_from_backend: redirect.skip_from_backend,
                        ..plain(FrontendKind::Redirect, settings.forwarding)
                    };
                    wish(Object::Redirect(redirect.name.clone()), frontend, meaning);
                }
            }
        }
        wishes
    }

    /// An address that is a machine's or a pod's.
    fn is_of_others(&self, address: IpAddr, settings: &Settings) -> bool {
        let nodes = self.host.iter().chain(&self.other.0).any(|own| *own == address);
        let pods = self.other.1.iter().chain(&settings.allowed.pod_ranges).any(|net| net.contains(&address));
        nodes || pods || settings.allowed.api_server.contains(&address)
    }

    fn may_be_hosted(&self, port: &HostPort, settings: &Settings) -> bool {
        let reserved = settings.allowed.reserved_ports.iter().any(|range| range.contains(&port.port));
        let here = |host: &IpAddr| host.is_unspecified() || self.host.contains(host);
        !reserved && port.host_ip.as_ref().is_none_or(here)
    }

    /// Before which others an object comes at a frontend of a kind; the least comes first.
    pub fn standing(&self, object: &Object, kind: FrontendKind) -> (usize, Age, Object) {
        use FrontendKind::{ClusterIp, ExternalIp, LoadBalancer, NodePort, Redirect};
        let ranks = [ClusterIp, LoadBalancer, NodePort, ExternalIp, FrontendKind::HostPort, Redirect];
        let age = match object {
            Object::Service(name) => self.ages.get(name).cloned(),
            Object::Pod(name) => self.pods.get(name).map(|pod| pod.age.clone()),
            Object::Redirect(name) => self.redirects.get(name).map(|redirect| redirect.age.clone()),
        };
        (ranks.iter().position(|rank| *rank == kind).unwrap(), age.unwrap_or_default(), object.clone())
    }

    fn service(
        &self,
        name: &ObjectName,
        routing: &Routing,
        port: &ServicePort,
        settings: &Settings,
    ) -> Vec<(Frontend, Meaning)> {
        let mut all = Vec::new();
        let mut add = |address: IpAddr, number: u16, meaning: Meaning| {
            all.push((Frontend { address, port: number, protocol: port.protocol }, meaning));
        };
        let forwarding = routing.forwarding.unwrap_or(settings.forwarding);
        for v6 in [false, true] {
            if !on(settings, v6) || !routing.cluster_ips.iter().any(|ip| ip.is_ipv6() == v6) {
                continue;
            }
            let endpoints = self.endpoints(name, port, routing.publish_not_ready, v6);
            let near = self.everywhere(&endpoints, routing.topology);
            let here = serving(endpoints.iter().filter(|endpoint| endpoint.local).collect());
            let base = Meaning {
                affinity_s: routing.affinity_s,
                tables: routing.algorithm == Algorithm::Maglev,
                ..plain(FrontendKind::ClusterIp, forwarding)
            };
            for ip in routing.cluster_ips.iter().filter(|ip| ip.is_ipv6() == v6) {
                let meaning = match self.redirected(name, routing, port, v6) {
                    Some((internal, skip_from_backend)) => Meaning { internal, skip_from_backend, ..base.clone() },
                    None if routing.internal_local => {
                        Meaning { internal: here.clone(), internal_local: true, ..base.clone() }
                    }
                    None => Meaning { internal: near.clone(), ..base.clone() },
                };
                add(*ip, port.port, meaning);
            }
            let open = Meaning {
                internal: near.clone(),
                external: if routing.external_local { here } else { near },
                external_local: routing.external_local,
                ..base
            };
            if routing.node_ports && settings.node_ports.contains(&port.node_port) {
                let any = if v6 { "::" } else { "0.0.0.0" }.parse().unwrap();
                add(any, port.node_port, Meaning { kind: FrontendKind::NodePort, ..open.clone() });
            }
            for ip in routing.load_balancer_ips.iter().filter(|ip| ip.is_ipv6() == v6) {
                let ranges =
                    Some(routing.source_ranges.iter().copied().collect()).filter(|r: &BTreeSet<_>| !r.is_empty());
                add(*ip, port.port, Meaning { kind: FrontendKind::LoadBalancer, ranges, ..open.clone() });
            }
            let may = |ip: &IpAddr| settings.allowed.external_ips.iter().any(|net| net.contains(ip));
            let external = routing.external_ips.iter().filter(|ip| may(ip) && !self.is_of_others(**ip, settings));
            for ip in external.filter(|ip| ip.is_ipv6() == v6) {
                add(*ip, port.port, Meaning { kind: FrontendKind::ExternalIp, ..open.clone() });
            }
        }
        all
    }

    fn endpoints(&self, service: &ObjectName, port: &ServicePort, publish: bool, v6: bool) -> Vec<Endpoint> {
        let mut all: Vec<Endpoint> = Vec::new();
        for slice in self.slices.values().filter(|slice| slice.service == *service) {
            for own in slice.ports.iter().filter(|own| own.name == port.name && own.protocol == port.protocol) {
                for backend in slice.endpoints.iter().filter(|backend| backend.address.is_ipv6() == v6) {
                    all.push(Endpoint {
                        end: (backend.address, own.port),
                        ready: backend.ready || publish,
                        serving: backend.serving,
                        terminating: backend.terminating,
                        local: backend.node.as_deref() == Some("n1"),
                        zones: backend.for_zones.clone(),
                    });
                }
            }
        }
        // Of the same place the best one counts, of equal ones the first.
        let goodness = |endpoint: &Endpoint| match endpoint {
            Endpoint { ready: true, .. } => 0,
            Endpoint { terminating: true, serving: true, .. } => 1,
            Endpoint { terminating: true, .. } => 2,
            _ => 3,
        };
        all.sort_by_key(|endpoint| (endpoint.end, goodness(endpoint)));
        all.dedup_by_key(|endpoint| endpoint.end);
        all
    }

    fn everywhere(&self, endpoints: &[Endpoint], topology: Topology) -> BTreeSet<End> {
        let ready: Vec<&Endpoint> = endpoints.iter().filter(|endpoint| endpoint.ready).collect();
        let mut hinted: Vec<&Endpoint> = Vec::new();
        if ready.iter().all(|endpoint| !endpoint.zones.is_empty()) {
            hinted = ready.clone();
            hinted.retain(|endpoint| self.zone.as_ref().is_some_and(|zone| endpoint.zones.contains(zone)));
        }
        let local: Vec<&Endpoint> = ready.iter().copied().filter(|endpoint| endpoint.local).collect();
        match topology {
            Topology::SameNode if !local.is_empty() => serving(local),
            Topology::SameNode | Topology::Hints if !hinted.is_empty() => serving(hinted),
            _ => serving(endpoints.iter().collect()),
        }
    }

    fn redirected(
        &self,
        name: &ObjectName,
        routing: &Routing,
        port: &ServicePort,
        v6: bool,
    ) -> Option<(BTreeSet<End>, bool)> {
        if routing.node_ports || !routing.load_balancer_ips.is_empty() {
            return None;
        }
        for redirect in self.redirects.values() {
            let RedirectFrontend::Service { name: of, ports } = &redirect.frontend else { continue };
            let selected = |own: &&RedirectPort| own.port == port.port && own.protocol == port.protocol;
            if of != name || !(ports.is_empty() || ports.iter().any(|own| selected(&own))) {
                continue;
            }
            let said = ports.iter().find(selected).map(|own| &own.name).filter(|name| !name.is_empty());
            let target = target(redirect, ports.len(), said.unwrap_or(&port.name), port.protocol);
            let internal = self.local(redirect, target?, v6);
            return (!internal.is_empty()).then_some((internal, redirect.skip_from_backend));
        }
        None
    }

    fn local(&self, redirect: &LocalRedirect, target: &RedirectPort, v6: bool) -> BTreeSet<End> {
        let mut ends = BTreeSet::new();
        for pod in self.pods.values() {
            if pod.ready && pod.name.namespace == redirect.name.namespace && redirect.selector.matches(&pod.labels) {
                let addresses = pod.addresses.iter().filter(|address| address.is_ipv6() == v6);
                ends.extend(addresses.map(|address| (*address, target.port, true, false)));
            }
        }
        ends
    }

    /// Backends of a port that keep what they have, though nothing new comes.
    pub fn ending(&self, service: &ObjectName, settings: &Settings) -> BTreeSet<End> {
        let Some(routing) = self.services.get(service) else { return BTreeSet::new() };
        let mut ends = BTreeSet::new();
        for (port, v6) in routing.ports.iter().flat_map(|port| [(port, false), (port, true)]) {
            let endpoints = self.endpoints(service, port, routing.publish_not_ready, v6);
            let ending = endpoints.iter().filter(|endpoint| !endpoint.ready && endpoint.terminating);
            ends.extend(ending.filter(|_| on(settings, v6)).map(end));
        }
        ends
    }
}

/// The pods' port for a port of the frontend: of the same protocol and name; where there is one, names may be left out.
fn target<'a>(redirect: &'a LocalRedirect, ports: usize, name: &str, protocol: Protocol) -> Option<&'a RedirectPort> {
    let single = redirect.ports.len() == 1;
    redirect.ports.iter().find(|target| {
        let unnamed = ports == 1 || target.name.is_empty() || name.is_empty();
        target.protocol == protocol && (target.name == name || (single && unnamed))
    })
}

fn on(settings: &Settings, v6: bool) -> bool {
    if v6 { settings.ipv6 } else { settings.ipv4 }
}

fn plain(kind: FrontendKind, forwarding: Forwarding) -> Meaning {
    Meaning {
        kind,
        internal: BTreeSet::new(),
        external: BTreeSet::new(),
        affinity_s: None,
        forwarding,
        external_local: false,
        internal_local: false,
        skip_from_backend: false,
        ranges: None,
        tables: false,
    }
}

fn end(endpoint: &Endpoint) -> End {
    (endpoint.end.0, endpoint.end.1, endpoint.local, !endpoint.ready && endpoint.terminating)
}

/// Those that are ready; if none is, those that answer while they end.
fn serving(endpoints: Vec<&Endpoint>) -> BTreeSet<End> {
    let ready: BTreeSet<End> = endpoints.iter().filter(|endpoint| endpoint.ready).map(|found| end(found)).collect();
    if !ready.is_empty() {
        return ready;
    }
    endpoints.into_iter().filter(|found| found.terminating && found.serving).map(end).collect()
}

/// What tables mean. Panics if they do not fit together.
pub fn meaning(tables: &ServiceTables, size: u32) -> BTreeMap<Frontend, Meaning> {
    let mut all = BTreeMap::new();
    for (frontend, entry) in &tables.frontends {
        let mut hashed = BTreeSet::new();
        let mut ends = |set: Option<SetId>| {
            let Some(set) = set else { return BTreeSet::new() };
            let set = tables.sets.get(&set).unwrap_or_else(|| panic!("{frontend:?} names a set that is not there"));
            assert!(!set.backends.is_empty());
            hashed.insert(set.table.len());
            let mut ends = BTreeSet::new();
            for id in &set.backends {
                let backend = tables.backends.get(id).expect("a set's backend is there");
                assert_eq!((backend.service, backend.protocol), (entry.service, frontend.protocol));
                assert_eq!(backend.address.is_ipv6(), frontend.address.is_ipv6(), "families do not mix");
                assert!(ends.insert((backend.address, backend.port, backend.local, backend.terminating)), "twice");
            }
            ends
        };
        let (internal, external) = (ends(entry.internal), ends(entry.external));
        let ranges = tables.ranges.iter().filter(|(service, _)| *service == entry.service).map(|(_, range)| *range);
        let meaning = Meaning {
            kind: entry.kind,
            internal,
            external,
            affinity_s: entry.affinity_s,
            forwarding: entry.forwarding,
            external_local: entry.external_local,
            internal_local: entry.internal_local,
            skip_from_backend: entry.skip_from_backend,
            ranges: entry.source_ranges.then(|| ranges.collect()),
            tables: hashed == BTreeSet::from([size as usize]),
        };
        assert!(meaning.tables || hashed.iter().all(|length| *length == 0), "{hashed:?}");
        all.insert(*frontend, meaning);
    }
    all
}

/// The protocols of Services.
pub const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
