use super::endpoints::Reservation;
use super::flush::Writer;
use crate::fakes::{World, first_news, ip, name, namespace, node, pod, writer};
use crate::state::EndpointRecord;
use crate::tables::addresses::LINGER;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use weft_api::cni::Attachment;
use weft_control::identity::NumberOf;
use weft_model::id::{EndpointId, Identity, PolicyId};
use weft_model::intent::{
    Change, EndpointSelector, EndpointSlice, IdentityLabels, ObjectName, Pod, Policy, PolicyKind, PolicyName,
    RemoteEndpoint, Rule, RuleAction, Source, SourceProblem, Spec, Subject, Tier, Written,
};
use weft_model::label::LabelSet;
use weft_model::reconcile::RETRY_MAX;
use weft_model::selector::Requirement;

mod services;

pub(crate) fn synced_writer(world: &World, dir: &Path) -> Writer {
    let mut writer = writer(world, dir);
    writer.restore(Vec::new(), &[]).expect("restore");
    writer.apply(first_news());
    writer.set_node_ready(None);
    writer.flush();
    assert!(writer.snapshot().status().ready, "{:?}", writer.snapshot().status());
    writer
}

pub(crate) fn attach(writer: &mut Writer, pod: &Pod, container: &str) -> EndpointId {
    let record = reserve(writer, pod, container);
    writer.activate(record.id, u32::from(record.id.raw())).expect("active");
    writer.flush();
    record.id
}

fn reserve(writer: &mut Writer, pod: &Pod, container: &str) -> EndpointRecord {
    writer.apply(vec![Change::Pod(pod.clone())]);
    let labels = writer.labels_of(pod, None).expect("the namespace is known");
    let identity = match writer.number_of(&labels).expect("free") {
        NumberOf::Known(identity) => identity,
        NumberOf::Proposed(identity) => {
            writer.apply(vec![Change::Identity(IdentityLabels { identity, labels: labels.clone(), unused: false })]);
            identity
        }
    };
    let attachment = Attachment { container_id: container.into(), ifname: "eth0".into() };
    let wanted = Reservation {
        attachment,
        netns: "/run/netns/x".into(),
        pod: pod.clone(),
        labels,
        identity,
        mtu: 1500,
        addresses: None,
    };
    writer.reserve(wanted).expect("reserved")
}

fn policy(text: &str, version: &str, app: &str, peer: &str) -> Policy {
    let select = |value: &str| EndpointSelector {
        namespace: Some(name(text).namespace),
        requirements: vec![Requirement::In("k8s:app".into(), [value.to_owned()].into())],
    };
    Policy {
        name: policy_name(text),
        uid: format!("uid-{text}"),
        resource_version: version.into(),
        specs: vec![Spec {
            subject: Subject::Endpoints(select(app)),
            tier: Tier::Normal,
            isolates_ingress: true,
            isolates_egress: false,
            ingress: vec![Rule {
                place: "ingress[0]".into(),
                action: RuleAction::Allow,
                peers: Some(vec![weft_model::intent::Peer::Endpoints(select(peer))]),
                ports: None,
            }],
            egress: Vec::new(),
            log: None,
        }],
    }
}

/// With a thousand nodes, one that comes or goes must not make a thousand agents write about themselves; the way to its
/// pods is known all the same.
#[test]
fn a_node_that_comes_or_goes_makes_no_other_announce_itself() {
    use futures::FutureExt as _;
    let (world, dir) = (World::default(), tempfile::tempdir().expect("directory"));
    let mut writer = synced_writer(&world, dir.path());
    let signals = writer.signals();
    let announce = || signals.nodes_announce.notified().now_or_never().is_some();
    announce();
    writer.apply(vec![Change::Node(node("node-9", 9))]);
    writer.flush();
    let cidr = node("node-9", 9).pod_cidrs[0];
    assert!(writer.reconcilers.routes.has_pods(cidr.addr()), "{cidr}");
    writer.apply(vec![Change::NodeGone("node-9".into())]);
    writer.flush();
    assert!(!writer.reconcilers.routes.has_pods(cidr.addr()), "{cidr}");
    assert!(!announce(), "about another node");
    let own = writer.own_node().expect("known");
    writer.apply(vec![Change::Node(own)]);
    assert!(announce(), "about this node");
}

