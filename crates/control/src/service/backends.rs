//! EndpointSlices, and which of their endpoints a client is sent to.

use super::Settings;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use weft_model::intent::{Backends, NamedPort, ObjectName, Protocol, Topology};

/// Where a backend is.
pub(super) type Place = (IpAddr, u16);

/// What counts of an endpoint. Better ones are greater: of two that are the same place the better one counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum State {
    /// Takes nothing.
    Idle,
    /// Ends, and does not answer any more.
    Ending,
    /// Ends, and answers: better than nothing.
    Serving,
    /// Takes new connections.
    Ready,
}

impl State {
    pub(super) fn is_terminating(self) -> bool {
        matches!(self, Self::Ending | Self::Serving)
    }
}

/// An endpoint of a slice.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Endpoint {
    address: IpAddr,
    ready: bool,
    serving: bool,
    terminating: bool,
    local: bool,
    zones: Option<Arc<BTreeSet<String>>>,
}

/// A slice. Names of nodes are not kept, sets of zones once.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Slice {
    ports: Vec<NamedPort>,
    endpoints: Vec<Endpoint>,
}

/// All slices.
#[derive(Default)]
pub(super) struct Slices {
    of_service: HashMap<ObjectName, BTreeMap<ObjectName, Slice>>,
    service_of: HashMap<ObjectName, ObjectName>,
    zones: HashSet<Arc<BTreeSet<String>>>,
}

impl Slices {
    /// Takes in a slice; answers the Services behind which something changed.
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

    /// A slice is gone; answers its Service.
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
        // What nobody uses any more goes when something new comes.
        self.zones.retain(|zones| Arc::strong_count(zones) > 1);
        let zones = Arc::new(zones.clone());
        self.zones.insert(zones.clone());
        Some(zones)
    }

    /// The backends of a port of a Service. The same place in several slices is one backend.
    pub(super) fn candidates(&self, service: &ObjectName, port: &str, protocol: Protocol, publish: bool) -> Candidates {
        let mut places: BTreeMap<Place, Candidate> = BTreeMap::new();
        for slice in self.of_service.get(service).into_iter().flat_map(BTreeMap::values) {
            let ports = slice.ports.iter().filter(|own| own.name == port && own.protocol == protocol);
            for number in ports.map(|own| own.port) {
                for endpoint in &slice.endpoints {
                    let state = match endpoint {
                        Endpoint { ready: true, .. } => State::Ready,
                        _ if publish => State::Ready,
                        Endpoint { terminating: true, serving: true, .. } => State::Serving,
                        Endpoint { terminating: true, .. } => State::Ending,
                        _ => State::Idle,
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

/// What might be a backend of a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Candidate {
    pub state: State,
    pub local: bool,
    zones: Option<Arc<BTreeSet<String>>>,
}

/// All of a port, in order.
pub(super) struct Candidates(pub BTreeMap<Place, Candidate>);

impl Candidates {
    /// Those that a client of this node's is sent to, of one family.
    pub(super) fn of_cluster(&self, v6: bool, topology: Topology, zone: Option<&str>) -> Vec<Place> {
        let ready: Vec<_> = self.in_state(v6, State::Ready, false).collect();
        if ready.is_empty() {
            return places(self.in_state(v6, State::Serving, false));
        }
        let near = match topology {
            Topology::None => Vec::new(),
            Topology::Hints => of_zone(&ready, zone),
            Topology::SameNode => {
                let local: Vec<Place> = places(ready.iter().copied().filter(|(_, candidate)| candidate.local));
                if local.is_empty() { of_zone(&ready, zone) } else { local }
            }
        };
        if near.is_empty() { places(ready.into_iter()) } else { near }
    }

    /// Those on this node, of one family.
    pub(super) fn of_node(&self, v6: bool) -> Vec<Place> {
        let ready = places(self.in_state(v6, State::Ready, true));
        if ready.is_empty() { places(self.in_state(v6, State::Serving, true)) } else { ready }
    }

    fn in_state(&self, v6: bool, state: State, local: bool) -> impl Iterator<Item = (&Place, &Candidate)> {
        self.0.iter().filter(move |(place, candidate)| {
            place.0.is_ipv6() == v6 && candidate.state == state && (candidate.local || !local)
        })
    }
}

fn places<'a>(candidates: impl Iterator<Item = (&'a Place, &'a Candidate)>) -> Vec<Place> {
    candidates.map(|(place, _)| *place).collect()
}

/// Those that the hints give to a zone; none if one has no hints, or the node no zone.
fn of_zone(ready: &[(&Place, &Candidate)], zone: Option<&str>) -> Vec<Place> {
    let Some(zone) = zone.filter(|_| ready.iter().all(|(_, candidate)| candidate.zones.is_some())) else {
        return Vec::new();
    };
    let own = |candidate: &Candidate| candidate.zones.as_ref().is_some_and(|zones| zones.contains(zone));
    places(ready.iter().copied().filter(|(_, candidate)| own(candidate)))
}
