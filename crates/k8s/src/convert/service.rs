//! What policies refer to by name or label: Services, their addresses, groups of prefixes.

use super::address::prefix_or_address;
use super::field::{self, Path, each, list, required};
use super::objects::address;
use super::{Problem, Problems};
use crate::wire::{WireCidrGroup, WireEndpointSlice, WireService};
use weft_model::intent::{Backend, Backends, CidrGroup, ObjectName, Service};

/// Label of an EndpointSlice that names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A Service.
#[must_use]
pub fn service(object: WireService) -> Service {
    Service {
        name: ObjectName { namespace: object.metadata.namespace, name: object.metadata.name },
        labels: object.metadata.labels,
        selector: object.spec.selector,
        routing: None,
    }
}

/// The addresses in an EndpointSlice; `None` if they belong to no Service, or are none.
///
/// # Errors
/// The first address that is none.
pub fn backends(object: WireEndpointSlice) -> Result<Option<Backends>, Problem> {
    let service = object.metadata.labels.get(SERVICE_NAME).filter(|name| !name.is_empty());
    let Some(service) = service.filter(|_| object.address_type != "FQDN") else { return Ok(None) };
    let mut endpoints = Vec::new();
    for (n, endpoint) in object.endpoints.iter().enumerate() {
        for (k, text) in endpoint.addresses.iter().enumerate() {
            endpoints.push(Backend::ready(address(&format!("endpoints[{n}].addresses[{k}]"), text)?));
        }
    }
    let namespace = object.metadata.namespace;
    let service = ObjectName { namespace: namespace.clone(), name: service.clone() };
    Ok(Some(Backends {
        slice: ObjectName { namespace, name: object.metadata.name },
        service,
        ports: Vec::new(),
        endpoints,
    }))
}

/// A CiliumCIDRGroup.
///
/// # Errors
/// All that is wrong with it: a group is taken whole or not at all.
pub fn cidr_group(object: WireCidrGroup) -> Result<CidrGroup, Problems> {
    let path = Path::Root("spec");
    let spec = field::object(path, &object.spec, &["externalCIDRs"])?;
    required(path, spec, "externalCIDRs", "a list of prefixes")?;
    let items = list(path, spec, "externalCIDRs")?.unwrap_or_default();
    let mut cidrs = each(Path::Field(&path, "externalCIDRs"), items, prefix_or_address)?;
    cidrs.sort_unstable();
    cidrs.dedup();
    Ok(CidrGroup { name: object.metadata.name, labels: object.metadata.labels, cidrs })
}
