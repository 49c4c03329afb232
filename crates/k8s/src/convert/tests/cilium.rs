//! CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy: tables of what their words mean.

use super::{EVERYTHING, bad_spec, good_specs, is, net, read, values};
use serde_json::{Value, json};
use weft_model::intent::{
    CidrGroups, Covers, EndpointSelector, Entity, ObjectName, Peer, PolicyKind, PortMatch, PortRule, Protocol, Rule,
    RuleAction, Services, Spec, Subject, Tier,
};
use weft_model::selector::{Requirement, Selector};

const CNP: PolicyKind = PolicyKind::CiliumNetworkPolicy;
const CCNP: PolicyKind = PolicyKind::CiliumClusterwideNetworkPolicy;

fn good(kind: PolicyKind, spec: Value) -> Spec {
    good_specs(kind, json!({"spec": spec})).remove(0)
}

/// The only rule in a list of that name.
fn rule(kind: PolicyKind, list: &str, rule: Value) -> Rule {
    let spec = good(kind, json!({"endpointSelector": {}, list: [rule]}));
    let mut rules = if list.starts_with("ingress") { spec.ingress } else { spec.egress };
    assert_eq!(rules.len(), 1);
    assert_eq!(*rules[0].place, format!("{list}[0]"));
    rules.remove(0)
}

fn peers(list: &str, value: Value) -> Vec<Peer> {
    rule(CNP, list, value).peers.expect("peers")
}

fn ports(value: Value) -> Vec<PortRule> {
    rule(CNP, "egress", value).ports.expect("ports")
}

fn in_namespace(requirements: &[Requirement]) -> EndpointSelector {
    EndpointSelector { namespace: Some("default".to_owned()), requirements: requirements.to_vec() }
}

fn anywhere(requirements: &[Requirement]) -> EndpointSelector {
    EndpointSelector { namespace: None, requirements: requirements.to_vec() }
}

#[test]
fn which_directions_a_policy_isolates() {
    let all = json!([{"fromEntities": ["all"]}]);
    // (what stands beside the selector, isolates ingress, isolates egress, rules for ingress, for egress)
    let table = [
        (json!({"ingress": [{}]}), true, false, 1, 0),
        (json!({"ingress": all}), true, false, 1, 0),
        (json!({"ingressDeny": all}), true, false, 1, 0),
        (json!({"ingress": all, "ingressDeny": all}), true, false, 2, 0),
        (json!({"egress": [{}]}), false, true, 0, 1),
        (json!({"egressDeny": [{}], "ingress": null}), false, true, 0, 1),
        (json!({"ingress": [{}], "egress": [{}]}), true, true, 1, 1),
        // A list without elements does not apply.
        (json!({"ingress": []}), false, false, 0, 0),
        (json!({"ingress": [], "egress": [{}]}), false, true, 0, 1),
        (json!({"ingressDeny": all, "enableDefaultDeny": {"ingress": false}}), false, false, 1, 0),
        (json!({"ingress": all, "enableDefaultDeny": {"egress": true}}), true, true, 1, 0),
        (json!({"ingress": [], "enableDefaultDeny": {"ingress": true, "egress": null}}), true, false, 0, 0),
    ];
    for kind in [CNP, CCNP] {
        for (mut spec, ingress, egress, in_rules, out_rules) in table.clone() {
            spec["endpointSelector"] = json!({});
            let read = good(kind, spec.clone());
            assert_eq!((read.isolates_ingress, read.isolates_egress), (ingress, egress), "{spec}");
            assert_eq!((read.ingress.len(), read.egress.len()), (in_rules, out_rules), "{spec}");
            assert_eq!(read.tier, Tier::Normal);
        }
    }
}

#[test]
fn spec_and_specs_are_parts_of_their_own() {
    let part = |list: &str| json!({"endpointSelector": {}, list: [{}, {}]});
    let specs = good_specs(CNP, json!({"spec": part("ingress"), "specs": [part("egress"), part("egressDeny")]}));
    let places: Vec<&str> = specs.iter().flat_map(|s| s.ingress.iter().chain(&s.egress)).map(|r| &*r.place).collect();
    let wanted = [
        "ingress[0]",
        "ingress[1]",
        "specs[0].egress[0]",
        "specs[0].egress[1]",
        "specs[1].egressDeny[0]",
        "specs[1].egressDeny[1]",
    ];
    assert_eq!(places, wanted);
    assert_eq!(specs[2].egress[0].action, RuleAction::Deny);
    assert_eq!(good_specs(CNP, json!({"specs": [part("ingress")]})).len(), 1);
}

