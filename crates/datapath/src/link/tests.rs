//! These run as root, each in network namespaces of its own.

use super::*;
use crate::netns::NetNs;
use crate::testing::{describe, in_netns};
use std::net::IpAddr;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

fn spec<'a>(netns: &'a NetNs, host_name: &str, owner: &str) -> PodLinkSpec<'a> {
    PodLinkSpec {
        host_name: host_name.to_owned(),
        owner: owner.to_owned(),
        netns,
        pod_name: "eth0".to_owned(),
        host_mac: None,
        pod_mac: None,
        mtu: 1400,
        addresses: vec!["10.244.1.7".parse().unwrap(), "fd44:0:0:1::7".parse().unwrap()],
    }
}

fn create(spec: &PodLinkSpec<'_>) -> PodLink {
    create_pod(spec, |_| Ok(())).map_err(|error| describe(&error)).expect("is made")
}

/// Everything that could be left behind here: devices, routes, neighbours.
fn state() -> (Vec<Device>, Vec<Path>) {
    let mut socket = Socket::open().unwrap();
    (socket.devices().unwrap(), socket.routes().unwrap())
}

/// The host's own addresses, so that it can be talked to.
fn become_a_host() {
    let mut socket = Socket::open().unwrap();
    socket.set_up(1, true).unwrap();
    for address in ["192.0.2.1/32", "2001:db8::1/128"] {
        socket.add_address(1, address.parse().unwrap()).unwrap();
    }
}

/// A whole connection from here to there.
fn talk(from: Option<&NetNs>, to: Option<&NetNs>, address: IpAddr) {
    let listen = || TcpListener::bind((address, 0)).expect("binds");
    let listener = to.map_or_else(listen, |netns| netns.run(listen).expect("enters"));
    let port = listener.local_addr().unwrap().port();
    let connect = || TcpStream::connect_timeout(&(address, port).into(), Duration::from_secs(5)).expect("connects");
    drop(from.map_or_else(connect, |netns| netns.run(connect).expect("enters")));
}

#[test]
fn a_link_carries_both_families_both_ways_at_once() {
    in_netns(|| {
        become_a_host();
        let pod = NetNs::create().unwrap();
        let spec = spec(&pod, "weft1", "container/eth0");
        let link = create(&spec);
        for address in &spec.addresses {
            talk(None, Some(&pod), *address);
        }
        for host in ["192.0.2.1", "2001:db8::1"] {
            talk(Some(&pod), None, host.parse().unwrap());
        }
        check_pod(&spec).unwrap();
        let links = list().unwrap();
        assert_eq!(links.len(), 1);
        assert_eq!((links[0].name.as_str(), links[0].owner.as_str()), ("weft1", "container/eth0"));
        assert_eq!((links[0].ifindex, links[0].mac, links[0].up), (link.host_ifindex, Some(link.host_mac), true));
        assert_eq!(link.host_mac[0] & 3, 2, "locally administered, of one device");
    });
}

#[test]
fn the_first_packet_of_a_new_link_arrives() {
    use std::net::UdpSocket;
    in_netns(|| {
        become_a_host();
        for round in 0..20 {
            let pod = NetNs::create().unwrap();
            let spec = spec(&pod, "weft1", "a");
            let bind = |address: IpAddr| {
                let socket = UdpSocket::bind((address, 0)).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                socket
            };
            let host = bind("192.0.2.1".parse().unwrap());
            create(&spec);
            let inside = pod.run(|| bind(spec.addresses[0])).unwrap();
            let mut buffer = [0; 8];
            host.send_to(b"ping", inside.local_addr().unwrap()).unwrap();
            let (_, peer) =
                inside.recv_from(&mut buffer).unwrap_or_else(|error| panic!("round {round}: ping: {error}"));
            inside.send_to(b"pong", peer).unwrap();
            host.recv_from(&mut buffer).unwrap_or_else(|error| panic!("round {round}: pong: {error}"));
            assert!(delete("weft1").unwrap());
        }
    });
}

