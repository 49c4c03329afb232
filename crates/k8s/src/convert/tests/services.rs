//! Services and EndpointSlices: what is read, and that nothing is taken that is not understood.

use super::super::*;
use super::net;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::net::IpAddr;
use weft_model::intent::{
    Algorithm, Backend, Backends, Forwarding, NamedPort, Protocol, Routing, Service, ServicePort, Topology,
};

fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A Service that uses all there is.
fn full() -> Value {
    json!({"metadata": {"name": "s", "namespace": "n", "labels": {"a": "b"}, "annotations": {
            "service.cilium.io/lb-algorithm": "maglev", "service.cilium.io/forwarding-mode": "snat",
            "service.cilium.io/src-ranges-policy": "allow", "example.com/other": "x"}},
        "spec": {"selector": {"app": "web"}, "type": "LoadBalancer", "clusterIP": "10.96.0.10",
            "clusterIPs": ["10.96.0.10", "fd96::10"], "externalIPs": ["198.51.100.7", "2001:db8::7", "198.51.100.7"],
            "ports": [{"name": "web", "port": 80, "nodePort": 30080, "targetPort": "http"},
                {"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP"}, {"name": "sctp", "port": 9, "protocol": "SCTP"}],
            "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
            "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30999,
            "loadBalancerSourceRanges": [" 192.0.2.9/24 ", "2001:db8::/32"], "allocateLoadBalancerNodePorts": false,
            "publishNotReadyAddresses": true, "trafficDistribution": "PreferSameNode"},
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}, {"ip": "2001:db8::1", "ipMode": "VIP"},
            {"ip": "203.0.113.2", "ipMode": "Proxy"}, {"hostname": "lb.example"}]}}})
}

fn read(object: Value) -> Result<Service, Problems> {
    service(from(object))
}

fn changed(pointer: &str, value: Value) -> Result<Service, Problems> {
    let mut object = full();
    let (parent, field) = pointer.rsplit_once('/').expect("a pointer");
    match object.pointer_mut(parent).expect("a field") {
        Value::Array(items) => items[field.parse::<usize>().expect("an index")] = value,
        map => map[field] = value,
    }
    read(object)
}

fn routing(pointer: &str, value: Value) -> Routing {
    changed(pointer, value).expect("usable").routing.expect("served")
}

#[test]
fn a_service_with_everything() {
    let read = read(full()).expect("usable");
    assert_eq!((read.name.to_string().as_str(), read.labels.len(), read.selector.len()), ("n/s", 1, 1));
    let port = |name: &str, protocol, port, node_port| ServicePort { name: name.to_owned(), protocol, port, node_port };
    let expected = Routing {
        ports: vec![
            port("web", Protocol::Tcp, 80, 30080),
            port("dns", Protocol::Udp, 53, 30053),
            port("dns-tcp", Protocol::Tcp, 53, 0),
            port("sctp", Protocol::Sctp, 9, 0),
        ],
        cluster_ips: vec![ip("10.96.0.10"), ip("fd96::10")],
        external_ips: vec![ip("198.51.100.7"), ip("2001:db8::7")],
        load_balancer_ips: vec![ip("203.0.113.1"), ip("2001:db8::1")],
        node_ports: true,
        affinity_s: Some(60),
        internal_local: true,
        external_local: true,
        source_ranges: vec![net("192.0.2.0/24"), net("2001:db8::/32")],
        health_check_node_port: Some(30999),
        publish_not_ready: true,
        topology: Topology::SameNode,
        algorithm: Algorithm::Maglev,
        forwarding: Some(Forwarding::Snat),
    };
    assert_eq!(read.routing, Some(expected));
}

#[test]
fn a_service_with_nothing_but_a_port_has_the_defaults() {
    let object = json!({"metadata": {"name": "s", "namespace": "n"}, "spec": {"clusterIP": "fd96::1",
        "ports": [{"port": 80}], "selector": null, "sessionAffinity": null}});
    let read = read(object).expect("usable").routing.expect("served");
    let ports = vec![ServicePort { name: String::new(), protocol: Protocol::Tcp, port: 80, node_port: 0 }];
    assert_eq!(read, Routing { ports, cluster_ips: vec![ip("fd96::1")], ..Routing::default() });
}

