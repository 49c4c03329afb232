#![allow(clippy::disallowed_methods, reason = "tasks of a test end with its runtime")]

use super::Attachments;
use crate::fakes::{World, mtu, name, namespace, pod, ready};
use crate::restart;
use crate::writer::thread::Handle;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use weft_api::cni::{AddRequest, Attachment, CheckRequest, DelRequest, GcRequest};
use weft_api::failure::Kind;
use weft_model::id::Identity;
use weft_model::intent::Change;

fn attachment(container: &str) -> Attachment {
    Attachment { container_id: container.into(), ifname: "eth0".into() }
}

fn add(container: &str, pod: &str, uid: Option<&str>) -> AddRequest {
    let pod = name(pod);
    AddRequest {
        attachment: attachment(container),
        netns: format!("/run/netns/{container}"),
        pod_namespace: pod.namespace,
        pod_name: pod.name,
        pod_uid: uid.map(str::to_owned),
        mtu: None,
        addresses: None,
    }
}

fn del(container: &str) -> DelRequest {
    DelRequest { attachment: attachment(container), netns: None }
}

fn check(container: &str, addresses: Vec<std::net::IpAddr>) -> CheckRequest {
    CheckRequest { attachment: attachment(container), netns: format!("/run/netns/{container}"), addresses }
}

async fn start(world: &World, dir: &Path) -> (Arc<Attachments>, Handle) {
    let (writer, progress) = ready(world, dir).await;
    let shared = Arc::new(world.clone());
    let attachments = Attachments::new(writer.clone(), shared.clone(), shared, progress, mtu());
    (Arc::new(attachments.with_timeout(Duration::from_secs(2))), writer)
}

async fn learn(writer: &Handle, change: Change) {
    writer.call(|writer| writer.apply(vec![change])).await.expect("running");
}

/// Nothing of any endpoint is left anywhere.
async fn assert_clean(world: &World, writer: &Handle, dir: &Path) {
    {
        let held = world.held();
        assert!(held.endpoints.is_empty(), "{:?}", held.endpoints);
        assert!(held.links.is_empty(), "{:?}", held.links);
        assert!(held.ipcache.values().all(|entry| entry.is_node), "{:?}", held.ipcache);
    }
    let files: Vec<_> = std::fs::read_dir(dir.join("endpoints")).expect("dir").collect();
    assert!(files.is_empty(), "{files:?}");
    let used: u64 = writer.snapshot().status().ipam.iter().map(|(_, used, _)| used).sum();
    assert_eq!(used, 0);
}

#[tokio::test]
async fn add_puts_policy_and_endpoint_in_force_before_it_answers() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let (attachments, writer) = start(&world, dir.path()).await;
    learn(&writer, Change::Pod(pod("shop/web", "u1", &[("app", "web")]))).await;
    world.take_log();
    let added = attachments.add(add("c1", "shop/web", Some("u1"))).await.expect("added");
    assert_eq!(added.addresses.len(), 2);
    assert!(added.addresses[0].0.starts_with("10.244.1.") && added.addresses[0].0.ends_with("/32"), "{added:?}");
    let log = world.take_log();
    let at = |verb: &str| {
        log.iter().position(|line| line.starts_with(verb)).unwrap_or_else(|| panic!("no {verb} in {log:?}"))
    };
    assert!(at("create_identity") < at("create_link"));
    assert!(at("create_link") < at("put_endpoint"));
    assert!(at("put_endpoint") < at("set_ipcache"));
    assert!(at("set_ipcache") < at("bump"));
    // The same call again: the same answer, and nothing done.
    assert_eq!(attachments.add(add("c1", "shop/web", Some("u1"))).await.expect("added"), added);
    assert!(world.take_log().is_empty());
    // A second pod with the same labels asks nobody.
    learn(&writer, Change::Pod(pod("shop/web-2", "u2", &[("app", "web")]))).await;
    world.fail("create_identity");
    world.fail("get_pod");
    attachments.add(add("c2", "shop/web-2", None)).await.expect("added without the API server");
    world.heal();
    let addresses =
        added.addresses.iter().map(|(text, _)| crate::fakes::ip(text.split('/').next().expect("address"))).collect();
    attachments.check(check("c1", addresses)).await.expect("as it should be");
    for container in ["c1", "c2", "c1", "never"] {
        attachments.del(del(container)).await.expect("deleted");
    }
    assert_clean(&world, &writer, dir.path()).await;
}

