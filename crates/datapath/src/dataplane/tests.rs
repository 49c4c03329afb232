//! These run as root: real maps, on a BPF file system of their own.

use super::*;
use crate::error::OpenError;
use crate::testing::{BpfDir, describe};
use std::collections::BTreeSet;
use weft_abi::{policy_flags, policy_shape};
use weft_model::desired::{Action, PortPrefix, Verdict};
use weft_model::id::{PeerClass, PolicyClass, RuleId};

mod adopt;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn identity(n: u32) -> Identity {
    Identity::from_raw(n)
}

fn verdict(rule: u32) -> Verdict {
    Verdict { action: Action::Allow, precedence: 10, rule: RuleId(rule) }
}

fn port(protocol: u8, port: u16, prefix_len: u8) -> PortPrefix {
    PortPrefix { protocol, port, prefix_len }
}

fn policy(classes: std::ops::Range<u32>, ports: std::ops::Range<u16>) -> CompiledPolicy {
    CompiledPolicy {
        classes: classes.map(|class| (PeerClass(1 + class), PolicyClass(1))).collect(),
        entries: ports.map(|n| ((PolicyClass(1), port(6, n, 16)), verdict(u32::from(n)))).collect(),
        ..CompiledPolicy::default()
    }
}

fn endpoint(id: u16, addresses: &[&str]) -> Endpoint {
    Endpoint {
        id: EndpointId::new(id).unwrap(),
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        ifindex: 7,
        pod_mac: [2, 0, 0, 0, 0, 1],
        host_mac: [2, 0, 0, 0, 0, 2],
        identity: identity(300),
        ingress: PolicyId(4),
        egress: PolicyId::OPEN,
        blocked: false,
        audit: false,
    }
}

fn settings() -> NodeSettings {
    NodeSettings {
        device_ifindex: 3,
        device_mac: Some([2, 0, 0, 0, 0, 9]),
        tunnel: None,
        node_v4: Some("192.0.2.1".parse().unwrap()),
        node_v6: Some("2001:db8::1".parse().unwrap()),
        pod_mtu: 1450,
        nat_ports: 12_000..=29_999,
        guard: crate::PortGuard::Services,
        masquerade_v4: true,
        masquerade_v6: false,
        dual_stack: true,
        timeouts: crate::Timeouts::default(),
        events_per_s: 1000,
    }
}

