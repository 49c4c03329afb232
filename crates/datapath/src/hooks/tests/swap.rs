//! Packets through the programs, also while agents come and go.

use super::*;
use crate::{NodeSettings, Timeouts};
use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use weft_model::desired::{Dataplane, Endpoint, IpcacheEntry, Touched};
use weft_model::id::{EndpointId, Identity, PolicyId};

pub(super) fn settings() -> NodeSettings {
    NodeSettings {
        device_ifindex: 1,
        device_mac: Some([2, 0, 0, 0, 0, 9]),
        tunnel: None,
        node_v4: Some("192.0.2.1".parse().unwrap()),
        node_v6: Some("2001:db8::1".parse().unwrap()),
        pod_mtu: 1500,
        nat_ports: 12_000..=29_999,
        guard: crate::PortGuard::Services,
        masquerade_v4: true,
        masquerade_v6: true,
        dual_stack: true,
        timeouts: Timeouts::default(),
        events_per_s: 1000,
    }
}

/// Makes a pod that the programs know.
pub(super) fn join(datapath: &mut Datapath, netns: &NetNs, id: u16) -> [IpAddr; 2] {
    let addresses: [IpAddr; 2] =
        [format!("10.244.1.{id}").parse().unwrap(), format!("fd44:0:0:1::{id}").parse().unwrap()];
    let name = format!("weft{id}");
    let spec = PodLinkSpec { addresses: addresses.to_vec(), ..pod(netns, &name) };
    let hooks = datapath.hooks();
    let attach = |link: &crate::link::PodLink| hooks.attach_endpoint(&link.host_name, link.host_ifindex);
    let link = create_pod(&spec, attach).map_err(|error| describe(&error)).unwrap();
    let identity = Identity::allocated(300 + u32::from(id)).unwrap();
    let endpoint = Endpoint {
        id: EndpointId::new(id).unwrap(),
        addresses: addresses.to_vec(),
        ifindex: link.host_ifindex,
        pod_mac: link.pod_mac,
        host_mac: link.host_mac,
        identity,
        ingress: PolicyId::OPEN,
        egress: PolicyId::OPEN,
        blocked: false,
        audit: false,
    };
    datapath.put_endpoint(&endpoint).unwrap();
    for address in addresses {
        datapath.set_ipcache(address, Some(&IpcacheEntry { identity, node: None, is_node: false })).unwrap();
    }
    addresses
}

/// Sends numbers and waits for each to come back, until told to stop. Returns how many did.
fn ping_pong(from: &NetNs, to: &NetNs, address: IpAddr, stop: &AtomicBool, count: &AtomicU32) -> u32 {
    let socket = |netns: &NetNs, bind: IpAddr| {
        let socket = netns.run(|| UdpSocket::bind((bind, 0)).unwrap()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket
    };
    let server = socket(to, address);
    let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let client = socket(from, any);
    client.connect(server.local_addr().unwrap()).unwrap();
    let (mut sent, mut buffer) = (0_u32, [0; 64]);
    while !stop.load(Ordering::Relaxed) {
        client.send(&sent.to_be_bytes()).unwrap();
        let (length, peer) =
            server.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{address}: packet {sent}: {error}"));
        server.send_to(&buffer[..length], peer).unwrap();
        let length = client.recv(&mut buffer).unwrap_or_else(|error| panic!("{address}: answer {sent}: {error}"));
        assert_eq!(buffer[..length], sent.to_be_bytes());
        sent += 1;
        count.store(sent, Ordering::Relaxed);
    }
    sent
}

#[test]
fn no_packet_is_lost_while_agents_come_and_go() {
    in_netns(|| {
        let dir = BpfDir::new();
        let (mut datapath, _) = open(&dir);
        datapath.configure(&settings()).unwrap();
        let (one, two) = (NetNs::create().unwrap(), NetNs::create().unwrap());
        join(&mut datapath, &one, 1);
        let there = join(&mut datapath, &two, 2);
        datapath.bump(&Touched::Node).unwrap();

        let (stop, counts) = (AtomicBool::new(false), [AtomicU32::new(0), AtomicU32::new(0)]);
        std::thread::scope(|scope| {
            let streams: Vec<_> = std::iter::zip(there, &counts)
                .map(|(address, count)| {
                    let (one, two, stop) = (&one, &two, &stop);
                    scope.spawn(move || ping_pong(one, two, address, stop, count))
                })
                .collect();
            let mut datapath = Some(datapath);
            for round in 0..6 {
                drop(datapath.take());
                if round % 3 == 0 {
                    // Another build: every program is replaced by one that was made anew.
                    fs::remove_dir_all(dir.inside("programs")).unwrap();
                }
                let (mut next, adopted) = open(&dir);
                assert_eq!(adopted.links.len(), 4, "{adopted:?}");
                next.bump(&Touched::Node).unwrap();
                datapath = Some(next);
                // Something must have passed since.
                let before = counts.each_ref().map(|count| count.load(Ordering::Relaxed));
                while !streams.iter().any(std::thread::ScopedJoinHandle::is_finished)
                    && std::iter::zip(&counts, before).any(|(count, before)| count.load(Ordering::Relaxed) <= before)
                {
                    std::thread::yield_now();
                }
            }
            stop.store(true, Ordering::Relaxed);
            for stream in streams {
                let passed = stream.join().expect("nothing is lost");
                println!("{passed} round trips");
            }
            let datapath = datapath.expect("is open");
            // It was the programs that carried them, not the host's routes.
            let connections = datapath.flows().list(100).unwrap();
            assert_eq!(connections.len(), 2, "{connections:?}");
            assert!(datapath.metrics().unwrap().read().unwrap().iter().any(|counter| counter.reason == 0));
        });
    });
}

#[test]
fn what_an_unknown_pod_sends_is_dropped_and_reported() {
    in_netns(|| {
        let dir = BpfDir::new();
        let (mut datapath, _) = open(&dir);
        datapath.configure(&settings()).unwrap();
        let netns = NetNs::create().unwrap();
        make(&datapath.hooks(), &netns, "weft1");
        let mut reader = datapath.events().unwrap();
        let to: std::net::SocketAddr = "192.0.2.1:7".parse().unwrap();
        let send = || UdpSocket::bind("10.244.1.7:0").unwrap().send_to(b"hello", to).unwrap();
        netns.run(send).unwrap();
        let mut events = Vec::new();
        let is_ours = |event: &&weft_abi::Event| IpAddr::from(event.destination) == to.ip();
        let event = loop {
            assert!(reader.wait(Some(Duration::from_secs(10))).unwrap(), "no report: {events:?}");
            reader.read(&mut events, 100);
            if let Some(event) = events.iter().find(is_ours) {
                break *event;
            }
        };
        assert_eq!((event.kind, event.verdict), (weft_abi::event_kind::DROP, weft_abi::verdict::DROPPED));
        assert_eq!((IpAddr::from(event.source), u16::from_be(event.destination_port_be)), ([10, 244, 1, 7].into(), 7));
        let counters = datapath.metrics().unwrap().read().unwrap();
        assert!(counters.iter().any(|counter| counter.reason == event.reason && counter.packets > 0), "{counters:?}");
        assert_eq!(reader.malformed(), 0);
        assert_eq!(datapath.flows().list(10).unwrap(), []);
    });
}
