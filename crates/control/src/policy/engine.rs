//! The engine's state and what changes it.

use super::peers::Pods;
use super::prefix::Prefixes;
use super::resolved::{Key, PortName, Resolved, Usage};
use super::rule::{Rule, RuleNumbers};
use super::selector::Selectors;
use super::{Change, Desired, Direction, EndpointPolicy, Limits, LocalEndpoint, Overflow, Plan, Problem, RuleRef};
use foldhash::HashMap;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use weft_model::desired::CompiledPolicy;
use weft_model::id::{ClassId, EndpointId, Identity, PolicyId, RuleId};
use weft_model::intent::{self, ObjectName, Policy, RemoteEndpoint};
use weft_model::label::LabelSet;

/// A policy object in force.
#[derive(Debug)]
pub(super) struct PolicyRow {
    pub(super) object: Arc<Policy>,
    pub(super) ingress: Option<Vec<Arc<Rule>>>,
    pub(super) egress: Option<Vec<Arc<Rule>>>,
    /// Endpoints that it selects.
    pub(super) endpoints: BTreeSet<EndpointId>,
    /// What of it can not be honoured.
    notes: Vec<String>,
}

impl PolicyRow {
    pub(super) fn rules(&self, direction: Direction) -> Option<&Vec<Arc<Rule>>> {
        match direction {
            Direction::Ingress => self.ingress.as_ref(),
            Direction::Egress => self.egress.as_ref(),
        }
    }
}

/// A version of a policy object that could not be put in force.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) object: Arc<Policy>,
    pub(super) problem: Overflow,
    /// Endpoints that were there before: they keep what was in force. Others are blocked.
    pub(super) spared: BTreeSet<EndpointId>,
}

/// An endpoint of this node.
#[derive(Debug)]
pub(super) struct EndpointRow {
    pub(super) endpoint: LocalEndpoint,
    /// Policies that select it.
    pub(super) policies: BTreeSet<ObjectName>,
    /// What it has.
    pub(super) now: EndpointPolicy,
    /// What was announced in a plan.
    pub(super) announced: Option<EndpointPolicy>,
}

/// What the batch under way must still look at.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    /// Endpoints to resolve.
    pub(super) endpoints: BTreeSet<EndpointId>,
    /// Peers to class again.
    pub(super) peers: BTreeMap<PolicyId, BTreeSet<Identity>>,
    /// Endpoints whose policies may have changed.
    pub(super) switched: BTreeSet<EndpointId>,
    /// Endpoints whose flows must decide again in any case.
    pub(super) touched: BTreeSet<EndpointId>,
    /// Endpoints that this batch brought.
    pub(super) born: BTreeSet<EndpointId>,
    /// Policies without users.
    pub(super) orphans: BTreeSet<PolicyId>,
}

/// Works out what the kernel shall hold. See the module above.
#[derive(Debug, Default)]
pub struct Engine {
    pub(super) limits: Limits,
    pub(super) selectors: Selectors,
    pub(super) pods: Pods,
    pub(super) prefixes: Prefixes,
    pub(super) numbers: RuleNumbers,
    pub(super) policies: BTreeMap<ObjectName, PolicyRow>,
    pub(super) refused: BTreeMap<ObjectName, Refused>,
    pub(super) endpoints: BTreeMap<EndpointId, EndpointRow>,
    pub(super) by_namespace: HashMap<String, BTreeSet<EndpointId>>,
    pub(super) resolved: BTreeMap<PolicyId, Resolved>,
    pub(super) by_key: HashMap<Key, PolicyId>,
    pub(super) last_policy: u32,
    /// In the kernel from before, with what they know of prefixes.
    pub(super) stale: BTreeMap<PolicyId, BTreeMap<IpNet, ClassId>>,
    /// Prefixes that the kernel has from before.
    pub(super) adopted: BTreeSet<IpNet>,
    pub(super) usage: Usage,
    pub(super) dirty: Dirty,
    /// Peers that did not fit: denied, and tried again with every batch.
    pub(super) starved: BTreeMap<PolicyId, (Overflow, BTreeSet<Identity>)>,
    /// The last plan made room.
    pub(super) room: bool,
}