fn policy_name(text: &str) -> PolicyName {
    PolicyName { kind: PolicyKind::NetworkPolicy, object: name(text) }
}

/// Gives every label set that waits a number.
fn number_all(writer: &mut Writer) {
    for labels in writer.wanted_identities() {
        let NumberOf::Proposed(identity) = writer.number_of(&labels).expect("free") else { continue };
        writer.apply(vec![Change::Identity(IdentityLabels { identity, labels: labels.clone(), unused: false })]);
        writer.identity_obtained(&labels);
    }
}

fn position(log: &[String], start: &str) -> usize {
    log.iter().position(|line| line.starts_with(start)).unwrap_or_else(|| panic!("no {start:?} in {log:#?}"))
}

#[test]
fn a_policy_is_there_before_the_endpoint_uses_it_and_gone_after() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let mut writer = synced_writer(&world, dir.path());
    attach(&mut writer, &pod("shop/web", "u1", &[("app", "web")]), "c1");
    world.take_log();
    writer.apply(vec![Change::Policy(policy("shop/allow", "5", "web", "client"))]);
    writer.flush();
    let log = world.take_log();
    assert!(position(&log, "put_policy") < position(&log, "put_endpoint"));
    assert!(position(&log, "put_endpoint") < position(&log, "bump"));
    assert_eq!(writer.snapshot().policy_in_force(&policy_name("shop/allow")), Some("5"));
    assert_ne!(world.held().endpoints.values().next().expect("there").ingress, PolicyId::OPEN);
    writer.apply(vec![Change::PolicyGone(policy_name("shop/allow"))]);
    assert!(!writer.snapshot().policy_is_gone(&policy_name("shop/allow")));
    writer.flush();
    let log = world.take_log();
    assert!(position(&log, "bump") < position(&log, "remove_policy"));
    assert!(writer.snapshot().policy_is_gone(&policy_name("shop/allow")));
    assert!(world.held().policies.is_empty());
}

#[test]
fn an_invalid_version_leaves_the_one_before_in_force() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let mut writer = synced_writer(&world, dir.path());
    attach(&mut writer, &pod("shop/web", "u1", &[("app", "web")]), "c1");
    writer.apply(vec![Change::Policy(policy("shop/allow", "5", "web", "client"))]);
    writer.flush();
    world.take_log();
    let problem = "spec.ingress[0].ports[0].port: expected 1 to 65535, found 70000".to_owned();
    writer.apply(vec![Change::PolicyInvalid {
        name: policy_name("shop/allow"),
        resource_version: "6".into(),
        problem: problem.clone(),
    }]);
    writer.flush();
    assert!(world.take_log().is_empty());
    assert_eq!(writer.snapshot().policy_in_force(&policy_name("shop/allow")), Some("5"));
    assert_eq!(writer.snapshot().policy.problem_of(&policy_name("shop/allow"), "6"), Some(problem.clone()));
    assert!(
        writer
            .snapshot()
            .status()
            .problems
            .iter()
            .any(|text| text.contains(&problem) && text.contains("before is in force"))
    );
    writer.apply(vec![Change::Policy(policy("shop/allow", "7", "web", "client"))]);
    writer.flush();
    assert!(writer.snapshot().status().problems.is_empty(), "{:?}", writer.snapshot().status().problems);
}