#[tokio::test]
async fn a_failure_at_any_step_takes_everything_back() {
    for step in ["create_link", "put_endpoint", "set_ipcache", "bump"] {
        let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
        let (attachments, writer) = start(&world, dir.path()).await;
        learn(&writer, Change::Pod(pod("shop/web", "u1", &[]))).await;
        world.fail(step);
        let error = attachments.add(add("c1", "shop/web", None)).await.expect_err(step);
        assert!(error.to_string().contains(step), "{step}: {error}");
        world.heal();
        // Removing may have failed as well: the runtime calls DEL after a failed ADD.
        attachments.del(del("c1")).await.expect("deleted");
        writer.call(|writer| writer.set_time(Duration::from_secs(3600))).await.expect("running");
        writer.call(|writer| writer.apply(Vec::new())).await.expect("running");
        assert_clean(&world, &writer, dir.path()).await;
        attachments.add(add("c1", "shop/web", None)).await.expect("works now");
    }
}

#[tokio::test]
async fn labels_that_cannot_be_read_are_waited_for() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let (attachments, writer) = start(&world, dir.path()).await;
    let error = attachments.add(add("c1", "shop/ghost", None)).await.expect_err("no such pod");
    assert!(error.to_string().contains("no such pod: shop/ghost"), "{error}");
    world.held().pods.insert(name("shop/web"), pod("shop/web", "u2", &[]));
    let error = attachments.add(add("c1", "shop/web", Some("u1"))).await.expect_err("another pod");
    assert!(error.to_string().contains("expected uid u1, found u2"), "{error}");
    // Outage: the call waits, and goes on when the server answers.
    world.fail("get_pod");
    let waiting = tokio::spawn({
        let attachments = attachments.clone();
        async move { attachments.add(add("c1", "shop/web", Some("u2"))).await }
    });
    tokio::task::yield_now().await;
    assert!(world.held().endpoints.is_empty());
    world.heal();
    waiting.await.expect("task").expect("added");
    // And gives up in time, with the code that means "later".
    world.held().pods.insert(name("other/web"), pod("other/web", "u3", &[]));
    let error = attachments.add(add("c2", "other/web", None)).await.expect_err("no namespace");
    assert_eq!(error.kind, Kind::TryAgain, "{error}");
    world.held().namespaces.insert("other".into(), namespace("other", &[]));
    attachments.add(add("c2", "other/web", None)).await.expect("added");
    let _ = writer;
}

#[tokio::test]
async fn a_number_that_somebody_else_has_is_passed_over() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let (attachments, writer) = start(&world, dir.path()).await;
    learn(&writer, Change::Pod(pod("shop/web", "u1", &[("app", "web")]))).await;
    attachments.add(add("c1", "shop/web", None)).await.expect("added");
    let first = *world.held().identities.keys().next().expect("made");
    // Another cluster state: the number belongs to other labels that this agent does not know yet.
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let (attachments, writer) = start(&world, dir.path()).await;
    learn(&writer, Change::Pod(pod("shop/web", "u1", &[("app", "web")]))).await;
    world.held().identities.insert(first, weft_model::label::LabelSet([("k8s:x".to_owned(), "y".to_owned())].into()));
    attachments.add(add("c1", "shop/web", None)).await.expect("added");
    let held = world.held();
    let identity = held.endpoints.values().next().expect("there").identity;
    assert_ne!(identity, first);
    assert_eq!(held.identities.len(), 2);
    assert!(Identity::ALLOCATED.contains(&identity.raw()));
}

#[tokio::test]
async fn late_del_of_the_old_sandbox_spares_the_new_one() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let (attachments, writer) = start(&world, dir.path()).await;
    learn(&writer, Change::Pod(pod("shop/web", "u1", &[]))).await;
    let old = attachments.add(add("old", "shop/web", Some("u1"))).await.expect("added");
    let new = attachments.add(add("new", "shop/web", Some("u1"))).await.expect("added beside the old one");
    assert_ne!(old.addresses, new.addresses);
    let announced = writer.snapshot().announced().expect("ready");
    assert_eq!(announced[&name("shop/web")].endpoint.addresses.len(), 4);
    attachments.del(del("old")).await.expect("deleted");
    attachments.del(del("old")).await.expect("deleted again");
    assert_eq!(world.held().links.len(), 1);
    let announced = writer.snapshot().announced().expect("ready");
    assert_eq!(announced[&name("shop/web")].endpoint.addresses.len(), 2);
    attachments.check(check("new", Vec::new())).await.expect("whole");
    assert_eq!(attachments.check(check("old", Vec::new())).await.expect_err("gone").kind, Kind::NoContainer);
}

