//! [`Engine`]: applies changes, plans patches, and keeps the rows in force.

use super::claims::{Claims, Standing};
use super::held::Held;
use super::interface::{LocalPod, Object, Problem, Reason, Settings};
use super::maglev;
use super::refuse::NodeAddresses;
use super::wanted::{PortKey, Sources, Wanted, WantedPort, depends_on_zone};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use weft_model::desired::{
    BackendEntry, BackendId, BackendSet, Frontend, FrontendEntry, ServiceId, ServicePatch, ServiceTables, SetId,
};
use weft_model::intent::{Algorithm, Change, LocalRedirect, Node, ObjectName, Protocol, RedirectFrontend, Service};

const ZONE: &str = "topology.kubernetes.io/zone";

/// The outcome of writing a patch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    Written,
    /// It does not fit, and nothing of it was written; with the reason for the objects' status.
    Refused(String),
    /// Some of it may have been written. Read back what the kernel has and call [`Engine::adopt`].
    Failed,
}

#[derive(Default)]
pub(super) struct Own {
    pub(super) ports: BTreeMap<PortKey, ServiceId>,
    claimed: BTreeMap<Frontend, Standing>,
    problems: Vec<Problem>,
    /// Why it did not fit.
    refused: Option<String>,
}

/// Objects that are planned in one patch.
#[derive(Clone, Default)]
struct Group {
    objects: BTreeSet<Arc<Object>>,
    /// Also remove all rows that no object owns.
    sweep: bool,
    /// A retry of a refused object, since there may be room now.
    retry: bool,
}

/// See [`crate::service`].
pub struct Engine {
    settings: Settings,
    sources: Sources,
    dirty: BTreeSet<Arc<Object>>,
    pub(super) objects: BTreeMap<Arc<Object>, Own>,
    claims: Claims,
    pub(super) held: Held,
    pub(super) owners: HashMap<ServiceId, (Arc<Object>, PortKey)>,
    /// Tables were adopted and not reconciled yet.
    adopted: bool,
    groups: VecDeque<Group>,
    planned: Option<(Group, ServicePatch)>,
    refused: VecDeque<Arc<Object>>,
    /// Objects of which something may not be in force.
    troubled: BTreeSet<Arc<Object>>,
    last_service: u32,
    last_backend: u32,
    last_set: u32,
}

impl Engine {
    /// Numbers are allocated after `first`. It should be random for every agent, since the kernel may still have affinity and
    /// socket state under the numbers of a previous one.
    #[must_use]
    pub fn new(settings: Settings, first: u32) -> Self {
        Self {
            settings,
            sources: Sources::default(),
            dirty: BTreeSet::new(),
            objects: BTreeMap::new(),
            claims: Claims::default(),
            held: Held::default(),
            owners: HashMap::new(),
            adopted: false,
            groups: VecDeque::new(),
            planned: None,
            refused: VecDeque::new(),
            troubled: BTreeSet::new(),
            last_service: first,
            last_backend: first,
            last_set: first,
        }
    }

    /// Adopts what the kernel has, after a restart or a failed write. Rows that equal desired ones stay, with their numbers.
    /// The next plan removes all others, so call it only after all sources have synced.
    pub fn adopt(&mut self, tables: ServiceTables) {
        self.held = Held::adopt(tables);
        self.adopted = true;
        self.planned = None;
        self.groups.clear();
        self.refused.clear();
        self.dirty.extend(self.objects.keys().cloned());
    }

