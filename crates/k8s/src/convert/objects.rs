//! The other kinds: pods, namespaces, nodes, identities, slices.

use super::problem::Problem;
use crate::wire::{
    AddressPair, CILIUM_V2, CiliumEndpoint, CiliumEndpointSlice, CiliumIdentity, CoreEndpoint, Metadata, Networking,
    UNUSED_SINCE, WireContainerPort, WireNamespace, WireNode, WirePod, WirePort,
};
use ipnet::IpNet;
use std::net::IpAddr;
use weft_model::id::Identity;
use weft_model::intent::{
    Age, EndpointSlice, HostPort, IdentityLabels, NamedPort, Namespace, Node, ObjectName, Pod, Protocol,
    RemoteEndpoint, Written,
};
use weft_model::label::{LabelSet, NAMESPACE};

/// A pod. Ports that cannot be ports are left out: the API server admits none.
#[must_use]
pub fn pod(object: WirePod) -> Pod {
    let beside = object.spec.init_containers.iter().filter(|container| container.restart_policy == "Always");
    let (mut named_ports, mut host_ports) = (Vec::new(), Vec::new());
    for port in object.spec.containers.iter().chain(beside).flat_map(|container| &container.ports) {
        let (Some(protocol), Some(number)) = (protocol(&port.protocol), port_number(port.container_port)) else {
            continue;
        };
        if !port.name.is_empty() {
            named_ports.push(NamedPort { name: port.name.clone(), protocol, port: number });
        }
        // With the node's network the pod holds the port itself.
        if !object.spec.host_network {
            host_ports.extend(host_port(port, protocol, number));
        }
    }
    let ready =
        object.status.conditions.iter().any(|condition| condition.kind == "Ready" && condition.status == "True");
    let account = object.spec.service_account_name;
    let age = age(&object.metadata);
    Pod {
        name: ObjectName { namespace: object.metadata.namespace, name: object.metadata.name },
        uid: object.metadata.uid,
        node: Some(object.spec.node_name).filter(|node| !node.is_empty()),
        labels: object.metadata.labels,
        service_account: if account.is_empty() { "default".to_owned() } else { account },
        host_network: object.spec.host_network,
        named_ports,
        address_pools: super::pool::wish(&object.metadata.annotations),
        host_ports,
        ready,
        finished: matches!(object.status.phase.as_str(), "Succeeded" | "Failed"),
        age,
    }
}

/// An object without a time is younger than all others: only the API server gives one.
pub(super) fn age(metadata: &Metadata) -> Age {
    let created = metadata.creation_timestamp.clone().unwrap_or_else(|| "unknown".to_owned());
    Age { created, uid: metadata.uid.clone() }
}

/// The port of the node that a container asks for. At an address that is none it is at no address, rather than at all.
fn host_port(port: &WireContainerPort, protocol: Protocol, container_port: u16) -> Option<HostPort> {
    let number = port_number(port.host_port)?;
    let host_ip = match port.host_ip.as_str() {
        "" => None,
        text => Some(address("hostIP", text).ok()?),
    };
    Some(HostPort { host_ip, port: number, protocol, container_port })
}

#[must_use]
pub fn namespace(object: WireNamespace) -> Namespace {
    let address_pools = super::pool::wish(&object.metadata.annotations);
    Namespace { name: object.metadata.name, labels: object.metadata.labels, address_pools }
}

/// A node: the first internal address and the first pod CIDR of each family.
///
/// # Errors
/// When an address or a prefix is none: half a node would leave its pods unreachable without a word.
pub fn node(object: &WireNode) -> Result<Node, Problem> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for (n, entry) in object.status.addresses.iter().enumerate().filter(|(_, entry)| entry.kind == "InternalIP") {
        let field = format!("status.addresses[{n}].address");
        let address = address(&field, &entry.address)?;
        if !addresses.iter().any(|known| known.is_ipv4() == address.is_ipv4()) {
            addresses.push(address);
        }
    }
    let first = std::slice::from_ref(&object.spec.pod_cidr);
    let (field, listed) = match (object.spec.pod_cidrs.is_empty(), object.spec.pod_cidr.is_empty()) {
        (false, _) => ("spec.podCIDRs", object.spec.pod_cidrs.as_slice()),
        (true, false) => ("spec.podCIDR", first),
        (true, true) => ("spec.podCIDRs", [].as_slice()),
    };
    let mut pod_cidrs: Vec<IpNet> = Vec::new();
    for (n, text) in listed.iter().enumerate() {
        let expected = || Problem::new(format!("{field}[{n}]"), format!("{text:?}, expected a prefix"));
        let net = text.parse::<IpNet>().map_err(|_| expected())?.trunc();
        if !pod_cidrs.iter().any(|known| known.addr().is_ipv4() == net.addr().is_ipv4()) {
            pod_cidrs.push(net);
        }
    }
    Ok(Node { name: object.metadata.name.clone(), addresses, pod_cidrs, labels: object.metadata.labels.clone() })
}

