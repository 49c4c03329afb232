//! The engine's state, and the changes to it.

use super::classes::Index;
use super::interface::{Change, Desired, EndpointPolicy, LocalEndpoint, Plan};
use super::labels::{Buckets, LabelIndex};
use super::limits::{Limits, Overflow};
use super::objects::{PolicyRow, Refused, SpecRef};
use super::peers::Peers;
use super::resolved::{Key, Resolved, Usage};
use super::rule::RuleNumbers;
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
    /// The specs that select it.
    pub(super) specs: BTreeSet<SpecRef>,
    pub(super) now: EndpointPolicy,
    /// Its resolved policy could not be built.
    pub(super) unresolved: Option<Overflow>,
    /// As in the last plan.
    pub(super) announced: Option<EndpointPolicy>,
}

/// The work that is left in the current batch.
#[derive(Clone, Debug, Default)]
pub(super) struct Dirty {
    /// Endpoints to resolve.
    pub(super) endpoints: BTreeSet<EndpointId>,
    /// Policies that need a row for a class.
    pub(super) rows: BTreeSet<(PolicyId, Index)>,
    /// Endpoints whose policies may have changed.
    pub(super) switched: BTreeSet<EndpointId>,
    /// Endpoints whose flows must be decided again in any case.
    pub(super) touched: BTreeSet<EndpointId>,
    /// Endpoints that this batch added.
    pub(super) added: BTreeSet<EndpointId>,
    /// Policies without users.
    pub(super) orphans: BTreeSet<PolicyId>,
    /// Policies that got new rows.
    pub(super) grown: BTreeSet<PolicyId>,
}

/// A policy that a previous agent left in the kernel.
#[derive(Clone, Debug)]
pub(super) struct Stale {
    pub(super) classes: BTreeMap<PeerClass, PolicyClass>,
    pub(super) rest: PolicyClass,
}

/// See [`crate::policy`].
#[derive(Clone, Debug)]
pub struct Engine {
    pub(super) limits: Limits,
    pub(super) peers: Peers,
    pub(super) numbers: RuleNumbers,
    pub(super) policies: BTreeMap<Arc<PolicyName>, PolicyRow>,
    pub(super) refused: BTreeMap<PolicyName, Refused>,
    pub(super) endpoints: BTreeMap<EndpointId, EndpointRow>,
    /// Endpoints by their labels.
    pub(super) subjects: LabelIndex,
    /// Specs for endpoints by what they select.
    pub(super) of_endpoints: Buckets<SpecRef>,
    /// Specs for nodes.
    pub(super) of_nodes: BTreeSet<SpecRef>,
    pub(super) resolved: BTreeMap<PolicyId, Resolved>,
    pub(super) by_key: HashMap<Key, PolicyId>,
    pub(super) last_policy: u32,
    /// Policies that need a row for every class of identities that they do not select.
    pub(super) with_rest: BTreeSet<PolicyId>,
    pub(super) stale: BTreeMap<PolicyId, Stale>,
    pub(super) usage: Usage,
    pub(super) dirty: Dirty,
    /// Classes whose rows did not fit; retried with every batch.
    pub(super) starved: BTreeMap<PolicyId, (Overflow, BTreeSet<Index>)>,
    /// Policies that would allow too much, since rows of them do not fit.
    pub(super) incomplete: BTreeMap<PolicyId, Overflow>,
    /// Policies with rules that are not enforced in full.
    pub(super) noted: BTreeSet<Arc<PolicyName>>,
    /// Endpoints whose selecting policies changed since the last [`Self::take_reselected`].
    pub(super) reselected: BTreeSet<EndpointId>,
    /// The last plan frees room.
    pub(super) room: bool,
    is_started: bool,
}

impl Default for Engine {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

impl Engine {
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
            incomplete: BTreeMap::new(),
            noted: BTreeSet::new(),
            reselected: BTreeSet::new(),
            room: false,
            is_started: false,
        }
    }

    /// Sets the limits for the actual sizes of the maps. Call before the first batch.
    pub fn set_limits(&mut self, limits: Limits) {
        self.peers.set_room(limits.room());
        self.limits = limits;
    }

    /// Adopts what a previous agent left in the kernel. Numbers in use are not reused; prefixes and peer classes keep
    /// theirs. The first plan removes whatever the first batch does not need, so that batch must be complete.
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

    /// Applies a batch of changes and returns the writes. Only policy objects are ever refused: an endpoint whose policy
    /// does not fit is blocked, a peer that does not fit is denied. See [`Self::problems`] for the reasons.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Plan {
        let mut changes = changes.into_iter().peekable();
        if changes.peek().is_some() || self.needs_retry() {
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
            self.clear_refused(name);
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
        self.resolve_and_spread();
        self.put_policies(policies.into_values().flatten().collect());
        self.emit()
    }

    /// Whether something that did not fit may fit after the last plan was executed. Then call [`Self::apply`] again, even
    /// with an empty batch.
    #[must_use]
    pub fn needs_retry(&self) -> bool {
        self.room && !(self.refused.is_empty() && self.starved.is_empty() && self.peers.starving().is_none())
    }

    /// Merges twin classes if they are the majority or something does not fit.
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
                self.dirty.added.insert(id);
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
            refused.exempt.remove(&id);
        }
        for policy in [row.now.ingress, row.now.egress] {
            self.release(policy, id);
        }
        if id != EndpointId::HOST {
            self.subjects.remove(u32::from(id.raw()), &row.endpoint.labels);
            self.peers.remove_pod(&local_uid(id));
        }
        for ids in [&mut self.dirty.endpoints, &mut self.dirty.switched, &mut self.dirty.touched, &mut self.dirty.added]
        {
            ids.remove(&id);
        }
    }

    /// The desired state: what the kernel has after all plans so far were executed.
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

/// The key of a local endpoint among the pods. No UID has a space.
fn local_uid(id: EndpointId) -> String {
    format!("endpoint {id}")
}
