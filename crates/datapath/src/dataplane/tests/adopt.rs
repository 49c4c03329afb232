//! What a new agent finds of a former one.

use super::*;
use crate::open::KeptSize;
use crate::sys::map::Layout;
use std::os::fd::AsFd;
use weft_abi::{AffinityKey, AffinityValue, SocketKey, SocketValue};

fn opened(result: Result<(Datapath, Adopted), OpenError>) -> (Datapath, Adopted) {
    result.map_err(|error| describe(&error)).expect("opens")
}

fn refused(result: Result<(Datapath, Adopted), OpenError>) -> String {
    describe(&result.expect_err("must be refused"))
}

#[test]
fn everything_written_outlives_its_writer() {
    let dir = BpfDir::new();
    let (mut datapath, adopted) = opened(Datapath::open(&dir.options()));
    assert!(adopted.fresh);
    let one = endpoint(1, &["10.0.0.1", "fd00::1"]);
    let written = policy(0..10, 1..5);
    let entry = IpcacheEntry { identity: identity(300), node: None, is_node: false };
    datapath.put_endpoint(&one).unwrap();
    datapath.put_policy(PolicyId(1), &written).unwrap();
    datapath.set_ipcache(ip("10.0.0.1"), Some(&entry)).unwrap();
    datapath.set_cidr(net("10.0.0.0/8"), Identity::cidr(1)).unwrap();
    let peers = BTreeMap::from([(identity(300), PeerClass(1))]);
    datapath.put_peers(&peers).unwrap();
    datapath.bump(&Touched::Node).unwrap();
    let revision = datapath.revision();
    drop(datapath);

    let (mut datapath, adopted) = opened(Datapath::open(&dir.options()));
    assert_eq!(adopted, Adopted::default());
    assert_eq!(datapath.endpoints().unwrap(), [one]);
    assert_eq!(datapath.policies().unwrap(), BTreeMap::from([(PolicyId(1), written)]));
    assert_eq!(datapath.ipcache().unwrap(), BTreeMap::from([(ip("10.0.0.1"), entry)]));
    assert_eq!(datapath.cidrs().unwrap(), BTreeMap::from([(net("10.0.0.0/8"), Identity::cidr(1).unwrap())]));
    assert_eq!(datapath.peers().unwrap(), peers);
    assert_eq!(datapath.revision(), revision);
    assert_eq!(datapath.endpoints.entries, 2);
    assert_eq!(datapath.policies.entries().map(|(_, entries)| entries), [10, 4, 1]);
    // The books agree with the maps: it can all be removed.
    datapath.remove_policy(PolicyId(1)).unwrap();
    assert_eq!(datapath.policies.entries().map(|(_, entries)| entries), [0, 0, 0]);
}

#[test]
fn a_directory_has_one_owner() {
    let dir = BpfDir::new();
    let first = dir.open();
    let text = refused(Datapath::open(&dir.options()));
    assert!(text.contains("owned by another running agent"), "{text}");
    drop(first);
    dir.open();
}

#[test]
fn a_successor_waits_for_a_dying_owner() {
    let dir = BpfDir::new();
    let first = dir.open();
    let mut options = dir.options();
    options.lock_wait = std::time::Duration::from_secs(20);
    let second = std::thread::spawn(move || drop(opened(Datapath::open(&options))));
    drop(first);
    second.join().expect("takes over");
}

#[test]
fn a_directory_elsewhere_is_refused() {
    let dir = BpfDir::new();
    let mut options = dir.options();
    options.mount = false;
    let text = refused(Datapath::open(&options));
    assert!(text.contains("not on a BPF file system"), "{text}");
}

#[test]
fn a_pinned_map_of_another_layout_is_named_and_left_alone() {
    let dir = BpfDir::new();
    drop(dir.open());
    let pin = dir.inside("maps/IPCACHE");
    let foreign = Layout { kind: 1, key_size: 16, value_size: 8, entries_max: 10, flags: 0 };
    let map = crate::sys::map::create("IPCACHE", &foreign).unwrap();
    std::fs::remove_file(&pin).unwrap();
    crate::sys::object_pin(map.as_fd(), &pin).unwrap();
    let text = refused(Datapath::open(&dir.options()));
    assert!(text.contains("IPCACHE") && text.contains("value size is 8, expected 24"), "{text}");
    assert!(pin.exists());
    // Somebody has repaired it.
    std::fs::remove_file(&pin).unwrap();
    let (_, adopted) = opened(Datapath::open(&dir.options()));
    assert!(!adopted.fresh);
}

#[test]
fn a_pin_that_is_no_map_is_named() {
    let dir = BpfDir::new();
    let datapath = dir.open_all();
    let pin = dir.inside("maps/FLOWS");
    std::fs::remove_file(&pin).unwrap();
    let program = datapath.hooks.collector();
    crate::sys::object_pin(program.as_fd(), &pin).unwrap();
    drop(datapath);
    let text = refused(Datapath::open(&dir.options()));
    assert!(text.contains("FLOWS") && text.contains("expected a bpf-map"), "{text}");
}

