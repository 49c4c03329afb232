//! Addresses of load balancers: pools of them, and what Services ask for.

use super::address::prefix;
use super::field::{Path, Read, boolean, both, each, get, list, object, string};
use super::objects::{address, protocol};
use super::problem::Problems;
use super::selector;
use crate::wire::{WireCustom, WireService};
use ipnet::IpNet;
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use weft_model::intent::{AddressRange, IpPool, LoadBalancerRequest, ObjectName, SharingNamespaces};
use weft_model::selector::Selector;

/// Addresses that a Service asks for, comma separated.
const WANTED: [&str; 2] = ["lbipam.cilium.io/ips", "io.cilium/lb-ipam-ips"];
/// Key under which Services share an address.
const SHARING_KEY: [&str; 2] = ["lbipam.cilium.io/sharing-key", "io.cilium/lb-ipam-sharing-key"];
/// Namespaces with whose Services it is shared: `*`, or comma separated.
const SHARING_NAMESPACES: [&str; 2] =
    ["lbipam.cilium.io/sharing-cross-namespace", "io.cilium/lb-ipam-sharing-cross-namespace"];

pub fn ip_pool(pool: WireCustom) -> Result<IpPool, Problems> {
    let path = Path::Root("spec");
    let known = ["blocks", "serviceSelector", "allowFirstLastIPs", "disabled"];
    let spec = object(path, &pool.spec, &known)?;
    let at = Path::Field(&path, "allowFirstLastIPs");
    let whole = match get(spec, "allowFirstLastIPs").map(|value| string(at, value)).transpose() {
        Ok(None | Some("Yes" | "")) => Ok(true),
        Ok(Some("No")) => Ok(false),
        Ok(Some(other)) => at.fail(format!("{other:?}, expected Yes or No")),
        Err(problems) => Err(problems),
    };
    let items = list(path, spec, "blocks").map(Option::unwrap_or_default);
    let ranges = both(whole, items)
        .and_then(|(whole, items)| each(Path::Field(&path, "blocks"), items, |path, value| range(path, value, whole)));
    let selector = get(spec, "serviceSelector")
        .map_or(Ok(Selector::default()), |value| selector::plain(Path::Field(&path, "serviceSelector"), value));
    let ((ranges, selector), disabled) = both(both(ranges, selector), boolean(path, spec, "disabled"))?;
    Ok(IpPool {
        name: pool.metadata.name,
        created: pool.metadata.creation_timestamp.unwrap_or_default(),
        ranges,
        selector,
        disabled: disabled.unwrap_or(false),
    })
}

fn range(path: Path<'_>, value: &Value, whole: bool) -> Read<AddressRange> {
    let map = object(path, value, &["cidr", "start", "stop"])?;
    let text = |field: &'static str| {
        let value = get(map, field).map(|value| string(Path::Field(&path, field), value)).transpose();
        value.map(|text| text.filter(|text| !text.is_empty()))
    };
    match (text("cidr")?, text("start")?, text("stop")?) {
        (Some(_), None, None) => {
            let at = Path::Field(&path, "cidr");
            let net = prefix(at, get(map, "cidr").unwrap_or(&Value::Null))?;
            usable(at, of_prefix(net, whole))
        }
        (None, Some(start), stop) => {
            let first = address(&Path::Field(&path, "start").to_string(), start)?;
            let at = Path::Field(&path, "stop");
            let last = stop.map_or(Ok(first), |stop| address(&at.to_string(), stop).map_err(Problems::from))?;
            if first.is_ipv4() != last.is_ipv4() {
                return at.fail(format!("{last}, expected an address of the family of start, {first}"));
            }
            if first > last {
                return at.fail(format!("{last}, expected an address not before start, {first}"));
            }
            usable(Path::Field(&path, "start"), AddressRange { first, last })
        }
        _ => path.fail("expected cidr, or start and perhaps stop"),
    }
}

/// The addresses of a prefix; without the first and the last one, where that leaves any.
fn of_prefix(net: IpNet, whole: bool) -> AddressRange {
    let cut = !whole && net.max_prefix_len() - net.prefix_len() > 1;
    match net {
        IpNet::V4(net) => {
            let (first, last) = (u32::from(net.network()), u32::from(net.broadcast()));
            let by = u32::from(cut);
            AddressRange { first: IpAddr::V4((first + by).into()), last: IpAddr::V4((last - by).into()) }
        }
        IpNet::V6(net) => {
            let (first, last) = (u128::from(net.network()), u128::from(net.broadcast()));
            let by = u128::from(cut);
            AddressRange { first: IpAddr::V6((first + by).into()), last: IpAddr::V6((last - by).into()) }
        }
    }
}

