//! The rows in force, indexed by service.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use weft_model::desired::{
    BackendEntry, BackendId, Frontend, FrontendEntry, ServiceId, ServicePatch, ServiceTables, SetId,
};
use weft_model::intent::Protocol;

/// No valid set: a frontend with it differs from every desired one, so it is written again.
const NO_SET: SetId = SetId(0);

/// The rows of one service.
#[derive(Default, Debug)]
pub(super) struct Rows {
    pub frontends: BTreeSet<Frontend>,
    pub backends: BTreeSet<BackendId>,
    pub sets: BTreeSet<SetId>,
}

#[derive(Default)]
pub(super) struct Held {
    tables: ServiceTables,
    services: HashMap<ServiceId, Rows>,
    /// Sets without a service.
    orphan_sets: BTreeSet<SetId>,
    /// Services by backend.
    places: BTreeSet<(IpAddr, u16, Protocol, ServiceId)>,
    /// Sets that a previous agent wrote.
    pub adopted: HashSet<SetId>,
}

impl Held {
    /// Adopts tables. Inconsistent rows are kept in a form that differs from every desired row, so that they are replaced.
    pub(super) fn adopt(mut tables: ServiceTables) -> Self {
        let mut held = Self::default();
        for (id, set) in &tables.sets {
            let mut services =
                set.backends.iter().map(|backend| tables.backends.get(backend).map(|entry| entry.service));
            let first = services.next().flatten();
            match first.filter(|_| services.all(|service| service == first)) {
                Some(service) => {
                    held.rows(service).sets.insert(*id);
                }
                None => {
                    held.orphan_sets.insert(*id);
                }
            }
        }
        for (id, entry) in &tables.backends {
            held.rows(entry.service).backends.insert(*id);
            held.places.insert(place(entry));
        }
        for (frontend, entry) in &mut tables.frontends {
            let rows = held.rows(entry.service);
            let known = |set: Option<SetId>| set.is_none_or(|set| rows.sets.contains(&set));
            if !known(entry.internal) || !known(entry.external) {
                (entry.internal, entry.external) = (Some(NO_SET), Some(NO_SET));
            }
            rows.frontends.insert(*frontend);
        }
        for (service, _) in &tables.ranges {
            held.rows(*service);
        }
        held.adopted = tables.sets.keys().copied().collect();
        held.tables = tables;
        held
    }

    pub(super) fn tables(&self) -> &ServiceTables {
        &self.tables
    }

    pub(super) fn of_service(&self, service: ServiceId) -> Option<&Rows> {
        self.services.get(&service)
    }

    pub(super) fn services(&self) -> impl Iterator<Item = ServiceId> {
        self.services.keys().copied()
    }

    pub(super) fn orphan_sets(&self) -> &BTreeSet<SetId> {
        &self.orphan_sets
    }

    pub(super) fn frontend(&self, frontend: &Frontend) -> Option<&FrontendEntry> {
        self.tables.frontends.get(frontend)
    }

    fn rows(&mut self, service: ServiceId) -> &mut Rows {
        self.services.entry(service).or_default()
    }

    /// A patch was written. Returns the backends that it removed.
    pub(super) fn apply(&mut self, patch: &ServicePatch) -> Vec<(BackendId, BackendEntry)> {
        let mut touched = BTreeSet::new();
        for (id, entry) in &patch.put_backends {
            self.rows(entry.service).backends.insert(*id);
            self.places.insert(place(entry));
        }
        for (frontend, entry) in &patch.put_frontends {
            if let Some(before) = self.tables.frontends.get(frontend).map(|before| before.service) {
                self.rows(before).frontends.remove(frontend);
                touched.insert(before);
            }
            self.rows(entry.service).frontends.insert(*frontend);
        }
        for frontend in &patch.del_frontends {
            let Some(service) = self.tables.frontends.get(frontend).map(|entry| entry.service) else { continue };
            self.rows(service).frontends.remove(frontend);
            touched.insert(service);
        }
        let gone = |id: &BackendId| Some((*id, *self.tables.backends.get(id)?));
        let gone: Vec<_> = patch.del_backends.iter().filter_map(gone).collect();
        for id in &patch.del_sets {
            self.orphan_sets.remove(id);
            self.adopted.remove(id);
            if let Some(service) = self.service_of_set(*id) {
                self.rows(service).sets.remove(id);
            }
        }
        for (id, entry) in &gone {
            self.rows(entry.service).backends.remove(id);
            self.places.remove(&place(entry));
            touched.insert(entry.service);
        }
        touched.extend(patch.del_ranges.iter().map(|(service, _)| *service));
        self.tables.apply(patch);
        for id in patch.put_sets.keys() {
            if let Some(service) = self.service_of_set(*id) {
                self.rows(service).sets.insert(*id);
            }
        }
        for service in touched {
            let rows = self.services.get(&service);
            let empty =
                rows.is_none_or(|rows| rows.frontends.is_empty() && rows.backends.is_empty() && rows.sets.is_empty());
            if empty && self.ranges(service).next().is_none() {
                self.services.remove(&service);
            }
        }
        gone
    }

    /// The service with this backend; of several the first.
    pub(super) fn service_behind(&self, address: IpAddr, port: u16, protocol: Protocol) -> Option<ServiceId> {
        let from = (address, port, protocol, ServiceId(0));
        let to = (address, port, protocol, ServiceId(u32::MAX));
        self.places.range(from..=to).next().map(|(.., service)| *service)
    }

    fn service_of_set(&self, id: SetId) -> Option<ServiceId> {
        let backend = self.tables.sets.get(&id)?.backends.first()?;
        self.tables.backends.get(backend).map(|entry| entry.service)
    }

    pub(super) fn ranges(&self, service: ServiceId) -> impl Iterator<Item = ipnet::IpNet> {
        let first = (service, ipnet::IpNet::V4(ipnet::Ipv4Net::default()));
        self.tables.ranges.range(first..).take_while(move |(of, _)| *of == service).map(|(_, range)| *range)
    }
}

fn place(entry: &BackendEntry) -> (IpAddr, u16, Protocol, ServiceId) {
    (entry.address, entry.port, entry.protocol, entry.service)
}
