//! Security identities: which labels identify a pod, and which number a label set gets.
//!
//! Labels that differ between replicas or that tools write for themselves are excluded, else every pod would be an
//! identity of its own. Labels under our own prefix are never taken from a pod, so that the right to label a pod does
//! not allow claiming another namespace.

use std::collections::BTreeMap;
use weft_model::label::{CLUSTER, LabelSet, NAMESPACE, NAMESPACE_LABELS, OWN_PREFIX, SERVICE_ACCOUNT};

mod table;

pub use table::{Exhausted, IdentityTable, Labels, NumberOf};
pub use weft_model::label::is_excluded;

/// Source of labels that come from Kubernetes.
const SOURCE: &str = "k8s:";

/// The inputs of a pod's identity.
#[derive(Clone, Copy, Debug)]
pub struct PodFacts<'a> {
    /// Name of the cluster.
    pub cluster: &'a str,
    pub namespace: &'a str,
    pub namespace_labels: &'a BTreeMap<String, String>,
    /// Labels of the pod itself.
    pub labels: &'a BTreeMap<String, String>,
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
    // The API server sets it on every namespace. Add it even if the namespace was not seen yet.
    labels.insert(format!("{NAMESPACE_LABELS}kubernetes.io/metadata.name"), pod.namespace.to_owned());
    labels.insert(NAMESPACE.to_owned(), pod.namespace.to_owned());
    labels.insert(CLUSTER.to_owned(), pod.cluster.to_owned());
    labels.insert(SERVICE_ACCOUNT.to_owned(), pod.service_account.to_owned());
    LabelSet(labels)
}

/// The labels by which policies select a pod as their subject: those of its identity and those that identities exclude.
/// Labels that only the control plane sets are never taken from the pod.
#[must_use]
pub fn subject_labels(identity: &LabelSet, pod: &BTreeMap<String, String>) -> LabelSet {
    let claimed = |key: &str| key.starts_with(OWN_PREFIX) || NAMESPACE.strip_prefix(SOURCE) == Some(key);
    let own = pod.iter().filter(|(key, _)| !claimed(key));
    let mut labels: BTreeMap<_, _> = own.map(|(key, value)| (format!("{SOURCE}{key}"), value.clone())).collect();
    labels.extend(identity.0.iter().map(|(key, value)| (key.clone(), value.clone())));
    LabelSet(labels)
}

#[cfg(test)]
mod tests;
