//! What does not fit is refused whole, loudly, and what was in force stays in force.

use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use weft_control::identity::{PodFacts, label_set};
use weft_control::policy::{Change, Direction, Engine, Limits, LocalEndpoint, Plan};
use weft_model::id::{EndpointId, Identity, PolicyId};
use weft_model::intent::{ObjectName, Peer, Policy, PortMatch, PortRule, Protocol, Rule};
use weft_model::label::LabelSet;
use weft_model::selector::{Requirement, Selector};

fn name(name: &str) -> ObjectName {
    ObjectName { namespace: "shop".to_owned(), name: name.to_owned() }
}

fn app(app: &str) -> Selector {
    Selector { requirements: vec![Requirement::In("app".to_owned(), [app.to_owned()].into())] }
}

fn labels(app: &str) -> BTreeMap<String, String> {
    [("app".to_owned(), app.to_owned())].into()
}

fn endpoint(id: u16, app: &str) -> Change {
    Change::PutEndpoint(LocalEndpoint {
        id: EndpointId::new(id).unwrap(),
        pod: name(&format!("{app}-{id}")),
        labels: labels(app),
        identity: Identity::allocated(300).unwrap(),
        addresses: vec![IpAddr::from([10, 244, 0, u8::try_from(id).unwrap()])],
        named_ports: Vec::new(),
    })
}

fn identity_labels(app: &str) -> LabelSet {
    let (labels, namespace_labels) = (labels(app), BTreeMap::new());
    label_set(&PodFacts {
        cluster: "weft",
        namespace: "shop",
        namespace_labels: &namespace_labels,
        labels: &labels,
        service_account: "default",
    })
}

fn identity(n: u32, app: &str) -> Change {
    Change::PutIdentity(Identity::allocated(n).unwrap(), Arc::new(identity_labels(app)))
}

fn policy(object: &str, version: &str, subject: Selector, ingress: Vec<Rule>) -> Change {
    Change::PutPolicy(Arc::new(Policy {
        kind: "NetworkPolicy",
        name: name(object),
        uid: format!("uid of {object}"),
        resource_version: version.to_owned(),
        pod_selector: subject,
        ingress: Some(ingress),
        egress: None,
    }))
}

fn ports(count: u16) -> Option<Vec<PortRule>> {
    // Even ports: no two of them are one prefix.
    let port = |n: u16| PortRule { protocol: Protocol::Tcp, port: PortMatch::Range(2 * n, 2 * n) };
    Some((0..count).map(port).collect())
}

fn open_ports(count: u16) -> Vec<Rule> {
    vec![Rule { peers: None, ports: ports(count) }]
}

fn blocks(count: u8) -> Vec<Rule> {
    let block = |n| Peer::Block { cidr: IpNet::new(IpAddr::from([192, 0, 2, n]), 32).unwrap(), except: Vec::new() };
    vec![Rule { peers: Some((0..count).map(block).collect()), ports: None }]
}

fn ingress(engine: &Engine, id: u16) -> (PolicyId, Option<String>) {
    let now = engine.endpoint(EndpointId::new(id).unwrap()).unwrap();
    (now.ingress, now.blocked.clone())
}

fn small() -> Limits {
    Limits { entries_per_policy: 50, peers_per_policy: 100, policies: 3, entries: 120, peers: 150, cidrs: 20 }
}

fn in_force(engine: &Engine) -> Vec<(String, String)> {
    engine.policies().map(|(policy, _)| (policy.name.name.clone(), policy.resource_version.clone())).collect()
}

#[test]
fn a_policy_that_does_not_fit_is_refused_and_its_old_version_stays() {
    let mut engine = Engine::new(small());
    engine.apply([endpoint(1, "web"), policy("web", "1", app("web"), open_ports(10))]);
    let before = engine.desired();
    let plan = engine.apply([policy("web", "2", app("web"), open_ports(51))]);
    assert_eq!(Plan { rules: Vec::new(), ..plan }, Plan::default());
    assert_eq!(engine.desired(), before);
    assert_eq!(in_force(&engine), [("web".to_owned(), "1".to_owned())]);
    let problems = engine.problems();
    assert_eq!((problems.len(), problems[0].refused, problems[0].resource_version.as_str()), (1, true, "2"));
    assert_eq!(
        problems[0].text,
        "refused: needs 51 entries in one resolved policy, of which 50 fit; what was in force stays, new endpoints are \
         blocked"
    );
}

