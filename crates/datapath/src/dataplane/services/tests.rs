//! Services in real maps, against the tables that the patches describe.

use crate::Datapath;
use crate::testing::{BpfDir, describe};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use weft_abi::{FrontendInfo, FrontendKey, map_name};
use weft_model::desired::{
    BackendEntry, BackendId, BackendSet, Dataplane, DataplaneError, Frontend, FrontendEntry, FrontendKind, ServiceId,
    ServicePatch, ServiceTables, SetId,
};
use weft_model::intent::{Forwarding, Protocol};

/// Numbers from a seed (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u32 {
        u32::try_from(self.next() % n).unwrap()
    }

    fn coin(&mut self) -> bool {
        self.next() & 1 == 0
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::try_from(self.next()).unwrap() % all.len()]
    }

    fn address(&mut self, n: u32) -> IpAddr {
        let n = u16::try_from(n).unwrap();
        if self.coin() {
            IpAddr::from([10, 96, n.to_be_bytes()[0], n.to_be_bytes()[1]])
        } else {
            IpAddr::from([0xfd96, 0, 0, 0, 0, 0, 0, n])
        }
    }

    fn backend(&mut self) -> BackendEntry {
        BackendEntry {
            service: ServiceId(1 + self.below(9)),
            address: {
                let n = self.below(99);
                self.address(n)
            },
            port: u16::try_from(self.below(65_536)).unwrap(),
            protocol: self.of(&[Protocol::Tcp, Protocol::Udp, Protocol::Sctp]),
            local: self.coin(),
            terminating: self.coin(),
        }
    }

    fn frontend(&mut self) -> Frontend {
        let address = match self.below(4) {
            0 => "0.0.0.0".parse().unwrap(),
            1 => "::".parse().unwrap(),
            _ => {
                let n = self.below(12);
                self.address(n)
            }
        };
        let port = u16::try_from(self.below(3)).unwrap() + 0x1234;
        Frontend { address, port, protocol: self.of(&[Protocol::Tcp, Protocol::Udp, Protocol::Sctp]) }
    }

    fn entry(&mut self, sets: &[SetId]) -> FrontendEntry {
        let mut set = || if sets.is_empty() || self.below(5) == 0 { None } else { Some(self.of(sets)) };
        let (internal, external) = (set(), set());
        FrontendEntry {
            service: ServiceId(1 + self.below(9)),
            kind: self.of(&[
                FrontendKind::ClusterIp,
                FrontendKind::NodePort,
                FrontendKind::HostPort,
                FrontendKind::LoadBalancer,
                FrontendKind::ExternalIp,
                FrontendKind::Redirect,
            ]),
            internal,
            external,
            affinity_s: self.coin().then(|| 1 + self.below(10_800)),
            forwarding: self.of(&[Forwarding::Snat, Forwarding::Dsr]),
            source_ranges: self.coin(),
            external_local: self.coin(),
            internal_local: self.coin(),
            skip_from_backend: self.coin(),
        }
    }

    /// A patch that fits the tables.
    fn patch(&mut self, now: &ServiceTables, next: &mut u32) -> ServicePatch {
        let mut patch = ServicePatch::default();
        let mut backends: Vec<BackendId> = now.backends.keys().copied().collect();
        for _ in 0..self.below(6) {
            *next += 1;
            patch.put_backends.insert(BackendId(*next), self.backend());
            backends.push(BackendId(*next));
        }
        for _ in 0..self.below(4) {
            if backends.is_empty() {
                continue;
            }
            *next += 1;
            let count = 1 + self.below(7);
            let backends: Vec<BackendId> = (0..count).map(|_| self.of(&backends)).collect();
            let table = [0, 1, 64, 251][self.below(4) as usize];
            let table = (0..table).map(|_| u16::try_from(self.below(u64::from(count))).unwrap()).collect();
            patch.put_sets.insert(SetId(*next), BackendSet { backends, table });
        }
        let sets: Vec<SetId> = now.sets.keys().chain(patch.put_sets.keys()).copied().collect();
        for _ in 0..self.below(5) {
            let key = self.frontend();
            let entry = self.entry(&sets);
            patch.put_frontends.insert(key, entry);
        }
        for _ in 0..self.below(3) {
            let prefixes = ["0.0.0.0/0", "::/0", "10.0.0.0/8", "fd00::/8", "192.0.2.7/32"];
            let range = (ServiceId(1 + self.below(3)), self.of(&prefixes).parse().unwrap());
            if now.ranges.contains(&range) {
                patch.del_ranges.insert(range);
            } else {
                patch.put_ranges.insert(range);
            }
        }
        let deletable = now.frontends.keys().filter(|key| !patch.put_frontends.contains_key(key));
        patch.del_frontends = deletable.copied().filter(|_| self.below(6) == 0).collect();
        let mut after = now.clone();
        after.apply(&patch);
        let used: BTreeSet<SetId> =
            after.frontends.values().flat_map(|entry| [entry.internal, entry.external]).flatten().collect();
        patch.del_sets = now.sets.keys().copied().filter(|set| !used.contains(set)).collect();
        after.apply(&patch);
        let used: BTreeSet<BackendId> = after.sets.values().flat_map(|set| set.backends.iter().copied()).collect();
        patch.del_backends = now.backends.keys().copied().filter(|id| !used.contains(id)).collect();
        patch
    }
}

