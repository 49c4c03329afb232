//! Known cases with their results written by hand: they judge the oracle and the compiler alike.

use std::collections::BTreeMap;
use std::net::IpAddr;
use weft_model::intent::{
    Covers, EndpointSelector, Entity, NamedPort, ObjectName, Peer, Policy, PolicyKind, PolicyName, PortMatch, PortRule,
    Protocol, Rule, RuleAction, Spec, Subject, Tier,
};
use weft_model::label::NAMESPACE_LABELS;
use weft_model::selector::{Requirement, Selector};
use weft_oracle::{End, Node, Packet, Pod, World};
use weft_trial::Cluster;

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
        namespace: namespace.to_owned(),
        name: format!("{app}-{n}"),
        labels: labels(&[("app", app)]),
        service_account: "default".to_owned(),
        node,
        addresses: ips(&[&format!("10.244.{node}.{}", n + 2), &format!("fd44:0:0:{node}::{}", n + 2)]),
        host_network: false,
        named_ports: vec![NamedPort { name: "web".to_owned(), protocol: Protocol::Tcp, port: web }],
        reserved: None,
    }
}

fn world(policies: Vec<Policy>) -> World {
    let nodes = vec![
        Node {
            name: "node-1".to_owned(),
            labels: labels(&[("role", "edge")]),
            addresses: ips(&["172.31.0.11", "fd31::11"]),
        },
        Node { name: "node-2".to_owned(), labels: labels(&[]), addresses: ips(&["172.31.0.12", "fd31::12"]) },
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
        outside: vec!["198.51.100.10".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        ..World::default()
    }
}

/// A peer or a subject: requirements, and the namespace.
fn is(key: &str, value: &str) -> Requirement {
    Requirement::In(key.to_owned(), [value.to_owned()].into())
}

fn app(app: &str) -> Vec<Requirement> {
    vec![is("k8s:app", app)]
}

fn team(team: &str) -> Vec<Requirement> {
    vec![is(&format!("{NAMESPACE_LABELS}team"), team)]
}

fn all() -> Vec<Requirement> {
    Vec::new()
}

fn in_shop(requirements: Vec<Requirement>) -> EndpointSelector {
    EndpointSelector { namespace: Some("shop".to_owned()), requirements }
}

fn spec(subject: Subject, tier: Tier) -> Spec {
    let (ingress, egress) = (Vec::new(), Vec::new());
    Spec { subject, tier, isolates_ingress: false, isolates_egress: false, ingress, egress, log: None }
}

fn object(kind: PolicyKind, spec: Spec) -> Policy {
    let namespace = if kind.is_namespaced() { "shop" } else { "" };
    let object = ObjectName { namespace: namespace.to_owned(), name: "policy".to_owned() };
    let name = PolicyName { kind, object };
    Policy { name, uid: "uid".to_owned(), resource_version: "1".to_owned(), specs: vec![spec] }
}

fn policy(subject: Vec<Requirement>, ingress: Option<Vec<Rule>>, egress: Option<Vec<Rule>>) -> Policy {
    let mut spec = spec(Subject::Endpoints(in_shop(subject)), Tier::Normal);
    spec.isolates_ingress = ingress.is_some();
    spec.isolates_egress = egress.is_some();
    spec.ingress = ingress.unwrap_or_default();
    spec.egress = egress.unwrap_or_default();
    object(PolicyKind::NetworkPolicy, spec)
}

/// A policy that isolates only where it says so.
fn rules(subject: Subject, tier: Tier, isolates: bool, ingress: Vec<Rule>) -> Policy {
    let kind = match (&subject, tier) {
        (_, Tier::Admin(_) | Tier::Baseline(_)) => PolicyKind::ClusterNetworkPolicy,
        _ => PolicyKind::CiliumClusterwideNetworkPolicy,
    };
    object(kind, Spec { ingress, isolates_ingress: isolates, ..spec(subject, tier) })
}

fn servers() -> Subject {
    Subject::Endpoints(in_shop(app("server")))
}

fn rule(peers: Option<Vec<Peer>>, ports: Option<Vec<PortRule>>) -> Rule {
    does(RuleAction::Allow, peers, ports)
}

fn does(action: RuleAction, peers: Option<Vec<Peer>>, ports: Option<Vec<PortRule>>) -> Rule {
    Rule { place: "".into(), action, peers, ports }
}

fn own(requirements: Vec<Requirement>) -> Peer {
    Peer::Endpoints(in_shop(requirements))
}

/// Pods of any namespace.
fn anywhere(requirements: Vec<Requirement>) -> Peer {
    Peer::Endpoints(EndpointSelector { namespace: None, requirements })
}

fn cidr(cidr: &str, except: &[&str], covers: Covers) -> Peer {
    let except = except.iter().map(|cidr| cidr.parse().unwrap()).collect();
    Peer::Cidr { cidr: cidr.parse().unwrap(), except, covers }
}

fn block(prefix: &str, except: &[&str]) -> Peer {
    cidr(prefix, except, Covers::ALL)
}

fn port(protocol: Protocol, first: u16, last: u16) -> PortRule {
    PortRule { protocol, port: PortMatch::Range(first, last) }
}

fn check(name: &str, policies: Vec<Policy>, cases: &[(End, End, u8, u16, bool)]) {
    let mut world = world(policies);
    for (n, policy) in world.policies.iter_mut().enumerate() {
        policy.name.object.name = format!("policy-{n}");
        for (m, rule) in
            policy.specs.iter_mut().flat_map(|spec| spec.ingress.iter_mut().chain(&mut spec.egress)).enumerate()
        {
            rule.place = format!("rule[{m}]").into();
        }
    }
    let cluster = Cluster::new(&world);
    for (from, to, protocol, port, expected) in cases {
        for v6 in [false, true] {
            if world.address(*from, v6).is_none() || world.address(*to, v6).is_none() {
                continue;
            }
            let protocol = if v6 && *protocol == 1 { 58 } else { *protocol };
            let packet = Packet { from: *from, to: *to, v6, protocol, port: *port };
            assert_eq!(weft_oracle::verdict(&world, &packet), *expected, "{name}: the oracle on {packet:?}");
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
        from(vec![anywhere(team("b"))]),
        &[(MONITOR, SERVER, TCP, 80, true), (CLIENT, SERVER, TCP, 80, false)],
    );
    check(
        "every pod of the cluster is not the world",
        from(vec![anywhere(all())]),
        &[
            (MONITOR, SERVER, TCP, 80, true),
            (STRANGER, SERVER, TCP, 80, true),
            (outside(), SERVER, TCP, 80, false),
            (OTHER_NODE, SERVER, TCP, 80, false),
        ],
    );
    check(
        "namespace and pod in one element",
        from(vec![anywhere([team("a"), app("client")].concat())]),
        &[(CLIENT, SERVER, TCP, 80, true), (MONITOR, SERVER, TCP, 80, false), (STRANGER, SERVER, TCP, 80, false)],
    );
    check(
        "namespace or pod in two elements",
        from(vec![anywhere(team("b")), own(app("stranger"))]),
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

#[test]
fn denials() {
    let on = |number| Some(vec![port(Protocol::Tcp, number, number)]);
    let client = || Some(vec![own(app("client"))]);
    let everybody = || Some(vec![anywhere(all())]);
    let deny = |peers, ports| does(RuleAction::Deny, peers, ports);
    check(
        "a deny of one port leaves the others",
        vec![rules(servers(), Tier::Normal, true, vec![rule(client(), None), deny(everybody(), on(80))])],
        &[(CLIENT, SERVER, TCP, 80, false), (CLIENT, SERVER, TCP, 81, true), (CLIENT, SERVER, 1, 8, true)],
    );
    check(
        "a deny of a peer beats what is allowed to all",
        vec![rules(servers(), Tier::Normal, true, vec![rule(None, None), deny(client(), None)])],
        &[(CLIENT, SERVER, TCP, 80, false), (STRANGER, SERVER, TCP, 80, true), (outside(), SERVER, TCP, 80, true)],
    );
    check(
        "a deny that does not isolate",
        vec![rules(servers(), Tier::Normal, false, vec![deny(client(), None)])],
        &[(CLIENT, SERVER, TCP, 80, false), (MONITOR, SERVER, TCP, 80, true), (outside(), SERVER, UDP, 1, true)],
    );
    let allow_stranger = rule(Some(vec![own(app("stranger"))]), None);
    check(
        "the same beside a policy that isolates",
        vec![
            rules(servers(), Tier::Normal, false, vec![deny(client(), None)]),
            policy(app("server"), Some(vec![allow_stranger]), None),
        ],
        &[(STRANGER, SERVER, TCP, 80, true), (CLIENT, SERVER, TCP, 80, false), (MONITOR, SERVER, TCP, 80, false)],
    );
    let range = rule(None, Some(vec![port(Protocol::Tcp, 8000, 8100)]));
    check(
        "a deny inside a range",
        vec![rules(servers(), Tier::Normal, true, vec![range, deny(None, on(8050))])],
        &[
            (CLIENT, SERVER, TCP, 8049, true),
            (CLIENT, SERVER, TCP, 8050, false),
            (CLIENT, SERVER, TCP, 8051, true),
            (CLIENT, SERVER, TCP, 8101, false),
        ],
    );
    let nets = vec![
        rule(Some(vec![block("198.51.100.10/32", &[])]), None),
        deny(Some(vec![block("198.51.100.0/24", &["198.51.100.64/26"])]), None),
        rule(Some(vec![block("198.51.100.0/25", &[])]), None),
    ];
    check(
        "a deny of a prefix holds for all inside it but what it leaves out",
        vec![rules(servers(), Tier::Normal, true, nets)],
        &[(outside(), SERVER, TCP, 80, false), (End::World("198.51.100.70".parse().unwrap()), SERVER, TCP, 80, true)],
    );
}

#[test]
fn tiers() {
    let client = || Some(vec![own(app("client"))]);
    let on = |number| Some(vec![port(Protocol::Tcp, number, number)]);
    let admin = |priority, action, peers, ports| {
        rules(servers(), Tier::Admin(priority), false, vec![does(action, peers, ports)])
    };
    let normal = || policy(app("server"), Some(vec![rule(client(), on(80))]), None);
    let base = |action| rules(servers(), Tier::Baseline(1), false, vec![does(action, None, None)]);
    check(
        "the lower priority decides",
        vec![admin(5, RuleAction::Deny, client(), None), admin(4, RuleAction::Allow, client(), on(81)), normal()],
        &[(CLIENT, SERVER, TCP, 81, true), (CLIENT, SERVER, TCP, 80, false), (STRANGER, SERVER, TCP, 81, false)],
    );
    check(
        "what passes on is decided below, port by port",
        vec![
            admin(3, RuleAction::Pass, client(), None),
            admin(4, RuleAction::Deny, None, None),
            admin(5, RuleAction::Allow, None, None),
            normal(),
        ],
        &[(CLIENT, SERVER, TCP, 80, true), (CLIENT, SERVER, TCP, 81, false), (STRANGER, SERVER, TCP, 80, false)],
    );
    check(
        "a prefix passes on what an identity would be denied, and the other way round",
        vec![
            admin(
                3,
                RuleAction::Pass,
                Some(vec![block("10.244.1.3/32", &[]), block("fd44:0:0:1::3/128", &[])]),
                on(80),
            ),
            admin(4, RuleAction::Deny, client(), on(80)),
            admin(5, RuleAction::Deny, Some(vec![block("10.244.0.0/16", &[]), block("fd44::/48", &[])]), None),
            normal(),
        ],
        &[(CLIENT, SERVER, TCP, 80, true), (CLIENT, SERVER, TCP, 81, false), (STRANGER, SERVER, TCP, 80, false)],
    );
    check(
        "the last tier counts where nothing isolates",
        vec![base(RuleAction::Deny)],
        &[(CLIENT, SERVER, TCP, 80, false), (CLIENT, STRANGER, TCP, 80, true)],
    );
    check(
        "and not where something does",
        vec![base(RuleAction::Deny), normal()],
        &[(CLIENT, SERVER, TCP, 80, true), (CLIENT, SERVER, TCP, 81, false)],
    );
    check(
        "an allow of the middle tier that does not isolate comes before the last",
        vec![base(RuleAction::Deny), rules(servers(), Tier::Normal, false, vec![rule(client(), on(80))])],
        &[(CLIENT, SERVER, TCP, 80, true), (CLIENT, SERVER, TCP, 81, false), (STRANGER, SERVER, TCP, 80, false)],
    );
    check(
        "what the first tier passes on the last may deny",
        vec![admin(0, RuleAction::Pass, None, None), base(RuleAction::Deny)],
        &[(CLIENT, SERVER, TCP, 80, false)],
    );
    check("what the last passes on passes", vec![base(RuleAction::Pass)], &[(CLIENT, SERVER, TCP, 80, true)]);
}

#[test]
fn entities() {
    let from = |entity| vec![rules(servers(), Tier::Normal, true, vec![rule(Some(vec![Peer::Entity(entity)]), None)])];
    let cases = |client, other_node, world| {
        [
            (CLIENT, SERVER, TCP, 80, client),
            (MONITOR, SERVER, TCP, 80, client),
            (OTHER_NODE, SERVER, TCP, 80, other_node),
            (HOST_POD, SERVER, TCP, 80, other_node),
            (outside(), SERVER, TCP, 80, world),
            (OWN_NODE, SERVER, TCP, 80, true),
        ]
    };
    check("all", from(Entity::All), &cases(true, true, true));
    check("the world", from(Entity::World), &cases(false, false, true));
    check("its IPv4 half", from(Entity::WorldIpv4), &cases(false, false, true));
    check("its IPv6 half", from(Entity::WorldIpv6), &cases(false, false, false));
    check("the cluster", from(Entity::Cluster), &cases(true, true, false));
    check("other nodes", from(Entity::RemoteNode), &cases(false, true, false));
    check("the own node", from(Entity::Host), &cases(false, false, false));
    check("nobody", from(Entity::None), &cases(false, false, false));
}

#[test]
fn prefixes_by_scope() {
    let nets = |covers| {
        let nets = ["10.244.0.0/16", "fd44::/48", "172.31.0.0/24", "fd31::/64", "198.51.100.0/24"];
        let peers = nets.iter().map(|net| cidr(net, &[], covers)).collect();
        vec![rules(servers(), Tier::Normal, true, vec![rule(Some(peers), None)])]
    };
    let cases = |pods, nodes| {
        [(CLIENT, SERVER, TCP, 80, pods), (OTHER_NODE, SERVER, TCP, 80, nodes), (outside(), SERVER, TCP, 80, true)]
    };
    check("outside the cluster only", nets(Covers::WORLD), &cases(false, false));
    check("nodes as well", nets(Covers { pods: false, nodes: true }), &cases(false, true));
    check("pods as well", nets(Covers { pods: true, nodes: false }), &cases(true, false));
    check("all", nets(Covers::ALL), &cases(true, true));
}

#[test]
fn messages_and_protocols_without_ports() {
    let on = |protocol, port| {
        vec![policy(app("server"), Some(vec![rule(None, Some(vec![PortRule { protocol, port }]))]), None)]
    };
    let v4_only = |from, kind, passes| (from, SERVER, 1, kind, passes);
    let mut world = world(on(Protocol::Icmp, PortMatch::Range(8, 8)));
    let cluster = Cluster::new(&world);
    for (from, to, protocol, kind, passes) in [v4_only(CLIENT, 8, true), v4_only(CLIENT, 5, false)] {
        let packet = Packet { from, to, v6: false, protocol, port: kind };
        assert_eq!((weft_oracle::verdict(&world, &packet), cluster.verdict(&world, &packet)), (passes, passes));
    }
    world.policies = on(Protocol::Gre, PortMatch::Any);
    let cluster = Cluster::new(&world);
    for (protocol, passes) in [(47, true), (4, false), (6, false)] {
        let packet = Packet { from: CLIENT, to: SERVER, v6: false, protocol, port: 0 };
        assert_eq!((weft_oracle::verdict(&world, &packet), cluster.verdict(&world, &packet)), (passes, passes));
    }
}

#[test]
fn nodes_as_subjects() {
    let edge = || Subject::Nodes(Selector { requirements: vec![is("role", "edge")] });
    let ssh = || vec![rule(None, Some(vec![port(Protocol::Tcp, 22, 22)]))];
    check(
        "a node that is locked",
        vec![rules(edge(), Tier::Normal, true, ssh())],
        &[
            (outside(), OWN_NODE, TCP, 22, true),
            (outside(), OWN_NODE, TCP, 10250, false),
            (CLIENT, OWN_NODE, TCP, 10250, false),
            (outside(), OTHER_NODE, TCP, 10250, true),
            (outside(), SERVER, TCP, 10250, true),
            (OWN_NODE, outside(), TCP, 443, true),
        ],
    );
}