#[test]
fn subjects() {
    let subject = |kind, selector: Value| good(kind, json!({"endpointSelector": selector, "ingress": [{}]})).subject;
    assert_eq!(subject(CNP, json!({})), Subject::Endpoints(in_namespace(&[])));
    assert_eq!(subject(CCNP, json!({})), Subject::Endpoints(EndpointSelector::EVERY_POD));
    let own = json!({"matchLabels": {"k8s:io.kubernetes.pod.namespace": "default", "app": "a"}});
    let wanted = [is("any:app", "a"), is("k8s:io.kubernetes.pod.namespace", "default")];
    assert_eq!(subject(CNP, own), Subject::Endpoints(in_namespace(&wanted)));
    let nodes = json!({"nodeSelector": {"matchLabels": {"node-role.kubernetes.io/worker": "", "k8s:zone": "a"}},
        "ingress": [{}]});
    let wanted = Selector { requirements: vec![is("zone", "a"), is("node-role.kubernetes.io/worker", "")] };
    let specs = read(CCNP, &json!({"spec": nodes}), EVERYTHING).expect("usable");
    assert_eq!(specs[0].subject, Subject::Nodes(wanted));
    assert!(bad_spec(CCNP, json!({"spec": nodes})).contains("spec.nodeSelector: expected only where the host"));
}

#[test]
fn which_pods_a_selector_of_peers_means() {
    let of = |kind, selector: Value| rule(kind, "ingress", json!({"fromEndpoints": [selector]})).peers.expect("peers");
    let labels = |key: &str, value: &str| json!({"matchLabels": {key: value}});
    // (selector, as a policy of a namespace reads it)
    let table = [
        (json!({}), in_namespace(&[])),
        (labels("app", "a"), in_namespace(&[is("any:app", "a")])),
        (labels("any:app", "a"), in_namespace(&[is("any:app", "a")])),
        (labels("k8s:app", "a"), in_namespace(&[is("k8s:app", "a")])),
        (labels("k8s:io.kubernetes.pod.namespace", "b"), anywhere(&[is("k8s:io.kubernetes.pod.namespace", "b")])),
        (labels("io.kubernetes.pod.namespace", "b"), anywhere(&[is("any:io.kubernetes.pod.namespace", "b")])),
        (
            labels("k8s:io.cilium.k8s.namespace.labels.team", "b"),
            anywhere(&[is("k8s:io.cilium.k8s.namespace.labels.team", "b")]),
        ),
        (labels("reserved:host", ""), anywhere(&[is("reserved:host", "")])),
        (
            json!({"matchExpressions": [{"key": "reserved:health", "operator": "DoesNotExist"}]}),
            in_namespace(&[Requirement::DoesNotExist("reserved:health".to_owned())]),
        ),
        (
            json!({"matchExpressions": [{"key": "k8s:io.kubernetes.pod.namespace", "operator": "Exists"},
                {"key": "app", "operator": "NotIn", "values": ["x", "y"]}]}),
            anywhere(&[
                Requirement::Exists("k8s:io.kubernetes.pod.namespace".to_owned()),
                Requirement::NotIn("any:app".to_owned(), values(&["x", "y"])),
            ]),
        ),
    ];
    for (selector, wanted) in table {
        let wide = EndpointSelector { namespace: None, requirements: wanted.requirements.clone() };
        assert_eq!(of(CNP, selector.clone()), [Peer::Endpoints(wanted)], "{selector}");
        assert_eq!(of(CCNP, selector.clone()), [Peer::Endpoints(wide)], "{selector}");
    }
}

