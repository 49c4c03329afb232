//! Known cases with their results written by hand: they judge the oracle and the compiler alike.

use std::collections::BTreeMap;
use std::net::IpAddr;
use weft_control::oracle::feed::Cluster;
use weft_control::oracle::{self, End, Node, Packet, Pod, World};
use weft_model::intent::{NamedPort, ObjectName, Peer, Policy, PortMatch, PortRule, Protocol, Rule};
use weft_model::selector::{Requirement, Selector};

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

// Pods of the world, by index.
const SERVER: End = End::Pod(0);
const CLIENT: End = End::Pod(1);
const STRANGER: End = End::Pod(2);
const MONITOR: End = End::Pod(3);
const SECOND_SERVER: End = End::Pod(4);
const HOST_POD: End = End::Pod(5);
const OWN_NODE: End = End::Node(0);
const OTHER_NODE: End = End::Node(1);

fn outside() -> End {
    End::World("198.51.100.10".parse().unwrap())
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn ips(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|ip| ip.parse().unwrap()).collect()
}

fn pod(namespace: &str, app: &str, n: usize, node: usize, web: u16) -> Pod {
    Pod {
        name: ObjectName { namespace: namespace.to_owned(), name: format!("{app}-{n}") },
        labels: labels(&[("app", app)]),
        node,
        addresses: ips(&[&format!("10.244.{node}.{}", n + 2), &format!("fd44:0:0:{node}::{}", n + 2)]),
        host_network: false,
        named_ports: vec![NamedPort { name: "web".to_owned(), protocol: Protocol::Tcp, port: web }],
    }
}

fn world(policies: Vec<Policy>) -> World {
    let nodes = vec![
        Node { name: "node-1".to_owned(), addresses: ips(&["172.31.0.11", "fd31::11"]) },
        Node { name: "node-2".to_owned(), addresses: ips(&["172.31.0.12", "fd31::12"]) },
    ];
    let mut host_pod = pod("shop", "client", 5, 1, 80);
    host_pod.host_network = true;
    host_pod.addresses.clone_from(&nodes[1].addresses);
    let namespace =
        |name: &str, team: &str| (name.to_owned(), labels(&[("kubernetes.io/metadata.name", name), ("team", team)]));
    World {
        namespaces: [namespace("shop", "a"), namespace("ops", "b")].into(),
        pods: vec![
            pod("shop", "server", 0, 0, 80),
            pod("shop", "client", 1, 1, 80),
            pod("shop", "stranger", 2, 0, 80),
            pod("ops", "client", 3, 0, 80),
            pod("shop", "server", 4, 1, 8080),
            host_pod,
        ],
        nodes,
        policies,
    }
}

fn app(app: &str) -> Selector {
    Selector { requirements: vec![Requirement::In("app".to_owned(), [app.to_owned()].into())] }
}

fn team(team: &str) -> Selector {
    Selector { requirements: vec![Requirement::In("team".to_owned(), [team.to_owned()].into())] }
}

fn all() -> Selector {
    Selector::default()
}

fn policy(subject: Selector, ingress: Option<Vec<Rule>>, egress: Option<Vec<Rule>>) -> Policy {
    Policy {
        kind: "NetworkPolicy",
        name: ObjectName { namespace: "shop".to_owned(), name: "policy".to_owned() },
        uid: "uid".to_owned(),
        resource_version: "1".to_owned(),
        pod_selector: subject,
        ingress,
        egress,
    }
}

fn rule(peers: Option<Vec<Peer>>, ports: Option<Vec<PortRule>>) -> Rule {
    Rule { peers, ports }
}

fn own(selector: Selector) -> Peer {
    Peer::Pods { namespaces: None, pods: selector }
}

fn block(cidr: &str, except: &[&str]) -> Peer {
    Peer::Block { cidr: cidr.parse().unwrap(), except: except.iter().map(|cidr| cidr.parse().unwrap()).collect() }
}

fn port(protocol: Protocol, first: u16, last: u16) -> PortRule {
    PortRule { protocol, port: PortMatch::Range(first, last) }
}

fn check(name: &str, policies: Vec<Policy>, cases: &[(End, End, u8, u16, bool)]) {
    let mut world = world(policies);
    for (n, policy) in world.policies.iter_mut().enumerate() {
        policy.name.name = format!("policy-{n}");
    }
    let cluster = Cluster::new(&world);
    for (from, to, protocol, port, expected) in cases {
        for v6 in [false, true] {
            if world.address(*from, v6).is_none() || world.address(*to, v6).is_none() {
                continue;
            }
            let protocol = if v6 && *protocol == 1 { 58 } else { *protocol };
            let packet = Packet { from: *from, to: *to, v6, protocol, port: *port };
            assert_eq!(oracle::verdict(&world, &packet), *expected, "{name}: the oracle on {packet:?}");
            assert_eq!(cluster.verdict(&world, &packet), *expected, "{name}: the compiler on {packet:?}");
        }
    }
}

