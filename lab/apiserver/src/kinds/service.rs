//! Services: validation. What is given out to them is in `allocate`, what follows from their type in `fields`.

mod allocate;
mod fields;
#[cfg(test)]
mod tests;

pub(super) use allocate::allocate;
pub(super) use fields::{complete, keep};

use super::meta::map;
use crate::error::Cause;
use crate::object::{at, items, number, text};
use ipnet::IpNet;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;
use weft_lab_config::names;

const DISTRIBUTIONS: [&str; 3] = ["PreferClose", "PreferSameZone", "PreferSameNode"];
/// The longest time that a client stays with its pod, in seconds.
const AFFINITY_MAX_S: i64 = 86_400;

fn kind(object: &Value) -> &str {
    text(object, &["spec", "type"])
}

fn is_headless(object: &Value) -> bool {
    text(object, &["spec", "clusterIP"]) == "None"
}

/// It has ports at the nodes' addresses, or may have them.
fn at_nodes(object: &Value) -> bool {
    matches!(kind(object), "NodePort" | "LoadBalancer")
}

/// Clients outside reach it.
fn at_outside(object: &Value) -> bool {
    at_nodes(object) || !items(object, &["spec", "externalIPs"]).is_empty() && kind(object) == "ClusterIP"
}

/// Load balancers ask each node whether it has pods of it.
fn is_checked(object: &Value) -> bool {
    kind(object) == "LoadBalancer" && text(object, &["spec", "externalTrafficPolicy"]) == "Local"
}

pub(super) fn judge(object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let external = kind(object) == "ExternalName";
    if items(object, &["spec", "ports"]).is_empty() && !external && !is_headless(object) {
        causes.push(Cause::required("spec.ports", ""));
    }
    if external && names::subdomain(text(object, &["spec", "externalName"]).trim_end_matches('.')).is_err() {
        causes.push(Cause::required("spec.externalName", "a DNS name"));
    }
    if at_nodes(object) && is_headless(object) {
        let expected = format!("may not be set to 'None' for {} services", kind(object));
        causes.push(Cause::invalid("spec.clusterIPs[0]", &"None".into(), expected));
    }
    judge_ports(object, causes);
    for (key, value) in map(object, &["spec", "selector"]) {
        if names::label_key(key).is_err() || names::label_value(value.as_str().unwrap_or_default()).is_err() {
            causes.push(Cause::invalid("spec.selector", &json!({key.as_str(): value}), "expected labels"));
        }
    }
    judge_addresses(object, old, causes);
    judge_policies(object, old, causes);
}

fn judge_ports(object: &Value, causes: &mut Vec<Cause>) {
    let ports = items(object, &["spec", "ports"]);
    let (mut seen_names, mut seen_ports, mut seen_node_ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (index, port) in ports.iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        let (name, protocol) = (text(port, &["name"]), text(port, &["protocol"]));
        if name.is_empty() && ports.len() > 1 {
            causes.push(Cause::required(format!("{field}.name"), ""));
        } else if !name.is_empty() {
            if let Err(expected) = names::dns_label(name) {
                causes.push(Cause::invalid(format!("{field}.name"), &name.into(), expected));
            }
            if !seen_names.insert(name) {
                causes.push(Cause::duplicate(format!("{field}.name"), &name.into()));
            }
        }
        if !seen_ports.insert((protocol, port["port"].as_i64())) {
            causes.push(Cause::duplicate(field.as_str(), port));
        }
        if let Some(number) = port["nodePort"].as_i64().filter(|n| *n != 0) {
            if !at_nodes(object) {
                let why = format!("may not be used when `type` is '{}'", kind(object));
                causes.push(Cause::forbidden(format!("{field}.nodePort"), why));
            } else if !seen_node_ports.insert((protocol, number)) {
                causes.push(Cause::duplicate(format!("{field}.nodePort"), &number.into()));
            }
        }
        match &port["targetPort"] {
            Value::Number(n) if !n.as_i64().is_some_and(|n| (1..=65_535).contains(&n)) => {
                let expected = "must be between 1 and 65535, inclusive";
                causes.push(Cause::invalid(format!("{field}.targetPort"), &port["targetPort"], expected));
            }
            Value::String(s) => {
                if let Err(expected) = names::port_name(s) {
                    causes.push(Cause::invalid(format!("{field}.targetPort"), &port["targetPort"], expected));
                }
            }
            _ => {}
        }
    }
}

