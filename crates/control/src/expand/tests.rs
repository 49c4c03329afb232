use super::*;
use weft_model::intent::{Backend, PolicyKind, PortRule, SourceProblem, Tier};
use weft_model::selector::Selector;

fn name(namespace: &str, name: &str) -> ObjectName {
    ObjectName { namespace: namespace.into(), name: name.into() }
}

fn policy(subject: Subject, peers: Vec<Peer>) -> Policy {
    let rule =
        Rule { place: "egress[0]".into(), action: RuleAction::Allow, peers: Some(peers), ports: None::<Vec<PortRule>> };
    let spec = Spec {
        subject,
        tier: Tier::Normal,
        isolates_ingress: false,
        isolates_egress: true,
        ingress: Vec::new(),
        egress: vec![rule],
        log: None,
    };
    let name = PolicyName { kind: PolicyKind::CiliumNetworkPolicy, object: name("shop", "p") };
    Policy { name, uid: "u".into(), resource_version: "1".into(), specs: vec![spec] }
}

fn pods() -> Subject {
    Subject::Endpoints(EndpointSelector { namespace: Some("shop".into()), requirements: Vec::new() })
}

/// The peers of the last version that the engine received.
fn compiled_peers(expander: &mut Expander) -> Option<Vec<Peer>> {
    expander.take_changes().into_iter().rev().find_map(|change| match change {
        EngineChange::PutPolicy(policy) => policy.specs[0].egress[0].peers.clone(),
        _ => None,
    })
}

fn cidr(text: &str, covers: Covers) -> Peer {
    Peer::Cidr { cidr: text.parse().expect("a prefix"), except: Vec::new(), covers }
}

#[test]
fn groups_are_followed_and_a_missing_one_selects_nothing() {
    let mut expander = Expander::default();
    let groups = Peer::CidrGroups { groups: CidrGroups::Name("office".into()), covers: Covers::WORLD };
    expander.apply(&Change::Policy(policy(pods(), vec![groups])));
    assert_eq!(compiled_peers(&mut expander), Some(Vec::new()));
    let dangling: Vec<String> = expander.dangling().iter().map(ToString::to_string).collect();
    let text =
        "CiliumNetworkPolicy shop/p: egress[0]: CiliumCIDRGroup office does not exist, so this peer matches nothing";
    assert_eq!(dangling, [text]);
    let cidrs = vec!["192.0.2.0/24".parse().expect("v4"), "2001:db8::/32".parse().expect("v6")];
    let group = CidrGroup { name: "office".into(), labels: BTreeMap::new(), cidrs };
    expander.apply(&Change::CidrGroup(group.clone()));
    let both = vec![cidr("192.0.2.0/24", Covers::WORLD), cidr("2001:db8::/32", Covers::WORLD)];
    assert_eq!(compiled_peers(&mut expander), Some(both));
    assert!(expander.dangling().is_empty());
    expander.apply(&Change::CidrGroup(group));
    assert_eq!(compiled_peers(&mut expander), None, "nothing changed");
    expander.apply(&Change::CidrGroupGone("office".into()));
    assert_eq!(compiled_peers(&mut expander), Some(Vec::new()));
}

#[test]
fn groups_that_cannot_be_read_open_nothing() {
    let unreadable = |listed| {
        let problem = SourceProblem { text: "forbidden".into(), listed };
        Change::SourceProblem(Source::CidrGroups, Some(problem))
    };
    let groups = Peer::CidrGroups { groups: CidrGroups::Name("office".into()), covers: Covers::WORLD };
    let office =
        CidrGroup { name: "office".into(), labels: BTreeMap::new(), cidrs: vec!["192.0.2.0/24".parse().expect("v4")] };
    let known = vec![cidr("192.0.2.0/24", Covers::WORLD)];
    for (action, unknown) in [
        (RuleAction::Allow, Vec::new()),
        (RuleAction::Deny, vec![cidr("0.0.0.0/0", Covers::WORLD), cidr("::/0", Covers::WORLD)]),
    ] {
        let mut expander = Expander::default();
        expander.apply(&unreadable(false));
        let mut written = policy(pods(), vec![groups.clone()]);
        written.specs[0].egress[0].action = action;
        expander.apply(&Change::Policy(written));
        assert_eq!(compiled_peers(&mut expander), Some(unknown), "{action:?}");
        assert!(expander.dangling()[0].to_string().contains("cannot be read"), "{:?}", expander.dangling());
        expander.apply(&Change::CidrGroup(office.clone()));
        expander.apply(&Change::SourceProblem(Source::CidrGroups, None));
        assert_eq!(compiled_peers(&mut expander), Some(known.clone()), "{action:?}");
        assert!(expander.dangling().is_empty());
        // Groups that were known stay known when they cannot be read any more.
        expander.apply(&unreadable(true));
        assert_eq!(compiled_peers(&mut expander), None, "{action:?}");
    }
}

