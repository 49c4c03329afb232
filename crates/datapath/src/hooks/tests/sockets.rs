//! Real sockets of a process in a control group, led to backends.

use super::*;
use crate::map::TypedMap;
use crate::netlink::Socket;
use crate::sockets::Protocols;
use crate::testing::unique;
use crate::{NodeSettings, cgroup};
use child::Process;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use weft_abi::{
    Addr, AffinityKey, AffinityValue, BackendInfo, FrontendInfo, FrontendKey, MaglevKey, MaglevPart, SlotKey,
    SocketKey, SocketValue, backend_flags, client_hash, map_name, service_flags, socket_kind,
};
use weft_model::desired::{BackendEntry, BackendId, Dataplane as _, IpcacheEntry, ServiceId};
use weft_model::id::Identity;
use weft_model::intent::Protocol;

mod child;
mod ports;

const TCP: u8 = 6;
const UDP: u8 = 17;
const REFUSED: &str = "error 111";

/// Of both families alike: (frontend, backends, node).
const V4: Family = Family {
    service: "198.51.100.1",
    backends: ["192.0.2.11", "192.0.2.12", "192.0.2.13"],
    node: "192.0.2.1",
    any: "0.0.0.0",
    local: "127.0.0.1",
};
const V6: Family = Family {
    service: "2001:db8:5::1",
    backends: ["2001:db8:6::11", "2001:db8:6::12", "2001:db8:6::13"],
    node: "2001:db8:6::1",
    any: "::",
    local: "::1",
};

#[derive(Clone, Copy)]
struct Family {
    service: &'static str,
    backends: [&'static str; 3],
    node: &'static str,
    any: &'static str,
    local: &'static str,
}

impl Family {
    /// The way to write an address of this family for a socket of the family, and for IPv4 also for one of IPv6.
    fn spellings(self, address: &str) -> Vec<(String, &'static str)> {
        if address.contains(':') {
            vec![(format!("[{address}]"), "[::]:0")]
        } else {
            vec![(address.to_owned(), "0.0.0.0:0"), (format!("[::ffff:{address}]"), "[::]:0")]
        }
    }
}

struct Group(PathBuf);

impl Group {
    fn new() -> Self {
        let path = cgroup::root().unwrap().join(unique("weft-datapath-"));
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The kernel lets go of a killed process a moment after it was waited for.
        let deadline = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
}

pub(super) struct Tables {
    frontends: TypedMap<FrontendKey, FrontendInfo>,
    slots: TypedMap<SlotKey, BackendInfo>,
    backends: TypedMap<u32, BackendInfo>,
    maglev: TypedMap<MaglevKey, MaglevPart>,
    affinity: TypedMap<AffinityKey, AffinityValue>,
    sockets: TypedMap<SocketKey, SocketValue>,
}

fn ip(text: &str) -> Addr {
    text.parse::<IpAddr>().unwrap().into()
}

impl Tables {
    pub(super) fn of(dir: &BpfDir) -> Self {
        fn map<K: aya::Pod, V: aya::Pod>(dir: &BpfDir, name: &'static str) -> TypedMap<K, V> {
            let fd = sys::object_get(&dir.inside("maps").join(name)).unwrap();
            TypedMap::new(name, Arc::new(fd)).unwrap()
        }
        Self {
            frontends: map(dir, map_name::FRONTENDS),
            slots: map(dir, map_name::SLOTS),
            backends: map(dir, map_name::BACKENDS),
            maglev: map(dir, map_name::MAGLEV),
            affinity: map(dir, map_name::AFFINITY),
            sockets: map(dir, map_name::SOCKETS),
        }
    }

    /// A service of both protocols with the given backends, of which those on port 80 answer.
    pub(super) fn service(
        &self,
        address: &str,
        port: u16,
        set: u32,
        backends: &[&str],
        change: impl Fn(&mut FrontendInfo),
    ) {
        for (slot, address) in (0..).zip(backends) {
            let id = self.number(address);
            for set in [set, set + 1000] {
                let protocol = if set < 1000 { TCP } else { UDP };
                let backend = BackendInfo {
                    addr: ip(address),
                    id: id + set,
                    service: set,
                    port_be: 80_u16.to_be(),
                    protocol,
                    ..BackendInfo::default()
                };
                self.slots.put(&SlotKey { set, slot }, &backend).unwrap();
                self.backends.put(&(id + set), &backend).unwrap();
            }
        }
        for (protocol, set) in [(TCP, set), (UDP, set + 1000)] {
            let key = FrontendKey { addr: ip(address), port_be: port.to_be(), protocol, pad: 0 };
            let mut info = FrontendInfo {
                service: set,
                flags: service_flags::CLUSTER_IP,
                internal_set: set,
                internal_count: u32::try_from(backends.len()).unwrap(),
                ..FrontendInfo::default()
            };
            change(&mut info);
            self.frontends.put(&key, &info).unwrap();
        }
    }

