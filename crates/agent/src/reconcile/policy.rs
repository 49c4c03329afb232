//! Policies: from objects through the compiler to the kernel's policy maps.
//!
//! A pass has two halves. [`Reconciler::reconcile`] writes what is new: policies, what policies in use must know of new
//! peers, prefixes. Once endpoints and addresses are written too, [`Reconciler::finish`] makes established flows decide
//! again and removes what nothing refers to any more.

mod view;

pub use view::{Invalid, PolicyRow, View, reference, rule_reference};

use super::reconciler::{Context, Reconciler, Rows};
use crate::settings::Settings;
use crate::state::EndpointRecord;
use crate::tables::Tables;
use rpds::RedBlackTreeMapSync;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use weft_abi::map_name;
use weft_control::expand::Expander;
use weft_control::identity::subject_labels;
use weft_control::policy::{self as engine, Engine, Limits, LocalEndpoint, Plan};
use weft_control::remotes::{RemoteChange, Remotes};
use weft_model::desired::{CompiledPolicy, DataplaneError, PolicyPatch, Touched};
use weft_model::id::{EndpointId, Identity, PeerClass, PolicyId};
use weft_model::intent::{Change, IdentityLabels, Node, ObjectName, PolicyName};
use weft_model::label::LabelSet;
use weft_model::reconcile::Queue;
use weft_model::table::Table;

const NAME: &str = "policy";

/// See the module.
pub struct Policy {
    /// The compiler.
    pub engine: Engine,
    /// Writes out what policies name.
    pub expander: Expander,
    /// Endpoints of other nodes, as slices and CiliumEndpoints have them.
    pub remotes: Remotes,
    /// Changes for the compiler.
    pending: Vec<engine::Change>,
    /// The compiler wants another round though nothing changed.
    again: bool,
    /// A plan could not be carried out: the next pass compares everything.
    drifted: bool,
    /// This node's addresses: endpoints at these come from here, not from slices.
    own_node: BTreeSet<IpAddr>,
    /// Peers that wait for the addresses of a change.
    narrow: Vec<(Identity, Option<PeerClass>)>,
    /// To be removed once everything else of a change is in the kernel.
    removals: Vec<Removal>,
    /// Its one row is the plan: it is carried out whole or not at all.
    queue: Queue<&'static str>,
    /// Policy objects, for readers.
    rows: Table<PolicyName, PolicyRow>,
    /// What selects each endpoint, for readers.
    selected: Table<EndpointId, view::Selected>,
    /// Prefixes in the kernel, for readers.
    cidrs: RedBlackTreeMapSync<ipnet::IpNet, Identity>,
    problems: Arc<[engine::Problem]>,
}

/// What waits until flows decide again.
enum Removal {
    Cidr(ipnet::IpNet),
    Peers(BTreeSet<Identity>),
    Patch(PolicyId, PolicyPatch),
    Policy(PolicyId),
}

impl Policy {
    pub(super) fn new(settings: &Settings, _: &mut Tables) -> Self {
        let mut expander = Expander::default();
        expander.set_api_server(settings.api_server.clone());
        Self {
            engine: Engine::new(Limits::default()),
            expander,
            remotes: Remotes::default(),
            pending: Vec::new(),
            again: false,
            drifted: false,
            own_node: BTreeSet::new(),
            narrow: Vec::new(),
            removals: Vec::new(),
            queue: Queue::default(),
            rows: Table::default(),
            selected: Table::default(),
            cidrs: RedBlackTreeMapSync::new_sync(),
            problems: Arc::default(),
        }
    }

    /// Endpoints of this node come from its own table, not from slices.
    pub fn set_own_addresses(&mut self, addresses: &[IpAddr]) {
        self.own_node = addresses.iter().copied().collect();
    }

    fn enqueue_merged(&mut self, merged: Vec<RemoteChange>) {
        self.pending.extend(merged.into_iter().map(|change| match change {
            RemoteChange::Upsert(endpoint) => engine::Change::PutRemote(endpoint),
            RemoteChange::Delete(uid) => engine::Change::RemoveRemote(uid),
        }));
    }

    /// An identity that is in use though no object says so.
    pub fn put_identity(&mut self, identity: Identity, labels: &LabelSet) {
        self.pending.push(engine::Change::PutIdentity(identity, Arc::new(labels.clone())));
    }

    /// One that no object has and nobody uses.
    pub fn remove_identity(&mut self, identity: Identity) {
        self.pending.push(engine::Change::RemoveIdentity(identity));
    }

