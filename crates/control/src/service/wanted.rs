//! From a Service, a pod or a redirect to the frontends and backends that it shall have: a pure function of the tables.

use super::backends::{BackendAddr, Candidates, Slices};
use super::interface::{LocalPod, Object, Problem, Reason, Settings};
use super::refuse::NodeAddresses;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use weft_model::desired::{Frontend, FrontendKind};
use weft_model::intent::{
    Age, Algorithm, Forwarding, LocalRedirect, ObjectName, Protocol, Routing, ServicePort, Topology,
};

/// Maximum number of backends in a set.
pub(super) const BACKENDS_MAX: usize = 65_534;

/// A port of an object.
pub(super) type PortKey = (u16, Protocol);

/// The tables of the inputs.
#[derive(Default)]
pub(super) struct Sources {
    pub services: HashMap<ObjectName, Routing>,
    pub slices: Slices,
    pub redirects: BTreeMap<ObjectName, LocalRedirect>,
    pub pods: BTreeMap<ObjectName, LocalPod>,
    /// Zone of this node.
    pub zone: Option<String>,
    pub ages: HashMap<ObjectName, Age>,
    pub nodes: BTreeMap<String, NodeAddresses>,
}

/// Attributes of a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Trait {
    pub local: bool,
    pub terminating: bool,
}

/// A frontend; sets are indexes into [`WantedPort::sets`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct WantedFrontend {
    pub kind: FrontendKind,
    pub internal: Option<usize>,
    pub external: Option<usize>,
    pub external_local: bool,
    pub internal_local: bool,
    pub source_ranges: bool,
    pub skip_from_backend: bool,
}

impl WantedFrontend {
    /// Without backends.
    pub(super) const fn of_kind(kind: FrontendKind) -> Self {
        Self {
            kind,
            internal: None,
            external: None,
            external_local: false,
            internal_local: false,
            source_ranges: false,
            skip_from_backend: false,
        }
    }
}

/// One port of an object.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct WantedPort {
    pub frontends: BTreeMap<Frontend, WantedFrontend>,
    /// All backends to keep: those in a set, and terminating ones for their connections.
    pub backends: BTreeMap<BackendAddr, Trait>,
    /// None is empty.
    pub sets: Vec<Vec<BackendAddr>>,
    pub ranges: BTreeSet<IpNet>,
    pub affinity_s: Option<u32>,
    pub forwarding: Forwarding,
    pub algorithm: Algorithm,
}

impl WantedPort {
    /// The index of the set of these backends; equal sets are shared.
    pub(super) fn set(&mut self, places: Vec<BackendAddr>) -> Option<usize> {
        if places.is_empty() {
            return None;
        }
        let known = self.sets.iter().position(|known| *known == places);
        Some(known.unwrap_or_else(|| {
            self.sets.push(places);
            self.sets.len() - 1
        }))
    }

    fn frontend(&mut self, frontend: Frontend, wanted: WantedFrontend) {
        self.frontends.entry(frontend).or_insert(wanted);
    }

    /// Keeps only some frontends, and what they need.
    pub(super) fn keep(&mut self, keep: impl Fn(&Frontend) -> bool) {
        let before = self.frontends.len();
        self.frontends.retain(|frontend, _| keep(frontend));
        if self.frontends.len() < before {
            self.prune();
        }
    }

    /// Removes what no frontend needs, except terminating backends.
    fn prune(&mut self) {
        let old = std::mem::take(&mut self.sets);
        let mut frontends = std::mem::take(&mut self.frontends);
        for frontend in frontends.values_mut() {
            frontend.internal = frontend.internal.and_then(|set| self.set(old[set].clone()));
            frontend.external = frontend.external.and_then(|set| self.set(old[set].clone()));
        }
        if !frontends.values().any(|frontend| frontend.source_ranges) {
            self.ranges.clear();
        }
        self.frontends = frontends;
        let used: BTreeSet<BackendAddr> = self.sets.iter().flatten().copied().collect();
        self.backends.retain(|place, of| of.terminating || used.contains(place));
    }

    fn add_backend(&mut self, candidates: &Candidates, place: &BackendAddr) {
        if let Some(candidate) = candidates.0.get(place) {
            let terminating = candidate.state.is_terminating();
            self.backends.insert(*place, Trait { local: candidate.local, terminating });
        }
    }
}

/// The desired state of an object, and its problems.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Wanted {
    pub ports: BTreeMap<PortKey, WantedPort>,
    pub problems: Vec<Problem>,
}

impl Wanted {
    pub(super) fn problem(&mut self, reason: Reason, text: String) {
        self.problems.push(Problem { reason, text });
    }

    /// All frontends of the object.
    pub(super) fn frontends(&self) -> BTreeMap<Frontend, FrontendKind> {
        let ports = self.ports.values().flat_map(|port| &port.frontends);
        ports.map(|(frontend, wanted)| (*frontend, wanted.kind)).collect()
    }

