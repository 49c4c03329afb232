//! CiliumLocalRedirectPolicy: traffic to a frontend goes to pods of the client's own node.

use super::address::is_port_name;
use super::field::{Path, Read, boolean, both, each, get, list, object, required, string};
use super::objects::{address, age};
use super::problem::{Problem, Problems};
use super::selector;
use super::service::nobody;
use crate::wire::WireCustom;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::net::IpAddr;
use weft_model::intent::{LocalRedirect, ObjectName, Protocol, RedirectFrontend, RedirectPort};
use weft_model::selector::Selector;

pub fn local_redirect(policy: WireCustom) -> Result<LocalRedirect, Problems> {
    let age = age(&policy.metadata);
    let name = ObjectName { namespace: policy.metadata.namespace, name: policy.metadata.name };
    let path = Path::Root("spec");
    let spec =
        object(path, &policy.spec, &["redirectFrontend", "redirectBackend", "skipRedirectFromBackend", "description"])?;
    let frontend = required(path, spec, "redirectFrontend", "what is redirected")
        .and_then(|value| frontend(Path::Field(&path, "redirectFrontend"), value, &name.namespace));
    let backend = required(path, spec, "redirectBackend", "where it goes")
        .and_then(|value| backend(Path::Field(&path, "redirectBackend"), value));
    let ((frontend, (selector, ports)), skip) =
        both(both(frontend, backend), boolean(path, spec, "skipRedirectFromBackend"))?;
    fit(&frontend, &ports)?;
    Ok(LocalRedirect { name, frontend, selector, ports, skip_from_backend: skip.unwrap_or(false), age })
}

fn frontend(path: Path<'_>, value: &Value, namespace: &str) -> Read<RedirectFrontend> {
    let map = object(path, value, &["addressMatcher", "serviceMatcher"])?;
    match (get(map, "addressMatcher"), get(map, "serviceMatcher")) {
        (Some(value), None) => by_address(Path::Field(&path, "addressMatcher"), value),
        (None, Some(value)) => by_service(Path::Field(&path, "serviceMatcher"), value, namespace),
        (None, None) => path.fail("expected addressMatcher or serviceMatcher, found neither"),
        (Some(_), Some(_)) => path.fail("expected addressMatcher or serviceMatcher, found both"),
    }
}

fn by_address(path: Path<'_>, value: &Value) -> Read<RedirectFrontend> {
    let map = object(path, value, &["ip", "toPorts"])?;
    let ip = required(path, map, "ip", "an IP address").and_then(|value| {
        let at = Path::Field(&path, "ip");
        taken_over(at, string(at, value)?.trim())
    });
    let (address, ports) = both(ip, some_ports(path, map))?;
    Ok(RedirectFrontend::Address { address, ports })
}

/// Link-local ones are what it is for: metadata services, name servers of nodes.
fn taken_over(path: Path<'_>, text: &str) -> Read<IpAddr> {
    let address = address(&path.to_string(), text)?;
    match nobody(address) {
        Some(what) => path.fail(format!("{text}, expected an address that hosts can have, not {what}")),
        None => Ok(address),
    }
}

fn by_service(path: Path<'_>, value: &Value, namespace: &str) -> Read<RedirectFrontend> {
    let map = object(path, value, &["serviceName", "namespace", "toPorts"])?;
    let text = |field: &'static str, what: &str| {
        let at = Path::Field(&path, field);
        match string(at, required(path, map, field, what)?)? {
            "" => at.fail(format!("required: {what}")),
            text => Ok(text.to_owned()),
        }
    };
    let of = text("namespace", "the Service's namespace").and_then(|of| {
        if of == namespace {
            return Ok(of);
        }
        Path::Field(&path, "namespace").fail(format!("{of:?}, expected the policy's own, {namespace:?}"))
    });
    let names = both(text("serviceName", "the Service's name"), of);
    let ((name, namespace), ports) = both(names, ports(path, map))?;
    Ok(RedirectFrontend::Service { name: ObjectName { namespace, name }, ports })
}

