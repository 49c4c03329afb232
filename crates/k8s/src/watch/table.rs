//! What was told about which object: key, UID, version, hash. The difference engine of a watch.

use super::{Kind, Seen};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

struct Row {
    uid: Box<str>,
    /// 0: not a number, not compared.
    version: u64,
    /// Hash of what was told; 0: nothing was told.
    told: u64,
    /// The list that it was last seen in.
    list: u32,
}

/// All objects of one kind that exist, as far as was told.
pub(super) struct Table<K: Kind> {
    rows: HashMap<K::Key, Row>,
    hasher: RandomState,
    list: u32,
}

impl<K: Kind> Table<K> {
    pub(super) fn new() -> Self {
        // A random key: nobody can make a change whose hash equals the one before.
        Self { rows: HashMap::new(), hasher: RandomState::new(), list: 0 }
    }

    /// Whether no object exists, as far as was told.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// A list begins.
    pub(super) fn begin_list(&mut self) {
        self.list = self.list.wrapping_add(1);
    }

    /// A list is complete: whatever was not in it is gone.
    pub(super) fn end_list(&mut self, kind: &K, news: &mut Vec<K::News>) {
        let list = self.list;
        self.rows.retain(|key, row| {
            let keep = row.list == list;
            if !keep {
                news.push(kind.gone(key, &row.uid));
            }
            keep
        });
    }

    /// An object of a list. Its version is believed: the server's state may have been restored from an older one.
    pub(super) fn listed(&mut self, kind: &K, seen: Seen<K::Key, K::News>, news: &mut Vec<K::News>) {
        self.put(kind, seen, news);
    }

    /// An object that was added or modified.
    pub(super) fn modified(&mut self, kind: &K, seen: Seen<K::Key, K::News>, news: &mut Vec<K::News>) {
        if !self.is_stale(&seen) {
            self.put(kind, seen, news);
        }
    }

    /// An object that was deleted. A late word about a predecessor of the same name changes nothing.
    pub(super) fn deleted(&mut self, kind: &K, seen: &Seen<K::Key, K::News>, news: &mut Vec<K::News>) {
        if self.is_stale(seen) || self.rows.get(&seen.key).is_some_and(|row| *row.uid != *seen.uid) {
            return;
        }
        if let Some(row) = self.rows.remove(&seen.key) {
            news.push(kind.gone(&seen.key, &row.uid));
        }
    }

    fn is_stale(&self, seen: &Seen<K::Key, K::News>) -> bool {
        let version = number(&seen.version);
        self.rows.get(&seen.key).is_some_and(|row| version != 0 && row.version != 0 && version < row.version)
    }

    fn put(&mut self, kind: &K, seen: Seen<K::Key, K::News>, news: &mut Vec<K::News>) {
        let version = number(&seen.version);
        let hash = seen.news.as_ref().map(|told| self.hasher.hash_one(told).max(1));
        let list = self.list;
        let row = self.rows.get_mut(&seen.key);
        let told_before = match row {
            Some(row) if *row.uid == *seen.uid => {
                row.version = version;
                row.list = list;
                let before = row.told;
                row.told = hash.unwrap_or(before);
                before
            }
            other => {
                if let Some(row) = other {
                    // Deleted and made anew while we did not look.
                    news.push(kind.gone(&seen.key, &row.uid));
                }
                let row = Row { uid: seen.uid.into_boxed_str(), version, told: hash.unwrap_or(0), list };
                self.rows.insert(seen.key, row);
                0
            }
        };
        if let Some(told) = seen.news
            && hash != Some(told_before)
        {
            news.push(told);
        }
    }
}

fn number(version: &str) -> u64 {
    version.parse().unwrap_or(0)
}
