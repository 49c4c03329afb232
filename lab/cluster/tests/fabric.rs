//! The network between the nodes carries what a cloud's network would, and nothing else. Needs root.

use ipnet::IpNet;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use weft_lab_cluster::fabric::{self, PodCidrs};
use weft_lab_config::{Config, UpOptions};
use weft_sys::netlink::Netlink;
use weft_sys::netns;

/// A fabric that goes when the test does.
struct Fabric(Config);

impl Drop for Fabric {
    fn drop(&mut self) {
        let paths = self.0.paths();
        fabric::remove(&paths).expect("the namespaces can be removed");
        assert!(!netns::list().iter().any(|n| paths.owns_netns(n)), "a namespace is left");
    }
}

impl Fabric {
    fn new(test: &str, routing: &str) -> Self {
        let name = format!("{test}{}", std::process::id());
        let options = UpOptions { name, nodes: Some(3), routing: Some(routing.into()), ..UpOptions::default() };
        let fabric = Self(options.check().expect("the options are fine"));
        fabric::create(&fabric.0).expect("the fabric can be made");
        fabric
    }

    fn node(&self, number: u8) -> PathBuf {
        netns::path(&self.0.paths().node_netns(&format!("node-{number}")))
    }

    fn outside(&self) -> PathBuf {
        netns::path(&self.0.paths().outside_netns())
    }

    /// Gives a node addresses as if pods had them.
    fn pods(&self, number: u8) -> Vec<IpAddr> {
        let addresses: Vec<IpAddr> = [format!("10.244.{number}.5"), format!("fd44:0:0:{number}::5")]
            .iter()
            .map(|a| a.parse().expect("an address"))
            .collect();
        netns::within(&self.node(number), || {
            let mut netlink = Netlink::open()?;
            addresses.iter().try_for_each(|a| netlink.add_address("lo", IpNet::from(*a)))
        })
        .expect("addresses can be added");
        addresses
    }

    fn assigned(&self) -> PodCidrs {
        (1..=2)
            .map(|number| {
                let nets = [format!("10.244.{number}.0/24"), format!("fd44:0:0:{number}::/64")];
                (format!("node-{number}"), nets.iter().map(|n| n.parse().expect("a prefix")).collect())
            })
            .collect()
    }

    fn apply(&self, cidrs: &PodCidrs) {
        fabric::apply(&self.0, cidrs).expect("the fabric takes prefixes");
    }
}

/// Whether a datagram from one address gets to the other.
fn arrives(from: (&PathBuf, IpAddr), to: (&PathBuf, IpAddr)) -> bool {
    let receiver = netns::within(to.0, || UdpSocket::bind((to.1, 0))).expect("binds");
    receiver.set_read_timeout(Some(Duration::from_millis(200))).expect("sets");
    let target = receiver.local_addr().expect("has one");
    netns::within(from.0, || {
        let sender = UdpSocket::bind((from.1, 0))?;
        // The first packets may wait for a neighbour; a refusal by the fabric is what is looked for.
        (0..3).try_for_each(|_| sender.send_to(b"x", target).map(drop).or_else(unreachable_is_fine))
    })
    .expect("sends");
    receiver.recv(&mut [0; 8]).is_ok()
}

/// As [`arrives`], but patient: a link that was just made drops packets until the kernel has activated it.
fn reaches(from: (&PathBuf, IpAddr), to: (&PathBuf, IpAddr)) -> bool {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !arrives(from, to) {
        if Instant::now() > deadline {
            return false;
        }
    }
    true
}

fn unreachable_is_fine(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Ok(()),
        _ => Err(error),
    }
}

#[test]
fn nodes_reach_each_other_and_the_outside() {
    let fabric = Fabric::new("fn", "native");
    let (one, two) = (fabric.node(1), fabric.node(2));
    for (near, far) in fabric.0.node_addresses(1).into_iter().zip(fabric.0.node_addresses(2)) {
        assert!(reaches((&one, near), (&two, far)), "{near} to {far}");
        assert!(reaches((&two, far), (&one, near)), "{far} to {near}");
    }
    for (near, far) in fabric.0.node_addresses(1).into_iter().zip(fabric.0.outside_addresses()) {
        let listener = netns::within(&fabric.outside(), || TcpListener::bind((far, 0))).expect("binds");
        let target: SocketAddr = listener.local_addr().expect("has one");
        let mut stream = netns::within(&one, || TcpStream::connect_timeout(&target, Duration::from_secs(3)))
            .unwrap_or_else(|e| panic!("{near} to the outside: {e}"));
        let (mut other, peer) = listener.accept().expect("accepts");
        assert_eq!(peer.ip(), near);
        stream.write_all(b"x").expect("sends");
        other.read_exact(&mut [0; 1]).expect("arrives");
    }
}

