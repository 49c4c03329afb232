//! The other kinds: what is read, what is refused, what is written back.

use super::super::*;
use super::net;
use crate::wire::{CiliumEndpointSlice, CiliumIdentity, WireNode, WirePod};
use serde_json::{Value, json};

#[test]
fn pods_and_their_named_ports() {
    let object = json!({
        "metadata": {"name": "a", "namespace": "n", "uid": "u", "labels": {"app": "web"}, "managedFields": [{"x": 1}]},
        "spec": {
            "nodeName": "node-1",
            "containers": [{"name": "c", "ports": [
                {"name": "web", "containerPort": 80}, {"containerPort": 81},
                {"name": "dns", "containerPort": 53, "protocol": "UDP"},
                {"name": "odd", "containerPort": 70000}, {"name": "odd", "containerPort": 1, "protocol": "QUIC"},
                {"containerPort": 82, "hostPort": 8082}, {"containerPort": 83, "hostPort": 8083, "hostIP": "fd31::11",
                    "protocol": "SCTP"},
                {"containerPort": 84, "hostPort": 8084, "hostIP": "x"}, {"containerPort": 85, "hostPort": 65536},
            ]}],
            "initContainers": [
                {"ports": [{"name": "once", "containerPort": 1}]},
                {"restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 2}]},
            ],
        },
        "status": {"phase": "Running", "conditions": [{"type": "Initialized", "status": "False"},
            {"type": "Ready", "status": "True"}]},
    });
    let read = pod(serde_json::from_value::<WirePod>(object).expect("a pod"));
    let ports: Vec<(&str, u16)> = read.named_ports.iter().map(|port| (port.name.as_str(), port.port)).collect();
    assert_eq!(ports, [("web", 80), ("dns", 53), ("side", 2)]);
    assert_eq!((read.service_account.as_str(), read.finished, read.host_network), ("default", false, false));
    assert_eq!(read.node.as_deref(), Some("node-1"));
    assert!(read.ready);
    let at_nodes: Vec<_> = read.host_ports.iter().map(|port| (port.host_ip, port.port, port.container_port)).collect();
    assert_eq!(at_nodes, [(None, 8082, 82), (Some("fd31::11".parse().expect("an address")), 8083, 83)]);
    assert_eq!(read.host_ports[1].protocol, weft_model::intent::Protocol::Sctp);
    let done = json!({"metadata": {"name": "a"}, "spec": {"hostNetwork": true, "containers": [{"ports": [
        {"containerPort": 80, "hostPort": 80}]}]}, "status": {"phase": "Failed", "conditions": [
        {"type": "Ready", "status": "False"}]}});
    let read = pod(serde_json::from_value::<WirePod>(done).expect("a pod"));
    assert!(read.finished && read.host_network && read.node.is_none() && !read.ready);
    assert_eq!(read.host_ports, [], "with the node's network the port is the pod's own");
}

#[test]
fn nodes_have_one_address_and_one_prefix_of_each_family() {
    let object = json!({
        "metadata": {"name": "node-1", "labels": {"zone": "a"}},
        "spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24", "fd44::/64", "10.9.0.0/24"]},
        "status": {"addresses": [
            {"type": "Hostname", "address": "node-1"}, {"type": "ExternalIP", "address": "198.51.100.1"},
            {"type": "InternalIP", "address": "172.31.0.11"}, {"type": "InternalIP", "address": "fd31::11"},
            {"type": "InternalIP", "address": "172.31.9.9"},
        ]},
    });
    let read = node(&serde_json::from_value::<WireNode>(object.clone()).expect("a node")).expect("usable");
    assert_eq!(read.pod_cidrs, [net("10.244.0.0/24"), net("fd44::/64")]);
    let addresses: Vec<String> = read.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["172.31.0.11", "fd31::11"]);
    assert_eq!(read.labels.get("zone").map(String::as_str), Some("a"));
    let mut broken = object;
    broken["spec"]["podCIDRs"][1] = json!("fd44::");
    let problem = node(&serde_json::from_value::<WireNode>(broken).expect("a node")).expect_err("no prefix");
    assert_eq!(problem.field, "spec.podCIDRs[1]");
}

