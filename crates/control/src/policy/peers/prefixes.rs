//! Prefixes as peers, and host prefixes for pods whose named ports differ from those of their identity.

use super::super::pods::numbers;
use super::super::resolved::PortName;
use super::{BTreeSet, Identity, IpNet, Mark, Overflow, PeerScope, Peers, Resource, SCOPES, Select, family, widen};

impl Peers {
    /// Adds a reference of a policy to a prefix.
    pub fn acquire_prefix(&mut self, net: IpNet) -> Result<(), Overflow> {
        let limit = self.room.cidrs;
        let Some((number, is_new)) = self.prefixes.acquire(net, limit) else {
            let wanted = self.prefixes.len() + 1;
            return Err(Overflow { resource: Resource::Cidrs, wanted, limit });
        };
        if !is_new {
            return Ok(());
        }
        for scope in SCOPES {
            let slot = self.new_slot(number.in_scope(scope));
            let mut key = self.adopted_mark_around(&net, scope);
            key.extend(self.key_of_prefix(&net, scope));
            key.sort_unstable();
            if let Err(problem) = self.place(slot, key) {
                self.prefixes.discard(&net);
                self.remove_peers_of(number);
                return Err(problem);
            }
        }
        Ok(())
    }

    /// Drops a reference.
    pub fn release_prefix(&mut self, net: &IpNet) {
        self.prefixes.release(net);
    }

    /// Removes prefixes without users that the kernel never had.
    pub fn drop_unwritten_prefixes(&mut self) {
        for number in self.prefixes.drop_unwritten() {
            self.remove_peers_of(number);
        }
    }

    /// Removes all prefixes without users.
    pub fn take_unused_prefixes(&mut self) -> Vec<IpNet> {
        let unused = self.prefixes.take_unused();
        for (_, number) in &unused {
            self.remove_peers_of(*number);
        }
        unused.into_iter().map(|(net, _)| net).collect()
    }

    fn remove_peers_of(&mut self, number: Identity) {
        for scope in SCOPES {
            if let Some(slot) = self.slot_of.get(&number.in_scope(scope)).copied() {
                self.set_class(slot, None);
                self.mark_dirty(slot);
            }
        }
    }

    /// The mark of the adopted class that the addresses of a new prefix had in the kernel so far.
    fn adopted_mark_around(&self, net: &IpNet, scope: PeerScope) -> Vec<Mark> {
        if self.adopted.is_empty() {
            return Vec::new();
        }
        let wider = (0..net.prefix_len()).rev().filter_map(|len| widen(net, len)).find(|w| self.adopted.contains(w));
        let number = wider.and_then(|wider| self.prefixes.number(&wider));
        let slot = number.and_then(|number| self.slot_of.get(&number.in_scope(scope)));
        slot.map(|slot| self.adopted_mark(*slot)).unwrap_or_default()
    }

    fn key_of_prefix(&self, net: &IpNet, scope: PeerScope) -> Vec<Mark> {
        let mut key = Vec::new();
        for len in self.cidr_lengths[family(net)].range(..=net.prefix_len()).map(|(len, _)| *len) {
            for id in widen(net, len).and_then(|wider| self.cidrs.get(&wider)).into_iter().flatten() {
                if let Select::Peer(selector) = &self.rows[id].select
                    && selector.holds(net, scope)
                {
                    key.push(Mark::plain(*id));
                }
            }
        }
        if scope == PeerScope::Pod {
            self.mark_overrides(net, &mut key);
        }
        key.sort_unstable();
        key.dedup();
        key
    }

    /// Adds the marks of named ports whose numbers at this address differ from those in other pods of the identity.
    fn mark_overrides(&self, host: &IpNet, key: &mut Vec<Mark>) {
        for identity in self.overrides_at.get(host).into_iter().flatten() {
            for (named, name) in self.names_in_use(*identity) {
                if self.pods.common_ports(*identity, name).is_some() {
                    continue;
                }
                for pod in self.pods.of(*identity) {
                    if pod.addresses.iter().any(|address| IpNet::from(*address) == *host) {
                        let marks = numbers(pod, name).into_iter();
                        key.extend(marks.map(|n| Mark { selector: named, value: u32::from(n) + 1 }));
                    }
                }
            }
        }
    }

    /// The named ports that selectors in use look up in pods of the identity.
    fn names_in_use(&self, identity: Identity) -> impl Iterator<Item = (super::SelectorId, &PortName)> {
        let key = self.class_of(identity).map(|class| &self.classes.get(class).key);
        let named = key.into_iter().flatten().filter_map(|mark| self.named.get(&mark.selector)).flatten();
        named.filter_map(|named| match &self.rows[named].select {
            Select::Named(_, name) => Some((*named, name)),
            Select::Peer(_) => None,
        })
    }

    /// Brings the host prefixes of an identity in line: one for each address of a pod in which a named port has another
    /// number than in other pods of the identity.
    pub(super) fn update_overrides(&mut self, identity: Identity) -> Result<(), Overflow> {
        let none_in_use = self.named.is_empty() && !self.port_overrides.contains_key(&identity);
        if none_in_use {
            return Ok(());
        }
        let names = self.names_in_use(identity).map(|(_, name)| name);
        let differing: BTreeSet<&PortName> =
            names.filter(|name| self.pods.common_ports(identity, name).is_none()).collect();
        let pods = self.pods.of(identity).iter();
        let affected = pods.filter(|pod| differing.iter().any(|name| !numbers(pod, name).is_empty()));
        let wanted: BTreeSet<IpNet> = affected.flat_map(|pod| &pod.addresses).map(|a| IpNet::from(*a)).collect();
        let mut hosts = self.port_overrides.remove(&identity).unwrap_or_default();
        let mut changed: BTreeSet<IpNet> = hosts.union(&wanted).copied().collect();
        let mut result = Ok(());
        for net in hosts.difference(&wanted).copied().collect::<Vec<_>>() {
            hosts.remove(&net);
            self.release_prefix(&net);
            if let Some(identities) = self.overrides_at.get_mut(&net) {
                identities.remove(&identity);
                if identities.is_empty() {
                    self.overrides_at.remove(&net);
                }
            }
        }
        for net in wanted {
            if hosts.contains(&net) {
                continue;
            }
            if let Err(problem) = self.acquire_prefix(net) {
                changed.remove(&net);
                result = Err(problem);
                continue;
            }
            hosts.insert(net);
            self.overrides_at.entry(net).or_default().insert(identity);
        }
        if !hosts.is_empty() {
            self.port_overrides.insert(identity, hosts);
        }
        for net in changed {
            result = result.and(self.rekey_host(&net));
        }
        result
    }

    fn rekey_host(&mut self, net: &IpNet) -> Result<(), Overflow> {
        let Some(number) = self.prefixes.number(net) else { return Ok(()) };
        let slot = self.slot_of[&number.in_scope(PeerScope::Pod)];
        let mut key = self.adopted_mark(slot);
        key.extend(self.key_of_prefix(net, PeerScope::Pod));
        key.sort_unstable();
        self.place(slot, key)
    }

    /// All identities with such host prefixes.
    pub(super) fn overridden(&self) -> Vec<Identity> {
        self.port_overrides.keys().copied().collect::<Vec<_>>()
    }
}