#[test]
fn a_new_endpoint_of_a_refused_policy_is_blocked_until_the_policy_is_mended() {
    let mut engine = Engine::new(small());
    engine.apply([endpoint(1, "web")]);
    engine.apply([policy("web", "1", app("web"), open_ports(51))]);
    assert_eq!(ingress(&engine, 1), (PolicyId::OPEN, None), "it was there before: nothing changes for it");
    let plan = engine.apply([endpoint(2, "web"), endpoint(3, "db")]);
    let (_, blocked) = ingress(&engine, 2);
    let problem = "NetworkPolicy shop/web: needs 51 entries in one resolved policy, of which 50 fit";
    assert_eq!(blocked.as_deref(), Some(problem));
    assert!(plan.switch.iter().any(|endpoint| endpoint.blocked.is_some()));
    assert_eq!(ingress(&engine, 3).1, None, "the policy does not select it");
    assert_eq!(ingress(&engine, 1).1, None);

    let plan = engine.apply([policy("web", "2", app("web"), open_ports(5))]);
    assert_eq!(ingress(&engine, 2).1, None);
    assert!(ingress(&engine, 1).0 != PolicyId::OPEN && ingress(&engine, 1) == ingress(&engine, 2));
    assert_eq!(plan.put.len(), 1);
    assert!(engine.problems().is_empty());
}

#[test]
fn a_refused_policy_that_is_deleted_blocks_nobody() {
    let mut engine = Engine::new(small());
    engine.apply([endpoint(1, "web")]);
    engine.apply([policy("web", "1", app("web"), open_ports(51))]);
    engine.apply([endpoint(2, "web")]);
    assert!(ingress(&engine, 2).1.is_some());
    let plan = engine.apply([Change::RemovePolicy(name("web"))]);
    assert_eq!(ingress(&engine, 2), (PolicyId::OPEN, None));
    assert_eq!(plan.switch.len(), 1);
    assert!(engine.problems().is_empty());
}

#[test]
fn of_a_batch_only_what_does_not_fit_is_refused() {
    let mut engine = Engine::new(small());
    engine.apply([endpoint(1, "web"), endpoint(2, "db")]);
    engine.apply([
        policy("a", "1", app("web"), open_ports(10)),
        policy("b", "1", app("web"), open_ports(51)),
        policy("c", "1", app("db"), open_ports(10)),
    ]);
    let names: Vec<_> = in_force(&engine).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["a", "c"]);
    assert!(ingress(&engine, 1).0 != PolicyId::OPEN && ingress(&engine, 2).0 != PolicyId::OPEN);
    assert_eq!(engine.problems().len(), 1);
}

#[test]
fn a_refused_policy_is_tried_again_when_there_is_room() {
    let mut engine = Engine::new(Limits { entries_per_policy: 100, ..small() });
    engine.apply([endpoint(1, "web"), endpoint(2, "db"), policy("web", "1", app("web"), open_ports(90))]);
    engine.apply([policy("db", "1", app("db"), open_ports(60))]);
    assert_eq!(in_force(&engine).len(), 1);
    assert!(engine.problems()[0].text.contains("120 fit"), "{:?}", engine.problems());
    // Until the plan is carried out the kernel holds the old one still.
    engine.apply([Change::RemovePolicy(name("web"))]);
    assert!(in_force(&engine).is_empty() && engine.wants_another());
    engine.apply([]);
    assert!(!engine.wants_another());
    assert_eq!(in_force(&engine), [("db".to_owned(), "1".to_owned())]);
    assert!(engine.problems().is_empty());
    assert_ne!(ingress(&engine, 2).0, PolicyId::OPEN);
}