fn judge_addresses(object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let external = kind(object) == "ExternalName";
    let (first, all) = (text(object, &["spec", "clusterIP"]), items(object, &["spec", "clusterIPs"]));
    if external && !(first.is_empty() && all.is_empty()) {
        causes.push(Cause::forbidden("spec.clusterIPs", "may not be set when `type` is 'ExternalName'"));
    }
    for (index, address) in all.iter().enumerate() {
        let text = address.as_str().unwrap_or_default();
        if text != "None" && text.parse::<IpAddr>().is_err() {
            causes.push(Cause::invalid(format!("spec.clusterIPs[{index}]"), address, "must be a valid IP address"));
        }
    }
    if all.first().is_some_and(|a| a != first) {
        causes.push(Cause::invalid("spec.clusterIPs[0]", &all[0], "first value must match `clusterIP`"));
    }
    for (index, address) in items(object, &["spec", "externalIPs"]).iter().enumerate() {
        let usable = address.as_str().unwrap_or_default().parse::<IpAddr>().is_ok_and(is_usable);
        if !usable {
            let expected = "must be a valid IP address, and none of this machine, its link, or many machines";
            causes.push(Cause::invalid(format!("spec.externalIPs[{index}]"), address, expected));
        }
    }
    for (index, entry) in items(object, &["status", "loadBalancer", "ingress"]).iter().enumerate() {
        let ip = text(entry, &["ip"]);
        if !ip.is_empty() && ip.parse::<IpAddr>().is_err() {
            let field = format!("status.loadBalancer.ingress[{index}].ip");
            causes.push(Cause::invalid(field, &ip.into(), "must be a valid IP address"));
        }
    }
    if let Some(old) = old {
        let before = text(old, &["spec", "clusterIP"]);
        if !before.is_empty() && before != first && !external && kind(old) != "ExternalName" {
            causes.push(Cause::invalid("spec.clusterIPs[0]", &first.into(), "may not change once set"));
        }
    }
}

fn is_usable(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    };
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || link_local)
}

fn judge_policies(object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let balanced = kind(object) == "LoadBalancer";
    let timeout = ["spec", "sessionAffinityConfig", "clientIP", "timeoutSeconds"];
    match text(object, &["spec", "sessionAffinity"]) {
        "ClientIP" => {
            if let Some(seconds) = at(object, &timeout)
                && !seconds.as_i64().is_some_and(|s| (1..=AFFINITY_MAX_S).contains(&s))
            {
                let expected = format!("must be between 1 and {AFFINITY_MAX_S}, inclusive");
                causes.push(Cause::invalid(timeout.join("."), seconds, expected));
            }
        }
        _ if at(object, &timeout[..2]).is_some() => {
            let why = "must not be set when session affinity is None";
            causes.push(Cause::forbidden("spec.sessionAffinityConfig", why));
        }
        _ => {}
    }
    if at(object, &["spec", "externalTrafficPolicy"]).is_some() && !at_outside(object) {
        let why = "may only be set for externally-accessible services";
        causes.push(Cause::forbidden("spec.externalTrafficPolicy", why));
    }
    if let Some(distribution) = at(object, &["spec", "trafficDistribution"])
        && !DISTRIBUTIONS.iter().any(|d| distribution == d)
    {
        causes.push(Cause::unsupported("spec.trafficDistribution", distribution, &DISTRIBUTIONS));
    }
    for field in ["loadBalancerClass", "loadBalancerSourceRanges", "allocateLoadBalancerNodePorts"] {
        let given = at(object, &["spec", field]).filter(|v| v.as_array().is_none_or(|a| !a.is_empty()));
        if given.is_some() && !balanced {
            causes.push(Cause::forbidden(format!("spec.{field}"), "may only be used when `type` is 'LoadBalancer'"));
        }
    }
    for (index, range) in items(object, &["spec", "loadBalancerSourceRanges"]).iter().enumerate() {
        if range.as_str().unwrap_or_default().trim().parse::<IpNet>().is_err() {
            let expected = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            causes.push(Cause::invalid(format!("spec.loadBalancerSourceRanges[{index}]"), range, expected));
        }
    }
    let port = |object: &Value| number(object, &["spec", "healthCheckNodePort"]).filter(|n| *n != 0);
    if port(object).is_some() && !is_checked(object) {
        let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        causes.push(Cause::forbidden("spec.healthCheckNodePort", why));
    }
    let Some(old) = old else { return };
    if is_checked(old) && is_checked(object) && port(old).is_some() && port(old) != port(object) {
        let value = at(object, &["spec", "healthCheckNodePort"]).cloned().unwrap_or(Value::Null);
        causes.push(Cause::invalid("spec.healthCheckNodePort", &value, "field is immutable"));
    }
    let class = |object: &Value| at(object, &["spec", "loadBalancerClass"]).cloned();
    if balanced && kind(old) == "LoadBalancer" && class(old) != class(object) {
        let value = class(object).unwrap_or(Value::Null);
        causes.push(Cause::invalid("spec.loadBalancerClass", &value, "may not change once set"));
    }
}