/// An identity: the number is the object's name.
///
/// # Errors
/// When the name is no number of the allocated range, or there are no labels.
pub fn identity(object: CiliumIdentity) -> Result<IdentityLabels, Problem> {
    let range = Identity::ALLOCATED;
    let name = &object.metadata.name;
    // Only the plain form: "0256" would be a second name of 256.
    let number = name.parse::<u32>().ok().filter(|number| number.to_string() == *name);
    let identity = number.and_then(Identity::allocated).ok_or_else(|| {
        Problem::new("metadata.name", format!("{name:?}, expected a number from {} to {}", range.start(), range.end()))
    })?;
    if object.security_labels.is_empty() {
        return Err(Problem::new("security-labels", "expected at least one label"));
    }
    if let Some(key) = object.security_labels.keys().find(|key| !key.starts_with("k8s:")) {
        let field = format!("security-labels.{key}");
        return Err(Problem::new(field, "expected a label of source k8s, such as k8s:app"));
    }
    let unused = object.metadata.annotations.contains_key(UNUSED_SINCE);
    Ok(IdentityLabels { identity, labels: LabelSet(object.security_labels), unused })
}

/// A slice, whole: an endpoint that cannot be read spoils it, and what was known before stays.
pub fn slice(object: CiliumEndpointSlice) -> Result<EndpointSlice, Problem> {
    if object.namespace.is_empty() && !object.endpoints.is_empty() {
        return Err(Problem::new("namespace", "required: the namespace of the endpoints"));
    }
    let (namespace, written) = (object.namespace, Written::read(&object.metadata.resource_version));
    let endpoints = object.endpoints.into_iter().enumerate();
    let endpoints = endpoints
        .map(|(n, endpoint)| remote(&namespace, &format!("endpoints[{n}]."), "id", endpoint))
        .collect::<Result<_, _>>()?;
    Ok(EndpointSlice { name: object.metadata.name, endpoints, written })
}

/// A CiliumEndpoint, as a slice of one endpoint with a name ([`endpoint_slice_name`]) that no slice can have. One that
/// has no addresses or no identity yet is a slice of none.
pub fn endpoint(object: CiliumEndpoint) -> Result<EndpointSlice, Problem> {
    let name = ObjectName { namespace: object.metadata.namespace, name: object.metadata.name };
    let (status, written) = (object.status, Written::read(&object.metadata.resource_version));
    let mut slice = EndpointSlice { name: endpoint_slice_name(&name), endpoints: Vec::new(), written };
    if status.networking.addressing.is_empty() || status.identity.id == 0 {
        return Ok(slice);
    }
    let pod = object.metadata.owner_references.into_iter().find(|owner| owner.kind == "Pod" && owner.name == name.name);
    let core = CoreEndpoint {
        name: name.name,
        id: status.identity.id,
        pod_uid: pod.map(|owner| owner.uid).unwrap_or_default(),
        networking: status.networking,
        named_ports: status.named_ports,
    };
    slice.endpoints.push(remote(&name.namespace, "status.", "identity.id", core)?);
    Ok(slice)
}

/// What the slice of one that stands for a CiliumEndpoint is called.
#[must_use]
pub fn endpoint_slice_name(name: &ObjectName) -> String {
    name.to_string()
}

/// The CiliumEndpoint that a slice stands for; `None`: it is a CiliumEndpointSlice.
#[must_use]
pub fn endpoint_of_slice(name: &str) -> Option<ObjectName> {
    let (namespace, name) = name.split_once('/')?;
    Some(ObjectName { namespace: namespace.to_owned(), name: name.to_owned() })
}

