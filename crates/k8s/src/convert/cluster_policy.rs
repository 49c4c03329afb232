//! ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2): the tiers of the cluster's administrator.

use super::address::{is_port_name, prefix};
use super::field::{Path, Read, all, both, each, get, number, object, required, short_list, string};
use super::selector::{namespace_labels, plain, pods_of_namespaces};
use serde_json::{Map, Value};
use weft_model::intent::{
    Covers, EndpointSelector, Peer, PortMatch, PortRule, Protocol, Rule, RuleAction, Spec, Subject, Tier,
};

const LIST_MAX: usize = 25;
const NAME_CHARS_MAX: usize = 100;
const PRIORITY_MAX: u16 = 1000;

/// A ClusterNetworkPolicy's `spec`.
pub(super) fn spec(value: &Value) -> Read<Spec> {
    let path = Path::Root("spec");
    let map = object(path, value, &["tier", "priority", "subject", "ingress", "egress"])?;
    let rules = both(rules(path, map, "ingress", "from"), rules(path, map, "egress", "to"));
    let ((tier, subject), (ingress, egress)) = both(both(tier(path, map), subject(path, map)), rules)?;
    Ok(Spec {
        subject: Subject::Endpoints(subject),
        tier,
        isolates_ingress: false,
        isolates_egress: false,
        ingress,
        egress,
        log: None,
    })
}

fn tier(path: Path<'_>, map: &Map<String, Value>) -> Read<Tier> {
    let priority = required(path, map, "priority", "a number from 0 to 1000; lower comes first")
        .and_then(|value| number(Path::Field(&path, "priority"), value, 0..=PRIORITY_MAX));
    let tier = required(path, map, "tier", "Admin or Baseline").and_then(|value| {
        let at = Path::Field(&path, "tier");
        match string(at, value)? {
            "Admin" => Ok(Tier::Admin as fn(u16) -> Tier),
            "Baseline" => Ok(Tier::Baseline as fn(u16) -> Tier),
            other => at.fail(format!("{other:?}, expected Admin or Baseline")),
        }
    });
    both(tier, priority).map(|(tier, priority)| tier(priority))
}

fn subject(path: Path<'_>, map: &Map<String, Value>) -> Read<EndpointSelector> {
    let value = required(path, map, "subject", "namespaces or pods")?;
    let path = Path::Field(&path, "subject");
    let map = object(path, value, &["namespaces", "pods"])?;
    match (get(map, "namespaces"), get(map, "pods")) {
        (Some(value), None) => namespaces(Path::Field(&path, "namespaces"), value),
        (None, Some(value)) => pods(Path::Field(&path, "pods"), value),
        _ => path.fail("expected exactly one of namespaces, pods"),
    }
}

fn namespaces(path: Path<'_>, value: &Value) -> Read<EndpointSelector> {
    namespace_labels(path, value).map(|requirements| EndpointSelector { namespace: None, requirements })
}

fn pods(path: Path<'_>, value: &Value) -> Read<EndpointSelector> {
    let map = object(path, value, &["namespaceSelector", "podSelector"])?;
    required(path, map, "podSelector", "a selector of pods; {} selects all")?;
    pods_of_namespaces(path, map)
}

fn rules(path: Path<'_>, spec: &Map<String, Value>, direction: &'static str, peers: &'static str) -> Read<Vec<Rule>> {
    let items = short_list(path, spec, direction, LIST_MAX)?.unwrap_or_default();
    let path = Path::Field(&path, direction);
    all(items.iter().enumerate().map(|(n, value)| {
        let place = Path::Index(&Path::Root(direction), n).to_string();
        rule(Path::Index(&path, n), value, peers, place)
    }))
}

fn rule(path: Path<'_>, value: &Value, peers_field: &'static str, place: String) -> Read<Rule> {
    let map = object(path, value, &["name", "action", peers_field, "protocols"])?;
    let named = both(name(path, map), action(path, map));
    let ((_, action), (peers, ports)) = both(named, both(peers(path, map, peers_field), protocols(path, map)))?;
    let has_names = ports.iter().flatten().any(|rule| matches!(rule.port, PortMatch::Name(_)));
    if has_names && peers.iter().any(|peer| !matches!(peer, Peer::Endpoints(_))) {
        return Path::Field(&path, "protocols")
            .fail("destinationNamedPort cannot go with networks or nodes, which have no named ports");
    }
    Ok(Rule { place: place.into(), action, peers: Some(peers), ports })
}

fn name(path: Path<'_>, map: &Map<String, Value>) -> Read<()> {
    let Some(value) = get(map, "name") else { return Ok(()) };
    let path = Path::Field(&path, "name");
    let chars = string(path, value)?.chars().count();
    if chars > NAME_CHARS_MAX {
        return path.fail(format!("{chars} characters, expected at most {NAME_CHARS_MAX}"));
    }
    Ok(())
}