    /// An endpoint of this node is there, or has changed.
    pub fn set_endpoint(&mut self, record: &EndpointRecord) {
        self.pending.push(engine::Change::PutEndpoint(LocalEndpoint {
            id: record.id,
            pod: record.pod.clone(),
            labels: subject_labels(&record.labels, &record.pod_labels),
            identity: record.identity,
            addresses: record.addresses.clone(),
            named_ports: record.named_ports.clone(),
        }));
    }

    /// The node itself, as a subject of policies.
    pub fn set_host(&mut self, node: &Node) {
        self.pending.push(engine::Change::PutEndpoint(LocalEndpoint {
            id: EndpointId::HOST,
            pod: ObjectName { namespace: String::new(), name: node.name.clone() },
            labels: LabelSet(node.labels.clone()),
            identity: Identity::HOST,
            addresses: node.addresses.clone(),
            named_ports: Vec::new(),
        }));
    }

    /// It is gone.
    pub fn remove_endpoint(&mut self, id: EndpointId) {
        self.pending.push(engine::Change::RemoveEndpoint(id));
    }

    /// For readers: all as it is now.
    #[must_use]
    pub fn view(&self) -> View {
        View {
            rows: self.rows.snapshot(),
            selected: self.selected.snapshot(),
            rules: self.engine.rules(),
            cidrs: self.cidrs.clone(),
            problems: self.problems.clone(),
            dangling: self.expander.dangling().clone(),
        }
    }

    /// What was planned is void: the next pass compares everything.
    fn drift(&mut self) {
        self.drifted = true;
        self.narrow.clear();
        self.removals.clear();
    }

    fn compile(&mut self) -> Option<Plan> {
        let mut changes = self.expander.take_changes();
        changes.append(&mut self.pending);
        let again = std::mem::take(&mut self.again);
        if changes.is_empty() && !again {
            return None;
        }
        let mut names: BTreeSet<PolicyName> = self.engine.refused().cloned().collect();
        names.extend(changes.iter().filter_map(|change| match change {
            engine::Change::PutPolicy(policy) => Some(policy.name.clone()),
            engine::Change::RemovePolicy(name) => Some(name.clone()),
            _ => None,
        }));
        let plan = self.engine.apply(changes);
        self.update_view(names);
        Some(plan)
    }

    /// Brings what readers see in line with the compiler; `names`: policy objects that may be others than before.
    fn update_view(&mut self, names: BTreeSet<PolicyName>) {
        for name in names {
            let object = self.engine.policy(&name).cloned();
            let invalid = self.rows.get(&name).and_then(|row| row.invalid.clone());
            if object.is_none() && invalid.is_none() {
                self.rows.remove(&name);
            } else {
                self.rows.insert(name, PolicyRow { object, invalid });
            }
        }
        for id in self.engine.take_reselected() {
            let policies = self.engine.selected_by_policies(id);
            if policies.is_empty() {
                self.selected.remove(&id);
            } else {
                self.selected.insert(id, policies);
            }
        }
        let problems = self.engine.problems();
        if *self.problems != *problems {
            self.problems = problems.into();
        }
    }

    fn set_invalid(&mut self, name: &PolicyName, invalid: Option<Invalid>) {
        let object = self.rows.get(name).and_then(|row| row.object.clone());
        if object.is_none() && invalid.is_none() {
            self.rows.remove(name);
        } else {
            self.rows.insert(name.clone(), PolicyRow { object, invalid });
        }
    }

    fn write_plan(&mut self, plan: Plan, cx: &mut Context<'_>) -> Result<(), DataplaneError> {
        for (id, policy) in &plan.put {
            cx.kernel.put_policy(*id, policy)?;
        }
        for (id, patch) in &plan.patch {
            cx.kernel.patch_policy(*id, patch)?;
        }
        if !plan.put_peers.is_empty() {
            cx.kernel.put_peers(&plan.put_peers.into_iter().collect())?;
        }
        for (cidr, number) in &plan.add_cidrs {
            self.set_cidr(*cidr, Some(*number), cx)?;
        }
        for target in plan.switch {
            cx.tables.targets.insert(target.id, target);
        }
        self.narrow.extend(plan.narrow);
        cx.stale.endpoints.extend(plan.touched);
        let removals = &mut self.removals;
        removals.extend(plan.remove_cidrs.into_iter().map(Removal::Cidr));
        if !plan.del_peers.is_empty() {
            removals.push(Removal::Peers(plan.del_peers.into_iter().collect()));
        }
        removals.extend(plan.late_patch.into_iter().map(|(id, patch)| Removal::Patch(id, patch)));
        removals.extend(plan.remove.into_iter().map(Removal::Policy));
        Ok(())
    }

