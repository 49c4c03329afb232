//! Resolving: from policies in force to resolved policies, within the limits.

use super::engine::{Engine, Refused, policies_of};
use super::peers::numbers;
use super::resolved::{Key, PortName, Resolved};
use super::rule::Rule;
use super::{Direction, Overflow};
use foldhash::{HashMap, HashMapExt};
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::sync::Arc;
use weft_model::desired::PortPrefix;
use weft_model::id::{ClassId, EndpointId, Identity, PolicyId, RuleId};
use weft_model::intent::{ObjectName, Policy, RemoteEndpoint};

impl Engine {
    /// Puts policies in force: all together, or if that does not fit one by one, refusing those that do not.
    pub(super) fn put_policies(&mut self, policies: Vec<Arc<Policy>>) {
        let policies: Vec<_> = policies.into_iter().filter(|policy| !self.only_version_differs(policy)).collect();
        if policies.is_empty() {
            return;
        }
        if self.try_policies(&policies).is_ok() {
            for policy in &policies {
                self.forget_refused(&policy.name);
            }
            self.settle_what_fits();
            return;
        }
        for policy in &policies {
            match self.try_policies(std::slice::from_ref(policy)) {
                Ok(()) => self.forget_refused(&policy.name),
                Err(problem) => self.refuse(policy, problem),
            }
        }
        // An endpoint may be blocked or not any more for what was refused or not.
        for policy in &policies {
            self.dirty.endpoints.extend(self.by_namespace.get(&policy.name.namespace).into_iter().flatten());
        }
        self.settle_what_fits();
    }

    /// A refused version counts no more: endpoints that were blocked for it may come up.
    pub(super) fn forget_refused(&mut self, name: &ObjectName) {
        if self.refused.remove(name).is_some() {
            self.dirty.endpoints.extend(self.by_namespace.get(&name.namespace).into_iter().flatten());
        }
    }

    /// The object says what it said before.
    fn only_version_differs(&mut self, policy: &Arc<Policy>) -> bool {
        let Some(row) = self.policies.get_mut(&policy.name) else { return false };
        let (old, new) = (&row.object, policy);
        let same = old.pod_selector == new.pod_selector && old.ingress == new.ingress && old.egress == new.egress;
        if same {
            row.object = Arc::clone(policy);
            self.forget_refused(&policy.name);
            self.settle_what_fits();
        }
        same
    }

