//! Tables of what Kubernetes' words mean, and properties.

use super::*;
use crate::wire::{CiliumEndpointSlice, CiliumIdentity, WireNode, WirePod};
use ipnet::IpNet;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use weft_model::intent::{ObjectName, Peer, Policy, PortMatch, PortRule, Protocol, Rule};
use weft_model::selector::{Requirement, Selector};

fn read(spec: &Value) -> Result<Policy, Problem> {
    let name = ObjectName { namespace: "default".to_owned(), name: "p".to_owned() };
    policy(name, "uid".to_owned(), "7".to_owned(), spec)
}

fn good(spec: Value) -> Policy {
    read(&spec).unwrap_or_else(|problem| panic!("{spec}: {problem}"))
}

fn bad(spec: Value) -> String {
    match read(&spec) {
        Ok(policy) => panic!("{spec} was taken for {policy:?}"),
        Err(problem) => problem.to_string(),
    }
}

fn only_ingress(rule: Value) -> Rule {
    let policy = good(json!({"podSelector": {}, "ingress": [rule]}));
    let mut rules = policy.ingress.expect("ingress");
    assert_eq!(rules.len(), 1);
    rules.remove(0)
}

fn is(key: &str, value: &str) -> Requirement {
    Requirement::In(key.to_owned(), BTreeSet::from([value.to_owned()]))
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

const OPEN: Rule = Rule { peers: None, ports: None };

#[test]
fn which_directions_a_policy_isolates() {
    let rule = json!([{}]);
    // (spec, rules for ingress, rules for egress); None: not isolated.
    let table = [
        (json!({"podSelector": {}}), Some(0), None),
        (json!({"podSelector": {}, "policyTypes": []}), Some(0), None),
        (json!({"podSelector": {}, "policyTypes": null}), Some(0), None),
        (json!({"podSelector": {}, "ingress": []}), Some(0), None),
        (json!({"podSelector": {}, "ingress": null}), Some(0), None),
        (json!({"podSelector": {}, "ingress": rule}), Some(1), None),
        (json!({"podSelector": {}, "egress": rule}), Some(0), Some(1)),
        (json!({"podSelector": {}, "egress": []}), Some(0), None),
        (json!({"podSelector": {}, "policyTypes": ["Ingress"]}), Some(0), None),
        (json!({"podSelector": {}, "policyTypes": ["Egress"]}), None, Some(0)),
        (json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": []}), None, Some(0)),
        (json!({"podSelector": {}, "policyTypes": ["Egress"], "ingress": rule}), None, Some(0)),
        (json!({"podSelector": {}, "policyTypes": ["Ingress"], "egress": rule}), Some(0), None),
        (json!({"podSelector": {}, "policyTypes": ["Egress", "Ingress"], "egress": rule}), Some(0), Some(1)),
        (json!({}), Some(0), None),
        (Value::Null, Some(0), None),
    ];
    for (spec, ingress, egress) in table {
        let policy = good(spec.clone());
        assert_eq!(policy.ingress.map(|rules| rules.len()), ingress, "{spec}");
        assert_eq!(policy.egress.map(|rules| rules.len()), egress, "{spec}");
        assert_eq!(policy.pod_selector, Selector::default());
    }
}

#[test]
fn an_empty_list_of_peers_or_ports_restricts_nothing() {
    for rule in [json!({}), json!({"from": [], "ports": []}), json!({"from": null, "ports": null})] {
        assert_eq!(only_ingress(rule), OPEN);
    }
}

#[test]
fn peers() {
    let peers = |from: Value| only_ingress(json!({"from": from})).peers.expect("peers");
    let app = Selector { requirements: vec![is("app", "a")] };
    let team = Selector { requirements: vec![is("team", "b")] };
    let any = Selector::default();
    let of = |namespaces: Option<&Selector>, pods: &Selector| Peer::Pods {
        namespaces: namespaces.cloned(),
        pods: pods.clone(),
    };
    let (a, b) = (json!({"matchLabels": {"app": "a"}}), json!({"matchLabels": {"team": "b"}}));
    assert_eq!(peers(json!([{"podSelector": a}])), [of(None, &app)]);
    assert_eq!(peers(json!([{"podSelector": {}}])), [of(None, &any)]);
    assert_eq!(peers(json!([{"podSelector": {}, "namespaceSelector": null}])), [of(None, &any)]);
    assert_eq!(peers(json!([{"namespaceSelector": {}}])), [of(Some(&any), &any)]);
    assert_eq!(peers(json!([{"namespaceSelector": b}])), [of(Some(&team), &any)]);
    assert_eq!(peers(json!([{"namespaceSelector": b, "podSelector": a}])), [of(Some(&team), &app)]);
    assert_eq!(peers(json!([{"namespaceSelector": b}, {"podSelector": a}])), [of(Some(&team), &any), of(None, &app)]);
    let block = peers(json!([{"ipBlock": {"cidr": "10.0.0.9/8", "except": ["10.1.0.0/16", "10.2.3.4/32"]}}]));
    let except = vec![net("10.1.0.0/16"), net("10.2.3.4/32")];
    assert_eq!(block, [Peer::Block { cidr: net("10.0.0.0/8"), except }]);
    let block = peers(json!([{"ipBlock": {"cidr": "2001:db8::/32"}}]));
    assert_eq!(block, [Peer::Block { cidr: net("2001:db8::/32"), except: Vec::new() }]);
    assert_eq!(peers(json!([{"ipBlock": {"cidr": "::/0", "except": null}}])).len(), 1);
}

#[test]
fn ports() {
    let ports = |ports: Value| only_ingress(json!({"ports": ports})).ports.expect("ports");
    let rule = |protocol, port| PortRule { protocol, port };
    let table = [
        (json!({}), rule(Protocol::Tcp, PortMatch::Any)),
        (json!({"protocol": "UDP"}), rule(Protocol::Udp, PortMatch::Any)),
        (json!({"port": 80}), rule(Protocol::Tcp, PortMatch::Range(80, 80))),
        (json!({"port": 65535, "protocol": "SCTP"}), rule(Protocol::Sctp, PortMatch::Range(65535, 65535))),
        (json!({"port": 80, "endPort": 80}), rule(Protocol::Tcp, PortMatch::Range(80, 80))),
        (json!({"port": 1, "endPort": 65535}), rule(Protocol::Tcp, PortMatch::Range(1, 65535))),
        (json!({"port": "web"}), rule(Protocol::Tcp, PortMatch::Name("web".to_owned()))),
        (json!({"port": "dns-2", "protocol": "UDP"}), rule(Protocol::Udp, PortMatch::Name("dns-2".to_owned()))),
    ];
    for (port, wanted) in table {
        assert_eq!(ports(json!([port.clone()])), [wanted], "{port}");
    }
}

#[test]
fn selectors() {
    let spec = json!({"podSelector": {"matchLabels": {"a": "1"}, "matchExpressions": [
        {"key": "b", "operator": "In", "values": ["x", "y"]},
        {"key": "c", "operator": "NotIn", "values": ["z"]},
        {"key": "d", "operator": "Exists"},
        {"key": "e", "operator": "DoesNotExist", "values": []},
    ]}});
    let values = |values: &[&str]| values.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    let wanted = vec![
        is("a", "1"),
        Requirement::In("b".to_owned(), values(&["x", "y"])),
        Requirement::NotIn("c".to_owned(), values(&["z"])),
        Requirement::Exists("d".to_owned()),
        Requirement::DoesNotExist("e".to_owned()),
    ];
    assert_eq!(good(spec).pod_selector.requirements, wanted);
}

#[test]
fn complaints_name_the_field_and_what_was_expected() {
    let peer = |peer: Value| json!({"ingress": [{}, {"from": [{"podSelector": {}}, peer]}]});
    let port = |port: Value| json!({"policyTypes": ["Egress"], "egress": [{"ports": [{"port": 1}, port]}]});
    let select = |selector: Value| json!({"podSelector": selector});
    let block = |cidr: &str, except: &[&str]| peer(json!({"ipBlock": {"cidr": cidr, "except": except}}));
    let table = [
        (block("10.0.0.0/24", &["10.1.0.0/16"]), "ipBlock.except[0]: 10.1.0.0/16 is not inside 10.0.0.0/24"),
        (block("10.0.0.0/24", &["10.0.0.0/25", "fd00::/64"]), "ipBlock.except[1]: fd00::/64 is not inside"),
        (block("10.0.0.0/24", &["10.0.0.0/24"]), "is all of 10.0.0.0/24"),
        (block("10.0.0.0", &[]), "spec.ingress[1].from[1].ipBlock.cidr: \"10.0.0.0\", expected a prefix"),
        (block("::ffff:10.0.0.0/104", &[]), "expected an IPv4 prefix"),
        (peer(json!({"ipBlock": {}})), "spec.ingress[1].from[1].ipBlock.cidr: required"),
        (peer(json!({})), "spec.ingress[1].from[1]: expected podSelector, namespaceSelector or ipBlock"),
        (peer(json!({"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}})), "cannot stand beside"),
        (peer(json!({"podSelecter": {}})), "spec.ingress[1].from[1].podSelecter: unknown field"),
        (peer(json!("all")), "spec.ingress[1].from[1]: expected an object, found a string"),
        (port(json!({"port": 0})), "spec.egress[0].ports[1].port: 0, expected a number from 1 to 65535"),
        (port(json!({"port": 65536})), "65536, expected"),
        (port(json!({"port": 1.5})), "1.5, expected"),
        (port(json!({"port": true})), "found a boolean"),
        (port(json!({"port": "80"})), "\"80\", expected a number, or a port's name"),
        (port(json!({"port": "a-name-far-too-long"})), "at most 15"),
        (port(json!({"port": 80, "endPort": 79})), "spec.egress[0].ports[1].endPort: 79 is below port 80"),
        (port(json!({"endPort": 79})), "needs a numeric port"),
        (port(json!({"port": "web", "endPort": 79})), "cannot go with a named port"),
        (port(json!({"protocol": "tcp"})), "spec.egress[0].ports[1].protocol: \"tcp\", expected TCP, UDP or SCTP"),
        (port(json!({"protocol": 6})), "expected a string, found a number"),
        (json!({"policyTypes": ["ingress"]}), "spec.policyTypes[0]: \"ingress\", expected Ingress or Egress"),
        (json!({"policyTypes": "Ingress"}), "spec.policyTypes: expected a list, found a string"),
        (json!({"ingress": {}}), "spec.ingress: expected a list, found an object"),
        (json!({"ingress": [{"to": []}]}), "spec.ingress[0].to: unknown field, expected one of: from, ports"),
        // Also where the policy's types leave the direction out: a policy is right as a whole or not at all.
        (json!({"policyTypes": ["Ingress"], "egress": [{"ports": [{"port": 0}]}]}), "spec.egress[0].ports[0].port"),
        (select(json!([])), "spec.podSelector: expected an object, found a list"),
        (select(json!({"matchLabels": {"a": 1}})), "spec.podSelector.matchLabels.a: expected a string"),
        (select(json!({"matchExpressions": [{"key": "a"}]})), "matchExpressions[0].operator: required"),
        (select(json!({"matchExpressions": [{"operator": "In"}]})), "matchExpressions[0].key: required"),
        (select(json!({"matchExpressions": [{"key": "a", "operator": "In"}]})), "at least one value for In"),
        (
            select(json!({"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["x"]}]})),
            "expected no values for Exists",
        ),
        (select(json!({"matchExpressions": [{"key": "a", "operator": "Gt"}]})), "\"Gt\", expected In, NotIn"),
        (json!([]), "spec: expected an object, found a list"),
    ];
    for (spec, expected) in table {
        let problem = bad(spec.clone());
        assert!(problem.contains(expected), "{spec}\n  said:     {problem}\n  expected: {expected}");
        assert!(problem.starts_with("spec"), "{problem}");
    }
}

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
            ]}],
            "initContainers": [
                {"ports": [{"name": "once", "containerPort": 1}]},
                {"restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 2}]},
            ],
        },
        "status": {"phase": "Running"},
    });
    let read = pod(serde_json::from_value::<WirePod>(object).expect("a pod"));
    let ports: Vec<(&str, u16)> = read.named_ports.iter().map(|port| (port.name.as_str(), port.port)).collect();
    assert_eq!(ports, [("web", 80), ("dns", 53), ("side", 2)]);
    assert_eq!((read.service_account.as_str(), read.finished, read.host_network), ("default", false, false));
    assert_eq!(read.node.as_deref(), Some("node-1"));
    let done = json!({"metadata": {"name": "a"}, "spec": {"hostNetwork": true}, "status": {"phase": "Failed"}});
    let read = pod(serde_json::from_value::<WirePod>(done).expect("a pod"));
    assert!(read.finished && read.host_network && read.node.is_none());
}

#[test]
fn nodes_have_one_address_and_one_prefix_of_each_family() {
    let object = json!({
        "metadata": {"name": "node-1"},
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

/// Any JSON, with a liking for the words of NetworkPolicy.
fn any_json() -> impl Strategy<Value = Value> {
    let word = prop::sample::select(vec![
        "podSelector",
        "namespaceSelector",
        "ipBlock",
        "cidr",
        "except",
        "ports",
        "port",
        "endPort",
        "protocol",
        "from",
        "to",
        "ingress",
        "egress",
        "policyTypes",
        "matchLabels",
        "matchExpressions",
        "key",
        "operator",
        "values",
        "TCP",
        "Ingress",
        "Egress",
        "In",
        "Exists",
        "10.0.0.0/8",
        "10.1.0.0/16",
        "::/0",
        "fd00::/200",
        "web",
        "é\u{0}",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0_u32..70_000).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word.clone().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(word.clone(), inner, 0..5).prop_map(|map| {
                Value::Object(map.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_json_makes_it_panic(spec in any_json()) {
        let _ = read(&spec);
        let text = json!({"metadata": {"name": "x"}, "spec": spec, "status": spec, "endpoints": spec}).to_string();
        let _ = serde_json::from_str::<WirePod>(&text).map(pod);
        let _ = serde_json::from_str::<WireNode>(&text).map(|object| node(&object));
        let _ = serde_json::from_str::<CiliumEndpointSlice>(&text).map(slice);
        let _ = serde_json::from_str::<CiliumIdentity>(&text).map(identity);
    }

    #[test]
    fn a_problem_always_names_a_field(spec in any_json()) {
        if let Err(problem) = read(&spec) {
            prop_assert!(problem.field.starts_with("spec"));
            prop_assert!(!problem.problem.is_empty());
        }
    }
}