#[test]
fn a_map_of_another_size_is_moved_with_its_entries() {
    let dir = BpfDir::new();
    let mut datapath = dir.open();
    let one = endpoint(1, &["10.0.0.1", "fd00::1"]);
    let entry = IpcacheEntry { identity: identity(300), node: None, is_node: false };
    datapath.put_endpoint(&one).unwrap();
    for n in 1..=100_u8 {
        datapath.set_ipcache(IpAddr::from([10, 0, 0, n]), Some(&entry)).unwrap();
    }
    let all = datapath.ipcache().unwrap();
    drop(datapath);

    let mut options = dir.options();
    options.entries_max =
        BTreeMap::from([(map_name::IPCACHE, 200), (map_name::ENDPOINTS, 20), (map_name::PREFIXES, 50)]);
    let (mut datapath, adopted) = opened(Datapath::open(&options));
    assert_eq!(adopted.resized, ["ENDPOINTS", "IPCACHE", "PREFIXES"]);
    assert_eq!(datapath.ipcache().unwrap(), all);
    assert_eq!(datapath.endpoints().unwrap(), [one]);
    assert_eq!(datapath.ipcache.map.entries_max(), 200);
    drop(datapath);
    // The pin is the new map, and nothing else is left.
    let (datapath, adopted) = opened(Datapath::open(&options));
    assert_eq!(adopted, Adopted::default());
    let maps = datapath.maps.len();
    drop(datapath);
    assert_eq!(std::fs::read_dir(dir.inside("maps")).unwrap().count(), maps);

    // Smaller only once the entries fit with a quarter to spare; until then the map stays, and says so.
    for wanted in [50, 132] {
        options.entries_max.insert(map_name::IPCACHE, wanted);
        let (mut datapath, adopted) = opened(Datapath::open(&options));
        let kept = KeptSize { map: map_name::IPCACHE, entries: 100, entries_max: 200, wanted };
        assert_eq!(adopted, Adopted { kept: vec![kept], ..Adopted::default() });
        assert_eq!(datapath.ipcache().unwrap(), all, "what was in force is in force");
    }
    options.entries_max.insert(map_name::IPCACHE, 133);
    let (mut datapath, adopted) = opened(Datapath::open(&options));
    assert_eq!((adopted.resized, adopted.kept), (vec!["IPCACHE".to_owned()], vec![]));
    assert_eq!((datapath.ipcache().unwrap(), datapath.ipcache.map.entries_max()), (all, 133));
}

/// Connections, affinities and sockets' destinations outlive a restart with other sizes; an LRU map, which would evict
/// without a word, included.
#[test]
fn tables_of_connections_keep_their_entries_when_they_are_resized() {
    let dir = BpfDir::new();
    let sizes =
        |size| BTreeMap::from([map_name::FLOWS, map_name::AFFINITY, map_name::SOCKETS].map(|name| (name, size)));
    let mut options = dir.options();
    options.entries_max = sizes(4096);
    let (datapath, _) = opened(Datapath::open(&options));
    let tables = |datapath: &Datapath| {
        let map = |name| datapath.maps[name].clone();
        let flows: TypedMap<FlowKey, FlowEntry> = TypedMap::new(map_name::FLOWS, map(map_name::FLOWS)).unwrap();
        let affinity: TypedMap<AffinityKey, AffinityValue> =
            TypedMap::new(map_name::AFFINITY, map(map_name::AFFINITY)).unwrap();
        let sockets: TypedMap<SocketKey, SocketValue> =
            TypedMap::new(map_name::SOCKETS, map(map_name::SOCKETS)).unwrap();
        (flows, affinity, sockets)
    };
    let (flows, affinity, sockets) = tables(&datapath);
    let entries = 1000_u16;
    for n in 0..entries {
        flows.put(&FlowKey { low_port_be: n, ..FlowKey::default() }, &FlowEntry::default()).unwrap();
        let [high, low] = n.to_be_bytes();
        let client = AffinityKey { client: Addr::from(IpAddr::from([10, 0, high, low])), ..AffinityKey::default() };
        affinity.put(&client, &AffinityValue { backend: u32::from(n), ..AffinityValue::default() }).unwrap();
        sockets.put(&SocketKey { cookie: u64::from(n), ..SocketKey::default() }, &SocketValue::default()).unwrap();
    }
    drop((flows, affinity, sockets, datapath));
    let check = |datapath: &Datapath, size: u32, when: &str| {
        let (flows, affinity, sockets) = tables(datapath);
        assert_eq!([flows.entries_max(), affinity.entries_max(), sockets.entries_max()], [size; 3], "{when}");
        let found = [flows.dump().unwrap().len(), affinity.dump().unwrap().len(), sockets.dump().unwrap().len()];
        assert_eq!(found, [usize::from(entries); 3], "{when}");
        let backends: BTreeSet<u32> = affinity.dump().unwrap().into_iter().map(|(_, value)| value.backend).collect();
        assert_eq!(backends.len(), usize::from(entries), "{when}");
    };
    for (wanted, size, when) in [
        (8192, 8192, "larger"),
        (1024, 8192, "too small: 1000 entries leave no quarter of it free"),
        (2048, 2048, "smaller"),
    ] {
        options.entries_max = sizes(wanted);
        let (datapath, adopted) = opened(Datapath::open(&options));
        check(&datapath, size, when);
        let kept = adopted.kept.iter().map(|kept| (kept.entries, kept.entries_max, kept.wanted));
        let expected = if wanted == size { vec![] } else { vec![(1000, size, wanted); 3] };
        assert_eq!(kept.collect::<Vec<_>>(), expected, "{when}");
        assert_eq!(adopted.left_out, 0, "{when}");
    }
    // The size is a limit: a connection that finds no room gets none.
    let (datapath, _) = opened(Datapath::open(&options));
    let (flows, affinity, _) = tables(&datapath);
    let put = |n| flows.put(&FlowKey { high_port_be: n, ..FlowKey::default() }, &FlowEntry::default());
    let full = (1..=2048_u16).find(|n| put(*n).is_err()).expect("a limit");
    assert!((1000..=1100).contains(&full), "{full} beside 1000 in a table of 2048");
    for n in 0..4096_u32 {
        let client = AffinityKey { service: n + 1, ..AffinityKey::default() };
        affinity.put(&client, &AffinityValue::default()).unwrap();
    }
    assert!(affinity.dump().unwrap().len() <= 2048, "the clients that were longest silent are evicted");
}

