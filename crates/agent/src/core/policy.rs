//! Between the policy engine and the kernel: collects what the engine must hear, carries out its plans.

use super::{Core, Settings, describe};
use crate::state::EndpointRecord;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weft_control::policy::{self as engine, EndpointPolicy, Engine, LocalEndpoint, Plan};
use weft_model::desired::{CompiledPolicy, DataplaneError, PolicyPatch, Touched};
use weft_model::id::{EndpointId, Identity, PolicyId};
use weft_model::intent::{Change, EndpointSlice, IdentityLabels, ObjectName, RemoteEndpoint};
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
    pending: Vec<engine::Change>,
    /// The engine wants to be asked though nothing changed.
    again: bool,
    /// A plan could not be carried out: compare everything.
    out_of_step: bool,
    /// Objects with a version in force or on the way, and that version.
    pub(super) versions: BTreeMap<ObjectName, String>,
    pub(super) invalid: BTreeMap<ObjectName, Invalid>,
    /// Which endpoints each slice brought, by UID.
    slices: BTreeMap<String, BTreeMap<String, Arc<RemoteEndpoint>>>,
    own_node: BTreeSet<std::net::IpAddr>,
    /// Policies each endpoint shall have.
    targets: BTreeMap<EndpointId, EndpointPolicy>,
    /// Patches that wait for the addresses of a change.
    narrow: Vec<(PolicyId, PolicyPatch)>,
    /// To be done once everything else of a change is in the kernel.
    after: Vec<After>,
}

/// What waits for the bump.
enum After {
    RemoveCidr(ipnet::IpNet),
    Patch(PolicyId, PolicyPatch),
    Remove(PolicyId),
}

impl Policy {
    pub(super) fn new(_settings: &Settings) -> Self {
        Self {
            engine: Engine::new(engine::Limits::default()),
            pending: Vec::new(),
            again: false,
            out_of_step: false,
            versions: BTreeMap::new(),
            invalid: BTreeMap::new(),
            slices: BTreeMap::new(),
            own_node: BTreeSet::new(),
            targets: BTreeMap::new(),
            narrow: Vec::new(),
            after: Vec::new(),
        }
    }

    /// Hears of a change.
    pub(super) fn take(&mut self, change: &Change) {
        match change {
            Change::Policy(policy) => {
                self.invalid.remove(&policy.name);
                self.versions.insert(policy.name.clone(), policy.resource_version.clone());
                self.pending.push(engine::Change::PutPolicy(Arc::new(policy.clone())));
            }
            Change::PolicyInvalid { name, resource_version, problem } => {
                tracing::warn!(policy = %name, %problem, "the policy is invalid; what was in force stays in force");
                let invalid = Invalid { resource_version: resource_version.clone(), problem: problem.clone() };
                self.invalid.insert(name.clone(), invalid);
            }
            Change::PolicyGone(name) => {
                self.invalid.remove(name);
                self.versions.remove(name);
                self.pending.push(engine::Change::RemovePolicy(name.clone()));
            }
            Change::Identity(IdentityLabels { identity, labels }) => {
                self.pending.push(engine::Change::PutIdentity(*identity, Arc::new(labels.clone())));
            }
            Change::IdentityGone(identity) => self.pending.push(engine::Change::RemoveIdentity(*identity)),
            Change::Slice(slice) => self.set_slice(slice),
            Change::SliceGone(name) => {
                let gone = self.slices.remove(name).unwrap_or_default();
                self.forget(gone.into_keys());
            }
            _ => {}
        }
    }

    /// Endpoints of this node come from here, not from slices.
    pub(super) fn set_own_addresses(&mut self, addresses: &[std::net::IpAddr]) {
        self.own_node = addresses.iter().copied().collect();
    }

    fn set_slice(&mut self, slice: &EndpointSlice) {
        let mut old = self.slices.remove(&slice.name).unwrap_or_default();
        let mut new = BTreeMap::new();
        for endpoint in slice.endpoints.iter().filter(|endpoint| !self.own_node.contains(&endpoint.node)) {
            let endpoint = match old.remove(&endpoint.pod_uid) {
                Some(known) if *known == *endpoint => known,
                _ => {
                    let endpoint = Arc::new(endpoint.clone());
                    self.pending.push(engine::Change::PutRemote(endpoint.clone()));
                    endpoint
                }
            };
            new.insert(endpoint.pod_uid.clone(), endpoint);
        }
        if !new.is_empty() {
            self.slices.insert(slice.name.clone(), new);
        }
        self.forget(old.into_keys());
    }