fn action(path: Path<'_>, map: &Map<String, Value>) -> Read<RuleAction> {
    let value = required(path, map, "action", "Accept, Deny or Pass")?;
    let path = Path::Field(&path, "action");
    match string(path, value)? {
        "Accept" => Ok(RuleAction::Allow),
        "Deny" => Ok(RuleAction::Deny),
        "Pass" => Ok(RuleAction::Pass),
        other => path.fail(format!("{other:?}, expected Accept, Deny or Pass")),
    }
}

fn peers(path: Path<'_>, map: &Map<String, Value>, field: &'static str) -> Read<Vec<Peer>> {
    let at = Path::Field(&path, field);
    match short_list(path, map, field, LIST_MAX)? {
        Some(items) if !items.is_empty() => {
            let lists = each(at, items, |path, value| peer(path, value, field == "to"))?;
            Ok(lists.into_iter().flatten().collect())
        }
        _ => at.fail("required: at least one peer"),
    }
}

fn peer(path: Path<'_>, value: &Value, is_egress: bool) -> Read<Vec<Peer>> {
    let known: &[&str] =
        if is_egress { &["namespaces", "pods", "nodes", "networks", "domainNames"] } else { &["namespaces", "pods"] };
    let map = object(path, value, known)?;
    let mut there = known.iter().filter_map(|name| get(map, name).map(|value| (*name, value)));
    let (Some((name, value)), None) = (there.next(), there.next()) else {
        return path.fail(format!("expected exactly one of {}", known.join(", ")));
    };
    let at = Path::Field(&path, name);
    match name {
        "namespaces" => namespaces(at, value).map(|selector| vec![Peer::Endpoints(selector)]),
        "pods" => pods(at, value).map(|selector| vec![Peer::Endpoints(selector)]),
        "nodes" => plain(at, value).map(|selector| vec![Peer::Nodes(selector)]),
        "networks" => match short_list(path, map, name, LIST_MAX)? {
            Some(items) if !items.is_empty() => each(at, items, |at, value| {
                prefix(at, value).map(|cidr| Peer::Cidr { cidr, except: Vec::new(), covers: Covers::ALL })
            }),
            _ => at.fail("expected at least one prefix"),
        },
        _ => at.fail("not supported yet"),
    }
}

fn protocols(path: Path<'_>, map: &Map<String, Value>) -> Read<Option<Vec<PortRule>>> {
    let at = Path::Field(&path, "protocols");
    match short_list(path, map, "protocols", LIST_MAX)? {
        None => Ok(None),
        Some([]) => at.fail("expected at least one protocol, or no such field"),
        Some(items) => each(at, items, protocol).map(|lists| Some(lists.into_iter().flatten().collect())),
    }
}

fn protocol(path: Path<'_>, value: &Value) -> Read<Vec<PortRule>> {
    const FIELDS: [&str; 4] = ["tcp", "udp", "sctp", "destinationNamedPort"];
    let map = object(path, value, &FIELDS)?;
    let mut there = FIELDS.iter().filter_map(|name| get(map, name).map(|value| (*name, value)));
    let (Some((name, value)), None) = (there.next(), there.next()) else {
        return path.fail(format!("expected exactly one of {}", FIELDS.join(", ")));
    };
    let at = Path::Field(&path, name);
    let protocol = match name {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => {
            let name = string(at, value)?;
            if !is_port_name(name) {
                return at.fail(format!("{name:?}, expected a port's name: at most 15 letters, digits and single '-'"));
            }
            // The name does not say of which protocol.
            let rule = |protocol| PortRule { protocol, port: PortMatch::Name(name.to_owned()) };
            return Ok([Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(rule).to_vec());
        }
    };
    let map = object(at, value, &["destinationPort"])?;
    let value = required(at, map, "destinationPort", "number or range")?;
    let port = destination_port(Path::Field(&at, "destinationPort"), value)?;
    Ok(vec![PortRule { protocol, port }])
}

fn destination_port(path: Path<'_>, value: &Value) -> Read<PortMatch> {
    let map = object(path, value, &["number", "range"])?;
    match (get(map, "number"), get(map, "range")) {
        (Some(value), None) => {
            number(Path::Field(&path, "number"), value, 1..=u16::MAX).map(|port| PortMatch::Range(port, port))
        }
        (None, Some(value)) => {
            let path = Path::Field(&path, "range");
            let map = object(path, value, &["start", "end"])?;
            let bound = |name: &'static str| {
                number(Path::Field(&path, name), required(path, map, name, "a port")?, 1..=u16::MAX)
            };
            let (start, end) = both(bound("start"), bound("end"))?;
            if start >= end {
                return Path::Field(&path, "end").fail(format!("{end}, expected more than the start, {start}"));
            }
            Ok(PortMatch::Range(start, end))
        }
        _ => path.fail("expected exactly one of number, range"),
    }
}
