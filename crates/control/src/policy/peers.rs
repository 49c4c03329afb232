//! The peers that policies tell apart: identities, and prefixes of addresses. Knows of each which selectors in use
//! select it, and which class that makes.

use super::classes::{Classes, Index, Mark, NOBODY};
use super::labels::{Buckets, LabelIndex};
use super::pods::Pods;
use super::prefix::{Prefixes, widen};
use super::selector::{PeerSelector, Select};
use super::{Overflow, SelectorId};
use foldhash::HashMap;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weft_model::id::{Identity, PeerClass, PeerScope, PolicyId};
use weft_model::label::LabelSet;

mod adopt;
mod prefixes;
mod select;

/// A peer.
#[derive(Clone, Debug)]
struct Slot {
    peer: Identity,
    /// `None`: it is gone.
    class: Option<Index>,
    /// What the kernel has; 0: nothing.
    kernel: PeerClass,
    is_dirty: bool,
}

/// A selector in use.
#[derive(Clone, Debug)]
struct Row {
    select: Select,
    users: BTreeSet<PolicyId>,
}

/// A peer whose row in the kernel changes. Class 0: no row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Move {
    /// The peer.
    pub peer: Identity,
    /// What the kernel has.
    pub from: PeerClass,
    /// What it shall have.
    pub to: PeerClass,
    /// The peer itself is no more.
    pub is_gone: bool,
}

/// How many peers and prefixes fit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// Peers.
    pub peers: usize,
    /// Prefixes.
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
    /// Peers of a class: those with a row in the kernel.
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
    /// Selectors of named ports, by those whose peers they ask.
    named: HashMap<SelectorId, Vec<SelectorId>>,
    pods: Pods,
    prefixes: Prefixes,
    /// Addresses of pods that must be told apart from others of their identity, since a port's name means another
    /// number there; and the other way round.
    apart: BTreeMap<Identity, BTreeSet<IpNet>>,
    apart_at: HashMap<IpNet, BTreeSet<Identity>>,
    /// Identities of which not all such addresses fit.
    crowded: BTreeSet<Identity>,
    classes: Classes,
    /// Stand for the classes that the kernel had before.
    was: BTreeMap<SelectorId, PeerClass>,
    adopted: BTreeSet<IpNet>,
}

