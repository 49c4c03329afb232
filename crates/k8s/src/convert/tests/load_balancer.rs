//! Pools of load-balancer addresses, and what Services ask of them.

use super::super::*;
use crate::wire::WireCustom;
use serde_json::{Value, json};
use std::net::IpAddr;
use weft_model::intent::{IpPool, LoadBalancerRequest, Protocol, SharingNamespaces};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn pool(spec: Value) -> Result<IpPool, Problems> {
    let object = json!({"metadata": {"name": "p", "creationTimestamp": "2025-01-01T00:00:00Z"}, "spec": spec});
    ip_pool(serde_json::from_value::<WireCustom>(object).expect("an object"))
}

#[test]
fn blocks_are_prefixes_or_ranges() {
    let ends = |spec: Value| -> Vec<(String, String)> {
        let ranges = pool(spec).expect("usable").ranges;
        ranges.iter().map(|range| (range.first.to_string(), range.last.to_string())).collect()
    };
    let pair = |first: &str, last: &str| (first.to_owned(), last.to_owned());
    let blocks = json!([{"cidr": "192.0.2.9/24"}, {"cidr": "2001:db8::/64"}, {"start": "198.51.100.5", "stop":
        "198.51.100.9"}, {"start": "2001:db8:1::7"}, {"cidr": "203.0.113.4/31"}, {"cidr": "203.0.113.9/32"}]);
    let rest = [
        pair("198.51.100.5", "198.51.100.9"),
        pair("2001:db8:1::7", "2001:db8:1::7"),
        pair("203.0.113.4", "203.0.113.5"),
        pair("203.0.113.9", "203.0.113.9"),
    ];
    let mut all = vec![pair("192.0.2.0", "192.0.2.255"), pair("2001:db8::", "2001:db8::ffff:ffff:ffff:ffff")];
    all.extend(rest.clone());
    assert_eq!(ends(json!({"blocks": blocks})), all);
    let mut inner = vec![pair("192.0.2.1", "192.0.2.254"), pair("2001:db8::1", "2001:db8::ffff:ffff:ffff:fffe")];
    inner.extend(rest);
    assert_eq!(ends(json!({"blocks": blocks, "allowFirstLastIPs": "No"})), inner);
    let read = pool(json!({"disabled": true, "serviceSelector": {"matchLabels": {"a": "b"}}})).expect("usable");
    assert!(read.disabled && read.ranges.is_empty() && read.selector.requirements.len() == 1);
    assert_eq!((read.name.as_str(), read.created.as_str()), ("p", "2025-01-01T00:00:00Z"));
}

#[test]
fn what_is_wrong_with_a_pool_is_named() {
    let table = [
        (json!({"cidr": "x"}), "spec.blocks[0].cidr: \"x\", expected a prefix"),
        (json!({"cidr": "10.0.0.0/8", "stop": "10.0.0.9"}), "spec.blocks[0]: expected cidr, or start"),
        (json!({}), "spec.blocks[0]: expected cidr, or start"),
        (json!({"stop": "10.0.0.9"}), "spec.blocks[0]: expected cidr, or start"),
        (json!({"start": "10.0.0.9", "stop": "10.0.0.8"}), "spec.blocks[0].stop: 10.0.0.8, expected an address not b"),
        (json!({"start": "10.0.0.9", "stop": "fd00::1"}), "spec.blocks[0].stop: fd00::1, expected an address of the f"),
        (json!({"start": "100.0.0.0", "stop": "200.0.0.0"}), "spec.blocks[0].start: holds loopback addresses"),
        (json!({"cidr": "0.0.0.0/0"}), "spec.blocks[0].cidr: holds addresses of 0.0.0.0/8"),
        (json!({"cidr": "::/0"}), "spec.blocks[0].cidr: holds addresses of ::/16"),
        (json!({"cidr": "fe80::/64"}), "spec.blocks[0].cidr: holds link-local addresses"),
        (json!({"cidr": "239.0.0.0/8"}), "spec.blocks[0].cidr: holds multicast"),
    ];
    for (block, expected) in table {
        let problem = pool(json!({"blocks": [block]})).expect_err(expected).to_string();
        assert!(problem.starts_with(expected), "{problem}\n{expected}");
    }
    assert!(pool(json!({"allowFirstLastIPs": "no"})).expect_err("unusable").to_string().contains("expected Yes or No"));
    assert!(pool(json!({"cidrs": []})).expect_err("unusable").to_string().starts_with("spec.cidrs: unknown field"));
}