#[test]
fn services_that_the_network_does_not_serve() {
    let unserved = |pointer: &str, value: Value| changed(pointer, value).expect("usable").routing.is_none();
    assert!(unserved("/spec/type", json!("ExternalName")));
    assert!(unserved("/spec/clusterIPs", json!(["None"])));
    assert!(unserved("/metadata/labels", json!({"service.kubernetes.io/service-proxy-name": ""})));
    assert!(unserved("/metadata/labels", json!({"service.kubernetes.io/headless": ""})));
    let mut headless = full();
    headless["spec"]["clusterIPs"] = Value::Null;
    headless["spec"]["clusterIP"] = json!("None");
    headless["spec"]["ports"] = json!([]);
    assert!(read(headless.clone()).expect("usable").routing.is_none());
    headless["spec"]["clusterIP"] = json!("");
    assert!(read(headless).expect("usable").routing.is_none(), "it has no address yet");
}

#[test]
fn what_belongs_to_a_type_counts_with_that_type_only() {
    let plain = routing("/spec/type", json!("ClusterIP"));
    assert!(!plain.node_ports && plain.ports.iter().all(|port| port.node_port == 0));
    assert_eq!((plain.load_balancer_ips.len(), plain.source_ranges.len(), plain.health_check_node_port), (0, 0, None));
    let at_nodes = routing("/spec/type", json!("NodePort"));
    assert!(at_nodes.node_ports && at_nodes.ports[0].node_port == 30080 && at_nodes.load_balancer_ips.is_empty());
    assert_eq!(routing("/spec/externalTrafficPolicy", json!("Cluster")).health_check_node_port, None);
    assert_eq!(routing("/spec/sessionAffinity", json!("None")).affinity_s, None);
    assert_eq!(routing("/spec/sessionAffinityConfig", Value::Null).affinity_s, Some(10_800));
}

#[test]
fn preferences_of_whom_to_serve() {
    let with = |distribution: &str, annotations: Value| {
        let mut object = full();
        object["spec"]["trafficDistribution"] = json!(distribution);
        object["metadata"]["annotations"] = annotations;
        read(object).map(|service| service.routing.expect("served").topology)
    };
    let mode = |mode: &str| json!({"service.kubernetes.io/topology-mode": mode});
    assert_eq!(with("PreferClose", json!({})), Ok(Topology::Hints));
    assert_eq!(with("PreferSameZone", json!({})), Ok(Topology::Hints));
    assert_eq!(with("PreferSameNode", mode("Auto")), Ok(Topology::SameNode));
    assert_eq!(with("PreferTheMoon", json!({})), Ok(Topology::None));
    assert_eq!(with("", mode("Auto")), Ok(Topology::Hints));
    assert_eq!(with("", mode("example.com/mine")), Ok(Topology::Hints));
    assert_eq!(with("", mode("Disabled")), Ok(Topology::None));
    assert_eq!(with("", json!({"service.kubernetes.io/topology-aware-hints": "auto"})), Ok(Topology::Hints));
    let problem = with("", mode("Atuo")).expect_err("unknown").to_string();
    assert!(problem.starts_with("metadata.annotations[service.kubernetes.io/topology-mode]: \"Atuo\""), "{problem}");
}

