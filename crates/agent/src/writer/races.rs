//! The races between sources of endpoints, one test each: whatever the order of the changes, an address never
//! belongs to nobody while its pod lives, and never to a pod that is gone once another has it.

use super::flush::Writer;
use super::tests::{remote, slice, synced_writer};
use crate::fakes::{World, first_news, ip, writer};
use crate::tables::addresses::LINGER;
use std::time::Duration;
use weft_model::intent::{Change, EndpointSlice, RemoteEndpoint, Source};

const ADDRESS: &str = "10.244.2.7";
const ADDRESS_V6: &str = "fd44:0:0:2::7";

/// A pod with an address of each family.
fn pod(uid: &str, identity: u32) -> RemoteEndpoint {
    let mut pod = remote(uid, identity, ADDRESS);
    pod.addresses.push(ip(ADDRESS_V6));
    pod
}

/// As the watch of CiliumEndpoints delivers it.
fn endpoint(pod: &RemoteEndpoint) -> Change {
    slice(&pod.name.to_string(), std::slice::from_ref(pod))
}

fn endpoint_gone(pod: &RemoteEndpoint) -> Change {
    Change::SliceGone(pod.name.to_string())
}

fn observe(writer: &mut Writer, now: Duration, changes: Vec<Change>) {
    writer.set_time(now);
    writer.apply(changes);
    writer.flush();
}

fn identity(world: &World) -> Option<u32> {
    let held = world.held();
    let [v4, v6] = [ADDRESS, ADDRESS_V6].map(|address| held.ipcache.get(&ip(address)).map(|e| e.identity.raw()));
    assert_eq!(v4, v6, "the families agree");
    v4
}

/// Nothing was ever taken out.
fn no_hole(world: &World) {
    let holes: Vec<_> = world.take_log().into_iter().filter(|line| line.ends_with(" none")).collect();
    assert!(holes.is_empty(), "{holes:?}");
}

const LATER: Duration = Duration::from_secs(1);

#[test]
fn race_1_moved_between_slices_with_the_removal_seen_first() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let mut writer = synced_writer(&world, dir.path());
    observe(&mut writer, Duration::ZERO, vec![slice("a", &[pod("u1", 300)])]);
    observe(&mut writer, LATER, vec![slice("a", &[])]);
    observe(&mut writer, LATER * 2, vec![slice("b", &[pod("u1", 300)])]);
    observe(&mut writer, LATER * 2 + LINGER * 2, Vec::new());
    assert_eq!(identity(&world), Some(300));
    no_hole(&world);
}

#[test]
fn race_2_slices_deleted_and_made_anew_under_other_names() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let mut writer = synced_writer(&world, dir.path());
    observe(&mut writer, Duration::ZERO, vec![slice("ces-a", &[pod("u1", 300)])]);
    observe(&mut writer, LATER, vec![Change::SliceGone("ces-a".into())]);
    observe(&mut writer, LATER + LINGER / 2, vec![slice("ces-b", &[pod("u1", 300)])]);
    observe(&mut writer, LATER + LINGER * 2, Vec::new());
    assert_eq!(identity(&world), Some(300));
    no_hole(&world);
}

#[test]
fn race_3_the_late_end_of_an_old_pod_whose_address_a_new_one_has() {
    for change_of in [endpoint as fn(&RemoteEndpoint) -> Change, |pod| {
        slice(&format!("of-{}", pod.pod_uid), std::slice::from_ref(pod))
    }] {
        let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
        let mut writer = synced_writer(&world, dir.path());
        let (old, new) = (pod("u1", 300), pod("u2", 301));
        observe(&mut writer, Duration::ZERO, vec![change_of(&old)]);
        observe(&mut writer, LATER, vec![change_of(&new)]);
        assert_eq!(identity(&world), Some(301));
        let Change::Slice(EndpointSlice { name, .. }) = change_of(&old) else { unreachable!("a slice") };
        observe(&mut writer, LATER * 2, vec![Change::SliceGone(name)]);
        observe(&mut writer, LATER * 2 + LINGER * 2, Vec::new());
        assert_eq!(identity(&world), Some(301));
        no_hole(&world);
    }
}

#[test]
fn race_4_a_stateful_pod_of_the_same_name_on_another_node() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let mut writer = synced_writer(&world, dir.path());
    let (old, mut new) = (pod("u1", 300), pod("u2", 300));
    new.name = old.name.clone();
    new.addresses = vec![ip("10.244.2.8"), ip("fd44:0:0:2::8")];
    // The new node's slice comes before the old node has taken its word back, and the other way round.
    observe(&mut writer, Duration::ZERO, vec![slice("node-1", std::slice::from_ref(&old))]);
    observe(&mut writer, LATER, vec![slice("node-2", std::slice::from_ref(&new))]);
    observe(&mut writer, LATER * 2, vec![slice("node-1", &[])]);
    observe(&mut writer, LATER * 2 + LINGER, Vec::new());
    assert_eq!(identity(&world), None, "the old pod's address is nobody's");
    assert!(world.held().ipcache.contains_key(&ip("10.244.2.8")));
    // The same with objects named as the pod: the late end of the old one names the new one.
    observe(&mut writer, LATER * 20, vec![endpoint(&old)]);
    observe(&mut writer, LATER * 21, vec![endpoint_gone(&old), endpoint(&new)]);
    observe(&mut writer, LATER * 21 + LINGER, vec![slice("node-2", &[])]);
    observe(&mut writer, LATER * 21 + LINGER * 2, Vec::new());
    assert_eq!(identity(&world), None);
    assert!(world.held().ipcache.contains_key(&ip("fd44:0:0:2::8")));
}