fn remote(namespace: &str, place: &str, id: &str, endpoint: CoreEndpoint) -> Result<RemoteEndpoint, Problem> {
    let at = |field: &str| format!("{place}{field}");
    if endpoint.name.is_empty() {
        return Err(Problem::new(at("name"), "required: the pod's name"));
    }
    // Host, world, nodes and prefixes are never what a pod is: an object must not be able to claim so.
    let number = u32::try_from(endpoint.id).ok();
    let claimable = |number: &u32| Identity::ALLOCATED.contains(number) || matches!(number, 3..=5 | 100..=255);
    let identity = number
        .filter(claimable)
        .map(Identity::from_raw)
        .ok_or_else(|| Problem::new(at(id), format!("{}, expected the number of a pod's identity", endpoint.id)))?;
    let mut addresses = Vec::new();
    for (k, pair) in endpoint.networking.addressing.iter().enumerate() {
        for (family, text, v4) in [("ipv4", &pair.ipv4, true), ("ipv6", &pair.ipv6, false)] {
            if text.is_empty() {
                continue;
            }
            let field = at(&format!("networking.addressing[{k}].{family}"));
            let found = address(&field, text)?;
            if found.is_ipv4() != v4 {
                return Err(Problem::new(field, format!("{text:?} is of the other family")));
            }
            addresses.push(found);
        }
    }
    let node = address(&at("networking.node"), &endpoint.networking.node)?;
    let mut named_ports = Vec::new();
    for (k, port) in endpoint.named_ports.into_iter().enumerate() {
        let Some(protocol) = protocol(&port.protocol) else {
            let field = at(&format!("named-ports[{k}].protocol"));
            return Err(Problem::new(field, format!("{:?}, expected TCP, UDP or SCTP", port.protocol)));
        };
        named_ports.push(NamedPort { name: port.name, protocol, port: port.port });
    }
    let name = ObjectName { namespace: namespace.to_owned(), name: endpoint.name };
    // Older writers leave it out; the name is the next best thing that tells pods apart.
    let pod_uid = if endpoint.pod_uid.is_empty() { name.to_string() } else { endpoint.pod_uid };
    Ok(RemoteEndpoint { name, pod_uid, identity, addresses, node, named_ports })
}

/// The other way: an endpoint as it stands in a slice.
#[must_use]
pub fn slice_endpoint(endpoint: &RemoteEndpoint) -> CoreEndpoint {
    let mut pairs: Vec<AddressPair> = Vec::new();
    for address in &endpoint.addresses {
        let text = address.to_string();
        let slot = |pair: &mut AddressPair| match address {
            IpAddr::V4(_) => pair.ipv4.is_empty().then(|| pair.ipv4 = text.clone()).is_some(),
            IpAddr::V6(_) => pair.ipv6.is_empty().then(|| pair.ipv6 = text.clone()).is_some(),
        };
        if !pairs.iter_mut().any(slot) {
            let mut pair = AddressPair::default();
            match address {
                IpAddr::V4(_) => pair.ipv4 = text,
                IpAddr::V6(_) => pair.ipv6 = text,
            }
            pairs.push(pair);
        }
    }
    let port = |port: &NamedPort| WirePort {
        name: port.name.clone(),
        port: port.port,
        protocol: match port.protocol {
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
            // Container ports are of these three.
            _ => "TCP",
        }
        .to_owned(),
    };
    CoreEndpoint {
        name: endpoint.name.name.clone(),
        id: i64::from(endpoint.identity.raw()),
        pod_uid: endpoint.pod_uid.clone(),
        networking: Networking { addressing: pairs, node: endpoint.node.to_string() },
        named_ports: endpoint.named_ports.iter().map(port).collect(),
    }
}

pub(crate) fn identity_object(row: &IdentityLabels) -> CiliumIdentity {
    // For people: a column of `kubectl get`.
    let namespace =
        row.labels.get(NAMESPACE).map(|namespace| ("io.kubernetes.pod.namespace".to_owned(), namespace.to_owned()));
    CiliumIdentity {
        api_version: CILIUM_V2.to_owned(),
        kind: "CiliumIdentity".to_owned(),
        metadata: Metadata {
            name: row.identity.to_string(),
            labels: namespace.into_iter().collect(),
            ..Metadata::default()
        },
        security_labels: row.labels.0.clone(),
    }
}

pub(super) fn address(field: &str, text: &str) -> Result<IpAddr, Problem> {
    let expected = || Problem::new(field, format!("{text:?}, expected an IP address"));
    let address: IpAddr = text.parse().map_err(|_| expected())?;
    match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Err(Problem::new(field, format!("{text:?} is an IPv4 address in IPv6 form, expected it written as IPv4")))
        }
        address => Ok(address),
    }
}

/// A number of the range of ports.
pub(super) fn port_number(number: i64) -> Option<u16> {
    u16::try_from(number).ok().filter(|number| *number > 0)
}

/// Empty: TCP, as the API server's default.
pub(super) fn protocol(text: &str) -> Option<Protocol> {
    match text {
        "" | "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}
