//! What the kernel holds from before.
//!
//! Each class that it knows stands in the keys of its peers as if a selector had said so, until the first plan is made:
//! so every class of that plan has one class of before behind it, and policies from before can be told what holds for it.

use super::super::classes::Mark;
use super::{BTreeMap, Identity, IpNet, PeerClass, Peers, SCOPES, SelectorId};
use weft_model::id::PeerScope;

impl Peers {
    /// The kernel holds this. Before anything is put.
    pub fn adopt(&mut self, cidrs: &BTreeMap<IpNet, Identity>, peers: &BTreeMap<Identity, PeerClass>) {
        for (net, number) in cidrs {
            if self.prefixes.adopt(*net, *number) {
                for scope in SCOPES {
                    self.new_slot(number.in_scope(scope));
                }
                self.adopted.insert(net.trunc());
            }
        }
        let mut was: BTreeMap<PeerClass, SelectorId> = BTreeMap::new();
        for (peer, number) in peers {
            let slot = self.new_slot(*peer);
            self.slots[slot as usize].kernel = *number;
            self.soil(slot);
            let of_prefix = self.prefixes.net(*peer).and_then(|net| self.prefixes.number(&net));
            let is_known = !peer.is_cidr() || of_prefix.is_some_and(|base| base == peer.in_scope(PeerScope::World));
            if *number == PeerClass(0) || !is_known {
                self.set_class(slot, None);
                continue;
            }
            let id = *was.entry(*number).or_insert_with(|| {
                self.last_id += 1;
                let id = SelectorId(self.last_id);
                self.was.insert(id, *number);
                self.classes.adopt(*number, peer.is_cidr(), vec![Mark::plain(id)]);
                id
            });
            let class = self.classes.of(id).next().filter(|class| self.classes.get(*class).is_prefix == peer.is_cidr());
            self.set_class(slot, class);
        }
    }

    /// Numbers of classes up to this one mean something to the kernel.
    pub fn start_classes_after(&mut self, number: PeerClass) {
        self.classes.start_after(number);
    }

    /// The first batch is in: what it did not name is no more.
    pub fn drop_unclaimed(&mut self) {
        for slot in 0..self.slots.len() {
            let peer = self.slots[slot].peer;
            if !peer.is_cidr() && self.slots[slot].class.is_some() && !self.labels.contains_key(&peer) {
                let slot = u32::try_from(slot).expect("slots have 32 bit numbers");
                self.set_class(slot, None);
            }
        }
    }

    /// The class of before that is behind one; `None`: it is new in every respect.
    pub fn was_class(&self, key: &[Mark]) -> Option<PeerClass> {
        key.iter().find_map(|mark| self.was.get(&mark.selector).copied())
    }

    /// The first plan is made: what was before counts no more.
    pub fn forget_adopted(&mut self) {
        self.adopted.clear();
        for id in std::mem::take(&mut self.was).into_keys() {
            let merge = self.classes.forget(id);
            self.merge(&merge);
        }
    }
}
