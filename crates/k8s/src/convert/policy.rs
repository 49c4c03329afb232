//! NetworkPolicy v1. A policy is taken whole or not at all.

use super::Problem;
use super::field::{Path, get, kind, list, object, string};
use ipnet::IpNet;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use weft_model::intent::{ObjectName, Peer, Policy, PortMatch, PortRule, Protocol, Rule};
use weft_model::selector::{Requirement, Selector};

/// A NetworkPolicy's `spec` under its name.
///
/// # Errors
/// The first field that cannot be used.
pub fn policy(name: ObjectName, uid: String, resource_version: String, spec: &Value) -> Result<Policy, Problem> {
    let path = Path::Root("spec");
    let empty = Map::new();
    let spec = match spec {
        // The API server fills in an absent spec the same way: all pods, isolated for ingress.
        Value::Null => &empty,
        other => object(path, other, &["podSelector", "policyTypes", "ingress", "egress"])?,
    };
    let pod_selector = selector(Path::Field(&path, "podSelector"), get(spec, "podSelector"))?;
    let ingress = rules(path, spec, "ingress", "from")?;
    let egress = rules(path, spec, "egress", "to")?;
    let types = types(path, spec)?;
    // Without types: ingress always, egress if there are egress rules, as the API server's own default has it.
    let (has_ingress, has_egress) = types.unwrap_or((true, egress.as_ref().is_some_and(|rules| !rules.is_empty())));
    Ok(Policy {
        kind: "NetworkPolicy",
        name,
        uid,
        resource_version,
        pod_selector,
        ingress: has_ingress.then(|| ingress.unwrap_or_default()),
        egress: has_egress.then(|| egress.unwrap_or_default()),
    })
}

/// (ingress, egress), or `None` if absent or empty.
fn types(path: Path<'_>, spec: &Map<String, Value>) -> Result<Option<(bool, bool)>, Problem> {
    let path = Path::Field(&path, "policyTypes");
    let Some(items) = list(Path::Root("spec"), spec, "policyTypes")?.filter(|items| !items.is_empty()) else {
        return Ok(None);
    };
    let mut found = (false, false);
    for (n, item) in items.iter().enumerate() {
        let path = Path::Index(&path, n);
        match string(path, item)? {
            "Ingress" => found.0 = true,
            "Egress" => found.1 = true,
            other => return Err(path.problem(format!("{other:?}, expected Ingress or Egress"))),
        }
    }
    Ok(Some(found))
}

fn rules(
    path: Path<'_>,
    spec: &Map<String, Value>,
    direction: &'static str,
    peers: &'static str,
) -> Result<Option<Vec<Rule>>, Problem> {
    let Some(items) = list(path, spec, direction)? else { return Ok(None) };
    let path = Path::Field(&path, direction);
    let each = items.iter().enumerate().map(|(n, item)| rule(Path::Index(&path, n), item, peers));
    each.collect::<Result<_, _>>().map(Some)
}

fn rule(path: Path<'_>, value: &Value, peers: &'static str) -> Result<Rule, Problem> {
    let map = object(path, value, &[peers, "ports"])?;
    Ok(Rule { peers: each(path, map, peers, peer)?, ports: each(path, map, "ports", port)? })
}

