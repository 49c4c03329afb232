//! What does not fit is refused whole, loudly, and what was in force stays in force.

use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use weft_control::identity::{PodFacts, label_set};
use weft_control::policy::{Blocked, Change, Direction, Engine, Limits, LocalEndpoint, Overflow, Plan, Resource};
use weft_model::id::{EndpointId, Identity, PolicyId};
use weft_model::intent::{
    Covers, EndpointSelector, ObjectName, Peer, Policy, PolicyKind, PolicyName, PortMatch, PortRule, Protocol, Rule,
    RuleAction, Spec, Subject, Tier,
};
use weft_model::label::LabelSet;
use weft_model::selector::Requirement;

fn name(name: &str) -> ObjectName {
    ObjectName { namespace: "shop".to_owned(), name: name.to_owned() }
}

fn policy_name(object: &str) -> PolicyName {
    PolicyName { kind: PolicyKind::NetworkPolicy, object: name(object) }
}

fn app(app: &str) -> EndpointSelector {
    let requirements = vec![Requirement::In("k8s:app".to_owned(), [app.to_owned()].into())];
    EndpointSelector { namespace: Some("shop".to_owned()), requirements }
}

fn endpoint(id: u16, app: &str) -> Change {
    Change::PutEndpoint(LocalEndpoint {
        id: EndpointId::new(id).unwrap(),
        pod: name(&format!("{app}-{id}")),
        labels: identity_labels(app),
        identity: Identity::allocated(300).unwrap(),
        addresses: vec![IpAddr::from([10, 244, 0, u8::try_from(id).unwrap()])],
        named_ports: Vec::new(),
    })
}

