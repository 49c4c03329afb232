//! EndpointSlices.

use super::super::field::{Path, Read, all};
use super::address::external_address;
use super::value::{keep, number, transport};
use crate::convert::problem::{Problem, Problems};
use crate::wire::{WireBackend, WireBackendPort, WireEndpointSlice};
use std::collections::BTreeSet;
use weft_model::intent::{Backend, Backends, NamedPort, ObjectName};

/// Label of an EndpointSlice that names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// What is in an EndpointSlice; `None` if it belongs to no Service, or holds names instead of addresses.
pub fn backends(object: WireEndpointSlice) -> Result<Option<Backends>, Problems> {
    let service = object.metadata.labels.get(SERVICE_NAME).filter(|name| !name.is_empty());
    let Some(service) = service.filter(|_| object.address_type != "FQDN") else { return Ok(None) };
    let wrong = &mut Vec::new();
    let family = match object.address_type.as_str() {
        "IPv4" => Some(true),
        "IPv6" => Some(false),
        // The API server's older versions had none: then the addresses tell.
        "" => None,
        other => {
            wrong.push(Problem::new("addressType", format!("{other:?}, expected IPv4, IPv6 or FQDN")));
            None
        }
    };
    let ports = keep(wrong, ports(&object.ports));
    let root = Path::Root("endpoints");
    let rows = object.endpoints.into_iter().enumerate();
    let endpoints = keep(wrong, all(rows.map(|(n, row)| backend(Path::Index(&root, n), row, family))));
    if let Some(problems) = Problems::new(std::mem::take(wrong)) {
        return Err(problems);
    }
    let namespace = object.metadata.namespace;
    let service = ObjectName { namespace: namespace.clone(), name: service.clone() };
    Ok(Some(Backends { slice: ObjectName { namespace, name: object.metadata.name }, service, ports, endpoints }))
}

/// The ports that have a number: one without stands for all, which no Service can mean.
fn ports(ports: &[WireBackendPort]) -> Read<Vec<NamedPort>> {
    let root = Path::Root("ports");
    let rows = ports.iter().enumerate().filter_map(|(n, port)| Some((n, port, port.port?)));
    let ports = all(rows.map(|(n, port, value)| {
        let path = Path::Index(&root, n);
        let number = number(Path::Field(&path, "port"), value, 1)?;
        let protocol = transport(Path::Field(&path, "protocol"), &port.protocol)?;
        Ok(NamedPort { name: port.name.clone(), protocol, port: number })
    }))?;
    let mut seen = BTreeSet::new();
    match ports.iter().find(|port| !seen.insert((&port.name, port.protocol))) {
        Some(port) => root.fail(format!("two ports with the name {:?} and the same protocol", port.name)),
        None => Ok(ports),
    }
}

fn backend(path: Path<'_>, row: WireBackend, family: Option<bool>) -> Read<Backend> {
    let at = Path::Field(&path, "addresses");
    // The others are other names of the same thing.
    let Some(text) = row.addresses.first() else { return at.fail("required: an address") };
    let at = Path::Index(&at, 0);
    let address = external_address(at, text)?;
    if family.is_some_and(|v4| v4 != address.is_ipv4()) {
        return at.fail(format!("{text}, expected an address of the slice's family"));
    }
    let ready = row.conditions.ready.unwrap_or(true);
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    Ok(Backend {
        address,
        ready,
        serving: row.conditions.serving.unwrap_or(ready),
        terminating: row.conditions.terminating.unwrap_or(false),
        node: some(row.node_name),
        zone: some(row.zone),
        for_zones: row.hints.for_zones.into_iter().map(|zone| zone.name).filter(|name| !name.is_empty()).collect(),
    })
}
