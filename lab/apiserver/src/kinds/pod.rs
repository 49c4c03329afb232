//! Validation of pods and of their templates.

use super::meta;
use crate::error::{ApiError, Cause};
use crate::object::{at, items, text};
use crate::store::{Key, Transaction};
use serde_json::{Value, json};
use std::net::IpAddr;
use weft_lab_config::names;

/// A pod needs its service account.
pub(super) fn admit(transaction: &Transaction<'_>, object: &Value) -> Result<(), ApiError> {
    let account = text(object, &["spec", "serviceAccountName"]);
    let namespace = text(object, &["metadata", "namespace"]);
    // The default account is made with its namespace, a moment later; nothing of it is used here.
    if account != "default" && transaction.get(&Key::new("serviceaccounts", namespace, account)).is_none() {
        return Err(ApiError::forbidden(format!(
            "pods {:?} is forbidden: error looking up service account {namespace}/{account}: serviceaccount \
             {account:?} not found",
            text(object, &["metadata", "name"])
        )));
    }
    Ok(())
}

pub(super) fn judge(object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    judge_spec(&object["spec"], "spec", causes);
    for (index, address) in items(object, &["status", "podIPs"]).iter().enumerate() {
        let ip = text(address, &["ip"]);
        if ip.parse::<IpAddr>().is_err() {
            causes.push(Cause::invalid(format!("status.podIPs[{index}].ip"), &ip.into(), "must be a valid IP address"));
        }
    }
    if let Some(old) = old {
        judge_change(&old["spec"], &object["spec"], causes);
    }
}

/// Of a pod's specification only few things can be changed.
fn judge_change(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    let mut masked = new.clone();
    for field in ["containers", "initContainers"] {
        let before = items(old, &[field]);
        if let Some(list) = masked.get_mut(field).and_then(Value::as_array_mut) {
            for (container, before) in list.iter_mut().zip(before) {
                container["image"] = before["image"].clone();
            }
        }
    }
    let kept_tolerations = items(old, &["tolerations"]).iter().all(|t| items(new, &["tolerations"]).contains(t));
    let mut free = vec!["activeDeadlineSeconds", "terminationGracePeriodSeconds"];
    if kept_tolerations {
        free.push("tolerations");
    }
    // Binding sets the node once.
    if text(old, &["nodeName"]).is_empty() {
        free.push("nodeName");
    }
    for field in free {
        match old.get(field) {
            Some(value) => masked[field] = value.clone(),
            None => drop(masked.as_object_mut().map(|m| m.remove(field))),
        }
    }
    if masked != *old {
        let changed: Vec<&str> = masked
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(f, v)| old.get(f.as_str()) != Some(v))
            .map(|(f, _)| f.as_str())
            .chain(old.as_object().into_iter().flatten().map(|(f, _)| f.as_str()).filter(|f| masked.get(f).is_none()))
            .collect();
        let why = format!(
            "pod updates may not change fields other than `spec.containers[*].image`, \
             `spec.initContainers[*].image`, `spec.activeDeadlineSeconds`, `spec.tolerations` (only additions) or \
             `spec.terminationGracePeriodSeconds`; changed: {}",
            changed.join(", ")
        );
        causes.push(Cause::forbidden("spec", why));
    }
}

/// Judges a pod's specification that stands at `path`.
pub(super) fn judge_spec(spec: &Value, path: &str, causes: &mut Vec<Cause>) {
    let containers = items(spec, &["containers"]);
    if containers.is_empty() && spec.get("containers").is_some() {
        causes.push(Cause::required(format!("{path}.containers"), ""));
    }
    let volumes: Vec<&str> = items(spec, &["volumes"]).iter().map(|v| text(v, &["name"])).collect();
    for (index, volume) in volumes.iter().enumerate() {
        if let Err(expected) = names::dns_label(volume) {
            causes.push(Cause::invalid(format!("{path}.volumes[{index}].name"), &(*volume).into(), expected));
        }
    }
    let mut seen = Vec::new();
    for field in ["initContainers", "containers"] {
        for (index, container) in items(spec, &[field]).iter().enumerate() {
            let here = format!("{path}.{field}[{index}]");
            judge_container(container, &here, &volumes, causes);
            let name = text(container, &["name"]);
            // Twice in one list has been noticed by the schema's walk.
            if field == "containers" && seen.contains(&name) {
                causes.push(Cause::duplicate(format!("{here}.name"), &name.into()));
            }
            if field == "initContainers" {
                seen.push(name);
            }
        }
    }
    let node = text(spec, &["nodeName"]);
    if !node.is_empty()
        && let Err(expected) = names::subdomain(node)
    {
        causes.push(Cause::invalid(format!("{path}.nodeName"), &node.into(), expected));
    }
    for (key, value) in meta::map(spec, &["nodeSelector"]) {
        if names::label_key(key).is_err() || names::label_value(value.as_str().unwrap_or_default()).is_err() {
            let field = format!("{path}.nodeSelector");
            causes.push(Cause::invalid(field, &json!({key.as_str(): value}), "expected labels"));
        }
    }
    for (index, toleration) in items(spec, &["tolerations"]).iter().enumerate() {
        judge_toleration(toleration, &format!("{path}.tolerations[{index}]"), causes);
    }
    let hostname = text(spec, &["hostname"]);
    if !hostname.is_empty()
        && let Err(expected) = names::dns_label(hostname)
    {
        causes.push(Cause::invalid(format!("{path}.hostname"), &hostname.into(), expected));
    }
}