#[test]
fn pod_addresses_are_carried_only_from_and_to_the_node_that_has_them() {
    let fabric = Fabric::new("fp", "native");
    let (one, two) = (fabric.node(1), fabric.node(2));
    let (pods_one, pods_two) = (fabric.pods(1), fabric.pods(2));
    for (a, b) in fabric.0.node_addresses(1).into_iter().zip(fabric.0.node_addresses(2)) {
        assert!(reaches((&one, a), (&two, b)), "{a} to {b}");
    }
    for (a, b) in pods_one.iter().zip(&pods_two) {
        assert!(!arrives((&one, *a), (&two, *b)), "{a} to {b} before anything is assigned");
    }
    fabric.apply(&fabric.assigned());
    for (a, b) in pods_one.iter().zip(&pods_two) {
        assert!(reaches((&one, *a), (&two, *b)), "{a} to {b}");
        assert!(reaches((&two, *b), (&one, *a)), "{b} to {a}");
    }
    // Each node with the other's addresses: a wrong source goes nowhere.
    for (number, addresses) in [(1, &pods_two), (2, &pods_one)] {
        netns::within(&fabric.node(number), || {
            let mut netlink = Netlink::open()?;
            addresses.iter().try_for_each(|a| netlink.add_address("lo", IpNet::from(*a)))
        })
        .expect("addresses can be added");
    }
    for (wrong, third) in pods_two.iter().zip(fabric.0.node_addresses(3)) {
        assert!(!arrives((&one, *wrong), (&fabric.node(3), third)), "{wrong} from node 1");
        assert!(reaches((&two, *wrong), (&fabric.node(3), third)), "{wrong} from node 2");
    }
    // Pods' addresses never reach the outside.
    for (pod, outside) in pods_one.iter().zip(fabric.0.outside_addresses()) {
        assert!(!arrives((&one, *pod), (&fabric.outside(), outside)), "{pod} to the outside");
    }
    // Taken away again.
    fabric.apply(&PodCidrs::new());
    for (a, b) in pods_one.iter().zip(fabric.0.node_addresses(2)) {
        assert!(!arrives((&one, *a), (&two, b)), "{a} to {b} after it was taken away");
    }
}

#[test]
fn vxlan_needs_no_pod_addresses_and_gets_none() {
    let fabric = Fabric::new("fv", "vxlan");
    let (pods_one, pods_two) = (fabric.pods(1), fabric.pods(2));
    for (a, b) in fabric.0.node_addresses(1).into_iter().zip(fabric.0.node_addresses(2)) {
        assert!(reaches((&fabric.node(1), a), (&fabric.node(2), b)), "{a} to {b}");
    }
    fabric.apply(&fabric.assigned());
    for (a, b) in pods_one.iter().zip(&pods_two) {
        assert!(!arrives((&fabric.node(1), *a), (&fabric.node(2), *b)), "{a} to {b}");
    }
    // A second build changes nothing.
    fabric::create(&fabric.0).expect("again");
    for (a, b) in fabric.0.node_addresses(1).into_iter().zip(fabric.0.node_addresses(2)) {
        assert!(reaches((&fabric.node(1), a), (&fabric.node(2), b)), "{a} to {b}");
    }
}

/// Addresses that a load balancer gives out.
const SERVED: [&str; 2] = ["203.0.113.7", "2001:db8:7::7"];

fn serving(test: &str, forwarding: bool) -> Fabric {
    let options = UpOptions {
        name: format!("{test}{}", std::process::id()),
        nodes: Some(3),
        fabric_route: vec!["203.0.113.0/24=node-1,node-2".into(), "2001:db8:7::/64=node-1,node-2".into()],
        fabric_ip_forwarding: forwarding,
        ..UpOptions::default()
    };
    let fabric = Fabric(options.check().expect("the options are fine"));
    fabric::create(&fabric.0).expect("the fabric can be made");
    fabric::create(&fabric.0).expect("a second time changes nothing");
    for number in 1..=3 {
        netns::within(&fabric.node(number), || {
            let mut netlink = Netlink::open()?;
            SERVED.iter().try_for_each(|a| netlink.add_address("lo", IpNet::from(a.parse::<IpAddr>().expect("one"))))
        })
        .expect("addresses can be added");
    }
    fabric
}

#[test]
fn addresses_of_load_balancers_go_to_their_nodes_and_are_answered_by_them_alone() {
    let fabric = serving("fl", false);
    for (served, outside) in SERVED.iter().zip(fabric.0.outside_addresses()) {
        let address: IpAddr = served.parse().expect("an address");
        // Connections are spread: some port goes to each of the two nodes, none to the third.
        let listeners: Vec<TcpListener> = (1..=3)
            .map(|number| {
                let bound = netns::within(&fabric.node(number), || TcpListener::bind((address, 7000)));
                let listener = bound.expect("binds");
                listener.set_nonblocking(true).expect("sets");
                listener
            })
            .collect();
        let mut seen = [false; 3];
        let deadline = Instant::now() + Duration::from_secs(20);
        while !(seen[0] && seen[1]) {
            assert!(Instant::now() < deadline, "{address}: reached {seen:?}");
            let target = SocketAddr::new(address, 7000);
            let connected =
                netns::within(&fabric.outside(), || TcpStream::connect_timeout(&target, Duration::from_secs(1)));
            for (listener, seen) in listeners.iter().zip(&mut seen) {
                *seen |= connected.is_ok() && listener.accept().is_ok();
            }
        }
        assert_eq!(seen, [true, true, false]);
        assert!(!arrives((&fabric.node(3), address), (&fabric.outside(), outside)), "{address} from node 3");
    }
}

#[test]
fn with_ip_forwarding_nodes_answer_for_each_other_but_not_for_pods() {
    let fabric = serving("ff", true);
    fabric.apply(&fabric.assigned());
    let pods = fabric.pods(3);
    for ((served, outside), pod) in SERVED.iter().zip(fabric.0.outside_addresses()).zip(pods) {
        let address: IpAddr = served.parse().expect("an address");
        assert!(reaches((&fabric.node(3), address), (&fabric.outside(), outside)), "{address} from node 3");
        assert!(!arrives((&fabric.node(3), pod), (&fabric.outside(), outside)), "{pod} to the outside");
    }
}