#[test]
fn what_is_wrong_with_a_service_is_named() {
    let table = [
        ("/spec/type", json!("Cluster"), "spec.type: \"Cluster\", expected ClusterIP or NodePort or LoadBalancer"),
        ("/spec/ports", json!([]), "spec.ports: required"),
        ("/spec/ports/0/port", json!(0), "spec.ports[0].port: 0, expected a number from 1 to 65535"),
        ("/spec/ports/1/port", json!(65_536), "spec.ports[1].port: 65536, expected"),
        ("/spec/ports/0/nodePort", json!(-1), "spec.ports[0].nodePort: -1, expected a number from 0 to 65535"),
        ("/spec/ports/0/protocol", json!("ICMP"), "spec.ports[0].protocol: \"ICMP\", expected TCP, UDP or SCTP"),
        ("/spec/ports/1/name", json!(""), "spec.ports[1].name: required"),
        ("/spec/ports/1/name", json!("web"), "spec.ports[1].name: another port has the same name"),
        ("/spec/ports/2/port", json!(80), "spec.ports[2].port: another port has the same number"),
        ("/spec/ports/3", json!({"name": "x", "port": 1, "nodePort": 30080}), "spec.ports[3].nodePort: another port"),
        ("/spec/clusterIPs/0", json!("10.96.0"), "spec.clusterIPs[0]: \"10.96.0\", expected an IP address"),
        ("/spec/clusterIPs/1", json!("10.96.0.11"), "spec.clusterIPs[1]: expected at most one address of each family"),
        ("/spec/clusterIPs/0", json!("127.0.0.1"), "spec.clusterIPs[0]: 127.0.0.1, expected an address that hosts"),
        ("/spec/externalIPs/0", json!("::"), "spec.externalIPs[0]: ::, expected"),
        ("/spec/externalIPs/1", json!("0.0.0.0"), "spec.externalIPs[1]: 0.0.0.0, expected"),
        ("/spec/externalIPs/0", json!("::1"), "spec.externalIPs[0]: ::1, expected"),
        ("/spec/externalIPs/0", json!("169.254.169.254"), "spec.externalIPs[0]: 169.254.169.254, expected an address"),
        ("/spec/externalIPs/0", json!("fe80::1"), "spec.externalIPs[0]: fe80::1, expected an address that is routed"),
        ("/spec/externalIPs/0", json!("224.0.0.1"), "spec.externalIPs[0]: 224.0.0.1, expected"),
        ("/spec/externalIPs/0", json!("ff02::1"), "spec.externalIPs[0]: ff02::1, expected"),
        ("/spec/externalIPs/0", json!("255.255.255.255"), "spec.externalIPs[0]: 255.255.255.255, expected"),
        ("/spec/externalIPs/0", json!("::ffff:10.0.0.1"), "spec.externalIPs[0]: \"::ffff:10.0.0.1\" is an IPv4"),
        ("/status/loadBalancer/ingress/0/ip", json!("127.0.0.1"), "status.loadBalancer.ingress[0].ip: 127.0.0.1"),
        ("/status/loadBalancer/ingress/0/ipMode", json!("vip"), "status.loadBalancer.ingress[0].ipMode: \"vip\""),
        ("/spec/loadBalancerSourceRanges/0", json!("all"), "spec.loadBalancerSourceRanges[0]: \"all\", expected a pre"),
        ("/spec/sessionAffinity", json!("Cookie"), "spec.sessionAffinity: \"Cookie\", expected None or ClientIP"),
        (
            "/spec/sessionAffinityConfig/clientIP/timeoutSeconds",
            json!(0),
            "spec.sessionAffinityConfig.clientIP.timeout",
        ),
        ("/spec/sessionAffinityConfig/clientIP/timeoutSeconds", json!(86_401), "spec.sessionAffinityConfig.clientIP."),
        ("/spec/internalTrafficPolicy", json!("Node"), "spec.internalTrafficPolicy: \"Node\", expected Cluster or L"),
        ("/spec/externalTrafficPolicy", json!("local"), "spec.externalTrafficPolicy: \"local\", expected Cluster or"),
        ("/spec/healthCheckNodePort", json!(70_000), "spec.healthCheckNodePort: 70000, expected"),
    ];
    for (pointer, value, expected) in table {
        let problem = changed(pointer, value).expect_err(expected).to_string();
        assert!(problem.starts_with(expected), "{problem}\n{expected}");
    }
    let annotations = [
        ("lb-algorithm", "least", "\"least\", expected random or maglev"),
        ("forwarding-mode", "DSR", "\"DSR\", expected snat or dsr"),
        ("src-ranges-policy", "deny", "\"deny\", expected allow"),
        ("type", "NodePort", "\"NodePort\", expected none: it is not supported"),
        ("node-selector", "a=b", "\"a=b\", expected none: it is not supported"),
    ];
    for (name, value, expected) in annotations {
        let problem = changed("/metadata/annotations", json!({format!("service.cilium.io/{name}"): value}));
        let problem = problem.expect_err(name).to_string();
        assert_eq!(problem, format!("metadata.annotations[service.cilium.io/{name}]: {expected}"));
    }
    for (word, forwarding) in [("snat", Some(Forwarding::Snat)), ("dsr", Some(Forwarding::Dsr)), ("", None)] {
        let read = changed("/metadata/annotations", json!({"service.cilium.io/forwarding-mode": word})).expect(word);
        assert_eq!(read.routing.expect("it is served").forwarding, forwarding, "{word:?}");
    }
    // All of it at once.
    let mut bad = full();
    bad["spec"]["externalIPs"] = json!(["x", "127.0.0.1"]);
    bad["spec"]["sessionAffinity"] = json!("x");
    assert_eq!(read(bad).expect_err("unusable").into_iter().count(), 3);
}