/// Elements of an optional list; an empty list means the same as none: no restriction.
fn each<T>(
    path: Path<'_>,
    map: &Map<String, Value>,
    name: &'static str,
    read: impl Fn(Path<'_>, &Value) -> Result<T, Problem>,
) -> Result<Option<Vec<T>>, Problem> {
    let Some(items) = list(path, map, name)?.filter(|items| !items.is_empty()) else { return Ok(None) };
    let path = Path::Field(&path, name);
    let read = items.iter().enumerate().map(|(n, item)| read(Path::Index(&path, n), item));
    read.collect::<Result<_, _>>().map(Some)
}

fn peer(path: Path<'_>, value: &Value) -> Result<Peer, Problem> {
    let map = object(path, value, &["podSelector", "namespaceSelector", "ipBlock"])?;
    let pods = get(map, "podSelector");
    let namespaces = get(map, "namespaceSelector");
    match (get(map, "ipBlock"), pods, namespaces) {
        (None, None, None) => Err(path.problem("expected podSelector, namespaceSelector or ipBlock")),
        (Some(block), None, None) => ip_block(Path::Field(&path, "ipBlock"), block),
        (Some(_), ..) => {
            let path = Path::Field(&path, "ipBlock");
            Err(path.problem("cannot stand beside podSelector or namespaceSelector, expected an element of its own"))
        }
        (None, pods, namespaces) => {
            let pods = selector(Path::Field(&path, "podSelector"), pods)?;
            let at = Path::Field(&path, "namespaceSelector");
            let namespaces = namespaces.map(|value| selector(at, Some(value))).transpose()?;
            Ok(Peer::Pods { namespaces, pods })
        }
    }
}

fn ip_block(path: Path<'_>, value: &Value) -> Result<Peer, Problem> {
    let map = object(path, value, &["cidr", "except"])?;
    let at = Path::Field(&path, "cidr");
    let cidr = prefix(at, get(map, "cidr").ok_or_else(|| at.problem("required: a prefix such as 192.0.2.0/24"))?)?;
    let mut except = Vec::new();
    let at = Path::Field(&path, "except");
    for (n, item) in list(path, map, "except")?.unwrap_or_default().iter().enumerate() {
        let at = Path::Index(&at, n);
        let inner = prefix(at, item)?;
        if !cidr.contains(&inner) {
            return Err(at.problem(format!("{inner} is not inside {cidr}")));
        }
        if inner == cidr {
            return Err(at.problem(format!("{inner} is all of {cidr}, expected a part of it")));
        }
        except.push(inner);
    }
    Ok(Peer::Block { cidr, except })
}

fn prefix(path: Path<'_>, value: &Value) -> Result<IpNet, Problem> {
    let text = string(path, value)?;
    let net: IpNet = text
        .parse()
        .map_err(|_| path.problem(format!("{text:?}, expected a prefix such as 192.0.2.0/24 or 2001:db8::/32")))?;
    // Bits behind the prefix do not count, as in the API server.
    let net = net.trunc();
    if let IpNet::V6(v6) = net
        && v6.prefix_len() >= 96
        && v6.addr().to_ipv4_mapped().is_some()
    {
        return Err(path.problem(format!("{text:?} is made of IPv4 addresses in IPv6 form, expected an IPv4 prefix")));
    }
    Ok(net)
}

fn port(path: Path<'_>, value: &Value) -> Result<PortRule, Problem> {
    let map = object(path, value, &["protocol", "port", "endPort"])?;
    let at = Path::Field(&path, "protocol");
    let protocol = match get(map, "protocol").map(|value| string(at, value)).transpose()? {
        None | Some("TCP") => Protocol::Tcp,
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        Some(other) => return Err(at.problem(format!("{other:?}, expected TCP, UDP or SCTP"))),
    };
    let at = Path::Field(&path, "port");
    let end_at = Path::Field(&path, "endPort");
    let end = get(map, "endPort").map(|value| number(end_at, value)).transpose()?;
    let port = match (get(map, "port"), end) {
        (None, None) => PortMatch::Any,
        (None, Some(_)) => return Err(end_at.problem("needs a numeric port to start from")),
        (Some(Value::String(name)), None) => PortMatch::Name(port_name(at, name)?),
        (Some(Value::String(_)), Some(_)) => return Err(end_at.problem("cannot go with a named port")),
        (Some(first), end) => {
            let first = number(at, first)?;
            let last = end.unwrap_or(first);
            if last < first {
                return Err(end_at.problem(format!("{last} is below port {first}")));
            }
            PortMatch::Range(first, last)
        }
    };
    Ok(PortRule { protocol, port })
}

fn number(path: Path<'_>, value: &Value) -> Result<u16, Problem> {
    let expected = || path.problem(format!("{value}, expected a number from 1 to 65535"));
    match value {
        Value::Number(number) => {
            let number = number.as_u64().and_then(|number| u16::try_from(number).ok());
            number.filter(|number| *number > 0).ok_or_else(expected)
        }
        other => Err(path.problem(format!("expected a number from 1 to 65535, found {}", kind(other)))),
    }
}

/// RFC 6335: at most 15 of a-z, 0-9 and `-`, at least one letter, no `-` at an end or beside another.
fn port_name(path: Path<'_>, name: &str) -> Result<String, Problem> {
    let fits = (1..=15).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && name.bytes().any(|byte| byte.is_ascii_lowercase())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--");
    if fits {
        return Ok(name.to_owned());
    }
    Err(path.problem(format!(
        "{name:?}, expected a number, or a port's name: at most 15 lower-case letters, digits and single '-', with a letter"
    )))
}

/// A label selector; absent selects everything.
fn selector(path: Path<'_>, value: Option<&Value>) -> Result<Selector, Problem> {
    let Some(value) = value else { return Ok(Selector::default()) };
    let map = object(path, value, &["matchLabels", "matchExpressions"])?;
    let mut requirements = Vec::new();
    let at = Path::Field(&path, "matchLabels");
    match get(map, "matchLabels") {
        None => {}
        Some(Value::Object(labels)) => {
            for (key, value) in labels {
                let at = Path::Field(&at, key);
                let value = string(at, value)?;
                requirements.push(Requirement::In(label_key(at, key)?, BTreeSet::from([value.to_owned()])));
            }
        }
        Some(other) => return Err(at.problem(format!("expected an object, found {}", kind(other)))),
    }
    let at = Path::Field(&path, "matchExpressions");
    for (n, item) in list(path, map, "matchExpressions")?.unwrap_or_default().iter().enumerate() {
        requirements.push(requirement(Path::Index(&at, n), item)?);
    }
    Ok(Selector { requirements })
}

fn requirement(path: Path<'_>, value: &Value) -> Result<Requirement, Problem> {
    let map = object(path, value, &["key", "operator", "values"])?;
    let at = Path::Field(&path, "key");
    let key = string(at, get(map, "key").ok_or_else(|| at.problem("required: a label's key"))?)?;
    let key = label_key(at, key)?;
    let values_at = Path::Field(&path, "values");
    let mut values = BTreeSet::new();
    for (n, item) in list(path, map, "values")?.unwrap_or_default().iter().enumerate() {
        values.insert(string(Path::Index(&values_at, n), item)?.to_owned());
    }
    let at = Path::Field(&path, "operator");
    let expected = "expected In, NotIn, Exists or DoesNotExist";
    let operator = string(at, get(map, "operator").ok_or_else(|| at.problem(format!("required: {expected}")))?)?;
    match (operator, values.is_empty()) {
        ("In", false) => Ok(Requirement::In(key, values)),
        ("NotIn", false) => Ok(Requirement::NotIn(key, values)),
        ("In" | "NotIn", true) => Err(values_at.problem(format!("expected at least one value for {operator}"))),
        ("Exists", true) => Ok(Requirement::Exists(key)),
        ("DoesNotExist", true) => Ok(Requirement::DoesNotExist(key)),
        ("Exists" | "DoesNotExist", false) => Err(values_at.problem(format!("expected no values for {operator}"))),
        (other, _) => Err(at.problem(format!("{other:?}, {expected}"))),
    }
}

fn label_key(path: Path<'_>, key: &str) -> Result<String, Problem> {
    // A prefix of at most 253, a slash, a name of at most 63.
    if key.is_empty() || key.len() > 317 {
        return Err(path.problem(format!("expected a label's key of 1 to 317 characters, found {}", key.len())));
    }
    Ok(key.to_owned())
}
