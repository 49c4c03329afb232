//! What a service is given: families, cluster addresses, ports at the nodes.

use super::{at_nodes, is_checked, is_headless, kind};
use crate::api::Settings;
use crate::error::{ApiError, Cause};
use crate::object::{at, items, map_mut, number, set, text};
use crate::store::Transaction;
use ipnet::IpNet;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

/// Addresses at the beginning of a range that nobody gets who does not ask for one.
const RESERVED: u32 = 10;
/// The most addresses of a range that are tried.
const TRIED_MAX: u32 = 100_000;
/// Node ports given out.
const NODE_PORTS: RangeInclusive<i64> = 30_000..=32_767;

/// What other services have.
#[derive(Default)]
struct Used {
    addresses: BTreeSet<IpAddr>,
    ports: BTreeSet<(String, i64)>,
}

impl Used {
    fn has(&self, protocol: &str, port: i64) -> bool {
        self.ports.contains(&(protocol.to_owned(), port))
    }

    /// A number that no protocol uses.
    fn free_port(&self) -> Option<i64> {
        let taken: BTreeSet<i64> = self.ports.iter().map(|(_, port)| *port).collect();
        NODE_PORTS.clone().find(|n| !taken.contains(n))
    }
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// Chooses families, cluster addresses and node ports.
pub fn allocate(
    transaction: &Transaction<'_>,
    settings: &Settings,
    object: &mut Value,
    old: Option<&Value>,
) -> Result<(), ApiError> {
    for entry in map_mut(object, &["status", "loadBalancer"])
        .get_mut("ingress")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if entry.get("ip").is_some() && entry.get("ipMode").is_none() {
            entry["ipMode"] = "VIP".into();
        }
    }
    let name = text(object, &["metadata", "name"]).to_owned();
    let invalid = |cause: Cause| ApiError::invalid("Service", &name, &[cause]);
    if kind(object) == "ExternalName" {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            map_mut(object, &["spec"]).remove(field);
        }
        return Ok(());
    }
    // Most writes are of the status, and ask for nothing.
    if old.is_some_and(|old| old["spec"] == object["spec"]) {
        return Ok(());
    }
    let families = families(settings, object).map_err(invalid)?;
    let mut used = used(transaction, object);
    let first = text(object, &["spec", "clusterIP"]).to_owned();
    let addresses: Vec<String> = if is_headless(object) {
        vec![first]
    } else {
        let mut wanted: Vec<String> =
            items(object, &["spec", "clusterIPs"]).iter().filter_map(Value::as_str).map(str::to_owned).collect();
        if wanted.is_empty() && !first.is_empty() {
            wanted.push(first);
        }
        families
            .iter()
            .enumerate()
            .map(|(index, family)| {
                choose(settings, family, wanted.get(index), &used.addresses, index, old.is_some()).map_err(invalid)
            })
            .collect::<Result<_, _>>()?
    };
    if at_nodes(object) {
        let wanted =
            kind(object) == "NodePort" || object["spec"]["allocateLoadBalancerNodePorts"] != Value::Bool(false);
        node_ports(object, &mut used, wanted).map_err(invalid)?;
    }
    if is_checked(object) {
        let before = old.and_then(|o| number(o, &["spec", "healthCheckNodePort"]));
        health_check_port(object, &used, before).map_err(invalid)?;
    }
    let spec = map_mut(object, &["spec"]);
    spec.insert("clusterIP".to_owned(), addresses.first().cloned().unwrap_or_default().into());
    spec.insert("clusterIPs".to_owned(), addresses.into());
    spec.insert("ipFamilies".to_owned(), families.iter().copied().map(Value::from).collect());
    Ok(())
}

fn used(transaction: &Transaction<'_>, object: &Value) -> Used {
    let mut used = Used::default();
    for other in transaction.list("services", "") {
        let other = &other.value;
        if text(other, &["metadata", "uid"]) == text(object, &["metadata", "uid"]) {
            continue;
        }
        let addresses = items(other, &["spec", "clusterIPs"]).iter();
        used.addresses.extend(addresses.filter_map(|a| a.as_str()?.parse::<IpAddr>().ok()));
        for port in items(other, &["spec", "ports"]) {
            used.ports.extend(port["nodePort"].as_i64().map(|n| (text(port, &["protocol"]).to_owned(), n)));
        }
        used.ports.extend(number(other, &["spec", "healthCheckNodePort"]).map(|n| ("TCP".to_owned(), n)));
    }
    used
}

/// The families of a service, by its policy and those of the cluster.
fn families(settings: &Settings, object: &mut Value) -> Result<Vec<&'static str>, Cause> {
    let available: Vec<&'static str> = settings.service_cidrs.iter().map(|c| family(c.addr())).collect();
    let asked: Vec<String> =
        items(object, &["spec", "ipFamilies"]).iter().filter_map(Value::as_str).map(str::to_owned).collect();
    let mut chosen: Vec<&'static str> = Vec::new();
    for (index, asked) in asked.iter().enumerate() {
        match available.iter().find(|a| *a == asked) {
            Some(family) if !chosen.contains(family) => chosen.push(family),
            Some(_) => return Err(Cause::duplicate(format!("spec.ipFamilies[{index}]"), &asked.as_str().into())),
            None => {
                let field = format!("spec.ipFamilies[{index}]");
                return Err(Cause::invalid(field, &asked.as_str().into(), "not configured on this cluster"));
            }
        }
    }
    for address in items(object, &["spec", "clusterIPs"]).iter().filter_map(|a| a.as_str()?.parse::<IpAddr>().ok()) {
        if !chosen.contains(&family(address)) {
            chosen.push(family(address));
        }
    }
    if let Ok(address) = text(object, &["spec", "clusterIP"]).parse::<IpAddr>()
        && chosen.is_empty()
    {
        chosen.push(family(address));
    }
    let policy = text(object, &["spec", "ipFamilyPolicy"]).to_owned();
    let policy = match policy.as_str() {
        "" if chosen.len() > 1 => "RequireDualStack",
        "" => "SingleStack",
        other => other,
    };
    if policy == "RequireDualStack" && available.len() < 2 {
        let expected = "this cluster is not configured for dual-stack services";
        return Err(Cause::invalid("spec.ipFamilyPolicy", &policy.into(), expected));
    }
    if policy == "SingleStack" && chosen.len() > 1 {
        let expected = "may only hold one family when ipFamilyPolicy is SingleStack";
        return Err(Cause::invalid("spec.ipFamilies", &json!(chosen), expected));
    }
    let count = if policy == "SingleStack" { 1 } else { available.len() };
    for family in &available {
        if chosen.len() < count && !chosen.contains(family) {
            chosen.push(family);
        }
    }
    set(object, &["spec"], "ipFamilyPolicy", policy);
    Ok(chosen)
}