#[test]
fn new_labels_take_the_endpoint_along_policy_first() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let mut writer = synced_writer(&world, dir.path());
    writer.apply(vec![Change::Policy(policy("shop/allow", "5", "web", "client"))]);
    attach(&mut writer, &pod("shop/web", "u1", &[("app", "web")]), "c1");
    let id = attach(&mut writer, &pod("shop/some", "u2", &[("app", "other")]), "c2");
    let before = world.held().endpoints.values().find(|endpoint| endpoint.id == id).expect("there").clone();
    world.take_log();
    writer.apply(vec![Change::Pod(pod("shop/some", "u2", &[("app", "client")]))]);
    writer.flush();
    // No number yet: as before.
    assert_eq!(world.held().endpoints.values().find(|endpoint| endpoint.id == id), Some(&before));
    assert_eq!(writer.snapshot().list_endpoints()[1].state, "waiting-for-identity");
    world.take_log();
    number_all(&mut writer);
    writer.flush();
    let log = world.take_log();
    let after = world.held().endpoints.values().find(|endpoint| endpoint.id == id).expect("there").clone();
    assert_ne!(after.identity, before.identity);
    // The server's policy knows the new identity before any address has it.
    let knows = log
        .iter()
        .position(|line| line.starts_with("patch_policy") || line.starts_with("put_policy"))
        .expect("policy first");
    assert!(knows < position(&log, &format!("put_endpoint {id}")));
    assert!(position(&log, &format!("put_endpoint {id}")) < position(&log, "set_ipcache"));
    assert!(position(&log, "set_ipcache") < position(&log, "bump"));
    // A namespace's labels count as well.
    writer.apply(vec![Change::Namespace(namespace("shop", &[("tier", "gold")]))]);
    number_all(&mut writer);
    writer.flush();
    assert_ne!(
        world.held().endpoints.values().find(|endpoint| endpoint.id == id).expect("there").identity,
        after.identity
    );
    // Another pod of the same name says nothing about this endpoint.
    let now = world.held().endpoints.clone();
    writer.apply(vec![Change::Pod(pod("shop/some", "u9", &[("app", "web")]))]);
    number_all(&mut writer);
    writer.flush();
    assert_eq!(world.held().endpoints, now);
}

pub(super) fn remote(uid: &str, identity: u32, address: &str) -> RemoteEndpoint {
    RemoteEndpoint {
        name: ObjectName { namespace: "shop".into(), name: format!("pod-{uid}") },
        pod_uid: uid.into(),
        identity: Identity::from_raw(identity),
        addresses: vec![ip(address)],
        node: ip("172.31.0.12"),
        named_ports: Vec::new(),
    }
}

pub(super) fn slice(name: &str, endpoints: &[RemoteEndpoint]) -> Change {
    Change::Slice(EndpointSlice { name: name.into(), endpoints: endpoints.to_vec(), written: Written::default() })
}

#[test]
fn remote_addresses_come_and_go() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let mut writer = synced_writer(&world, dir.path());
    let address = ip("10.244.2.7");
    writer.apply(vec![slice("one", &[remote("u1", 300, "10.244.2.7")])]);
    writer.flush();
    assert_eq!(world.held().ipcache[&address].identity.raw(), 300);
    world.take_log();
    writer.apply(vec![Change::SliceGone("one".into()), slice("two", &[remote("u1", 300, "10.244.2.7")])]);
    writer.flush();
    assert!(world.take_log().is_empty(), "moving is no change");
    writer.apply(vec![slice("two", &[])]);
    let wake = writer.flush().expect("wakes to remove it");
    assert!(world.held().ipcache.contains_key(&address), "it lingers");
    writer.set_time(wake);
    writer.flush();
    assert_eq!(wake, LINGER);
    assert!(!world.held().ipcache.contains_key(&address));
    assert!(world.take_log().contains(&"bump node".to_owned()));
}

#[test]
fn a_failed_write_is_tried_again_and_seen_meanwhile() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let mut writer = synced_writer(&world, dir.path());
    attach(&mut writer, &pod("shop/web", "u1", &[("app", "web")]), "c1");
    world.fail("put_policy");
    writer.apply(vec![Change::Policy(policy("shop/allow", "5", "web", "client"))]);
    let wake = writer.flush().expect("wakes to try again");
    let status = writer.snapshot().status();
    assert!(status.revision_in_force < status.revision);
    assert!(status.problems.iter().any(|text| text.contains("put_policy")), "{:?}", status.problems);
    assert_eq!(writer.snapshot().policy_in_force(&policy_name("shop/allow")), None);
    // Meanwhile another pod comes; addresses and endpoints do not wait for the policy that failed.
    writer.apply(vec![slice("one", &[remote("u7", 300, "10.244.2.7")])]);
    writer.flush();
    assert!(world.held().ipcache.contains_key(&ip("10.244.2.7")));
    world.heal();
    writer.set_time(wake + RETRY_MAX);
    writer.flush();
    let status = writer.snapshot().status();
    assert_eq!(status.revision_in_force, status.revision);
    assert!(status.problems.is_empty(), "{:?}", status.problems);
    assert_eq!(writer.snapshot().policy_in_force(&policy_name("shop/allow")), Some("5"));
    assert_ne!(world.held().endpoints.values().next().expect("there").ingress, PolicyId::OPEN);
}

