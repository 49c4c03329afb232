//! The engine's state and what changes it.

use super::classes::Index;
use super::labels::{Buckets, LabelIndex};
use super::objects::{PolicyRow, Refused, SpecRef};
use super::peers::Peers;
use super::resolved::{Key, Resolved, Usage};
use super::rule::RuleNumbers;
use super::{Change, Desired, EndpointPolicy, Limits, LocalEndpoint, Overflow, Plan};
use foldhash::HashMap;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use weft_model::desired::CompiledPolicy;
use weft_model::id::{EndpointId, Identity, PeerClass, PolicyClass, PolicyId};
use weft_model::intent::{Policy, PolicyName, RemoteEndpoint};

/// An endpoint of this node.
#[derive(Clone, Debug)]
pub(super) struct EndpointRow {
    pub(super) endpoint: LocalEndpoint,
    /// The parts of policies that select it.
    pub(super) specs: BTreeSet<SpecRef>,
    /// What it has.
    pub(super) now: EndpointPolicy,
    /// Why it does not have what it should.
    pub(super) unresolved: Option<String>,
    /// What was announced in a plan.
    pub(super) announced: Option<EndpointPolicy>,
}

/// What the batch under way must still look at.
#[derive(Clone, Debug, Default)]
pub(super) struct Dirty {
    /// Endpoints to resolve.
    pub(super) endpoints: BTreeSet<EndpointId>,
    /// Policies that must look at a class.
    pub(super) rows: BTreeSet<(PolicyId, Index)>,
    /// Endpoints whose policies may have changed.
    pub(super) switched: BTreeSet<EndpointId>,
    /// Endpoints whose flows must decide again in any case.
    pub(super) touched: BTreeSet<EndpointId>,
    /// Endpoints that this batch brought.
    pub(super) born: BTreeSet<EndpointId>,
    /// Policies without users.
    pub(super) orphans: BTreeSet<PolicyId>,
    /// Policies that grew.
    pub(super) grown: BTreeSet<PolicyId>,
}

/// A policy that is in the kernel from before.
#[derive(Clone, Debug)]
pub(super) struct Stale {
    pub(super) classes: BTreeMap<PeerClass, PolicyClass>,
    pub(super) rest: PolicyClass,
}

/// Works out what the kernel shall hold. See the module above.
#[derive(Clone, Debug)]
pub struct Engine {
    pub(super) limits: Limits,
    pub(super) peers: Peers,
    pub(super) numbers: RuleNumbers,
    pub(super) policies: BTreeMap<Arc<PolicyName>, PolicyRow>,
    pub(super) refused: BTreeMap<PolicyName, Refused>,
    pub(super) endpoints: BTreeMap<EndpointId, EndpointRow>,
    /// The endpoints by their labels, and the parts of policies by what they select.
    pub(super) subjects: LabelIndex,
    pub(super) of_endpoints: Buckets<SpecRef>,
    pub(super) of_nodes: BTreeSet<SpecRef>,
    pub(super) resolved: BTreeMap<PolicyId, Resolved>,
    pub(super) by_key: HashMap<Key, PolicyId>,
    pub(super) last_policy: u32,
    /// Policies of [`Self::resolved`] that must know of every class.
    pub(super) with_rest: BTreeSet<PolicyId>,
    pub(super) stale: BTreeMap<PolicyId, Stale>,
    pub(super) usage: Usage,
    pub(super) dirty: Dirty,
    /// Classes whose rows did not fit: tried again with every batch.
    pub(super) starved: BTreeMap<PolicyId, (Overflow, BTreeSet<Index>)>,
    /// Policies that let more pass than they should, since something does not fit, and why.
    pub(super) choked: BTreeMap<PolicyId, String>,
    /// Policies with rules of which something cannot be honoured.
    pub(super) noted: BTreeSet<Arc<PolicyName>>,
    /// Endpoints of which other parts of policies select them than when they were last asked for.
    pub(super) reselected: BTreeSet<EndpointId>,
    /// The last plan made room.
    pub(super) room: bool,
    is_started: bool,
}

