//! `toPorts`, as far as no proxy is needed.

use super::super::address::is_port_name;
use super::super::field::{Path, Read, any_object, both, each, get, kind, list, number, object, short_list, string};
use super::scope::{Direction, NOT_YET, Scope};
use crate::convert::problem::{Problem, Problems};
use serde_json::{Map, Value};
use weft_model::intent::{PortMatch, PortRule, Protocol, RuleAction};

/// Most elements of `ports`.
const PORTS_MAX: usize = 40;

const EXTENDED: [(&str, Protocol); 7] = [
    ("VRRP", Protocol::Vrrp),
    ("IGMP", Protocol::Igmp),
    ("GRE", Protocol::Gre),
    ("IPIP", Protocol::IpIp),
    ("IPV6", Protocol::Ipv6),
    ("ESP", Protocol::Esp),
    ("AH", Protocol::Ah),
];

/// The ports that `toPorts` lists; `None`: it is not there, or empty.
pub(super) fn ports(
    scope: Scope<'_>,
    path: Path<'_>,
    map: &Map<String, Value>,
    direction: Direction,
    action: RuleAction,
) -> Read<Option<Vec<PortRule>>> {
    let Some(items) = list(path, map, "toPorts")?.filter(|items| !items.is_empty()) else { return Ok(None) };
    let lists = each(Path::Field(&path, "toPorts"), items, |path, value| {
        let map = any_object(path, value)?;
        let at = Path::Field(&path, "ports");
        let ports = short_list(path, map, "ports", PORTS_MAX).and_then(|ports| match ports {
            Some(ports) if !ports.is_empty() => each(at, ports, |path, value| port(scope, path, value)),
            _ => at.fail("expected at least one port"),
        });
        both(known_fields(path, map, direction, action), ports).map(|((), ports)| ports)
    })?;
    Ok(Some(lists.into_iter().flatten().flatten().collect()))
}

/// Complains about everything that would send the traffic to a proxy.
fn known_fields(path: Path<'_>, map: &Map<String, Value>, direction: Direction, action: RuleAction) -> Read<()> {
    let mut problems: Vec<Problem> = Vec::new();
    for (name, value) in map.iter().filter(|(name, value)| *name != "ports" && !value.is_null()) {
        let at = Path::Field(&path, name);
        match name.as_str() {
            "rules" | "terminatingTLS" | "originatingTLS" | "serverNames" | "listener"
                if action == RuleAction::Deny =>
            {
                problems.push(at.problem("not part of rules that deny, expected ports only"));
            }
            "rules" => match value {
                Value::Object(rules) => {
                    for (kind, _) in rules.iter().filter(|(_, rules)| !rules.is_null()) {
                        let at = Path::Field(&at, kind);
                        problems.push(match kind.as_str() {
                            "http" | "dns" | "kafka" | "l7" | "l7proto" => at.problem(NOT_YET),
                            _ => at.problem("unknown field, expected one of: http, dns"),
                        });
                    }
                }
                other => problems.push(at.problem(format!("expected an object, found {}", kind(other)))),
            },
            "serverNames" if value.as_array().is_some_and(Vec::is_empty) => {}
            "listener" if direction == Direction::Ingress => problems.push(at.problem("expected in egress only")),
            "terminatingTLS" | "originatingTLS" | "serverNames" | "listener" => problems.push(at.problem(NOT_YET)),
            _ => problems.push(at.problem("unknown field, expected one of: ports, rules")),
        }
    }
    Problems::new(problems).map_or(Ok(()), Err)
}

fn port(scope: Scope<'_>, path: Path<'_>, value: &Value) -> Read<Vec<PortRule>> {
    let map = object(path, value, &["port", "endPort", "protocol"])?;
    let port_at = Path::Field(&path, "port");
    let port = get(map, "port").map(|value| string_port(port_at, value)).transpose()?.filter(|port| !port.is_empty());
    let protocols = protocols(scope, Path::Field(&path, "protocol"), get(map, "protocol"))?;
    let end_at = Path::Field(&path, "endPort");
    let end = get(map, "endPort").map(|value| number(end_at, value, 0..=u16::MAX)).transpose()?.filter(|end| *end > 0);
    let has_ports = protocols.iter().all(|protocol| protocol.has_ports());
    let port = match (port, end) {
        (None | Some("0"), None) if !has_ports => PortMatch::Any,
        _ if !has_ports => return port_at.fail("expected none: the protocol has no ports"),
        (None, _) if !scope.settings.extended_protocols || end.is_some() => {
            return port_at.fail("required: a number, a port's name, or 0 for all ports");
        }
        (None | Some("0"), None) => PortMatch::Any,
        (Some("0"), Some(_)) => return end_at.fail("cannot go with port 0, which is all ports"),
        // The end of a range means nothing beside a name.
        (Some(name), _) if is_port_name(name) => PortMatch::Name(name.to_ascii_lowercase()),
        (Some(text), end) => {
            // Only the plain form: no sign, no zeros before it.
            let Some(first) = text.parse::<u16>().ok().filter(|first| first.to_string() == text) else {
                return port_at.fail(format!(
                    "{text:?}, expected a number from 0 to 65535, or a port's name: at most 15 letters, digits and \
                     single '-', with a letter"
                ));
            };
            let last = end.unwrap_or(first);
            if last < first {
                return end_at.fail(format!("{last} is below port {first}"));
            }
            PortMatch::Range(first, last)
        }
        (None, Some(_)) => return end_at.fail("needs a numeric port to start from"),
    };
    Ok(protocols.into_iter().map(|protocol| PortRule { protocol, port: port.clone() }).collect())
}

fn string_port<'v>(path: Path<'_>, value: &'v Value) -> Read<&'v str> {
    match value {
        Value::Number(number) => path.fail(format!("expected a string, such as \"{number}\", found a number")),
        value => string(path, value),
    }
}

fn protocols(scope: Scope<'_>, path: Path<'_>, value: Option<&Value>) -> Read<Vec<Protocol>> {
    let text = value.map_or(Ok(""), |value| string(path, value))?;
    let protocol = match text {
        "" | "ANY" => return Ok(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]),
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        "ICMP" | "ICMPV6" | "ICMPv6" => return path.fail(format!("{text:?}, expected such rules in icmps")),
        other => match EXTENDED.iter().find(|(name, _)| *name == other) {
            Some((_, protocol)) if scope.settings.extended_protocols => *protocol,
            Some(_) => return path.fail(format!("{other:?}, expected only where extended protocols are switched on")),
            None => {
                let extended: String = EXTENDED.iter().map(|(name, _)| format!(", {name}")).collect();
                let more = if scope.settings.extended_protocols { extended.as_str() } else { "" };
                return path.fail(format!("{other:?}, expected one of: TCP, UDP, SCTP, ANY{more}"));
            }
        },
    };
    Ok(vec![protocol])
}
