//! Validation of kinds with few rules.

use crate::error::Cause;
use crate::object::{at, items, text};
use ipnet::IpNet;
use serde_json::Value;
use std::net::IpAddr;
use weft_lab_config::names;

/// Largest content of a ConfigMap or Secret.
const DATA_MAX: usize = 1024 * 1024;

pub(super) fn endpoint_slice(object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let family = text(object, &["addressType"]);
    for (index, endpoint) in items(object, &["endpoints"]).iter().enumerate() {
        let addresses = items(endpoint, &["addresses"]);
        if addresses.is_empty() {
            causes.push(Cause::required(format!("endpoints[{index}].addresses"), "must contain at least 1 address"));
        }
        for (number, address) in addresses.iter().enumerate() {
            let parsed = address.as_str().unwrap_or_default().parse::<IpAddr>();
            let fits = match family {
                "IPv4" => parsed.is_ok_and(|a| a.is_ipv4()),
                "IPv6" => parsed.is_ok_and(|a| a.is_ipv6()),
                _ => true,
            };
            if !fits {
                let field = format!("endpoints[{index}].addresses[{number}]");
                causes.push(Cause::invalid(field, address, format!("must be an {family} address")));
            }
        }
    }
    let mut seen = Vec::new();
    for (index, port) in items(object, &["ports"]).iter().enumerate() {
        let name = text(port, &["name"]);
        if seen.contains(&name) {
            causes.push(Cause::duplicate(format!("ports[{index}].name"), &name.into()));
        }
        seen.push(name);
    }
    if let Some(old) = old
        && old["addressType"] != object["addressType"]
    {
        causes.push(Cause::invalid("addressType", &object["addressType"], "field is immutable"));
    }
}

pub(super) fn data(object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let mut size = 0;
    for field in ["data", "binaryData"] {
        for (key, value) in super::meta::map(object, &[field]) {
            size += value.as_str().map_or(0, str::len);
            if let Err(expected) = names::data_key(key) {
                causes.push(Cause::invalid(format!("{field}[{key}]"), &key.as_str().into(), expected));
            }
        }
    }
    if size > DATA_MAX {
        let message = format!("Too long: must have at most {DATA_MAX} bytes");
        causes.push(Cause { reason: "FieldValueTooLong", field: "data".to_owned(), message });
    }
    let Some(old) = old.filter(|o| o["immutable"] == Value::Bool(true)) else { return };
    for field in ["data", "binaryData", "immutable"] {
        if old.get(field) != object.get(field) {
            causes.push(Cause::forbidden(field, "field is immutable when `immutable` is set"));
        }
    }
    if old.get("type") != object.get("type") {
        causes.push(Cause::invalid("type", &object["type"], "field is immutable"));
    }
}

pub(super) fn node(object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let cidrs = items(object, &["spec", "podCIDRs"]);
    for (index, cidr) in cidrs.iter().enumerate() {
        if cidr.as_str().unwrap_or_default().parse::<IpNet>().is_err() {
            let expected = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            causes.push(Cause::invalid(format!("spec.podCIDRs[{index}]"), cidr, expected));
        }
    }
    let single = text(object, &["spec", "podCIDR"]);
    if !single.is_empty() && cidrs.first().is_some_and(|c| c != single) {
        let expected = "must be the first of spec.podCIDRs";
        causes.push(Cause::invalid("spec.podCIDR", &single.into(), expected));
    }
    for (index, taint) in items(object, &["spec", "taints"]).iter().enumerate() {
        if let Err(expected) = names::label_key(text(taint, &["key"])) {
            causes.push(Cause::invalid(format!("spec.taints[{index}].key"), &taint["key"], expected));
        }
        if let Err(expected) = names::label_value(text(taint, &["value"])) {
            causes.push(Cause::invalid(format!("spec.taints[{index}].value"), &taint["value"], expected));
        }
    }
    let before = old.map_or(&[][..], |o| items(o, &["spec", "podCIDRs"]));
    if !before.is_empty() && before != cidrs {
        causes.push(Cause::forbidden("spec.podCIDRs", "node updates may not change podCIDR except from \"\" to valid"));
    }
}

pub(super) fn lease(object: &Value, causes: &mut Vec<Cause>) {
    if at(object, &["spec", "holderIdentity"]).is_some_and(|h| h == "") {
        causes.push(Cause::required("spec.holderIdentity", "must not be empty when given"));
    }
}

pub(super) fn event(object: &Value, causes: &mut Vec<Cause>) {
    let about = text(object, &["involvedObject", "namespace"]);
    let own = text(object, &["metadata", "namespace"]);
    if !about.is_empty() && about != own {
        let expected = "does not match event.namespace";
        causes.push(Cause::invalid("involvedObject.namespace", &about.into(), expected));
    }
    if about.is_empty() && own != "default" && own != "kube-system" {
        let expected = "required in event.namespace default for objects without namespace";
        causes.push(Cause::invalid("involvedObject.namespace", &about.into(), expected));
    }
}

pub(super) fn definition(object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let Some(old) = old else { return };
    for path in [&["spec", "group"][..], &["spec", "scope"], &["spec", "names", "plural"], &["spec", "names", "kind"]] {
        if at(old, path) != at(object, path) {
            let value = at(object, path).cloned().unwrap_or(Value::Null);
            causes.push(Cause::invalid(path.join("."), &value, "field is immutable"));
        }
    }
}
