//! The table of peers: identities and prefixes, each with its class, which follows from the selectors in use that select
//! it.

use super::classes::{Classes, Index, Mark, UNSELECTED};
use super::interface::SelectorId;
use super::labels::{Buckets, LabelIndex};
use super::limits::{Overflow, Resource};
use super::pods::Pods;
use super::prefix::{Prefixes, family, widen};
use super::selector::{PeerSelector, Select};
use foldhash::HashMap;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weft_model::id::{Identity, PeerClass, PeerScope, PolicyId};
use weft_model::label::LabelSet;

mod adopt;
mod prefixes;
mod select;

#[derive(Clone, Debug)]
struct Slot {
    peer: Identity,
    /// `None`: the peer was removed.
    class: Option<Index>,
    /// The class in the kernel; 0: no row.
    kernel: PeerClass,
    is_dirty: bool,
}

/// A selector in use.
#[derive(Clone, Debug)]
struct Row {
    select: Select,
    users: BTreeSet<PolicyId>,
}

/// A change of a peer's row in the kernel. Class 0: no row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Move {
    pub peer: Identity,
    pub from: PeerClass,
    pub to: PeerClass,
    /// The peer itself was removed.
    pub is_gone: bool,
}

/// Limits on peers and prefixes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    pub peers: usize,
    pub cidrs: usize,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Peers {
    room: Room,
    slots: Vec<Slot>,
    free: Vec<u32>,
    slot_of: HashMap<Identity, u32>,
    dirty: Vec<u32>,
    /// How many peers have a row in the kernel.
    placed: usize,
    /// Identities that did not fit.
    unplaced: BTreeSet<Identity>,
    labels: HashMap<Identity, Arc<LabelSet>>,
    index: LabelIndex,
    rows: HashMap<SelectorId, Row>,
    ids: HashMap<Select, SelectorId>,
    last_id: u32,
    buckets: Buckets<SelectorId>,
    entities: BTreeSet<SelectorId>,
    cidrs: HashMap<IpNet, Vec<SelectorId>>,
    cidr_lengths: [BTreeMap<u8, usize>; 2],
    /// Selectors of named ports, by the selector of the pods.
    named: HashMap<SelectorId, Vec<SelectorId>>,
    pods: Pods,
    prefixes: Prefixes,
    /// Host prefixes of pods that need a class of their own, since a named port has another number there than in other
    /// pods of their identity.
    port_overrides: BTreeMap<Identity, BTreeSet<IpNet>>,
    /// The same by prefix.
    overrides_at: HashMap<IpNet, BTreeSet<Identity>>,
    /// Identities of which not all overrides fit.
    crowded: BTreeSet<Identity>,
    classes: Classes,
    /// Pseudo selectors, one for each class that a previous agent left in the kernel.
    adopted_classes: BTreeMap<SelectorId, PeerClass>,
    adopted: BTreeSet<IpNet>,
}

impl Peers {
    /// With the reserved identities.
    pub fn new(room: Room) -> Self {
        let mut peers = Self {
            room,
            slots: Vec::new(),
            free: Vec::new(),
            slot_of: HashMap::default(),
            dirty: Vec::new(),
            placed: 0,
            unplaced: BTreeSet::new(),
            labels: HashMap::default(),
            index: LabelIndex::default(),
            rows: HashMap::default(),
            ids: HashMap::default(),
            last_id: 0,
            buckets: Buckets::default(),
            entities: BTreeSet::new(),
            cidrs: HashMap::default(),
            cidr_lengths: [BTreeMap::new(), BTreeMap::new()],
            named: HashMap::default(),
            pods: Pods::default(),
            prefixes: Prefixes::default(),
            port_overrides: BTreeMap::new(),
            overrides_at: HashMap::default(),
            crowded: BTreeSet::new(),
            classes: Classes::default(),
            adopted_classes: BTreeMap::new(),
            adopted: BTreeSet::new(),
        };
        for n in RESERVED {
            let identity = Identity::from_raw(n);
            peers.put_identity(identity, &Arc::new(LabelSet::reserved(identity)));
        }
        peers
    }

    pub fn set_room(&mut self, room: Room) {
        self.room = room;
    }

    pub fn classes(&self) -> &Classes {
        &self.classes
    }

    /// Classes that got their first peer since the last call.
    pub fn take_fresh_classes(&mut self) -> Vec<Index> {
        self.classes.take_fresh()
    }

    /// Classes without peers; those that the kernel may know only if `all`. The caller must remove them.
    pub fn take_dead_classes(&mut self, all: bool) -> Vec<Index> {
        self.classes.take_dead(all)
    }

    pub fn remove_class(&mut self, class: Index) {
        self.classes.remove(class);
    }

    /// Policies that use a selector which marks this class.
    pub fn users_of(&self, class: Index) -> BTreeSet<PolicyId> {
        let rows = self.classes.get(class).key.iter().filter_map(|mark| self.rows.get(&mark.selector));
        rows.flat_map(|row| &row.users).copied().collect()
    }