    /// Compares all that shall be with all that is, in the same order.
    fn write_everything(&mut self, cx: &mut Context<'_>) -> Result<(), DataplaneError> {
        let wanted = self.engine.desired();
        let present = cx.kernel.policies()?;
        let cidrs = cx.kernel.cidrs()?;
        let peers = cx.kernel.peers()?;
        let mut late = Vec::new();
        for (id, policy) in &wanted.policies {
            match present.get(id) {
                None => cx.kernel.put_policy(*id, policy)?,
                Some(old) if *old == **policy => {}
                Some(old) => {
                    let (first, rest) = difference(old, policy);
                    cx.kernel.patch_policy(*id, &first)?;
                    late.push(Removal::Patch(*id, rest));
                }
            }
        }
        let moved = wanted.peers.iter().filter(|(peer, class)| peers.get(*peer) != Some(*class));
        cx.kernel.put_peers(&moved.map(|(peer, class)| (*peer, *class)).collect())?;
        for (cidr, number) in &wanted.cidrs {
            if cidrs.get(cidr) == Some(number) {
                self.cidrs.insert_mut(*cidr, *number);
            } else {
                self.set_cidr(*cidr, Some(*number), cx)?;
            }
        }
        let gone: Vec<EndpointId> =
            cx.tables.targets.keys().filter(|id| !wanted.endpoints.contains_key(id)).copied().collect();
        gone.iter().for_each(|id| drop(cx.tables.targets.remove(id)));
        for (id, target) in wanted.endpoints {
            cx.tables.targets.insert(id, target);
        }
        late.extend(cidrs.keys().filter(|cidr| !wanted.cidrs.contains_key(cidr)).map(|cidr| Removal::Cidr(*cidr)));
        late.push(Removal::Peers(peers.into_keys().filter(|peer| !wanted.peers.contains_key(peer)).collect()));
        late.extend(present.keys().filter(|id| !wanted.policies.contains_key(id)).map(|id| Removal::Policy(*id)));
        self.removals = late;
        cx.stale.node = true;
        self.drifted = false;
        Ok(())
    }

    fn set_cidr(
        &mut self,
        cidr: ipnet::IpNet,
        number: Option<Identity>,
        cx: &mut Context<'_>,
    ) -> Result<(), DataplaneError> {
        cx.kernel.set_cidr(cidr, number)?;
        match number {
            Some(number) => self.cidrs.insert_mut(cidr, number),
            None => drop(self.cidrs.remove_mut(&cidr)),
        }
        Ok(())
    }

    fn narrow_bump_remove(&mut self, cx: &mut Context<'_>) -> Result<(), DataplaneError> {
        let (mut moved, mut gone) = (BTreeMap::new(), BTreeSet::new());
        for (peer, class) in std::mem::take(&mut self.narrow) {
            match class {
                Some(class) => drop(moved.insert(peer, class)),
                None => drop(gone.insert(peer)),
            }
        }
        if !moved.is_empty() {
            cx.kernel.put_peers(&moved)?;
        }
        if !gone.is_empty() {
            cx.kernel.remove_peers(&gone)?;
        }
        let touched = if cx.stale.node {
            Some(Touched::Node)
        } else if cx.stale.endpoints.is_empty() {
            None
        } else {
            Some(Touched::Endpoints(cx.stale.endpoints.clone()))
        };
        if let Some(touched) = touched {
            cx.kernel.bump(&touched)?;
        }
        *cx.stale = super::reconciler::Stale::default();
        for removal in std::mem::take(&mut self.removals) {
            match &removal {
                Removal::Cidr(cidr) => self.set_cidr(*cidr, None, cx)?,
                Removal::Peers(peers) => cx.kernel.remove_peers(peers)?,
                Removal::Patch(id, patch) => cx.kernel.patch_policy(*id, patch)?,
                Removal::Policy(id) => cx.kernel.remove_policy(*id)?,
            }
        }
        Ok(())
    }

    fn settle(&mut self, outcome: Result<(), DataplaneError>, cx: &Context<'_>) {
        if let Err(error) = outcome {
            super::reconciler::failed(&mut self.queue, (NAME, "plan"), cx.now, &error);
            self.drift();
        }
    }
}

