//! Between the policy engine and the kernel: collects what the engine must hear, carries out its plans.

use super::{Core, Settings, describe};
use crate::state::EndpointRecord;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weft_control::expand::Expander;
use weft_control::identity::subject_labels;
use weft_control::policy::{self as engine, EndpointPolicy, Engine, LocalEndpoint, Plan};
use weft_control::remotes::{Merged, Remotes};
use weft_model::desired::{CompiledPolicy, DataplaneError, Host, PolicyPatch, Touched};
use weft_model::id::{EndpointId, Identity, PeerClass, PolicyId};
use weft_model::intent::{Change, IdentityLabels, Node, ObjectName, PolicyName};
use weft_model::label::LabelSet;

/// A policy object whose newest version cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Invalid {
    /// Version of the object.
    pub resource_version: String,
    /// The field and what was expected.
    pub problem: String,
}

/// See the module.
pub struct Policy {
    pub(super) engine: Engine,
    pub(super) expander: Expander,
    pending: Vec<engine::Change>,
    /// The engine wants to be asked though nothing changed.
    again: bool,
    /// A plan could not be carried out: compare everything.
    out_of_step: bool,
    /// Objects with a version in force or on the way, and that version.
    pub(super) versions: BTreeMap<PolicyName, String>,
    pub(super) invalid: BTreeMap<PolicyName, Invalid>,
    /// Endpoints of other nodes, as slices and CiliumEndpoints tell of them.
    pub(super) remotes: Remotes,
    own_node: BTreeSet<std::net::IpAddr>,
    /// Policies each endpoint shall have.
    targets: BTreeMap<EndpointId, EndpointPolicy>,
    /// Endpoints or their targets may have changed since all of them were in the kernel as they shall be: most changes
    /// are about other nodes' pods, and shall not cost a look at each of this node's.
    pub(super) endpoints_differ: bool,
    /// Peers that wait for the addresses of a change.
    narrow: Vec<(Identity, Option<PeerClass>)>,
    /// The node's own policies as the kernel has them; `None`: not known.
    host: Option<Option<Host>>,
    /// To be done once everything else of a change is in the kernel.
    after: Vec<After>,
}

/// What waits for the bump.
enum After {
    RemoveCidr(ipnet::IpNet),
    RemovePeers(BTreeSet<Identity>),
    Patch(PolicyId, PolicyPatch),
    Remove(PolicyId),
}

impl Policy {
    pub(super) fn new(settings: &Settings) -> Self {
        let mut expander = Expander::default();
        expander.set_api_server(settings.api_server.clone());
        Self {
            engine: Engine::new(engine::Limits::default()),
            expander,
            pending: Vec::new(),
            again: false,
            out_of_step: false,
            versions: BTreeMap::new(),
            invalid: BTreeMap::new(),
            remotes: Remotes::default(),
            own_node: BTreeSet::new(),
            targets: BTreeMap::new(),
            endpoints_differ: true,
            narrow: Vec::new(),
            host: None,
            after: Vec::new(),
        }
    }

    /// Hears of a change.
    pub(super) fn take(&mut self, change: &Change) {
        self.expander.hear(change);
        match change {
            Change::Policy(policy) => {
                self.invalid.remove(&policy.name);
                self.versions.insert(policy.name.clone(), policy.resource_version.clone());
            }
            Change::PolicyInvalid { name, resource_version, problem } => {
                tracing::warn!(policy = %name, %problem, "the policy is invalid; what was in force stays in force");
                let invalid = Invalid { resource_version: resource_version.clone(), problem: problem.clone() };
                self.invalid.insert(name.clone(), invalid);
            }
            Change::PolicyGone(name) => {
                self.invalid.remove(name);
                self.versions.remove(name);
            }
            Change::Identity(IdentityLabels { identity, labels, .. }) => {
                self.pending.push(engine::Change::PutIdentity(*identity, Arc::new(labels.clone())));
            }
            Change::Slice(slice) => {
                let own = &self.own_node;
                let merged = self.remotes.set(slice, |endpoint| own.contains(&endpoint.node));
                self.merged(merged);
            }
            Change::SliceGone(name) => {
                let merged = self.remotes.remove(name);
                self.merged(merged);
            }
            _ => {}
        }
    }

    /// Endpoints of this node come from here, not from slices.
    pub(super) fn set_own_addresses(&mut self, addresses: &[std::net::IpAddr]) {
        self.own_node = addresses.iter().copied().collect();
    }