    /// Number of a backend: the last part of its address, beyond those of sets.
    fn number(&self, address: &str) -> u32 {
        let last = address.rsplit([':', '.']).next().unwrap();
        10_000 * last.parse::<u32>().unwrap()
    }
}

/// A node with backends, and a process of its own.
struct Scene {
    dir: BpfDir,
    group: Group,
    datapath: Datapath,
    tables: Tables,
    _server: Process,
}

/// The addresses of the node, the backends and the services' clients: all in one namespace.
fn populate() {
    let mut socket = Socket::open().unwrap();
    socket.set_up(1, true).unwrap();
    for family in [V4, V6] {
        for address in family.backends.iter().chain([&family.node]) {
            socket.add_address(1, address.parse::<IpAddr>().unwrap().into()).unwrap();
        }
    }
}

fn serve(netns: &NetNs) -> Process {
    netns.run(populate).unwrap();
    let mut server = Process::start(netns, None);
    for family in [V4, V6] {
        for address in family.backends {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(server.ask(&format!("serve {} {address}", std::net::SocketAddr::new(address, 80))), "serves");
        }
    }
    server
}

impl Scene {
    fn new() -> Self {
        let dir = BpfDir::new();
        let (mut datapath, _) = open(&dir);
        let settings = NodeSettings {
            node_v4: Some(V4.node.parse().unwrap()),
            node_v6: Some(V6.node.parse().unwrap()),
            ..swap::settings()
        };
        datapath.configure(&settings).unwrap();
        let group = Group::new();
        datapath.hooks().attach_sockets(&group.0).unwrap();
        let tables = Tables::of(&dir);
        let server = serve(&NetNs::current().unwrap());
        Self { dir, group, datapath, tables, _server: server }
    }