fn backend(path: Path<'_>, value: &Value) -> Read<(Selector, Vec<RedirectPort>)> {
    let map = object(path, value, &["localEndpointSelector", "toPorts"])?;
    let selector = required(path, map, "localEndpointSelector", "the pods that it goes to")
        .and_then(|value| selector::plain(Path::Field(&path, "localEndpointSelector"), value));
    both(selector, some_ports(path, map))
}

fn some_ports(path: Path<'_>, map: &Map<String, Value>) -> Read<Vec<RedirectPort>> {
    let ports = ports(path, map)?;
    if ports.is_empty() { Path::Field(&path, "toPorts").fail("required: at least one port") } else { Ok(ports) }
}

fn ports(path: Path<'_>, map: &Map<String, Value>) -> Read<Vec<RedirectPort>> {
    let at = Path::Field(&path, "toPorts");
    let items = list(path, map, "toPorts")?.unwrap_or_default();
    let ports = each(at, items, port)?;
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (n, port) in ports.iter().enumerate() {
        let fail = |field: &str, problem: &str| Path::Field(&Path::Index(&at, n), field).fail(problem);
        if port.name.is_empty() && ports.len() > 1 {
            return fail("name", "required: there are several ports");
        }
        if !names.insert(&port.name) {
            return fail("name", "another port has the same name");
        }
        if !numbers.insert((port.port, port.protocol)) {
            return fail("port", "another port has the same number and protocol");
        }
    }
    Ok(ports)
}

fn port(path: Path<'_>, value: &Value) -> Read<RedirectPort> {
    let map = object(path, value, &["port", "protocol", "name"])?;
    let at = Path::Field(&path, "port");
    let number = required(path, map, "port", "a number").and_then(|value| {
        let text = string(at, value)?;
        let number = text.parse::<u16>().ok().filter(|number| *number > 0 && number.to_string() == text);
        number.map_or_else(|| at.fail(format!("{text:?}, expected a number from 1 to 65535")), Ok)
    });
    let at = Path::Field(&path, "protocol");
    let protocol = required(path, map, "protocol", "TCP or UDP").and_then(|value| match string(at, value)? {
        "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        other => at.fail(format!("{other:?}, expected TCP or UDP")),
    });
    let at = Path::Field(&path, "name");
    let name = match get(map, "name").map(|value| string(at, value)).transpose()?.unwrap_or_default() {
        "" => Ok(String::new()),
        // Names are compared without regard to case.
        text if is_port_name(text) => Ok(text.to_ascii_lowercase()),
        text => at.fail(format!("{text:?}, expected at most 15 letters, digits and single '-', with a letter")),
    };
    let ((port, protocol), name) = both(both(number, protocol), name)?;
    Ok(RedirectPort { name, protocol, port })
}

/// Every port of the frontend has one of the backends to go to.
fn fit(frontend: &RedirectFrontend, backends: &[RedirectPort]) -> Read<()> {
    let (field, ports) = match frontend {
        RedirectFrontend::Address { ports, .. } => ("spec.redirectFrontend.addressMatcher.toPorts", ports),
        RedirectFrontend::Service { ports, .. } => ("spec.redirectFrontend.serviceMatcher.toPorts", ports),
    };
    for (n, port) in ports.iter().enumerate() {
        let backend = match (ports.len(), backends) {
            (1, [only]) => Some(only),
            _ => backends.iter().find(|backend| backend.name == port.name && !port.name.is_empty()),
        };
        let problem = match backend {
            Some(backend) if backend.protocol == port.protocol => continue,
            Some(_) => "the port of spec.redirectBackend.toPorts that it goes to has another protocol",
            None => "no port of spec.redirectBackend.toPorts has this name",
        };
        return Err(Problem::new(format!("{field}[{n}]"), problem).into());
    }
    Ok(())
}