fn open_small(dir: &BpfDir, sizes: &[(&'static str, u32)]) -> Datapath {
    let mut options = dir.options();
    options.entries_max = sizes.iter().copied().collect();
    Datapath::open(&options).map_err(|error| describe(&error)).unwrap().0
}

/// What a patch refuses as tables: a set without a backend comes back as broken.
fn usage(datapath: &mut Datapath) -> BTreeMap<String, u64> {
    datapath.usage().unwrap().into_iter().map(|map| (map.name, map.entries)).collect()
}

/// The books agree with what is in the maps.
fn check_books(datapath: &Datapath) {
    let services = &datapath.services;
    let rows = [
        (map_name::FRONTENDS, services.maps.frontends.dump().unwrap().len()),
        (map_name::SLOTS, services.maps.slots.dump().unwrap().len()),
        (map_name::BACKENDS, services.maps.backends.dump().unwrap().len()),
        (map_name::MAGLEV, services.maps.maglev.dump().unwrap().len()),
        (map_name::RANGES, services.maps.ranges.dump().unwrap().len()),
    ];
    assert_eq!(services.entries(), rows.map(|(name, rows)| (name, rows as u64)));
    let keys: BTreeSet<_> = services.maps.frontends.dump().unwrap().into_iter().map(|(key, _)| bytes(&key)).collect();
    let of_address = |address: IpAddr| bytes(&FrontendKey::of_address(address.into()));
    let frontends =
        services.maps.frontends.dump().unwrap().into_iter().filter_map(|(key, _)| super::rows::frontend(&key));
    let marked: BTreeSet<_> =
        frontends.filter(|one| !one.address.is_unspecified()).map(|one| of_address(one.address)).collect();
    let rows: BTreeSet<_> = keys.into_iter().filter(|(_, port, protocol)| (*port, *protocol) == (0, 0)).collect();
    assert_eq!(rows, marked, "addresses that have frontends");
}

fn bytes(key: &FrontendKey) -> (IpAddr, u16, u8) {
    (key.addr.into(), key.port_be, key.protocol)
}

fn id(n: u32) -> (BackendId, BackendEntry) {
    let entry = BackendEntry {
        service: ServiceId(1),
        address: IpAddr::from([10, 0, 0, u8::try_from(n).unwrap()]),
        port: 80,
        protocol: Protocol::Tcp,
        local: true,
        terminating: false,
    };
    (BackendId(n), entry)
}

fn frontend(n: u8) -> Frontend {
    Frontend { address: IpAddr::from([10, 96, 0, n]), port: 80, protocol: Protocol::Tcp }
}

fn entry(set: Option<u32>) -> FrontendEntry {
    FrontendEntry {
        service: ServiceId(1),
        kind: FrontendKind::ClusterIp,
        internal: set.map(SetId),
        external: set.map(SetId),
        affinity_s: None,
        forwarding: Forwarding::Snat,
        source_ranges: false,
        external_local: false,
        internal_local: false,
        skip_from_backend: false,
    }
}

fn set(backends: &[u32], table: usize) -> BackendSet {
    BackendSet { backends: backends.iter().map(|n| BackendId(*n)).collect(), table: vec![0; table] }
}

/// One frontend with one set of two backends.
fn first() -> ServicePatch {
    ServicePatch {
        put_backends: [id(1), id(2)].into(),
        put_sets: [(SetId(1), set(&[1, 2], 251))].into(),
        put_frontends: [(frontend(1), entry(Some(1)))].into(),
        ..ServicePatch::default()
    }
}

#[test]
fn what_patches_say_is_what_is_read_back() {
    let dir = BpfDir::new();
    for seed in 0..20 {
        let mut random = Random(seed);
        let mut datapath = dir.open();
        let (mut model, mut next) = (ServiceTables::default(), 0);
        // What the round before left.
        model.clone_from(&datapath.services().unwrap());
        next += model.backends.keys().map(|id| id.0).chain(model.sets.keys().map(|id| id.0)).max().unwrap_or(0);
        for step in 0..30 {
            let patch = random.patch(&model, &mut next);
            datapath.patch_services(&patch).map_err(|error| describe(&error)).unwrap();
            model.apply(&patch);
            check_books(&datapath);
            if step % 3 == 0 {
                // Twice is once.
                datapath.patch_services(&patch).map_err(|error| describe(&error)).unwrap();
                check_books(&datapath);
            }
            if step % 5 == 0 {
                // Unused sets have no frontend that knows the length of their table.
                let used: BTreeSet<SetId> =
                    model.frontends.values().flat_map(|entry| [entry.internal, entry.external]).flatten().collect();
                let mut read = datapath.services().unwrap();
                let mut known = model.clone();
                known.sets.retain(|id, _| used.contains(id));
                read.sets.retain(|id, _| used.contains(id));
                assert_eq!(read, known, "seed {seed}, step {step}");
                check_books(&datapath);
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_whole() {
    let sizes = [
        (map_name::FRONTENDS, 2),
        (map_name::SLOTS, 6),
        (map_name::BACKENDS, 4),
        (map_name::MAGLEV, 6),
        (map_name::RANGES, 3),
    ];
    let dir = BpfDir::new();
    let mut datapath = open_small(&dir, &sizes);
    datapath.patch_services(&first()).unwrap();
    let before = datapath.services().unwrap();
    let range = |text: &str| (ServiceId(1), text.parse().unwrap());
    let too_much = [
        (map_name::BACKENDS, ServicePatch { put_backends: [id(3), id(4), id(5)].into(), ..ServicePatch::default() }),
        (
            map_name::SLOTS,
            ServicePatch { put_sets: [(SetId(2), set(&[1, 2, 1, 2, 1], 0))].into(), ..ServicePatch::default() },
        ),
        (map_name::MAGLEV, ServicePatch { put_sets: [(SetId(2), set(&[1], 251))].into(), ..ServicePatch::default() }),
        // Two, and one that keeps IPv4 apart from `::/0`.
        (
            map_name::RANGES,
            ServicePatch {
                put_backends: [id(3)].into(),
                put_ranges: [range("::/0"), range("fd00::/8"), range("10.0.0.0/8")].into(),
                ..ServicePatch::default()
            },
        ),
        (
            map_name::FRONTENDS,
            ServicePatch {
                put_backends: [id(3)].into(),
                put_sets: [(SetId(2), set(&[3], 64))].into(),
                put_ranges: [range("10.0.0.0/8")].into(),
                put_frontends: [1, 2, 3].map(|n| (frontend(n), entry(Some(2)))).into(),
                ..ServicePatch::default()
            },
        ),
    ];
    for (map, patch) in too_much {
        match datapath.patch_services(&patch) {
            Err(DataplaneError::MapFull { map: full, .. }) => assert_eq!(full, map),
            other => panic!("expected {map} to be full, got {other:?}"),
        }
        assert_eq!(datapath.services().unwrap(), before, "{map}");
        check_books(&datapath);
    }
    // The same backends and frontends again take no room.
    datapath.patch_services(&first()).unwrap();
    assert_eq!(usage(&mut datapath)[map_name::SLOTS], 2);
}

#[test]
fn addresses_that_have_frontends_are_known_after_a_restart() {
    let dir = BpfDir::new();
    let mut datapath = dir.open();
    datapath.patch_services(&first()).unwrap();
    check_books(&datapath);
    let before = datapath.services().unwrap();
    // As somebody left it who ended in the middle.
    let row = |n| FrontendKey::of_address(frontend(n).address.into());
    datapath.services.maps.frontends.remove(&row(1)).unwrap();
    datapath.services.maps.frontends.put(&row(2), &FrontendInfo::default()).unwrap();
    drop(datapath);
    let mut datapath = dir.open();
    check_books(&datapath);
    assert_eq!(datapath.services().unwrap(), before);
    let gone = ServicePatch { del_frontends: [frontend(1)].into(), ..ServicePatch::default() };
    datapath.patch_services(&gone).unwrap();
    check_books(&datapath);
    assert_eq!(usage(&mut datapath)[map_name::FRONTENDS], 0);
}

#[test]
fn what_names_something_missing_is_refused_whole() {
    let dir = BpfDir::new();
    let mut datapath = dir.open();
    datapath.patch_services(&first()).unwrap();
    let before = datapath.services().unwrap();
    let none = ServicePatch::default;
    let wrong = [
        ServicePatch { put_sets: [(SetId(2), set(&[9], 0))].into(), put_backends: [id(3)].into(), ..none() },
        ServicePatch { put_sets: [(SetId(2), set(&[], 0))].into(), ..none() },
        ServicePatch { put_sets: [(SetId(0), set(&[1], 0))].into(), ..none() },
        // A set is never changed.
        ServicePatch { put_sets: [(SetId(1), set(&[1], 0))].into(), ..none() },
        ServicePatch { put_sets: [(SetId(2), BackendSet { table: vec![0, 1], ..set(&[1], 0) })].into(), ..none() },
        ServicePatch {
            put_backends: [id(3)].into(),
            put_frontends: [(frontend(1), entry(None)), (frontend(2), entry(Some(7)))].into(),
            ..none()
        },
    ];
    for patch in wrong {
        let error = datapath.patch_services(&patch).expect_err("refused");
        assert!(matches!(error, DataplaneError::Invalid { .. }), "{error}");
        assert_eq!(datapath.services().unwrap(), before);
        check_books(&datapath);
    }
}

#[test]
fn a_set_that_is_not_whole_equals_nothing() {
    let dir = BpfDir::new();
    let mut datapath = dir.open();
    let mut patch = first();
    patch.put_sets.insert(SetId(2), set(&[1], 0));
    patch.put_frontends.insert(frontend(2), entry(Some(2)));
    datapath.patch_services(&patch).unwrap();
    let whole = datapath.services().unwrap();
    // A crash between the backends and the sets: the set still says what the backend was.
    let ended = BackendEntry { terminating: true, ..id(2).1 };
    let half = ServicePatch { put_backends: [(BackendId(2), ended)].into(), ..ServicePatch::default() };
    datapath.patch_services(&half).unwrap();
    drop(datapath);
    let mut datapath = dir.open();
    let read = datapath.services().unwrap();
    assert_eq!(read.sets[&SetId(1)], BackendSet { backends: Vec::new(), table: Vec::new() });
    assert_eq!((&read.sets[&SetId(2)], read.frontends[&frontend(2)]), (&set(&[1], 0), entry(Some(2))));
    assert_eq!(read.frontends[&frontend(1)].internal, Some(SetId(0)));
    // Its rows go all the same.
    let rest = ServicePatch {
        put_frontends: [(frontend(1), entry(Some(2)))].into(),
        del_sets: [SetId(1)].into(),
        del_backends: [BackendId(2)].into(),
        ..ServicePatch::default()
    };
    datapath.patch_services(&rest).unwrap();
    check_books(&datapath);
    let read = datapath.services().unwrap();
    assert_eq!(read.sets.len() + read.backends.len(), 2);
    assert_ne!(read, whole);
    // Rows that cannot be ours are neither read nor in the way.
    let strange = weft_abi::FrontendKey { protocol: 1, ..weft_abi::FrontendKey::default() };
    datapath.services.maps.frontends.put(&strange, &weft_abi::FrontendInfo::default()).unwrap();
    let slot = weft_abi::SlotKey { set: 7, slot: u32::MAX };
    datapath.services.maps.slots.put(&slot, &weft_abi::BackendInfo::default()).unwrap();
    let key = super::rows::frontend_key(&frontend(3));
    datapath.services.maps.frontends.put(&key, &weft_abi::FrontendInfo::default()).unwrap();
    drop(datapath);
    let mut datapath = dir.open();
    let again = datapath.services().unwrap();
    assert_eq!(again.frontends[&frontend(3)].internal, Some(SetId(0)));
    assert_eq!((again.frontends.len(), again.sets), (read.frontends.len() + 1, read.sets));
    check_books(&datapath);
}

#[test]
fn ranges_of_ipv6_say_nothing_of_ipv4() {
    let dir = BpfDir::new();
    let mut datapath = dir.open();
    let range = |text: &str| (ServiceId(7), text.parse::<ipnet::IpNet>().unwrap());
    let allowed = |datapath: &Datapath, address: &str| {
        let address: IpAddr = address.parse().unwrap();
        let key = super::rows::range_key(ServiceId(7), address.into());
        datapath.services.maps.ranges.get(&key).unwrap() == Some(super::ALLOWED)
    };
    let put = |ranges: &[&str]| ServicePatch {
        put_ranges: ranges.iter().map(|text| range(text)).collect(),
        ..ServicePatch::default()
    };
    let del = |ranges: &[&str]| ServicePatch {
        del_ranges: ranges.iter().map(|text| range(text)).collect(),
        ..ServicePatch::default()
    };
    let mut steps = |patch: ServicePatch| {
        datapath.patch_services(&patch).unwrap();
        check_books(&datapath);
        (allowed(&datapath, "2001:db8::1"), allowed(&datapath, "192.0.2.1"), allowed(&datapath, "10.0.0.1"))
    };
    assert_eq!(steps(put(&["::/0", "10.0.0.0/8"])), (true, false, true));
    assert_eq!(steps(put(&["0.0.0.0/0"])), (true, true, true));
    assert_eq!(steps(del(&["0.0.0.0/0"])), (true, false, true));
    assert_eq!(steps(del(&["::/0"])), (false, false, true));
    assert_eq!(steps(del(&["10.0.0.0/8"])), (false, false, false));
    assert_eq!(datapath.services.maps.ranges.dump().unwrap().len(), 0);
}