    fn try_policies(&mut self, policies: &[Arc<Policy>]) -> Result<(), Overflow> {
        let swap = |engine: &mut Self, policy: &Arc<Policy>| {
            (policy.name.clone(), engine.swap_policy(&policy.name, Some(policy)))
        };
        let before: Vec<_> = policies.iter().map(|policy| swap(self, policy)).collect();
        let result = self.settle();
        if result.is_ok() {
            for (name, old) in before {
                if let Some(old) = old {
                    let new = self.policies.remove(&name);
                    self.retire(&old, new.as_ref());
                    new.and_then(|new| self.policies.insert(name, new));
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
        self.settle_what_fits();
        // Its resolved policies have no users any more: give their room back at once.
        self.sweep(false);
        result
    }

    fn refuse(&mut self, policy: &Arc<Policy>, problem: Overflow) {
        let mut spared = match self.refused.remove(&policy.name) {
            Some(before) => before.spared,
            None => BTreeSet::new(),
        };
        let in_namespace = self.by_namespace.get(&policy.name.namespace).into_iter().flatten();
        // In the first batch nobody is spared: whatever is in the kernel from before is not known well enough.
        let old = in_namespace.filter(|id| !self.dirty.born.contains(id));
        let selected = old.filter(|id| {
            let row = &self.endpoints[id];
            row.now.blocked.is_none() && policy.pod_selector.matches(&row.endpoint.labels)
        });
        spared.extend(selected);
        let refused = Refused { object: Arc::clone(policy), problem, spared };
        self.refused.insert(policy.name.clone(), refused);
    }

    /// Resolves what is dirty; an endpoint that does not fit is blocked, a peer that does not fit is denied.
    pub(super) fn settle_what_fits(&mut self) {
        for id in std::mem::take(&mut self.dirty.endpoints) {
            if let Err(problem) = self.resolve_endpoint(id)
                && let Some(row) = self.endpoints.get_mut(&id)
            {
                row.now.blocked = Some(format!("its policy {problem}"));
            }
            self.dirty.switched.insert(id);
        }
        while let Some((policy, peers)) = self.next_peers() {
            for peer in peers {
                if let Err(problem) = self.class_peers(policy, [peer]) {
                    let starved = self.starved.entry(policy).or_insert((problem, BTreeSet::new()));
                    starved.1.insert(peer);
                    self.deny_peer(policy, peer);
                }
            }
        }
    }

    /// The same, but stops at what does not fit. The rest stays dirty.
    fn settle(&mut self) -> Result<(), Overflow> {
        while let Some(id) = self.dirty.endpoints.first().copied() {
            self.resolve_endpoint(id)?;
            self.dirty.switched.insert(id);
            self.dirty.endpoints.remove(&id);
        }
        while let Some((policy, peers)) = self.next_peers() {
            if let Err(problem) = self.class_peers(policy, peers.iter().copied()) {
                self.dirty.peers.entry(policy).or_default().extend(peers);
                return Err(problem);
            }
        }
        Ok(())
    }

    /// A policy and those of its peers that must be looked at.
    fn next_peers(&mut self) -> Option<(PolicyId, BTreeSet<Identity>)> {
        self.mark_added_prefixes();
        self.dirty.peers.pop_first()
    }

    /// Peers that did not fit get another chance.
    pub(super) fn retry_starved(&mut self) {
        for (policy, (_, peers)) in std::mem::take(&mut self.starved) {
            self.dirty.peers.entry(policy).or_default().extend(peers);
        }
    }

    fn mark_added_prefixes(&mut self) {
        let added = self.prefixes.take_added();
        if added.is_empty() {
            return;
        }
        let numbers: Vec<_> = added.iter().filter_map(|net| self.prefixes.number(net)).collect();
        for (id, _) in self.resolved.iter().filter(|(_, row)| row.has_blocks()) {
            self.dirty.peers.entry(*id).or_default().extend(&numbers);
        }
    }

    fn resolve_endpoint(&mut self, id: EndpointId) -> Result<(), Overflow> {
        let Some(row) = self.endpoints.get(&id) else { return Ok(()) };
        let blocked = self.blocked_by_refused(id);
        let before = row.now.clone();
        let mut now = before.clone();
        now.blocked = blocked;
        for direction in [Direction::Ingress, Direction::Egress] {
            let policy = match self.key_of(id, direction) {
                None => PolicyId::OPEN,
                Some((key, rules)) => self.acquire(key, &rules, id)?,
            };
            let place = match direction {
                Direction::Ingress => &mut now.ingress,
                Direction::Egress => &mut now.egress,
            };
            let old = std::mem::replace(place, policy);
            self.endpoints.get_mut(&id).expect("looked at above").now = now.clone();
            if old != policy {
                self.release(old, id);
            }
        }
        Ok(())
    }

    fn blocked_by_refused(&self, id: EndpointId) -> Option<String> {
        let endpoint = &self.endpoints[&id].endpoint;
        policies_of(&self.refused, &endpoint.pod.namespace)
            .find(|(_, refused)| !refused.spared.contains(&id) && refused.object.pod_selector.matches(&endpoint.labels))
            .map(|(name, refused)| format!("{} {name}: {}", refused.object.kind, refused.problem))
    }

    /// What makes an endpoint's policy; `None`: it is not isolated.
    fn key_of(&self, id: EndpointId, direction: Direction) -> Option<(Key, Vec<Arc<Rule>>)> {
        let row = &self.endpoints[&id];
        let mut isolated = false;
        let mut rules: Vec<Arc<Rule>> = Vec::new();
        for name in &row.policies {
            if let Some(list) = self.policies[name].rules(direction) {
                isolated = true;
                rules.extend(list.iter().cloned());
            }
        }
        if !isolated {
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
        let key = Key { direction, rules: rules.iter().map(|rule| rule.id).collect(), names };
        Some((key, rules))
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
        let row = Resolved::new(id, key.clone(), rules, &mut self.selectors);
        self.usage.entries += row.usage().entries;
        let nets = row.prefixes().to_vec();
        let selectors: Vec<_> = row.selectors().collect();
        self.by_key.insert(key, id);
        self.resolved.insert(id, row);
        let acquired = nets.iter().take_while(|net| self.prefixes.acquire(**net, self.limits.cidrs).is_some()).count();
        let result = if acquired < nets.len() {
            let wanted = self.prefixes.len() + nets.len() - acquired;
            Err(Overflow { what: "address prefixes on this node", wanted, limit: self.limits.cidrs })
        } else {
            let mut peers: BTreeSet<Identity> = BTreeSet::new();
            for selector in selectors {
                peers.extend(self.selectors.identities(selector));
            }
            if self.resolved[&id].has_blocks() {
                peers.extend(self.prefixes.iter().map(|(_, number)| number));
            }
            let row = self.resolved[&id].usage();
            self.limits
                .check_policy(row.entries, 0)
                .and_then(|()| self.limits.check_total(self.usage.entries, self.usage.peers))
                .and_then(|()| self.class_peers(id, peers))
        };
        if let Err(problem) = result {
            self.remove_resolved(id, acquired);
            return Err(problem);
        }
        Ok(id)
    }

    /// Takes a resolved policy away, with its selectors and the first `prefixes` of its prefixes.
    pub(super) fn remove_resolved(&mut self, id: PolicyId, prefixes: usize) {
        let Some(row) = self.resolved.remove(&id) else { return };
        self.by_key.remove(&row.key);
        for selector in row.selectors() {
            self.selectors.release(selector, id);
        }
        for net in row.prefixes().iter().take(prefixes).chain(row.hosts()) {
            self.prefixes.release(net);
        }
        self.usage.entries -= row.usage().entries;
        self.usage.peers -= row.usage().peers;
        self.dirty.peers.remove(&id);
        self.dirty.orphans.remove(&id);
        self.starved.remove(&id);
    }

    /// Puts each peer into the class that it belongs to now.
    fn class_peers(&mut self, id: PolicyId, peers: impl IntoIterator<Item = Identity>) -> Result<(), Overflow> {
        if !self.resolved.contains_key(&id) {
            return Ok(());
        }
        let mut known: HashMap<Vec<usize>, Option<ClassId>> = HashMap::new();
        for peer in peers {
            let row = &self.resolved[&id];
            let (parts, entries) = if peer.is_cidr() {
                let Some(net) = self.prefixes.net(peer) else {
                    self.deny_peer(id, peer);
                    continue;
                };
                (row.parts_of_prefix(&net), self.named_at(row, &net))
            } else {
                let parts = row.parts_of_identity(self.selectors.of(peer));
                if row.has_names() {
                    self.tell_apart(id, peer, &parts)?;
                }
                let row = &self.resolved[&id];
                let entries = row.by_name(&parts, |name| self.pods.common(peer, name).unwrap_or_default());
                (parts, entries)
            };
            let row = self.resolved.get_mut(&id).expect("looked at above");
            let class = match known.get(&parts) {
                Some(class) if entries.is_empty() => *class,
                _ => {
                    let plain = entries.is_empty();
                    let all = [row.by_number(&parts), entries].concat();
                    let class = row.class_for(row.content(all), &mut self.usage, &self.limits)?;
                    if plain {
                        known.insert(parts, class);
                    }
                    class
                }
            };
            row.set_peer(peer, class, &mut self.usage, &self.limits)?;
        }
        Ok(())
    }

    /// What pods with this address may be sent to by the names of their ports, where those mean other numbers than
    /// in other pods of their identity.
    fn named_at(&self, row: &Resolved, host: &IpNet) -> Vec<(PortPrefix, RuleId)> {
        let mut entries = Vec::new();
        for identity in row.identities_at(host) {
            let parts = row.parts_of_identity(self.selectors.of(identity));
            let here = |pod: &&Arc<RemoteEndpoint>| pod.addresses.iter().any(|address| IpNet::from(*address) == *host);
            for pod in self.pods.of(identity).iter().filter(here) {
                entries.extend(row.by_name(&parts, |name| match self.pods.common(identity, name) {
                    Some(_) => Vec::new(),
                    None => numbers(pod, name),
                }));
            }
        }
        entries
    }

    /// Sees to it that the policy has the addresses of those pods of `identity` for which a port's name does not
    /// mean what it means in all.
    fn tell_apart(&mut self, id: PolicyId, identity: Identity, parts: &[usize]) -> Result<(), Overflow> {
        let row = self.resolved.get_mut(&id).expect("the caller looked at it");
        let apart: Vec<PortName> =
            row.names(parts).into_iter().filter(|name| self.pods.common(identity, name).is_none()).cloned().collect();
        let named = |pod: &&Arc<RemoteEndpoint>| apart.iter().any(|name| !numbers(pod, name).is_empty());
        let pods = self.pods.of(identity).iter().filter(named);
        let wanted: BTreeSet<IpNet> = pods.flat_map(|pod| &pod.addresses).map(|a| IpNet::from(*a)).collect();
        let hosts = row.hosts_mut(identity);
        let mut changed: BTreeSet<Identity> = BTreeSet::new();
        for net in hosts.difference(&wanted).copied().collect::<Vec<_>>() {
            hosts.remove(&net);
            changed.extend(self.prefixes.number(&net));
            self.prefixes.release(&net);
        }
        for net in wanted {
            if !hosts.contains(&net) {
                let overflow = || Overflow {
                    what: "address prefixes on this node",
                    wanted: self.limits.cidrs + 1,
                    limit: self.limits.cidrs,
                };
                self.prefixes.acquire(net, self.limits.cidrs).ok_or_else(overflow)?;
                hosts.insert(net);
            }
            changed.extend(self.prefixes.number(&net));
        }
        if !changed.is_empty() {
            self.dirty.peers.entry(id).or_default().extend(changed);
        }
        Ok(())
    }

    pub(super) fn deny_peer(&mut self, id: PolicyId, peer: Identity) {
        if let Some(row) = self.resolved.get_mut(&id) {
            let denied = row.set_peer(peer, None, &mut self.usage, &self.limits);
            debug_assert!(denied.is_ok(), "removing a peer needs no room");
        }
    }
}
