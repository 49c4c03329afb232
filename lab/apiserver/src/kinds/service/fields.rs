//! Fields of services that follow from others: defaults, what an update keeps, and what a change of type takes away.

use super::{at_nodes, at_outside, is_checked, kind};
use crate::object::{at, items, map_mut, set, text};
use serde_json::{Value, json};

/// How long a client stays with its pod when nothing else is said, in seconds.
const AFFINITY_S: i64 = 10_800;

/// Completes a service.
pub fn complete(object: &mut Value) {
    let (outside, balanced) = (at_outside(object), kind(object) == "LoadBalancer");
    let external = kind(object) == "ExternalName";
    let sticky = text(object, &["spec", "sessionAffinity"]) == "ClientIP";
    let spec = map_mut(object, &["spec"]);
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if port.get("targetPort").is_none_or(|t| *t == 0 || *t == "") {
            port["targetPort"] = port["port"].clone();
        }
    }
    if outside {
        spec.entry("externalTrafficPolicy").or_insert("Cluster".into());
    }
    if balanced {
        spec.entry("allocateLoadBalancerNodePorts").or_insert(true.into());
    }
    if external {
        spec.remove("internalTrafficPolicy");
    }
    if sticky {
        let client = map_mut(object, &["spec", "sessionAffinityConfig", "clientIP"]);
        client.entry("timeoutSeconds").or_insert(AFFINITY_S.into());
    }
}

/// An update that says nothing of what was given out keeps it; one that changes the type loses what the new type cannot
/// have, unless the update asks for something else there.
pub fn keep(old: &Value, new: &mut Value) {
    lose(old, new);
    if kind(new) == "ExternalName" {
        return;
    }
    for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        let missing = new["spec"].get(field).is_none_or(|v| v == "" || v.as_array().is_some_and(Vec::is_empty));
        if let (true, Some(value)) = (missing, old["spec"].get(field)) {
            set(new, &["spec"], field, value.clone());
        }
    }
    if is_checked(old) && is_checked(new) && new["spec"].get("healthCheckNodePort").is_none_or(|p| *p == 0) {
        let port = old["spec"]["healthCheckNodePort"].clone();
        set(new, &["spec"], "healthCheckNodePort", port);
    }
    if !at_nodes(new) {
        return;
    }
    // Node ports stay with their port.
    let before = items(old, &["spec", "ports"]).to_vec();
    for port in map_mut(new, &["spec"]).get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let same = before.iter().find(|b| b["port"] == port["port"] && b["protocol"] == port["protocol"]);
        if let (true, Some(number)) =
            (port.get("nodePort").is_none_or(|p| *p == 0), same.and_then(|b| b.get("nodePort")))
        {
            port["nodePort"] = number.clone();
        }
    }
}

fn lose(old: &Value, new: &mut Value) {
    let same = |new: &Value, field: &str| at(new, &["spec", field]) == at(old, &["spec", field]);
    let remove = |new: &mut Value, field: &str| {
        map_mut(new, &["spec"]).remove(field);
    };
    if kind(new) == "ExternalName" && kind(old) != "ExternalName" {
        for field in ["clusterIP", "clusterIPs"] {
            if same(new, field) {
                remove(new, field);
            }
        }
    }
    if at_nodes(old) && !at_nodes(new) {
        let before = items(old, &["spec", "ports"]).to_vec();
        for port in map_mut(new, &["spec"]).get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            let given = port["nodePort"].clone();
            if !given.is_null()
                && before.iter().any(|b| b["nodePort"] == given)
                && let Some(port) = port.as_object_mut()
            {
                port.remove("nodePort");
            }
        }
    }
    if is_checked(old) && !is_checked(new) && same(new, "healthCheckNodePort") {
        remove(new, "healthCheckNodePort");
    }
    if at_outside(old) && !at_outside(new) && same(new, "externalTrafficPolicy") {
        remove(new, "externalTrafficPolicy");
    }
    if kind(old) == "LoadBalancer" && kind(new) != "LoadBalancer" {
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if same(new, field) {
                remove(new, field);
            }
        }
        set(new, &["status"], "loadBalancer", json!({}));
    }
    let sticky = |object: &Value| text(object, &["spec", "sessionAffinity"]) == "ClientIP";
    if sticky(old) && !sticky(new) && same(new, "sessionAffinityConfig") {
        remove(new, "sessionAffinityConfig");
    }
}