#[test]
fn an_unknown_map_size_is_refused() {
    let dir = BpfDir::new();
    let mut options = dir.options();
    options.entries_max = BTreeMap::from([("NO_SUCH_MAP", 1)]);
    let text = refused(Datapath::open(&options));
    assert!(text.contains("NO_SUCH_MAP"), "{text}");
}

#[test]
fn half_a_policy_of_a_killed_agent_is_swept_up() {
    let dir = BpfDir::new();
    let mut datapath = dir.open();
    datapath.put_policy(PolicyId(1), &policy(0..3, 1..4)).unwrap();
    datapath.put_policy(PolicyId(2), &policy(0..3, 1..4)).unwrap();
    // As if it had been killed between the writes: the mark that the policy is whole is missing.
    let infos: TypedMap<u32, weft_abi::PolicyInfo> =
        TypedMap::new(map_name::POLICY_INFO, datapath.maps[map_name::POLICY_INFO].clone()).unwrap();
    infos.remove(&2).unwrap();
    drop(datapath);
    let mut datapath = dir.open();
    assert_eq!(datapath.policies().unwrap().into_keys().collect::<Vec<_>>(), [PolicyId(1)]);
    assert_eq!(datapath.policies.entries().map(|(_, entries)| entries), [3, 3, 1]);
    let classes: TypedMap<weft_abi::PolicyClassKey, u32> =
        TypedMap::new(map_name::POLICY_CLASSES, datapath.maps[map_name::POLICY_CLASSES].clone()).unwrap();
    assert_eq!(classes.dump().unwrap().len(), 3);
}

#[test]
fn programs_are_verified_once_for_an_object_and_its_maps() {
    let dir = BpfDir::new();
    let kept = || {
        let dirs: Vec<_> = std::fs::read_dir(dir.inside("programs")).unwrap().map(|dir| dir.unwrap().path()).collect();
        assert_eq!(dirs.len(), 1, "{dirs:?}");
        dirs.into_iter().next().unwrap()
    };
    drop(dir.open_all());
    let first = kept();
    assert_eq!(std::fs::read_dir(&first).unwrap().count(), crate::hooks::programs().count());
    drop(dir.open_all());
    assert_eq!(kept(), first);
    // One is missing: all are made again, under the same name.
    std::fs::remove_file(first.join("weft_collect")).unwrap();
    let mut datapath = dir.open_all();
    assert_eq!(kept(), first);
    assert!(first.join("weft_collect").exists());
    datapath.bump(&Touched::Node).unwrap();
    assert_eq!(datapath.collector().run().unwrap().left, 0);
    drop(datapath);
    // Another map: the programs that know the old one are of no use.
    let mut options = dir.all();
    options.entries_max = BTreeMap::from([(map_name::IPCACHE, 77)]);
    drop(opened(Datapath::open(&options)));
    assert_ne!(kept(), first);
}

#[test]
fn decisions_without_their_revisions_are_taken_again() {
    for lost in [map_name::CONFIG, map_name::GENERATIONS] {
        let dir = BpfDir::new();
        let datapath = dir.open();
        let flows: TypedMap<FlowKey, FlowEntry> =
            TypedMap::new(map_name::FLOWS, datapath.maps[map_name::FLOWS].clone()).unwrap();
        flows.put(&FlowKey::default(), &FlowEntry { revision: 500, ..FlowEntry::default() }).unwrap();
        datapath.page.bump([7]);
        drop((flows, datapath));
        std::fs::remove_file(dir.inside("maps").join(lost)).unwrap();
        let datapath = dir.open();
        let node = datapath.page.generation(0);
        assert!(node > 500 && datapath.revision() >= node, "{lost}: {node}, {}", datapath.revision());
        drop(datapath);
        assert_eq!(dir.open().page.generation(0), node, "once");
    }
}