    fn add(&mut self, key: PortKey, mut port: WantedPort) {
        for set in &mut port.sets {
            if set.len() > BACKENDS_MAX {
                let text = format!("port {}: {} backends, only the first {BACKENDS_MAX} are used", key.0, set.len());
                self.problems.push(Problem { reason: Reason::TooManyBackends, text });
                set.truncate(BACKENDS_MAX);
            }
        }
        // If two ports of an object name one frontend, the first gets it.
        let taken = self.frontends();
        port.keep(|frontend| !taken.contains_key(frontend));
        if !port.frontends.is_empty() {
            self.ports.insert(key, port);
        }
    }
}

/// Stands for all own addresses of the node of a family.
pub(super) const fn any(v6: bool) -> IpAddr {
    if v6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) }
}

impl Sources {
    pub(super) fn service(&self, name: &ObjectName, settings: &Settings) -> Wanted {
        let mut wanted = Wanted::default();
        let Some(routing) = self.services.get(name) else { return wanted };
        if let Some(port) = routing.health_check_node_port.filter(|port| !settings.node_ports.contains(port)) {
            let (first, last) = (settings.node_ports.start(), settings.node_ports.end());
            let text = format!("healthCheckNodePort {port}: expected {first} to {last}, the node port range");
            wanted.problem(Reason::NodePortOutOfRange, text);
        }
        for port in &routing.ports {
            if !matches!(port.protocol, Protocol::Tcp | Protocol::Udp | Protocol::Sctp) {
                continue;
            }
            let made = self.service_port(name, routing, port, settings, &mut wanted);
            wanted.add((port.port, port.protocol), made);
        }
        wanted
    }

    fn service_port(
        &self,
        name: &ObjectName,
        routing: &Routing,
        port: &ServicePort,
        settings: &Settings,
        wanted: &mut Wanted,
    ) -> WantedPort {
        let candidates = self.slices.candidates(name, &port.name, port.protocol, routing.publish_not_ready);
        let mut made = WantedPort {
            affinity_s: routing.affinity_s.filter(|seconds| *seconds > 0),
            forwarding: routing.forwarding.unwrap_or(settings.forwarding),
            algorithm: routing.algorithm,
            ..WantedPort::default()
        };
        let node_port = self.node_port(routing, port, settings, wanted);
        let mut external = Vec::new();
        for address in routing.external_ips.iter().map(IpAddr::to_canonical) {
            match self.refused_external(address, &settings.allowed) {
                None => external.push(address),
                Some(why) => wanted.problem(Reason::FrontendRefused, format!("port {}: {why}", port.port)),
            }
        }
        for v6 in [false, true] {
            let on = if v6 { settings.ipv6 } else { settings.ipv4 };
            let has = routing.cluster_ips.is_empty() || routing.cluster_ips.iter().any(|ip| ip.is_ipv6() == v6);
            if on && has {
                self.service_family(name, routing, (port, node_port, &external), (&candidates, v6), &mut made);
            }
        }
        if made.frontends.values().any(|frontend| frontend.source_ranges) {
            made.ranges = routing.source_ranges.iter().map(IpNet::trunc).collect();
        }
        // An address that the Service has twice, as its own and as an external one, needs no set for the second.
        let used = made.frontends.values().flat_map(|frontend| [frontend.internal, frontend.external]).flatten();
        if used.collect::<BTreeSet<usize>>().len() < made.sets.len() {
            made.prune();
        }
        for places in made.sets.clone() {
            places.iter().for_each(|place| made.add_backend(&candidates, place));
        }
        // Terminating backends keep their connections until they are removed.
        for (place, candidate) in &candidates.0 {
            if candidate.state.is_terminating() && settings.has_family_of(place.0) {
                made.add_backend(&candidates, place);
            }
        }
        self.redirect_backends(&mut made);
        made
    }

    /// The NodePort, if it is in the range.
    fn node_port(
        &self,
        routing: &Routing,
        port: &ServicePort,
        settings: &Settings,
        wanted: &mut Wanted,
    ) -> Option<u16> {
        if !routing.node_ports || port.node_port == 0 {
            return None;
        }
        if settings.node_ports.contains(&port.node_port) {
            return Some(port.node_port);
        }
        let (first, last) = (settings.node_ports.start(), settings.node_ports.end());
        let text =
            format!("port {}: nodePort {}: expected {first} to {last}, the node port range", port.port, port.node_port);
        wanted.problem(Reason::NodePortOutOfRange, text);
        None
    }

