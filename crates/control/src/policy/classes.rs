//! Peer classes: the equivalence classes of peers under the selectors in use.
//!
//! The partition is refined selector by selector. A new selector splits the classes of which it selects a part, and adds a
//! mark to those that it selects whole. When a selector is released, classes may become equal. Such twins are correct but
//! cost room, so they are merged when there are many.

use super::interface::SelectorId;
use foldhash::{HashMap, HashSet};
use weft_model::id::PeerClass;

/// One element of a class's key: a selector that selects its peers. `value` distinguishes results of one selector.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Mark {
    pub selector: SelectorId,
    /// 0, or for selectors of named ports the port plus one.
    pub value: u32,
}

impl Mark {
    pub const fn plain(selector: SelectorId) -> Self {
        Self { selector, value: 0 }
    }

    fn hash(self) -> u64 {
        // The finalizer of splitmix64.
        let mut x = (u64::from(self.selector.0) << 32 | u64::from(self.value)).wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
}

/// Index of a class, reused after its removal.
pub type Index = u32;

/// The classes of identities, and of prefixes, that no selector selects. The kernel has no rows for their peers.
pub const UNSELECTED: [Index; 2] = [0, 1];

#[derive(Clone, Debug)]
pub struct Class {
    /// Its number in the kernel; 0 for [`UNSELECTED`].
    pub number: PeerClass,
    /// The selectors that select its peers, sorted.
    pub key: Vec<Mark>,
    /// Its peers are prefixes, not identities.
    pub is_prefix: bool,
    /// Number of peers.
    pub members: usize,
    /// The kernel may have rows of it.
    pub in_kernel: bool,
    hash: u64,
    alive: bool,
}

#[derive(Clone, Debug)]
pub struct Classes {
    rows: Vec<Class>,
    free: Vec<Index>,
    by_key: HashMap<u64, Vec<Index>>,
    by_selector: HashMap<SelectorId, HashSet<Index>>,
    by_number: HashMap<PeerClass, Index>,
    last: u32,
    twins: usize,
    /// Got their first peer since the last [`Self::take_fresh`].
    fresh: Vec<Index>,
    /// May have lost their last peer.
    emptied: Vec<Index>,
}

impl Default for Classes {
    fn default() -> Self {
        let mut classes = Self {
            rows: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::default(),
            by_selector: HashMap::default(),
            by_number: HashMap::default(),
            last: 0,
            twins: 0,
            fresh: Vec::new(),
            emptied: Vec::new(),
        };
        for is_prefix in [false, true] {
            classes.insert(PeerClass(0), is_prefix, Vec::new());
        }
        classes
    }
}

fn hash(key: &[Mark], is_prefix: bool) -> u64 {
    key.iter().fold(u64::from(is_prefix), |sum, mark| sum.wrapping_add(mark.hash()))
}

impl Classes {
    pub fn get(&self, class: Index) -> &Class {
        &self.rows[class as usize]
    }

    /// The class, unless it was removed.
    pub fn alive(&self, class: Index) -> Option<&Class> {
        self.rows.get(class as usize).filter(|row| row.alive)
    }

    /// From now on the kernel may have rows of it.
    pub fn set_in_kernel(&mut self, class: Index) {
        self.rows[class as usize].in_kernel = true;
    }

    /// All but [`UNSELECTED`].
    pub fn iter(&self) -> impl Iterator<Item = (Index, &Class)> {
        (0..).zip(&self.rows).skip(UNSELECTED.len()).filter(|(_, row)| row.alive)
    }

    /// The classes that a selector marks.
    pub fn of(&self, selector: SelectorId) -> impl Iterator<Item = Index> {
        self.by_selector.get(&selector).into_iter().flatten().copied()
    }

    /// The class of a kernel number.
    pub fn numbered(&self, number: PeerClass) -> Option<Index> {
        self.by_number.get(&number).copied()
    }

    /// The number of classes, and how many of them are twins of another.
    pub fn len(&self) -> (usize, usize) {
        (self.rows.len() - self.free.len() - UNSELECTED.len(), self.twins)
    }

    fn insert(&mut self, number: PeerClass, is_prefix: bool, key: Vec<Mark>) -> Index {
        let hash = hash(&key, is_prefix);
        let row = Class { number, is_prefix, members: 0, in_kernel: false, hash, alive: true, key };
        let index = match self.free.pop() {
            Some(index) => {
                self.rows[index as usize] = row;
                index
            }
            None => {
                self.rows.push(row);
                Index::try_from(self.rows.len() - 1).expect("there are fewer classes than peers")
            }
        };
        if number != PeerClass(0) {
            self.by_number.insert(number, index);
        }
        for mark in &self.rows[index as usize].key {
            self.by_selector.entry(mark.selector).or_default().insert(index);
        }
        self.index_by_key(index);
        index
    }

    /// Adopts a class that the kernel has.
    pub fn adopt(&mut self, number: PeerClass, is_prefix: bool, key: Vec<Mark>) -> Index {
        self.last = self.last.max(number.0);
        let index = self.insert(number, is_prefix, key);
        self.set_in_kernel(index);
        self.emptied.push(index);
        index
    }

    /// Numbers up to this one are in use in the kernel.
    pub fn start_after(&mut self, number: PeerClass) {
        self.last = self.last.max(number.0);
    }

