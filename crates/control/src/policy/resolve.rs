//! Resolves endpoints: from policy objects in force to resolved policies, within the limits.

use super::engine::Engine;
use super::interface::Direction;
use super::limits::{Blocked, Overflow};
use super::objects::{Refused, isolates};
use super::resolved::{Key, PortName, Resolved};
use super::rule::Rule;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weft_model::id::{EndpointId, PolicyId};
use weft_model::intent::{Policy, PolicyName, Subject, Tier};

impl Engine {
    /// Puts policy objects in force: all at once or, if they do not fit, one by one, refusing those that do not.
    pub(super) fn put_policies(&mut self, policies: Vec<Arc<Policy>>) {
        let policies: Vec<_> = policies.into_iter().filter(|policy| !self.only_version_differs(policy)).collect();
        if policies.is_empty() {
            return;
        }
        if self.try_policies(&policies).is_ok() {
            for policy in &policies {
                self.clear_refused(&policy.name);
            }
            self.resolve_and_spread();
            return;
        }
        for policy in &policies {
            match self.try_policies(std::slice::from_ref(policy)) {
                Ok(()) => self.clear_refused(&policy.name),
                Err(problem) => self.refuse(policy, problem),
            }
        }
        self.resolve_and_spread();
    }

    /// Forgets a refused version; endpoints that it blocked are resolved again.
    pub(super) fn clear_refused(&mut self, name: &PolicyName) {
        if let Some(refused) = self.refused.remove(name) {
            let selected = self.selected_by_any(&refused.object);
            self.dirty.endpoints.extend(selected);
        }
    }

    /// Whether only the version of the object changed, not its specs.
    fn only_version_differs(&mut self, policy: &Arc<Policy>) -> bool {
        let Some(row) = self.policies.get_mut(&policy.name) else { return false };
        let same = row.object.specs == policy.specs;
        if same {
            row.object = Arc::clone(policy);
            self.clear_refused(&policy.name);
            self.resolve_and_spread();
        }
        same
    }

    fn try_policies(&mut self, policies: &[Arc<Policy>]) -> Result<(), Overflow> {
        let swap = |engine: &mut Self, policy: &Arc<Policy>| {
            (policy.name.clone(), engine.swap_policy(&policy.name, Some(policy)))
        };
        let before: Vec<_> = policies.iter().map(|policy| swap(self, policy)).collect();
        let result = self.try_resolve();
        if result.is_ok() {
            for (name, old) in before {
                if let Some(old) = old
                    && let Some((name, new)) = self.policies.remove_entry(&name)
                {
                    self.retire(&old, Some(&new));
                    self.policies.insert(name, new);
                }
            }
            return result;
        }
        for (name, old) in before.into_iter().rev() {
            if let Some(new) = self.policies.remove(&name) {
                self.retire(&new, old.as_ref());
                self.place_policy(&name, Some(&new), old);
            }
        }
        self.resolve_dirty();
        // The resolved policies of the refused version have no users any more: free their room at once.
        self.sweep(false);
        self.spread();
        result
    }

    fn refuse(&mut self, policy: &Arc<Policy>, problem: Overflow) {
        let mut exempt = match self.refused.remove(&policy.name) {
            Some(before) => before.exempt,
            None => BTreeSet::new(),
        };
        let selected = self.selected_by_any(policy);
        // In the first batch every endpoint is new: what the kernel enforces for it is not known well enough to keep.
        let old = selected.iter().filter(|id| !self.dirty.added.contains(id));
        exempt.extend(old.filter(|id| self.endpoints[id].now.blocked.is_none()));
        self.dirty.endpoints.extend(selected);
        let refused = Refused { object: Arc::clone(policy), problem, exempt };
        self.refused.insert(policy.name.clone(), refused);
    }

    /// Resolves everything that is dirty. An endpoint that does not fit is blocked, a peer that does not fit is denied.
    pub(super) fn resolve_and_spread(&mut self) {
        self.resolve_dirty();
        self.spread();
    }

    fn resolve_dirty(&mut self) {
        for id in std::mem::take(&mut self.dirty.endpoints) {
            if let Err(problem) = self.resolve_endpoint(id)
                && let Some(row) = self.endpoints.get_mut(&id)
            {
                row.unresolved = Some(problem);
                self.update_blocked(id);
            }
            self.dirty.switched.insert(id);
        }
    }

    /// The same, but stops at the first that does not fit. The rest stays dirty.
    fn try_resolve(&mut self) -> Result<(), Overflow> {
        while let Some(id) = self.dirty.endpoints.first().copied() {
            self.resolve_endpoint(id)?;
            self.dirty.switched.insert(id);
            self.dirty.endpoints.remove(&id);
        }
        self.find_rows();
        while let Some((policy, class)) = self.dirty.rows.pop_first() {
            if let Err(problem) = self.add_row(policy, class) {
                self.dirty.rows.insert((policy, class));
                return Err(problem);
            }
        }
        Ok(())
    }

