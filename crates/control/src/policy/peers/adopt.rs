//! Adoption of what a previous agent left in the kernel.
//!
//! Until the first plan, each class that the kernel has marks its peers like a selector would. So every class of the first
//! plan is a part of one adopted class, and the old policies, which stay in force until endpoints are switched, can get
//! rows for it.

use super::super::classes::Mark;
use super::{BTreeMap, Identity, IpNet, PeerClass, Peers, SCOPES, SelectorId};
use weft_model::id::PeerScope;

impl Peers {
    /// Call before anything else is added.
    pub fn adopt(&mut self, cidrs: &BTreeMap<IpNet, Identity>, peers: &BTreeMap<Identity, PeerClass>) {
        for (net, number) in cidrs {
            if self.prefixes.adopt(*net, *number) {
                for scope in SCOPES {
                    self.new_slot(number.in_scope(scope));
                }
                self.adopted.insert(net.trunc());
            }
        }
        let mut marks: BTreeMap<PeerClass, SelectorId> = BTreeMap::new();
        for (peer, number) in peers {
            let slot = self.new_slot(*peer);
            self.slots[slot as usize].kernel = *number;
            self.mark_dirty(slot);
            let of_prefix = self.prefixes.net(*peer).and_then(|net| self.prefixes.number(&net));
            let is_known = !peer.is_cidr() || of_prefix.is_some_and(|base| base == peer.in_scope(PeerScope::World));
            if *number == PeerClass(0) || !is_known {
                self.set_class(slot, None);
                continue;
            }
            let id = *marks.entry(*number).or_insert_with(|| {
                self.last_id += 1;
                let id = SelectorId(self.last_id);
                self.adopted_classes.insert(id, *number);
                self.classes.adopt(*number, peer.is_cidr(), vec![Mark::plain(id)]);
                id
            });
            let class = self.classes.of(id).next().filter(|class| self.classes.get(*class).is_prefix == peer.is_cidr());
            self.set_class(slot, class);
        }
    }

    /// Class numbers up to this one are in use in the kernel.
    pub fn start_classes_after(&mut self, number: PeerClass) {
        self.classes.start_after(number);
    }

    /// Removes adopted identities that the first batch did not contain.
    pub fn drop_unclaimed(&mut self) {
        for slot in 0..self.slots.len() {
            let peer = self.slots[slot].peer;
            if !peer.is_cidr() && self.slots[slot].class.is_some() && !self.labels.contains_key(&peer) {
                let slot = u32::try_from(slot).expect("slots have 32 bit numbers");
                self.set_class(slot, None);
            }
        }
    }

    /// The adopted class that a class with this key is a part of; `None`: none.
    pub fn adopted_class(&self, key: &[Mark]) -> Option<PeerClass> {
        key.iter().find_map(|mark| self.adopted_classes.get(&mark.selector).copied())
    }

    /// Removes the marks of adopted classes, after the first plan.
    pub fn forget_adopted(&mut self) {
        self.adopted.clear();
        for id in std::mem::take(&mut self.adopted_classes).into_keys() {
            let merge = self.classes.forget(id);
            self.merge(&merge);
        }
    }
}