#[test]
fn too_many_prefixes_are_refused() {
    let mut engine = Engine::new(small());
    engine.apply([endpoint(1, "web"), policy("few", "1", app("web"), blocks(10))]);
    let before = engine.desired();
    engine.apply([policy("many", "1", app("web"), blocks(21))]);
    assert_eq!(engine.desired(), before);
    assert_eq!(before.cidrs.len(), 10);
    let text = &engine.problems()[0].text;
    assert!(text.contains("21 address prefixes on this node, of which 20 fit"), "{text}");
}

#[test]
fn prefixes_of_one_policy_count_as_peers_of_others() {
    let limits = Limits { peers: 25, ..small() };
    let mut engine = Engine::new(limits);
    let everywhere = |object: &str, subject: &str| {
        let cidr = "0.0.0.0/0".parse().unwrap();
        let rule = Rule { peers: Some(vec![Peer::Block { cidr, except: Vec::new() }]), ports: None };
        policy(object, "1", app(subject), vec![rule])
    };
    engine.apply([endpoint(1, "web"), endpoint(2, "db"), endpoint(3, "cache")]);
    engine.apply([everywhere("web", "web"), everywhere("db", "db")]);
    let before = engine.desired();
    // 10 prefixes are 10 peers each of three policies.
    engine.apply([policy("cache", "1", app("cache"), blocks(10))]);
    assert_eq!(engine.desired(), before);
    assert!(engine.problems()[0].text.contains("25 fit"), "{:?}", engine.problems());
    let plan = engine.apply([policy("cache", "2", app("cache"), blocks(5))]);
    assert_eq!((plan.add_cidrs.len(), plan.patch.len(), plan.put.len()), (5, 2, 1));
}

#[test]
fn a_peer_that_does_not_fit_is_denied_until_there_is_room() {
    let mut engine = Engine::new(Limits { peers_per_policy: 2, ..small() });
    let all = Rule { peers: Some(vec![Peer::Pods { namespaces: None, pods: Selector::default() }]), ports: None };
    engine.apply([endpoint(1, "web"), policy("web", "1", app("web"), vec![all])]);
    engine.apply([identity(301, "a"), identity(302, "b")]);
    assert!(engine.problems().is_empty());
    let plan = engine.apply([identity(303, "c")]);
    assert!(plan.is_empty(), "{plan:?}");
    assert!(engine.problems()[0].text.starts_with("1 peers are denied"), "{:?}", engine.problems());
    engine.apply([Change::RemoveIdentity(Identity::allocated(301).unwrap())]);
    engine.apply([]);
    assert!(engine.problems().is_empty());
    let compiled = engine.compiled(ingress(&engine, 1).0).unwrap();
    assert!(compiled.peers.contains_key(&Identity::allocated(303).unwrap()));
    let isolating = engine.isolating(EndpointId::new(1).unwrap(), Direction::Ingress).unwrap();
    assert_eq!(isolating[0].name, name("web"));
}

#[test]
fn a_peer_selected_by_a_label_that_identities_lack_is_nobody() {
    let mut engine = Engine::default();
    let absent = Requirement::DoesNotExist("pod-template-hash".to_owned());
    let pods = Selector { requirements: vec![absent] };
    let rule = Rule { peers: Some(vec![Peer::Pods { namespaces: None, pods }]), ports: None };
    engine.apply([identity(301, "a"), endpoint(1, "web"), policy("web", "1", app("web"), vec![rule])]);
    assert!(engine.compiled(ingress(&engine, 1).0).unwrap().peers.is_empty());
    let problems = engine.problems();
    assert!(!problems[0].refused && problems[0].text.contains("\"pod-template-hash\""), "{problems:?}");
}

