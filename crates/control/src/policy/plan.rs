//! From the engine's state to a plan.

use super::Plan;
use super::engine::Engine;
use super::prefix::widen;
use std::sync::Arc;
use weft_model::desired::PolicyPatch;
use weft_model::id::{Identity, PolicyId};

impl Engine {
    /// Drops resolved policies without users, of those that the kernel has only if `all`. Returns the latter.
    pub(super) fn sweep(&mut self, all: bool) -> Vec<PolicyId> {
        let mut in_kernel = Vec::new();
        for id in std::mem::take(&mut self.dirty.orphans) {
            let Some(row) = self.resolved.get(&id).filter(|row| row.users.is_empty()) else { continue };
            if row.in_kernel && !all {
                self.dirty.orphans.insert(id);
                continue;
            }
            if row.in_kernel {
                in_kernel.push(id);
            }
            self.remove_resolved(id, usize::MAX);
        }
        for number in self.prefixes.drop_unborn() {
            for id in self.knowing(number) {
                self.deny_peer(id, number);
            }
        }
        in_kernel
    }

    fn knowing(&self, number: Identity) -> Vec<PolicyId> {
        self.resolved.iter().filter(|(_, row)| row.knows(number)).map(|(id, _)| *id).collect()
    }

    /// Everything that changed since the last plan.
    pub(super) fn emit(&mut self) -> Plan {
        let mut plan = Plan { rules: self.numbers.take_fresh(), ..Plan::default() };
        self.sweep(false);
        for (id, row) in self.resolved.iter_mut().filter(|(_, row)| !row.in_kernel || row.is_changed()) {
            let is_new = !row.in_kernel;
            let (wider, other) = row.commit(&mut self.usage);
            if is_new {
                plan.put.push((*id, Arc::new(row.compiled().clone())));
                continue;
            }
            // Also what is about to go must know the new prefixes, as long as endpoints have it.
            if wider != PolicyPatch::default() {
                plan.patch.push((*id, wider));
            }
            if other != PolicyPatch::default() && !row.users.is_empty() {
                plan.narrow.push((*id, other));
                plan.touched.extend(&row.users);
            }
        }
        plan.add_cidrs = self.prefixes.take_fresh();
        self.teach_stale(&mut plan);
        plan.remove = self.sweep(true);
        plan.remove.extend(std::mem::take(&mut self.stale).into_keys());
        for id in std::mem::take(&mut self.dirty.switched) {
            if let Some(row) = self.endpoints.get_mut(&id)
                && row.announced.as_ref() != Some(&row.now)
            {
                plan.switch.push(row.now.clone());
                plan.touched.insert(id);
                row.announced = Some(row.now.clone());
            }
        }
        plan.touched.extend(std::mem::take(&mut self.dirty.touched));
        self.dirty.born.clear();
        self.remove_unused_prefixes(&mut plan);
        self.room = !(plan.remove.is_empty() && plan.remove_cidrs.is_empty());
        plan
    }

    /// Policies from before a restart learn of new prefixes too, for as long as endpoints have them: what holds for
    /// the wider prefix that they know holds for the new one.
    fn teach_stale(&mut self, plan: &mut Plan) {
        let adopted = std::mem::take(&mut self.adopted);
        for (id, classes) in &self.stale {
            let mut patch = PolicyPatch::default();
            for (net, number) in &plan.add_cidrs {
                let wider = (0..net.prefix_len()).rev().filter_map(|len| widen(net, len)).find(|w| adopted.contains(w));
                if let Some(class) = wider.and_then(|wider| classes.get(&wider)) {
                    patch.put_peers.insert(*number, *class);
                }
            }
            if patch != PolicyPatch::default() {
                plan.patch.push((*id, patch));
            }
        }
    }

    fn remove_unused_prefixes(&mut self, plan: &mut Plan) {
        let mut late = std::collections::BTreeSet::new();
        for (net, number) in self.prefixes.take_unused() {
            plan.remove_cidrs.push(net);
            for id in self.knowing(number) {
                self.deny_peer(id, number);
                late.insert(id);
            }
        }
        for id in late {
            let row = self.resolved.get_mut(&id).expect("named by knowing");
            let (_, patch) = row.commit(&mut self.usage);
            plan.late_patch.push((id, patch));
        }
    }
}
