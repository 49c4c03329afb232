//! Services: validation, families, cluster addresses.

use super::meta::map;
use crate::apiserver::api::Settings;
use crate::apiserver::error::{ApiError, Cause};
use crate::apiserver::names;
use crate::apiserver::object::{items, map_mut, set, text};
use crate::apiserver::store::Transaction;
use ipnet::IpNet;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Addresses at the beginning of a range that nobody gets who does not ask for one.
const RESERVED: u32 = 10;
/// Node ports given out.
const NODE_PORTS: std::ops::RangeInclusive<i64> = 30_000..=32_767;

pub(super) fn judge(object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let ports = items(object, &["spec", "ports"]);
    let external = text(object, &["spec", "type"]) == "ExternalName";
    let headless = text(object, &["spec", "clusterIP"]) == "None";
    if ports.is_empty() && !external && !headless {
        causes.push(Cause::required("spec.ports", ""));
    }
    if external && names::subdomain(text(object, &["spec", "externalName"]).trim_end_matches('.')).is_err() {
        causes.push(Cause::required("spec.externalName", "a DNS name"));
    }
    let (mut seen_names, mut seen_ports) = (BTreeSet::new(), BTreeSet::new());
    for (index, port) in ports.iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        let name = text(port, &["name"]);
        if name.is_empty() && ports.len() > 1 {
            causes.push(Cause::required(format!("{field}.name"), ""));
        } else if !name.is_empty() {
            if let Err(expected) = names::dns_label(name) {
                causes.push(Cause::invalid(format!("{field}.name"), &name.into(), expected));
            }
            if !seen_names.insert(name) {
                causes.push(Cause::duplicate(format!("{field}.name"), &name.into()));
            }
        }
        if !seen_ports.insert((text(port, &["protocol"]), port["port"].as_i64())) {
            causes.push(Cause::duplicate(field.as_str(), port));
        }
        match &port["targetPort"] {
            Value::Number(n) if !n.as_i64().is_some_and(|n| (1..=65_535).contains(&n)) => {
                let expected = "must be between 1 and 65535, inclusive";
                causes.push(Cause::invalid(format!("{field}.targetPort"), &port["targetPort"], expected));
            }
            Value::String(s) => {
                if let Err(expected) = names::port_name(s) {
                    causes.push(Cause::invalid(format!("{field}.targetPort"), &port["targetPort"], expected));
                }
            }
            _ => {}
        }
    }
    for (key, value) in map(object, &["spec", "selector"]) {
        if names::label_key(key).is_err() || names::label_value(value.as_str().unwrap_or_default()).is_err() {
            causes.push(Cause::invalid("spec.selector", &json!({key.as_str(): value}), "expected labels"));
        }
    }
    for (index, address) in items(object, &["spec", "clusterIPs"]).iter().enumerate() {
        let text = address.as_str().unwrap_or_default();
        if text != "None" && text.parse::<IpAddr>().is_err() {
            causes.push(Cause::invalid(format!("spec.clusterIPs[{index}]"), address, "must be a valid IP address"));
        }
    }
    if let Some(old) = old {
        let (before, after) = (text(old, &["spec", "clusterIP"]), text(object, &["spec", "clusterIP"]));
        if !before.is_empty() && before != after && !external {
            causes.push(Cause::invalid("spec.clusterIPs[0]", &after.into(), "may not change once set"));
        }
    }
}

