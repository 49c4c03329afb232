//! Emits the plan from the state of the engine.

use super::engine::Engine;
use super::interface::Plan;
use super::peers::Move;
use super::resolved::Resolved;
use foldhash::HashMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use weft_model::desired::PolicyPatch;
use weft_model::id::{EndpointId, PeerClass, PolicyClass, PolicyId};

/// The effect of moving peers from one class to another.
struct Step {
    /// The peers are allowed at least as much as before.
    grows: bool,
    /// Endpoints whose established connections must be decided again.
    touched: BTreeSet<EndpointId>,
}

impl Engine {
    /// Removes resolved policies without users; those that the kernel has only if `all`. Returns the latter.
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
            self.remove_resolved(id);
        }
        self.peers.drop_unwritten_prefixes();
        in_kernel
    }

    /// Returns everything that changed since the last plan.
    pub(super) fn emit(&mut self) -> Plan {
        self.sweep(false);
        self.spread();
        self.recompile_outgrown();
        self.sweep(false);
        self.spread();
        self.drop_dead(false);
        self.update_incomplete();
        let mut plan = Plan { rules: self.numbers.take_fresh(), ..Plan::default() };
        for (id, row) in self.resolved.iter_mut().filter(|(_, row)| !row.in_kernel || row.is_changed()) {
            let is_new = !row.in_kernel;
            let (new, gone) = row.commit(&mut self.usage);
            if is_new {
                plan.put.push((*id, Arc::new(row.compiled().clone())));
                continue;
            }
            // A policy that is about to be removed needs the new rows too, until its endpoints are switched.
            if new != PolicyPatch::default() {
                plan.patch.push((*id, new));
            }
            if gone != PolicyPatch::default() {
                plan.late_patch.push((*id, gone));
            }
        }
        self.patch_stale(&mut plan);
        self.move_peers(&mut plan);
        plan.add_cidrs = self.peers.prefixes_mut().take_fresh();
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
        self.dirty.added.clear();
        self.remove_unused(&mut plan);
        self.peers.forget_adopted();
        self.room = !(plan.remove.is_empty() && plan.remove_cidrs.is_empty() && plan.late_patch.is_empty());
        plan
    }

    /// Adds the peers whose rows change. Moves that allow as much or more come first, the others after the ipcache is written:
    /// an address must have its new identity before the old one loses its row.
    fn move_peers(&mut self, plan: &mut Plan) {
        let mut known: HashMap<(PeerClass, PeerClass, bool), Step> = HashMap::default();
        let is_restart = !self.stale.is_empty();
        let new: BTreeSet<PolicyId> = plan.put.iter().map(|(id, _)| *id).collect();
        for row in self.peers.take_moves() {
            let Move { peer, from, to, is_gone } = row;
            let is_prefix = peer.is_cidr();
            if is_gone && is_prefix {
                plan.del_peers.push(peer);
                continue;
            }
            let step = known.entry((from, to, is_prefix)).or_insert_with(|| self.effect(from, to, is_prefix, &new));
            plan.touched.extend(&step.touched);
            if to == PeerClass(0) {
                plan.narrow.push((peer, None));
            } else if from == PeerClass(0) || step.grows || is_restart {
                plan.put_peers.push((peer, to));
            } else {
                plan.narrow.push((peer, Some(to)));
            }
        }
    }

    /// The effect of a move on the policies in use. New policies do not count: they are compiled for the new classes, and no
    /// endpoint has them yet.
    fn effect(&self, from: PeerClass, to: PeerClass, is_prefix: bool, new: &BTreeSet<PolicyId>) -> Step {
        let mut users: BTreeSet<PolicyId> = BTreeSet::new();
        for class in [from, to].into_iter().filter_map(|number| self.peers.classes().numbered(number)) {
            users.extend(self.peers.users_of(class));
        }
        if !is_prefix {
            users.extend(&self.with_rest);
        }
        let mut step = Step { grows: true, touched: BTreeSet::new() };
        for row in users.difference(new).filter_map(|id| self.resolved.get(id)) {
            let (grows, _) = row.compare(from, to, is_prefix);
            step.grows &= grows;
            if !grows {
                step.touched.extend(&row.users);
            }
        }
        step
    }

    /// Adds rows of new classes to policies of a previous agent, which stay in force until their endpoints are switched. A
    /// new class gets the policy class of the adopted class that it was split from.
    fn patch_stale(&mut self, plan: &mut Plan) {
        for (id, stale) in &self.stale {
            let mut patch = PolicyPatch::default();
            for (_, class) in self.peers.classes().iter().filter(|(_, class)| class.members > 0) {
                let known = match self.peers.adopted_class(&class.key) {
                    Some(adopted) if adopted == class.number => None,
                    Some(adopted) => stale.classes.get(&adopted).copied(),
                    None => (!class.is_prefix && stale.rest != PolicyClass::ANY).then_some(PolicyClass::ANY),
                };
                if let Some(known) = known {
                    patch.put_classes.insert(class.number, known);
                }
            }
            if patch != PolicyPatch::default() {
                plan.patch.push((*id, patch));
            }
        }
    }

    /// Adds the removal of prefixes that no policy names and of classes without peers.
    fn remove_unused(&mut self, plan: &mut Plan) {
        plan.remove_cidrs = self.peers.take_unused_prefixes();
        for row in self.peers.take_moves() {
            if row.is_gone && row.peer.is_cidr() {
                plan.del_peers.push(row.peer);
            } else {
                plan.narrow.push((row.peer, (row.to != PeerClass(0)).then_some(row.to)));
            }
        }
        let mut changed = self.drop_dead(true);
        changed.retain(|id| self.resolved.get(id).is_some_and(Resolved::is_changed));
        for id in changed {
            let row = self.resolved.get_mut(&id).expect("just looked at");
            let (_, gone) = row.commit(&mut self.usage);
            if gone != PolicyPatch::default() {
                plan.late_patch.push((id, gone));
            }
        }
    }

    /// Removes classes without peers; those that the kernel may know only if `all`. Returns the policies that had them.
    pub(super) fn drop_dead(&mut self, all: bool) -> BTreeSet<PolicyId> {
        let mut changed: BTreeSet<PolicyId> = BTreeSet::new();
        for index in self.peers.take_dead_classes(all) {
            for id in self.peers.users_of(index).into_iter().chain(self.with_rest.iter().copied()) {
                let Some(row) = self.resolved.get_mut(&id) else { continue };
                row.remove_row(self.peers.classes().get(index), &mut self.usage, &self.limits);
                changed.insert(id);
            }
            for (_, classes) in self.starved.values_mut() {
                classes.remove(&index);
            }
            self.peers.remove_class(index);
        }
        self.starved.retain(|_, (_, classes)| !classes.is_empty());
        changed
    }
}
