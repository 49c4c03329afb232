//! ClusterNetworkPolicy: tables of what its words mean.

use super::{bad_spec, good_specs, is, net};
use serde_json::{Value, json};
use weft_model::intent::{
    Covers, EndpointSelector, Peer, PolicyKind, PortMatch, PortRule, Protocol, RuleAction, Spec, Subject, Tier,
};
use weft_model::selector::Selector;

const KIND: PolicyKind = PolicyKind::ClusterNetworkPolicy;

fn spec(change: impl Fn(&mut Value)) -> Value {
    let mut spec = json!({"tier": "Admin", "priority": 5, "subject": {"namespaces": {}},
        "ingress": [{"action": "Deny", "from": [{"namespaces": {}}]}]});
    change(&mut spec);
    json!({"spec": spec})
}

fn good(change: impl Fn(&mut Value)) -> Spec {
    good_specs(KIND, spec(change)).remove(0)
}

#[test]
fn tiers_subjects_and_actions() {
    let read = good(|_| {});
    assert_eq!((read.tier, read.isolates_ingress, read.isolates_egress), (Tier::Admin(5), false, false));
    assert_eq!(read.subject, Subject::Endpoints(EndpointSelector::EVERY_POD));
    assert_eq!((read.ingress[0].action, &*read.ingress[0].place), (RuleAction::Deny, "ingress[0]"));
    let read = good(|spec| {
        spec["tier"] = json!("Baseline");
        spec["priority"] = json!(1000);
        spec["subject"] = json!({"pods": {"namespaceSelector": {"matchLabels": {"team": "a"}},
            "podSelector": {"matchLabels": {"app": "b"}}}});
        spec["ingress"] = Value::Null;
        spec["egress"] = json!([{"name": "one", "action": "Accept", "to": [{"pods": {"podSelector": {}}}]},
            {"action": "Pass", "to": [{"namespaces": {}}]}]);
    });
    assert_eq!(read.tier, Tier::Baseline(1000));
    let requirements = vec![is("k8s:io.cilium.k8s.namespace.labels.team", "a"), is("k8s:app", "b")];
    assert_eq!(read.subject, Subject::Endpoints(EndpointSelector { namespace: None, requirements }));
    let actions: Vec<RuleAction> = read.egress.iter().map(|rule| rule.action).collect();
    assert_eq!(actions, [RuleAction::Allow, RuleAction::Pass]);
    assert_eq!(read.egress[0].peers, Some(vec![Peer::Endpoints(EndpointSelector::EVERY_POD)]));
    assert_eq!(read.egress[0].ports, None);
}

#[test]
fn peers_and_protocols() {
    let read = good(|spec| {
        spec["egress"] = json!([{"action": "Accept",
            "to": [{"networks": ["10.0.0.0/8", "fd00::/8"]}, {"nodes": {"matchLabels": {"zone": "a"}}}],
            "protocols": [{"tcp": {"destinationPort": {"number": 80}}},
                {"udp": {"destinationPort": {"range": {"start": 1, "end": 9}}}},
                {"sctp": {"destinationPort": {"number": 1}}}]}]);
    });
    let cidr = |cidr: &str| Peer::Cidr { cidr: net(cidr), except: Vec::new(), covers: Covers::ALL };
    let nodes = Peer::Nodes(Selector { requirements: vec![is("zone", "a")] });
    assert_eq!(read.egress[0].peers, Some(vec![cidr("10.0.0.0/8"), cidr("fd00::/8"), nodes]));
    let rule = |protocol, first, last| PortRule { protocol, port: PortMatch::Range(first, last) };
    let wanted = vec![rule(Protocol::Tcp, 80, 80), rule(Protocol::Udp, 1, 9), rule(Protocol::Sctp, 1, 1)];
    assert_eq!(read.egress[0].ports, Some(wanted));
    let read = good(|spec| spec["ingress"][0]["protocols"] = json!([{"destinationNamedPort": "web"}]));
    let ports = read.ingress[0].ports.clone().expect("ports");
    assert_eq!(ports.len(), 3);
    assert!(ports.iter().all(|rule| rule.port == PortMatch::Name("web".to_owned())));
}