#[test]
fn race_5_two_operators_have_one_pod_and_one_drops_it() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let mut writer = synced_writer(&world, dir.path());
    observe(&mut writer, Duration::ZERO, vec![slice("ces-old", &[pod("u1", 300)])]);
    observe(&mut writer, LATER, vec![slice("ces-new", &[pod("u1", 301)])]);
    observe(&mut writer, LATER * 2, vec![Change::SliceGone("ces-old".into())]);
    assert_eq!(identity(&world), Some(301));
    // Had the newer word been taken back, the older would hold again.
    observe(&mut writer, LATER * 3, vec![slice("ces-third", &[pod("u1", 302)])]);
    observe(&mut writer, LATER * 4, vec![Change::SliceGone("ces-third".into())]);
    observe(&mut writer, LATER * 4 + LINGER * 2, Vec::new());
    assert_eq!(identity(&world), Some(301));
    no_hole(&world);
}

#[test]
fn race_6_everything_sent_again_is_no_change() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let mut writer = synced_writer(&world, dir.path());
    let news = || vec![slice("a", &[pod("u1", 300)]), endpoint(&remote("u9", 300, "10.244.2.9"))];
    observe(&mut writer, Duration::ZERO, news());
    world.take_log();
    observe(&mut writer, LATER, news());
    observe(&mut writer, LATER + LINGER * 2, Vec::new());
    assert!(world.take_log().is_empty());
}

#[test]
fn race_7_the_same_address_with_a_new_identity() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let mut writer = synced_writer(&world, dir.path());
    observe(&mut writer, Duration::ZERO, vec![slice("a", &[pod("u1", 300)]), endpoint(&pod("u1", 300))]);
    // Two sources, one is later than the other: the newest word holds, and the flows decide again.
    observe(&mut writer, LATER, vec![slice("a", &[pod("u1", 301)])]);
    assert_eq!(identity(&world), Some(301));
    assert!(world.held().log.iter().any(|line| line == "bump node"));
    observe(&mut writer, LATER * 2, vec![endpoint(&pod("u1", 301))]);
    assert_eq!(identity(&world), Some(301));
    no_hole(&world);
}

#[test]
fn race_8_the_slice_of_a_namespace_goes_before_its_pods() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let mut writer = synced_writer(&world, dir.path());
    observe(&mut writer, Duration::ZERO, vec![slice("a", &[pod("u1", 300)])]);
    observe(&mut writer, LATER, vec![Change::SliceGone("a".into()), Change::NamespaceGone("shop".into())]);
    assert_eq!(identity(&world), Some(300), "its last packets are still its own");
    no_hole(&world);
    // Its node says that it is there, after all.
    observe(&mut writer, LATER * 2, vec![slice("a", &[pod("u1", 300)])]);
    observe(&mut writer, LATER * 2 + LINGER * 2, Vec::new());
    assert_eq!(identity(&world), Some(300));
    no_hole(&world);
}

#[test]
fn race_9_an_agent_that_starts_while_the_mode_changes_takes_nothing_for_gone() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let mut first = synced_writer(&world, dir.path());
    observe(
        &mut first,
        Duration::ZERO,
        vec![endpoint(&pod("u1", 300)), slice("a", &[remote("u9", 300, "10.244.2.9")])],
    );
    drop(first);
    world.take_log();
    let mut second = writer(&world, dir.path());
    second.restore(Vec::new(), &[]).expect("restore");
    second.set_node_ready(None);
    // Of the two kinds one is complete long before the other.
    let others = first_news().into_iter().filter(|change| *change != Change::Synced(Source::Endpoints));
    observe(&mut second, Duration::ZERO, others.chain([slice("a", &[remote("u9", 300, "10.244.2.9")])]).collect());
    observe(&mut second, LINGER * 4, Vec::new());
    assert_eq!(identity(&world), Some(300));
    observe(&mut second, LINGER * 5, vec![endpoint(&pod("u1", 300)), Change::Synced(Source::Endpoints)]);
    // The pod's node is of the new mode by now.
    observe(&mut second, LINGER * 6, vec![slice("b", &[pod("u1", 300)]), endpoint_gone(&pod("u1", 300))]);
    observe(&mut second, LINGER * 9, Vec::new());
    assert_eq!(identity(&world), Some(300));
    no_hole(&world);
}
