//! The peers of one element: one kind of them at most.

use super::super::address::{except, prefix_or_address};
use super::super::field::{Path, Read, any_object, each, get, kind, list, object, required, string};
use super::super::selector;
use super::entities;
use super::scope::{Direction, Scope};
use serde_json::{Map, Value};
use weft_model::intent::{CidrGroups, ObjectName, Peer, Services};

const INGRESS: [&str; 5] = ["fromEndpoints", "fromCIDR", "fromCIDRSet", "fromEntities", "fromNodes"];
const EGRESS: [&str; 6] = ["toEndpoints", "toCIDR", "toCIDRSet", "toEntities", "toNodes", "toServices"];

pub(super) const fn fields(direction: Direction) -> &'static [&'static str] {
    match direction {
        Direction::Ingress => &INGRESS,
        Direction::Egress => &EGRESS,
    }
}

/// The peers of an element; `None`: it names none. A list without elements names nobody.
pub(super) fn peers(
    scope: Scope<'_>,
    path: Path<'_>,
    map: &Map<String, Value>,
    direction: Direction,
) -> Read<Option<Vec<Peer>>> {
    let mut there = fields(direction).iter().filter(|name| get(map, name).is_some());
    let Some(field) = there.next() else { return Ok(None) };
    if let Some(other) = there.next() {
        return Path::Field(&path, other)
            .fail(format!("cannot stand beside {field}, expected one kind of peers in an element"));
    }
    let items = list(path, map, field)?.unwrap_or_default();
    let at = Path::Field(&path, field);
    let covers = scope.settings.cidr_covers;
    let peers = match field.trim_start_matches("from").trim_start_matches("to") {
        "Endpoints" => each(at, items, |at, value| selector::peer(at, value, scope.namespace).map(Peer::Endpoints)),
        "CIDR" => each(at, items, |at, value| {
            prefix_or_address(at, value).map(|cidr| Peer::Cidr { cidr, except: Vec::new(), covers })
        }),
        "CIDRSet" => each(at, items, |at, value| cidr_set(scope, at, value)),
        "Entities" => each(at, items, |at, value| entities::entity(at, value).map(Peer::Entity)),
        "Nodes" => each(at, items, |at, value| selector::nodes(at, value).map(Peer::Nodes)),
        _ => each(at, items, |at, value| service(scope, at, value).map(Peer::Services)),
    };
    peers.map(Some)
}

fn cidr_set(scope: Scope<'_>, path: Path<'_>, value: &Value) -> Read<Peer> {
    let map = object(path, value, &["cidr", "cidrGroupRef", "cidrGroupSelector", "except"])?;
    let covers = scope.settings.cidr_covers;
    let group = match (get(map, "cidr"), get(map, "cidrGroupRef"), get(map, "cidrGroupSelector")) {
        (Some(cidr), None, None) => {
            let cidr = prefix_or_address(Path::Field(&path, "cidr"), cidr)?;
            return Ok(Peer::Cidr { cidr, except: except(path, map, cidr)?, covers });
        }
        (None, Some(name), None) => {
            let at = Path::Field(&path, "cidrGroupRef");
            match string(at, name)? {
                "" => return at.fail("expected the name of a CiliumCIDRGroup"),
                name => CidrGroups::Name(name.to_owned()),
            }
        }
        (None, None, Some(labels)) => {
            CidrGroups::Selector(selector::plain(Path::Field(&path, "cidrGroupSelector"), labels)?)
        }
        _ => return path.fail("expected exactly one of cidr, cidrGroupRef, cidrGroupSelector"),
    };
    match list(path, map, "except")? {
        Some(items) if !items.is_empty() => Path::Field(&path, "except").fail("expected beside cidr only"),
        _ => Ok(Peer::CidrGroups { groups: group, covers }),
    }
}

fn service(scope: Scope<'_>, path: Path<'_>, value: &Value) -> Read<Services> {
    let map = object(path, value, &["k8sService", "k8sServiceSelector"])?;
    match (get(map, "k8sService"), get(map, "k8sServiceSelector")) {
        (Some(value), None) => {
            let path = Path::Field(&path, "k8sService");
            let map = object(path, value, &["serviceName", "namespace"])?;
            let name = filled(path, map, "serviceName")?;
            let name = name.ok_or_else(|| Path::Field(&path, "serviceName").problem("required: a Service's name"))?;
            let namespace = filled(path, map, "namespace")?.or(scope.namespace);
            let namespace = namespace
                .ok_or_else(|| Path::Field(&path, "namespace").problem("required: the Service's namespace"))?;
            Ok(Services::Name(ObjectName { namespace: namespace.to_owned(), name: name.to_owned() }))
        }
        (None, Some(value)) => {
            let path = Path::Field(&path, "k8sServiceSelector");
            let map = object(path, value, &["selector", "namespace"])?;
            let selector = required(path, map, "selector", "a selector of the Service's labels")?;
            let at = Path::Field(&path, "selector");
            any_object(at, selector)?;
            let namespace = filled(path, map, "namespace")?.map(str::to_owned);
            Ok(Services::Selector { namespace, selector: selector::plain(at, selector)? })
        }
        _ => path.fail("expected exactly one of k8sService, k8sServiceSelector"),
    }
}

/// A text that is there and not empty.
fn filled<'v>(path: Path<'_>, map: &'v Map<String, Value>, name: &str) -> Read<Option<&'v str>> {
    match get(map, name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
        Some(other) => Path::Field(&path, name).fail(format!("expected a string, found {}", kind(other))),
    }
}