fn open_small(dir: &BpfDir, sizes: &[(&'static str, u32)]) -> Datapath {
    let mut options = dir.options();
    options.entries_max = sizes.iter().copied().collect();
    Datapath::open(&options).map_err(|error| describe(&error)).unwrap().0
}

fn assert_full(result: Result<(), DataplaneError>, name: &str) {
    match result {
        Err(DataplaneError::MapFull { map, .. }) => assert_eq!(map, name),
        other => panic!("expected {name} to be full, got {other:?}"),
    }
}

#[test]
fn policies_are_read_back_as_they_were_written() {
    let dir = BpfDir::new();
    let mut datapath = dir.open();
    let mut written = policy(0..3000, 1..700);
    written
        .entries
        .insert((PolicyClass::ANY, port(0, 0, 0)), Verdict { action: Action::Deny, precedence: 1, rule: RuleId(9) });
    written.entries.insert((PolicyClass(2), port(17, 0x1230, 12)), verdict(5));
    written.entries.insert((PolicyClass(3), port(1, 8, 16)), verdict(6));
    written.entries.insert((PolicyClass(3).admin(), port(1, 8, 16)), Verdict { action: Action::Pass, ..verdict(7) });
    (written.rest, written.default_allow) = (PolicyClass(3), true);
    datapath.put_policy(PolicyId(1), &written).unwrap();
    datapath.put_policy(PolicyId(2), &policy(5..9, 80..81)).unwrap();
    let policies = datapath.policies().unwrap();
    assert_eq!(policies[&PolicyId(1)], written);
    // The tiers are probed apart: each knows its own shapes.
    let info = datapath.policies.info(PolicyId(1)).unwrap();
    let shapes = [16, 12].map(policy_shape::port_prefix);
    assert_eq!((info.shapes, info.admin_shapes), (policy_shape::ANY | shapes[0] | shapes[1], shapes[0]));
    assert_eq!(policies.len(), 2);
    // Again: the same, not more.
    datapath.put_policy(PolicyId(1), &written).unwrap();
    assert_eq!(datapath.policies().unwrap(), policies);

    datapath.remove_policy(PolicyId(1)).unwrap();
    datapath.remove_policy(PolicyId(1)).unwrap();
    datapath.remove_policy(PolicyId(2)).unwrap();
    assert_eq!(datapath.policies().unwrap(), BTreeMap::new());
    assert_eq!(datapath.policies.entries().map(|(_, entries)| entries), [0, 0, 0]);
}

#[test]
fn a_policy_that_does_not_fit_leaves_nothing() {
    let dir = BpfDir::new();
    let mut datapath = open_small(&dir, &[(map_name::POLICY_CLASSES, 64), (map_name::POLICY_ENTRIES, 64)]);
    datapath.put_policy(PolicyId(1), &policy(0..60, 1..61)).unwrap();
    let before = datapath.policies().unwrap();
    assert_full(datapath.put_policy(PolicyId(2), &policy(0..5, 1..2)), map_name::POLICY_CLASSES);
    assert_full(datapath.put_policy(PolicyId(2), &policy(0..1, 1..6)), map_name::POLICY_ENTRIES);
    let patch = PolicyPatch { put_classes: policy(60..65, 0..0).classes, ..PolicyPatch::default() };
    assert_full(datapath.patch_policy(PolicyId(1), &patch), map_name::POLICY_CLASSES);
    let patch = PolicyPatch { put_entries: policy(0..0, 61..66).entries, ..PolicyPatch::default() };
    assert_full(datapath.patch_policy(PolicyId(1), &patch), map_name::POLICY_ENTRIES);
    assert_full(datapath.put_policy(PolicyId(1), &policy(0..65, 1..2)), map_name::POLICY_CLASSES);
    assert_eq!(datapath.policies().unwrap(), before);
    // What does fit still goes in, and so does a policy in its own place.
    datapath.put_policy(PolicyId(1), &policy(0..60, 1..61)).unwrap();
    datapath.put_policy(PolicyId(2), &policy(0..4, 1..5)).unwrap();
    assert_eq!(datapath.policies().unwrap().len(), 2);
}

#[test]
fn a_patch_does_what_it_says_and_shapes_follow() {
    let dir = BpfDir::new();
    let mut datapath = dir.open();
    let before = CompiledPolicy { rest: PolicyClass(9), default_allow: true, ..policy(0..3, 80..82) };
    datapath.put_policy(PolicyId(3), &before).unwrap();
    let patch = PolicyPatch {
        put_entries: [((PolicyClass(1), port(0, 0, 0)), verdict(7))].into(),
        put_classes: [(PeerClass(900), PolicyClass(1))].into(),
        del_classes: [PeerClass(1), PeerClass(2)].into(),
        del_entries: [(PolicyClass(1), port(6, 80, 16)), (PolicyClass(1), port(6, 81, 16))].into(),
    };
    datapath.patch_policy(PolicyId(3), &patch).unwrap();
    let wanted = CompiledPolicy {
        classes: [(PeerClass(3), PolicyClass(1)), (PeerClass(900), PolicyClass(1))].into(),
        entries: [((PolicyClass(1), port(0, 0, 0)), verdict(7))].into(),
        // A patch leaves these alone.
        ..before
    };
    assert_eq!(datapath.policies().unwrap()[&PolicyId(3)], wanted);
    let info = datapath.policies.info(PolicyId(3)).unwrap();
    assert_eq!((info.shapes, info.flags), (policy_shape::ANY, policy_flags::DEFAULT_ALLOW));
    // Twice is once.
    datapath.patch_policy(PolicyId(3), &patch).unwrap();
    assert_eq!(datapath.policies().unwrap()[&PolicyId(3)], wanted);
    assert!(datapath.patch_policy(PolicyId(4), &patch).is_err(), "there is no such policy");
}

#[test]
fn rules_for_any_peer_are_marked() {
    let dir = BpfDir::new();
    let mut datapath = dir.open();
    let any = CompiledPolicy {
        entries: [((PolicyClass::ANY, port(6, 80, 16)), verdict(7))].into(),
        ..CompiledPolicy::default()
    };
    datapath.put_policy(PolicyId(1), &any).unwrap();
    let flags = |datapath: &Datapath| datapath.policies.info(PolicyId(1)).unwrap().flags;
    assert_eq!(flags(&datapath), policy_flags::ANY_PEER);
    let gone = PolicyPatch { del_entries: any.entries.keys().copied().collect(), ..PolicyPatch::default() };
    datapath.patch_policy(PolicyId(1), &gone).unwrap();
    assert_eq!(flags(&datapath), 0);
    let back = PolicyPatch { put_entries: any.entries, ..PolicyPatch::default() };
    datapath.patch_policy(PolicyId(1), &back).unwrap();
    assert_eq!(flags(&datapath), policy_flags::ANY_PEER);
}

#[test]
fn classes_of_peers_come_back_and_a_full_map_keeps_what_it_has() {
    let dir = BpfDir::new();
    let mut datapath = open_small(&dir, &[(map_name::PEERS, 4)]);
    let prefix = Identity::cidr(5).unwrap();
    let pods = prefix.in_scope(weft_model::id::PeerScope::Pod);
    let peers = BTreeMap::from([(identity(256), PeerClass(1)), (prefix, PeerClass(2)), (pods, PeerClass(u32::MAX))]);
    datapath.put_peers(&peers).unwrap();
    datapath.put_peers(&peers).unwrap();
    assert_eq!(datapath.peers().unwrap(), peers);
    let more = BTreeMap::from([256, 257, 258].map(|n| (identity(n), PeerClass(7))));
    assert_full(datapath.put_peers(&more), map_name::PEERS);
    assert_eq!(datapath.peers().unwrap(), peers, "not even a part of it");
    datapath.remove_peers(&[identity(256), identity(999)].into()).unwrap();
    datapath.put_peers(&BTreeMap::from([(identity(257), PeerClass(7)), (prefix, PeerClass(3))])).unwrap();
    let left = BTreeMap::from([(identity(257), PeerClass(7)), (prefix, PeerClass(3)), (pods, PeerClass(u32::MAX))]);
    assert_eq!(datapath.peers().unwrap(), left);
    assert_eq!(datapath.peers.len(), 3);
}

#[test]
fn the_node_becomes_a_subject_and_stays_one() {
    let dir = BpfDir::new();
    let mut datapath = dir.open();
    assert_eq!(datapath.host(), None);
    let node = |datapath: &Datapath| datapath.page.generation(0);
    let before = node(&datapath);
    let host = Host { ingress: PolicyId(3), egress: PolicyId::OPEN, audit: true };
    datapath.set_host(Some(&host)).unwrap();
    assert_eq!(datapath.host(), Some(host));
    // Decisions that do not know of the node as an end are taken again; later ones are met by a bump of the node's.
    let subject = node(&datapath);
    assert!(subject > before);
    let other = Host { ingress: PolicyId(4), egress: PolicyId(5), audit: false };
    datapath.set_host(Some(&other)).unwrap();
    assert_eq!((datapath.host(), node(&datapath)), (Some(other), subject));
    datapath.configure(&settings()).unwrap();
    assert_eq!(datapath.host(), Some(other), "settings of the node are another matter");
    drop(datapath);
    let mut datapath = dir.open();
    assert_eq!(datapath.host(), Some(other));
    datapath.set_host(None).unwrap();
    assert_eq!(datapath.host(), None);
    let free = node(&datapath);
    assert!(free > subject);
    datapath.set_host(None).unwrap();
    assert_eq!(node(&datapath), free);
}

#[test]
fn endpoints_and_addresses_come_back() {
    let dir = BpfDir::new();
    let mut datapath = dir.open();
    let (one, two) = (endpoint(1, &["10.0.0.1", "fd00::1"]), endpoint(2, &["10.0.0.2"]));
    datapath.put_endpoint(&one).unwrap();
    datapath.put_endpoint(&two).unwrap();
    datapath.put_endpoint(&one).unwrap();
    assert_eq!(datapath.endpoints().unwrap(), [one, two]);
    assert_eq!(datapath.endpoints.entries, 3);
    let blocked = Endpoint { blocked: true, audit: true, ..endpoint(2, &["10.0.0.2"]) };
    datapath.put_endpoint(&blocked).unwrap();
    datapath.remove_endpoint(&[ip("10.0.0.1"), ip("fd00::1")]).unwrap();
    datapath.remove_endpoint(&[ip("10.0.0.1"), ip("fd00::1")]).unwrap();
    assert_eq!(datapath.endpoints().unwrap(), [blocked]);

    let remote = IpcacheEntry { identity: identity(300), node: Some(ip("192.0.2.1")), is_node: false };
    let node = IpcacheEntry { identity: Identity::REMOTE_NODE, node: Some(ip("192.0.2.1")), is_node: true };
    let local = IpcacheEntry { identity: identity(301), node: None, is_node: false };
    let all = BTreeMap::from([(ip("10.1.0.1"), remote), (ip("fd01::1"), node), (ip("10.0.0.2"), local)]);
    for (address, entry) in &all {
        datapath.set_ipcache(*address, Some(entry)).unwrap();
        datapath.set_ipcache(*address, Some(entry)).unwrap();
    }
    assert_eq!(datapath.ipcache().unwrap(), all);
    for address in all.keys() {
        datapath.set_ipcache(*address, None).unwrap();
        datapath.set_ipcache(*address, None).unwrap();
    }
    assert_eq!(datapath.ipcache().unwrap(), BTreeMap::new());
    assert_eq!(datapath.ipcache.entries, 0);
}

#[test]
fn full_address_maps_refuse_new_entries_and_take_changes() {
    let dir = BpfDir::new();
    let mut datapath = open_small(&dir, &[(map_name::ENDPOINTS, 3), (map_name::IPCACHE, 2), (map_name::PREFIXES, 3)]);
    datapath.put_endpoint(&endpoint(1, &["10.0.0.1", "fd00::1"])).unwrap();
    assert_full(datapath.put_endpoint(&endpoint(2, &["10.0.0.2", "fd00::2"])), map_name::ENDPOINTS);
    assert_eq!(datapath.endpoints().unwrap().len(), 1, "not even half of it");
    let changed = Endpoint { identity: identity(999), ..endpoint(1, &["10.0.0.1", "fd00::1"]) };
    datapath.put_endpoint(&changed).unwrap();
    assert_eq!(datapath.endpoints().unwrap(), [changed]);

    let entry = IpcacheEntry { identity: identity(300), node: None, is_node: false };
    for address in ["10.0.0.1", "10.0.0.2"] {
        datapath.set_ipcache(ip(address), Some(&entry)).unwrap();
    }
    assert_full(datapath.set_ipcache(ip("10.0.0.3"), Some(&entry)), map_name::IPCACHE);
    datapath.set_ipcache(ip("10.0.0.2"), Some(&entry)).unwrap();

    let number = Identity::cidr(1);
    for cidr in ["10.0.0.0/8", "::/0"] {
        datapath.set_cidr(net(cidr), number).unwrap();
    }
    assert_full(datapath.set_cidr(net("11.0.0.0/8"), number), map_name::PREFIXES);
    datapath.set_cidr(net("0.0.0.0/0"), number).expect("its place is kept");
    datapath.set_cidr(net("10.0.0.0/8"), Identity::cidr(2)).unwrap();
}

#[test]
fn prefixes_match_their_own_family() {
    let dir = BpfDir::new();
    let mut datapath = dir.open();
    let hit = |datapath: &Datapath, address: &str| {
        let key = LpmKey { prefix_len: 128, addr: ip(address).into() };
        datapath.cidrs.map.get(&key).unwrap().map_or(0, |value| value.identity >> 2 & 0xff)
    };
    datapath.set_cidr(net("::/0"), Identity::cidr(1)).unwrap();
    assert_eq!((hit(&datapath, "2001:db8::1"), hit(&datapath, "192.0.2.1")), (1, 0));
    datapath.set_cidr(net("0.0.0.0/0"), Identity::cidr(2)).unwrap();
    datapath.set_cidr(net("192.0.2.0/24"), Identity::cidr(3)).unwrap();
    assert_eq!((hit(&datapath, "2001:db8::1"), hit(&datapath, "198.51.100.1"), hit(&datapath, "192.0.2.1")), (1, 2, 3));
    let all: Vec<IpNet> = datapath.cidrs().unwrap().into_keys().collect();
    assert_eq!(all, [net("0.0.0.0/0"), net("192.0.2.0/24"), net("::/0")]);
    datapath.set_cidr(net("0.0.0.0/0"), None).unwrap();
    datapath.set_cidr(net("192.0.2.0/24"), None).unwrap();
    assert_eq!((hit(&datapath, "192.0.2.1"), hit(&datapath, "2001:db8::1")), (0, 1));
    assert_eq!(datapath.cidrs().unwrap(), BTreeMap::from([(net("::/0"), Identity::cidr(1).unwrap())]));
    let hidden = datapath.set_cidr(net("::ffff:10.0.0.0/104"), Identity::cidr(1)).unwrap_err();
    assert!(describe(&hidden).contains("expected IPv4 notation"), "{}", describe(&hidden));

    let routes = [
        (net("10.244.1.0/24"), Route::LocalPool),
        (net("10.244.2.0/24"), Route::RemotePool(ip("192.0.2.2"))),
        (net("fd44:0:0:2::/64"), Route::RemotePool(ip("2001:db8::2"))),
        (net("10.0.0.0/8"), Route::NoMasquerade),
    ];
    for (cidr, route) in routes {
        datapath.set_route(cidr, Some(route)).unwrap();
    }
    assert_eq!(datapath.routes().unwrap(), BTreeMap::from(routes));
    datapath.set_route(net("10.0.0.0/8"), None).unwrap();
    assert_eq!(datapath.routes().unwrap().len(), 3);
}

#[test]
fn a_bump_touches_what_it_says() {
    let dir = BpfDir::new();
    let mut datapath = dir.open();
    let first = datapath.revision();
    datapath.bump(&Touched::Endpoints(BTreeSet::from([1, 4095].map(|id| EndpointId::new(id).unwrap())))).unwrap();
    let generations = |datapath: &Datapath| [0, 1, 2, 4095].map(|slot| datapath.page.generation(slot));
    assert_eq!(datapath.revision(), first + 1);
    assert_eq!(generations(&datapath), [0, first + 1, 0, first + 1]);
    datapath.bump(&Touched::Node).unwrap();
    assert_eq!(generations(&datapath), [first + 2, first + 1, 0, first + 1]);
    // The programs see the same as the memory that is shared: here through the system call.
    let map: TypedMap<u32, u32> =
        TypedMap::new(map_name::GENERATIONS, datapath.maps[map_name::GENERATIONS].clone()).unwrap();
    assert_eq!([0, 1, 2, 4095].map(|slot| map.get(&slot).unwrap().unwrap()), generations(&datapath));
}

#[test]
fn configuring_keeps_the_revision_and_the_observers() {
    let dir = BpfDir::new();
    let mut datapath = dir.open();
    let settings = settings();
    let switch = datapath.observe();
    switch.set(true);
    let before = datapath.revision();
    datapath.configure(&settings).unwrap();
    let config = datapath.config();
    assert_eq!(config.revision, before + 1);
    assert!(switch.is_on());
    switch.set(false);
    let cookie = crate::netns::cookie().unwrap();
    let netns_cookie = [cookie as u32, (cookie >> 32) as u32];
    assert_ne!(cookie, 0);
    let plain = NodeConfig { revision: before + 1, netns_cookie, ..settings.to_abi() };
    assert_eq!(datapath.config(), plain);
    let map: TypedMap<u32, NodeConfig> =
        TypedMap::new(map_name::CONFIG, datapath.maps[map_name::CONFIG].clone()).unwrap();
    assert_eq!(map.get(&0).unwrap(), Some(plain));
}

#[test]
fn usage_counts_entries_and_bytes() {
    let dir = BpfDir::new();
    let mut datapath = open_small(&dir, &[(map_name::IPCACHE, 1000)]);
    let entry = IpcacheEntry { identity: identity(300), node: None, is_node: false };
    datapath.set_ipcache(ip("10.0.0.1"), Some(&entry)).unwrap();
    datapath.put_policy(PolicyId(1), &policy(0..5, 1..4)).unwrap();
    let usage: BTreeMap<String, MapUsage> =
        datapath.usage().unwrap().into_iter().map(|usage| (usage.name.clone(), usage)).collect();
    assert_eq!((usage["IPCACHE"].entries, usage["IPCACHE"].entries_max), (1, 1000));
    assert_eq!(
        (usage["POLICY_CLASSES"].entries, usage["POLICY_ENTRIES"].entries, usage["POLICY_INFO"].entries),
        (5, 3, 1)
    );
    // A trie without prefixes takes nothing.
    assert!(usage.values().all(|usage| usage.memory_bytes > 0 || usage.entries == 0), "{usage:?}");
    assert_eq!(usage.len(), datapath.maps.len());
    assert!(
        usage.values().map(|usage| usage.memory_bytes).sum::<u64>() < 60 << 20,
        "what an idle node pays: {usage:?}"
    );
}

#[test]
fn flows_of_an_address_go_and_others_stay() {
    use weft_abi::{flow_flags, flow_kind};
    let dir = BpfDir::new();
    let mut datapath = dir.open();
    let map: TypedMap<FlowKey, FlowEntry> =
        TypedMap::new(map_name::FLOWS, datapath.maps[map_name::FLOWS].clone()).unwrap();
    let key = |low: &str, high: &str, kind| FlowKey {
        low: ip(low).into(),
        high: ip(high).into(),
        low_port_be: 1000_u16.to_be(),
        high_port_be: 80_u16.to_be(),
        protocol: 6,
        kind,
        pad: 0,
    };
    let entry =
        FlowEntry { flags: flow_flags::ORIGIN_LOW, source_identity: 300, forward_packets: 3, ..FlowEntry::default() };
    map.put(&key("10.0.0.1", "10.0.0.2", flow_kind::FLOW), &entry).unwrap();
    map.put(&key("10.0.0.3", "10.0.0.4", flow_kind::FLOW), &entry).unwrap();
    map.put(&key("192.0.2.1", "198.51.100.1", flow_kind::NAT), &FlowEntry { nat_addr: ip("10.0.0.1").into(), ..entry })
        .unwrap();
    let deleting = FlowEntry { last_seen_s: FlowEntry::DELETING, ..entry };
    map.put(&key("10.0.0.1", "10.0.0.9", flow_kind::FLOW), &deleting).unwrap();

    let flows = datapath.flows();
    assert_eq!(flows.list(100).unwrap().len(), 2, "neither masquerading's other half nor what goes");
    assert_eq!(flows.list(1).unwrap().len(), 1);
    assert_eq!(flows.list(0).unwrap().len(), 0);
    datapath.remove_endpoint(&[ip("10.0.0.1")]).unwrap();
    let left = flows.list(100).unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!((left[0].source.address, left[0].source.port, left[0].source.packets), (ip("10.0.0.3"), 1000, 3));
    assert_eq!((left[0].destination.address, left[0].destination.port), (ip("10.0.0.4"), 80));
    assert_eq!(flows.len().unwrap(), 2, "the claimed one is the collector's");
}

#[test]
fn the_collector_removes_what_has_expired() {
    let dir = BpfDir::new();
    let mut datapath = dir.open_all();
    let map: TypedMap<FlowKey, FlowEntry> =
        TypedMap::new(map_name::FLOWS, datapath.maps[map_name::FLOWS].clone()).unwrap();
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap().tv_sec();
    for port in 0..100_u16 {
        let key = FlowKey {
            low: ip("10.0.0.1").into(),
            high: ip("10.0.0.2").into(),
            low_port_be: port,
            protocol: 17,
            ..FlowKey::default()
        };
        let age = if port < 60 { 1_000_000 } else { 0 };
        let last_seen_s = u32::try_from((now - age).max(1)).unwrap();
        map.put(&key, &FlowEntry { last_seen_s, ..FlowEntry::default() }).unwrap();
    }
    let mut settings = crate::NodeSettings {
        device_ifindex: 1,
        device_mac: None,
        tunnel: None,
        node_v4: None,
        node_v6: None,
        pod_mtu: 1500,
        nat_ports: 1..=2,
        guard: crate::PortGuard::Services,
        masquerade_v4: false,
        masquerade_v6: false,
        dual_stack: false,
        timeouts: crate::Timeouts::default(),
        events_per_s: 0,
    };
    settings.timeouts.other_s = 3600;
    datapath.configure(&settings).unwrap();
    let mut collector = datapath.collector();
    let collected = collector.run().unwrap();
    let flows = datapath.flows();
    assert_eq!(collected.left, flows.list(1000).unwrap().len() as u64);
    if now > 3700 {
        assert_eq!(collected.left, 40);
    }
    assert_eq!(flows.len().unwrap(), collected.left);
    assert_eq!(collected.pressure, 0);
}

#[test]
fn counters_and_events_start_empty() {
    let dir = BpfDir::new();
    let datapath = dir.open();
    assert_eq!(datapath.metrics().unwrap().read().unwrap(), []);
    let mut events = datapath.events().unwrap();
    assert!(!events.wait(Some(std::time::Duration::ZERO)).unwrap());
    let mut records = Vec::new();
    assert_eq!(events.read(&mut records, 10), 0);
    assert_eq!(events.malformed(), 0);
    assert_eq!(datapath.metrics().unwrap().suppressed().unwrap(), 0);
    // A reader that waits for ever ends when it is told to, however often it is asked.
    let stop = events.stop();
    let thread = std::thread::spawn(move || [events.wait(None).unwrap(), events.wait(None).unwrap()]);
    stop.stop();
    assert_eq!(thread.join().unwrap(), [false, false]);
}