#[test]
fn changes_cost_what_they_touch() {
    let mut engine = Engine::default();
    let from = |who: &str| {
        let peers = Some(vec![Peer::Pods { namespaces: None, pods: app(who) }]);
        vec![Rule { peers, ports: ports(3) }]
    };
    engine.apply([endpoint(1, "web"), endpoint(2, "web"), endpoint(3, "db"), identity(301, "a"), identity(302, "b")]);
    let plan = engine.apply([policy("web", "1", app("web"), from("a")), policy("db", "1", app("db"), from("b"))]);
    assert_eq!((plan.put.len(), plan.switch.len()), (2, 3), "endpoints of equal policy share it");
    // One more identity with the labels of a known one: one peer, no entries.
    let plan = engine.apply([identity(400, "a")]);
    let [(_, patch)] = plan.patch.as_slice() else { panic!("{plan:?}") };
    assert_eq!((patch.put_peers.len(), patch.put_entries.len()), (1, 0));
    assert!(plan.touched.is_empty() && plan.put.is_empty());
    // One that nobody selects costs nothing.
    assert!(engine.apply([identity(401, "nobody")]).is_empty());
    // The same object in another version costs nothing.
    assert!(engine.apply([policy("web", "2", app("web"), from("a"))]).is_empty());
    assert_eq!(in_force(&engine)[1], ("web".to_owned(), "2".to_owned()));
    // A rule touches those whom it selects.
    let plan = engine.apply([policy("db", "2", app("db"), from("a"))]);
    assert_eq!(plan.touched.iter().map(|id| id.raw()).collect::<Vec<_>>(), [3]);
    assert_eq!((plan.put.len(), plan.remove.len(), plan.switch.len()), (1, 1, 1));
    // Its rule has a new number now, and the old number still has its name.
    let [(id, rule)] = plan.rules.as_slice() else { panic!("{plan:?}") };
    assert_eq!((rule.to_string().as_str(), engine.rule(*id)), ("NetworkPolicy shop/db ingress[0]", Some(rule)));
}

#[test]
fn after_a_restart_the_old_policies_learn_of_new_prefixes_before_the_kernel_does() {
    let wide = |object: &str, subject: &str, cidr: &str| {
        let peers = Some(vec![Peer::Block { cidr: cidr.parse().unwrap(), except: Vec::new() }]);
        policy(object, "1", app(subject), vec![Rule { peers, ports: ports(1) }])
    };
    let mut before = Engine::default();
    before.apply([endpoint(1, "web"), wide("web", "web", "10.0.0.0/8")]);
    let held = before.desired();
    let policies: BTreeMap<_, _> = held.policies.iter().map(|(id, policy)| (*id, (**policy).clone())).collect();
    let (old, _) = ingress(&before, 1);

    let mut after = Engine::default();
    after.adopt(&policies, &held.cidrs);
    let all = [
        endpoint(1, "web"),
        endpoint(2, "db"),
        wide("web", "web", "10.0.0.0/8"),
        wide("db", "db", "10.1.0.0/16"),
        wide("cache", "db", "192.0.2.0/24"),
    ];
    let plan = after.apply(all);
    let number = |cidr: &str| after.desired().cidrs[&cidr.parse().unwrap()];
    assert_eq!(number("10.0.0.0/8"), held.cidrs[&"10.0.0.0/8".parse().unwrap()], "a prefix keeps its number");
    let [(id, patch)] = plan.patch.as_slice() else { panic!("{plan:?}") };
    let class = policies[&old].peers[&number("10.0.0.0/8")];
    assert_eq!((*id, &patch.put_peers), (old, &BTreeMap::from([(number("10.1.0.0/16"), class)])));
    assert_eq!(plan.remove, [old]);
    assert!(plan.put.iter().all(|(id, _)| *id != old), "a number of the kernel's is not given again");
}

#[test]
fn endpoints_that_were_there_at_a_restart_are_not_opened_for_a_refused_policy() {
    let mut engine = Engine::new(small());
    engine.apply([endpoint(1, "web"), endpoint(2, "db"), policy("web", "1", app("web"), open_ports(51))]);
    assert!(ingress(&engine, 1).1.is_some(), "what the kernel had for it is not known");
    assert_eq!(ingress(&engine, 2), (PolicyId::OPEN, None));
}

#[test]
fn too_many_resolved_policies_are_refused() {
    let mut engine = Engine::new(small());
    engine.apply((1..=4).map(|n| endpoint(n, &format!("app-{n}"))));
    for n in 1..=4 {
        engine.apply([policy(&format!("p{n}"), "1", app(&format!("app-{n}")), open_ports(1))]);
    }
    assert_eq!(in_force(&engine).len(), 3);
    assert!(engine.problems()[0].text.contains("4 resolved policies on this node, of which 3 fit"));
}