#[test]
fn the_pod_says_nothing_by_itself() {
    in_netns(|| {
        let pod = NetNs::create().unwrap();
        create(&spec(&pod, "weft1", "a"));
        let addresses = pod.run(|| Socket::open().unwrap().addresses().unwrap()).unwrap();
        let on_link: Vec<IpAddr> =
            addresses.iter().filter(|found| found.index != 1).map(|found| found.net.addr()).collect();
        let wanted: Vec<IpAddr> = vec!["10.244.1.7".parse().unwrap(), "fd44:0:0:1::7".parse().unwrap()];
        assert_eq!(on_link, wanted, "no link-local address");
        assert!(addresses.iter().all(|found| !found.second_choice), "usable at once: {addresses:?}");
    });
}

#[test]
fn two_hundred_links_leave_nothing_behind() {
    in_netns(|| {
        let before = state();
        let start = Instant::now();
        let mut creating = Duration::ZERO;
        for n in 0..200 {
            let pod = NetNs::create().unwrap();
            let started = Instant::now();
            create(&spec(&pod, "weft1", &format!("c{n}")));
            creating += started.elapsed();
            assert!(delete("weft1").unwrap());
        }
        println!("200 links in {:?}, {:?} to make one", start.elapsed(), creating / 200);
        assert!(!delete("weft1").unwrap());
        assert_eq!(state(), before);
    });
}

#[test]
fn links_are_made_side_by_side() {
    in_netns(|| {
        let here = NetNs::current().unwrap();
        std::thread::scope(|scope| {
            for worker in 0..8_u8 {
                let here = &here;
                scope.spawn(move || {
                    let work = || {
                        for n in 0..10_u8 {
                            let pod = NetNs::create().unwrap();
                            let name = format!("weft{worker}-{n}");
                            let mut spec = spec(&pod, &name, &name);
                            spec.addresses = vec![[10, 244, worker, n].into()];
                            create(&spec);
                            check_pod(&spec).unwrap();
                            assert!(delete(&name).unwrap());
                        }
                    };
                    here.run(work).unwrap();
                });
            }
        });
        assert_eq!(list().unwrap(), []);
    });
}

#[test]
fn whatever_fails_is_rolled_back() {
    in_netns(|| {
        let pod = NetNs::create().unwrap();
        let before = state();
        let inside = || pod.run(|| Socket::open().unwrap().devices().unwrap().len()).unwrap();
        let devices = inside();
        let attach = create_pod(&spec(&pod, "weft1", "a"), |_| Err(io::Error::other("no programs today")));
        let text = describe(&attach.unwrap_err());
        assert!(text.contains("attach the programs to weft1") && text.contains("no programs today"), "{text}");

        // Too small for IPv6: fails in the pod, after most has been done.
        let small = PodLinkSpec { mtu: 1000, ..spec(&pod, "weft1", "a") };
        let text = describe(&create_pod(&small, |_| Ok(())).unwrap_err());
        assert!(text.contains("ipv6") || text.contains("fd44"), "{text}");

        let panicked = std::panic::catch_unwind(|| create_pod(&spec(&pod, "weft1", "a"), |_| panic!("on the way")));
        assert!(panicked.is_err());
        assert_eq!(state(), before);
        assert_eq!(inside(), devices);
        create(&spec(&pod, "weft1", "a"));
    });
}

#[test]
fn no_packet_passes_before_the_programs_are_attached() {
    in_netns(|| {
        let pod = NetNs::create().unwrap();
        let attach = |link: &PodLink| {
            let here = Socket::open()?.device_at(link.host_ifindex)?.expect("is there");
            let there = pod.run(|| Socket::open().unwrap().device_at(link.pod_ifindex).unwrap().expect("is there"))?;
            assert!(!here.up && !there.up);
            Ok(())
        };
        create_pod(&spec(&pod, "weft1", "a"), attach).unwrap();
    });
}

#[test]
fn a_leftover_of_the_same_owner_is_replaced() {
    in_netns(|| {
        let (first, second) = (NetNs::create().unwrap(), NetNs::create().unwrap());
        let old = create(&spec(&first, "weft1", "a"));
        // The same pod again; then, as after a reboot of the runtime, another namespace.
        let again = create(&spec(&first, "weft1", "a"));
        assert_ne!(old.host_ifindex, again.host_ifindex);
        create(&spec(&second, "weft1", "a"));
        check_pod(&spec(&second, "weft1", "a")).unwrap();
        // Another host's name for the same pod.
        create(&spec(&second, "weft2", "a"));
        assert_eq!(list().unwrap().iter().map(|link| link.name.as_str()).collect::<Vec<_>>(), ["weft2"]);
    });
}