#[test]
fn identities_are_numbers_of_the_allocated_range() {
    let read = |name: &str, labels: Value| {
        let object = json!({"metadata": {"name": name}, "security-labels": labels});
        identity(serde_json::from_value::<CiliumIdentity>(object).expect("an identity"))
    };
    assert_eq!(read("1234", json!({"k8s:app": "a"})).expect("usable").identity.raw(), 1234);
    for name in ["1", "255", "65536", "0256", "+300", "x", "", "99999999999"] {
        assert!(read(name, json!({"k8s:app": "a"})).is_err(), "{name}");
    }
    assert!(read("1234", json!({})).is_err());
    assert!(read("1234", json!({"reserved:host": ""})).is_err());
}

#[test]
fn slices_are_read_whole_and_written_back_equal() {
    let object = json!({"metadata": {"name": "s"}, "namespace": "n", "endpoints": [{
        "name": "a", "id": 4711, "pod-uid": "u", "service-account": "default", "encryption": {},
        "networking": {"addressing": [{"ipv4": "10.244.1.2", "ipv6": "fd44:0:0:1::2"}], "node": "172.31.0.11"},
        "named-ports": [{"name": "web", "port": 80, "protocol": "TCP"}],
    }]});
    let wire = serde_json::from_value::<CiliumEndpointSlice>(object.clone()).expect("a slice");
    let read = slice(wire.clone()).expect("usable");
    assert_eq!(read.endpoints[0].addresses.len(), 2);
    assert_eq!(slice_endpoint(&read.endpoints[0]), wire.endpoints[0]);
    let broken = |pointer: &str, value: Value| {
        let mut object = object.clone();
        *object.pointer_mut(pointer).expect("a field") = value;
        slice(serde_json::from_value(object).expect("a slice")).expect_err("unusable").to_string()
    };
    for reserved in [0, 1, 2, 6, 7, 9, 10, -1, 65_536, 0x0100_0001] {
        let problem = broken("/endpoints/0/id", json!(reserved));
        assert!(problem.starts_with("endpoints[0].id: "), "{problem}");
    }
    let problem = broken("/endpoints/0/networking/addressing/0/ipv6", json!("::ffff:10.0.0.1"));
    assert!(problem.contains("addressing[0].ipv6") && problem.contains("IPv4"), "{problem}");
    assert!(broken("/endpoints/0/networking/addressing/0/ipv4", json!("fd44::1")).contains("other family"));
    assert!(broken("/endpoints/0/networking/node", json!("")).contains("networking.node"));
    assert!(broken("/endpoints/0/name", json!("")).contains("endpoints[0].name"));
}

#[test]
fn groups_of_prefixes() {
    let group = |cidrs: Value| {
        let object = json!({"metadata": {"name": "g", "labels": {"role": "vpn"}}, "spec": {"externalCIDRs": cidrs}});
        cidr_group(from(object))
    };
    let read = group(json!(["10.1.2.3/8", "fd00::1", "10.0.0.0/8"])).expect("usable");
    assert_eq!(read.cidrs, [net("10.0.0.0/8"), net("fd00::1/128")]);
    assert_eq!(read.labels.len(), 1);
    assert!(group(json!([])).expect("usable").cidrs.is_empty());
    let problems = group(json!(["10.0.0.0/8", "x", 7])).expect_err("unusable");
    assert_eq!(problems.first().field, "spec.externalCIDRs[1]");
    assert_eq!(problems.into_iter().count(), 2);
    assert!(group(Value::Null).expect_err("unusable").to_string().contains("externalCIDRs: required"));
}

fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object")
}
