//! CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy, without what needs a proxy.

mod entities;
mod icmp;
mod peers;
mod ports;
mod scope;

use super::field::{Path, Read, all, any_object, boolean, both, each, get, kind, list, object, string};
use super::problem::{Problem, Problems, Settings};
use super::selector;
use crate::convert::cilium::scope::{Direction, NOT_YET, Scope};
use crate::wire::WirePolicy;
use serde_json::{Map, Value};
use std::sync::Arc;
use weft_model::intent::{Peer, Rule, RuleAction, Spec, Subject, Tier};

/// Longest `log.value`.
const LOG_CHARS_MAX: usize = 32;

/// The parts of a policy: `spec`, then `specs`.
pub(super) fn specs(namespace: Option<&str>, policy: &WirePolicy, settings: Settings) -> Read<Vec<Spec>> {
    let scope = Scope { namespace, settings };
    let one = match &policy.spec {
        Value::Null => Ok(None),
        value => spec(scope, Path::Root("spec"), "", value).map(Some),
    };
    let several = match &policy.specs {
        Value::Null => Ok(Vec::new()),
        Value::Array(items) => all(items.iter().enumerate().map(|(n, value)| {
            let path = Path::Index(&Path::Root("specs"), n);
            spec(scope, path, &format!("{path}."), value)
        })),
        other => Path::Root("specs").fail(format!("expected a list, found {}", kind(other))),
    };
    let (one, several) = both(one, several)?;
    let specs: Vec<Spec> = one.into_iter().chain(several).collect();
    if specs.is_empty() { Path::Root("spec").fail("required: spec or specs") } else { Ok(specs) }
}

/// One part; `prefix` goes before the places of its rules.
fn spec(scope: Scope<'_>, path: Path<'_>, prefix: &str, value: &Value) -> Read<Spec> {
    const FIELDS: [&str; 10] = [
        "endpointSelector",
        "nodeSelector",
        "ingress",
        "ingressDeny",
        "egress",
        "egressDeny",
        "enableDefaultDeny",
        "labels",
        "description",
        "log",
    ];
    let map = object(path, value, &FIELDS)?;
    let lists = |direction, allow: &'static str, deny: &'static str| {
        let rules = |name, action| rules(scope, path, prefix, map, name, direction, action);
        both(rules(allow, RuleAction::Allow), rules(deny, RuleAction::Deny)).map(|(mut allowed, denied)| {
            allowed.extend(denied);
            allowed
        })
    };
    let rules =
        both(lists(Direction::Ingress, "ingress", "ingressDeny"), lists(Direction::Egress, "egress", "egressDeny"));
    let about = both(both(subject(scope, path, map), default_deny(path, map)), about(path, map));
    let (((subject, isolates), log), (ingress, egress)) = both(about, rules)?;
    if ["ingress", "ingressDeny", "egress", "egressDeny"].iter().all(|name| get(map, name).is_none()) {
        return path.fail("expected at least one of ingress, ingressDeny, egress, egressDeny");
    }
    Ok(Spec {
        subject,
        tier: Tier::Normal,
        // A list without elements applies to nothing, as if it were not there.
        isolates_ingress: isolates.0.unwrap_or(!ingress.is_empty()),
        isolates_egress: isolates.1.unwrap_or(!egress.is_empty()),
        ingress,
        egress,
        log,
    })
}

fn subject(scope: Scope<'_>, path: Path<'_>, map: &Map<String, Value>) -> Read<Subject> {
    let node_at = Path::Field(&path, "nodeSelector");
    match (get(map, "endpointSelector"), get(map, "nodeSelector")) {
        (Some(value), None) => {
            selector::subject(Path::Field(&path, "endpointSelector"), value, scope.namespace).map(Subject::Endpoints)
        }
        (None, Some(_)) if scope.namespace.is_some() => {
            node_at.fail("expected only in a CiliumClusterwideNetworkPolicy: nodes have no namespace")
        }
        (None, Some(_)) if !scope.settings.host_firewall => {
            node_at.fail("expected only where the host firewall is switched on")
        }
        (None, Some(value)) => selector::nodes(node_at, value).map(Subject::Nodes),
        (Some(_), Some(_)) => node_at.fail("cannot stand beside endpointSelector, expected one of them"),
        (None, None) => path.fail("expected an endpointSelector (or, for the cluster, a nodeSelector)"),
    }
}

/// What `enableDefaultDeny` says of ingress and of egress.
fn default_deny(path: Path<'_>, map: &Map<String, Value>) -> Read<(Option<bool>, Option<bool>)> {
    let Some(value) = get(map, "enableDefaultDeny") else { return Ok((None, None)) };
    let path = Path::Field(&path, "enableDefaultDeny");
    let map = object(path, value, &["ingress", "egress"])?;
    both(boolean(path, map, "ingress"), boolean(path, map, "egress"))
}