#[test]
fn isolation() {
    check("no policy", vec![], &[(CLIENT, SERVER, TCP, 80, true), (outside(), SERVER, UDP, 1, true)]);
    check(
        "deny all ingress",
        vec![policy(all(), Some(vec![]), None)],
        &[
            (CLIENT, SERVER, TCP, 80, false),
            (outside(), SERVER, TCP, 80, false),
            (OTHER_NODE, SERVER, TCP, 80, false),
            (HOST_POD, SERVER, TCP, 80, false),
            // Its own node, itself, another namespace's pods and what leaves it are not concerned.
            (OWN_NODE, SERVER, TCP, 80, true),
            (SERVER, SERVER, TCP, 80, true),
            (SERVER, MONITOR, TCP, 80, true),
            (SERVER, outside(), TCP, 80, true),
            (CLIENT, SERVER, 1, 0, false),
        ],
    );
    check(
        "deny all egress",
        vec![policy(all(), None, Some(vec![]))],
        &[
            (SERVER, MONITOR, TCP, 80, false),
            (SERVER, outside(), TCP, 80, false),
            (SERVER, OWN_NODE, TCP, 80, false),
            (SERVER, SERVER, TCP, 80, true),
            (MONITOR, SERVER, TCP, 80, true),
        ],
    );
    check(
        "allow all beats deny all",
        vec![policy(all(), Some(vec![]), None), policy(all(), Some(vec![rule(None, None)]), None)],
        &[(CLIENT, SERVER, TCP, 80, true), (outside(), SERVER, 1, 0, true)],
    );
    check(
        "an empty list of peers selects nobody",
        vec![policy(all(), Some(vec![rule(Some(vec![]), None)]), None)],
        &[(CLIENT, SERVER, TCP, 80, false)],
    );
    check(
        "both ends must agree",
        vec![
            policy(app("server"), Some(vec![rule(Some(vec![own(app("client"))]), None)]), None),
            policy(app("client"), None, Some(vec![rule(Some(vec![own(app("stranger"))]), None)])),
        ],
        &[(CLIENT, SERVER, TCP, 80, false), (CLIENT, STRANGER, TCP, 80, true), (STRANGER, SERVER, TCP, 80, false)],
    );
}

#[test]
fn peers() {
    let from = |peers| vec![policy(app("server"), Some(vec![rule(Some(peers), None)]), None)];
    check(
        "pods of the own namespace",
        from(vec![own(app("client"))]),
        &[
            (CLIENT, SERVER, TCP, 80, true),
            (MONITOR, SERVER, TCP, 80, false),
            (STRANGER, SERVER, TCP, 80, false),
            (HOST_POD, SERVER, TCP, 80, false),
        ],
    );
    check(
        "every pod of a namespace",
        from(vec![Peer::Pods { namespaces: Some(team("b")), pods: all() }]),
        &[(MONITOR, SERVER, TCP, 80, true), (CLIENT, SERVER, TCP, 80, false)],
    );
    check(
        "every pod of the cluster is not the world",
        from(vec![Peer::Pods { namespaces: Some(all()), pods: all() }]),
        &[
            (MONITOR, SERVER, TCP, 80, true),
            (STRANGER, SERVER, TCP, 80, true),
            (outside(), SERVER, TCP, 80, false),
            (OTHER_NODE, SERVER, TCP, 80, false),
        ],
    );
    check(
        "namespace and pod in one element",
        from(vec![Peer::Pods { namespaces: Some(team("a")), pods: app("client") }]),
        &[(CLIENT, SERVER, TCP, 80, true), (MONITOR, SERVER, TCP, 80, false), (STRANGER, SERVER, TCP, 80, false)],
    );
    check(
        "namespace or pod in two elements",
        from(vec![Peer::Pods { namespaces: Some(team("b")), pods: all() }, own(app("stranger"))]),
        &[(CLIENT, SERVER, TCP, 80, false), (MONITOR, SERVER, TCP, 80, true), (STRANGER, SERVER, TCP, 80, true)],
    );
}

