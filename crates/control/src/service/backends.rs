//! EndpointSlices, and the selection of backends from their endpoints.

use super::interface::Settings;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use weft_model::intent::{Backends, NamedPort, ObjectName, Protocol, Topology};

/// Address and port of a backend.
pub(super) type BackendAddr = (IpAddr, u16);

/// The state of an endpoint. If several endpoints have one address and port, the greatest state counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum State {
    /// Neither ready nor terminating.
    NotReady,
    /// Terminating and not serving.
    Terminating,
    /// Terminating but serving: used if nothing is ready.
    Serving,
    Ready,
}

impl State {
    pub(super) fn is_terminating(self) -> bool {
        matches!(self, Self::Terminating | Self::Serving)
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Endpoint {
    address: IpAddr,
    ready: bool,
    serving: bool,
    terminating: bool,
    local: bool,
    zones: Option<Arc<BTreeSet<String>>>,
}

/// An EndpointSlice. Node names are reduced to `local`, sets of zones are interned.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Slice {
    ports: Vec<NamedPort>,
    endpoints: Vec<Endpoint>,
}

/// All EndpointSlices.
#[derive(Default)]
pub(super) struct Slices {
    of_service: HashMap<ObjectName, BTreeMap<ObjectName, Slice>>,
    service_of: HashMap<ObjectName, ObjectName>,
    zones: HashSet<Arc<BTreeSet<String>>>,
}

impl Slices {
    /// Upserts a slice. Returns the Services whose backends changed.
    pub(super) fn put(&mut self, slice: &Backends, settings: &Settings) -> Vec<ObjectName> {
        let mut changed = Vec::new();
        if self.service_of.get(&slice.slice).is_some_and(|service| *service != slice.service) {
            changed.extend(self.remove(&slice.slice));
        }
        let endpoints = slice.endpoints.iter().map(|endpoint| Endpoint {
            address: endpoint.address.to_canonical(),
            ready: endpoint.ready,
            serving: endpoint.serving,
            terminating: endpoint.terminating,
            local: endpoint.node.as_deref() == Some(&settings.node_name),
            zones: self.intern(&endpoint.for_zones),
        });
        let new = Slice { endpoints: endpoints.collect(), ports: slice.ports.clone() };
        self.service_of.insert(slice.slice.clone(), slice.service.clone());
        let slices = self.of_service.entry(slice.service.clone()).or_default();
        if slices.get(&slice.slice) != Some(&new) {
            slices.insert(slice.slice.clone(), new);
            changed.push(slice.service.clone());
        }
        changed
    }

    /// Deletes a slice. Returns its Service.
    pub(super) fn remove(&mut self, slice: &ObjectName) -> Option<ObjectName> {
        let service = self.service_of.remove(slice)?;
        let slices = self.of_service.get_mut(&service)?;
        slices.remove(slice);
        if slices.is_empty() {
            self.of_service.remove(&service);
        }
        Some(service)
    }

    fn intern(&mut self, zones: &BTreeSet<String>) -> Option<Arc<BTreeSet<String>>> {
        if zones.is_empty() {
            return None;
        }
        if let Some(known) = self.zones.get(zones) {
            return Some(known.clone());
        }
        // Collect unused sets whenever a new one is added.
        self.zones.retain(|zones| Arc::strong_count(zones) > 1);
        let zones = Arc::new(zones.clone());
        self.zones.insert(zones.clone());
        Some(zones)
    }

    /// The candidates for a port of a Service. The same address and port in several slices is one backend.
    pub(super) fn candidates(&self, service: &ObjectName, port: &str, protocol: Protocol, publish: bool) -> Candidates {
        let mut places: BTreeMap<BackendAddr, Candidate> = BTreeMap::new();
        for slice in self.of_service.get(service).into_iter().flat_map(BTreeMap::values) {
            let ports = slice.ports.iter().filter(|own| own.name == port && own.protocol == protocol);
            for number in ports.map(|own| own.port) {
                for endpoint in &slice.endpoints {
                    let state = match endpoint {
                        Endpoint { ready: true, .. } => State::Ready,
                        _ if publish => State::Ready,
                        Endpoint { terminating: true, serving: true, .. } => State::Serving,
                        Endpoint { terminating: true, .. } => State::Terminating,
                        _ => State::NotReady,
                    };
                    let new = Candidate { state, local: endpoint.local, zones: endpoint.zones.clone() };
                    let known = places.entry((endpoint.address, number)).or_insert_with(|| new.clone());
                    if new.state > known.state {
                        *known = new;
                    }
                }
            }
        }
        Candidates(places)
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Candidate {
    pub state: State,
    pub local: bool,
    zones: Option<Arc<BTreeSet<String>>>,
}

/// All candidates of a port.
pub(super) struct Candidates(pub BTreeMap<BackendAddr, Candidate>);

impl Candidates {
    /// Backends of one family for clients of this node, by topology.
    pub(super) fn of_cluster(&self, v6: bool, topology: Topology, zone: Option<&str>) -> Vec<BackendAddr> {
        let ready: Vec<_> = self.in_state(v6, State::Ready, false).collect();
        if ready.is_empty() {
            return places(self.in_state(v6, State::Serving, false));
        }
        let near = match topology {
            Topology::None => Vec::new(),
            Topology::Hints => of_zone(&ready, zone),
            Topology::SameNode => {
                let local: Vec<BackendAddr> = places(ready.iter().copied().filter(|(_, candidate)| candidate.local));
                if local.is_empty() { of_zone(&ready, zone) } else { local }
            }
        };
        if near.is_empty() { places(ready.into_iter()) } else { near }
    }

    /// Local backends of one family.
    pub(super) fn of_node(&self, v6: bool) -> Vec<BackendAddr> {
        let ready = places(self.in_state(v6, State::Ready, true));
        if ready.is_empty() { places(self.in_state(v6, State::Serving, true)) } else { ready }
    }

    fn in_state(&self, v6: bool, state: State, local: bool) -> impl Iterator<Item = (&BackendAddr, &Candidate)> {
        self.0.iter().filter(move |(place, candidate)| {
            place.0.is_ipv6() == v6 && candidate.state == state && (candidate.local || !local)
        })
    }
}

fn places<'a>(candidates: impl Iterator<Item = (&'a BackendAddr, &'a Candidate)>) -> Vec<BackendAddr> {
    candidates.map(|(place, _)| *place).collect()
}

/// The backends with a hint for the zone; none if one of them lacks hints, or the node has no zone.
fn of_zone(ready: &[(&BackendAddr, &Candidate)], zone: Option<&str>) -> Vec<BackendAddr> {
    let Some(zone) = zone.filter(|_| ready.iter().all(|(_, candidate)| candidate.zones.is_some())) else {
        return Vec::new();
    };
    let own = |candidate: &Candidate| candidate.zones.as_ref().is_some_and(|zones| zones.contains(zone));
    places(ready.iter().copied().filter(|(_, candidate)| own(candidate)))
}