impl Peers {
    /// Only the reserved identities.
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
            apart: BTreeMap::new(),
            apart_at: HashMap::default(),
            crowded: BTreeSet::new(),
            classes: Classes::default(),
            was: BTreeMap::new(),
            adopted: BTreeSet::new(),
        };
        for n in RESERVED {
            let identity = Identity::from_raw(n);
            peers.put_identity(identity, &Arc::new(LabelSet::reserved(identity)));
        }
        peers
    }

    /// This much fits.
    pub fn set_room(&mut self, room: Room) {
        self.room = room;
    }

    /// The classes.
    pub fn classes(&self) -> &Classes {
        &self.classes
    }

    /// Classes that got their first peer since the last call.
    pub fn take_fresh_classes(&mut self) -> Vec<Index> {
        self.classes.take_fresh()
    }

    /// Classes without peers; those that the kernel knows only if `all`. Whoever takes them removes them.
    pub fn take_dead_classes(&mut self, all: bool) -> Vec<Index> {
        self.classes.take_dead(all)
    }

    /// A class without peers is no more.
    pub fn remove_class(&mut self, class: Index) {
        self.classes.remove(class);
    }

    /// Policies that use a selector which says something of this class.
    pub fn users_of(&self, class: Index) -> BTreeSet<PolicyId> {
        let rows = self.classes.get(class).key.iter().filter_map(|mark| self.rows.get(&mark.selector));
        rows.flat_map(|row| &row.users).copied().collect()
    }

    /// Endpoints of the cluster.
    pub fn pods(&self) -> &Pods {
        &self.pods
    }

    /// Prefixes in use.
    pub fn prefixes(&self) -> &Prefixes {
        &self.prefixes
    }

    /// The same, to be taken from.
    pub fn prefixes_mut(&mut self) -> &mut Prefixes {
        &mut self.prefixes
    }

    /// Labels of an identity.
    pub fn labels(&self, identity: Identity) -> Option<&Arc<LabelSet>> {
        self.labels.get(&identity)
    }

    /// The class of a peer; `None`: the kernel shall have no row for it.
    pub fn class_of(&self, peer: Identity) -> Option<Index> {
        let slot = self.slot_of.get(&peer)?;
        self.slots[*slot as usize].class.filter(|class| !NOBODY.contains(class))
    }

    /// All rows that the kernel shall have.
    pub fn desired(&self) -> BTreeMap<Identity, PeerClass> {
        let number = |slot: &Slot| (slot.peer, self.classes.get(slot.class.expect("just looked")).number);
        let placed = |slot: &&Slot| slot.class.is_some_and(|class| !NOBODY.contains(&class));
        self.slots.iter().filter(placed).map(number).collect()
    }

    /// Identities of pods.
    pub fn pod_identities(&self) -> usize {
        self.labels.len() - RESERVED.len()
    }

    /// Identities, selectors and rows for peers.
    pub fn len(&self) -> [usize; 3] {
        [self.labels.len(), self.rows.len(), self.placed]
    }

    fn new_slot(&mut self, peer: Identity) -> u32 {
        if let Some(slot) = self.slot_of.get(&peer) {
            let slot = *slot;
            if self.slots[slot as usize].class.is_none() {
                let nobody = NOBODY[usize::from(peer.is_cidr())];
                self.classes.count(None, Some(nobody));
                self.slots[slot as usize].class = Some(nobody);
            }
            return slot;
        }
        let nobody = NOBODY[usize::from(peer.is_cidr())];
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

    fn soil(&mut self, slot: u32) {
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
        let placed = |class: Option<Index>| usize::from(class.is_some_and(|class| !NOBODY.contains(&class)));
        self.placed = self.placed + placed(class) - placed(old);
        self.soil(slot);
    }

    /// Puts a peer where it belongs. Refused if it would need a row that does not fit.
    fn place(&mut self, slot: u32, key: Vec<Mark>) -> Result<(), Overflow> {
        let is_prefix = self.slots[slot as usize].peer.is_cidr();
        let class = self.slots[slot as usize].class;
        if class.is_some_and(|class| self.classes.get(class).key == key) {
            return Ok(());
        }
        let is_placed = class.is_some_and(|class| !NOBODY.contains(&class));
        if !key.is_empty() && !is_placed {
            Overflow::check("peers on this node", self.placed + 1, self.room.peers)?;
        }
        let class = self.classes.with_key(key, is_prefix);
        self.set_class(slot, Some(class));
        Ok(())
    }

    /// What stays in a peer's key whatever its labels are.
    fn was(&self, slot: u32) -> Vec<Mark> {
        let Some(class) = self.slots[slot as usize].class else { return Vec::new() };
        let key = &self.classes.get(class).key;
        key.iter().filter(|mark| self.was.contains_key(&mark.selector)).copied().collect()
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
                    let numbers = self.pods.common(identity, name).unwrap_or_default();
                    key.extend(numbers.into_iter().map(|n| Mark { selector: *named, value: u32::from(n) + 1 }));
                }
            }
        }
        key
    }

    /// An identity is there.
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

    /// Something that counts for its class may have changed.
    fn rekey_identity(&mut self, identity: Identity) {
        let (Some(labels), Some(slot)) = (self.labels.get(&identity), self.slot_of.get(&identity)) else { return };
        let (labels, slot) = (Arc::clone(labels), *slot);
        let mut key = self.was(slot);
        key.extend(self.key_of_identity(identity, &labels));
        key.sort_unstable();
        if self.place(slot, key).is_ok() {
            self.unplaced.remove(&identity);
        } else {
            self.unplaced.insert(identity);
        }
        if self.retell(identity).is_ok() {
            self.crowded.remove(&identity);
        } else {
            self.crowded.insert(identity);
        }
    }

    /// It is gone.
    pub fn remove_identity(&mut self, identity: Identity) {
        if identity.reserved_name().is_some() {
            return;
        }
        let Some(labels) = self.labels.remove(&identity) else { return };
        let slot = self.slot_of[&identity];
        self.index.remove(slot, &labels);
        self.set_class(slot, None);
        self.soil(slot);
        self.unplaced.remove(&identity);
        self.crowded.remove(&identity);
        let gives_back = self.retell(identity);
        debug_assert!(gives_back.is_ok(), "who is gone needs no room");
    }

    /// Those that did not fit get another chance.
    pub fn retry(&mut self) {
        for identity in self.unplaced.union(&self.crowded).copied().collect::<Vec<_>>() {
            self.rekey_identity(identity);
        }
    }

    /// How many identities do not fit, and the policies for which that counts.
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
            Overflow { what: "address prefixes on this node", wanted: limit + 1, limit }
        } else {
            let limit = self.room.peers;
            Overflow { what: "peers on this node", wanted: limit + self.unplaced.len(), limit }
        };
        Some((problem, self.unplaced.union(&self.crowded).count(), users))
    }

    /// An endpoint is there.
    pub fn put_pod(&mut self, pod: Arc<weft_model::intent::RemoteEndpoint>) {
        for identity in self.pods.put(pod) {
            self.ports_changed(identity);
        }
    }

    /// It is gone.
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

    /// Makes one of classes that equal each other.
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

    /// Rows of peers that must change. The kernel counts as having them from now on.
    pub fn take_moves(&mut self) -> Vec<Move> {
        let mut moves = Vec::new();
        for slot in std::mem::take(&mut self.dirty) {
            let row = &mut self.slots[slot as usize];
            row.is_dirty = false;
            let to = row.class.map_or(PeerClass(0), |class| self.classes.get(class).number);
            let (peer, from, is_gone) = (row.peer, std::mem::replace(&mut row.kernel, to), row.class.is_none());
            if let Some(class) = row.class.filter(|class| !NOBODY.contains(class)) {
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

fn family(net: &IpNet) -> usize {
    usize::from(matches!(net, IpNet::V6(_)))
}

/// Identities that are there from the start.
const RESERVED: [u32; 9] = [1, 2, 3, 4, 5, 6, 8, 9, 10];

const SCOPES: [PeerScope; 3] = [PeerScope::World, PeerScope::Node, PeerScope::Pod];
