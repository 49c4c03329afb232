//! Services and what stands behind them.
//!
//! A Service or an EndpointSlice is taken whole or not at all. What decides who is served, where and by whom, and is
//! not understood, spoils it; a mere preference that is not understood is left out.

mod address;
mod annotation;
mod slice;
mod value;

use super::address::prefix_or_address;
use super::field;
use super::field::{Path, Read, all, both, each, list, required};
use super::objects::{age, port_number};
use super::problem::{Problem, Problems};
use crate::wire::{Metadata, WireCidrGroup, WireService, WireServicePort, WireServiceSpec};
use address::{distinct, external_address, inner_address, source_range};
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;
use weft_model::intent::{CidrGroup, ObjectName, Routing, Service, ServicePort};

use crate::convert::service::value::{keep, number, transport};
pub(super) use address::nobody;
pub use slice::backends;

/// Label of a Service that another proxy serves.
const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";
/// Label of a Service that is for name servers only.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// How long a client stays with its backend, unless the Service says.
const AFFINITY_S: i64 = 10_800;
const AFFINITY_S_MAX: u32 = 86_400;

pub fn service(object: WireService) -> Result<Service, Problems> {
    let routing = if is_ours(&object.metadata, &object.spec) { Some(routing(&object)?) } else { None };
    Ok(Service {
        age: age(&object.metadata),
        name: ObjectName { namespace: object.metadata.namespace, name: object.metadata.name },
        labels: object.metadata.labels,
        selector: object.spec.selector,
        routing,
    })
}

/// Whether the network is to serve it: it has addresses, and no other proxy does.
fn is_ours(metadata: &Metadata, spec: &WireServiceSpec) -> bool {
    let first = spec.cluster_ips.first().unwrap_or(&spec.cluster_ip);
    spec.kind != "ExternalName"
        // One that has no address yet gets it in a moment.
        && !matches!(first.as_str(), "" | "None")
        && !metadata.labels.contains_key(OTHER_PROXY)
        && !metadata.labels.contains_key(HEADLESS)
}

/// One of a few words; absent is the first.
fn word<T: Copy>(field: &str, text: &str, words: &[(&str, T)]) -> Read<T> {
    let known = words.iter().find(|(known, _)| *known == text || text.is_empty());
    known.map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        Problem::new(field, format!("{text:?}, expected {}", words.join(" or "))).into()
    })
}

fn routing(object: &WireService) -> Read<Routing> {
    let spec = &object.spec;
    let wrong = &mut Vec::new();
    let kinds = [("ClusterIP", false), ("NodePort", true), ("LoadBalancer", true)];
    let node_ports = keep(wrong, word("spec.type", &spec.kind, &kinds));
    let balanced = spec.kind == "LoadBalancer";
    let local = [("Cluster", false), ("Local", true)];
    let external_local = keep(wrong, word("spec.externalTrafficPolicy", &spec.external_traffic_policy, &local));
    let asked = annotation::read(&object.metadata.annotations);
    let (algorithm, forwarding, hints) = keep(wrong, asked);
    let routing = Routing {
        ports: keep(wrong, ports(spec, node_ports)),
        cluster_ips: keep(wrong, cluster_ips(spec)),
        external_ips: keep(wrong, external_ips(spec)),
        load_balancer_ips: if balanced { keep(wrong, load_balancer_ips(object)) } else { Vec::new() },
        node_ports,
        affinity_s: keep(wrong, affinity(spec)),
        internal_local: keep(wrong, word("spec.internalTrafficPolicy", &spec.internal_traffic_policy, &local)),
        external_local,
        source_ranges: if balanced { keep(wrong, source_ranges(spec)) } else { Vec::new() },
        health_check_node_port: if balanced && external_local {
            keep(wrong, health_check_node_port(spec))
        } else {
            None
        },
        publish_not_ready: spec.publish_not_ready_addresses,
        topology: annotation::topology(&spec.traffic_distribution, hints),
        algorithm,
        forwarding,
    };
    Problems::new(std::mem::take(wrong)).map_or(Ok(routing), Err)
}