impl Engine {
    /// One that knows nothing.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// The kernel's maps turned out to have these sizes. Before the first batch.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// The kernel holds this from before. Its numbers are not given to anything else, its prefixes keep theirs, and
    /// what the first batch has no use for is removed by the first plan: so that batch must hold all that exists.
    pub fn adopt(&mut self, policies: &BTreeMap<PolicyId, CompiledPolicy>, cidrs: &BTreeMap<IpNet, Identity>) {
        for (id, policy) in policies {
            self.last_policy = self.last_policy.max(id.0);
            let class = |(net, number): (&IpNet, &Identity)| Some((net.trunc(), *policy.peers.get(number)?));
            self.stale.insert(*id, cidrs.iter().filter_map(class).collect());
            for verdict in policy.entries.values() {
                self.numbers.start_after(verdict.rule);
            }
        }
        for (net, number) in cidrs {
            self.prefixes.adopt(*net, *number);
        }
        self.adopted = cidrs.keys().map(IpNet::trunc).collect();
    }

    /// Takes in what changed and tells what to do. Nothing but policies is ever refused: an endpoint whose policy
    /// does not fit is blocked, a peer that does not fit is denied. [`Self::problems`] has the reasons.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Plan {
        let mut policies: BTreeMap<ObjectName, Option<Arc<Policy>>> = BTreeMap::new();
        let mut room = std::mem::take(&mut self.room);
        for change in changes {
            match change {
                Change::PutPolicy(policy) => {
                    policies.insert(policy.name.clone(), Some(policy));
                }
                Change::RemovePolicy(name) => {
                    policies.insert(name, None);
                }
                Change::PutIdentity(identity, labels) => {
                    let users = self.selectors.put_identity(identity, &labels);
                    self.mark_peer(identity, users);
                }
                Change::RemoveIdentity(identity) => {
                    let users = self.selectors.remove_identity(identity);
                    self.mark_peer(identity, users);
                    room = true;
                }
                Change::PutEndpoint(endpoint) => self.put_endpoint(endpoint),
                Change::RemoveEndpoint(id) => {
                    self.remove_endpoint(id);
                    room = true;
                }
                Change::PutRemote(pod) => {
                    let identities = self.pods.put(pod);
                    self.mark_ports(identities);
                }
                Change::RemoveRemote(uid) => {
                    let identities = self.pods.remove(&uid);
                    self.mark_ports(identities);
                }
            }
        }
        room |= !policies.is_empty();
        for (name, _) in policies.iter().filter(|(_, policy)| policy.is_none()) {
            self.forget_refused(name);
            if let Some(old) = self.swap_policy(name, None) {
                self.retire(&old, None);
            }
        }
        if room {
            for (name, refused) in &self.refused {
                policies.entry(name.clone()).or_insert_with(|| Some(Arc::clone(&refused.object)));
            }
        }
        self.retry_starved();
        self.settle_what_fits();
        self.put_policies(policies.into_values().flatten().collect());
        self.emit()
    }

    /// Whether something that did not fit may fit once the last plan was carried out: then call [`Self::apply`] again,
    /// if with nothing.
    #[must_use]
    pub fn wants_another(&self) -> bool {
        self.room && !(self.refused.is_empty() && self.starved.is_empty())
    }

    fn mark_peer(&mut self, identity: Identity, users: BTreeSet<PolicyId>) {
        for user in users {
            self.dirty.peers.entry(user).or_default().insert(identity);
        }
    }

    fn mark_ports(&mut self, identities: BTreeSet<Identity>) {
        for identity in identities {
            for selector in self.selectors.of(identity) {
                for user in self.selectors.users(*selector) {
                    if self.resolved.get(user).is_some_and(Resolved::has_names) {
                        self.dirty.peers.entry(*user).or_default().insert(identity);
                    }
                }
            }
        }
    }

    fn put_endpoint(&mut self, endpoint: LocalEndpoint) {
        let id = endpoint.id;
        let known = self.endpoints.get(&id);
        if known.is_some_and(|row| row.endpoint == endpoint) {
            return;
        }
        if known.is_some_and(|row| row.endpoint.pod != endpoint.pod) {
            self.remove_endpoint(id);
        }
        let as_peer = RemoteEndpoint {
            name: endpoint.pod.clone(),
            pod_uid: local_uid(id),
            identity: endpoint.identity,
            addresses: endpoint.addresses.clone(),
            node: IpAddr::from([0; 4]),
            named_ports: endpoint.named_ports.clone(),
        };
        let identities = self.pods.put(Arc::new(as_peer));
        self.mark_ports(identities);

        let in_namespace = policies_of(&self.policies, &endpoint.pod.namespace);
        let selecting = in_namespace.filter(|(_, row)| row.object.pod_selector.matches(&endpoint.labels));
        let policies: BTreeSet<ObjectName> = selecting.map(|(name, _)| name.clone()).collect();
        self.by_namespace.entry(endpoint.pod.namespace.clone()).or_default().insert(id);
        let before = match self.endpoints.get_mut(&id) {
            Some(row) => {
                row.endpoint = endpoint;
                std::mem::replace(&mut row.policies, policies.clone())
            }
            None => {
                let now = EndpointPolicy { id, ingress: PolicyId::OPEN, egress: PolicyId::OPEN, blocked: None };
                let row = EndpointRow { endpoint, policies: policies.clone(), now, announced: None };
                self.endpoints.insert(id, row);
                self.dirty.born.insert(id);
                BTreeSet::new()
            }
        };
        for name in before.difference(&policies) {
            self.policies.get_mut(name).map(|row| row.endpoints.remove(&id));
        }
        for name in policies.difference(&before) {
            self.policies.get_mut(name).map(|row| row.endpoints.insert(id));
        }
        self.dirty.endpoints.insert(id);
        self.dirty.touched.insert(id);
    }

    fn remove_endpoint(&mut self, id: EndpointId) {
        let Some(row) = self.endpoints.remove(&id) else { return };
        let namespace = &row.endpoint.pod.namespace;
        if let Some(ids) = self.by_namespace.get_mut(namespace) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_namespace.remove(namespace);
            }
        }
        for name in &row.policies {
            self.policies.get_mut(name).map(|row| row.endpoints.remove(&id));
        }
        for refused in self.refused.values_mut() {
            refused.spared.remove(&id);
        }
        for policy in [row.now.ingress, row.now.egress] {
            self.release(policy, id);
        }
        let identities = self.pods.remove(&local_uid(id));
        self.mark_ports(identities);
        for ids in [&mut self.dirty.endpoints, &mut self.dirty.switched, &mut self.dirty.touched, &mut self.dirty.born]
        {
            ids.remove(&id);
        }
    }

    /// Puts `object` in the place of whatever has its name, and returns that.
    pub(super) fn swap_policy(&mut self, name: &ObjectName, object: Option<&Arc<Policy>>) -> Option<PolicyRow> {
        let old = self.policies.remove(name);
        let new = object.map(|object| self.prepare(object, old.as_ref()));
        self.place_policy(name, old.as_ref(), new);
        old
    }

    /// Puts `new` (or nothing) where `old` was.
    pub(super) fn place_policy(&mut self, name: &ObjectName, old: Option<&PolicyRow>, new: Option<PolicyRow>) {
        let none = BTreeSet::new();
        let before = old.map_or(&none, |row| &row.endpoints);
        let after = new.as_ref().map_or(&none, |row| &row.endpoints);
        for id in before.difference(after) {
            self.endpoints.get_mut(id).map(|row| row.policies.remove(name));
        }
        for id in after.difference(before) {
            self.endpoints.get_mut(id).map(|row| row.policies.insert(name.clone()));
        }
        self.dirty.endpoints.extend(before.iter().chain(after));
        if let Some(new) = new {
            self.policies.insert(name.clone(), new);
        }
    }

    /// The rules of an object. Those that did not change keep their numbers.
    fn prepare(&mut self, object: &Arc<Policy>, old: Option<&PolicyRow>) -> PolicyRow {
        let mut notes = Vec::new();
        let mut rules = |direction: Direction, list: &Option<Vec<intent::Rule>>| {
            let before = old.and_then(|row| row.rules(direction));
            let rule = |(n, source): (usize, &intent::Rule)| {
                let place = format!("{direction}[{n}]");
                match before.and_then(|rules| rules.get(n)).filter(|rule| rule.source == *source) {
                    Some(same) => {
                        Rule::new(same.id, &object.name.namespace, source, &place, &mut notes);
                        Arc::clone(same)
                    }
                    None => {
                        let id = self.numbers.give(object.kind, &object.name, direction, n);
                        Arc::new(Rule::new(id, &object.name.namespace, source, &place, &mut notes))
                    }
                }
            };
            list.as_ref().map(|list| list.iter().enumerate().map(rule).collect::<Vec<_>>())
        };
        let ingress = rules(Direction::Ingress, &object.ingress);
        let egress = rules(Direction::Egress, &object.egress);
        let in_namespace = self.by_namespace.get(&object.name.namespace).into_iter().flatten();
        let selected = in_namespace.filter(|id| object.pod_selector.matches(&self.endpoints[id].endpoint.labels));
        let endpoints = selected.copied().collect();
        PolicyRow { object: Arc::clone(object), ingress, egress, endpoints, notes }
    }

    /// The rules of `gone` that are not rules of `kept` are no more.
    pub(super) fn retire(&mut self, gone: &PolicyRow, kept: Option<&PolicyRow>) {
        let ids = |row: &PolicyRow| -> BTreeSet<RuleId> {
            row.ingress.iter().chain(&row.egress).flatten().map(|rule| rule.id).collect()
        };
        let kept = kept.map(ids).unwrap_or_default();
        for id in ids(gone).difference(&kept) {
            self.numbers.retire(*id);
        }
    }

    /// What shall be in the kernel after all plans so far were carried out.
    #[must_use]
    pub fn desired(&self) -> Desired {
        Desired {
            policies: self.resolved.iter().map(|(id, row)| (*id, Arc::new(row.compiled().clone()))).collect(),
            cidrs: self.prefixes.iter().collect(),
            endpoints: self.endpoints.iter().map(|(id, row)| (*id, row.now.clone())).collect(),
        }
    }

    /// What an endpoint shall have.
    #[must_use]
    pub fn endpoint(&self, id: EndpointId) -> Option<&EndpointPolicy> {
        self.endpoints.get(&id).map(|row| &row.now)
    }

    /// Policies that isolate an endpoint in a direction; `None`: it is not isolated.
    #[must_use]
    pub fn isolating(&self, id: EndpointId, direction: Direction) -> Option<Vec<&Policy>> {
        let row = self.endpoints.get(&id)?;
        let rows = row.policies.iter().map(|name| &self.policies[name]);
        let policies: Vec<_> =
            rows.filter(|row| row.rules(direction).is_some()).map(|row| row.object.as_ref()).collect();
        (!policies.is_empty()).then_some(policies)
    }

    /// The rules that count for an endpoint in a direction, with their objects' kinds and names.
    pub(crate) fn rules_of(
        &self,
        id: EndpointId,
        direction: Direction,
    ) -> impl Iterator<Item = (&'static str, &ObjectName, &Vec<Arc<Rule>>)> {
        let names = self.endpoints.get(&id).into_iter().flat_map(|row| &row.policies);
        names.filter_map(move |name| {
            let row = &self.policies[name];
            Some((row.object.kind, name, row.rules(direction)?))
        })
    }

    /// The numbers that a port's name has in a local endpoint.
    pub(crate) fn own_numbers(&self, id: EndpointId, name: &PortName) -> Vec<u16> {
        let ports = self.endpoints.get(&id).into_iter().flat_map(|row| &row.endpoint.named_ports);
        ports.filter(|port| port.protocol == name.0 && port.name == name.1).map(|port| port.port).collect()
    }

    /// The endpoints of an identity.
    pub(crate) fn pods_of(&self, identity: Identity) -> &[Arc<RemoteEndpoint>] {
        self.pods.of(identity)
    }

    /// A resolved policy; none for [`PolicyId::OPEN`].
    #[must_use]
    pub fn compiled(&self, id: PolicyId) -> Option<&CompiledPolicy> {
        self.resolved.get(&id).map(Resolved::compiled)
    }

    /// The number of the longest prefix in use that holds `address`.
    #[must_use]
    pub fn prefix_of(&self, address: IpAddr) -> Option<Identity> {
        self.prefixes.longest(address).map(|(_, number)| number)
    }

    /// The rule of a number, also for a while after it is gone.
    #[must_use]
    pub fn rule(&self, id: RuleId) -> Option<&RuleRef> {
        self.numbers.get(id)
    }

    /// Labels of an identity.
    #[must_use]
    pub fn labels(&self, identity: Identity) -> Option<&Arc<LabelSet>> {
        self.selectors.labels(identity)
    }

    /// The policy objects in force, each with the endpoints that it selects.
    pub fn policies(&self) -> impl Iterator<Item = (&Arc<Policy>, &BTreeSet<EndpointId>)> {
        self.policies.values().map(|row| (&row.object, &row.endpoints))
    }

    /// What is not in force as it was written.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let refused = self.refused.values().map(|refused| Problem {
            policy: refused.object.name.clone(),
            resource_version: refused.object.resource_version.clone(),
            refused: true,
            text: format!("refused: {}; what was in force stays, new endpoints are blocked", refused.problem),
        });
        let note = |row: &PolicyRow, text: String| Problem {
            policy: row.object.name.clone(),
            resource_version: row.object.resource_version.clone(),
            refused: false,
            text,
        };
        let notes = self.policies.values().flat_map(|row| row.notes.iter().map(move |text| note(row, text.clone())));
        let mut problems: Vec<_> = refused.chain(notes).collect();
        for (id, (problem, peers)) in &self.starved {
            let users = self.resolved.get(id).map(|row| &row.users);
            for row in self.policies.values() {
                if users.is_some_and(|users| !users.is_disjoint(&row.endpoints)) {
                    problems.push(note(row, format!("{} peers are denied: {problem}", peers.len())));
                }
            }
        }
        problems.sort();
        problems.dedup();
        problems
    }

    /// Identities, selectors in use, prefixes, resolved policies, their entries and peers.
    #[must_use]
    pub fn sizes(&self) -> [(&'static str, usize); 6] {
        let (identities, selectors) = self.selectors.len();
        [
            ("identities", identities),
            ("selectors", selectors),
            ("prefixes", self.prefixes.len()),
            ("policies", self.resolved.len()),
            ("entries", self.usage.entries),
            ("peers", self.usage.peers),
        ]
    }
}

/// Policies of a namespace.
pub(super) fn policies_of<'a, T>(
    policies: &'a BTreeMap<ObjectName, T>,
    namespace: &'a str,
) -> impl Iterator<Item = (&'a ObjectName, &'a T)> {
    let first = ObjectName { namespace: namespace.to_owned(), name: String::new() };
    policies.range(first..).take_while(move |(name, _)| name.namespace == namespace)
}

/// The key of a local endpoint among all endpoints. No UID looks like this.
fn local_uid(id: EndpointId) -> String {
    format!("endpoint {id}")
}