    pub fn pods(&self) -> &Pods {
        &self.pods
    }

    pub fn prefixes(&self) -> &Prefixes {
        &self.prefixes
    }

    pub fn prefixes_mut(&mut self) -> &mut Prefixes {
        &mut self.prefixes
    }

    pub fn labels(&self, identity: Identity) -> Option<&Arc<LabelSet>> {
        self.labels.get(&identity)
    }

    /// The class of a peer; `None`: it has no row in the kernel.
    pub fn class_of(&self, peer: Identity) -> Option<Index> {
        let slot = self.slot_of.get(&peer)?;
        self.slots[*slot as usize].class.filter(|class| !UNSELECTED.contains(class))
    }

    /// All desired rows in the kernel.
    pub fn desired(&self) -> BTreeMap<Identity, PeerClass> {
        let number = |slot: &Slot| (slot.peer, self.classes.get(slot.class.expect("just looked")).number);
        let placed = |slot: &&Slot| slot.class.is_some_and(|class| !UNSELECTED.contains(&class));
        self.slots.iter().filter(placed).map(number).collect()
    }

    pub fn pod_identities(&self) -> usize {
        self.labels.len() - RESERVED.len()
    }

    /// Number of identities, selectors in use and rows in the kernel.
    pub fn len(&self) -> [usize; 3] {
        [self.labels.len(), self.rows.len(), self.placed]
    }