fn slice_object() -> Value {
    json!({"metadata": {"name": "s-1", "namespace": "n", "labels": {"kubernetes.io/service-name": "s"}},
    "addressType": "IPv6", "ports": [{"name": "web", "port": 8080}, {"name": null, "protocol": "UDP", "port": 53},
        {"name": "all", "port": null}],
    "endpoints": [
        {"addresses": ["fd00::1", "fd00::99"]},
        {"addresses": ["fd00::2"], "conditions": {"ready": false, "serving": true, "terminating": true},
            "nodeName": "node-1", "zone": "z1", "hints": {"forZones": [{"name": "z1"}, {"name": "z2"}]}},
        {"addresses": ["fd00::3"], "conditions": {"ready": false, "serving": null}, "nodeName": null, "hints": null},
    ]})
}

fn slice(object: Value) -> Result<Option<Backends>, Problems> {
    backends(from(object))
}

#[test]
fn endpoint_slices() {
    let read = slice(slice_object()).expect("usable").expect("of a Service");
    assert_eq!((read.service.to_string().as_str(), read.slice.to_string().as_str()), ("n/s", "n/s-1"));
    let port = |name: &str, protocol, port| NamedPort { name: name.to_owned(), protocol, port };
    assert_eq!(read.ports, [port("web", Protocol::Tcp, 8080), port("", Protocol::Udp, 53)]);
    let ending = Backend {
        ready: false,
        terminating: true,
        node: Some("node-1".to_owned()),
        zone: Some("z1".to_owned()),
        for_zones: super::values(&["z1", "z2"]),
        ..Backend::ready(ip("fd00::2"))
    };
    let starting = Backend { ready: false, serving: false, ..Backend::ready(ip("fd00::3")) };
    assert_eq!(read.endpoints, [Backend::ready(ip("fd00::1")), ending, starting]);
    let mut other = slice_object();
    other["addressType"] = json!("FQDN");
    assert_eq!(slice(other.clone()), Ok(None));
    other["addressType"] = json!("IPv6");
    other["metadata"]["labels"] = json!({});
    assert_eq!(slice(other), Ok(None));
}

#[test]
fn what_is_wrong_with_an_endpoint_slice_is_named() {
    let table = [
        ("/addressType", json!("IPv5"), "addressType: \"IPv5\", expected IPv4, IPv6 or FQDN"),
        (
            "/addressType",
            json!("IPv4"),
            "endpoints[0].addresses[0]: fd00::1, expected an address of the slice's family",
        ),
        ("/endpoints/1/addresses", json!([]), "endpoints[1].addresses: required"),
        ("/endpoints/1/addresses/0", json!("fd00"), "endpoints[1].addresses[0]: \"fd00\", expected an IP address"),
        ("/endpoints/1/addresses/0", json!("::1"), "endpoints[1].addresses[0]: ::1, expected"),
        ("/endpoints/1/addresses/0", json!("fe80::1"), "endpoints[1].addresses[0]: fe80::1, expected"),
        ("/ports/0/port", json!(0), "ports[0].port: 0, expected a number from 1 to 65535"),
        ("/ports/0", json!({"port": 1, "protocol": "ICMP"}), "ports[0].protocol: \"ICMP\", expected TCP, UDP or SCTP"),
        ("/ports/1", json!({"name": "web", "port": 1}), "ports: two ports with the name \"web\""),
    ];
    for (pointer, value, expected) in table {
        let mut object = slice_object();
        *object.pointer_mut(pointer).expect("a field") = value;
        let problem = slice(object).expect_err(expected).to_string();
        assert!(problem.starts_with(expected), "{problem}\n{expected}");
    }
}