#[test]
fn nothing_is_removed_before_every_source_is_complete() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let mut first = synced_writer(&world, dir.path());
    first.apply(vec![
        Change::Policy(policy("shop/allow", "5", "web", "client")),
        slice("one", &[remote("u7", 300, "10.244.2.7")]),
    ]);
    attach(&mut first, &pod("shop/web", "u1", &[("app", "web")]), "c1");
    let identity = first.snapshot().list_endpoints()[0].identity;
    let labels = first.tables.endpoints.values().next().expect("there").record.labels.clone();
    first.flush();
    drop(first);
    let before = world.held().endpoints.clone();
    world.held().links.insert(before.values().next().map(|_| String::new()).unwrap_or_default(), 1);
    world.take_log();

    let mut second = writer(&world, dir.path());
    let (records, unusable) = second.read_records().expect("read");
    assert!(unusable.is_empty());
    let links: Vec<_> = records.iter().map(|record| (record.device.clone(), 1)).collect();
    assert!(second.restore(records, &links).expect("restore").records.is_empty());
    second.flush();
    let news = |second: &mut Writer, changes: Vec<Change>| {
        second.apply(changes);
        second.flush();
    };
    news(&mut second, vec![Change::Node(node("n1", 1)), Change::Node(node("n2", 2)), Change::Synced(Source::Nodes)]);
    news(&mut second, vec![Change::Pod(pod("shop/web", "u1", &[("app", "web")])), Change::Synced(Source::Pods)]);
    news(&mut second, vec![Change::Namespace(namespace("shop", &[])), Change::Synced(Source::Namespaces)]);
    news(&mut second, vec![Change::Synced(Source::Slices), Change::Synced(Source::Endpoints)]);
    news(
        &mut second,
        vec![
            Change::Identity(IdentityLabels { identity: Identity::from_raw(identity), labels, unused: false }),
            Change::Synced(Source::Identities),
        ],
    );
    assert!(world.take_log().is_empty(), "the policies are still missing");
    assert_eq!(world.held().endpoints, before);
    news(
        &mut second,
        [Source::CidrGroups, Source::Services, Source::Backends, Source::LocalRedirects]
            .into_iter()
            .chain(PolicyKind::ALL.map(Source::Policies))
            .map(Change::Synced)
            .chain([Change::Policy(policy("shop/allow", "5", "web", "client"))])
            .collect(),
    );
    // Now what the slices no longer have is gone, flows that knew it decide again, and the endpoint is as it was.
    let log = world.take_log();
    let bumped = log.iter().rposition(|line| line == "bump node");
    assert!(bumped > Some(position(&log, "set_ipcache 10.244.2.7 none")), "{log:#?}");
    assert!(!world.held().ipcache.contains_key(&ip("10.244.2.7")));
    let held = world.held();
    let after = held.endpoints.values().next().expect("there");
    assert_eq!(after.identity.raw(), identity);
    assert_ne!(after.ingress, PolicyId::OPEN);
    assert_eq!(held.policies.len(), 1, "the former agent's policy is gone");
}

#[test]
fn a_policy_kind_that_cannot_be_read_keeps_everything_as_it_is_and_says_what_to_do() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let mut writer = writer(&world, dir.path());
    let source = Source::Policies(PolicyKind::CiliumNetworkPolicy);
    let forbidden = SourceProblem { text: "cannot list ciliumnetworkpolicies: forbidden".into(), listed: false };
    let mut changes = first_news();
    changes.retain(|change| *change != Change::Synced(source));
    changes.push(Change::SourceProblem(source, Some(forbidden)));
    writer.apply(changes);
    writer.flush();
    assert!(world.take_log().is_empty(), "nothing is written while a kind of policies is unknown");
    let status = writer.snapshot().status();
    assert!(!status.ready);
    let told = "CiliumNetworkPolicy: cannot list ciliumnetworkpolicies: forbidden";
    assert!(status.waiting_for.iter().any(|waiting| waiting == told), "{:?}", status.waiting_for);
    assert!(status.problems.iter().any(|problem| problem == told), "{:?}", status.problems);
    writer.apply(vec![Change::Synced(source), Change::SourceProblem(source, None)]);
    writer.flush();
    let status = writer.snapshot().status();
    assert!(!status.waiting_for.iter().chain(&status.problems).any(|text| text.contains("forbidden")), "{status:?}");
}