fn judge_toleration(toleration: &Value, path: &str, causes: &mut Vec<Cause>) {
    let (key, operator) = (text(toleration, &["key"]), text(toleration, &["operator"]));
    if key.is_empty() && operator != "Exists" {
        let expected = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        causes.push(Cause::invalid(format!("{path}.operator"), &operator.into(), expected));
    }
    if !key.is_empty()
        && let Err(expected) = names::label_key(key)
    {
        causes.push(Cause::invalid(format!("{path}.key"), &key.into(), expected));
    }
    if operator == "Exists" && !text(toleration, &["value"]).is_empty() {
        let expected = "value must be empty when `operator` is 'Exists'";
        causes.push(Cause::invalid(format!("{path}.value"), &toleration["value"], expected));
    }
}

fn judge_container(container: &Value, path: &str, volumes: &[&str], causes: &mut Vec<Cause>) {
    let name = text(container, &["name"]);
    if let (Err(expected), true) = (names::dns_label(name), container.get("name").is_some()) {
        causes.push(Cause::invalid(format!("{path}.name"), &name.into(), expected));
    }
    if text(container, &["image"]).trim().is_empty() && at(container, &["name"]).is_some() {
        causes.push(Cause::required(format!("{path}.image"), ""));
    }
    let mut port_names = Vec::new();
    for (index, port) in items(container, &["ports"]).iter().enumerate() {
        let port_name = text(port, &["name"]);
        if port_name.is_empty() {
            continue;
        }
        let field = format!("{path}.ports[{index}].name");
        if let Err(expected) = names::port_name(port_name) {
            causes.push(Cause::invalid(field, &port_name.into(), expected));
        } else if port_names.contains(&port_name) {
            causes.push(Cause::duplicate(field, &port_name.into()));
        }
        port_names.push(port_name);
    }
    for (index, variable) in items(container, &["env"]).iter().enumerate() {
        let field = format!("{path}.env[{index}]");
        if let (Err(expected), Some(name)) = (names::environment(text(variable, &["name"])), variable.get("name")) {
            causes.push(Cause::invalid(format!("{field}.name"), name, expected));
        }
        if !text(variable, &["value"]).is_empty() && variable.get("valueFrom").is_some() {
            let expected = "may not be specified when `value` is not empty";
            causes.push(Cause::invalid(format!("{field}.valueFrom"), &variable["valueFrom"], expected));
        }
    }
    for (index, mount) in items(container, &["volumeMounts"]).iter().enumerate() {
        let volume = text(mount, &["name"]);
        if !volumes.contains(&volume) {
            let message = format!("Not found: {volume:?}");
            let field = format!("{path}.volumeMounts[{index}].name");
            causes.push(Cause { reason: "FieldValueNotFound", field, message });
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(given) = container.get(probe) else { continue };
        let handlers = ["exec", "httpGet", "tcpSocket", "grpc"].iter().filter(|h| given.get(**h).is_some()).count();
        match handlers {
            0 => causes.push(Cause::required(format!("{path}.{probe}"), "must specify a handler type")),
            1 => {}
            _ => causes.push(Cause::forbidden(format!("{path}.{probe}"), "may not specify more than 1 handler type")),
        }
        if probe != "readinessProbe" && given["successThreshold"].as_i64().unwrap_or(1) != 1 {
            let field = format!("{path}.{probe}.successThreshold");
            causes.push(Cause::invalid(field, &given["successThreshold"], "must be 1"));
        }
    }
}