#[test]
fn addresses() {
    let to = |peers| vec![policy(app("client"), None, Some(vec![rule(Some(peers), None)]))];
    check(
        "a block with an exception",
        to(vec![block("198.51.100.0/24", &["198.51.100.8/29"])]),
        &[
            (CLIENT, outside(), TCP, 80, false),
            (CLIENT, End::World("198.51.100.16".parse().unwrap()), TCP, 80, true),
            (CLIENT, End::World("198.51.101.1".parse().unwrap()), TCP, 80, false),
            (CLIENT, SERVER, TCP, 80, false),
        ],
    );
    check(
        "what one block leaves out another may hold",
        to(vec![block("198.51.100.0/24", &["198.51.100.8/29"]), block("198.51.100.10/32", &[])]),
        &[(CLIENT, outside(), TCP, 80, true), (CLIENT, End::World("198.51.100.11".parse().unwrap()), TCP, 80, false)],
    );
    check(
        "blocks hold pods and nodes too",
        to(vec![
            block("10.244.0.0/16", &["10.244.0.4/32"]),
            block("fd44::/48", &["fd44::4/128"]),
            block("172.31.0.11/32", &[]),
            block("fd31::11/128", &[]),
        ]),
        &[
            (CLIENT, SERVER, TCP, 80, true),
            (CLIENT, STRANGER, TCP, 80, false),
            (CLIENT, OWN_NODE, TCP, 80, true),
            (CLIENT, OTHER_NODE, TCP, 80, false),
        ],
    );
    check(
        "every IPv6 address is no IPv4 address",
        to(vec![block("::/0", &[])]),
        &[(CLIENT, outside(), TCP, 80, false), (CLIENT, End::World("2001:db8::1".parse().unwrap()), TCP, 80, true)],
    );
}

#[test]
fn ports() {
    let on = |ports| vec![policy(app("server"), Some(vec![rule(None, Some(ports))]), None)];
    check(
        "one port of one protocol",
        on(vec![port(Protocol::Tcp, 80, 80)]),
        &[
            (outside(), SERVER, TCP, 80, true),
            (CLIENT, SERVER, TCP, 81, false),
            (CLIENT, SERVER, UDP, 80, false),
            (CLIENT, SERVER, SCTP, 80, false),
            (CLIENT, SERVER, 1, 0, false),
        ],
    );
    check(
        "a range",
        on(vec![port(Protocol::Tcp, 8000, 8100)]),
        &[
            (CLIENT, SERVER, TCP, 7999, false),
            (CLIENT, SERVER, TCP, 8000, true),
            (CLIENT, SERVER, TCP, 8050, true),
            (CLIENT, SERVER, TCP, 8100, true),
            (CLIENT, SERVER, TCP, 8101, false),
        ],
    );
    check(
        "every port of a protocol",
        on(vec![PortRule { protocol: Protocol::Sctp, port: PortMatch::Any }]),
        &[(CLIENT, SERVER, SCTP, 5000, true), (CLIENT, SERVER, TCP, 5000, false), (CLIENT, SERVER, 1, 0, false)],
    );
    let web = || PortRule { protocol: Protocol::Tcp, port: PortMatch::Name("web".to_owned()) };
    check(
        "a name is each server's own port",
        on(vec![web()]),
        &[
            (CLIENT, SERVER, TCP, 80, true),
            (CLIENT, SERVER, TCP, 8080, false),
            (CLIENT, SECOND_SERVER, TCP, 8080, true),
            (CLIENT, SECOND_SERVER, TCP, 80, false),
        ],
    );
    check(
        "a name is the port of the pod that a packet goes to, not of its like",
        vec![policy(app("client"), None, Some(vec![rule(Some(vec![own(app("server"))]), Some(vec![web()]))]))],
        &[
            (CLIENT, SERVER, TCP, 80, true),
            (CLIENT, SERVER, TCP, 8080, false),
            (CLIENT, SECOND_SERVER, TCP, 8080, true),
            (CLIENT, SECOND_SERVER, TCP, 80, false),
            (CLIENT, STRANGER, TCP, 80, false),
        ],
    );
    check(
        "rules are not mixed",
        vec![policy(
            app("server"),
            Some(vec![
                rule(Some(vec![own(app("client"))]), Some(vec![port(Protocol::Tcp, 80, 80)])),
                rule(Some(vec![own(app("stranger"))]), Some(vec![port(Protocol::Tcp, 81, 81)])),
            ]),
            None,
        )],
        &[
            (CLIENT, SERVER, TCP, 80, true),
            (CLIENT, SERVER, TCP, 81, false),
            (STRANGER, SERVER, TCP, 81, true),
            (STRANGER, SERVER, TCP, 80, false),
        ],
    );
}
