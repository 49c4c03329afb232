//! Label selectors.

use super::field::{Path, Read, all, both, each, get, kind, list, object, required, string};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use weft_model::intent::EndpointSelector;
use weft_model::label::NAMESPACE_LABELS;
use weft_model::selector::{Requirement, Selector};

/// Longest key: a prefix of at most 253, a slash, a name of at most 63.
const KEY_MAX: usize = 317;
/// Key of a pod's namespace, without its source.
const NAMESPACE_KEY: &str = "io.kubernetes.pod.namespace";
/// Prefix of the keys of a namespace's labels, without their source.
const NAMESPACE_LABELS_KEY: &str = "io.cilium.k8s.namespace.labels.";

pub(super) fn plain(path: Path<'_>, value: &Value) -> Read<Selector> {
    requirements(path, value, &|_, key| Ok(key.to_owned())).map(|requirements| Selector { requirements })
}

/// A selector on the labels of pods, in Kubernetes' own kinds.
pub(super) fn pod_labels(path: Path<'_>, value: &Value) -> Read<Vec<Requirement>> {
    requirements(path, value, &|_, key| Ok(format!("k8s:{key}")))
}

/// A selector on the labels of namespaces, in Kubernetes' own kinds.
pub(super) fn namespace_labels(path: Path<'_>, value: &Value) -> Read<Vec<Requirement>> {
    requirements(path, value, &|_, key| Ok(format!("{NAMESPACE_LABELS}{key}")))
}

/// A field with a `namespaceSelector` and a `podSelector`, either of which may be absent.
pub(super) fn pods_of_namespaces(path: Path<'_>, map: &Map<String, Value>) -> Read<EndpointSelector> {
    let part = |name: &'static str, read: fn(Path<'_>, &Value) -> Read<Vec<Requirement>>| {
        get(map, name).map_or(Ok(Vec::new()), |value| read(Path::Field(&path, name), value))
    };
    let (mut requirements, pods) = both(part("namespaceSelector", namespace_labels), part("podSelector", pod_labels))?;
    requirements.extend(pods);
    Ok(EndpointSelector { namespace: None, requirements })
}

/// The subjects of a cilium.io policy: pods of its own namespace, if it has one.
pub(super) fn subject(path: Path<'_>, value: &Value, namespace: Option<&str>) -> Read<EndpointSelector> {
    let requirements = requirements(path, value, &source_key)?;
    let elsewhere = |own: &str| {
        requirements.iter().any(|requirement| match requirement {
            Requirement::In(key, values) => bare(key) == NAMESPACE_KEY && !values.contains(own),
            _ => false,
        })
    };
    if namespace.is_some_and(elsewhere) {
        return path.fail("selects pods of another namespace, expected none: a policy applies to its own namespace");
    }
    Ok(EndpointSelector { namespace: namespace.map(str::to_owned), requirements })
}

/// A peer of a cilium.io policy: in the policy's own namespace, unless it says which, or names what has none.
pub(super) fn peer(path: Path<'_>, value: &Value, namespace: Option<&str>) -> Read<EndpointSelector> {
    let requirements = requirements(path, value, &source_key)?;
    let names_scope = |requirement: &Requirement| {
        let key = match requirement {
            Requirement::In(key, _) | Requirement::Exists(key) => {
                if key.starts_with("reserved:") {
                    return true;
                }
                key
            }
            Requirement::NotIn(key, _) | Requirement::DoesNotExist(key) => key,
        };
        bare(key) == NAMESPACE_KEY || bare(key).starts_with(NAMESPACE_LABELS_KEY)
    };
    let namespace = namespace.filter(|_| !requirements.iter().any(names_scope)).map(str::to_owned);
    Ok(EndpointSelector { namespace, requirements })
}