fn choose(
    settings: &Settings,
    wanted_family: &str,
    wanted: Option<&String>,
    used: &BTreeSet<IpAddr>,
    index: usize,
    exists: bool,
) -> Result<String, Cause> {
    let range = settings.service_cidrs.iter().find(|c| family(c.addr()) == wanted_family);
    let field = format!("spec.clusterIPs[{index}]");
    if let Some(wanted) = wanted {
        let address: IpAddr = wanted
            .parse()
            .map_err(|_| Cause::invalid(&field, &wanted.as_str().into(), "must be a valid IP address"))?;
        let inside = range.is_some_and(|r| r.contains(&address));
        if !inside && !exists {
            let ranges: Vec<String> = settings.service_cidrs.iter().map(IpNet::to_string).collect();
            let expected = format!("the provided IP is not in the valid range: {}", ranges.join(", "));
            return Err(Cause::invalid(field, &wanted.as_str().into(), expected));
        }
        if used.contains(&address) {
            return Err(Cause::invalid(field, &wanted.as_str().into(), "provided IP is already allocated"));
        }
        return Ok(address.to_string());
    }
    // Address 0 names the range, the last one may be broadcast, the first ones are for those who ask for one.
    let index = settings.service_cidrs.iter().position(|c| family(c.addr()) == wanted_family);
    let free = index.and_then(|index| {
        let last = settings.service_cidrs[index].broadcast();
        (RESERVED + 1..TRIED_MAX)
            .map_while(|nth| settings.service_address(index, nth))
            .find(|a| !used.contains(a) && (a.is_ipv6() || *a != last))
    });
    free.map(|a| a.to_string())
        .ok_or_else(|| Cause::invalid(field, &wanted_family.into(), "no free address of this family is left"))
}

/// Ports at the nodes: those asked for, and (when `all` need one) free ones. A port of several protocols gets one number.
fn node_ports(object: &mut Value, used: &mut Used, all: bool) -> Result<(), Cause> {
    let ports = map_mut(object, &["spec"]).get_mut("ports").and_then(Value::as_array_mut);
    let mut ports: Vec<&mut Value> = ports.into_iter().flatten().collect();
    let mut by_port: BTreeMap<i64, i64> = BTreeMap::new();
    for (index, port) in ports.iter().enumerate() {
        let Some(number) = port["nodePort"].as_i64().filter(|n| *n != 0) else { continue };
        check(&format!("spec.ports[{index}].nodePort"), text(port, &["protocol"]), number, used)?;
        by_port.insert(port["port"].as_i64().unwrap_or(0), number);
    }
    for port in &ports {
        used.ports.extend(port["nodePort"].as_i64().map(|n| (text(port, &["protocol"]).to_owned(), n)));
    }
    if !all {
        return Ok(());
    }
    for (index, port) in ports.iter_mut().enumerate().filter(|(_, p)| p["nodePort"].as_i64().unwrap_or(0) == 0) {
        let (protocol, own) = (text(port, &["protocol"]).to_owned(), port["port"].as_i64().unwrap_or(0));
        let shared = by_port.get(&own).copied().filter(|n| !used.has(&protocol, *n));
        let number = shared.or_else(|| used.free_port()).ok_or_else(|| {
            Cause::invalid(format!("spec.ports[{index}].nodePort"), &Value::Null, "no free port is left")
        })?;
        used.ports.insert((protocol, number));
        by_port.insert(own, number);
        port["nodePort"] = number.into();
    }
    Ok(())
}

fn check(field: &str, protocol: &str, number: i64, used: &Used) -> Result<(), Cause> {
    if !NODE_PORTS.contains(&number) {
        let (from, to) = (NODE_PORTS.start(), NODE_PORTS.end());
        let expected = format!("provided port is not in the valid range: {from}-{to}");
        return Err(Cause::invalid(field, &number.into(), expected));
    }
    if used.has(protocol, number) {
        return Err(Cause::invalid(field, &number.into(), "provided port is already allocated"));
    }
    Ok(())
}

/// The port at which load balancers ask each node. One that the service had before is its own.
fn health_check_port(object: &mut Value, used: &Used, before: Option<i64>) -> Result<(), Cause> {
    const FIELD: &str = "spec.healthCheckNodePort";
    let asked = at(object, &["spec", "healthCheckNodePort"]).and_then(Value::as_i64).filter(|n| *n != 0);
    let number = match asked {
        Some(number) if before == Some(number) => number,
        Some(number) => {
            check(FIELD, "TCP", number, used)?;
            number
        }
        None => used.free_port().ok_or_else(|| Cause::invalid(FIELD, &Value::Null, "no free port is left"))?,
    };
    set(object, &["spec"], "healthCheckNodePort", number);
    Ok(())
}