    fn merged(&mut self, merged: Vec<Merged>) {
        self.pending.extend(merged.into_iter().map(|news| match news {
            Merged::Put(endpoint) => engine::Change::PutRemote(endpoint),
            Merged::Gone(uid) => engine::Change::RemoveRemote(uid),
        }));
    }

    /// An identity that is in use though no object says so.
    pub(super) fn put_identity(&mut self, identity: Identity, labels: &LabelSet) {
        self.pending.push(engine::Change::PutIdentity(identity, Arc::new(labels.clone())));
    }

    /// One that no object has and nobody uses.
    pub(super) fn remove_identity(&mut self, identity: Identity) {
        self.pending.push(engine::Change::RemoveIdentity(identity));
    }

    /// Whether the last plan made room for something that was refused.
    pub(super) fn ask_again(&mut self) -> bool {
        self.again = self.engine.wants_another();
        self.again
    }

    /// What was planned is void: compare everything.
    fn fall_out_of_step(&mut self) {
        self.out_of_step = true;
        self.narrow.clear();
        self.after.clear();
    }

    /// An endpoint of this node is there, or has changed.
    pub(super) fn set_endpoint(&mut self, record: &EndpointRecord) {
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
    pub(super) fn set_host(&mut self, node: &Node) {
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
    pub(super) fn remove_endpoint(&mut self, id: EndpointId) {
        self.targets.remove(&id);
        self.pending.push(engine::Change::RemoveEndpoint(id));
    }
}

impl Core {
    /// First half of putting a change of policies in force: policies, prefixes, endpoints. What refers to nothing
    /// any more is kept for [`Core::finish_policy`].
    pub(super) fn write_policy(&mut self) -> Result<(), ()> {
        let mut changes = self.policy.expander.take();
        changes.append(&mut self.policy.pending);
        let again = std::mem::take(&mut self.policy.again);
        let plan = if changes.is_empty() && !again { Plan::default() } else { self.policy.engine.apply(changes) };
        let written = if self.policy.out_of_step { self.write_everything() } else { self.write_plan(plan) };
        let written = written.and_then(|()| if self.policy.endpoints_differ { self.write_endpoints() } else { Ok(()) });
        match written {
            Ok(()) => {
                self.problems.remove("policy");
                Ok(())
            }
            Err(error) => {
                self.note_failure("policy", &error);
                self.policy.fall_out_of_step();
                Err(())
            }
        }
    }

    fn write_plan(&mut self, plan: Plan) -> Result<(), DataplaneError> {
        for (id, policy) in &plan.put {
            self.dataplane.put_policy(*id, policy)?;
        }
        for (id, patch) in &plan.patch {
            self.dataplane.patch_policy(*id, patch)?;
        }
        if !plan.put_peers.is_empty() {
            self.dataplane.put_peers(&plan.put_peers.into_iter().collect())?;
        }
        for (cidr, number) in &plan.add_cidrs {
            self.dataplane.set_cidr(*cidr, Some(*number))?;
        }
        self.policy.endpoints_differ |= !plan.switch.is_empty();
        for target in plan.switch {
            self.policy.targets.insert(target.id, target);
        }
        self.policy.narrow.extend(plan.narrow);
        self.touched_endpoints.extend(plan.touched);
        let after = &mut self.policy.after;
        after.extend(plan.remove_cidrs.into_iter().map(After::RemoveCidr));
        if !plan.del_peers.is_empty() {
            after.push(After::RemovePeers(plan.del_peers.into_iter().collect()));
        }
        after.extend(plan.late_patch.into_iter().map(|(id, patch)| After::Patch(id, patch)));
        after.extend(plan.remove.into_iter().map(After::Remove));
        Ok(())
    }

    /// Compares all that shall be with all that is, in the same order.
    fn write_everything(&mut self) -> Result<(), DataplaneError> {
        let wanted = self.policy.engine.desired();
        let present = self.dataplane.policies()?;
        let cidrs = self.dataplane.cidrs()?;
        let peers = self.dataplane.peers()?;
        let mut late = Vec::new();
        for (id, policy) in &wanted.policies {
            match present.get(id) {
                None => self.dataplane.put_policy(*id, policy)?,
                Some(old) if *old == **policy => {}
                Some(old) => {
                    let (first, rest) = difference(old, policy);
                    self.dataplane.patch_policy(*id, &first)?;
                    late.push(After::Patch(*id, rest));
                }
            }
        }
        let moved = wanted.peers.iter().filter(|(peer, class)| peers.get(*peer) != Some(*class));
        self.dataplane.put_peers(&moved.map(|(peer, class)| (*peer, *class)).collect())?;
        for (cidr, number) in &wanted.cidrs {
            if cidrs.get(cidr) != Some(number) {
                self.dataplane.set_cidr(*cidr, Some(*number))?;
            }
        }
        self.policy.endpoints_differ = true;
        self.policy.targets = wanted.endpoints.iter().map(|(id, target)| (*id, target.clone())).collect();
        late.extend(cidrs.keys().filter(|cidr| !wanted.cidrs.contains_key(cidr)).map(|cidr| After::RemoveCidr(*cidr)));
        late.push(After::RemovePeers(peers.into_keys().filter(|peer| !wanted.peers.contains_key(peer)).collect()));
        late.extend(present.keys().filter(|id| !wanted.policies.contains_key(id)).map(|id| After::Remove(*id)));
        self.policy.after = late;
        self.touched_node = true;
        self.policy.out_of_step = false;
        Ok(())
    }

    /// Endpoints that are not in the kernel as they shall be.
    fn write_endpoints(&mut self) -> Result<(), DataplaneError> {
        let mut result = self.write_host();
        let audit = self.settings.audit;
        for endpoint in self.endpoints.rows.values_mut().filter(|endpoint| endpoint.is_active()) {
            let Some(target) = self.policy.targets.get(&endpoint.record.id) else { continue };
            if endpoint.problem != target.blocked {
                endpoint.problem.clone_from(&target.blocked);
            }
            if endpoint.is_written(target, audit) {
                continue;
            }
            let wanted = endpoint.desired(target, audit);
            match self.dataplane.put_endpoint(&wanted) {
                Ok(()) => {
                    for address in &wanted.addresses {
                        self.addresses.set_local(*address, wanted.identity);
                    }
                    self.touched_endpoints.insert(wanted.id);
                    endpoint.in_kernel = Some(wanted);
                    endpoint.restoring = false;
                }
                Err(error) => {
                    endpoint.problem = Some(describe(&error));
                    result = Err(error);
                }
            }
        }
        self.policy.endpoints_differ = result.is_err();
        result
    }

    /// The node itself. Policies that do not fit must not cut it off: what was in force stays.
    fn write_host(&mut self) -> Result<(), DataplaneError> {
        let target = self.policy.targets.get(&EndpointId::HOST);
        if let Some(problem) = target.and_then(|target| target.blocked.clone()) {
            self.problems.insert("node policy".into(), problem);
            return Ok(());
        }
        self.problems.remove("node policy");
        let audit = self.settings.audit;
        let host = target.map(|target| Host { ingress: target.ingress, egress: target.egress, audit });
        let wanted = host.filter(|host| host.ingress != PolicyId::OPEN || host.egress != PolicyId::OPEN);
        if self.policy.host == Some(wanted) {
            return Ok(());
        }
        self.dataplane.set_host(wanted.as_ref())?;
        self.policy.host = Some(wanted);
        self.touched_node = true;
        Ok(())
    }

    /// Second half, once the addresses are written: makes what was written take hold, then removes what nothing refers to any more.
    pub(super) fn finish_policy(&mut self) -> Result<(), ()> {
        let finished = self.narrow_bump_remove();
        if let Err(error) = &finished {
            self.note_failure("policy", error);
            self.policy.fall_out_of_step();
        }
        finished.map_err(|_| ())
    }

    fn narrow_bump_remove(&mut self) -> Result<(), DataplaneError> {
        let (mut moved, mut gone) = (BTreeMap::new(), BTreeSet::new());
        for (peer, class) in std::mem::take(&mut self.policy.narrow) {
            match class {
                Some(class) => drop(moved.insert(peer, class)),
                None => drop(gone.insert(peer)),
            }
        }
        if !moved.is_empty() {
            self.dataplane.put_peers(&moved)?;
        }
        if !gone.is_empty() {
            self.dataplane.remove_peers(&gone)?;
        }
        let touched = if self.touched_node {
            Some(Touched::Node)
        } else if self.touched_endpoints.is_empty() {
            None
        } else {
            Some(Touched::Endpoints(self.touched_endpoints.clone()))
        };
        if let Some(touched) = touched {
            self.dataplane.bump(&touched)?;
        }
        self.touched_node = false;
        self.touched_endpoints.clear();
        let after = std::mem::take(&mut self.policy.after);
        for step in after {
            match &step {
                After::RemoveCidr(cidr) => self.dataplane.set_cidr(*cidr, None)?,
                After::RemovePeers(peers) => self.dataplane.remove_peers(peers)?,
                After::Patch(id, patch) => self.dataplane.patch_policy(*id, patch)?,
                After::Remove(id) => self.dataplane.remove_policy(*id)?,
            }
        }
        Ok(())
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
