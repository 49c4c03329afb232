//! What was sent about which object: key, UID, version, hash. The difference engine of a watch.

use super::kind::{Kind, Seen};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

struct Row {
    uid: Box<str>,
    /// 0: not a number, not compared.
    version: u64,
    /// Hash of what was sent; 0: nothing was sent.
    sent: u64,
    /// The list that it was last seen in.
    list: u32,
}

/// All objects of one kind that exist, as far as was sent.
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

    /// How many objects exist, as far as was listed.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn begin_list(&mut self) {
        self.list = self.list.wrapping_add(1);
    }

    /// A list is complete: whatever was not in it is gone.
    pub(super) fn end_list(&mut self, kind: &K, events: &mut Vec<K::Event>) {
        let list = self.list;
        self.rows.retain(|key, row| {
            let keep = row.list == list;
            if !keep {
                events.push(kind.gone(key, &row.uid));
            }
            keep
        });
    }

    /// An object of a list. Its version is believed: the server's state may have been restored from an older one.
    pub(super) fn listed(&mut self, kind: &K, seen: Seen<K::Key, K::Event>, events: &mut Vec<K::Event>) {
        self.put(kind, seen, events);
    }

    /// An object that was added or modified.
    pub(super) fn modified(&mut self, kind: &K, seen: Seen<K::Key, K::Event>, events: &mut Vec<K::Event>) {
        if !self.is_stale(&seen) {
            self.put(kind, seen, events);
        }
    }

    /// An object that was deleted. A late word about a predecessor of the same name changes nothing.
    pub(super) fn deleted(&mut self, kind: &K, seen: &Seen<K::Key, K::Event>, events: &mut Vec<K::Event>) {
        if self.is_stale(seen) || self.rows.get(&seen.key).is_some_and(|row| *row.uid != *seen.uid) {
            return;
        }
        if let Some(row) = self.rows.remove(&seen.key) {
            events.push(kind.gone(&seen.key, &row.uid));
        }
    }

    fn is_stale(&self, seen: &Seen<K::Key, K::Event>) -> bool {
        let version = number(&seen.version);
        self.rows.get(&seen.key).is_some_and(|row| version != 0 && row.version != 0 && version < row.version)
    }

    fn put(&mut self, kind: &K, seen: Seen<K::Key, K::Event>, events: &mut Vec<K::Event>) {
        let version = number(&seen.version);
        let hash = seen.event.as_ref().map(|sent| self.hasher.hash_one(sent).max(1));
        let list = self.list;
        let row = self.rows.get_mut(&seen.key);
        let told_before = match row {
            Some(row) if *row.uid == *seen.uid => {
                row.version = version;
                row.list = list;
                let before = row.sent;
                row.sent = hash.unwrap_or(before);
                before
            }
            other => {
                if let Some(row) = other {
                    // Deleted and made anew while we did not look.
                    events.push(kind.gone(&seen.key, &row.uid));
                }
                let row = Row { uid: seen.uid.into_boxed_str(), version, sent: hash.unwrap_or(0), list };
                self.rows.insert(seen.key, row);
                0
            }
        };
        if let Some(sent) = seen.event
            && hash != Some(told_before)
        {
            events.push(sent);
        }
    }
}

fn number(version: &str) -> u64 {
    version.parse().unwrap_or(0)
}