    /// The class with this key, created if there is none.
    pub fn with_key(&mut self, key: Vec<Mark>, is_prefix: bool) -> Index {
        debug_assert!(key.is_sorted(), "keys are sorted");
        if key.is_empty() {
            return UNSELECTED[usize::from(is_prefix)];
        }
        let same = self.by_key.get(&hash(&key, is_prefix)).into_iter().flatten().copied();
        let same = same.filter(|other| {
            let row = self.get(*other);
            row.is_prefix == is_prefix && row.key == key
        });
        if let Some(known) = same.max_by_key(|other| self.get(*other).in_kernel) {
            return known;
        }
        let number = loop {
            self.last = self.last.wrapping_add(1);
            let number = PeerClass(self.last);
            if number != PeerClass(0) && !self.by_number.contains_key(&number) {
                break number;
            }
        };
        let index = self.insert(number, is_prefix, key);
        self.emptied.push(index);
        index
    }

    fn equal(&self, class: Index) -> impl Iterator<Item = Index> {
        let row = self.get(class);
        let same = self.by_key.get(&row.hash).into_iter().flatten().copied();
        same.filter(move |other| {
            let other = self.get(*other);
            other.is_prefix == row.is_prefix && other.key == row.key
        })
    }

    fn index_by_key(&mut self, class: Index) {
        let has_twin = self.equal(class).next().is_some();
        self.twins += usize::from(has_twin);
        let hash = self.get(class).hash;
        self.by_key.entry(hash).or_default().push(class);
    }

    fn unindex_by_key(&mut self, class: Index) {
        let hash = self.get(class).hash;
        let others = self.by_key.get_mut(&hash).expect("every class is indexed");
        others.retain(|other| *other != class);
        if others.is_empty() {
            self.by_key.remove(&hash);
        }
        let had_twin = self.equal(class).next().is_some();
        self.twins -= usize::from(had_twin);
    }

    fn change_key(&mut self, class: Index, change: impl FnOnce(&mut Vec<Mark>)) {
        self.unindex_by_key(class);
        let row = &mut self.rows[class as usize];
        change(&mut row.key);
        row.hash = hash(&row.key, row.is_prefix);
        self.index_by_key(class);
    }

    /// Marks a class of which a selector selects all peers. Not for [`UNSELECTED`].
    pub fn mark(&mut self, class: Index, marks: &[Mark]) {
        for mark in marks {
            self.by_selector.entry(mark.selector).or_default().insert(class);
        }
        self.change_key(class, |key| {
            key.extend_from_slice(marks);
            key.sort_unstable();
        });
    }

    /// Removes the marks of a selector. Returns pairs of classes that became equal, of which the kernel does not know the
    /// first: merge it into the second.
    pub fn forget(&mut self, selector: SelectorId) -> Vec<(Index, Index)> {
        let mut merge = Vec::new();
        for class in self.by_selector.remove(&selector).into_iter().flatten() {
            self.change_key(class, |key| key.retain(|mark| mark.selector != selector));
            let other = self.equal(class).find(|other| *other != class);
            let Some(other) = other else { continue };
            if !self.get(class).in_kernel {
                merge.push((class, other));
            } else if !self.get(other).in_kernel && !UNSELECTED.contains(&other) {
                merge.push((other, class));
            }
        }
        merge
    }

    /// Each class that has a twin, with the twin to merge it into: the one with the most peers.
    pub fn twins(&self) -> Vec<(Index, Index)> {
        let mut twins = Vec::new();
        for (class, row) in self.iter() {
            let best = self.equal(class).max_by_key(|other| {
                (UNSELECTED.contains(other), self.get(*other).in_kernel, self.get(*other).members, *other)
            });
            if let Some(best) = best.filter(|best| *best != class && row.members > 0) {
                twins.push((class, best));
            }
        }
        twins
    }

    /// Counts a peer that moves from one class to another.
    pub fn count(&mut self, from: Option<Index>, to: Option<Index>) {
        if let Some(to) = to {
            let row = &mut self.rows[to as usize];
            row.members += 1;
            if row.members == 1 && !UNSELECTED.contains(&to) {
                self.fresh.push(to);
            }
        }
        if let Some(from) = from {
            let row = &mut self.rows[from as usize];
            row.members -= 1;
            if row.members == 0 {
                self.emptied.push(from);
            }
        }
    }

    /// Classes that got their first peer since the last call.
    pub fn take_fresh(&mut self) -> Vec<Index> {
        std::mem::take(&mut self.fresh)
    }

    /// Classes without peers; those that the kernel may know only if `all`.
    pub fn take_dead(&mut self, all: bool) -> Vec<Index> {
        let mut dead = std::mem::take(&mut self.emptied);
        dead.sort_unstable();
        dead.dedup();
        dead.retain(|class| !UNSELECTED.contains(class) && self.alive(*class).is_some_and(|row| row.members == 0));
        if !all {
            let (known, unknown) = dead.into_iter().partition(|class| self.get(*class).in_kernel);
            (self.emptied, dead) = (known, unknown);
        }
        dead
    }

    pub fn remove(&mut self, class: Index) {
        self.unindex_by_key(class);
        let row = &mut self.rows[class as usize];
        row.alive = false;
        self.by_number.remove(&row.number);
        for mark in std::mem::take(&mut row.key) {
            if let Some(classes) = self.by_selector.get_mut(&mark.selector) {
                classes.remove(&class);
                if classes.is_empty() {
                    self.by_selector.remove(&mark.selector);
                }
            }
        }
        self.free.push(class);
    }
}