/// An update that says nothing of addresses keeps them.
pub(super) fn keep_addresses(old: &Value, new: &mut Value) {
    if text(new, &["spec", "type"]) == "ExternalName" {
        return;
    }
    for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        let missing = new["spec"].get(field).is_none_or(|v| v == "" || v.as_array().is_some_and(Vec::is_empty));
        if let (true, Some(value)) = (missing, old["spec"].get(field)) {
            set(new, &["spec"], field, value.clone());
        }
    }
    // Node ports stay with their port.
    let before = items(old, &["spec", "ports"]).to_vec();
    for port in map_mut(new, &["spec"]).get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let same = before.iter().find(|b| b["port"] == port["port"] && b["protocol"] == port["protocol"]);
        if let (true, Some(number)) =
            (port.get("nodePort").is_none_or(|p| *p == 0), same.and_then(|b| b.get("nodePort")))
        {
            port["nodePort"] = number.clone();
        }
    }
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// Chooses families, cluster addresses and node ports.
pub(super) fn allocate(
    transaction: &Transaction<'_>,
    settings: &Settings,
    object: &mut Value,
    old: Option<&Value>,
) -> Result<(), ApiError> {
    for port in map_mut(object, &["spec"]).get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if port.get("targetPort").is_none() {
            port["targetPort"] = port["port"].clone();
        }
    }
    let name = text(object, &["metadata", "name"]).to_owned();
    let invalid = |cause: Cause| ApiError::invalid("Service", &name, &[cause]);
    let kind = text(object, &["spec", "type"]).to_owned();
    if kind == "ExternalName" {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            map_mut(object, &["spec"]).remove(field);
        }
        return Ok(());
    }
    let families = families(settings, object).map_err(invalid)?;
    let mut used = (BTreeSet::new(), BTreeSet::new());
    for other in transaction.list("services", "") {
        if text(&other.value, &["metadata", "uid"]) == text(object, &["metadata", "uid"]) {
            continue;
        }
        used.0.extend(
            items(&other.value, &["spec", "clusterIPs"]).iter().filter_map(|a| a.as_str()?.parse::<IpAddr>().ok()),
        );
        used.1.extend(items(&other.value, &["spec", "ports"]).iter().filter_map(|p| p["nodePort"].as_i64()));
    }
    let first = text(object, &["spec", "clusterIP"]).to_owned();
    let addresses: Vec<String> = if first == "None" {
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
                choose(settings, family, wanted.get(index), &used.0, index, old.is_some()).map_err(invalid)
            })
            .collect::<Result<_, _>>()?
    };
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        node_ports(object, &mut used.1).map_err(invalid)?;
        map_mut(object, &["spec"]).entry("externalTrafficPolicy").or_insert("Cluster".into());
    }
    let spec = map_mut(object, &["spec"]);
    spec.insert("clusterIP".to_owned(), addresses.first().cloned().unwrap_or_default().into());
    spec.insert("clusterIPs".to_owned(), addresses.into());
    spec.insert("ipFamilies".to_owned(), families.iter().copied().map(Value::from).collect());
    Ok(())
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
        (RESERVED + 1..100_000)
            .map_while(|nth| settings.service_address(index, nth))
            .find(|a| !used.contains(a) && (a.is_ipv6() || *a != last))
    });
    free.map(|a| a.to_string())
        .ok_or_else(|| Cause::invalid(field, &wanted_family.into(), "no free address of this family is left"))
}

fn node_ports(object: &mut Value, used: &mut BTreeSet<i64>) -> Result<(), Cause> {
    let ports = map_mut(object, &["spec"]).get_mut("ports").and_then(Value::as_array_mut);
    for (index, port) in ports.into_iter().flatten().enumerate() {
        let field = format!("spec.ports[{index}].nodePort");
        let number = match port["nodePort"].as_i64().filter(|n| *n != 0) {
            Some(number) if !NODE_PORTS.contains(&number) => {
                let expected = "provided port is not in the valid range: 30000-32767";
                return Err(Cause::invalid(field, &number.into(), expected));
            }
            Some(number) if used.contains(&number) => {
                return Err(Cause::invalid(field, &number.into(), "provided port is already allocated"));
            }
            Some(number) => number,
            None => NODE_PORTS
                .clone()
                .find(|n| !used.contains(n))
                .ok_or_else(|| Cause::invalid(field, &Value::Null, "no free port is left"))?,
        };
        used.insert(number);
        port["nodePort"] = number.into();
    }
    Ok(())
}