    fn new_slot(&mut self, peer: Identity) -> u32 {
        if let Some(slot) = self.slot_of.get(&peer) {
            let slot = *slot;
            if self.slots[slot as usize].class.is_none() {
                let nobody = UNSELECTED[usize::from(peer.is_cidr())];
                self.classes.count(None, Some(nobody));
                self.slots[slot as usize].class = Some(nobody);
            }
            return slot;
        }
        let nobody = UNSELECTED[usize::from(peer.is_cidr())];
        self.classes.count(None, Some(nobody));
        let row = Slot { peer, class: Some(nobody), kernel: PeerClass(0), is_dirty: false };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = row;
                slot
            }
            None => {
                self.slots.push(row);
                u32::try_from(self.slots.len() - 1).expect("peers have 32 bit numbers")
            }
        };
        self.slot_of.insert(peer, slot);
        slot
    }

    fn mark_dirty(&mut self, slot: u32) {
        let row = &mut self.slots[slot as usize];
        if !std::mem::replace(&mut row.is_dirty, true) {
            self.dirty.push(slot);
        }
    }

    fn set_class(&mut self, slot: u32, class: Option<Index>) {
        let old = std::mem::replace(&mut self.slots[slot as usize].class, class);
        if old == class {
            return;
        }
        self.classes.count(old, class);
        let placed = |class: Option<Index>| usize::from(class.is_some_and(|class| !UNSELECTED.contains(&class)));
        self.placed = self.placed + placed(class) - placed(old);
        self.mark_dirty(slot);
    }

    /// Moves a peer to the class with this key. `Err`: it would need a row that does not fit.
    fn place(&mut self, slot: u32, key: Vec<Mark>) -> Result<(), Overflow> {
        let is_prefix = self.slots[slot as usize].peer.is_cidr();
        let class = self.slots[slot as usize].class;
        if class.is_some_and(|class| self.classes.get(class).key == key) {
            return Ok(());
        }
        let is_placed = class.is_some_and(|class| !UNSELECTED.contains(&class));
        if !key.is_empty() && !is_placed {
            Overflow::check(Resource::Peers, self.placed + 1, self.room.peers)?;
        }
        let class = self.classes.with_key(key, is_prefix);
        self.set_class(slot, Some(class));
        Ok(())
    }

    /// The mark of the adopted class of a peer, which its labels do not change.
    fn adopted_mark(&self, slot: u32) -> Vec<Mark> {
        let Some(class) = self.slots[slot as usize].class else { return Vec::new() };
        let key = &self.classes.get(class).key;
        key.iter().filter(|mark| self.adopted_classes.contains_key(&mark.selector)).copied().collect()
    }

    fn key_of_identity(&self, identity: Identity, labels: &LabelSet) -> Vec<Mark> {
        let candidates = self.buckets.candidates(labels).into_iter().chain(self.entities.iter().copied());
        let mut key = Vec::new();
        for id in candidates {
            let Select::Peer(selector) = &self.rows[&id].select else { continue };
            if selector.matches(labels) {
                key.push(Mark::plain(id));
                for named in self.named.get(&id).into_iter().flatten() {
                    let Select::Named(_, name) = &self.rows[named].select else { continue };
                    let numbers = self.pods.common_ports(identity, name).unwrap_or_default();
                    key.extend(numbers.into_iter().map(|n| Mark { selector: *named, value: u32::from(n) + 1 }));
                }
            }
        }
        key
    }

    pub fn put_identity(&mut self, identity: Identity, labels: &Arc<LabelSet>) {
        if self.labels.get(&identity).is_some_and(|known| known == labels) {
            return;
        }
        let slot = self.new_slot(identity);
        if let Some(old) = self.labels.insert(identity, Arc::clone(labels)) {
            self.index.remove(slot, &old);
        }
        self.index.insert(slot, labels);
        self.rekey_identity(identity);
    }

    /// Recomputes the class of an identity.
    fn rekey_identity(&mut self, identity: Identity) {
        let (Some(labels), Some(slot)) = (self.labels.get(&identity), self.slot_of.get(&identity)) else { return };
        let (labels, slot) = (Arc::clone(labels), *slot);
        let mut key = self.adopted_mark(slot);
        key.extend(self.key_of_identity(identity, &labels));
        key.sort_unstable();
        if self.place(slot, key).is_ok() {
            self.unplaced.remove(&identity);
        } else {
            self.unplaced.insert(identity);
        }
        if self.update_overrides(identity).is_ok() {
            self.crowded.remove(&identity);
        } else {
            self.crowded.insert(identity);
        }
    }

    pub fn remove_identity(&mut self, identity: Identity) {
        if identity.reserved_name().is_some() {
            return;
        }
        let Some(labels) = self.labels.remove(&identity) else { return };
        let slot = self.slot_of[&identity];
        self.index.remove(slot, &labels);
        self.set_class(slot, None);
        self.mark_dirty(slot);
        self.unplaced.remove(&identity);
        self.crowded.remove(&identity);
        let freed = self.update_overrides(identity);
        debug_assert!(freed.is_ok(), "a removed identity needs no room");
    }

    /// Retries the identities that did not fit.
    pub fn retry(&mut self) {
        for identity in self.unplaced.union(&self.crowded).copied().collect::<Vec<_>>() {
            self.rekey_identity(identity);
        }
    }

    /// The limit that is exceeded, the number of identities that do not fit, and the policies that select them.
    pub fn starving(&self) -> Option<(Overflow, usize, BTreeSet<PolicyId>)> {
        if self.unplaced.is_empty() && self.crowded.is_empty() {
            return None;
        }
        let mut users = BTreeSet::new();
        for identity in self.unplaced.iter().chain(&self.crowded) {
            let Some(labels) = self.labels.get(identity) else { continue };
            for mark in self.key_of_identity(*identity, labels) {
                users.extend(&self.rows[&mark.selector].users);
            }
        }
        let problem = if self.unplaced.is_empty() {
            let limit = self.room.cidrs;
            Overflow { resource: Resource::Cidrs, wanted: limit + 1, limit }
        } else {
            let limit = self.room.peers;
            Overflow { resource: Resource::Peers, wanted: limit + self.unplaced.len(), limit }
        };
        Some((problem, self.unplaced.union(&self.crowded).count(), users))
    }

    pub fn put_pod(&mut self, pod: Arc<weft_model::intent::RemoteEndpoint>) {
        for identity in self.pods.put(pod) {
            self.ports_changed(identity);
        }
    }

    pub fn remove_pod(&mut self, uid: &str) {
        for identity in self.pods.remove(uid) {
            self.ports_changed(identity);
        }
    }

    fn ports_changed(&mut self, identity: Identity) {
        if !self.named.is_empty() {
            self.rekey_identity(identity);
        }
    }

    /// Merges classes with equal keys.
    pub fn merge_twins(&mut self) {
        let twins = self.classes.twins();
        self.merge(&twins);
    }

    fn merge(&mut self, pairs: &[(Index, Index)]) {
        if pairs.is_empty() {
            return;
        }
        let into: HashMap<Index, Index> = pairs.iter().copied().collect();
        for slot in 0..self.slots.len() {
            let Some(class) = self.slots[slot].class else { continue };
            let mut best = class;
            while let Some(next) = into.get(&best) {
                best = *next;
            }
            if best != class {
                self.set_class(u32::try_from(slot).expect("slots have 32 bit numbers"), Some(best));
            }
        }
    }

    /// Returns the rows that change. From now on the kernel counts as having them.
    pub fn take_moves(&mut self) -> Vec<Move> {
        let mut moves = Vec::new();
        for slot in std::mem::take(&mut self.dirty) {
            let row = &mut self.slots[slot as usize];
            row.is_dirty = false;
            let to = row.class.map_or(PeerClass(0), |class| self.classes.get(class).number);
            let (peer, from, is_gone) = (row.peer, std::mem::replace(&mut row.kernel, to), row.class.is_none());
            if let Some(class) = row.class.filter(|class| !UNSELECTED.contains(class)) {
                self.classes.set_in_kernel(class);
            }
            if is_gone {
                self.slot_of.remove(&peer);
                self.free.push(slot);
            }
            if from != to {
                moves.push(Move { peer, from, to, is_gone });
            }
        }
        moves.sort_unstable_by_key(|row| row.peer);
        moves
    }
}

/// Reserved identities that always exist.
const RESERVED: [u32; 9] = [1, 2, 3, 4, 5, 6, 8, 9, 10];

const SCOPES: [PeerScope; 3] = [PeerScope::World, PeerScope::Node, PeerScope::Pod];
