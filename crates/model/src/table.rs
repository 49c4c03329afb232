//! Typed tables: rows that are shared, snapshots that cost nothing, and what changed since a consumer last asked.
//!
//! A [`Table`] has one writer. Its rows live in a persistent map, so [`Table::snapshot`] is O(1), and a write under a
//! live snapshot copies the path to one row, never the table. Whoever has to follow the table subscribes and drains the
//! keys that were written since: the cost of a consumer is that of what changed.

use crate::id::Revision;
use rpds::RedBlackTreeMapSync;
use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::ops::Deref;
use std::sync::Arc;

/// The rows of a table as of one revision. Never changes.
#[derive(Debug)]
pub struct Snapshot<K: Ord, V> {
    rows: RedBlackTreeMapSync<K, Arc<V>>,
    revision: Revision,
}

impl<K: Ord, V> Clone for Snapshot<K, V> {
    fn clone(&self) -> Self {
        Self { rows: self.rows.clone(), revision: self.revision }
    }
}

impl<K: Ord, V> Default for Snapshot<K, V> {
    fn default() -> Self {
        Self { rows: RedBlackTreeMapSync::new_sync(), revision: Revision::default() }
    }
}

impl<K: Ord, V> Snapshot<K, V> {
    /// The row of a key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&Arc<V>>
    where
        K: Borrow<Q>,
    {
        self.rows.get(key)
    }

    /// Whether there is a row.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.rows.contains_key(key)
    }

    /// All rows in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &Arc<V>)> {
        self.rows.iter()
    }

    /// The keys in order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.rows.keys()
    }

    /// The rows in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &Arc<V>> {
        self.rows.values()
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.size()
    }

    /// No rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Grows with every write that changed something.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }
}

impl<K: Ord + Borrow<Q>, V, Q: Ord + ?Sized> std::ops::Index<&Q> for Snapshot<K, V> {
    type Output = Arc<V>;

    fn index(&self, key: &Q) -> &Arc<V> {
        &self.rows[key]
    }
}

/// Names a consumer of one table's changes; see [`Table::subscribe`].
#[derive(Debug)]
pub struct Consumer(usize);

/// A table with its one writer.
#[derive(Debug)]
pub struct Table<K: Ord, V> {
    now: Snapshot<K, V>,
    /// Of each consumer: the keys that it has not drained yet.
    undrained: Vec<BTreeSet<K>>,
}

impl<K: Ord, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { now: Snapshot::default(), undrained: Vec::new() }
    }
}

impl<K: Ord, V> Deref for Table<K, V> {
    type Target = Snapshot<K, V>;

    fn deref(&self) -> &Self::Target {
        &self.now
    }
}

impl<K: Ord + Clone, V> Table<K, V> {
    /// The rows as they are now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot<K, V> {
        self.now.clone()
    }

    /// Follows the table from now on: the first [`Self::drain`] answers every row that is there.
    pub fn subscribe(&mut self) -> Consumer {
        self.undrained.push(self.now.rows.keys().cloned().collect());
        Consumer(self.undrained.len() - 1)
    }

    /// What was written since the consumer's last call, each key once, with its row as it is now; `None`: it is gone.
    pub fn drain(&mut self, consumer: &Consumer) -> Vec<(K, Option<Arc<V>>)> {
        let keys = self.undrained.get_mut(consumer.0).map(std::mem::take).unwrap_or_default();
        let row = |key: K| {
            let row = self.now.rows.get(&key).cloned();
            (key, row)
        };
        keys.into_iter().map(row).collect()
    }

    /// Whether the consumer has something to drain.
    #[must_use]
    pub fn has_changed(&self, consumer: &Consumer) -> bool {
        self.undrained.get(consumer.0).is_some_and(|keys| !keys.is_empty())
    }

    /// Removes a row and answers it.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<Arc<V>>
    where
        K: Borrow<Q>,
    {
        let (held, before) = self.now.rows.get_key_value(key).map(|(key, row)| (key.clone(), row.clone()))?;
        self.now.rows.remove_mut(key);
        self.written(held);
        Some(before)
    }

    fn written(&mut self, key: K) {
        self.now.revision.0 += 1;
        let Some((last, others)) = self.undrained.split_last_mut() else { return };
        for keys in others {
            keys.insert(key.clone());
        }
        last.insert(key);
    }
}

impl<K: Ord + Clone, V: PartialEq> Table<K, V> {
    /// Writes a row and answers what was there. A row equal to the one that is there is no change.
    pub fn insert(&mut self, key: K, row: V) -> Option<Arc<V>> {
        let before = self.now.rows.get(&key).cloned();
        if before.as_deref() != Some(&row) {
            self.now.rows.insert_mut(key.clone(), Arc::new(row));
            self.written(key);
        }
        before
    }

    /// Changes a row in place, if there is one; one that comes out equal is no change. Answers whether it changed.
    pub fn update<Q: Ord + ?Sized>(&mut self, key: &Q, change: impl FnOnce(&mut V)) -> bool
    where
        K: Borrow<Q>,
        V: Clone,
    {
        let Some((key, before)) = self.now.rows.get_key_value(key) else { return false };
        let mut after = (**before).clone();
        change(&mut after);
        if after == **before {
            return false;
        }
        let key = key.clone();
        self.now.rows.insert_mut(key.clone(), Arc::new(after));
        self.written(key);
        true
    }
}

#[cfg(test)]
mod tests;