#[test]
fn an_endpoint_whose_identity_object_vanished_keeps_it_and_asks_for_it() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let mut writer = synced_writer(&world, dir.path());
    attach(&mut writer, &pod("shop/web", "u1", &[("app", "web")]), "c1");
    let identity = Identity::from_raw(writer.snapshot().list_endpoints()[0].identity);
    writer.apply(vec![Change::IdentityGone(identity)]);
    writer.flush();
    assert_eq!(writer.snapshot().list_endpoints()[0].identity, identity.raw());
    assert_eq!(writer.wanted_identities().len(), 1);
    number_all(&mut writer);
    writer.flush();
    assert!(writer.wanted_identities().is_empty());
    assert_eq!(writer.snapshot().list_endpoints()[0].identity, identity.raw());
}

/// Who deletes the object of an identity that is in use, or of one that just came to be used, cuts nobody off.
#[test]
fn an_identity_without_an_object_is_in_force_while_somebody_has_it() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let mut writer = synced_writer(&world, dir.path());
    attach(&mut writer, &pod("shop/web", "u1", &[("app", "web")]), "c1");
    let client = Identity::from_raw(7000);
    let labels = LabelSet(BTreeMap::from(
        [("k8s:app", "client"), ("k8s:io.kubernetes.pod.namespace", "shop")]
            .map(|(key, value)| (key.to_owned(), value.to_owned())),
    ));
    writer.apply(vec![
        Change::Policy(policy("shop/allow", "5", "web", "client")),
        Change::Identity(IdentityLabels { identity: client, labels, unused: false }),
        slice("ces-1", &[remote("r1", client.raw(), "10.244.2.7")]),
    ]);
    writer.flush();
    let in_force = |world: &World| world.held().peers.contains_key(&client);
    assert!(in_force(&world), "{:?}", world.held().peers);

    writer.apply(vec![Change::IdentityGone(client)]);
    writer.set_time(Duration::from_secs(60));
    writer.flush();
    assert!(in_force(&world), "its pod is still there");
    writer.apply(vec![Change::SliceGone("ces-1".into())]);
    let again = writer.flush().expect("it looks again");
    assert!(in_force(&world), "its pod may only be on its way to another slice");
    writer.set_time(again + crate::tables::addresses::LINGER);
    writer.flush();
    writer.set_time(again + crate::tables::addresses::LINGER * 2);
    writer.flush();
    assert!(!in_force(&world), "nobody has it any more");
}

#[test]
fn an_identity_without_an_object_is_in_force_for_a_pod_that_is_about_to_start() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let mut writer = synced_writer(&world, dir.path());
    attach(&mut writer, &pod("shop/web", "u1", &[("app", "web")]), "c1");
    writer.apply(vec![Change::Policy(policy("shop/allow", "5", "web", "client"))]);
    let client = reserve(&mut writer, &pod("shop/client", "u2", &[("app", "client")]), "c2");
    writer.apply(vec![Change::IdentityGone(client.identity)]);
    writer.set_time(Duration::from_secs(60));
    writer.flush();
    assert!(world.held().peers.contains_key(&client.identity), "{:?}", world.held().peers);
    writer.release(client.id).expect("released");
    writer.flush();
    writer.set_time(Duration::from_secs(120));
    writer.flush();
    assert!(!world.held().peers.contains_key(&client.identity), "nobody has it any more");
}

