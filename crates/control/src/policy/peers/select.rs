//! Acquiring and releasing selectors, which refine the classes.

use super::super::classes::{Index, Mark, UNSELECTED};
use super::{
    Arc, BTreeSet, HashMap, Identity, Overflow, PeerSelector, Peers, PolicyId, Resource, Row, SCOPES, Select,
    SelectorId, family,
};

impl Peers {
    /// Adds a reference of a policy to a selector. `Err`: its peers do not fit, and nothing changed.
    pub fn acquire(&mut self, select: Select, user: PolicyId) -> Result<SelectorId, Overflow> {
        if let Some(id) = self.ids.get(&select) {
            self.rows.get_mut(id).expect("ids and rows agree").users.insert(user);
            return Ok(*id);
        }
        self.last_id += 1;
        let id = SelectorId(self.last_id);
        self.ids.insert(select.clone(), id);
        self.rows.insert(id, Row { select: select.clone(), users: BTreeSet::from([user]) });
        let result = match &select {
            Select::Peer(selector) => {
                self.index_selector(id, selector);
                let slots = self.slots_of(selector);
                self.refine(&[Mark::plain(id)], &slots)
            }
            Select::Named(of, name) => {
                let pods = self.ids[&Select::Peer(Arc::clone(of))];
                self.named.entry(pods).or_default().push(id);
                let mut groups: HashMap<Vec<u16>, Vec<u32>> = HashMap::default();
                let mut differing: Vec<Identity> = Vec::new();
                for slot in self.slots_of(of) {
                    let identity = self.slots[slot as usize].peer;
                    match self.pods.common_ports(identity, name) {
                        None => differing.push(identity),
                        Some(numbers) if numbers.is_empty() => {}
                        Some(numbers) => groups.entry(numbers).or_default().push(slot),
                    }
                }
                let refined = groups.into_iter().try_for_each(|(numbers, slots)| {
                    let marks = numbers.into_iter().map(|n| Mark { selector: id, value: u32::from(n) + 1 });
                    self.refine(&marks.collect::<Vec<_>>(), &slots)
                });
                refined.and_then(|()| differing.into_iter().try_for_each(|identity| self.update_overrides(identity)))
            }
        };
        if let Err(problem) = result {
            self.release(id, user);
            return Err(problem);
        }
        Ok(id)
    }

    /// The peers that a selector selects, except identities that did not fit.
    fn slots_of(&self, selector: &PeerSelector) -> Vec<u32> {
        let mut slots = match selector {
            PeerSelector::Endpoints(selector) => self.index.select(selector),
            PeerSelector::Entity(entity) => {
                let mut slots = self.index.others();
                if *entity == weft_model::intent::Entity::Cluster {
                    slots.extend(self.index.pods());
                }
                slots.retain(|slot| {
                    let labels = self.labels.get(&self.slots[*slot as usize].peer);
                    labels.is_some_and(|labels| selector.matches(labels))
                });
                slots
            }
            PeerSelector::Cidr { cidr, .. } => {
                let mut slots = Vec::new();
                for (net, number) in self.prefixes.near(cidr) {
                    let held = SCOPES.into_iter().filter(|scope| selector.holds(&net, *scope));
                    slots.extend(held.filter_map(|scope| self.slot_of.get(&number.in_scope(scope)).copied()));
                }
                slots
            }
        };
        if !self.unplaced.is_empty() {
            slots.retain(|slot| !self.unplaced.contains(&self.slots[*slot as usize].peer));
        }
        slots
    }

    fn index_selector(&mut self, id: SelectorId, selector: &PeerSelector) {
        match selector {
            PeerSelector::Endpoints(selector) => self.buckets.insert(selector, &id),
            PeerSelector::Entity(_) => {
                self.entities.insert(id);
            }
            PeerSelector::Cidr { cidr, .. } => {
                self.cidrs.entry(*cidr).or_default().push(id);
                *self.cidr_lengths[family(cidr)].entry(cidr.prefix_len()).or_default() += 1;
            }
        }
    }

