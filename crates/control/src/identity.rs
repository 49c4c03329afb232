//! Which labels make a pod's identity, and which number a label set gets.
//!
//! Labels that differ from replica to replica or that tools write for themselves are left out, else every pod would
//! be an identity of its own. Labels under our own prefix are never taken from a pod: whoever may label a pod must
//! not be able to claim another namespace.

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use weft_model::label::{CLUSTER, LabelSet, NAMESPACE, NAMESPACE_LABELS, OWN_PREFIX, SERVICE_ACCOUNT};

mod table;

pub use table::{Exhausted, IdentityTable, Labels, NumberOf};
pub use weft_model::label::is_excluded;

/// Source of labels that come from Kubernetes.
const SOURCE: &str = "k8s:";

/// What identifies a pod.
#[derive(Clone, Copy, Debug)]
pub struct PodFacts<'a> {
    /// Name of the cluster.
    pub cluster: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// Labels of the namespace.
    pub namespace_labels: &'a BTreeMap<String, String>,
    /// Labels of the pod.
    pub labels: &'a BTreeMap<String, String>,
    /// Its service account.
    pub service_account: &'a str,
}

/// The label set of a pod's identity.
#[must_use]
pub fn label_set(pod: &PodFacts<'_>) -> LabelSet {
    let mut labels = BTreeMap::new();
    for (key, value) in pod.labels {
        if !is_excluded(key) {
            labels.insert(format!("{SOURCE}{key}"), value.clone());
        }
    }
    for (key, value) in pod.namespace_labels {
        labels.insert(format!("{NAMESPACE_LABELS}{key}"), value.clone());
    }
    // The API server sets it on every namespace; a namespace that was seen without it has it all the same.
    labels.insert(format!("{NAMESPACE_LABELS}kubernetes.io/metadata.name"), pod.namespace.to_owned());
    labels.insert(NAMESPACE.to_owned(), pod.namespace.to_owned());
    labels.insert(CLUSTER.to_owned(), pod.cluster.to_owned());
    labels.insert(SERVICE_ACCOUNT.to_owned(), pod.service_account.to_owned());
    LabelSet(labels)
}

/// The labels by which policies select a pod as their subject: all that it has, those that identities leave out
/// included; but what only the control plane sets is never taken from the pod.
#[must_use]
pub fn subject_labels(identity: &LabelSet, pod: &BTreeMap<String, String>) -> LabelSet {
    let claimed = |key: &str| key.starts_with(OWN_PREFIX) || NAMESPACE.strip_prefix(SOURCE) == Some(key);
    let own = pod.iter().filter(|(key, _)| !claimed(key));
    let mut labels: BTreeMap<_, _> = own.map(|(key, value)| (format!("{SOURCE}{key}"), value.clone())).collect();
    labels.extend(identity.0.iter().map(|(key, value)| (key.clone(), value.clone())));
    LabelSet(labels)
}

/// A number that is the same everywhere for the same labels.
fn stable_hash(labels: &LabelSet) -> u64 {
    let mut hash = Sha256::new();
    for (key, value) in &labels.0 {
        // Neither can hold a zero byte, so different sets never feed the same bytes.
        hash.update(key);
        hash.update([0]);
        hash.update(value);
        hash.update([0]);
    }
    let digest = hash.finalize();
    digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests;