    fn service_family(
        &self,
        name: &ObjectName,
        routing: &Routing,
        (port, node_port, external): (&ServicePort, Option<u16>, &[IpAddr]),
        (candidates, v6): (&Candidates, bool),
        made: &mut WantedPort,
    ) {
        let of_family = |addresses: &[IpAddr]| {
            let addresses = addresses.iter().map(IpAddr::to_canonical).filter(move |address| address.is_ipv6() == v6);
            addresses.collect::<Vec<_>>()
        };
        let at = |address| Frontend { address, port: port.port, protocol: port.protocol };
        let cluster_ips = of_family(&routing.cluster_ips);
        let (load_balancer, external) = (of_family(&routing.load_balancer_ips), of_family(external));
        let outside = node_port.is_some() || !load_balancer.is_empty() || !external.is_empty();

        let everywhere = candidates.of_cluster(v6, routing.topology, self.zone.as_deref());
        let here = if routing.internal_local || routing.external_local { candidates.of_node(v6) } else { Vec::new() };
        let plain = WantedFrontend::of_kind(FrontendKind::ClusterIp);
        if !cluster_ips.is_empty() {
            let redirected = self.redirected(name, routing, port, v6);
            let frontend = match redirected {
                Some((places, skip_from_backend)) => {
                    WantedFrontend { internal: made.set(places), skip_from_backend, ..plain }
                }
                None => {
                    let inside = if routing.internal_local { here.clone() } else { everywhere.clone() };
                    WantedFrontend { internal: made.set(inside), internal_local: routing.internal_local, ..plain }
                }
            };
            cluster_ips.into_iter().for_each(|address| made.frontend(at(address), frontend));
        }
        if !outside {
            return;
        }
        // `internalTrafficPolicy` applies to cluster IPs only, `externalTrafficPolicy` to external clients only.
        let internal = made.set(everywhere.clone());
        let external_set = made.set(if routing.external_local { here } else { everywhere });
        let open = WantedFrontend { internal, external: external_set, external_local: routing.external_local, ..plain };
        if let Some(port) = node_port {
            let frontend = Frontend { address: any(v6), port, protocol: at(any(v6)).protocol };
            made.frontend(frontend, WantedFrontend { kind: FrontendKind::NodePort, ..open });
        }
        for address in load_balancer {
            let source_ranges = !routing.source_ranges.is_empty();
            made.frontend(at(address), WantedFrontend { kind: FrontendKind::LoadBalancer, source_ranges, ..open });
        }
        for address in external {
            made.frontend(at(address), WantedFrontend { kind: FrontendKind::ExternalIp, ..open });
        }
    }

    /// The desired state for the hostPorts of a pod.
    pub(super) fn pod(&self, name: &ObjectName, settings: &Settings) -> Wanted {
        let mut wanted = Wanted::default();
        let Some(pod) = self.pods.get(name) else { return wanted };
        for host_port in &pod.host_ports {
            if let Some(why) = self.refused_host_port(host_port, settings) {
                wanted.problem(Reason::FrontendRefused, why);
                continue;
            }
            let mut made = WantedPort { forwarding: settings.forwarding, ..WantedPort::default() };
            for address in pod.addresses.iter().map(IpAddr::to_canonical) {
                let v6 = address.is_ipv6();
                let host = host_port.host_ip.map(|host| host.to_canonical()).unwrap_or(any(v6));
                if host.is_ipv6() != v6 || !settings.has_family_of(address) {
                    continue;
                }
                let place = (address, host_port.container_port);
                made.backends.insert(place, Trait { local: true, terminating: false });
                let set = made.set(vec![place]);
                let frontend = Frontend { address: host, port: host_port.port, protocol: host_port.protocol };
                let at =
                    WantedFrontend { internal: set, external: set, ..WantedFrontend::of_kind(FrontendKind::HostPort) };
                made.frontend(frontend, at);
            }
            match wanted.ports.get_mut(&(host_port.port, host_port.protocol)) {
                // The same port on several addresses of the node.
                Some(known) => known.join(made),
                None => wanted.add((host_port.port, host_port.protocol), made),
            }
        }
        wanted
    }
}

impl WantedPort {
    fn join(&mut self, other: Self) {
        for (frontend, wanted) in other.frontends {
            let mut set = |of: Option<usize>| of.and_then(|index| self.set(other.sets[index].clone()));
            let (internal, external) = (set(wanted.internal), set(wanted.external));
            self.frontend(frontend, WantedFrontend { internal, external, ..wanted });
        }
        self.backends.extend(other.backends);
        self.prune();
    }
}

impl Sources {
    pub(super) fn age(&self, object: &Object) -> Age {
        let age = match object {
            Object::Service(name) => self.ages.get(name),
            Object::Pod(name) => self.pods.get(name).map(|pod| &pod.age),
            Object::Redirect(name) => self.redirects.get(name).map(|redirect| &redirect.age),
        };
        age.cloned().unwrap_or_default()
    }
}

/// Whether the selection of backends depends on the zone of the node.
pub(super) fn depends_on_zone(routing: &Routing) -> bool {
    routing.topology != Topology::None
}