    fn unindex_selector(&mut self, id: SelectorId, selector: &PeerSelector) {
        match selector {
            PeerSelector::Endpoints(selector) => self.buckets.remove(selector, &id),
            PeerSelector::Entity(_) => {
                self.entities.remove(&id);
            }
            PeerSelector::Cidr { cidr, .. } => {
                if let Some(ids) = self.cidrs.get_mut(cidr) {
                    ids.retain(|other| *other != id);
                    if ids.is_empty() {
                        self.cidrs.remove(cidr);
                    }
                }
                let lengths = &mut self.cidr_lengths[family(cidr)];
                if let Some(count) = lengths.get_mut(&cidr.prefix_len()) {
                    *count -= 1;
                    if *count == 0 {
                        lengths.remove(&cidr.prefix_len());
                    }
                }
            }
        }
    }

    /// Applies the marks of a new selector to the peers that it selects, each listed once.
    fn refine(&mut self, marks: &[Mark], slots: &[u32]) -> Result<(), Overflow> {
        let mut counts: HashMap<Index, usize> = HashMap::default();
        let mut last = (Index::MAX, 0);
        for slot in slots {
            let Some(class) = self.slots[*slot as usize].class else { continue };
            // Adjacent slots are often of one class: count runs.
            if class == last.0 {
                last.1 += 1;
            } else {
                if last.1 > 0 {
                    *counts.entry(last.0).or_default() += last.1;
                }
                last = (class, 1);
            }
        }
        if last.1 > 0 {
            *counts.entry(last.0).or_default() += last.1;
        }
        let unplaced: usize = UNSELECTED.iter().filter_map(|nobody| counts.get(nobody)).sum();
        Overflow::check(Resource::Peers, self.placed + unplaced, self.room.peers)?;

        let mut targets: HashMap<Index, Index> = HashMap::default();
        let mut kept: BTreeSet<Index> = BTreeSet::new();
        for (class, count) in counts {
            let row = self.classes.get(class);
            let is_nobody = UNSELECTED.contains(&class);
            if !is_nobody && count == row.members {
                self.classes.mark(class, marks);
            } else if !is_nobody && row.in_kernel && count > 64 && count > row.members / 2 {
                // Fewer rows change if the peers that are not selected move.
                kept.insert(class);
            } else {
                let mut key = row.key.clone();
                let is_prefix = row.is_prefix;
                key.extend_from_slice(marks);
                key.sort_unstable();
                targets.insert(class, self.classes.with_key(key, is_prefix));
            }
        }
        if !targets.is_empty() {
            for slot in slots {
                let class = self.slots[*slot as usize].class;
                if let Some(target) = class.and_then(|class| targets.get(&class)) {
                    self.set_class(*slot, Some(*target));
                }
            }
        }
        if !kept.is_empty() {
            self.split_off(marks, slots, &kept);
        }
        Ok(())
    }

    /// Marks these classes, and moves their peers that are not in `slots` to new classes.
    fn split_off(&mut self, marks: &[Mark], slots: &[u32], classes: &BTreeSet<Index>) {
        let mut targets: HashMap<Index, Index> = HashMap::default();
        for class in classes {
            let (key, is_prefix) = (self.classes.get(*class).key.clone(), self.classes.get(*class).is_prefix);
            self.classes.mark(*class, marks);
            targets.insert(*class, self.classes.with_key(key, is_prefix));
        }
        let selected: foldhash::HashSet<u32> = slots.iter().copied().collect();
        for slot in (0..).take(self.slots.len()).filter(|slot| !selected.contains(slot)) {
            let class = self.slots[slot as usize].class;
            if let Some(target) = class.and_then(|class| targets.get(&class)) {
                self.set_class(slot, Some(*target));
            }
        }
    }

    /// Drops a reference.
    pub fn release(&mut self, id: SelectorId, user: PolicyId) {
        let Some(row) = self.rows.get_mut(&id) else { return };
        row.users.remove(&user);
        if !row.users.is_empty() {
            return;
        }
        let row = self.rows.remove(&id).expect("just looked at");
        self.ids.remove(&row.select);
        match &row.select {
            Select::Peer(selector) => self.unindex_selector(id, selector),
            Select::Named(of, _) => {
                if let Some(pods) = self.ids.get(&Select::Peer(Arc::clone(of)))
                    && let Some(named) = self.named.get_mut(pods)
                {
                    named.retain(|other| *other != id);
                    if named.is_empty() {
                        self.named.remove(pods);
                    }
                }
            }
        }
        let merge = self.classes.forget(id);
        self.merge(&merge);
        if let Select::Named(..) = row.select {
            for identity in self.overridden() {
                let freed = self.update_overrides(identity);
                debug_assert!(freed.is_ok(), "fewer names need no room");
            }
        }
    }
}
