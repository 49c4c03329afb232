//! Label sets of endpoints. A key carries its source: `k8s:app`, `reserved:host`.

use crate::id::Identity;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Key of the label that names a pod's namespace.
pub const NAMESPACE: &str = "k8s:io.kubernetes.pod.namespace";
/// Prefix of the labels of a pod's namespace.
pub const NAMESPACE_LABELS: &str = "k8s:io.cilium.k8s.namespace.labels.";
/// Key of the cluster's name.
pub const CLUSTER: &str = "k8s:io.cilium.k8s.policy.cluster";
/// Key of the service account.
pub const SERVICE_ACCOUNT: &str = "k8s:io.cilium.k8s.policy.serviceaccount";

/// Prefix of the keys that only the control plane sets.
pub const OWN_PREFIX: &str = "io.cilium.k8s.";
/// Prefixes of keys that identities keep although an exclusion matches.
const INCLUDED: &[&str] = &["app.kubernetes.io"];
/// Prefixes of keys that identities exclude.
const EXCLUDED: &[&str] = &[
    OWN_PREFIX,
    "io.kubernetes",
    "k8s.io",
    "pod-template-generation",
    "pod-template-hash",
    "controller-revision-hash",
    "annotation",
    "controller-uid",
    "etcd_node",
];
/// Keys that contain this are excluded.
const EXCLUDED_FAMILY: &str = "kubernetes.io";

/// Whether identities exclude the pod label `key` (without source), since it differs between replicas or tools write it for
/// themselves.
#[must_use]
pub fn is_excluded(key: &str) -> bool {
    !INCLUDED.iter().any(|prefix| key.starts_with(prefix))
        && (key.contains(EXCLUDED_FAMILY) || EXCLUDED.iter().any(|prefix| key.starts_with(prefix)))
}

/// Whether identities can have the label `key` (with source): labels of pods that are not excluded, and labels that the
/// control plane adds. A selector of peers on any other label cannot be evaluated.
#[must_use]
pub fn is_carried(key: &str) -> bool {
    let Some((source, bare)) = key.split_once(':') else { return !is_excluded(key) };
    let is = |known: &str| known.strip_prefix("k8s:") == Some(bare);
    !matches!(source, "k8s" | "any")
        || is(NAMESPACE)
        || is(CLUSTER)
        || is(SERVICE_ACCOUNT)
        || NAMESPACE_LABELS.strip_prefix("k8s:").is_some_and(|prefix| bare.starts_with(prefix))
        || !is_excluded(bare)
}

/// Security-relevant labels, `source:key` -> value, sorted.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LabelSet(pub BTreeMap<String, String>);

impl LabelSet {
    /// The value of `key` (with source).
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Whether a label `key` exists whose value passes; the source of `key` may be `any:`.
    #[must_use]
    pub fn any(&self, key: &str, passes: impl Fn(&str) -> bool) -> bool {
        match key.strip_prefix("any:") {
            None => self.get(key).is_some_and(passes),
            Some(bare) => self
                .0
                .iter()
                .any(|(other, value)| other.split_once(':').is_some_and(|(_, name)| name == bare) && passes(value)),
        }
    }

    /// The labels of a reserved identity; empty for any other. `world-ipv4` and `world-ipv6` also have the label `world`.
    #[must_use]
    pub fn reserved(identity: Identity) -> Self {
        let names: &[&str] = match identity.reserved_name() {
            None | Some("unknown") => &[],
            Some("world-ipv4") => &["world", "world-ipv4"],
            Some("world-ipv6") => &["world", "world-ipv6"],
            Some("kube-apiserver") => &["kube-apiserver", "remote-node"],
            Some(name) => &[name],
        };
        Self(names.iter().map(|name| (format!("reserved:{name}"), String::new())).collect())
    }
}

impl fmt::Display for LabelSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (key, value)) in self.0.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            if value.is_empty() { write!(f, "{comma}{key}")? } else { write!(f, "{comma}{key}={value}")? }
        }
        Ok(())
    }
}
