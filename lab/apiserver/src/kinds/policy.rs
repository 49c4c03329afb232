//! Validation of NetworkPolicy.

use super::meta::judge_selector;
use crate::error::Cause;
use crate::object::{at, items, text};
use ipnet::IpNet;
use serde_json::Value;
use std::net::IpAddr;
use weft_lab_config::names;

pub(super) fn judge(object: &Value, causes: &mut Vec<Cause>) {
    if let Some(selector) = at(object, &["spec", "podSelector"]) {
        judge_selector(selector, "spec.podSelector", causes);
    }
    let types = items(object, &["spec", "policyTypes"]);
    if types.len() > 2 {
        let expected = "may not specify more than two policyTypes";
        causes.push(Cause::invalid("spec.policyTypes", &object["spec"]["policyTypes"], expected));
    }
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (index, rule) in items(object, &["spec", direction]).iter().enumerate() {
            let path = format!("spec.{direction}[{index}]");
            for (number, port) in items(rule, &["ports"]).iter().enumerate() {
                judge_port(port, &format!("{path}.ports[{number}]"), causes);
            }
            for (number, peer) in items(rule, &[peers]).iter().enumerate() {
                judge_peer(peer, &format!("{path}.{peers}[{number}]"), causes);
            }
        }
    }
}

fn judge_port(port: &Value, path: &str, causes: &mut Vec<Cause>) {
    let end = port.get("endPort");
    match port.get("port") {
        Some(Value::Number(n)) => {
            let number = n.as_i64().unwrap_or(0);
            if !(1..=65_535).contains(&number) {
                let expected = "must be between 1 and 65535, inclusive";
                causes.push(Cause::invalid(format!("{path}.port"), &port["port"], expected));
            } else if let Some(last) = end.and_then(Value::as_i64)
                && last < number
            {
                let expected = "must be greater than or equal to `port`";
                causes.push(Cause::invalid(format!("{path}.endPort"), &port["endPort"], expected));
            }
        }
        Some(Value::String(name)) => {
            if let Err(expected) = names::port_name(name) {
                causes.push(Cause::invalid(format!("{path}.port"), &port["port"], expected));
            }
            if let Some(end) = end {
                let expected = "may not be specified when `port` is non-numeric";
                causes.push(Cause::invalid(format!("{path}.endPort"), end, expected));
            }
        }
        _ => {
            if let Some(end) = end {
                let expected = "must be specified only when `port` is given";
                causes.push(Cause::invalid(format!("{path}.endPort"), end, expected));
            }
        }
    }
}

fn judge_peer(peer: &Value, path: &str, causes: &mut Vec<Cause>) {
    let mut given = 0;
    for field in ["podSelector", "namespaceSelector"] {
        if let Some(selector) = peer.get(field) {
            given += 1;
            judge_selector(selector, &format!("{path}.{field}"), causes);
        }
    }
    if let Some(block) = peer.get("ipBlock") {
        if given > 0 {
            causes.push(Cause::forbidden(path, "may not specify both ipBlock and another peer"));
        }
        judge_block(block, &format!("{path}.ipBlock"), causes);
    } else if given == 0 {
        causes.push(Cause::required(path, "must specify a peer: podSelector, namespaceSelector or ipBlock"));
    }
}

fn judge_block(block: &Value, path: &str, causes: &mut Vec<Cause>) {
    let cidr = match network(text(block, &["cidr"])) {
        Ok(cidr) => cidr,
        Err(expected) => {
            causes.push(Cause::invalid(format!("{path}.cidr"), &block["cidr"], expected));
            return;
        }
    };
    for (index, except) in items(block, &["except"]).iter().enumerate() {
        let field = format!("{path}.except[{index}]");
        match network(except.as_str().unwrap_or_default()) {
            Err(expected) => causes.push(Cause::invalid(field, except, expected)),
            Ok(inner) if cidr.prefix_len() >= inner.prefix_len() || !cidr.contains(&inner.network()) => {
                let expected = format!("must be a strict subset of `cidr` {cidr}");
                causes.push(Cause::invalid(field, except, expected));
            }
            Ok(_) => {}
        }
    }
}

/// An address range in CIDR notation, without leading zeros. Host bits are ignored, as Kubernetes does.
fn network(text: &str) -> Result<IpNet, &'static str> {
    let expected = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    let (address, prefix) = text.split_once('/').ok_or(expected)?;
    let address: IpAddr = address.parse().map_err(|_| expected)?;
    if prefix.is_empty() || !prefix.bytes().all(|b| b.is_ascii_digit()) || (prefix.len() > 1 && prefix.starts_with('0'))
    {
        return Err(expected);
    }
    let network = IpNet::new(address, prefix.parse().map_err(|_| expected)?).map_err(|_| expected)?;
    Ok(network.trunc())
}