const UNUSABLE: [(AddressRange, &str); 7] = [
    (v4([0, 0, 0, 0], [0, 255, 255, 255]), "addresses of 0.0.0.0/8"),
    (v4([127, 0, 0, 0], [127, 255, 255, 255]), "loopback addresses"),
    (v4([169, 254, 0, 0], [169, 254, 255, 255]), "link-local addresses"),
    (v4([224, 0, 0, 0], [255, 255, 255, 255]), "multicast or reserved addresses"),
    (v6(0, 0), "addresses of ::/16"),
    (v6(0xfe80, 0xfebf), "link-local addresses"),
    (v6(0xff00, 0xffff), "multicast addresses"),
];

const fn v4(first: [u8; 4], last: [u8; 4]) -> AddressRange {
    let ([a, b, c, d], [e, f, g, h]) = (first, last);
    AddressRange { first: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), last: IpAddr::V4(Ipv4Addr::new(e, f, g, h)) }
}

/// By the first 16 bits; all others are 0 in the first and 1 in the last.
const fn v6(first: u16, last: u16) -> AddressRange {
    const ONES: u16 = u16::MAX;
    let last = Ipv6Addr::new(last, ONES, ONES, ONES, ONES, ONES, ONES, ONES);
    AddressRange { first: IpAddr::V6(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0)), last: IpAddr::V6(last) }
}

fn usable(path: Path<'_>, range: AddressRange) -> Read<AddressRange> {
    let found = UNUSABLE.iter().find(|(bad, _)| {
        bad.first.is_ipv4() == range.first.is_ipv4() && range.first <= bad.last && bad.first <= range.last
    });
    match found {
        Some((_, what)) => path.fail(format!("holds {what}, expected addresses that are routed to the nodes")),
        None => Ok(range),
    }
}

/// What a Service asks of the pools; `None`: nothing, as it is no load balancer, or another's.
#[must_use]
pub fn load_balancer_request(service: &WireService) -> Option<LoadBalancerRequest> {
    let spec = &service.spec;
    if spec.kind != "LoadBalancer" || !spec.load_balancer_class.is_empty() {
        return None;
    }
    let metadata = &service.metadata;
    let name = ObjectName { namespace: metadata.namespace.clone(), name: metadata.name.clone() };
    let mut labels = metadata.labels.clone();
    labels.insert(LoadBalancerRequest::NAME.to_owned(), name.name.clone());
    labels.insert(LoadBalancerRequest::NAMESPACE.to_owned(), name.namespace.clone());
    let annotation = |keys: [&str; 2]| {
        let text = keys.iter().find_map(|key| metadata.annotations.get(*key)).map(|text| text.trim());
        text.filter(|text| !text.is_empty())
    };
    let parts = |text: &str| -> Vec<String> {
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
    };
    let asked = match annotation(WANTED) {
        Some(text) => parts(text).iter().map(|part| wanted(WANTED[0], part)).collect::<Result<Vec<_>, _>>(),
        None if spec.load_balancer_ip.trim().is_empty() => Ok(Vec::new()),
        None => wanted("spec.loadBalancerIP", spec.load_balancer_ip.trim()).map(|address| vec![address]),
    };
    let (mut wanted, problem) = asked.map_or_else(|problem| (Vec::new(), Some(problem)), |wanted| (wanted, None));
    let mut seen = BTreeSet::new();
    wanted.retain(|address| seen.insert(*address));
    let held = &service.status.load_balancer.ingress;
    let has = |family: &str| spec.ip_families.iter().any(|known| known == family);
    let cluster_ips = spec.cluster_ips.iter().chain([&spec.cluster_ip]).filter_map(|text| text.parse::<IpAddr>().ok());
    let guessed = spec.ip_families.is_empty();
    let (mut ipv4, mut ipv6) = (has("IPv4"), has("IPv6"));
    for address in cluster_ips.filter(|_| guessed) {
        ipv4 |= address.is_ipv4();
        ipv6 |= address.is_ipv6();
    }
    let ports = spec.ports.iter().filter_map(|port| Some((u16::try_from(port.port).ok()?, protocol(&port.protocol)?)));
    Some(LoadBalancerRequest {
        name,
        created: metadata.creation_timestamp.clone().unwrap_or_default(),
        labels,
        ipv4,
        ipv6,
        either: spec.ip_family_policy == "PreferDualStack",
        wanted,
        sharing_key: annotation(SHARING_KEY).map(str::to_owned),
        sharing_namespaces: match annotation(SHARING_NAMESPACES) {
            Some("*") => SharingNamespaces::All,
            text => SharingNamespaces::These(text.map(parts).unwrap_or_default().into_iter().collect()),
        },
        ports: ports.collect(),
        local_pods: (spec.external_traffic_policy == "Local").then(|| spec.selector.clone()),
        held: held.iter().filter_map(|row| row.ip.parse().ok()).collect(),
        problem,
    })
}

fn wanted(field: &str, text: &str) -> Result<IpAddr, String> {
    address(field, text).map_err(|problem| problem.to_string())
}