#[test]
fn services_stand_for_their_pods_or_their_addresses() {
    let mut expander = Expander::default();
    let services = Peer::Services(Services::Name(name("shop", "db")));
    expander.apply(&Change::Policy(policy(pods(), vec![services])));
    let mut service = Service {
        name: name("shop", "db"),
        labels: BTreeMap::new(),
        selector: BTreeMap::from([("app".to_owned(), "db".to_owned())]),
        routing: None,
        age: Default::default(),
    };
    expander.apply(&Change::Service(service.clone()));
    let selector = EndpointSelector {
        namespace: Some("shop".into()),
        requirements: vec![Requirement::In("k8s:app".into(), BTreeSet::from(["db".into()]))],
    };
    assert_eq!(compiled_peers(&mut expander), Some(vec![Peer::Endpoints(selector)]));
    service.selector.clear();
    expander.apply(&Change::Service(service));
    let endpoints =
        ["198.51.100.7", "2001:db8::7"].map(|text| Backend::ready(text.parse().expect("an address"))).into();
    let (slice, service) = (name("shop", "db-1"), name("shop", "db"));
    expander.apply(&Change::Backends(Backends { slice, service, ports: Vec::new(), endpoints }));
    let covers = Covers { pods: false, nodes: true };
    assert_eq!(
        compiled_peers(&mut expander),
        Some(vec![cidr("198.51.100.7/32", covers), cidr("2001:db8::7/128", covers)])
    );
    expander.apply(&Change::BackendsGone(name("shop", "db-1")));
    assert_eq!(compiled_peers(&mut expander), Some(Vec::new()));
}

#[test]
fn nodes_and_the_api_server_stand_for_their_addresses() {
    let mut expander = Expander::default();
    let labels = BTreeMap::from([("role".to_owned(), "edge".to_owned())]);
    let edge = Selector { requirements: vec![Requirement::Exists("role".into())] };
    let peers = vec![Peer::Nodes(edge), Peer::Entity(Entity::KubeApiserver)];
    expander.apply(&Change::Policy(policy(pods(), peers)));
    assert_eq!(compiled_peers(&mut expander), Some(Vec::new()));
    let node = |name: &str, address: &str, labels: &BTreeMap<String, String>| {
        Change::Node(Node {
            name: name.into(),
            addresses: vec![address.parse().expect("an address")],
            pod_cidrs: Vec::new(),
            labels: labels.clone(),
        })
    };
    expander.apply(&node("a", "10.0.0.1", &labels));
    expander.apply(&node("b", "10.0.0.2", &BTreeMap::new()));
    expander.set_api_server(BTreeSet::from(["2001:db8::1".parse().expect("v6")]));
    let nodes = Covers { pods: false, nodes: true };
    assert_eq!(
        compiled_peers(&mut expander),
        Some(vec![cidr("10.0.0.1/32", nodes), cidr("2001:db8::1/128", Covers::ALL)])
    );
}

#[test]
fn a_node_that_policies_isolate_keeps_the_api_server() {
    let mut expander = Expander::default();
    expander.set_api_server(BTreeSet::from(["10.0.0.9".parse().expect("v4")]));
    expander.apply(&Change::Policy(policy(Subject::Nodes(Selector::default()), Vec::new())));
    let guards = |changes: &[EngineChange]| {
        changes.iter().any(|change| matches!(change, EngineChange::PutPolicy(p) if p.name == guard_name()))
    };
    assert!(guards(&expander.take_changes()));
    assert!(expander.take_changes().is_empty());
    expander.set_api_server(BTreeSet::from(["10.0.0.8".parse().expect("v4")]));
    assert!(guards(&expander.take_changes()));
    let name = PolicyName { kind: PolicyKind::CiliumNetworkPolicy, object: name("shop", "p") };
    expander.apply(&Change::PolicyGone(name));
    let gone = expander.take_changes();
    assert!(gone.iter().any(|change| matches!(change, EngineChange::RemovePolicy(name) if *name == guard_name())));
}