#[test]
fn what_a_killed_agent_left_unfinished_is_replaced() {
    in_netns(|| {
        let pod = NetNs::create().unwrap();
        let end = |name| VethEnd { name, mac: random_mac().unwrap() };
        Socket::open().unwrap().create_veth(end("weft1"), end("eth0"), pod.as_fd(), 1500).unwrap();
        create(&spec(&pod, "weft1", "a"));
        assert!(delete("weft1").unwrap());
        Socket::open().unwrap().create_veth(end("weft1"), end("eth0"), pod.as_fd(), 1500).unwrap();
        assert!(delete("weft1").unwrap());
    });
}

#[test]
fn other_peoples_devices_are_left_alone() {
    in_netns(|| {
        let (pod, other) = (NetNs::create().unwrap(), NetNs::create().unwrap());
        create(&spec(&other, "weft1", "b"));
        let error = create_pod(&spec(&pod, "weft1", "a"), |_| Ok(())).unwrap_err();
        assert_eq!(error.to_string(), "device name weft1 is taken by b");
        // A pair that somebody else uses.
        let mut socket = Socket::open().unwrap();
        let end = |name| VethEnd { name, mac: random_mac().unwrap() };
        socket.create_veth(end("mine"), end("eth0"), pod.as_fd(), 1500).unwrap();
        let index = socket.device("mine").unwrap().unwrap().index;
        socket.set_up(index, true).unwrap();
        let error = create_pod(&spec(&pod, "mine", "a"), |_| Ok(())).unwrap_err();
        assert_eq!(error.to_string(), "device name mine is taken");
        let error = create_pod(&spec(&pod, "weft2", "a"), |_| Ok(())).unwrap_err();
        assert_eq!(error.to_string(), "the pod already has a device eth0");
        assert!(delete("mine").is_err());
        assert!(delete("lo").is_err());
        let names: Vec<String> = list().unwrap().into_iter().map(|link| link.name).collect();
        assert_eq!(names, ["weft1"]);
    });
}

#[test]
fn a_check_names_what_is_missing() {
    in_netns(|| {
        let pod = NetNs::create().unwrap();
        let spec = spec(&pod, "weft1", "a");
        assert!(check_pod(&spec).unwrap_err().contains("no device weft1"));
        let link = create(&spec);
        check_pod(&spec).unwrap();
        let more = PodLinkSpec { addresses: vec!["10.244.1.8".parse().unwrap()], ..spec.clone() };
        assert!(check_pod(&more).unwrap_err().contains("no route to 10.244.1.8"));
        assert!(check_pod(&PodLinkSpec { mtu: 1500, ..spec.clone() }).unwrap_err().contains("MTU"));
        let mut socket = Socket::open().unwrap();
        let inside = || Socket::open().unwrap();
        pod.run(|| inside().set_up(link.pod_ifindex, false).unwrap()).unwrap();
        assert!(check_pod(&spec).unwrap_err().contains("eth0 is down"));
        pod.run(|| inside().set_up(link.pod_ifindex, true).unwrap()).unwrap();
        assert!(check_pod(&spec).is_err(), "routes went with the device's state");
        socket.set_up(link.host_ifindex, false).unwrap();
        assert!(check_pod(&spec).unwrap_err().contains("weft1 is down"));
    });
}

#[test]
fn a_bad_specification_names_the_field() {
    in_netns(|| {
        let pod = NetNs::create().unwrap();
        let field = |spec: PodLinkSpec<'_>| match create_pod(&spec, |_| Ok(())) {
            Err(LinkError::Invalid { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        for name in ["", "..", "a/b", "a b", "sixteen-letters!"] {
            assert_eq!(field(spec(&pod, name, "a")), "host_name", "{name}");
        }
        assert_eq!(field(PodLinkSpec { pod_name: "a:b".into(), ..spec(&pod, "weft1", "a") }), "pod_name");
        assert_eq!(field(spec(&pod, "weft1", "")), "owner");
        assert_eq!(field(spec(&pod, "weft1", &"x".repeat(300))), "owner");
        let longest = "x".repeat(OWNER_MAX);
        create(&spec(&pod, "weft1", &longest));
        assert_eq!(list().unwrap()[0].owner, longest);
    });
}