/// Nodes in a cilium.io policy: plain keys, whatever source is written before them.
pub(super) fn nodes(path: Path<'_>, value: &Value) -> Read<Selector> {
    let key = |path: Path<'_>, key: &str| match key.split_once(':') {
        None => Ok(key.to_owned()),
        Some(("k8s" | "any" | "node", name)) if !name.is_empty() => Ok(name.to_owned()),
        Some(_) => path.fail(format!("{key:?}, expected a label of the Node, such as node-role.kubernetes.io/worker")),
    };
    requirements(path, value, &key).map(|requirements| Selector { requirements })
}

fn bare(key: &str) -> &str {
    key.split_once(':').map_or(key, |(_, name)| name)
}

/// A key with its source; one without means any source.
fn source_key(path: Path<'_>, key: &str) -> Read<String> {
    match key.split_once(':') {
        None => Ok(format!("any:{key}")),
        Some(("k8s" | "any" | "reserved", name)) if !name.is_empty() => Ok(key.to_owned()),
        Some(_) => {
            path.fail(format!("{key:?}, expected a label's key, with source k8s:, any: or reserved: or without"))
        }
    }
}

/// How a key as written becomes a key as kept.
type Key<'a> = &'a dyn Fn(Path<'_>, &str) -> Read<String>;

fn requirements(path: Path<'_>, value: &Value, key: Key<'_>) -> Read<Vec<Requirement>> {
    let map = object(path, value, &["matchLabels", "matchExpressions"])?;
    let at = Path::Field(&path, "matchLabels");
    let labels = match get(map, "matchLabels") {
        None => Ok(Vec::new()),
        Some(Value::Object(labels)) => all(labels.iter().map(|(name, value)| {
            let at = Path::Field(&at, name);
            let value = string(at, value)?;
            Ok(Requirement::In(label_key(at, name, key)?, BTreeSet::from([value.to_owned()])))
        })),
        Some(other) => at.fail(format!("expected an object, found {}", kind(other))),
    };
    let expressions = list(path, map, "matchExpressions").and_then(|items| {
        let at = Path::Field(&path, "matchExpressions");
        each(at, items.unwrap_or_default(), |path, value| expression(path, value, key))
    });
    let (mut requirements, expressions) = both(labels, expressions)?;
    requirements.extend(expressions);
    Ok(requirements)
}

fn expression(path: Path<'_>, value: &Value, key: Key<'_>) -> Read<Requirement> {
    let map = object(path, value, &["key", "operator", "values"])?;
    let at = Path::Field(&path, "key");
    let name = string(at, required(path, map, "key", "a label's key")?)?;
    let key = label_key(at, name, key)?;
    let values_at = Path::Field(&path, "values");
    let mut values = BTreeSet::new();
    for (n, item) in list(path, map, "values")?.unwrap_or_default().iter().enumerate() {
        values.insert(string(Path::Index(&values_at, n), item)?.to_owned());
    }
    let at = Path::Field(&path, "operator");
    let expected = "expected In, NotIn, Exists or DoesNotExist";
    let operator = string(at, required(path, map, "operator", expected)?)?;
    match (operator, values.is_empty()) {
        ("In", false) => Ok(Requirement::In(key, values)),
        ("NotIn", false) => Ok(Requirement::NotIn(key, values)),
        ("In" | "NotIn", true) => values_at.fail(format!("expected at least one value for {operator}")),
        ("Exists", true) => Ok(Requirement::Exists(key)),
        ("DoesNotExist", true) => Ok(Requirement::DoesNotExist(key)),
        ("Exists" | "DoesNotExist", false) => values_at.fail(format!("expected no values for {operator}")),
        (other, _) => at.fail(format!("{other:?}, {expected}")),
    }
}

fn label_key(path: Path<'_>, name: &str, key: Key<'_>) -> Read<String> {
    if name.is_empty() || name.len() > KEY_MAX {
        return path.fail(format!("expected a label's key of 1 to {KEY_MAX} characters, found {}", name.len()));
    }
    key(path, name)
}