/// Under another configuration of the node flows decide again, also before every source is complete.
#[test]
fn a_new_configuration_makes_flows_decide_again() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    for mut writer in [writer(&world, &dir.path().join("early")), synced_writer(&world, &dir.path().join("late"))] {
        writer.flush();
        world.take_log();
        writer.configure(&crate::fakes::node_settings()).expect("configured");
        writer.flush();
        let log = world.take_log();
        assert!(position(&log, "configure") < position(&log, "bump node"), "{log:?}");
        writer.flush();
        assert!(world.take_log().is_empty(), "once");
    }
}

/// Another node's word on a number that has no object: it holds while an address has the number, and is nothing that this
/// node's own pods would take their number from.
#[test]
fn labels_that_a_node_vouches_for_end_with_its_answer() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let mut writer = synced_writer(&world, dir.path());
    attach(&mut writer, &pod("shop/web", "u1", &[("app", "web")]), "c1");
    let identity = Identity::from_raw(7000);
    let labels = LabelSet(BTreeMap::from(
        [("k8s:app", "client"), ("k8s:io.kubernetes.pod.namespace", "shop")]
            .map(|(key, value)| (key.to_owned(), value.to_owned())),
    ));
    let others = LabelSet([("k8s:app".to_owned(), "admin".to_owned())].into());
    writer.apply(vec![Change::Policy(policy("shop/allow", "5", "web", "client"))]);
    writer.vouch_for_identity(identity, &labels);
    writer.apply(vec![slice("direct:r1", &[remote("r1", identity.raw(), "10.244.2.7")])]);
    writer.flush();
    let in_force = |world: &World| world.held().peers.contains_key(&identity);
    assert!(in_force(&world), "{:?}", world.held().peers);
    // The first word holds, and is no object.
    writer.vouch_for_identity(identity, &others);
    assert_eq!(writer.snapshot().identity_labels(identity), Some(&labels));
    assert!(!matches!(writer.number_of(&labels), Ok(NumberOf::Known(_))));

    writer.apply(vec![Change::SliceGone("direct:r1".into())]);
    let mut now = Duration::from_secs(1);
    while let Some(again) = writer.flush().filter(|_| now < Duration::from_secs(60)) {
        now = now.max(again) + LINGER;
        writer.set_time(now);
    }
    assert!(!in_force(&world), "the answer is over");
    assert_eq!(writer.snapshot().identity_labels(identity), None);
    // A later word is a new one, and the object's holds over every node's.
    writer.vouch_for_identity(identity, &others);
    writer.apply(vec![Change::Identity(IdentityLabels { identity, labels: labels.clone(), unused: false })]);
    writer.flush();
    assert_eq!(writer.snapshot().identity_labels(identity), Some(&labels));
    writer.set_time(now + Duration::from_secs(120));
    writer.flush();
    assert_eq!(writer.number_of(&labels), Ok(NumberOf::Known(identity)));
}

#[test]
fn an_identity_that_is_marked_as_unused_is_taken_up_before_it_is_used() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let mut writer = synced_writer(&world, dir.path());
    let labels = LabelSet([("k8s:app".to_owned(), "web".to_owned())].into());
    let identity = Identity::from_raw(7000);
    let change = |unused| vec![Change::Identity(IdentityLabels { identity, labels: labels.clone(), unused })];
    writer.apply(change(true));
    assert_eq!(writer.number_of(&labels), Ok(NumberOf::Proposed(identity)));
    writer.apply(change(false));
    assert_eq!(writer.number_of(&labels), Ok(NumberOf::Known(identity)));
}

#[test]
fn routes_follow_the_nodes() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let mut writer = synced_writer(&world, dir.path());
    assert_eq!(world.held().routes.len(), 4);
    writer.apply(vec![Change::NodeGone("n2".into()), Change::Node(node("n3", 3))]);
    writer.flush();
    let held = world.held();
    assert_eq!(held.routes.len(), 4);
    assert!(held.routes.keys().all(|cidr| !cidr.to_string().starts_with("10.244.2.")));
    assert_eq!(held.ipcache[&ip("172.31.0.13")].identity, Identity::REMOTE_NODE);
    assert_eq!(held.ipcache[&ip("172.31.0.11")].identity, Identity::HOST);
    assert!(!held.ipcache.contains_key(&ip("172.31.0.12")));
}