    /// Endpoints that a slice no longer has, unless another one has them.
    fn forget(&mut self, uids: impl Iterator<Item = String>) {
        for uid in uids {
            let change = match self.slices.values().find_map(|slice| slice.get(&uid)) {
                Some(elsewhere) => engine::Change::PutRemote(elsewhere.clone()),
                None => engine::Change::RemoveRemote(uid),
            };
            self.pending.push(change);
        }
    }

    /// An identity that is in use though no object says so.
    pub(super) fn put_identity(&mut self, identity: Identity, labels: &LabelSet) {
        self.pending.push(engine::Change::PutIdentity(identity, Arc::new(labels.clone())));
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
            labels: record.pod_labels.clone(),
            identity: record.identity,
            addresses: record.addresses.clone(),
            named_ports: record.named_ports.clone(),
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
        let changes = std::mem::take(&mut self.policy.pending);
        let again = std::mem::take(&mut self.policy.again);
        let plan = if changes.is_empty() && !again { Plan::default() } else { self.policy.engine.apply(changes) };
        let written = if self.policy.out_of_step { self.write_everything() } else { self.write_plan(plan) };
        let written = written.and_then(|()| self.write_endpoints());
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
        for (cidr, number) in &plan.add_cidrs {
            self.dataplane.set_cidr(*cidr, Some(*number))?;
        }
        for target in plan.switch {
            self.policy.targets.insert(target.id, target);
        }
        self.policy.narrow.extend(plan.narrow);
        self.touched_endpoints.extend(plan.touched);
        let after = &mut self.policy.after;
        after.extend(plan.remove_cidrs.into_iter().map(After::RemoveCidr));
        after.extend(plan.late_patch.into_iter().map(|(id, patch)| After::Patch(id, patch)));
        after.extend(plan.remove.into_iter().map(After::Remove));
        Ok(())
    }

    /// Compares all that shall be with all that is, in the same order.
    fn write_everything(&mut self) -> Result<(), DataplaneError> {
        let wanted = self.policy.engine.desired();
        let present = self.dataplane.policies()?;
        let cidrs = self.dataplane.cidrs()?;
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
        for (cidr, number) in &wanted.cidrs {
            if cidrs.get(cidr) != Some(number) {
                self.dataplane.set_cidr(*cidr, Some(*number))?;
            }
        }
        self.policy.targets = wanted.endpoints.iter().map(|(id, target)| (*id, target.clone())).collect();
        late.extend(cidrs.keys().filter(|cidr| !wanted.cidrs.contains_key(cidr)).map(|cidr| After::RemoveCidr(*cidr)));
        late.extend(present.keys().filter(|id| !wanted.policies.contains_key(id)).map(|id| After::Remove(*id)));
        self.policy.after = late;
        self.touched_node = true;
        self.policy.out_of_step = false;
        Ok(())
    }

    /// Endpoints that are not in the kernel as they shall be.
    fn write_endpoints(&mut self) -> Result<(), DataplaneError> {
        let mut result = Ok(());
        for endpoint in self.endpoints.rows.values_mut().filter(|endpoint| endpoint.is_active()) {
            let Some(target) = self.policy.targets.get(&endpoint.record.id) else { continue };
            let wanted = endpoint.desired(target);
            endpoint.problem.clone_from(&target.blocked);
            if endpoint.in_kernel.as_ref() == Some(&wanted) {
                continue;
            }
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
        result
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
        for (id, patch) in std::mem::take(&mut self.policy.narrow) {
            self.dataplane.patch_policy(id, &patch)?;
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
                After::Patch(id, patch) => self.dataplane.patch_policy(*id, patch)?,
                After::Remove(id) => self.dataplane.remove_policy(*id)?,
            }
        }
        Ok(())
    }
}

/// What to write first, and what to remove once it has taken hold.
fn difference(old: &CompiledPolicy, new: &CompiledPolicy) -> (PolicyPatch, PolicyPatch) {
    let first = PolicyPatch {
        put_entries: new
            .entries
            .iter()
            .filter(|(key, value)| old.entries.get(key) != Some(value))
            .map(|(k, v)| (*k, *v))
            .collect(),
        put_peers: new
            .peers
            .iter()
            .filter(|(key, value)| old.peers.get(key) != Some(value))
            .map(|(k, v)| (*k, *v))
            .collect(),
        ..PolicyPatch::default()
    };
    let gone_peers: BTreeSet<Identity> = old.peers.keys().filter(|key| !new.peers.contains_key(key)).copied().collect();
    let rest = PolicyPatch {
        del_peers: gone_peers,
        del_entries: old.entries.keys().filter(|key| !new.entries.contains_key(key)).copied().collect(),
        ..PolicyPatch::default()
    };
    (first, rest)
}
