//! What is in force, by service.

use std::collections::{BTreeSet, HashMap, HashSet};
use weft_model::desired::{
    BackendEntry, BackendId, Frontend, FrontendEntry, ServiceId, ServicePatch, ServiceTables, SetId,
};

/// A set that cannot be: what names it is to be written anew.
const NO_SET: SetId = SetId(0);

/// What a service has in the tables.
#[derive(Default, Debug)]
pub(super) struct Rows {
    pub frontends: BTreeSet<Frontend>,
    pub backends: BTreeSet<BackendId>,
    pub sets: BTreeSet<SetId>,
}

/// The tables, with what it takes to find a service's rows.
#[derive(Default)]
pub(super) struct Held {
    tables: ServiceTables,
    services: HashMap<ServiceId, Rows>,
    /// Sets of nobody.
    strays: BTreeSet<SetId>,
    /// Sets that somebody else wrote.
    pub adopted: HashSet<SetId>,
}

impl Held {
    /// Takes over tables. Rows that do not fit each other are kept as what equals nothing that is ever wanted.
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
                    held.strays.insert(*id);
                }
            }
        }
        for (id, entry) in &tables.backends {
            held.rows(entry.service).backends.insert(*id);
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

    pub(super) fn strays(&self) -> &BTreeSet<SetId> {
        &self.strays
    }

    pub(super) fn frontend(&self, frontend: &Frontend) -> Option<&FrontendEntry> {
        self.tables.frontends.get(frontend)
    }

    fn rows(&mut self, service: ServiceId) -> &mut Rows {
        self.services.entry(service).or_default()
    }

    /// A patch is in force. Answers the backends that are gone.
    pub(super) fn apply(&mut self, patch: &ServicePatch) -> Vec<(BackendId, BackendEntry)> {
        let mut touched = BTreeSet::new();
        for (id, entry) in &patch.put_backends {
            self.rows(entry.service).backends.insert(*id);
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
            self.strays.remove(id);
            self.adopted.remove(id);
            if let Some(service) = self.service_of_set(*id) {
                self.rows(service).sets.remove(id);
            }
        }
        for (id, entry) in &gone {
            self.rows(entry.service).backends.remove(id);
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

    fn service_of_set(&self, id: SetId) -> Option<ServiceId> {
        let backend = self.tables.sets.get(&id)?.backends.first()?;
        self.tables.backends.get(backend).map(|entry| entry.service)
    }

    /// Source ranges of a service.
    pub(super) fn ranges(&self, service: ServiceId) -> impl Iterator<Item = ipnet::IpNet> {
        let first = (service, ipnet::IpNet::V4(ipnet::Ipv4Net::default()));
        self.tables.ranges.range(first..).take_while(move |(of, _)| *of == service).map(|(_, range)| *range)
    }
}
