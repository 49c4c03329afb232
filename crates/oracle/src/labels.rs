//! Labels of pods as policies see them, and matching of selectors.

use crate::world::{Labels, Pod, World};
use weft_model::id::Identity;
use weft_model::intent::EndpointSelector;
use weft_model::selector::{Requirement, Selector};

/// Keys of labels that the control plane sets.
const NAMESPACE: &str = "io.kubernetes.pod.namespace";
const NAMESPACE_LABEL: &str = "io.cilium.k8s.namespace.labels.";
const CLUSTER: &str = "io.cilium.k8s.policy.cluster";
const SERVICE_ACCOUNT: &str = "io.cilium.k8s.policy.serviceaccount";
pub const CLUSTER_NAME: &str = "weft";

/// A label with its source.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Label {
    /// `k8s` or `reserved`.
    pub source: &'static str,
    pub key: String,
    pub value: String,
}

impl Label {
    fn k8s(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self { source: "k8s", key: key.into(), value: value.into() }
    }

    pub fn reserved(name: &str) -> Self {
        Self { source: "reserved", key: name.to_owned(), value: String::new() }
    }
}

/// The labels by which a pod is selected as a peer (`identity`) and as a subject (`all`).
#[derive(Clone, Debug, Default)]
pub struct PodLabels {
    pub identity: Vec<Label>,
    pub all: Vec<Label>,
}

impl PodLabels {
    pub fn of(world: &World, pod: &Pod) -> Self {
        if let Some(identity) = pod.reserved {
            let identity: Vec<Label> = reserved_names(identity).iter().map(|name| Label::reserved(name)).collect();
            return Self { all: Vec::new(), identity };
        }
        let mut from_cluster = vec![
            Label::k8s(NAMESPACE, &pod.namespace),
            Label::k8s(CLUSTER, CLUSTER_NAME),
            Label::k8s(SERVICE_ACCOUNT, &pod.service_account),
            Label::k8s(format!("{NAMESPACE_LABEL}kubernetes.io/metadata.name"), &pod.namespace),
        ];
        for (key, value) in &world.namespaces[&pod.namespace] {
            if key != "kubernetes.io/metadata.name" {
                from_cluster.push(Label::k8s(format!("{NAMESPACE_LABEL}{key}"), value));
            }
        }
        // A pod must not claim by a label what only the control plane sets.
        let own = pod.labels.iter().filter(|(key, _)| !key.starts_with("io.cilium.k8s.") && *key != NAMESPACE);
        let own: Vec<Label> = own.map(|(key, value)| Label::k8s(key, value)).collect();
        let identity = from_cluster.iter().chain(own.iter().filter(|label| identifies(&label.key))).cloned().collect();
        Self { identity, all: from_cluster.into_iter().chain(own).collect() }
    }
}

/// Whether a pod's label is part of its identity: not if tools write it, or if it differs between replicas.
fn identifies(key: &str) -> bool {
    if key.starts_with("app.kubernetes.io") {
        return true;
    }
    let tools = [
        "io.kubernetes",
        "k8s.io",
        "pod-template-generation",
        "pod-template-hash",
        "controller-revision-hash",
        "annotation",
        "controller-uid",
        "etcd_node",
    ];
    !key.contains("kubernetes.io") && !tools.iter().any(|tool| key.starts_with(tool))
}

fn reserved_names(identity: Identity) -> &'static [&'static str] {
    match identity.raw() {
        3 => &["unmanaged"],
        4 => &["health"],
        5 => &["init"],
        8 => &["ingress"],
        _ => &[],
    }
}

/// Whether the selector selects a managed pod of `namespace` with these labels.
pub fn selects_pod(selector: &EndpointSelector, namespace: &str, labels: &[Label]) -> bool {
    let in_scope = selector.namespace.as_ref().is_none_or(|own| own == namespace);
    in_scope && selector.requirements.iter().all(|requirement| fulfilled(requirement, labels))
}

/// Whether the selector selects a peer that is not a pod: only if it requires a reserved label.
pub fn selects_reserved(selector: &EndpointSelector, labels: &[Label]) -> bool {
    let mut names_reserved = false;
    for requirement in &selector.requirements {
        if let Requirement::In(key, _) | Requirement::Exists(key) = requirement {
            names_reserved |= key.starts_with("reserved:");
        }
    }
    names_reserved
        && selector.namespace.is_none()
        && selector.requirements.iter().all(|requirement| fulfilled(requirement, labels))
}

fn fulfilled(requirement: &Requirement, labels: &[Label]) -> bool {
    let values = |wanted: &str| -> Vec<&str> {
        let (source, key) = wanted.split_once(':').unwrap_or(("any", wanted));
        let same = labels.iter().filter(|label| label.key == key && (source == "any" || label.source == source));
        same.map(|label| label.value.as_str()).collect()
    };
    match requirement {
        Requirement::In(key, wanted) => values(key).iter().any(|value| wanted.contains(*value)),
        Requirement::NotIn(key, unwanted) => values(key).iter().all(|value| !unwanted.contains(*value)),
        Requirement::Exists(key) => !values(key).is_empty(),
        Requirement::DoesNotExist(key) => values(key).is_empty(),
    }
}

/// Whether a selector on plain labels selects an object.
pub fn selects(selector: &Selector, labels: &Labels) -> bool {
    for requirement in &selector.requirements {
        let fulfilled = match requirement {
            Requirement::In(key, values) => match labels.get(key) {
                Some(value) => values.contains(value),
                None => false,
            },
            Requirement::NotIn(key, values) => match labels.get(key) {
                Some(value) => !values.contains(value),
                None => true,
            },
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::DoesNotExist(key) => !labels.contains_key(key),
        };
        if !fulfilled {
            return false;
        }
    }
    true
}
