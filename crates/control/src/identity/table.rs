//! The CiliumIdentities in the cluster, by number and by label set.

use foldhash::{HashMap, HashMapExt};
use rpds::RedBlackTreeMapSync;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::sync::Arc;
use weft_model::id::Identity;
use weft_model::label::LabelSet;

/// The number of a label set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NumberOf {
    /// An object exists.
    Known(Identity),
    /// No object exists, or one that is marked for garbage collection: create or claim it under this number. All nodes
    /// that have seen the same objects propose the same number.
    Proposed(Identity),
}

/// Labels by number. A persistent map: a clone is a cheap, immutable snapshot.
pub type Labels = RedBlackTreeMapSync<Identity, Arc<LabelSet>>;

/// All numbers are in use; retry when identities were garbage collected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("all {} identities are in use", Identity::ALLOCATED.clone().count())]
pub struct Exhausted;

/// The known objects. Several may carry the same labels, if two nodes raced to create one: new pods get the lowest number,
/// the others stay valid until their objects are deleted.
#[derive(Clone, Debug, Default)]
pub struct IdentityTable {
    labels: Labels,
    numbers: HashMap<Arc<LabelSet>, BTreeSet<Identity>>,
    /// Marked for garbage collection: they may be deleted at any moment.
    unused: BTreeSet<Identity>,
}

impl IdentityTable {
    #[must_use]
    pub fn new() -> Self {
        Self { labels: Labels::new_sync(), numbers: HashMap::new(), unused: BTreeSet::new() }
    }

    /// Upserts an object. Returns its labels, shared with all objects of equal labels, and whether anything changed.
    pub fn insert(&mut self, identity: Identity, labels: LabelSet) -> (Arc<LabelSet>, bool) {
        if let Some(known) = self.labels.get(&identity) {
            if **known == labels {
                return (Arc::clone(known), false);
            }
            self.remove(identity);
        }
        let shared = match self.numbers.get_key_value(&labels) {
            Some((shared, _)) => Arc::clone(shared),
            None => Arc::new(labels),
        };
        self.labels.insert_mut(identity, Arc::clone(&shared));
        self.numbers.entry(Arc::clone(&shared)).or_default().insert(identity);
        (shared, true)
    }

    /// Deletes an object. Returns its labels.
    pub fn remove(&mut self, identity: Identity) -> Option<Arc<LabelSet>> {
        let labels = self.labels.get(&identity).cloned()?;
        self.labels.remove_mut(&identity);
        self.unused.remove(&identity);
        if let Some(numbers) = self.numbers.get_mut(&labels) {
            numbers.remove(&identity);
            if numbers.is_empty() {
                self.numbers.remove(&labels);
            }
        }
        Some(labels)
    }

    /// The mark for garbage collection was set on, or removed from, a known object.
    pub fn set_unused(&mut self, identity: Identity, unused: bool) {
        if unused && self.labels.contains_key(&identity) {
            self.unused.insert(identity);
        } else {
            self.unused.remove(&identity);
        }
    }

    #[must_use]
    pub fn labels(&self, identity: Identity) -> Option<&Arc<LabelSet>> {
        self.labels.get(&identity)
    }

    /// The number of a label set.
    ///
    /// # Errors
    /// [`Exhausted`]
    pub fn number_of(&self, labels: &LabelSet) -> Result<NumberOf, Exhausted> {
        if let Some(numbers) = self.numbers.get(labels) {
            if let Some(lowest) = numbers.iter().find(|number| !self.unused.contains(number)) {
                return Ok(NumberOf::Known(*lowest));
            }
            if let Some(lowest) = numbers.first() {
                return Ok(NumberOf::Proposed(*lowest));
            }
        }
        let (first, last) = (*Identity::ALLOCATED.start(), *Identity::ALLOCATED.end());
        let count = last - first + 1;
        let start = u32::try_from(stable_hash(labels) % u64::from(count)).expect("less than count");
        (0..count)
            .filter_map(|step| Identity::allocated(first + (start + step) % count))
            .find(|number| !self.labels.contains_key(number))
            .map(NumberOf::Proposed)
            .ok_or(Exhausted)
    }

    /// All, ordered by number.
    pub fn iter(&self) -> impl Iterator<Item = (Identity, &Arc<LabelSet>)> {
        self.labels.iter().map(|(identity, labels)| (*identity, labels))
    }

    /// Labels by number, as they are now.
    #[must_use]
    pub fn snapshot(&self) -> Labels {
        self.labels.clone()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.labels.size()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
}

/// The same on every node and in every version for the same labels.
fn stable_hash(labels: &LabelSet) -> u64 {
    let mut hash = Sha256::new();
    for (key, value) in &labels.0 {
        // Neither can hold a zero byte, so different sets never hash the same bytes.
        hash.update(key);
        hash.update([0]);
        hash.update(value);
        hash.update([0]);
    }
    let digest = hash.finalize();
    digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}
