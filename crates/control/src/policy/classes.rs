//! Classes of peers: peers that the same selectors in use select are one class.
//!
//! The partition is refined selector by selector. A new selector splits the classes of which it selects a part, and one
//! that it selects whole just learns of it. When a selector goes, classes may come to equal each other: such twins
//! do no harm, and they are made one when there are many.

use super::SelectorId;
use foldhash::{HashMap, HashSet};
use weft_model::id::PeerClass;

/// What a selector says of a peer. `value` tells answers of one selector apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Mark {
    /// Who says it.
    pub selector: SelectorId,
    /// 0, or what it says.
    pub value: u32,
}

impl Mark {
    /// It is selected.
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

/// Index of a class while it exists.
pub type Index = u32;

/// Peers of no class: identities, and prefixes. The kernel has no row for them.
pub const NOBODY: [Index; 2] = [0, 1];

/// A class.
#[derive(Clone, Debug)]
pub struct Class {
    /// Its number in the kernel; 0 for those of [`NOBODY`].
    pub number: PeerClass,
    /// What is said of its peers, sorted.
    pub key: Vec<Mark>,
    /// Its peers are prefixes; else identities.
    pub is_prefix: bool,
    /// How many peers.
    pub members: usize,
    /// The kernel may know of it.
    pub in_kernel: bool,
    hash: u64,
    alive: bool,
}

/// All classes.
#[derive(Clone, Debug)]
pub struct Classes {
    rows: Vec<Class>,
    free: Vec<Index>,
    by_key: HashMap<u64, Vec<Index>>,
    by_selector: HashMap<SelectorId, HashSet<Index>>,
    by_number: HashMap<PeerClass, Index>,
    last: u32,
    twins: usize,
    /// Got their first peer since somebody asked.
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
    /// A class.
    pub fn get(&self, class: Index) -> &Class {
        &self.rows[class as usize]
    }

    /// A class that is still there.
    pub fn alive(&self, class: Index) -> Option<&Class> {
        self.rows.get(class as usize).filter(|row| row.alive)
    }

    /// The kernel may know of it from now on.
    pub fn set_in_kernel(&mut self, class: Index) {
        self.rows[class as usize].in_kernel = true;
    }

    /// All, but for those of [`NOBODY`].
    pub fn iter(&self) -> impl Iterator<Item = (Index, &Class)> {
        (0..).zip(&self.rows).skip(NOBODY.len()).filter(|(_, row)| row.alive)
    }

    /// Of which a selector says something.
    pub fn of(&self, selector: SelectorId) -> impl Iterator<Item = Index> {
        self.by_selector.get(&selector).into_iter().flatten().copied()
    }

    /// The class of a number.
    pub fn numbered(&self, number: PeerClass) -> Option<Index> {
        self.by_number.get(&number).copied()
    }

    /// How many there are, and how many of those equal another one.
    pub fn len(&self) -> (usize, usize) {
        (self.rows.len() - self.free.len() - NOBODY.len(), self.twins)
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
        self.file(index);
        index
    }

    /// One that the kernel has.
    pub fn adopt(&mut self, number: PeerClass, is_prefix: bool, key: Vec<Mark>) -> Index {
        self.last = self.last.max(number.0);
        let index = self.insert(number, is_prefix, key);
        self.set_in_kernel(index);
        self.emptied.push(index);
        index
    }

    /// Numbers up to this one mean something to the kernel.
    pub fn start_after(&mut self, number: PeerClass) {
        self.last = self.last.max(number.0);
    }

    /// The class with this key, made if there is none.
    pub fn with_key(&mut self, key: Vec<Mark>, is_prefix: bool) -> Index {
        debug_assert!(key.is_sorted(), "keys are sorted");
        if key.is_empty() {
            return NOBODY[usize::from(is_prefix)];
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

    fn file(&mut self, class: Index) {
        let has_twin = self.equal(class).next().is_some();
        self.twins += usize::from(has_twin);
        let hash = self.get(class).hash;
        self.by_key.entry(hash).or_default().push(class);
    }

    fn unfile(&mut self, class: Index) {
        let hash = self.get(class).hash;
        let others = self.by_key.get_mut(&hash).expect("every class is filed");
        others.retain(|other| *other != class);
        if others.is_empty() {
            self.by_key.remove(&hash);
        }
        let had_twin = self.equal(class).next().is_some();
        self.twins -= usize::from(had_twin);
    }

    fn change_key(&mut self, class: Index, change: impl FnOnce(&mut Vec<Mark>)) {
        self.unfile(class);
        let row = &mut self.rows[class as usize];
        change(&mut row.key);
        row.hash = hash(&row.key, row.is_prefix);
        self.file(class);
    }

    /// A selector says this of all its peers. The class is none of [`NOBODY`].
    pub fn mark(&mut self, class: Index, marks: &[Mark]) {
        for mark in marks {
            self.by_selector.entry(mark.selector).or_default().insert(class);
        }
        self.change_key(class, |key| {
            key.extend_from_slice(marks);
            key.sort_unstable();
        });
    }

    /// A selector says nothing any more. Returns the classes that the kernel does not know and that equal another one
    /// now, each with that one.
    pub fn forget(&mut self, selector: SelectorId) -> Vec<(Index, Index)> {
        let mut merge = Vec::new();
        for class in self.by_selector.remove(&selector).into_iter().flatten() {
            self.change_key(class, |key| key.retain(|mark| mark.selector != selector));
            let other = self.equal(class).find(|other| *other != class);
            let Some(other) = other else { continue };
            if !self.get(class).in_kernel {
                merge.push((class, other));
            } else if !self.get(other).in_kernel && !NOBODY.contains(&other) {
                merge.push((other, class));
            }
        }
        merge
    }

    /// Each class that equals another one, with that one: the one with the most peers.
    pub fn twins(&self) -> Vec<(Index, Index)> {
        let mut twins = Vec::new();
        for (class, row) in self.iter() {
            let best = self.equal(class).max_by_key(|other| {
                (NOBODY.contains(other), self.get(*other).in_kernel, self.get(*other).members, *other)
            });
            if let Some(best) = best.filter(|best| *best != class && row.members > 0) {
                twins.push((class, best));
            }
        }
        twins
    }

    /// A peer goes from one to another.
    pub fn count(&mut self, from: Option<Index>, to: Option<Index>) {
        if let Some(to) = to {
            let row = &mut self.rows[to as usize];
            row.members += 1;
            if row.members == 1 && !NOBODY.contains(&to) {
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

    /// Those that got their first peer since the last call.
    pub fn take_fresh(&mut self) -> Vec<Index> {
        std::mem::take(&mut self.fresh)
    }

    /// Those without peers; those that the kernel knows only if `all`.
    pub fn take_dead(&mut self, all: bool) -> Vec<Index> {
        let mut dead = std::mem::take(&mut self.emptied);
        dead.sort_unstable();
        dead.dedup();
        dead.retain(|class| !NOBODY.contains(class) && self.alive(*class).is_some_and(|row| row.members == 0));
        if !all {
            let (known, unborn) = dead.into_iter().partition(|class| self.get(*class).in_kernel);
            (self.emptied, dead) = (known, unborn);
        }
        dead
    }

    /// It is no more.
    pub fn remove(&mut self, class: Index) {
        self.unfile(class);
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