fn ports(spec: &WireServiceSpec, node_ports: bool) -> Read<Vec<ServicePort>> {
    if spec.ports.is_empty() {
        return Path::Root("spec.ports").fail("required: at least one port");
    }
    let ports = all(spec.ports.iter().enumerate().map(|(n, port)| {
        let root = Path::Root("spec.ports");
        service_port(Path::Index(&root, n), port, node_ports)
    }))?;
    let (mut names, mut numbers, mut at_nodes) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (n, port) in ports.iter().enumerate() {
        let fail = |field: &str, problem: &str| Err(Problem::new(format!("spec.ports[{n}].{field}"), problem).into());
        if port.name.is_empty() && ports.len() > 1 {
            return fail("name", "required: there are several ports");
        }
        if !names.insert(&port.name) {
            return fail("name", "another port has the same name");
        }
        if !numbers.insert((port.port, port.protocol)) {
            return fail("port", "another port has the same number and protocol");
        }
        if port.node_port > 0 && !at_nodes.insert((port.node_port, port.protocol)) {
            return fail("nodePort", "another port has the same number and protocol");
        }
    }
    Ok(ports)
}

fn service_port(path: Path<'_>, port: &WireServicePort, node_ports: bool) -> Read<ServicePort> {
    let numbers = both(
        number(Path::Field(&path, "port"), port.port, 1),
        number(Path::Field(&path, "nodePort"), port.node_port, 0),
    );
    let ((number, at_nodes), protocol) = both(numbers, transport(Path::Field(&path, "protocol"), &port.protocol))?;
    let node_port = if node_ports { at_nodes } else { 0 };
    Ok(ServicePort { name: port.name.clone(), protocol, port: number, node_port })
}

fn cluster_ips(spec: &WireServiceSpec) -> Read<Vec<IpAddr>> {
    let first = std::slice::from_ref(&spec.cluster_ip);
    let (field, texts) =
        if spec.cluster_ips.is_empty() { ("spec.clusterIP", first) } else { ("spec.clusterIPs", &*spec.cluster_ips) };
    let root = Path::Root(field);
    let addresses = all(texts.iter().enumerate().map(|(n, text)| inner_address(Path::Index(&root, n), text)))?;
    for (n, address) in addresses.iter().enumerate() {
        if addresses[..n].iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            return Path::Index(&root, n).fail("expected at most one address of each family");
        }
    }
    Ok(addresses)
}

fn external_ips(spec: &WireServiceSpec) -> Read<Vec<IpAddr>> {
    let root = Path::Root("spec.externalIPs");
    let texts = spec.external_ips.iter().enumerate();
    all(texts.map(|(n, text)| external_address(Path::Index(&root, n), text))).map(distinct)
}

/// Those that keep their address up to the node. Names are for name servers.
fn load_balancer_ips(object: &WireService) -> Read<Vec<IpAddr>> {
    let root = Path::Root("status.loadBalancer.ingress");
    let rows = object.status.load_balancer.ingress.iter().enumerate().filter(|(_, row)| !row.ip.is_empty());
    let read = rows.map(|(n, row)| {
        let path = Path::Index(&root, n);
        let field = Path::Field(&path, "ipMode").to_string();
        let is_ours = word(&field, &row.ip_mode, &[("VIP", true), ("Proxy", false)])?;
        let address = external_address(Path::Field(&path, "ip"), &row.ip)?;
        Ok(is_ours.then_some(address))
    });
    all(read).map(|addresses| distinct(addresses.into_iter().flatten().collect()))
}

fn affinity(spec: &WireServiceSpec) -> Read<Option<u32>> {
    if !word("spec.sessionAffinity", &spec.session_affinity, &[("None", false), ("ClientIP", true)])? {
        return Ok(None);
    }
    let seconds = spec.session_affinity_config.client_ip.timeout_seconds.unwrap_or(AFFINITY_S);
    let read = u32::try_from(seconds).ok().filter(|seconds| (1..=AFFINITY_S_MAX).contains(seconds));
    let path = Path::Root("spec.sessionAffinityConfig.clientIP.timeoutSeconds");
    read.map_or_else(
        || path.fail(format!("{seconds}, expected a number from 1 to {AFFINITY_S_MAX}")),
        |seconds| Ok(Some(seconds)),
    )
}

fn source_ranges(spec: &WireServiceSpec) -> Read<Vec<IpNet>> {
    let root = Path::Root("spec.loadBalancerSourceRanges");
    let texts = spec.load_balancer_source_ranges.iter().enumerate();
    all(texts.map(|(n, text)| source_range(Path::Index(&root, n), text))).map(distinct)
}

fn health_check_node_port(spec: &WireServiceSpec) -> Read<Option<u16>> {
    number(Path::Root("spec.healthCheckNodePort"), spec.health_check_node_port, 0).map(|n| port_number(n.into()))
}

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
