//! NetworkPolicy: tables of what its words mean.

use super::{bad_spec, good_specs, is, net, values};
use serde_json::{Value, json};
use weft_model::intent::{
    Covers, EndpointSelector, Peer, PolicyKind, PortMatch, PortRule, Protocol, Rule, RuleAction, Spec, Subject, Tier,
};
use weft_model::selector::Requirement;

const KIND: PolicyKind = PolicyKind::NetworkPolicy;

fn good(spec: Value) -> Spec {
    good_specs(KIND, json!({"spec": spec})).remove(0)
}

fn bad(spec: Value) -> String {
    bad_spec(KIND, json!({"spec": spec}))
}

fn only_ingress(rule: Value) -> Rule {
    let mut rules = good(json!({"podSelector": {}, "ingress": [rule]})).ingress;
    assert_eq!(rules.len(), 1);
    assert_eq!(&*rules[0].place, "ingress[0]");
    rules.remove(0)
}

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
        assert_eq!(policy.isolates_ingress.then_some(policy.ingress.len()), ingress, "{spec}");
        assert_eq!(policy.isolates_egress.then_some(policy.egress.len()), egress, "{spec}");
        assert_eq!((policy.tier, policy.log), (Tier::Normal, None));
        let all = EndpointSelector { namespace: Some("default".to_owned()), requirements: Vec::new() };
        assert_eq!(policy.subject, Subject::Endpoints(all));
    }
}

#[test]
fn an_empty_list_of_peers_or_ports_restricts_nothing() {
    for rule in [json!({}), json!({"from": [], "ports": []}), json!({"from": null, "ports": null})] {
        let rule = only_ingress(rule);
        assert_eq!((rule.peers, rule.ports, rule.action), (None, None, RuleAction::Allow));
    }
}

#[test]
fn peers() {
    let peers = |from: Value| only_ingress(json!({"from": from})).peers.expect("peers");
    let app = is("k8s:app", "a");
    let team = is("k8s:io.cilium.k8s.namespace.labels.team", "b");
    let of = |namespace: Option<&str>, requirements: &[&Requirement]| {
        let requirements = requirements.iter().map(|&requirement| requirement.clone()).collect();
        Peer::Endpoints(EndpointSelector { namespace: namespace.map(str::to_owned), requirements })
    };
    let own = Some("default");
    let (a, b) = (json!({"matchLabels": {"app": "a"}}), json!({"matchLabels": {"team": "b"}}));
    assert_eq!(peers(json!([{"podSelector": a}])), [of(own, &[&app])]);
    assert_eq!(peers(json!([{"podSelector": {}}])), [of(own, &[])]);
    assert_eq!(peers(json!([{"podSelector": {}, "namespaceSelector": null}])), [of(own, &[])]);
    assert_eq!(peers(json!([{"namespaceSelector": {}}])), [of(None, &[])]);
    assert_eq!(peers(json!([{"namespaceSelector": b}])), [of(None, &[&team])]);
    assert_eq!(peers(json!([{"namespaceSelector": b, "podSelector": a}])), [of(None, &[&team, &app])]);
    assert_eq!(peers(json!([{"namespaceSelector": b}, {"podSelector": a}])), [of(None, &[&team]), of(own, &[&app])]);
    let block = peers(json!([{"ipBlock": {"cidr": "10.0.0.9/8", "except": ["10.1.0.0/16", "10.2.3.4/32"]}}]));
    let except = vec![net("10.1.0.0/16"), net("10.2.3.4/32")];
    assert_eq!(block, [Peer::Cidr { cidr: net("10.0.0.0/8"), except, covers: Covers::ALL }]);
    let block = peers(json!([{"ipBlock": {"cidr": "2001:db8::/32"}}]));
    assert_eq!(block, [Peer::Cidr { cidr: net("2001:db8::/32"), except: Vec::new(), covers: Covers::ALL }]);
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
    let wanted = vec![
        is("k8s:a", "1"),
        Requirement::In("k8s:b".to_owned(), values(&["x", "y"])),
        Requirement::NotIn("k8s:c".to_owned(), values(&["z"])),
        Requirement::Exists("k8s:d".to_owned()),
        Requirement::DoesNotExist("k8s:e".to_owned()),
    ];
    let selector = EndpointSelector { namespace: Some("default".to_owned()), requirements: wanted };
    assert_eq!(good(spec).subject, Subject::Endpoints(selector));
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