#[test]
fn an_element_without_peers_means_any_and_an_empty_list_nobody() {
    let port = json!([{"ports": [{"port": "80", "protocol": "TCP"}]}]);
    let only_ports = rule(CNP, "ingress", json!({"toPorts": port}));
    assert_eq!(only_ports.peers, None);
    assert!(only_ports.ports.is_some());
    for nobody in [
        json!({}),
        json!({"toPorts": []}),
        json!({"fromEndpoints": []}),
        json!({"fromEndpoints": [], "toPorts": port}),
        json!({"fromCIDR": [], "toPorts": port}),
        json!({"fromEntities": []}),
    ] {
        for list in ["ingress", "ingressDeny"] {
            assert_eq!(rule(CNP, list, nobody.clone()).peers, Some(Vec::new()), "{nobody}");
        }
    }
    let only_peers = rule(CNP, "ingress", json!({"fromEndpoints": [{}], "toPorts": [], "icmps": []}));
    assert_eq!(only_peers.ports, None);
    let null = rule(CNP, "ingress", json!({"fromEndpoints": null, "fromCIDR": ["10.0.0.0/8"], "fromRequires": null}));
    assert_eq!(null.peers.map(|peers| peers.len()), Some(1));
}

#[test]
fn prefixes_and_groups_of_them() {
    let cidr = |cidr: &str, except: &[&str]| Peer::Cidr {
        cidr: net(cidr),
        except: except.iter().map(|text| net(text)).collect(),
        covers: Covers::WORLD,
    };
    assert_eq!(
        peers("egress", json!({"toCIDR": ["10.1.2.3/8", "192.0.2.1", "fd00::/8", "fd00::1"]})),
        [cidr("10.0.0.0/8", &[]), cidr("192.0.2.1/32", &[]), cidr("fd00::/8", &[]), cidr("fd00::1/128", &[])]
    );
    let set = json!({"toCIDRSet": [{"cidr": "10.0.0.0/8", "except": ["10.96.0.0/12"]}, {"cidr": "::/0"}]});
    assert_eq!(peers("egress", set), [cidr("10.0.0.0/8", &["10.96.0.0/12"]), cidr("::/0", &[])]);
    let groups = |groups| Peer::CidrGroups { groups, covers: Covers::WORLD };
    let set = json!({"fromCIDRSet": [{"cidrGroupRef": "vpn"},
        {"cidrGroupSelector": {"matchLabels": {"role": "vpn"}}, "except": []}]});
    let selector = Selector { requirements: vec![is("role", "vpn")] };
    let wanted = [groups(CidrGroups::Name("vpn".to_owned())), groups(CidrGroups::Selector(selector))];
    assert_eq!(peers("ingressDeny", set), wanted);
    let object = json!({"spec": {"endpointSelector": {}, "egress": [{"toCIDR": ["::/0"]}]}});
    let specs = read(CNP, &object, EVERYTHING).expect("usable");
    let wanted = Peer::Cidr { cidr: net("::/0"), except: Vec::new(), covers: Covers::ALL };
    assert_eq!(specs[0].egress[0].peers, Some(vec![wanted]));
}

#[test]
fn entities_nodes_and_services() {
    let names = [
        "all",
        "world",
        "world-ipv4",
        "world-ipv6",
        "host",
        "remote-node",
        "kube-apiserver",
        "ingress",
        "health",
        "init",
        "unmanaged",
        "cluster",
        "none",
    ];
    let read = peers("ingress", json!({"fromEntities": names}));
    assert_eq!(read.len(), names.len());
    assert_eq!(read[6], Peer::Entity(Entity::KubeApiserver));
    let zone = Selector { requirements: vec![is("zone", "a")] };
    let nodes = json!([{"matchLabels": {"zone": "a"}}]);
    assert_eq!(peers("ingress", json!({"fromNodes": nodes})), [Peer::Nodes(zone.clone())]);
    assert_eq!(peers("egressDeny", json!({"toNodes": nodes})), [Peer::Nodes(zone.clone())]);
    let name = |namespace: &str| ObjectName { namespace: namespace.to_owned(), name: "s".to_owned() };
    let services = json!([
        {"k8sService": {"serviceName": "s", "namespace": "n"}},
        {"k8sService": {"serviceName": "s"}},
        {"k8sServiceSelector": {"selector": {"matchLabels": {"zone": "a"}}, "namespace": "n"}},
        {"k8sServiceSelector": {"selector": {"matchLabels": {"zone": "a"}}}},
    ]);
    let wanted = [
        Services::Name(name("n")),
        Services::Name(name("default")),
        Services::Selector { namespace: Some("n".to_owned()), selector: zone.clone() },
        Services::Selector { namespace: None, selector: zone },
    ];
    assert_eq!(peers("egress", json!({"toServices": services})), wanted.map(Peer::Services));
}