fn identity_labels(app: &str) -> LabelSet {
    let (labels, namespace_labels) = ([("app".to_owned(), app.to_owned())].into(), BTreeMap::new());
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

fn rule(peers: Option<Vec<Peer>>, ports: Option<Vec<PortRule>>) -> Rule {
    Rule { place: "ingress[0]".into(), action: RuleAction::Allow, peers, ports }
}

fn policy(object: &str, version: &str, subject: EndpointSelector, mut ingress: Vec<Rule>) -> Change {
    for (n, rule) in ingress.iter_mut().enumerate() {
        rule.place = format!("ingress[{n}]").into();
    }
    Change::PutPolicy(Arc::new(Policy {
        name: policy_name(object),
        uid: format!("uid of {object}"),
        resource_version: version.to_owned(),
        specs: vec![Spec {
            subject: Subject::Endpoints(subject),
            tier: Tier::Normal,
            isolates_ingress: true,
            isolates_egress: false,
            ingress,
            egress: Vec::new(),
            log: None,
        }],
    }))
}

fn ports(count: u16) -> Option<Vec<PortRule>> {
    // Even ports: no two of them are one prefix.
    let port = |n: u16| PortRule { protocol: Protocol::Tcp, port: PortMatch::Range(2 * n, 2 * n) };
    Some((0..count).map(port).collect())
}

fn open_ports(count: u16) -> Vec<Rule> {
    vec![rule(None, ports(count))]
}

fn block(cidr: &str) -> Peer {
    Peer::Cidr { cidr: cidr.parse().unwrap(), except: Vec::new(), covers: Covers::ALL }
}

fn blocks(count: u8) -> Vec<Rule> {
    vec![rule(Some((0..count).map(|n| block(&format!("192.0.2.{n}/32"))).collect()), None)]
}

fn from_app(who: &str) -> Vec<Rule> {
    vec![rule(Some(vec![Peer::Endpoints(app(who))]), ports(3))]
}

fn number(n: u32) -> Identity {
    Identity::allocated(n).unwrap()
}

fn ingress(engine: &Engine, id: u16) -> (PolicyId, Option<Blocked>) {
    let now = engine.endpoint(EndpointId::new(id).unwrap()).unwrap();
    (now.ingress, now.blocked.clone())
}

fn small() -> Limits {
    Limits { entries_per_policy: 50, rows_per_policy: 100, policies: 3, entries: 120, rows: 150, peers: 150, cidrs: 20 }
}

fn in_force(engine: &Engine) -> Vec<(String, String)> {
    engine.policies().map(|(policy, _)| (policy.name.object.name.clone(), policy.resource_version.clone())).collect()
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
        "refused, does not fit: needs 51 entries in one resolved policy, the limit is 50; the previous version stays in \
         force, traffic of new endpoints that this version selects is dropped"
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
    let cause = Overflow { resource: Resource::EntriesPerPolicy, wanted: 51, limit: 50 };
    let blocked = blocked.unwrap();
    assert_eq!(blocked, Blocked::PolicyRefused { policy: policy_name("web"), cause });
    assert_eq!(
        blocked.to_string(),
        "NetworkPolicy shop/web does not fit: needs 51 entries in one resolved policy, the limit is 50"
    );
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
    let plan = engine.apply([Change::RemovePolicy(policy_name("web"))]);
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
    assert!(engine.problems()[0].text.contains("the limit is 120"), "{:?}", engine.problems());
    // Until the plan is carried out the kernel holds the old one still.
    engine.apply([Change::RemovePolicy(policy_name("web"))]);
    assert!(in_force(&engine).is_empty() && engine.needs_retry());
    engine.apply([]);
    assert!(!engine.needs_retry());
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
    assert!(text.contains("21 CIDR prefixes in policies on this node, the limit is 20"), "{text}");
}

#[test]
fn prefixes_of_one_policy_are_rows_of_others() {
    let limits = Limits { rows: 10, ..small() };
    let mut engine = Engine::new(limits);
    let everywhere = |object: &str, subject: &str| {
        policy(object, "1", app(subject), vec![rule(Some(vec![block("0.0.0.0/0")]), None)])
    };
    engine.apply([endpoint(1, "web"), endpoint(2, "db"), endpoint(3, "cache")]);
    engine.apply([everywhere("web", "web"), everywhere("db", "db")]);
    let before = engine.desired();
    // Each prefix on ports of its own is a class of its own in three policies.
    let many = |count: u8| -> Vec<Rule> {
        (0..count).map(|n| rule(Some(vec![block(&format!("192.0.2.{n}/32"))]), ports(u16::from(n) + 1))).collect()
    };
    engine.apply([policy("cache", "1", app("cache"), many(4))]);
    assert_eq!(engine.desired(), before);
    assert!(engine.problems()[0].text.contains("the limit is 10"), "{:?}", engine.problems());
    let plan = engine.apply([policy("cache", "2", app("cache"), many(2))]);
    assert_eq!((plan.add_cidrs.len(), plan.patch.len(), plan.put.len()), (2, 2, 1));
    assert_eq!(plan.put_peers.len(), 6, "each in three scopes");
}

#[test]
fn a_peer_that_does_not_fit_is_denied_until_there_is_room() {
    let mut engine = Engine::new(Limits { peers: 2, ..small() });
    let few = ["a", "b", "c"].map(|who| Peer::Endpoints(app(who)));
    // Without most identities in it there is no rest.
    engine.apply((1..=3).map(|n| identity(600 + n, &format!("other-{n}"))));
    engine.apply([endpoint(1, "web"), policy("web", "1", app("web"), vec![rule(Some(few.into()), None)])]);
    engine.apply([identity(301, "a"), identity(302, "b")]);
    assert!(engine.problems().is_empty());
    let plan = engine.apply([identity(303, "c")]);
    assert!(plan.is_empty(), "{plan:?}");
    assert!(engine.problems()[0].text.starts_with("traffic of 1 peers is denied"), "{:?}", engine.problems());
    assert_eq!(engine.peer_class(number(303)), None);
    engine.apply([Change::RemoveIdentity(number(301))]);
    engine.apply([]);
    assert!(engine.problems().is_empty());
    assert!(engine.peer_class(number(303)).is_some());
    let isolating = engine.isolating(EndpointId::new(1).unwrap(), Direction::Ingress).unwrap();
    assert_eq!(isolating[0].name, policy_name("web"));
}

#[test]
fn where_a_missing_peer_would_let_more_pass_the_endpoint_is_blocked() {
    let mut engine = Engine::new(Limits { peers: 1, ..small() });
    let deny =
        Rule { action: RuleAction::Deny, ..rule(Some(vec![Peer::Endpoints(EndpointSelector::EVERY_POD)]), None) };
    let rules = vec![rule(None, None), deny];
    engine.apply([identity(301, "a"), endpoint(1, "web"), endpoint(2, "db"), policy("web", "1", app("web"), rules)]);
    assert_eq!(ingress(&engine, 1).1, None);
    let plan = engine.apply([identity(302, "b")]);
    assert!(
        ingress(&engine, 1)
            .1
            .is_some_and(|why| matches!(why, Blocked::Incomplete(ref cause) if cause.resource == Resource::Peers))
    );
    assert_eq!((plan.switch.len(), ingress(&engine, 2).1), (1, None));
    engine.apply([Change::RemoveIdentity(number(301))]);
    engine.apply([]);
    assert_eq!(ingress(&engine, 1).1, None);
}

#[test]
fn a_peer_selected_by_a_label_that_identities_lack_is_nobody() {
    for key in ["k8s:pod-template-hash", "any:pod-template-hash"] {
        let mut engine = Engine::default();
        let requirements = vec![Requirement::DoesNotExist(key.to_owned())];
        let peer = Peer::Endpoints(EndpointSelector { namespace: None, requirements });
        let rules = vec![rule(Some(vec![peer]), None)];
        engine.apply([identity(301, "a"), endpoint(1, "web"), policy("web", "1", app("web"), rules)]);
        let compiled = engine.compiled(ingress(&engine, 1).0).unwrap();
        assert!(compiled.classes.is_empty() && compiled.entries.is_empty());
        let problems = engine.problems();
        assert!(!problems[0].refused && problems[0].text.contains("\"pod-template-hash\""), "{problems:?}");
    }
}

#[test]
fn changes_cost_what_they_touch() {
    let mut engine = Engine::default();
    engine.apply([endpoint(1, "web"), endpoint(2, "web"), endpoint(3, "db"), identity(301, "a"), identity(302, "b")]);
    let plan =
        engine.apply([policy("web", "1", app("web"), from_app("a")), policy("db", "1", app("db"), from_app("b"))]);
    assert_eq!((plan.put.len(), plan.switch.len()), (2, 3), "endpoints of equal policy share it");
    // One more identity with the labels of a known one: one peer, and nothing for any policy.
    let plan = engine.apply([identity(400, "a")]);
    assert_eq!(plan.put_peers, [(number(400), engine.peer_class(number(301)).unwrap())]);
    assert_eq!(Plan { put_peers: Vec::new(), ..plan }, Plan::default());
    // One that nobody selects costs nothing.
    assert!(engine.apply([identity(401, "nobody")]).is_empty());
    // The same object in another version costs nothing.
    assert!(engine.apply([policy("web", "2", app("web"), from_app("a"))]).is_empty());
    assert_eq!(in_force(&engine)[1], ("web".to_owned(), "2".to_owned()));
    // A rule touches those whom it selects.
    let plan = engine.apply([policy("db", "2", app("db"), from_app("a"))]);
    assert_eq!(plan.touched.iter().map(|id| id.raw()).collect::<Vec<_>>(), [3]);
    assert_eq!((plan.put.len(), plan.remove.len(), plan.switch.len()), (1, 1, 1));
    // Its rule has a new number now, and the old number still has its name.
    let [(id, named)] = plan.rules.as_slice() else { panic!("{plan:?}") };
    assert_eq!((named.to_string().as_str(), engine.rule(*id)), ("NetworkPolicy shop/db ingress[0]", Some(named)));
}

#[test]
fn a_rule_that_does_not_change_keeps_its_number() {
    let mut engine = Engine::default();
    engine.apply([endpoint(1, "web"), identity(301, "a")]);
    engine.apply([policy("web", "1", app("web"), from_app("a"))]);
    let plan = engine.apply([policy("web", "2", app("web"), [from_app("a"), from_app("b")].concat())]);
    let names: Vec<_> = plan.rules.iter().map(|(_, rule)| rule.to_string()).collect();
    assert_eq!(names, ["NetworkPolicy shop/web ingress[1]"]);
}

#[test]
fn one_rule_for_all_pods_costs_one_row_however_many_classes_there_are() {
    const COUNT: u32 = 3000;
    let mut engine = Engine::new(Limits { policies: 8_000, ..Limits::default() });
    let all = vec![rule(Some(vec![Peer::Endpoints(EndpointSelector::EVERY_POD)]), ports(1))];
    let mut changes: Vec<_> = (0..COUNT).map(|n| identity(1000 + n, &format!("app-{n}"))).collect();
    changes.extend([endpoint(1, "web"), endpoint(2, "db"), policy("all", "1", app("web"), all)]);
    engine.apply(changes);
    let wide = ingress(&engine, 1).0;
    assert!(engine.compiled(wide).unwrap().classes.len() <= 1);
    // Then somebody tells them all apart.
    let each = (0..COUNT).map(|n| rule(Some(vec![Peer::Endpoints(app(&format!("app-{n}")))]), ports(2))).collect();
    engine.apply([policy("each", "1", app("db"), each)]);
    assert!(engine.sizes().contains(&("classes", COUNT as usize)));
    let compiled = engine.compiled(wide).unwrap();
    assert!(compiled.classes.len() <= 1 && compiled.entries.len() == 1, "{} rows", compiled.classes.len());
}

#[test]
fn a_policy_made_when_the_cluster_was_small_is_made_anew() {
    let mut engine = Engine::default();
    let rules = from_app("a");
    // At first the only identity is the one that is selected.
    engine.apply([identity(301, "a"), endpoint(1, "web"), endpoint(2, "db"), policy("web", "1", app("web"), rules)]);
    let first = ingress(&engine, 1).0;
    assert_ne!(engine.compiled(first).unwrap().rest.0, 0);
    let count = 2000;
    let each = (0..count).map(|n| rule(Some(vec![Peer::Endpoints(app(&format!("app-{n}")))]), ports(2))).collect();
    engine.apply((0..count).map(|n| identity(1000 + n, &format!("app-{n}"))));
    engine.apply([policy("each", "1", app("db"), each)]);
    let now = ingress(&engine, 1).0;
    let compiled = engine.compiled(now).unwrap();
    assert!(now != first && compiled.rest.0 == 0 && compiled.classes.len() == 1, "{} rows", compiled.classes.len());
}

#[test]
fn every_identity_in_every_rule_is_no_more_than_their_sum() {
    let (identities, rules) = (1000, 500);
    let mut engine = Engine::default();
    let mut changes: Vec<_> = (0..identities).map(|n| identity(1000 + n, &format!("app-{n}"))).collect();
    let except = |n: u32| {
        let requirements = vec![Requirement::NotIn("k8s:app".to_owned(), [format!("nobody-{n}")].into())];
        let port = PortRule { protocol: Protocol::Tcp, port: PortMatch::Range(2 * n as u16, 2 * n as u16) };
        rule(Some(vec![Peer::Endpoints(EndpointSelector { namespace: None, requirements })]), Some(vec![port]))
    };
    changes.extend([endpoint(1, "web"), policy("web", "1", app("web"), (0..rules).map(except).collect())]);
    let plan = engine.apply(changes);
    let written: usize = plan.put.iter().map(|(_, policy)| policy.entries.len() + policy.classes.len()).sum();
    assert!(written + plan.put_peers.len() <= (identities + rules) as usize, "{written} {}", plan.put_peers.len());
}

#[test]
fn selectors_that_come_and_go_leave_little_behind() {
    let mut engine = Engine::default();
    engine.apply((0..100).map(|n| identity(1000 + n, &format!("app-{n}"))));
    engine.apply([endpoint(1, "web"), endpoint(2, "db")]);
    let all = vec![rule(Some(vec![Peer::Endpoints(EndpointSelector::EVERY_POD)]), None)];
    engine.apply([policy("all", "1", app("db"), all)]);
    for round in 0..200 {
        engine.apply([policy("web", &round.to_string(), app("web"), from_app(&format!("app-{}", round % 100)))]);
        let sizes: BTreeMap<_, _> = engine.sizes().into();
        assert!(sizes["classes"] <= 20, "round {round}: {sizes:?}");
    }
}

#[test]
fn after_a_restart_the_old_policies_learn_of_new_classes_before_the_kernel_does() {
    let wide = |object: &str, subject: &str, cidr: &str| {
        policy(object, "1", app(subject), vec![rule(Some(vec![block(cidr)]), ports(1))])
    };
    let mut before = Engine::default();
    before.apply([identity(301, "a"), identity(302, "b"), identity(303, "c"), identity(304, "d")]);
    let ab = vec![rule(Some(vec![Peer::Endpoints(app("a")), Peer::Endpoints(app("b"))]), ports(1))];
    before.apply([endpoint(1, "web"), endpoint(3, "top"), wide("web", "web", "10.0.0.0/8")]);
    before.apply([policy("top", "1", app("top"), ab.clone())]);
    let held = before.desired();
    let policies: BTreeMap<_, _> = held.policies.iter().map(|(id, policy)| (*id, (**policy).clone())).collect();
    let (old, old_top) = (ingress(&before, 1).0, ingress(&before, 3).0);

    let mut after = Engine::default();
    after.adopt(&policies, &held.cidrs, &held.peers);
    let all = [
        identity(301, "a"),
        identity(302, "b"),
        identity(303, "c"),
        identity(304, "d"),
        endpoint(1, "web"),
        endpoint(2, "db"),
        endpoint(3, "top"),
        wide("web", "web", "10.0.0.0/8"),
        wide("db", "db", "10.1.0.0/16"),
        policy("top", "1", app("top"), ab),
        policy("a", "1", app("db"), from_app("c")),
    ];
    let plan = after.apply(all);
    let desired = after.desired();
    let cidr = |cidr: &str| desired.cidrs[&cidr.parse::<IpNet>().unwrap()];
    assert_eq!(cidr("10.0.0.0/8"), held.cidrs[&"10.0.0.0/8".parse::<IpNet>().unwrap()], "a prefix keeps its number");
    for peer in [number(301), number(302), cidr("10.0.0.0/8")] {
        assert_eq!(desired.peers[&peer], held.peers[&peer], "{peer} keeps its class");
    }
    // What holds for the wide prefix holds for the narrow one, in what is in force still.
    let taught: BTreeMap<_, _> = plan.patch.iter().map(|(id, patch)| (*id, &patch.put_classes)).collect();
    let (wide, narrow) = (desired.peers[&cidr("10.0.0.0/8")], desired.peers[&cidr("10.1.0.0/16")]);
    assert_eq!(taught[&old].get(&narrow), policies[&old].classes.get(&wide));
    assert_eq!(plan.remove.iter().copied().collect::<BTreeSet<_>>(), BTreeSet::from([old, old_top]));
    assert!(plan.put.iter().all(|(id, _)| *id != old && *id != old_top), "a number of the kernel's is not given again");
    // Peers that were together and are not: both halves have what they had.
    assert_eq!(held.peers.get(&number(303)), None, "nobody selected it");
    assert!(plan.put_peers.contains(&(number(303), desired.peers[&number(303)])));
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
    assert!(engine.problems()[0].text.contains("4 resolved policies on this node, the limit is 3"));
}

#[test]
fn of_a_class_that_splits_the_smaller_part_moves() {
    let mut engine = Engine::default();
    let all = vec![rule(Some(vec![Peer::Endpoints(EndpointSelector::EVERY_POD)]), ports(1))];
    engine.apply((0..300).map(|n| identity(1000 + n, &format!("app-{n}"))));
    engine.apply([endpoint(1, "web"), endpoint(2, "db"), policy("all", "1", app("web"), all)]);
    let requirements = vec![Requirement::NotIn("k8s:app".to_owned(), ["app-7".to_owned()].into())];
    let most = Peer::Endpoints(EndpointSelector { namespace: None, requirements });
    let plan = engine.apply([policy("most", "1", app("db"), vec![rule(Some(vec![most]), ports(2))])]);
    assert_eq!(plan.put_peers, [(number(1007), engine.peer_class(number(1007)).unwrap())]);
    let outside = "192.0.2.1".parse().unwrap();
    for (id, ports, of_all) in [(1, 1, true), (2, 2, false)] {
        let compiled = engine.compiled(ingress(&engine, id).0).unwrap();
        for n in 0..300 {
            for port in 0..2 {
                let decision = engine.lookup(compiled, number(1000 + n), outside, 6, 2 * port);
                assert_eq!(decision.is_some(), port < ports && (of_all || n != 7), "{n} on {port} at {id}");
            }
        }
    }
}