impl Reconciler for Policy {
    fn name(&self) -> &'static str {
        NAME
    }

    fn observe(&mut self, change: &Change) {
        self.expander.apply(change);
        match change {
            Change::Policy(policy) => self.set_invalid(&policy.name, None),
            Change::PolicyInvalid { name, resource_version, problem } => {
                tracing::warn!(policy = %name, %problem, "the policy is invalid; what was in force stays in force");
                let invalid = Invalid { resource_version: resource_version.clone(), problem: problem.clone() };
                self.set_invalid(name, Some(invalid));
            }
            Change::PolicyGone(name) => self.set_invalid(name, None),
            Change::Identity(IdentityLabels { identity, labels, .. }) => {
                self.pending.push(engine::Change::PutIdentity(*identity, Arc::new(labels.clone())));
            }
            Change::Slice(slice) => {
                let own = &self.own_node;
                let merged = self.remotes.set(slice, |endpoint| own.contains(&endpoint.node));
                self.enqueue_merged(merged);
            }
            Change::SliceGone(name) => {
                let merged = self.remotes.remove(name);
                self.enqueue_merged(merged);
            }
            _ => {}
        }
    }

    fn adopt(&mut self, cx: &mut Context<'_>) -> Result<(), DataplaneError> {
        let (policies, cidrs, peers) = (cx.kernel.policies()?, cx.kernel.cidrs()?, cx.kernel.peers()?);
        // The compiler refuses what the maps would not hold, so that a policy is refused whole and by name.
        let usage = cx.kernel.usage()?;
        let size = |name: &str| {
            let map = usage.iter().find(|map| map.name == name);
            map.map_or(usize::MAX, |map| usize::try_from(map.entries_max).unwrap_or(usize::MAX))
        };
        self.engine.set_limits(Limits::for_maps(
            size(map_name::POLICY_INFO),
            size(map_name::POLICY_ENTRIES),
            size(map_name::POLICY_CLASSES),
            size(map_name::PEERS),
            size(map_name::PREFIXES),
        ));
        self.engine.adopt(&policies, &cidrs, &peers);
        self.cidrs = cidrs.into_iter().collect();
        Ok(())
    }

    fn reconcile(&mut self, cx: &mut Context<'_>) {
        let plan = self.compile();
        let is_due = !self.queue.take_due(cx.now).is_empty();
        let written = match plan {
            // A comparison that failed a moment ago waits, unless there is news.
            None if self.drifted && !is_due && !self.queue.is_settled() => {
                cx.policies_written = false;
                return;
            }
            _ if self.drifted => self.write_everything(cx),
            Some(plan) => self.write_plan(plan, cx),
            None => Ok(()),
        };
        cx.policies_written = written.is_ok();
        self.settle(written, cx);
    }

    fn finish(&mut self, cx: &mut Context<'_>) {
        if !cx.endpoints_switched {
            // Some endpoint still uses what was to be removed.
            self.drift();
        }
        let finished = self.narrow_bump_remove(cx);
        if finished.is_ok() && cx.policies_written {
            self.queue.done(&"plan");
        }
        self.settle(finished, cx);
    }

    fn wants_another_pass(&mut self) -> bool {
        self.again = self.engine.needs_retry();
        self.again
    }

    fn rows(&self) -> &dyn Rows {
        &self.queue
    }

    fn rows_mut(&mut self) -> &mut dyn Rows {
        &mut self.queue
    }
}

/// What to write first, and what to remove once it has taken hold.
fn difference(old: &CompiledPolicy, new: &CompiledPolicy) -> (PolicyPatch, PolicyPatch) {
    let entries = new.entries.iter().filter(|(key, value)| old.entries.get(key) != Some(value));
    let classes = new.classes.iter().filter(|(key, value)| old.classes.get(key) != Some(value));
    let first = PolicyPatch {
        put_entries: entries.map(|(key, value)| (*key, *value)).collect(),
        put_classes: classes.map(|(key, value)| (*key, *value)).collect(),
        ..PolicyPatch::default()
    };
    let rest = PolicyPatch {
        del_classes: old.classes.keys().filter(|key| !new.classes.contains_key(key)).copied().collect(),
        del_entries: old.entries.keys().filter(|key| !new.entries.contains_key(key)).copied().collect(),
        ..PolicyPatch::default()
    };
    (first, rest)
}