#[test]
fn ports_and_protocols() {
    let port = |port: Value| ports(json!({"toPorts": [{"ports": [port]}]}));
    let all = |port: PortMatch| {
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
            .map(|protocol| PortRule { protocol, port: port.clone() })
            .to_vec()
    };
    let tcp = |port: PortMatch| vec![PortRule { protocol: Protocol::Tcp, port }];
    let name = |name: &str| PortMatch::Name(name.to_owned());
    let table = [
        (json!({"port": "80"}), all(PortMatch::Range(80, 80))),
        (json!({"port": "80", "protocol": "ANY"}), all(PortMatch::Range(80, 80))),
        (json!({"port": "0"}), all(PortMatch::Any)),
        (json!({"port": "0", "protocol": "TCP"}), tcp(PortMatch::Any)),
        (json!({"port": "80", "protocol": "TCP", "endPort": 90}), tcp(PortMatch::Range(80, 90))),
        (json!({"port": "80", "protocol": "TCP", "endPort": 0}), tcp(PortMatch::Range(80, 80))),
        (json!({"port": "65535", "protocol": "TCP", "endPort": 65535}), tcp(PortMatch::Range(65535, 65535))),
        (json!({"port": "web", "protocol": "TCP"}), tcp(name("web"))),
        (json!({"port": "Web-2", "protocol": "TCP", "endPort": 90}), tcp(name("web-2"))),
    ];
    for (value, wanted) in table {
        assert_eq!(port(value.clone()), wanted, "{value}");
    }
    let several = json!({"toPorts": [{"ports": [{"port": "1", "protocol": "TCP"}, {"port": "2", "protocol": "UDP"}]},
        {"ports": [{"port": "3", "protocol": "SCTP"}], "rules": {}, "serverNames": [], "listener": null}]});
    assert_eq!(ports(several).len(), 3);
    for (text, protocol) in [("VRRP", Protocol::Vrrp), ("IGMP", Protocol::Igmp), ("AH", Protocol::Ah)] {
        for port in [json!({"protocol": text}), json!({"protocol": text, "port": "0"})] {
            let object = json!({"spec": {"endpointSelector": {}, "ingress": [{"toPorts": [{"ports": [port]}]}]}});
            let specs = read(CNP, &object, EVERYTHING).expect("usable");
            assert_eq!(specs[0].ingress[0].ports, Some(vec![PortRule { protocol, port: PortMatch::Any }]));
        }
    }
}

#[test]
fn types_of_icmp_messages() {
    let types = |fields: Value| ports(json!({"icmps": [{"fields": fields}]}));
    let rule = |protocol, number| PortRule { protocol, port: PortMatch::Range(number, number) };
    let (v4, v6) = (Protocol::Icmp, Protocol::Icmpv6);
    let table = [
        (json!({"type": 8}), rule(v4, 8)),
        (json!({"type": "8"}), rule(v4, 8)),
        (json!({"type": 255, "family": "IPv4"}), rule(v4, 255)),
        (json!({"type": "EchoRequest"}), rule(v4, 8)),
        (json!({"type": "DestinationUnreachable"}), rule(v4, 3)),
        (json!({"type": "ExtendedEchoReply"}), rule(v4, 43)),
        (json!({"type": "EchoRequest", "family": "IPv6"}), rule(v6, 128)),
        (json!({"type": "NeighborSolicitation", "family": "IPv6"}), rule(v6, 135)),
        (json!({"type": "DestinationUnreachable", "family": "IPv6"}), rule(v6, 1)),
        (json!({"type": 136, "family": "IPv6"}), rule(v6, 136)),
    ];
    for (field, wanted) in table {
        assert_eq!(types(json!([field.clone()])), [wanted], "{field}");
    }
    let both = ports(json!({"icmps": [{"fields": [{"type": 0}, {"type": 8}]}, {"fields": [{"type": 3}]}]}));
    assert_eq!(both.len(), 3);
}

