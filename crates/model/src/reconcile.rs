//! What a reconciler keeps per row: whether it is in force, waits to be written, or failed, why, and when it is tried
//! again. Time is passed in.
//!
//! Only rows that are not in force take memory: a row that is not listed is done. So the state of a reconciler with
//! 200,000 rows costs what is wrong at the moment.

use crate::id::Revision;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// First pause after a failure; it doubles with every further one up to [`RETRY_MAX`].
pub const RETRY_MIN: Duration = Duration::from_millis(50);
/// Longest pause between two attempts.
pub const RETRY_MAX: Duration = Duration::from_secs(10);

/// The pause after so many failures in a row.
#[must_use]
pub fn pause(failures: u32) -> Duration {
    // 50 ms * 2^8 is more than the longest pause.
    RETRY_MIN.saturating_mul(1 << failures.saturating_sub(1).min(8)).min(RETRY_MAX)
}

/// How far one row is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status<'a> {
    /// In force as it shall be.
    Done,
    /// To be written with the next pass.
    Pending,
    /// The last attempt failed. What was in force before is in force still.
    Failed {
        /// Why.
        why: &'a str,
        /// When it is tried again.
        next_try: Duration,
    },
}

/// How far a reconciler is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Newest revision of the tables of which everything is in force.
    pub in_force: Revision,
    /// Rows that wait for the next pass.
    pub pending: usize,
    /// Rows whose last attempt failed.
    pub failed: usize,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Failure {
    why: String,
    failures: u32,
    next_try: Duration,
}

/// The rows of one reconciler that are not in force.
#[derive(Debug)]
pub struct Queue<K> {
    pending: BTreeSet<K>,
    failed: BTreeMap<K, Failure>,
    in_force: Revision,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self { pending: BTreeSet::new(), failed: BTreeMap::new(), in_force: Revision::default() }
    }
}

impl<K: Ord + Clone> Queue<K> {
    /// A row has changed: it is written with the next pass, also if its last attempt failed a moment ago.
    pub fn enqueue(&mut self, key: K) {
        self.pending.insert(key);
    }

    /// The rows to write now: those that changed, and those that failed and whose pause is over. Each must be answered
    /// by [`Self::done`] or [`Self::failed`], else it counts as done.
    pub fn take_due(&mut self, now: Duration) -> BTreeSet<K> {
        let mut due = std::mem::take(&mut self.pending);
        if !self.failed.is_empty() {
            due.extend(self.failed.iter().filter(|(_, failure)| failure.next_try <= now).map(|(key, _)| key.clone()));
        }
        due
    }

    /// The row is in force.
    pub fn done(&mut self, key: &K) {
        if !self.failed.is_empty() {
            self.failed.remove(key);
        }
    }

    /// The row could not be written; what was in force stays.
    pub fn failed(&mut self, key: K, now: Duration, why: impl Into<String>) {
        let failures = self.failed.get(&key).map_or(0, |failure| failure.failures).saturating_add(1);
        self.failed.insert(key, Failure { why: why.into(), failures, next_try: now + pause(failures) });
    }

    /// How far a row is.
    #[must_use]
    pub fn status(&self, key: &K) -> Status<'_> {
        if self.pending.contains(key) {
            return Status::Pending;
        }
        match self.failed.get(key) {
            Some(failure) => Status::Failed { why: &failure.why, next_try: failure.next_try },
            None => Status::Done,
        }
    }

    /// Rows whose last attempt failed, and why.
    pub fn failures(&self) -> impl Iterator<Item = (&K, &str)> {
        self.failed.iter().map(|(key, failure)| (key, failure.why.as_str()))
    }

    /// When the next row that failed is due.
    #[must_use]
    pub fn next_try(&self) -> Option<Duration> {
        self.failed.values().map(|failure| failure.next_try).min()
    }

    /// Everything is in force.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.pending.is_empty() && self.failed.is_empty()
    }

    /// A pass over the tables of `revision` has ended: if everything is in force, so is that revision.
    pub fn end_pass(&mut self, revision: Revision) {
        if self.is_settled() {
            self.in_force = revision;
        }
    }

    /// How far all of it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress { in_force: self.in_force, pending: self.pending.len(), failed: self.failed.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::{Queue, RETRY_MAX, RETRY_MIN, Status, pause};
    use crate::id::Revision;
    use std::time::Duration;

    #[test]
    fn pauses_double_up_to_the_longest() {
        assert_eq!([1, 2, 3].map(pause), [RETRY_MIN, RETRY_MIN * 2, RETRY_MIN * 4]);
        assert_eq!([9, 100, u32::MAX].map(pause), [RETRY_MAX; 3]);
        assert!(pause(8) < RETRY_MAX);
    }

    #[test]
    fn a_row_that_failed_waits_unless_it_changes() {
        let (mut queue, at) = (Queue::default(), Duration::from_secs(1));
        queue.enqueue("a");
        queue.enqueue("b");
        queue.end_pass(Revision(1));
        assert_eq!(queue.status(&"a"), Status::Pending);
        assert_eq!(queue.take_due(at), ["a", "b"].into());
        queue.failed("a", at, "full");
        queue.done(&"b");
        queue.end_pass(Revision(1));
        assert_eq!(queue.progress().in_force, Revision(0), "not while something failed");
        assert_eq!(queue.status(&"a"), Status::Failed { why: "full", next_try: at + RETRY_MIN });
        assert_eq!(queue.status(&"b"), Status::Done);
        assert!(queue.take_due(at).is_empty(), "not before its pause is over");
        assert_eq!(queue.next_try(), Some(at + RETRY_MIN));
        let later = at + RETRY_MIN;
        assert_eq!(queue.take_due(later), ["a"].into());
        queue.failed("a", later, "still full");
        assert_eq!(queue.next_try(), Some(later + RETRY_MIN * 2));
        // The row is another one now: no reason to wait.
        queue.enqueue("a");
        assert_eq!(queue.take_due(later), ["a"].into());
        queue.done(&"a");
        queue.end_pass(Revision(2));
        assert!(queue.is_settled());
        assert_eq!(queue.progress().in_force, Revision(2));
        assert_eq!(queue.next_try(), None);
    }

    #[test]
    fn a_failure_after_a_success_starts_over() {
        let (mut queue, at) = (Queue::default(), Duration::from_secs(1));
        for _ in 0..5 {
            queue.failed(1, at, "no");
        }
        queue.done(&1);
        queue.failed(1, at, "no");
        assert_eq!(queue.next_try(), Some(at + RETRY_MIN));
    }
}