fn texts() -> impl Strategy<Value = Value> {
    let known = vec![
        "",
        "None",
        "ClusterIP",
        "NodePort",
        "LoadBalancer",
        "ExternalName",
        "ClientIP",
        "Local",
        "Cluster",
        "VIP",
        "Proxy",
        "TCP",
        "UDP",
        "SCTP",
        "IPv4",
        "IPv6",
        "FQDN",
        "10.0.0.1",
        "fd00::1",
        "::",
        "127.0.0.1",
        "169.254.1.1",
        "10.0.0.0/8",
        " ::/0 ",
        "web",
        "Auto",
        "maglev",
        "dsr",
        "PreferClose",
        "\u{0}é",
    ];
    prop_oneof![prop::sample::select(known).prop_map(Value::from), ".{0,6}".prop_map(Value::from), Just(Value::Null)]
}

fn numbers() -> impl Strategy<Value = Value> {
    prop_oneof![any::<i64>().prop_map(Value::from), (-1_i64..70_000).prop_map(Value::from), Just(Value::Null)]
}

prop_compose! {
    fn any_service()(text in prop::collection::vec(texts(), 16), number in prop::collection::vec(numbers(), 6)) -> Value {
        json!({"metadata": {"name": "s", "annotations": {"service.cilium.io/lb-algorithm": text[0].as_str().unwrap_or("")}},
            "spec": {"type": text[1], "clusterIP": text[2], "clusterIPs": [text[3].as_str().unwrap_or("10.9.9.9")],
                "externalIPs": [text[4].as_str().unwrap_or("")], "sessionAffinity": text[5],
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": number[0]}},
                "ports": [{"name": text[6], "protocol": text[7], "port": number[1], "nodePort": number[2]},
                    {"name": text[8], "protocol": text[9], "port": number[3], "nodePort": number[4]}],
                "internalTrafficPolicy": text[10], "externalTrafficPolicy": text[11], "trafficDistribution": text[12],
                "loadBalancerSourceRanges": [text[13].as_str().unwrap_or("")], "healthCheckNodePort": number[5]},
            "status": {"loadBalancer": {"ingress": [{"ip": text[14], "ipMode": text[15]}]}}})
    }
}

proptest! {
    #[test]
    fn whatever_is_taken_can_be_served(object in any_service()) {
        let Ok(read) = read(object) else { return Ok(()) };
        let Some(routing) = read.routing else { return Ok(()) };
        let routed = routing.external_ips.iter().chain(&routing.load_balancer_ips);
        for address in routing.cluster_ips.iter().chain(routed) {
            prop_assert!(!address.is_unspecified() && !address.is_loopback() && !address.is_multicast());
        }
        prop_assert!(!routing.cluster_ips.is_empty() && !routing.ports.is_empty());
        prop_assert!(routing.ports.iter().all(|port| port.port > 0));
        prop_assert!(routing.affinity_s.is_none_or(|seconds| (1..=86_400).contains(&seconds)));
    }

    #[test]
    fn any_endpoint_slice_is_judged(text in prop::collection::vec(texts(), 6), number in numbers(), ready in any::<Option<bool>>()) {
        let object = json!({"metadata": {"name": "x", "labels": {"kubernetes.io/service-name": "s"}},
            "addressType": text[0], "ports": [{"name": text[1], "protocol": text[2], "port": number}],
            "endpoints": [{"addresses": [text[3].as_str().unwrap_or("")], "zone": text[4], "nodeName": text[5],
                "conditions": {"ready": ready}}]});
        if let Ok(Some(read)) = slice(object) {
            prop_assert_eq!(read.endpoints[0].ready, ready.unwrap_or(true));
            prop_assert!(read.ports.iter().all(|port| port.port > 0));
        }
    }
}