    /// A process of the node.
    fn process(&self) -> Process {
        Process::start(&NetNs::current().unwrap(), Some(&self.group.0))
    }
}

/// The end of an answer: who answered.
fn who(answer: &str) -> &str {
    answer.split_once(" is ").unwrap_or_else(|| panic!("{answer}")).1
}

#[test]
fn sockets_reach_backends_and_see_the_service() {
    in_netns(|| {
        let scene = Scene::new();
        let mut process = scene.process();
        for (family, set) in [(V4, 1), (V6, 2)] {
            scene.tables.service(family.service, 53, set, &family.backends[..2], |_| {});
            for (service, own) in family.spellings(family.service) {
                let service = format!("{service}:53");
                let mut answered = [BTreeSet::new(), BTreeSet::new(), BTreeSet::new()];
                for n in 0..16 {
                    let tcp = process.ask(&format!("tcp t{n} {service}"));
                    assert!(tcp.starts_with(&service), "getpeername: {tcp}");
                    answered[0].insert(who(&tcp).to_owned());

                    assert_eq!(process.ask(&format!("udp c {own}")), "open");
                    assert_eq!(process.ask(&format!("connect c {service}")), service, "getpeername");
                    let udp = process.ask("send c");
                    assert!(udp.starts_with(&service), "recvmsg: {udp}");
                    answered[1].insert(who(&udp).to_owned());

                    // Without a connection: each socket keeps its backend.
                    assert_eq!(process.ask(&format!("udp u {own}")), "open");
                    let first = process.ask(&format!("send u {service}"));
                    assert!(first.starts_with(&service), "recvmsg: {first}");
                    for _ in 0..4 {
                        assert_eq!(process.ask(&format!("send u {service}")), first);
                    }
                    answered[2].insert(who(&first).to_owned());
                }
                let all = BTreeSet::from([family.backends[0].to_owned(), family.backends[1].to_owned()]);
                assert_eq!(answered, [all.clone(), all.clone(), all], "{service}");
            }
            // What is no service is left alone.
            let (direct, _) = &family.spellings(family.backends[2])[0];
            let answer = process.ask(&format!("tcp d {direct}:80"));
            assert_eq!(answer, format!("{direct}:80 is {}", family.backends[2]));
        }
    });
}

#[test]
fn a_service_without_backends_refuses_at_once() {
    in_netns(|| {
        let scene = Scene::new();
        let mut process = scene.process();
        for (family, set) in [(V4, 1), (V6, 2)] {
            scene.tables.service(family.service, 80, set, &[], |info| info.flags |= service_flags::INTERNAL_LOCAL);
            for (service, own) in family.spellings(family.service) {
                assert_eq!(process.ask(&format!("tcp t {service}:80")), REFUSED);
                process.ask(&format!("udp u {own}"));
                assert_eq!(process.ask(&format!("send u {service}:80")), REFUSED);
                assert_eq!(process.ask(&format!("connect u {service}:80")), REFUSED);
            }
        }
    });
}

#[test]
fn a_client_stays_with_its_backend_for_as_long_as_told() {
    in_netns(|| {
        let scene = Scene::new();
        let mut process = scene.process();
        let cookie = crate::netns::cookie().unwrap();
        for (family, set) in [(V4, 1), (V6, 2)] {
            scene.tables.service(family.service, 80, set, &family.backends, |info| info.affinity_s = 100);
            let (service, own) = family.spellings(family.service).remove(0);
            let key = AffinityKey { client: AffinityKey::of_netns(cookie, family.service == V4.service), service: set };
            let first = process.ask(&format!("tcp t {service}:80"));
            for n in 0..12 {
                assert_eq!(process.ask(&format!("tcp t{n} {service}:80")), first);
            }
            // A long time later any will do.
            let value = scene.tables.affinity.get(&key).unwrap().expect("is remembered");
            let mut answered = BTreeSet::new();
            while answered.len() < 3 {
                let past = AffinityValue { last_used_s: value.last_used_s.wrapping_sub(101), ..value };
                scene.tables.affinity.put(&key, &past).unwrap();
                answered.insert(who(&process.ask(&format!("tcp t {service}:80"))).to_owned());
            }
            // Nobody is bound to what ends or is gone.
            for change in ["ends", "gone", "another's"] {
                let value = scene.tables.affinity.get(&key).unwrap().expect("is remembered");
                let backend = scene.tables.backends.get(&value.backend).unwrap().expect("exists");
                match change {
                    "ends" => {
                        let ends = BackendInfo { flags: backend_flags::TERMINATING, ..backend };
                        scene.tables.backends.put(&value.backend, &ends).unwrap();
                    }
                    "gone" => assert!(scene.tables.backends.remove(&value.backend).unwrap()),
                    _ => {
                        let others = BackendInfo { service: 77, ..backend };
                        scene.tables.backends.put(&value.backend, &others).unwrap();
                    }
                }
                let deadline = Instant::now() + Duration::from_secs(10);
                while scene.tables.affinity.get(&key).unwrap().expect("is remembered").backend == value.backend {
                    assert!(Instant::now() < deadline, "{change}: bound for ever");
                    process.ask(&format!("tcp t {service}:80"));
                }
                scene.tables.backends.put(&value.backend, &backend).unwrap();
            }
            // Protocols are services of their own.
            process.ask(&format!("udp u {own}"));
            process.ask(&format!("send u {service}:80"));
            let udp = AffinityKey { service: set + 1000, ..key };
            assert!(scene.tables.affinity.get(&udp).unwrap().is_some());
        }
    });
}

#[test]
fn maglevs_table_chooses_where_there_is_one() {
    in_netns(|| {
        let scene = Scene::new();
        let mut process = scene.process();
        let cookie = crate::netns::cookie().unwrap();
        for (family, set) in [(V4, 1), (V6, 2)] {
            let mut table = [0_u16; 101];
            for (entry, slot) in table.iter_mut().enumerate() {
                *slot = u16::try_from(entry % 3).unwrap();
            }
            for (part, slots) in (0..).zip(table.chunks(MaglevPart::ENTRIES)) {
                let mut value = MaglevPart([0; MaglevPart::ENTRIES]);
                value.0[..slots.len()].copy_from_slice(slots);
                scene.tables.maglev.put(&MaglevKey { set, part }, &value).unwrap();
            }
            let change = |info: &mut FrontendInfo| (info.internal_table, info.affinity_s) = (101, 1);
            scene.tables.service(family.service, 80, set, &family.backends, change);
            let entry = client_hash(&AffinityKey::of_netns(cookie, family.service == V4.service), 0, TCP) % 101;
            let expected = family.backends[usize::from(table[usize::try_from(entry).unwrap()])];
            let (service, _) = family.spellings(family.service).remove(0);
            for n in 0..8 {
                let key =
                    AffinityKey { client: AffinityKey::of_netns(cookie, family.service == V4.service), service: set };
                scene.tables.affinity.remove(&key).unwrap();
                assert_eq!(who(&process.ask(&format!("tcp t{n} {service}:80"))), expected);
            }
        }
    });
}

#[test]
fn a_socket_chooses_anew_when_its_backend_is_gone() {
    in_netns(|| {
        let scene = Scene::new();
        let mut process = scene.process();
        for (family, set) in [(V4, 1), (V6, 2)] {
            scene.tables.service(family.service, 80, set, &family.backends, |_| {});
            let (service, own) = family.spellings(family.service).remove(0);
            process.ask(&format!("udp u {own}"));
            let answer = process.ask(&format!("send u {service}:80"));
            let left: Vec<&str> = family.backends.into_iter().filter(|backend| *backend != who(&answer)).collect();
            let gone = scene.tables.number(who(&answer)) + set + 1000;
            // A new set, then the backend goes.
            scene.tables.service(family.service, 80, set + 10, &left, |info| {
                info.service = if info.service > 1000 { set + 1000 } else { set };
            });
            for (slot, address) in (0..).zip(&left) {
                let key = SlotKey { set: set + 1010, slot };
                let backend = BackendInfo {
                    service: set + 1000,
                    id: scene.tables.number(address) + set + 1000,
                    ..scene.tables.slots.get(&key).unwrap().unwrap()
                };
                scene.tables.slots.put(&key, &backend).unwrap();
            }
            assert_eq!(process.ask(&format!("send u {service}:80")), answer, "it exists still");
            assert!(scene.tables.backends.remove(&gone).unwrap());
            let second = process.ask(&format!("send u {service}:80"));
            assert!(second.starts_with(&format!("{service}:80 is")) && left.contains(&who(&second)), "{second}");
            assert_eq!(process.ask(&format!("send u {service}:80")), second);
        }
    });
}

#[test]
fn a_replaced_set_is_looked_up_again() {
    in_netns(|| {
        let scene = Scene::new();
        let mut process = scene.process();
        for (family, set) in [(V4, 1), (V6, 2)] {
            scene.tables.service(family.service, 80, set, &family.backends, |_| {});
            // The set's memory has become another service's: no client of this one may get there.
            for slot in 0..3 {
                let key = SlotKey { set, slot };
                let backend = scene.tables.slots.get(&key).unwrap().unwrap();
                scene.tables.slots.put(&key, &BackendInfo { service: 77, ..backend }).unwrap();
            }
            let (service, _) = family.spellings(family.service).remove(0);
            assert_eq!(process.ask(&format!("tcp t {service}:80")), REFUSED);
        }
    });
}

#[test]
fn ports_of_the_node_are_its_own_addresses() {
    in_netns(|| {
        let mut scene = Scene::new();
        let (mut node, pod) = (scene.process(), NetNs::create().unwrap());
        let _server = serve(&pod);
        let mut in_pod = Process::start(&pod, Some(&scene.group.0));
        let other = |family: &Family| if family.any == "::" { "2001:db8:6::2" } else { "192.0.2.2" };
        for (family, set) in [(V4, 1), (V6, 2)] {
            scene.tables.service(family.any, 30_080, set, &family.backends[..1], |info| {
                info.flags = service_flags::NODE_PORT;
            });
            // By the ipcache: one more address of this node's, and one of another's.
            let own = IpcacheEntry { identity: Identity::HOST, node: None, is_node: true };
            let more = family.backends[2].parse().unwrap();
            scene.datapath.set_ipcache(more, Some(&own)).unwrap();
            let theirs = other(&family).parse().unwrap();
            let entry = IpcacheEntry { node: Some(theirs), identity: Identity::REMOTE_NODE, ..own };
            scene.datapath.set_ipcache(theirs, Some(&entry)).unwrap();

            for (address, to_node, to_pod) in [
                (family.node, true, true),
                (family.backends[2], true, true),
                (family.local, true, false),
                (family.any, true, false),
            ] {
                for (address, own) in family.spellings(address) {
                    for (process, reached) in [(&mut node, to_node), (&mut in_pod, to_pod)] {
                        let tcp = process.ask(&format!("tcp t {address}:30080"));
                        process.ask(&format!("udp u {own}"));
                        process.ask(&format!("connect u {address}:30080"));
                        let udp = process.ask("send u");
                        if reached {
                            let expected = format!("{address}:30080 is {}", family.backends[0]);
                            assert_eq!((tcp, udp), (expected.clone(), expected));
                        } else {
                            assert_eq!((tcp.as_str(), udp.as_str()), (REFUSED, REFUSED), "{address}: its own");
                        }
                    }
                }
            }
            // At another node a Service's port leads to the same backends; a host port is that node's business, and there is
            // no way to it here.
            scene.tables.service(family.any, 8_081, set + 2, &family.backends[..1], |info| {
                info.flags = service_flags::HOST_PORT;
            });
            for (there, own) in family.spellings(other(&family)) {
                for process in [&mut node, &mut in_pod] {
                    let expected = format!("{there}:30080 is {}", family.backends[0]);
                    assert_eq!(process.ask(&format!("tcp t {there}:30080")), expected);
                    process.ask(&format!("udp u {own}"));
                    process.ask(&format!("connect u {there}:30080"));
                    assert_eq!(process.ask("send u"), expected);
                }
                assert_eq!(node.ask(&format!("tcp t {there}:8081")), "error 101");
            }
        }
    });
}

#[test]
fn what_only_packets_can_tell_is_left_to_them() {
    in_netns(|| {
        let scene = Scene::new();
        let mut process = scene.process();
        for (family, set) in [(V4, 1), (V6, 2)] {
            let flags = service_flags::REDIRECT | service_flags::SKIP_FROM_BACKEND;
            scene.tables.service(family.backends[0], 80, set, &family.backends[1..], |info| info.flags = flags);
            let (address, _) = family.spellings(family.backends[0]).remove(0);
            assert_eq!(who(&process.ask(&format!("tcp t {address}:80"))), family.backends[0]);
        }
    });
}

#[test]
fn a_closed_socket_is_forgotten() {
    in_netns(|| {
        let scene = Scene::new();
        let mut process = scene.process();
        for (family, set) in [(V4, 1), (V6, 2)] {
            scene.tables.service(family.service, 80, set, &family.backends, |_| {});
            for (service, own) in family.spellings(family.service) {
                process.ask(&format!("tcp t {service}:80"));
                process.ask(&format!("udp u {own}"));
                process.ask(&format!("connect u {service}:80"));
                let entries = scene.tables.sockets.dump().unwrap();
                assert_eq!(entries.len(), 2, "{entries:?}");
                for (key, value) in entries {
                    assert_eq!((key.kind, value.addr), (socket_kind::REVERSE, ip(family.service)));
                    assert_eq!((key.port_be, value.port_be), (80_u16.to_be(), 80_u16.to_be()));
                    assert!(scene.tables.backends.get(&value.backend).unwrap().is_some_and(|b| b.addr == key.addr));
                }
                for name in ["t", "u"] {
                    assert_eq!(process.ask(&format!("close {name}")), "closed");
                }
                assert_eq!(scene.tables.sockets.dump().unwrap(), []);
            }
        }
    });
}

#[test]
fn sockets_of_a_removed_backend_are_aborted() {
    in_netns(|| {
        let scene = Scene::new();
        let pod = NetNs::create().unwrap();
        let _server = serve(&pod);
        // The file by which the agent knows a pod's namespace.
        let mut in_pod = Process::start(&pod, Some(&scene.group.0));
        let namespaces = [PathBuf::from("/proc/0/ns/net"), in_pod.netns()];
        let mut on_node = scene.process();
        let destroyer = scene.datapath.destroyer().unwrap();
        for (family, set) in [(V4, 1), (V6, 2)] {
            let (gone, stays) = (family.backends[0], family.backends[1]);
            for (service, own) in family.spellings(family.service) {
                for process in [&mut on_node, &mut in_pod] {
                    scene.tables.service(family.service, 80, set, &[stays], |_| {});
                    process.ask(&format!("udp other {own}"));
                    process.ask(&format!("connect other {service}:80"));
                    scene.tables.service(family.service, 80, set, &[gone], |_| {});
                    for name in ["led", "loose", "direct"] {
                        process.ask(&format!("udp {name} {own}"));
                    }
                    process.ask(&format!("connect led {service}:80"));
                    process.ask(&format!("send loose {service}:80"));
                    let (direct, _) = family.spellings(gone).into_iter().find(|(_, any)| *any == own).unwrap();
                    assert_eq!(process.ask(&format!("connect direct {direct}:80")), format!("{direct}:80"));
                    assert_eq!(who(&process.ask(&format!("tcp stream {service}:80"))), gone);
                    process.tell("wait led");
                }
                let ids = [set, set + 1000].map(|set| scene.tables.number(gone) + set);
                let report = ids.map(|id| {
                    let protocol = if id == ids[0] { Protocol::Tcp } else { Protocol::Udp };
                    let (address, service) = (gone.parse().unwrap(), ServiceId(0));
                    let (local, terminating) = (false, false);
                    (BackendId(id), BackendEntry { service, address, port: 80, protocol, local, terminating })
                });
                // While it exists nothing is aborted, whoever says that it was removed.
                let both = Protocols { tcp: true, udp: true };
                assert_eq!(destroyer.destroy(&report, both, &namespaces).unwrap(), 0);

                scene.tables.service(family.service, 80, set, &[stays], |_| {});
                for id in ids {
                    assert!(scene.tables.backends.remove(&id).unwrap());
                }
                for (protocols, count) in [
                    (Protocols::default(), 0),
                    (Protocols { udp: true, tcp: false }, 2),
                    (Protocols { udp: true, tcp: false }, 0),
                ] {
                    assert_eq!(destroyer.destroy(&report, protocols, &namespaces).unwrap(), count, "{protocols:?}");
                }
                for process in [&mut on_node, &mut in_pod] {
                    assert_eq!(process.answer(), "error 103", "aborted");
                    for name in ["other", "direct"] {
                        assert!(!process.ask(&format!("send {name}")).starts_with("error"), "{name}");
                    }
                    assert_eq!(who(&process.ask(&format!("send loose {service}:80"))), stays);
                    process.tell("wait stream");
                }
                assert_eq!(destroyer.destroy(&report, both, &namespaces).unwrap(), 2);
                for process in [&mut on_node, &mut in_pod] {
                    assert_eq!(process.answer(), "error 103", "aborted");
                }
            }
        }
    });
}

#[test]
fn no_connect_fails_while_agents_come_and_go() {
    in_netns(|| {
        let Scene { dir, group, datapath, tables, _server } = Scene::new();
        tables.service(V4.service, 80, 1, &V4.backends, |_| {});
        let mut process = Process::start(&NetNs::current().unwrap(), Some(&group.0));
        assert_eq!(process.ask(&format!("knock {}:80", V4.service)), "knocking");
        let mut datapath = Some(datapath);
        for round in 0..6 {
            drop(datapath.take());
            if round % 3 == 0 {
                fs::remove_dir_all(dir.inside("programs")).unwrap();
            }
            let (next, adopted) = open(&dir);
            let sockets = adopted.links.iter().filter(|link| link.starts_with("socket-")).count();
            assert_eq!((sockets, adopted.pruned), (11, vec![]));
            next.hooks().attach_sockets(&group.0).unwrap();
            datapath = Some(next);
        }
        assert_eq!(process.ask("stop"), "all");
        // Another group takes the place of the first.
        let second = Group::new();
        let hooks = datapath.as_ref().expect("is open").hooks();
        hooks.attach_sockets(&second.0).unwrap();
        let unreachable = "error 101";
        assert_eq!(process.ask(&format!("tcp t {}:80", V4.service)), unreachable, "no longer");
        let mut other = Process::start(&NetNs::current().unwrap(), Some(&second.0));
        assert!(other.ask(&format!("tcp t {}:80", V4.service)).starts_with(V4.service));
        assert_eq!(hooks.attached().unwrap(), BTreeSet::new(), "these are no devices");
        assert!(hooks.detach_sockets().unwrap());
        assert!(!hooks.detach_sockets().unwrap());
        assert_eq!(other.ask(&format!("tcp t {}:80", V4.service)), unreachable);
        // The links of a group that is gone go too.
        hooks.attach_sockets(&second.0).unwrap();
        drop((other, second, hooks, datapath));
        // The kernel ends a group a while after its directory went.
        let last = sys::object_get(&dir.inside("links/socket-release")).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while sys::cgroup_info(last.as_fd()).unwrap().expect("a group's link").cgroup != 0 {
            assert!(Instant::now() < deadline, "the group lives for ever");
            std::thread::yield_now();
        }
        let (_, adopted) = open(&dir);
        assert_eq!((adopted.links.len(), adopted.pruned.len()), (0, 11));
    });
}
