//! Prefixes as peers.

use super::super::pods::numbers;
use super::super::resolved::PortName;
use super::{BTreeSet, Identity, IpNet, Mark, Overflow, PeerScope, Peers, SCOPES, Select, family, widen};

impl Peers {
    /// A policy names a prefix.
    pub fn acquire_prefix(&mut self, net: IpNet) -> Result<(), Overflow> {
        let limit = self.room.cidrs;
        let Some((number, is_new)) = self.prefixes.acquire(net, limit) else {
            let wanted = self.prefixes.len() + 1;
            return Err(Overflow { what: "address prefixes on this node", wanted, limit });
        };
        if !is_new {
            return Ok(());
        }
        for scope in SCOPES {
            let slot = self.new_slot(number.in_scope(scope));
            let mut key = self.was_around(&net, scope);
            key.extend(self.key_of_prefix(&net, scope));
            key.sort_unstable();
            if let Err(problem) = self.place(slot, key) {
                self.prefixes.discard(&net);
                self.forget_number(number);
                return Err(problem);
            }
        }
        Ok(())
    }

    /// A policy names it no more.
    pub fn release_prefix(&mut self, net: &IpNet) {
        self.prefixes.release(net);
    }

    /// Drops prefixes without users which the kernel never had.
    pub fn drop_unborn_prefixes(&mut self) {
        for number in self.prefixes.drop_unborn() {
            self.forget_number(number);
        }
    }

    /// Drops all prefixes without users.
    pub fn take_unused_prefixes(&mut self) -> Vec<IpNet> {
        let unused = self.prefixes.take_unused();
        for (_, number) in &unused {
            self.forget_number(*number);
        }
        unused.into_iter().map(|(net, _)| net).collect()
    }

    fn forget_number(&mut self, number: Identity) {
        for scope in SCOPES {
            if let Some(slot) = self.slot_of.get(&number.in_scope(scope)).copied() {
                self.set_class(slot, None);
                self.soil(slot);
            }
        }
    }

    /// What the kernel had for the addresses of a prefix that is new to it.
    fn was_around(&self, net: &IpNet, scope: PeerScope) -> Vec<Mark> {
        if self.adopted.is_empty() {
            return Vec::new();
        }
        let wider = (0..net.prefix_len()).rev().filter_map(|len| widen(net, len)).find(|w| self.adopted.contains(w));
        let number = wider.and_then(|wider| self.prefixes.number(&wider));
        let slot = number.and_then(|number| self.slot_of.get(&number.in_scope(scope)));
        slot.map(|slot| self.was(*slot)).unwrap_or_default()
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
            self.named_at(net, &mut key);
        }
        key.sort_unstable();
        key.dedup();
        key
    }

    /// What ports' names mean at an address, where that is not what they mean in all pods of the identity.
    fn named_at(&self, host: &IpNet, key: &mut Vec<Mark>) {
        for identity in self.apart_at.get(host).into_iter().flatten() {
            for (named, name) in self.names_asked(*identity) {
                if self.pods.common(*identity, name).is_some() {
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

    /// Names of ports that selectors which select the identity ask for.
    fn names_asked(&self, identity: Identity) -> impl Iterator<Item = (super::SelectorId, &PortName)> {
        let key = self.class_of(identity).map(|class| &self.classes.get(class).key);
        let named = key.into_iter().flatten().filter_map(|mark| self.named.get(&mark.selector)).flatten();
        named.filter_map(|named| match &self.rows[named].select {
            Select::Named(_, name) => Some((*named, name)),
            Select::Peer(_) => None,
        })
    }

    /// Sees to it that the addresses of those pods of `identity` are prefixes for which a port's name does not mean
    /// what it means in all.
    pub(super) fn retell(&mut self, identity: Identity) -> Result<(), Overflow> {
        let none_asked = self.named.is_empty() && !self.apart.contains_key(&identity);
        if none_asked {
            return Ok(());
        }
        let asked = self.names_asked(identity).map(|(_, name)| name);
        let apart: BTreeSet<&PortName> = asked.filter(|name| self.pods.common(identity, name).is_none()).collect();
        let pods = self.pods.of(identity).iter();
        let differing = pods.filter(|pod| apart.iter().any(|name| !numbers(pod, name).is_empty()));
        let wanted: BTreeSet<IpNet> = differing.flat_map(|pod| &pod.addresses).map(|a| IpNet::from(*a)).collect();
        let mut hosts = self.apart.remove(&identity).unwrap_or_default();
        let mut changed: BTreeSet<IpNet> = hosts.union(&wanted).copied().collect();
        let mut result = Ok(());
        for net in hosts.difference(&wanted).copied().collect::<Vec<_>>() {
            hosts.remove(&net);
            self.release_prefix(&net);
            if let Some(identities) = self.apart_at.get_mut(&net) {
                identities.remove(&identity);
                if identities.is_empty() {
                    self.apart_at.remove(&net);
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
            self.apart_at.entry(net).or_default().insert(identity);
        }
        if !hosts.is_empty() {
            self.apart.insert(identity, hosts);
        }
        for net in changed {
            result = result.and(self.rekey_host(&net));
        }
        result
    }

    fn rekey_host(&mut self, net: &IpNet) -> Result<(), Overflow> {
        let Some(number) = self.prefixes.number(net) else { return Ok(()) };
        let slot = self.slot_of[&number.in_scope(PeerScope::Pod)];
        let mut key = self.was(slot);
        key.extend(self.key_of_prefix(net, PeerScope::Pod));
        key.sort_unstable();
        self.place(slot, key)
    }

    /// All identities of which some pods are told apart.
    pub(super) fn told_apart(&self) -> Vec<Identity> {
        self.apart.keys().copied().collect::<Vec<_>>()
    }
}
