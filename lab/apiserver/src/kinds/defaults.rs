//! Defaults that depend on other fields.

use crate::object::{items, map_mut, set, set_condition, text};
use serde_json::{Map, Value, json};

/// Completes a pod's specification.
pub fn pod_spec(spec: &mut Map<String, Value>) {
    let account = match (spec.get("serviceAccountName"), spec.get("serviceAccount")) {
        (Some(Value::String(a)), _) | (None, Some(Value::String(a))) if !a.is_empty() => a.clone(),
        _ => "default".to_owned(),
    };
    spec.insert("serviceAccountName".to_owned(), account.clone().into());
    spec.insert("serviceAccount".to_owned(), account.into());
    spec.entry("enableServiceLinks").or_insert(true.into());
    spec.entry("priority").or_insert(0.into());
    spec.entry("preemptionPolicy").or_insert("PreemptLowerPriority".into());
    let host = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for field in ["containers", "initContainers"] {
        for container in spec.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten() {
            limits_are_requests(container);
            if host {
                for port in container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
                    if port.get("hostPort").is_none() {
                        port["hostPort"] = port["containerPort"].clone();
                    }
                }
            }
        }
    }
}

fn limits_are_requests(container: &mut Value) {
    let Some(limits) = container.get("resources").and_then(|r| r.get("limits")).cloned() else { return };
    for (name, limit) in limits.as_object().into_iter().flatten() {
        map_mut(container, &["resources", "requests"]).entry(name.clone()).or_insert(limit.clone());
    }
}

/// Completes a Deployment or ReplicaSet.
pub fn workload(group_resource: &str, object: &mut Value) {
    let template = map_mut(object, &["spec", "template"]);
    // The template's metadata may be absent, but always has this one field.
    template.entry("metadata").or_insert_with(|| json!({}));
    let account_given = template.get("spec").is_some_and(|s| s.get("serviceAccountName").is_some());
    for container in template
        .get_mut("spec")
        .and_then(|s| s.get_mut("containers"))
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        limits_are_requests(container);
    }
    if account_given {
        let spec = map_mut(object, &["spec", "template", "spec"]);
        let account = spec["serviceAccountName"].clone();
        spec.insert("serviceAccount".to_owned(), account);
    }
    if group_resource == "deployments.apps" && text(object, &["spec", "strategy", "type"]) == "RollingUpdate" {
        let rolling = map_mut(object, &["spec", "strategy", "rollingUpdate"]);
        rolling.entry("maxUnavailable").or_insert("25%".into());
        rolling.entry("maxSurge").or_insert("25%".into());
    }
}

/// Without `policyTypes`: ingress, and egress when there are egress rules.
pub fn network_policy(object: &mut Value) {
    if !items(object, &["spec", "policyTypes"]).is_empty() {
        return;
    }
    let egress = !items(object, &["spec", "egress"]).is_empty();
    let types = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
    set(object, &["spec"], "policyTypes", types);
    map_mut(object, &["spec"]).entry("podSelector").or_insert_with(|| json!({}));
}

/// `stringData` goes into `data`.
pub fn secret(object: &mut Value) {
    use base64::Engine;
    let Some(Value::Object(strings)) = map_mut(object, &[]).remove("stringData") else { return };
    let data = map_mut(object, &["data"]);
    for (key, value) in strings {
        let text = value.as_str().unwrap_or_default();
        data.insert(key, base64::engine::general_purpose::STANDARD.encode(text).into());
    }
}

/// Names that follow from others, and the conditions: a definition that passes validation is served at once.
pub fn definition(object: &mut Value) {
    let kind = text(object, &["spec", "names", "kind"]).to_owned();
    let names = map_mut(object, &["spec", "names"]);
    names.entry("singular").or_insert_with(|| kind.to_lowercase().into());
    names.entry("listKind").or_insert_with(|| format!("{kind}List").into());
    let names = Value::Object(names.clone());
    map_mut(object, &["spec", "conversion"]).entry("strategy").or_insert("None".into());
    set(object, &["status"], "acceptedNames", names);
    let stored: Vec<Value> = items(object, &["spec", "versions"])
        .iter()
        .filter(|v| v["storage"] == Value::Bool(true))
        .map(|v| v["name"].clone())
        .collect();
    set(object, &["status"], "storedVersions", stored);
    set_condition(object, "NamesAccepted", "True", "NoConflicts", "no conflicts found");
    set_condition(object, "Established", "True", "InitialNamesAccepted", "the initial names have been accepted");
}