#[test]
fn what_is_there_for_people() {
    let spec = |log: Value| {
        good(
            CNP,
            json!({"endpointSelector": {}, "ingress": [{}], "log": log,
        "description": "what for", "labels": [{"key": "a", "value": "b", "source": "k8s"}]}),
        )
    };
    assert_eq!(spec(json!({"value": "why: this"})).log.as_deref(), Some("why: this"));
    assert_eq!(spec(json!({"value": "x".repeat(32)})).log.map(|log| log.len()), Some(32));
    assert_eq!(spec(json!({"value": ""})).log, None);
    assert_eq!(spec(json!({})).log, None);
    let rule = rule(CNP, "ingress", json!({"fromEndpoints": [{}], "authentication": {"mode": "disabled"}}));
    assert_eq!(rule.action, RuleAction::Allow);
}

#[test]
fn complaints_name_the_field_and_what_was_expected() {
    let part = |list: &'static str| move |value: Value| json!({"spec": {"endpointSelector": {}, list: [{}, value]}});
    let (from, to, deny) = (part("ingress"), part("egress"), part("egressDeny"));
    let ports = |value: Value| to(json!({"toPorts": [value]}));
    let port = |value: Value| to(json!({"toPorts": [{"ports": [{"port": "1"}, value]}]}));
    let icmp = |value: Value| to(json!({"icmps": [{"fields": [value]}]}));
    let set = |value: Value| to(json!({"toCIDRSet": [value]}));
    let with_rules = |rules: Value| ports(json!({"ports": [{"port": "80", "protocol": "TCP"}], "rules": rules}));
    let many = |n: usize| vec![json!({"port": "1"}); n];
    let top = |spec: Value| json!({"spec": spec});
    let table = [
        // What a proxy is needed for.
        (with_rules(json!({"http": [{"path": "/"}]})), "spec.egress[1].toPorts[0].rules.http: not supported yet"),
        (with_rules(json!({"dns": [{"matchPattern": "*"}]})), "spec.egress[1].toPorts[0].rules.dns: not supported yet"),
        (with_rules(json!({"kafka": []})), "rules.kafka: not supported yet"),
        (with_rules(json!({"l7proto": "x"})), "rules.l7proto: not supported yet"),
        (with_rules(json!({"l7": [{}]})), "rules.l7: not supported yet"),
        (with_rules(json!({"https": []})), "rules.https: unknown field"),
        (ports(json!({"ports": [{"port": "1"}], "terminatingTLS": {}})), "toPorts[0].terminatingTLS: not supported"),
        (ports(json!({"ports": [{"port": "1"}], "originatingTLS": {}})), "toPorts[0].originatingTLS: not supported"),
        (ports(json!({"ports": [{"port": "1"}], "serverNames": ["a"]})), "toPorts[0].serverNames: not supported yet"),
        (ports(json!({"ports": [{"port": "1"}], "listener": {}})), "toPorts[0].listener: not supported yet"),
        (from(json!({"toPorts": [{"ports": [{"port": "1"}], "listener": {}}]})), "listener: expected in egress only"),
        (deny(json!({"toPorts": [{"ports": [{"port": "1"}], "rules": {}}]})), "rules: not part of rules that deny"),
        (to(json!({"toFQDNs": [{"matchName": "a.io"}]})), "spec.egress[1].toFQDNs: not supported yet"),
        (deny(json!({"toFQDNs": []})), "spec.egressDeny[1].toFQDNs: not part of rules that deny"),
        (to(json!({"toGroups": []})), "spec.egress[1].toGroups: not supported yet"),
        (from(json!({"fromGroups": []})), "spec.ingress[1].fromGroups: not supported yet"),
        (from(json!({"authentication": {"mode": "required"}})), "spec.ingress[1].authentication.mode: not supported"),
        (from(json!({"authentication": {}})), "spec.ingress[1].authentication: expected mode"),
        (deny(json!({"authentication": {"mode": "disabled"}})), "authentication: not part of rules that deny"),
        (from(json!({"fromRequires": []})), "spec.ingress[1].fromRequires: no longer part of the API"),
        // Fields.
        (from(json!({"fromEndpoint": []})), "spec.ingress[1].fromEndpoint: unknown field, expected one of: fromEnd"),
        (from(json!({"toEndpoints": []})), "spec.ingress[1].toEndpoints: unknown field"),
        (from(json!({"toFQDNs": []})), "spec.ingress[1].toFQDNs: unknown field"),
        (ports(json!({"ports": [{"port": "1"}], "port": "1"})), "spec.egress[1].toPorts[0].port: unknown field"),
        (port(json!({"port": "1", "proto": "TCP"})), "spec.egress[1].toPorts[0].ports[1].proto: unknown field"),
        (top(json!({"endpointSelector": {}, "ingres": []})), "spec.ingres: unknown field"),
        // Peers.
        (
            to(json!({"toCIDR": ["10.0.0.0/8"], "toCIDRSet": []})),
            "spec.egress[1].toCIDRSet: cannot stand beside toCIDR",
        ),
        (to(json!({"toEntities": ["world"], "toEndpoints": [{}]})), "cannot stand beside toEndpoints"),
        (to(json!({"toEntities": ["everyone"]})), "spec.egress[1].toEntities[0]: \"everyone\", expected one of: all"),
        (to(json!({"toCIDR": ["10.0.0.0/33"]})), "spec.egress[1].toCIDR[0]: \"10.0.0.0/33\", expected a prefix"),
        (to(json!({"toCIDR": ["::ffff:10.0.0.1"]})), "IPv4 addresses in IPv6 form"),
        (set(json!({"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]})), "toCIDRSet[0].except[0]: 11.0.0.0/16 is not"),
        (set(json!({})), "spec.egress[1].toCIDRSet[0]: expected exactly one of cidr, cidrGroupRef"),
        (set(json!({"cidr": "::/0", "cidrGroupRef": "a"})), "expected exactly one of cidr, cidrGroupRef"),
        (set(json!({"cidrGroupRef": "a", "except": ["::/0"]})), "toCIDRSet[0].except: expected beside cidr only"),
        (to(json!({"toServices": [{}]})), "spec.egress[1].toServices[0]: expected exactly one of k8sService"),
        (to(json!({"toServices": [{"k8sService": {}}]})), "toServices[0].k8sService.serviceName: required"),
        (to(json!({"toEndpoints": [{"matchLabels": {"cidr:10.0.0.0/8": ""}}]})), "expected a label's key, with source"),
        (to(json!({"toEndpoints": [{"matchLabels": {"k8s:": ""}}]})), "expected a label's key, with source"),
        (to(json!({"toNodes": [{"matchLabels": {"reserved:host": ""}}]})), "expected a label of the Node"),
        (to(json!({"toEndpoints": {}})), "spec.egress[1].toEndpoints: expected a list, found an object"),
        // Ports.
        (port(json!({})), "spec.egress[1].toPorts[0].ports[1].port: required"),
        (port(json!({"port": 80})), "ports[1].port: expected a string, such as \"80\", found a number"),
        (port(json!({"port": "65536"})), "\"65536\", expected a number from 0 to 65535, or a port's name"),
        (port(json!({"port": "080"})), "\"080\", expected a number"),
        (port(json!({"port": "80", "endPort": 79})), "ports[1].endPort: 79 is below port 80"),
        (port(json!({"port": "0", "endPort": 79})), "ports[1].endPort: cannot go with port 0"),
        (port(json!({"port": "80", "protocol": "tcp"})), "ports[1].protocol: \"tcp\", expected one of: TCP, UDP"),
        (port(json!({"port": "80", "protocol": "ICMP"})), "expected such rules in icmps"),
        (port(json!({"protocol": "VRRP"})), "expected only where extended protocols are switched on"),
        (ports(json!({"ports": []})), "spec.egress[1].toPorts[0].ports: expected at least one port"),
        (ports(json!({"ports": many(41)})), "toPorts[0].ports: 41 elements, expected at most 40"),
        (icmp(json!({})), "spec.egress[1].icmps[0].fields[0].type: required"),
        (icmp(json!({"type": 256})), "fields[0].type: 256, expected a number from 0 to 255"),
        (icmp(json!({"type": "PacketTooBig"})), "the name of a type of IPv4"),
        (icmp(json!({"type": "Redirect", "family": "IPv6"})), "the name of a type of IPv6"),
        (icmp(json!({"type": 1, "family": "ipv6"})), "fields[0].family: \"ipv6\", expected IPv4 or IPv6"),
        (to(json!({"icmps": [{"fields": vec![json!({"type": 1}); 41]}]})), "icmps[0].fields: 41 elements"),
        (
            to(json!({"icmps": [{"fields": [{"type": 1}]}], "toPorts": [{"ports": [{"port": "1"}]}]})),
            "spec.egress[1].icmps: cannot stand beside toPorts",
        ),
        // The whole.
        (json!({}), "spec: required: spec or specs"),
        (json!({"specs": []}), "spec: required: spec or specs"),
        (json!({"specs": {}}), "specs: expected a list, found an object"),
        (json!({"specs": [{"endpointSelector": {}, "egress": [{"toCIDR": [1]}]}]}), "specs[0].egress[0].toCIDR[0]: ex"),
        (top(json!({"ingress": [{}]})), "spec: expected an endpointSelector"),
        (top(json!({"endpointSelector": {}})), "spec: expected at least one of ingress, ingressDeny, egress"),
        (top(json!({"nodeSelector": {}, "ingress": [{}]})), "nodeSelector: expected only in a CiliumClusterwide"),
        (
            top(
                json!({"endpointSelector": {"matchLabels": {"k8s:io.kubernetes.pod.namespace": "b"}}, "ingress": [{}]}),
            ),
            "spec.endpointSelector: selects pods of another namespace",
        ),
        (
            top(json!({"endpointSelector": {}, "ingress": [{}], "log": {"value": "x".repeat(33)}})),
            "spec.log.value: 33 characters, expected at most 32",
        ),
        (top(json!({"endpointSelector": {}, "ingress": [{}], "log": {"value": "a\nb"}})), "printable"),
        (top(json!({"endpointSelector": {}, "ingress": [{}], "description": 1})), "spec.description: expected a str"),
        (
            top(json!({"endpointSelector": {}, "ingress": [{}], "enableDefaultDeny": {"ingress": "no"}})),
            "spec.enableDefaultDeny.ingress: expected true or false, found a string",
        ),
    ];
    for (object, expected) in table {
        let problem = bad_spec(CNP, object.clone());
        assert!(problem.contains(expected), "{object}\n  said:     {problem}\n  expected: {expected}");
    }
    let both = json!({"spec": {"endpointSelector": {}, "nodeSelector": {}, "ingress": [{}]}});
    assert!(bad_spec(CCNP, both).starts_with("spec.nodeSelector: cannot stand beside endpointSelector"));
    let nameless = json!({"spec": {"endpointSelector": {}, "egress": [{"toServices": [
        {"k8sService": {"serviceName": "s"}}]}]}});
    assert!(bad_spec(CCNP, nameless).contains("toServices[0].k8sService.namespace: required"));
}

#[test]
fn every_problem_is_told() {
    let object = json!({"spec": {"endpointSelectors": {}, "x": 1}, "specs": [{"endpointSelector": {}, "ingress": [
        {"fromCIDR": ["a", "b"], "toPorts": [{"ports": [{"port": "x y"}, {"port": "1"}, {"port": 1}]}]}]}]});
    let problems = read(CNP, &object, super::Settings::default()).expect_err("unusable");
    let fields: Vec<String> = problems.clone().into_iter().map(|problem| problem.field).collect();
    let wanted = [
        "spec.endpointSelectors",
        "spec.x",
        "specs[0].ingress[0].fromCIDR[0]",
        "specs[0].ingress[0].fromCIDR[1]",
        "specs[0].ingress[0].toPorts[0].ports[0].port",
        "specs[0].ingress[0].toPorts[0].ports[2].port",
    ];
    assert_eq!(fields, wanted);
    assert!(problems.to_string().ends_with("(and 5 more problems)"), "{problems}");
}

#[test]
fn a_denial_that_could_hit_nobody_is_refused() {
    let selector = json!({"matchExpressions": [{"key": "pod-template-hash", "operator": "NotIn", "values": ["a"]}]});
    let denying = json!({"spec": {"endpointSelector": {}, "ingressDeny": [{"fromEndpoints": [selector]}]}});
    let problem = bad_spec(CNP, denying);
    assert!(problem.contains("spec.ingressDeny[0]") && problem.contains("pod-template-hash"), "{problem}");
    // One that allows is on the safe side; as a subject the label counts.
    rule(CNP, "ingress", json!({"fromEndpoints": [selector]}));
    good(CNP, json!({"endpointSelector": selector, "ingressDeny": [{"fromEntities": ["all"]}]}));
}