    /// Applies a change and enqueues the objects that it concerns. Other kinds are ignored.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Service(service) => self.set_service(service),
            Change::ServiceGone(name) => self.remove_service_object(name),
            Change::Backends(slice) => {
                let services = self.sources.slices.put(slice, &self.settings);
                services.into_iter().for_each(|service| self.enqueue(Object::Service(service)));
            }
            Change::BackendsGone(slice) => {
                let service = self.sources.slices.remove(slice);
                service.into_iter().for_each(|service| self.enqueue(Object::Service(service)));
            }
            Change::LocalRedirect(redirect) => {
                let old = self.sources.redirects.insert(redirect.name.clone(), redirect.clone());
                old.iter().chain([redirect]).for_each(|redirect| self.enqueue_redirect(redirect));
            }
            Change::LocalRedirectGone(name) => {
                let old = self.sources.redirects.remove(name);
                old.iter().for_each(|redirect| self.enqueue_redirect(redirect));
            }
            Change::Node(node) => self.set_node(node),
            Change::NodeGone(name) => {
                self.set_addresses(name, NodeAddresses::default());
                self.sources.nodes.remove(name);
            }
            _ => {}
        }
    }

    fn set_service(&mut self, service: &Service) {
        let name = &service.name;
        match &service.routing {
            Some(routing)
                if self.sources.services.get(name) == Some(routing)
                    && self.sources.ages.get(name) == Some(&service.age) =>
            {
                return;
            }
            Some(routing) => {
                self.sources.services.insert(name.clone(), routing.clone());
                self.sources.ages.insert(name.clone(), service.age.clone());
            }
            None => self.forget_service(name),
        }
        self.enqueue_service(name);
    }

    fn remove_service_object(&mut self, name: &ObjectName) {
        if self.sources.services.contains_key(name) {
            self.forget_service(name);
            self.enqueue_service(name);
        }
    }

    fn forget_service(&mut self, name: &ObjectName) {
        self.sources.services.remove(name);
        self.sources.ages.remove(name);
    }

    fn enqueue_service(&mut self, name: &ObjectName) {
        let redirects: Vec<ObjectName> = self.sources.of_service(name).map(|redirect| redirect.name.clone()).collect();
        self.enqueue(Object::Service(name.clone()));
        redirects.into_iter().for_each(|name| self.enqueue(Object::Redirect(name)));
    }

    fn set_node(&mut self, node: &Node) {
        if !self.sources.nodes.get(&node.name).is_some_and(|known| known.same_as(node)) {
            self.set_addresses(&node.name, NodeAddresses::of(node));
        }
        if node.name != self.settings.node_name {
            return;
        }
        let zone = node.labels.get(ZONE).cloned();
        if zone == self.sources.zone {
            return;
        }
        self.sources.zone = zone;
        let affected = self.sources.services.iter().filter(|(_, routing)| depends_on_zone(routing));
        let affected: Vec<ObjectName> = affected.map(|(name, _)| name.clone()).collect();
        affected.into_iter().for_each(|name| self.enqueue(Object::Service(name)));
    }

    /// A node's addresses are no object's to take; its own are those that hostPorts may name.
    fn set_addresses(&mut self, node: &str, now: NodeAddresses) {
        let before = self.sources.nodes.insert(node.to_owned(), now).unwrap_or_default();
        let now = &self.sources.nodes[node];
        let concerned = |address: &IpAddr| {
            let address = address.to_canonical();
            before.has(address) != now.has(address)
        };
        let services = self.sources.services.iter();
        let services = services.filter(|(_, routing)| routing.external_ips.iter().any(concerned));
        let redirects = self.sources.redirects.values().filter(|redirect| match &redirect.frontend {
            RedirectFrontend::Address { address, .. } => concerned(address),
            RedirectFrontend::Service { .. } => false,
        });
        let mut objects: Vec<Object> = services.map(|(name, _)| Object::Service(name.clone())).collect();
        objects.extend(redirects.map(|redirect| Object::Redirect(redirect.name.clone())));
        if node == self.settings.node_name {
            let pods = self.sources.pods.values().filter(|pod| !pod.host_ports.is_empty());
            objects.extend(pods.map(|pod| Object::Pod(pod.name.clone())));
        }
        objects.into_iter().for_each(|object| self.enqueue(object));
    }

    /// Upserts a pod of this node.
    pub fn put_pod(&mut self, pod: LocalPod) {
        let old = self.sources.pods.get(&pod.name);
        if old == Some(&pod) {
            return;
        }
        let name = pod.name.clone();
        let old = self.sources.pods.insert(name.clone(), pod);
        self.enqueue_pod(&name, old);
    }

    pub fn remove_pod(&mut self, name: &ObjectName) {
        if let Some(old) = self.sources.pods.remove(name) {
            self.enqueue_pod(name, Some(old));
        }
    }

    fn enqueue_pod(&mut self, name: &ObjectName, old: Option<LocalPod>) {
        let new = self.sources.pods.get(name).cloned();
        let both: Vec<LocalPod> = old.into_iter().chain(new).collect();
        if both.iter().any(|pod| !pod.host_ports.is_empty()) {
            self.enqueue(Object::Pod(name.clone()));
        }
        let selects = |redirect: &&LocalRedirect| {
            redirect.name.namespace == name.namespace && both.iter().any(|pod| redirect.selector.matches(&pod.labels))
        };
        let redirects: Vec<LocalRedirect> = self.sources.redirects.values().filter(selects).cloned().collect();
        redirects.iter().for_each(|redirect| self.enqueue_redirect(redirect));
    }

    fn enqueue_redirect(&mut self, redirect: &LocalRedirect) {
        match &redirect.frontend {
            RedirectFrontend::Address { .. } => {}
            RedirectFrontend::Service { name, .. } => self.enqueue_service(name),
        }
        // Also if it is for a Service now: it may have been for an address before.
        self.enqueue(Object::Redirect(redirect.name.clone()));
    }

    fn enqueue(&mut self, object: Object) {
        self.dirty.insert(Arc::new(object));
    }

    /// Whether there is something to plan.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.adopted || self.planned.is_some() || !self.dirty.is_empty() || !self.groups.is_empty()
    }

    /// The next patch to write; `None`: everything that fits is in force. Report the outcome with [`Engine::done`] before
    /// planning the next one.
    pub fn plan(&mut self) -> Option<&ServicePatch> {
        if self.planned.is_none() {
            self.assign_frontends();
            while let Some(group) = self.groups.pop_front() {
                let patch = self.build(&group);
                if patch.is_empty() {
                    self.commit(&group);
                    continue;
                }
                self.planned = Some((group, patch));
                break;
            }
        }
        self.planned.as_ref().map(|(_, patch)| patch)
    }

    /// The planned patch whose outcome is not reported yet.
    pub(super) fn planned_patch(&self) -> Option<&ServicePatch> {
        self.planned.as_ref().map(|(_, patch)| patch)
    }

    /// Reports the outcome of the planned patch. Returns the backends that it removed.
    pub fn done(&mut self, outcome: Outcome) -> Vec<(BackendId, BackendEntry)> {
        let Some((group, patch)) = self.planned.take() else { return Vec::new() };
        match outcome {
            Outcome::Written => {
                let gone = self.held.apply(&patch);
                self.commit(&group);
                let room = !patch.del_sets.is_empty()
                    || !patch.del_backends.is_empty()
                    || !patch.del_frontends.is_empty()
                    || !patch.del_ranges.is_empty();
                if room || group.retry {
                    // Retry refused objects one at a time, until one does not fit.
                    let next = self.refused.pop_front();
                    self.groups.extend(next.map(|object| Group {
                        objects: [object].into(),
                        sweep: false,
                        retry: true,
                    }));
                }
                gone
            }
            Outcome::Refused(why) => {
                self.refuse(group, why);
                Vec::new()
            }
            Outcome::Failed => {
                self.groups.clear();
                self.dirty.extend(self.objects.keys().cloned());
                Vec::new()
            }
        }
    }

    /// Bisects a group that does not fit, down to the objects that do not fit alone.
    fn refuse(&mut self, mut group: Group, why: String) {
        if group.objects.len() + usize::from(group.sweep) <= 1 {
            for object in group.objects {
                if let Some(own) = self.objects.get_mut(&object) {
                    own.refused = Some(why.clone());
                    self.troubled.insert(object.clone());
                    self.refused.push_back(object);
                }
            }
            return;
        }
        if group.sweep {
            // Sweeping needs no room, but must follow: frontends are switched to new sets before old ones are removed.
            self.groups.push_front(Group { sweep: true, ..Group::default() });
            group.sweep = false;
        }
        let half = group.objects.len().div_ceil(2);
        let middle = group.objects.iter().nth(half).cloned();
        let second = middle.map(|middle| group.objects.split_off(&middle)).unwrap_or_default();
        if !second.is_empty() {
            self.groups.push_front(Group { objects: second, ..Group::default() });
        }
        self.groups.push_front(group);
    }

    /// The desired state of a group is in force.
    fn commit(&mut self, group: &Group) {
        for object in &group.objects {
            let Some(own) = self.objects.get_mut(object) else { continue };
            own.refused = None;
            if own.problems.is_empty() {
                self.troubled.remove(object);
            }
            let gone = |id: &ServiceId| self.held.of_service(*id).is_none();
            let released: Vec<PortKey> = own.ports.iter().filter(|(_, id)| gone(id)).map(|(key, _)| *key).collect();
            for key in released {
                if let Some(id) = own.ports.remove(&key) {
                    self.owners.remove(&id);
                }
            }
            if own.ports.is_empty() && own.claimed.is_empty() && own.problems.is_empty() {
                self.objects.remove(object);
            }
        }
        self.refused.retain(|object| !group.objects.contains(object));
    }

    fn wanted(&self, object: &Object) -> Wanted {
        match object {
            Object::Service(name) => self.sources.service(name, &self.settings),
            Object::Pod(name) => self.sources.pod(name, &self.settings),
            Object::Redirect(name) => self.sources.redirect(name, &self.settings),
        }
    }

    /// Decides the owners of frontends, and groups the objects to plan.
    fn assign_frontends(&mut self) {
        let (mut objects, mut moved) = (std::mem::take(&mut self.dirty), BTreeSet::new());
        for object in &objects {
            let wanted = self.wanted(object);
            let age = self.sources.age(object);
            let standing = |(frontend, kind)| (frontend, Standing::new(kind, age.clone()));
            let frontends: BTreeMap<Frontend, Standing> = wanted.frontends().into_iter().map(standing).collect();
            let own = self.objects.entry(object.clone()).or_default();
            own.problems = wanted.problems;
            if own.problems.is_empty() && own.refused.is_none() {
                self.troubled.remove(object);
            } else {
                self.troubled.insert(object.clone());
            }
            let before = std::mem::replace(&mut own.claimed, frontends);
            for (frontend, standing) in before.iter().filter(|(at, was)| own.claimed.get(at) != Some(was)) {
                self.claims.release(frontend, standing.clone(), object);
                moved.insert(*frontend);
            }
            for (frontend, standing) in own.claimed.iter().filter(|(at, is)| before.get(at) != Some(is)) {
                self.claims.claim(frontend, standing.clone(), object);
                moved.insert(*frontend);
            }
        }
        // Both who lost and who got a frontend have something to plan.
        for frontend in &moved {
            objects.extend(self.claims.decide(frontend));
        }
        if std::mem::take(&mut self.adopted) {
            self.match_adopted(&objects);
            self.groups.push_back(Group { objects, sweep: true, retry: false });
        } else if !objects.is_empty() {
            self.groups.push_back(Group { objects, ..Group::default() });
        }
    }

    /// Finds the numbers of adopted rows: first by frontends that only one object claims, so that one that lost a frontend
    /// meanwhile keeps the numbers of what it has.
    fn match_adopted(&mut self, objects: &BTreeSet<Arc<Object>>) {
        for object in objects {
            for (key, port) in self.wanted(object).ports {
                let plain = port.frontends.keys().filter(|frontend| !self.claims.is_contested(frontend));
                self.adopt_number(object, key, plain.copied().collect());
            }
        }
    }

    /// Gives a port the number under which one of its frontends is in force, unless it has one.
    fn adopt_number(&mut self, object: &Arc<Object>, key: PortKey, frontends: Vec<Frontend>) {
        let own = self.objects.entry(object.clone()).or_default();
        if own.ports.contains_key(&key) {
            return;
        }
        let in_force = frontends.iter().filter_map(|frontend| Some(self.held.frontend(frontend)?.service));
        let mut free = in_force.filter(|id| id.0 != 0 && !self.owners.contains_key(id));
        if let Some(id) = free.next() {
            own.ports.insert(key, id);
            self.owners.insert(id, (object.clone(), key));
        }
    }

    /// The patch from the rows in force to the desired ones of a group.
    fn build(&mut self, group: &Group) -> ServicePatch {
        let mut patch = ServicePatch::default();
        for object in &group.objects {
            let mut wanted = self.wanted(object);
            for port in wanted.ports.values_mut() {
                port.keep(|frontend| self.claims.owner(frontend) == Some(object));
            }
            wanted.ports.retain(|_, port| !port.frontends.is_empty());
            for (key, port) in &wanted.ports {
                self.adopt_number(object, *key, port.frontends.keys().copied().collect());
                let id = self.number(object, *key);
                self.plan_port(id, key, port, &mut patch);
            }
            let Some(own) = self.objects.get(object) else { continue };
            for (_, id) in own.ports.iter().filter(|(key, _)| !wanted.ports.contains_key(*key)) {
                self.remove_service(*id, &mut patch);
            }
        }
        if group.sweep {
            for id in self.held.services().filter(|id| !self.owners.contains_key(id)) {
                self.remove_service(id, &mut patch);
            }
            patch.del_sets.extend(self.held.orphan_sets());
        }
        patch.del_frontends.retain(|frontend| !patch.put_frontends.contains_key(frontend));
        patch
    }

    /// The number of a port, allocated if it has none.
    fn number(&mut self, object: &Arc<Object>, key: PortKey) -> ServiceId {
        let own = self.objects.entry(object.clone()).or_default();
        *own.ports.entry(key).or_insert_with(|| {
            let taken = |id: u32| {
                let id = ServiceId(id);
                self.owners.contains_key(&id) || self.held.of_service(id).is_some()
            };
            let id = ServiceId(next(&mut self.last_service, taken));
            self.owners.insert(id, (object.clone(), key));
            id
        })
    }

    fn plan_port(&mut self, service: ServiceId, (_, protocol): &PortKey, port: &WantedPort, patch: &mut ServicePatch) {
        let (backends, mut keep) = (self.plan_backends(service, *protocol, port, patch), BTreeSet::new());
        let sets: Vec<SetId> = port
            .sets
            .iter()
            .map(|places| {
                let ids: Vec<BackendId> = places.iter().map(|place| backends[place]).collect();
                let size = if port.algorithm == Algorithm::Maglev { self.settings.table_size } else { 0 };
                let table = || maglev::table(places, *protocol, size);
                self.set_in_force(service, &ids, size, &table, patch).unwrap_or_else(|| {
                    let taken = |id: u32| self.held.tables().sets.contains_key(&SetId(id));
                    let id = SetId(next(&mut self.last_set, taken));
                    patch.put_sets.insert(id, BackendSet { backends: ids, table: table() });
                    id
                })
            })
            .collect();
        keep.extend(sets.iter().copied());
        for (frontend, wanted) in &port.frontends {
            let entry = FrontendEntry {
                service,
                kind: wanted.kind,
                internal: wanted.internal.map(|set| sets[set]),
                external: wanted.external.map(|set| sets[set]),
                affinity_s: port.affinity_s,
                forwarding: port.forwarding,
                source_ranges: wanted.source_ranges,
                external_local: wanted.external_local,
                internal_local: wanted.internal_local,
                skip_from_backend: wanted.skip_from_backend,
            };
            if self.held.frontend(frontend) != Some(&entry) {
                patch.put_frontends.insert(*frontend, entry);
            }
        }
        let held: BTreeSet<_> = self.held.ranges(service).collect();
        patch.put_ranges.extend(port.ranges.difference(&held).map(|range| (service, *range)));
        patch.del_ranges.extend(held.difference(&port.ranges).map(|range| (service, *range)));
        let Some(rows) = self.held.of_service(service) else { return };
        patch.del_frontends.extend(rows.frontends.iter().filter(|frontend| !port.frontends.contains_key(frontend)));
        patch.del_sets.extend(rows.sets.difference(&keep));
    }

    /// The numbers of a port's backends; those in force keep theirs.
    fn plan_backends(
        &mut self,
        service: ServiceId,
        protocol: Protocol,
        port: &WantedPort,
        patch: &mut ServicePatch,
    ) -> HashMap<super::backends::BackendAddr, BackendId> {
        let tables = self.held.tables();
        let mut present = HashMap::new();
        for id in self.held.of_service(service).into_iter().flat_map(|rows| &rows.backends) {
            let Some(entry) = tables.backends.get(id) else { continue };
            let place = (entry.address, entry.port);
            let wanted = entry.protocol == protocol && port.backends.contains_key(&place);
            if !wanted || present.contains_key(&place) {
                patch.del_backends.insert(*id);
            } else {
                present.insert(place, *id);
            }
        }
        for (place, of) in &port.backends {
            let id = *present.entry(*place).or_insert_with(|| {
                BackendId(next(&mut self.last_backend, |id| tables.backends.contains_key(&BackendId(id))))
            });
            let entry = BackendEntry {
                service,
                address: place.0,
                port: place.1,
                protocol,
                local: of.local,
                terminating: of.terminating,
            };
            if tables.backends.get(&id) != Some(&entry) {
                patch.put_backends.insert(id, entry);
            }
        }
        present
    }

    /// A set in force with exactly these backends, none of which changes.
    fn set_in_force(
        &self,
        service: ServiceId,
        ids: &[BackendId],
        size: u32,
        table: &dyn Fn() -> Vec<u16>,
        patch: &ServicePatch,
    ) -> Option<SetId> {
        if ids.iter().any(|id| patch.put_backends.contains_key(id)) {
            return None;
        }
        let sets = &self.held.tables().sets;
        let same = |id: &&SetId| {
            sets.get(*id).is_some_and(|set| {
                let length = set.table.len() == size as usize;
                set.backends == ids && length && (size == 0 || !self.held.adopted.contains(*id) || set.table == table())
            })
        };
        self.held.of_service(service)?.sets.iter().find(same).copied()
    }

    fn remove_service(&self, id: ServiceId, patch: &mut ServicePatch) {
        patch.del_ranges.extend(self.held.ranges(id).map(|range| (id, range)));
        let Some(rows) = self.held.of_service(id) else { return };
        patch.del_frontends.extend(&rows.frontends);
        patch.del_sets.extend(&rows.sets);
        patch.del_backends.extend(&rows.backends);
    }

    /// The rows in force.
    #[must_use]
    pub fn tables(&self) -> &ServiceTables {
        self.held.tables()
    }

    /// The owner of a frontend in force.
    #[must_use]
    pub fn object_at(&self, frontend: &Frontend) -> Option<&Arc<Object>> {
        let entry = self.held.frontend(frontend)?;
        self.owners.get(&entry.service).map(|(object, _)| object)
    }

    /// The owner of a backend; of several the one with the lowest number.
    #[must_use]
    pub fn object_behind(&self, address: IpAddr, port: u16, protocol: Protocol) -> Option<&Arc<Object>> {
        let service = self.held.service_behind(address, port, protocol)?;
        self.owners.get(&service).map(|(object, _)| object)
    }

    /// Number of Services with frontends in force.
    #[must_use]
    pub fn count(&self) -> usize {
        let services = self.objects.iter().filter(|(object, _)| matches!(***object, Object::Service(_)));
        services.filter(|(_, own)| own.ports.values().any(|id| self.held.of_service(*id).is_some())).count()
    }

    /// Objects that are not in force as written.
    #[must_use]
    pub fn problems(&self) -> BTreeMap<Object, Vec<Problem>> {
        let mut problems: BTreeMap<Object, Vec<Problem>> = BTreeMap::new();
        for object in &self.troubled {
            let Some(own) = self.objects.get(object) else { continue };
            let refused = own.refused.iter().map(|text| Problem { reason: Reason::NoRoom, text: text.clone() });
            let all: Vec<Problem> = own.problems.iter().cloned().chain(refused).collect();
            if !all.is_empty() {
                problems.insert((**object).clone(), all);
            }
        }
        for (frontend, owner, loser) in self.claims.contested() {
            let text = format!("{}: already in use by {owner}", super::list::frontend(&frontend));
            let problem = Problem { reason: Reason::FrontendConflict, text };
            problems.entry((**loser).clone()).or_default().push(problem);
        }
        problems
    }
}

/// The next free number. Never 0.
fn next(last: &mut u32, taken: impl Fn(u32) -> bool) -> u32 {
    loop {
        *last = last.wrapping_add(1);
        if *last != 0 && !taken(*last) {
            return *last;
        }
    }
}