    /// Marks the policies that need rows for new classes.
    fn find_rows(&mut self) {
        self.drop_dead(false);
        for class in self.peers.take_fresh_classes() {
            let Some(row) = self.peers.classes().alive(class).filter(|row| row.members > 0) else { continue };
            let mut users = self.peers.users_of(class);
            if !row.is_prefix {
                users.extend(&self.with_rest);
            }
            self.dirty.rows.extend(users.into_iter().map(|user| (user, class)));
        }
    }

    /// Adds rows for new classes. A class whose row does not fit is denied, and retried with every batch.
    pub(super) fn spread(&mut self) {
        self.find_rows();
        while let Some((policy, class)) = self.dirty.rows.pop_first() {
            if let Err(problem) = self.add_row(policy, class) {
                let starved = self.starved.entry(policy).or_insert((problem, BTreeSet::new()));
                starved.1.insert(class);
                if let Some(row) = self.resolved.get_mut(&policy) {
                    row.remove_row(self.peers.classes().get(class), &mut self.usage, &self.limits);
                }
            }
        }
    }

    fn add_row(&mut self, policy: PolicyId, class: super::classes::Index) -> Result<(), Overflow> {
        let (Some(row), Some(class)) = (self.resolved.get_mut(&policy), self.peers.classes().alive(class)) else {
            return Ok(());
        };
        self.dirty.grown.insert(policy);
        row.add_row(class, &mut self.usage, &self.limits)
    }

    /// Retries everything that did not fit.
    pub(super) fn retry_starved(&mut self) {
        for (policy, (_, classes)) in std::mem::take(&mut self.starved) {
            self.dirty.rows.extend(classes.into_iter().map(|class| (policy, class)));
        }
        self.peers.retry();
    }

    /// A strict policy that misses a row would allow too much. Its endpoints are blocked.
    pub(super) fn update_incomplete(&mut self) {
        let mut incomplete: BTreeMap<PolicyId, Overflow> = BTreeMap::new();
        let starving = self.peers.starving();
        let by_peers = starving.iter().flat_map(|(problem, _, users)| users.iter().map(move |user| (user, problem)));
        let by_rows = self.starved.iter().map(|(id, (problem, _))| (id, problem));
        for (id, problem) in by_peers.chain(by_rows) {
            if self.resolved.get(id).is_some_and(Resolved::is_strict) {
                incomplete.insert(*id, problem.clone());
            }
        }
        if incomplete == self.incomplete {
            return;
        }
        let before = std::mem::replace(&mut self.incomplete, incomplete);
        let affected: BTreeSet<EndpointId> = before
            .keys()
            .chain(self.incomplete.keys())
            .filter_map(|id| self.resolved.get(id))
            .flat_map(|row| &row.users)
            .copied()
            .collect();
        for id in affected {
            self.update_blocked(id);
            self.dirty.switched.insert(id);
        }
    }

    fn update_blocked(&mut self, id: EndpointId) {
        let by_refused = self.blocked_by_refused(id);
        let Some(row) = self.endpoints.get_mut(&id) else { return };
        let unresolved = row.unresolved.clone().map(Blocked::Unresolved);
        let incomplete =
            [row.now.ingress, row.now.egress].iter().find_map(|policy| self.incomplete.get(policy)).cloned();
        row.now.blocked = by_refused.or(unresolved).or_else(|| incomplete.map(Blocked::Incomplete));
    }

    fn resolve_endpoint(&mut self, id: EndpointId) -> Result<(), Overflow> {
        if !self.endpoints.contains_key(&id) {
            return Ok(());
        }
        for direction in [Direction::Ingress, Direction::Egress] {
            let policy = match self.key_of(id, direction) {
                None => PolicyId::OPEN,
                Some((key, rules)) => self.acquire(key, &rules, id)?,
            };
            let row = self.endpoints.get_mut(&id).expect("looked at above");
            let place = match direction {
                Direction::Ingress => &mut row.now.ingress,
                Direction::Egress => &mut row.now.egress,
            };
            let old = std::mem::replace(place, policy);
            if old != policy {
                self.release(old, id);
            }
        }
        self.endpoints.get_mut(&id).expect("looked at above").unresolved = None;
        self.update_blocked(id);
        Ok(())
    }

    fn blocked_by_refused(&self, id: EndpointId) -> Option<Blocked> {
        if self.refused.is_empty() {
            return None;
        }
        let labels = &self.endpoints.get(&id)?.endpoint.labels;
        let is_host = id == EndpointId::HOST;
        let selects = |subject: &Subject| match subject {
            Subject::Endpoints(selector) => !is_host && selector.matches(labels),
            Subject::Nodes(selector) => is_host && selector.matches(&labels.0),
        };
        let blocking = self.refused.iter().find(|(_, refused)| {
            !refused.exempt.contains(&id) && refused.object.specs.iter().any(|spec| selects(&spec.subject))
        });
        blocking.map(|(name, refused)| Blocked::PolicyRefused { policy: name.clone(), cause: refused.problem.clone() })
    }