/// The fields for people, of which only `log` has an effect.
fn about(path: Path<'_>, map: &Map<String, Value>) -> Read<Option<Arc<str>>> {
    let description =
        get(map, "description").map_or(Ok(()), |value| string(Path::Field(&path, "description"), value).map(|_| ()));
    let labels = list(path, map, "labels").and_then(|labels| {
        each(Path::Field(&path, "labels"), labels.unwrap_or_default(), |path, label| {
            let map = object(path, label, &["key", "value", "source", "cidr"])?;
            all(map
                .iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(name, value)| string(Path::Field(&path, name), value).map(|_| ())))
        })
    });
    both(both(description, labels), log(path, map)).map(|(_, log)| log)
}

fn log(path: Path<'_>, map: &Map<String, Value>) -> Read<Option<Arc<str>>> {
    let Some(value) = get(map, "log") else { return Ok(None) };
    let path = Path::Field(&path, "log");
    let map = object(path, value, &["value"])?;
    let Some(value) = get(map, "value") else { return Ok(None) };
    let at = Path::Field(&path, "value");
    let text = string(at, value)?;
    let chars = text.chars().count();
    if chars > LOG_CHARS_MAX {
        return at.fail(format!("{chars} characters, expected at most {LOG_CHARS_MAX}"));
    }
    if text.chars().any(|c| !(c == ' ' || c.is_ascii_graphic() || !c.is_ascii() && c.is_alphanumeric())) {
        return at.fail(format!("{text:?}, expected printable characters only"));
    }
    Ok((!text.is_empty()).then(|| text.into()))
}

fn rules(
    scope: Scope<'_>,
    path: Path<'_>,
    prefix: &str,
    map: &Map<String, Value>,
    name: &'static str,
    direction: Direction,
    action: RuleAction,
) -> Read<Vec<Rule>> {
    let items = list(path, map, name)?.unwrap_or_default();
    let path = Path::Field(&path, name);
    all(items.iter().enumerate().map(|(n, value)| {
        let place = format!("{prefix}{name}[{n}]");
        rule(scope, Path::Index(&path, n), value, direction, action, place.into())
    }))
}

fn rule(
    scope: Scope<'_>,
    path: Path<'_>,
    value: &Value,
    direction: Direction,
    action: RuleAction,
    place: Arc<str>,
) -> Read<Rule> {
    let map = any_object(path, value)?;
    let known = known_fields(path, map, direction, action);
    let peers = peers::peers(scope, path, map, direction);
    let ports = ports::ports(scope, path, map, direction, action);
    let icmps = icmp::ports(path, map);
    let ((), (mut peers, (ports, icmps))) = both(known, both(peers, both(ports, icmps)))?;
    let ports = match (ports, icmps) {
        (Some(_), Some(_)) => {
            return Path::Field(&path, "icmps").fail("cannot stand beside toPorts, expected an element of its own");
        }
        (ports, icmps) => ports.or(icmps),
    };
    if peers.is_none() && ports.is_none() {
        // An element that says nothing allows and denies nothing.
        peers = Some(Vec::<Peer>::new());
    }
    Ok(Rule { place, action, peers, ports })
}

/// Complains about fields that a rule cannot have, or not yet.
fn known_fields(path: Path<'_>, map: &Map<String, Value>, direction: Direction, action: RuleAction) -> Read<()> {
    let mut known: Vec<&str> = peers::fields(direction).to_vec();
    known.extend(["toPorts", "icmps"]);
    let problem = |name: &str, value: &Value| -> Option<Problem> {
        let at = Path::Field(&path, name);
        if known.contains(&name) {
            return None;
        }
        match (name, direction) {
            _ if value.is_null() => None,
            ("fromRequires", Direction::Ingress) | ("toRequires", Direction::Egress) => {
                Some(at.problem("no longer part of the API, expected its requirements in the selectors of the peers"))
            }
            ("fromGroups", Direction::Ingress) | ("toGroups", Direction::Egress) => Some(at.problem(NOT_YET)),
            ("toFQDNs", Direction::Egress) if action == RuleAction::Deny => {
                Some(at.problem("not part of rules that deny"))
            }
            ("toFQDNs", Direction::Egress) => Some(at.problem(NOT_YET)),
            ("authentication", _) if action == RuleAction::Deny => Some(at.problem("not part of rules that deny")),
            ("authentication", _) => match value {
                Value::Object(map) if map.len() == 1 => match map.get("mode") {
                    Some(Value::String(mode)) if mode == "disabled" => None,
                    _ => Some(Path::Field(&at, "mode").problem(format!("{NOT_YET}, expected disabled"))),
                },
                _ => Some(at.problem("expected mode, and nothing else")),
            },
            _ => Some(at.problem(format!("unknown field, expected one of: {}", known.join(", ")))),
        }
    };
    let problems = map.iter().filter_map(|(name, value)| problem(name, value)).collect();
    Problems::new(problems).map_or(Ok(()), Err)
}
