//! NetworkPolicy v1. A policy is taken whole or not at all.

use super::address::{except, is_port_name, prefix};
use super::field::{Path, Read, all, both, each, get, list, number, object, required, string};
use super::selector::{pod_labels, pods_of_namespaces};
use serde_json::{Map, Value};
use weft_model::intent::{
    Covers, EndpointSelector, Peer, PortMatch, PortRule, Protocol, Rule, RuleAction, Spec, Subject, Tier,
};

/// A NetworkPolicy's `spec`.
pub(super) fn spec(namespace: &str, spec: &Value) -> Read<Spec> {
    let path = Path::Root("spec");
    let empty = Map::new();
    let spec = match spec {
        // The API server fills in an absent spec the same way: all pods, isolated for ingress.
        Value::Null => &empty,
        other => object(path, other, &["podSelector", "policyTypes", "ingress", "egress"])?,
    };
    let at = Path::Field(&path, "podSelector");
    let requirements = get(spec, "podSelector").map_or(Ok(Vec::new()), |value| pod_labels(at, value));
    let rules = both(rules(path, spec, namespace, "ingress", "from"), rules(path, spec, namespace, "egress", "to"));
    let ((requirements, types), (ingress, egress)) = both(both(requirements, types(path, spec)), rules)?;
    // Without types: ingress always, egress if there are egress rules, as the API server's own default has it.
    let (isolates_ingress, isolates_egress) = types.unwrap_or((true, !egress.is_empty()));
    Ok(Spec {
        subject: Subject::Endpoints(EndpointSelector { namespace: Some(namespace.to_owned()), requirements }),
        tier: Tier::Normal,
        isolates_ingress,
        isolates_egress,
        // Rules of a direction that the types leave out are checked, but do not count.
        ingress: if isolates_ingress { ingress } else { Vec::new() },
        egress: if isolates_egress { egress } else { Vec::new() },
        log: None,
    })
}

/// (ingress, egress), or `None` if absent or empty.
fn types(path: Path<'_>, spec: &Map<String, Value>) -> Read<Option<(bool, bool)>> {
    let Some(items) = list(path, spec, "policyTypes")?.filter(|items| !items.is_empty()) else { return Ok(None) };
    let path = Path::Field(&path, "policyTypes");
    let named = each(path, items, |path, item| match string(path, item)? {
        "Ingress" => Ok((true, false)),
        "Egress" => Ok((false, true)),
        other => path.fail(format!("{other:?}, expected Ingress or Egress")),
    })?;
    Ok(Some(named.into_iter().fold((false, false), |found, one| (found.0 | one.0, found.1 | one.1))))
}

fn rules(
    path: Path<'_>,
    spec: &Map<String, Value>,
    namespace: &str,
    direction: &'static str,
    peers: &'static str,
) -> Read<Vec<Rule>> {
    let items = list(path, spec, direction)?.unwrap_or_default();
    let path = Path::Field(&path, direction);
    all(items.iter().enumerate().map(|(n, item)| {
        let place = Path::Index(&Path::Root(direction), n).to_string();
        let path = Path::Index(&path, n);
        let map = object(path, item, &[peers, "ports"])?;
        let (peers, ports) =
            both(part(path, map, peers, |path, value| peer(path, value, namespace)), part(path, map, "ports", port))?;
        Ok(Rule { place: place.into(), action: RuleAction::Allow, peers, ports })
    }))
}

/// Elements of an optional list; an empty list means the same as none: no restriction.
fn part<T>(
    path: Path<'_>,
    map: &Map<String, Value>,
    name: &'static str,
    read: impl Fn(Path<'_>, &Value) -> Read<T>,
) -> Read<Option<Vec<T>>> {
    let Some(items) = list(path, map, name)?.filter(|items| !items.is_empty()) else { return Ok(None) };
    each(Path::Field(&path, name), items, read).map(Some)
}

fn peer(path: Path<'_>, value: &Value, namespace: &str) -> Read<Peer> {
    let map = object(path, value, &["podSelector", "namespaceSelector", "ipBlock"])?;
    let has_selector = get(map, "podSelector").is_some() || get(map, "namespaceSelector").is_some();
    match (get(map, "ipBlock"), has_selector) {
        (None, false) => path.fail("expected podSelector, namespaceSelector or ipBlock"),
        (Some(block), false) => ip_block(Path::Field(&path, "ipBlock"), block),
        (Some(_), true) => Path::Field(&path, "ipBlock")
            .fail("cannot stand beside podSelector or namespaceSelector, expected an element of its own"),
        (None, true) => {
            let mut selector = pods_of_namespaces(path, map)?;
            if get(map, "namespaceSelector").is_none() {
                selector.namespace = Some(namespace.to_owned());
            }
            Ok(Peer::Endpoints(selector))
        }
    }
}

fn ip_block(path: Path<'_>, value: &Value) -> Read<Peer> {
    let map = object(path, value, &["cidr", "except"])?;
    let cidr = required(path, map, "cidr", "a prefix such as 192.0.2.0/24")?;
    let cidr = prefix(Path::Field(&path, "cidr"), cidr)?;
    let except = except(path, map, cidr)?;
    if let Some(n) = except.iter().position(|inner| *inner == cidr) {
        let at = Path::Field(&path, "except");
        return Path::Index(&at, n).fail(format!("{cidr} is all of {cidr}, expected a part of it"));
    }
    Ok(Peer::Cidr { cidr, except, covers: Covers::ALL })
}

fn port(path: Path<'_>, value: &Value) -> Read<PortRule> {
    let map = object(path, value, &["protocol", "port", "endPort"])?;
    let at = Path::Field(&path, "protocol");
    let protocol = match get(map, "protocol").map(|value| string(at, value)).transpose()? {
        None | Some("TCP") => Protocol::Tcp,
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        Some(other) => return at.fail(format!("{other:?}, expected TCP, UDP or SCTP")),
    };
    let at = Path::Field(&path, "port");
    let end_at = Path::Field(&path, "endPort");
    let end = get(map, "endPort").map(|value| number(end_at, value, 1..=u16::MAX)).transpose()?;
    let port = match (get(map, "port"), end) {
        (None, None) => PortMatch::Any,
        (None, Some(_)) => return end_at.fail("needs a numeric port to start from"),
        (Some(Value::String(name)), None) => PortMatch::Name(port_name(at, name)?),
        (Some(Value::String(_)), Some(_)) => return end_at.fail("cannot go with a named port"),
        (Some(first), end) => {
            let first = number(at, first, 1..=u16::MAX)?;
            let last = end.unwrap_or(first);
            if last < first {
                return end_at.fail(format!("{last} is below port {first}"));
            }
            PortMatch::Range(first, last)
        }
    };
    Ok(PortRule { protocol, port })
}

fn port_name(path: Path<'_>, name: &str) -> Read<String> {
    if is_port_name(name) && !name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Ok(name.to_owned());
    }
    path.fail(format!(
        "{name:?}, expected a number, or a port's name: at most 15 lower-case letters, digits and single '-', with a letter"
    ))
}
