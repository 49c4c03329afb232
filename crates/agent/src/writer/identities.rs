//! Identities: numbers of label sets, from the object to the last address that has one.

use super::flush::Writer;
pub use crate::snapshot::Orphaned;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use weft_control::identity::{Exhausted, NumberOf};
use weft_model::id::Identity;
use weft_model::label::LabelSet;

/// Pause between two scans for whether identities without an object are still in use.
const ORPHANS_EVERY: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Lifecycle {
    /// Identities without an object, with their labels. In force only while an address has the number: an object that was
    /// deleted in error cuts nobody off, and labels that another node vouched for end with its answer.
    orphaned: Arc<Orphaned>,
    /// When the next scan is.
    scan_at: Duration,
    /// Label sets that need an identity from the API server.
    wanted: BTreeSet<LabelSet>,
}

impl Writer {
    pub(super) fn put_identity(&mut self, identity: Identity, labels: LabelSet, unused: bool) {
        self.tables.identities.insert(identity, labels.clone());
        self.tables.identities.set_unused(identity, unused);
        if self.identities.orphaned.contains_key(&identity) {
            Arc::make_mut(&mut self.identities.orphaned).remove(&identity);
        }
        self.relabel(|record| record.labels == labels || record.identity == identity);
        self.relabel_waiting();
    }

    pub(super) fn remove_identity(&mut self, identity: Identity) {
        self.identities.scan_at = self.now;
        let Some(labels) = self.tables.identities.remove(identity) else { return };
        Arc::make_mut(&mut self.identities.orphaned).insert(identity, (*labels).clone());
        // This node's endpoints use it: put the object back.
        if self.tables.endpoints.uses(identity) {
            self.want_identity((*labels).clone());
        }
    }

    /// Puts labels in force that another node vouches for, if the identity has no object and is not in force. They end
    /// with the last address that has the number, and no endpoint of this node takes the number for them.
    pub fn vouch_for_identity(&mut self, identity: Identity, labels: &LabelSet) {
        let known = self.tables.identities.labels(identity).is_some();
        if known || self.identities.orphaned.contains_key(&identity) {
            return;
        }
        self.reconcilers.policy.put_identity(identity, labels);
        Arc::make_mut(&mut self.identities.orphaned).insert(identity, labels.clone());
        self.identities.scan_at = self.now;
        self.dirty = true;
    }

    /// For readers: labels of identities that have no object.
    pub(super) fn orphaned(&self) -> Arc<Orphaned> {
        self.identities.orphaned.clone()
    }

    /// Takes the identities out of force that have no object and that no address has any more; answers when to scan
    /// again.
    pub(super) fn drop_orphans(&mut self) -> Option<Duration> {
        if self.identities.orphaned.is_empty() {
            return None;
        }
        if self.identities.scan_at <= self.now {
            let mut used: BTreeSet<Identity> = self.tables.addresses.using(&self.identities.orphaned);
            // Some of this node's own may not have reached their addresses' entries yet.
            let orphaned = self.identities.orphaned.keys();
            used.extend(orphaned.filter(|identity| self.tables.endpoints.uses(**identity)));
            let unused: Vec<Identity> =
                self.identities.orphaned.keys().filter(|identity| !used.contains(*identity)).copied().collect();
            for identity in unused {
                self.reconcilers.policy.remove_identity(identity);
                Arc::make_mut(&mut self.identities.orphaned).remove(&identity);
                self.dirty = true;
            }
            self.identities.scan_at = self.now + ORPHANS_EVERY;
        }
        (!self.identities.orphaned.is_empty()).then_some(self.identities.scan_at)
    }

    pub(super) fn want_identity(&mut self, labels: LabelSet) {
        self.identities.wanted.insert(labels);
        self.signals.identities.notify_one();
    }

    /// A label set has its identity.
    pub fn identity_obtained(&mut self, labels: &LabelSet) {
        self.identities.wanted.remove(labels);
        self.relabel_waiting();
        self.touch();
    }

    /// Label sets that need an identity.
    #[must_use]
    pub fn wanted_identities(&self) -> Vec<LabelSet> {
        self.identities.wanted.iter().cloned().collect()
    }

    /// The identity of a label set, or the one to try.
    ///
    /// # Errors
    /// All numbers are taken.
    pub fn number_of(&self, labels: &LabelSet) -> Result<NumberOf, Exhausted> {
        self.tables.identities.number_of(labels)
    }
}