fn request(change: impl Fn(&mut Value)) -> Option<LoadBalancerRequest> {
    let mut object = json!({"metadata": {"name": "s", "namespace": "n", "labels": {"a": "b"}, "annotations": {},
            "creationTimestamp": "2025-01-01T00:00:00Z"},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd96::1"],
            "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack", "selector": {"app": "x"},
            "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 53, "protocol": "UDP"}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"hostname": "x"}]}}});
    change(&mut object);
    load_balancer_request(&serde_json::from_value(object).expect("a Service"))
}

#[test]
fn services_ask_for_addresses() {
    let plain = request(|_| {}).expect("a load balancer");
    assert!(plain.ipv4 && plain.ipv6 && !plain.either && plain.wanted.is_empty() && plain.local_pods.is_none());
    assert_eq!(plain.ports, [(80, Protocol::Tcp), (53, Protocol::Udp)].into());
    assert_eq!(plain.held, [ip("192.0.2.1")]);
    assert_eq!(plain.labels[LoadBalancerRequest::NAME], "s");
    assert_eq!(plain.labels[LoadBalancerRequest::NAMESPACE], "n");
    assert!(request(|s| s["spec"]["type"] = json!("NodePort")).is_none());
    assert!(request(|s| s["spec"]["loadBalancerClass"] = json!("example.com/x")).is_none());
    let one = request(|s| s["spec"]["ipFamilies"] = json!(["IPv6"])).expect("a load balancer");
    assert!(!one.ipv4 && one.ipv6);
    let either = request(|s| s["spec"]["ipFamilyPolicy"] = json!("PreferDualStack")).expect("a load balancer");
    assert!(either.either);
    let guessed = request(|s| s["spec"]["ipFamilies"] = json!(null)).expect("a load balancer");
    assert!(guessed.ipv4 && guessed.ipv6);
    for key in ["lbipam.cilium.io/ips", "io.cilium/lb-ipam-ips"] {
        let wants = request(|s| s["metadata"]["annotations"][key] = json!(" 192.0.2.7, 2001:db8::7,,192.0.2.7"));
        assert_eq!(wants.expect("a load balancer").wanted, [ip("192.0.2.7"), ip("2001:db8::7")]);
    }
    let old = request(|s| s["spec"]["loadBalancerIP"] = json!("192.0.2.8")).expect("a load balancer");
    assert_eq!(old.wanted, [ip("192.0.2.8")]);
    let bad = request(|s| s["metadata"]["annotations"]["lbipam.cilium.io/ips"] = json!("192.0.2.7,x"));
    let bad = bad.expect("a load balancer");
    assert_eq!(bad.problem.as_deref(), Some("lbipam.cilium.io/ips: \"x\", expected an IP address"));
    let shares = request(|s| {
        s["metadata"]["annotations"] = json!({"lbipam.cilium.io/sharing-key": "k",
            "lbipam.cilium.io/sharing-cross-namespace": "m, o"});
        s["spec"]["externalTrafficPolicy"] = json!("Local");
    });
    let shares = shares.expect("a load balancer");
    assert_eq!((shares.sharing_key.as_deref(), shares.local_pods.map(|pods| pods.len())), (Some("k"), Some(1)));
    assert!(shares.sharing_namespaces.contains("o") && !shares.sharing_namespaces.contains("n"));
    let all = request(|s| s["metadata"]["annotations"]["lbipam.cilium.io/sharing-cross-namespace"] = json!("*"));
    assert_eq!(all.expect("a load balancer").sharing_namespaces, SharingNamespaces::All);
}