impl Default for Engine {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

impl Engine {
    /// One that knows nothing.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            peers: Peers::new(limits.room()),
            limits,
            numbers: RuleNumbers::default(),
            policies: BTreeMap::new(),
            refused: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            subjects: LabelIndex::default(),
            of_endpoints: Buckets::default(),
            of_nodes: BTreeSet::new(),
            resolved: BTreeMap::new(),
            by_key: HashMap::default(),
            last_policy: 0,
            with_rest: BTreeSet::new(),
            stale: BTreeMap::new(),
            usage: Usage::default(),
            dirty: Dirty::default(),
            starved: BTreeMap::new(),
            choked: BTreeMap::new(),
            noted: BTreeSet::new(),
            reselected: BTreeSet::new(),
            room: false,
            is_started: false,
        }
    }

    /// The kernel's maps turned out to have these sizes. Before the first batch.
    pub fn set_limits(&mut self, limits: Limits) {
        self.peers.set_room(limits.room());
        self.limits = limits;
    }

    /// The kernel holds this from before. Its numbers are not given to anything else, its prefixes and the classes of its
    /// peers keep theirs, and what the first batch has no use for is removed by the first plan: so that batch must hold
    /// all that exists.
    pub fn adopt(
        &mut self,
        policies: &BTreeMap<PolicyId, CompiledPolicy>,
        cidrs: &BTreeMap<IpNet, Identity>,
        peers: &BTreeMap<Identity, PeerClass>,
    ) {
        for (id, policy) in policies {
            self.last_policy = self.last_policy.max(id.0);
            self.stale.insert(*id, Stale { classes: policy.classes.clone(), rest: policy.rest });
            if let Some((last, _)) = policy.classes.last_key_value() {
                self.peers.start_classes_after(*last);
            }
            for verdict in policy.entries.values() {
                self.numbers.start_after(verdict.rule);
            }
        }
        self.peers.adopt(cidrs, peers);
    }

    /// Takes in what changed and tells what to do. Nothing but policies is ever refused: an endpoint whose policy
    /// does not fit is blocked, a peer that does not fit is denied. [`Self::problems`] has the reasons.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Plan {
        let mut changes = changes.into_iter().peekable();
        if changes.peek().is_some() || self.wants_another() {
            self.merge_twins();
        }
        let mut policies: BTreeMap<PolicyName, Option<Arc<Policy>>> = BTreeMap::new();
        let mut room = std::mem::take(&mut self.room);
        for change in changes {
            match change {
                Change::PutPolicy(policy) => {
                    policies.insert(policy.name.clone(), Some(policy));
                }
                Change::RemovePolicy(name) => {
                    policies.insert(name, None);
                }
                Change::PutIdentity(identity, labels) => self.peers.put_identity(identity, &labels),
                Change::RemoveIdentity(identity) => {
                    self.peers.remove_identity(identity);
                    room = true;
                }
                Change::PutEndpoint(endpoint) => self.put_endpoint(endpoint),
                Change::RemoveEndpoint(id) => {
                    self.remove_endpoint(id);
                    room = true;
                }
                Change::PutRemote(pod) => self.peers.put_pod(pod),
                Change::RemoveRemote(uid) => self.peers.remove_pod(&uid),
            }
        }
        if !std::mem::replace(&mut self.is_started, true) {
            self.peers.drop_unclaimed();
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
        self.room && !(self.refused.is_empty() && self.starved.is_empty() && self.peers.starving().is_none())
    }

    /// Classes that equal each other cost room; when they are most of all, or room is short, they are made one.
    fn merge_twins(&mut self) {
        let (classes, twins) = self.peers.classes().len();
        let is_short = !self.refused.is_empty() || !self.starved.is_empty() || self.peers.starving().is_some();
        if twins * 2 > classes || (is_short && twins > 0) {
            self.peers.merge_twins();
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
        if id != EndpointId::HOST {
            self.peers.put_pod(Arc::new(RemoteEndpoint {
                name: endpoint.pod.clone(),
                pod_uid: local_uid(id),
                identity: endpoint.identity,
                addresses: endpoint.addresses.clone(),
                node: IpAddr::from([0; 4]),
                named_ports: endpoint.named_ports.clone(),
            }));
        }
        let before = match self.endpoints.get_mut(&id) {
            Some(row) => {
                let before = std::mem::replace(&mut row.endpoint, endpoint);
                if id != EndpointId::HOST {
                    self.subjects.remove(u32::from(id.raw()), &before.labels);
                }
                std::mem::take(&mut row.specs)
            }
            None => {
                let now = EndpointPolicy { id, ingress: PolicyId::OPEN, egress: PolicyId::OPEN, blocked: None };
                let specs = BTreeSet::new();
                self.endpoints.insert(id, EndpointRow { endpoint, specs, now, unresolved: None, announced: None });
                self.dirty.born.insert(id);
                BTreeSet::new()
            }
        };
        let specs = self.selecting(id);
        self.unselect(id, &before);
        for (name, n) in &specs {
            let row = self.policies.get_mut(name).expect("the index names policies in force");
            row.specs[*n].endpoints.insert(id);
            row.endpoints.insert(id);
        }
        let row = self.endpoints.get_mut(&id).expect("put above");
        row.specs = specs;
        self.reselected.insert(id);
        if id != EndpointId::HOST {
            self.subjects.insert(u32::from(id.raw()), &row.endpoint.labels);
        }
        self.dirty.endpoints.insert(id);
        self.dirty.touched.insert(id);
    }

    fn unselect(&mut self, id: EndpointId, specs: &BTreeSet<SpecRef>) {
        for (name, n) in specs {
            if let Some(row) = self.policies.get_mut(name) {
                row.specs[*n].endpoints.remove(&id);
                row.endpoints.remove(&id);
            }
        }
    }

    fn remove_endpoint(&mut self, id: EndpointId) {
        let Some(row) = self.endpoints.remove(&id) else { return };
        self.reselected.insert(id);
        self.unselect(id, &row.specs);
        for refused in self.refused.values_mut() {
            refused.spared.remove(&id);
        }
        for policy in [row.now.ingress, row.now.egress] {
            self.release(policy, id);
        }
        if id != EndpointId::HOST {
            self.subjects.remove(u32::from(id.raw()), &row.endpoint.labels);
            self.peers.remove_pod(&local_uid(id));
        }
        for ids in [&mut self.dirty.endpoints, &mut self.dirty.switched, &mut self.dirty.touched, &mut self.dirty.born]
        {
            ids.remove(&id);
        }
    }

    /// What shall be in the kernel after all plans so far were carried out.
    #[must_use]
    pub fn desired(&self) -> Desired {
        Desired {
            policies: self.resolved.iter().map(|(id, row)| (*id, Arc::new(row.compiled().clone()))).collect(),
            peers: self.peers.desired(),
            cidrs: self.peers.prefixes().iter().collect(),
            endpoints: self.endpoints.iter().map(|(id, row)| (*id, row.now.clone())).collect(),
        }
    }
}

/// The key of a local endpoint among all endpoints. No UID looks like this.
fn local_uid(id: EndpointId) -> String {
    format!("endpoint {id}")
}