#[tokio::test]
async fn gc_takes_off_what_the_runtime_does_not_know() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let (attachments, writer) = start(&world, dir.path()).await;
    learn(&writer, Change::Pod(pod("shop/web", "u1", &[]))).await;
    for container in ["a", "b", "c"] {
        attachments.add(add(container, "shop/web", None)).await.expect("added");
    }
    attachments.gc(GcRequest { valid: vec![attachment("b"), attachment("unknown")] }).await.expect("collected");
    assert_eq!(world.held().links.len(), 1);
    attachments.check(check("b", Vec::new())).await.expect("whole");
    attachments.gc(GcRequest { valid: Vec::new() }).await.expect("collected");
    assert_clean(&world, &writer, dir.path()).await;
}

#[tokio::test]
async fn many_at_once_and_none_left() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let (attachments, writer) = start(&world, dir.path()).await;
    learn(&writer, Change::Pod(pod("shop/web", "u1", &[]))).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..100 {
        let attachments = attachments.clone();
        tasks.spawn(async move {
            let container = format!("c{}", n % 50);
            // Two calls each about fifty attachments: the same answer to both.
            let added = attachments.add(add(&container, "shop/web", None)).await.expect("added");
            (container, added)
        });
    }
    let mut answers = std::collections::BTreeMap::new();
    while let Some(done) = tasks.join_next().await {
        let (container, added) = done.expect("task");
        assert_eq!(answers.entry(container).or_insert_with(|| added.clone()), &added);
    }
    let addresses: std::collections::BTreeSet<_> = answers.values().flat_map(|added| &added.addresses).collect();
    assert_eq!(addresses.len(), 100, "every address once");
    assert!(attachments.locks.lock().expect("lock").is_empty());
    attachments.gc(GcRequest { valid: Vec::new() }).await.expect("collected");
    assert_clean(&world, &writer, dir.path()).await;
}

#[tokio::test]
async fn addresses_run_out_loudly_and_come_back() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let (attachments, writer) = start(&world, dir.path()).await;
    learn(&writer, Change::Pod(pod("shop/web", "u1", &[]))).await;
    for n in 0..254 {
        attachments.add(add(&format!("c{n}"), "shop/web", None)).await.expect("added");
    }
    let error = attachments.add(add("more", "shop/web", None)).await.expect_err("full");
    assert_eq!(error.kind, Kind::NoAddresses);
    assert!(error.details.contains("10.244.1.0/24"), "{error}");
    attachments.del(del("c7")).await.expect("deleted");
    attachments.add(add("more", "shop/web", None)).await.expect("there is one again");
}

#[tokio::test]
async fn a_successor_goes_on_where_the_predecessor_died() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let (attachments, writer) = start(&world, dir.path()).await;
    learn(&writer, Change::Pod(pod("shop/web", "u1", &[("app", "web")]))).await;
    let kept = attachments.add(add("kept", "shop/web", None)).await.expect("added");
    // Died between the link and the maps: a record, a link, no endpoint. And half a DEL.
    world.fail("put_endpoint");
    world.fail("remove_endpoint");
    attachments.add(add("half", "shop/web", None)).await.expect_err("fails");
    world.heal();
    attachments.add(add("leaving", "shop/web", None)).await.expect("added");
    world.fail("remove_link");
    attachments.del(del("leaving")).await.expect_err("fails");
    world.heal();
    world.held().links.insert("weftunknown".into(), 99);
    let endpoint = world.held().endpoints.clone();
    assert_eq!(world.held().links.len(), 4);
    drop((attachments, writer));
    wait_for_lock(dir.path()).await;
    world.take_log();

    // The successor, before anything came from the cluster.
    let mut writer = crate::fakes::writer(&world, dir.path());
    restart::take_over(&mut writer, &world).expect("take over");
    writer.flush();
    assert_eq!(world.held().links.len(), 1, "only whole endpoints have links");
    assert_eq!(world.held().endpoints, endpoint, "and they are in force as they were");
    assert!(
        !world.held().log.iter().any(|line| line.starts_with("put_") || line.starts_with("set_")),
        "{:?}",
        world.held().log
    );
    drop(writer);

    let (attachments, writer) = start(&world, dir.path()).await;
    learn(&writer, Change::Pod(pod("shop/web", "u1", &[("app", "web")]))).await;
    let again = attachments.add(add("kept", "shop/web", None)).await.expect("the same");
    assert_eq!(again, kept);
    let other = attachments.add(add("other", "shop/web", None)).await.expect("added");
    assert_ne!(other.addresses, kept.addresses);
    attachments.gc(GcRequest { valid: Vec::new() }).await.expect("collected");
    assert_clean(&world, &writer, dir.path()).await;
}

/// The control thread gives the directory back when the last handle is gone.
async fn wait_for_lock(dir: &Path) {
    tokio::time::timeout(Duration::from_secs(10), async {
        while crate::state::StateDir::open(dir).is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("free");
}