    /// The key and rules of an endpoint's resolved policy; `None`: no policy applies.
    fn key_of(&self, id: EndpointId, direction: Direction) -> Option<(Key, Vec<Arc<Rule>>)> {
        let row = &self.endpoints[&id];
        let specs = || {
            row.specs.iter().map(|(name, n)| {
                let policy = &self.policies[name];
                (&policy.object.specs[*n], policy.specs[*n].rules(direction))
            })
        };
        let is_isolated = specs().any(|(spec, _)| isolates(spec, direction));
        let counts = specs().filter(|(spec, _)| !(is_isolated && matches!(spec.tier, Tier::Baseline(_))));
        let mut rules: Vec<Arc<Rule>> = counts.flat_map(|(_, rules)| rules).cloned().collect();
        if !is_isolated && rules.is_empty() {
            return None;
        }
        rules.sort_unstable_by_key(|rule| rule.id);
        let mut names = Vec::new();
        if direction == Direction::Ingress {
            let mut used: Vec<&PortName> = rules.iter().flat_map(|rule| &rule.names).collect();
            used.sort_unstable();
            used.dedup();
            for name in used {
                let own = row.endpoint.named_ports.iter().filter(|p| p.protocol == name.0 && p.name == name.1);
                let numbers: BTreeSet<u16> = own.map(|port| port.port).collect();
                if !numbers.is_empty() {
                    names.push((name.clone(), numbers.into_iter().collect()));
                }
            }
        }
        let ids = rules.iter().map(|rule| rule.id).collect();
        Some((Key { direction, default_allow: !is_isolated, rules: ids, names }, rules))
    }

    fn acquire(&mut self, key: Key, rules: &[Arc<Rule>], user: EndpointId) -> Result<PolicyId, Overflow> {
        let known = self.by_key.get(&key).copied();
        let id = match known {
            Some(id) => id,
            None => self.build(key, rules)?,
        };
        let row = self.resolved.get_mut(&id).expect("by_key and resolved agree");
        row.users.insert(user);
        self.dirty.orphans.remove(&id);
        Ok(id)
    }

    pub(super) fn release(&mut self, id: PolicyId, user: EndpointId) {
        if let Some(row) = self.resolved.get_mut(&id) {
            row.users.remove(&user);
            if row.users.is_empty() {
                self.dirty.orphans.insert(id);
            }
        }
    }

    fn build(&mut self, key: Key, rules: &[Arc<Rule>]) -> Result<PolicyId, Overflow> {
        self.limits.check_policies(self.resolved.len() + 1)?;
        let id = loop {
            self.last_policy = self.last_policy.wrapping_add(1);
            let id = PolicyId(self.last_policy);
            if id != PolicyId::OPEN && !self.resolved.contains_key(&id) && !self.stale.contains_key(&id) {
                break id;
            }
        };
        let (mut row, held) = Resolved::new(id, key.clone(), rules, &mut self.peers);
        self.usage.entries += row.usage().entries;
        let result = held
            .and_then(|()| self.limits.check_policy(row.usage().entries, 0))
            .and_then(|()| self.limits.check_total(self.usage.entries, self.usage.rows))
            .and_then(|()| row.fill(&self.peers, &mut self.usage, &self.limits));
        if row.has_rest() {
            self.with_rest.insert(id);
        }
        self.by_key.insert(key, id);
        self.resolved.insert(id, row);
        if let Err(problem) = result {
            self.remove_resolved(id);
            return Err(problem);
        }
        Ok(id)
    }

    /// Removes a resolved policy and releases its prefixes and selectors.
    pub(super) fn remove_resolved(&mut self, id: PolicyId) {
        let Some(row) = self.resolved.remove(&id) else { return };
        if self.by_key.get(&row.key) == Some(&id) {
            self.by_key.remove(&row.key);
        }
        // In reverse: a selector of named ports depends on an older one.
        for selector in row.selectors().iter().rev() {
            self.peers.release(*selector, id);
        }
        for net in row.prefixes() {
            self.peers.release_prefix(net);
        }
        self.usage.entries -= row.usage().entries;
        self.usage.rows -= row.usage().rows;
        self.with_rest.remove(&id);
        self.dirty.orphans.remove(&id);
        self.starved.remove(&id);
    }

    /// Recompiles policies that would become much smaller by it.
    pub(super) fn recompile_outgrown(&mut self) {
        for id in std::mem::take(&mut self.dirty.grown) {
            let Some(row) = self.resolved.get_mut(&id) else { continue };
            if row.users.is_empty() || !row.is_outgrown(&self.peers) {
                continue;
            }
            let (key, users) = (row.key.clone(), row.users.clone());
            if self.by_key.get(&key) != Some(&id) {
                continue;
            }
            self.by_key.remove(&key);
            self.dirty.endpoints.extend(users);
            self.resolve_and_spread();
        }
    }
}