#[test]
fn complaints_name_the_field_and_what_was_expected() {
    type Change = fn(&mut Value);
    let table: [(Change, &str); 24] = [
        (|s| s["tier"] = json!("Normal"), "spec.tier: \"Normal\", expected Admin or Baseline"),
        (|s| s["tier"] = Value::Null, "spec.tier: required"),
        (|s| s["priority"] = json!(1001), "spec.priority: 1001, expected a number from 0 to 1000"),
        (|s| s["priority"] = Value::Null, "spec.priority: required"),
        (|s| s["subject"] = json!({}), "spec.subject: expected exactly one of namespaces, pods"),
        (|s| s["subject"] = Value::Null, "spec.subject: required"),
        (|s| s["subject"] = json!({"pods": {}}), "spec.subject.pods.podSelector: required"),
        (|s| s["ingress"][0]["action"] = json!("Allow"), "spec.ingress[0].action: \"Allow\", expected Accept, Deny"),
        (|s| s["ingress"][0]["action"] = Value::Null, "spec.ingress[0].action: required"),
        (|s| s["ingress"][0]["from"] = json!([]), "spec.ingress[0].from: required: at least one peer"),
        (|s| s["ingress"][0]["from"] = json!([{}]), "spec.ingress[0].from[0]: expected exactly one of namespaces"),
        (|s| s["ingress"][0]["from"] = json!([{"networks": ["::/0"]}]), "from[0].networks: unknown field"),
        (|s| s["ingress"][0]["to"] = json!([]), "spec.ingress[0].to: unknown field"),
        (|s| s["ingress"][0]["name"] = json!("x".repeat(101)), "spec.ingress[0].name: 101 characters"),
        (|s| s["ingress"][0]["protocols"] = json!([]), "spec.ingress[0].protocols: expected at least one protocol"),
        (|s| s["ingress"][0]["protocols"] = json!([{}]), "protocols[0]: expected exactly one of tcp"),
        (|s| s["ingress"][0]["protocols"] = json!([{"tcp": {}}]), "protocols[0].tcp.destinationPort: required"),
        (
            |s| s["ingress"][0]["protocols"] = json!([{"tcp": {"destinationPort": {"number": 0}}}]),
            "spec.ingress[0].protocols[0].tcp.destinationPort.number: 0, expected a number from 1 to 65535",
        ),
        (
            |s| s["ingress"][0]["protocols"] = json!([{"udp": {"destinationPort": {"range": {"start": 9, "end": 9}}}}]),
            "destinationPort.range.end: 9, expected more than the start, 9",
        ),
        (|s| s["ingress"] = json!(vec![s["ingress"][0].clone(); 26]), "spec.ingress: 26 elements, expected at most 25"),
        (
            |s| s["egress"] = json!([{"action": "Accept", "to": [{"domainNames": ["a.io"]}]}]),
            "spec.egress[0].to[0].domainNames: not supported yet",
        ),
        (
            |s| s["egress"] = json!([{"action": "Accept", "to": [{"networks": ["10.0.0.0"]}]}]),
            "spec.egress[0].to[0].networks[0]: \"10.0.0.0\", expected a prefix",
        ),
        (
            |s| {
                s["egress"] = json!([{"action": "Deny", "to": [{"networks": ["::/0"]}],
                "protocols": [{"destinationNamedPort": "web"}]}])
            },
            "spec.egress[0].protocols: destinationNamedPort cannot go with networks",
        ),
        (|s| *s = json!([]), "spec: expected an object, found a list"),
    ];
    for (change, expected) in table {
        let problem = bad_spec(KIND, spec(change));
        assert!(problem.contains(expected), "said:     {problem}\nexpected: {expected}");
    }
}
