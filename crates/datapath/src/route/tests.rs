//! These run as root, each in a network namespace of its own.

use super::*;
use crate::testing::in_netns;
use crate::tunnel::{TunnelSpec, ensure};

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// Destinations of our routes of that kind.
fn found(target: Target) -> Vec<IpNet> {
    let all = Socket::open().unwrap().routes().unwrap();
    let mut nets: Vec<IpNet> =
        all.into_iter().filter(|path| path.ours && path.target == target).map(|path| path.net).collect();
    nets.sort();
    nets
}

#[test]
fn routes_become_exactly_what_is_given() {
    in_netns(|| {
        let mut socket = Socket::open().unwrap();
        socket.set_up(1, true).unwrap();
        let sources: Vec<IpAddr> = vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        for source in &sources {
            socket.add_address(1, IpNet::from(*source)).unwrap();
        }
        let tunnel = ensure(&TunnelSpec { name: "weft_vxlan".into(), port: 8472, mtu: 1450 }).unwrap();
        let own = nets(&["10.244.1.0/24", "fd44:0:0:1::/64"]);
        set_unreachable(&own).unwrap();
        set_unreachable(&own).unwrap();
        let others = nets(&["10.244.2.0/24", "10.244.3.0/24", "fd44:0:0:2::/64"]);
        set_tunnel(&others, tunnel, &sources, 1450).unwrap();
        set_tunnel(&others, tunnel, &sources, 1450).unwrap();
        assert_eq!(found(Target::Unreachable), own);
        assert_eq!(found(Target::Device(tunnel)), others);
        let all = socket.routes().unwrap();
        let sourced = all.iter().filter(|path| path.target == Target::Device(tunnel) && path.ours);
        for path in sourced {
            assert!(path.source.is_some_and(|source| sources.contains(&source)), "{path:?}");
            assert_eq!(path.mtu, 1450);
        }

        // A node goes, one comes; the MTU changes. What is not ours stays.
        let foreign = Path { ours: false, ..Path::new("198.51.100.0/24".parse().unwrap(), Target::Device(1)) };
        socket.set_route(&foreign).unwrap();
        let others = nets(&["10.244.3.0/24", "10.244.4.0/24"]);
        set_tunnel(&others, tunnel, &sources, 1400).unwrap();
        assert_eq!(found(Target::Device(tunnel)), others);
        assert_eq!(found(Target::Unreachable), own);
        set_unreachable(&[]).unwrap();
        set_tunnel(&[], tunnel, &sources, 1400).unwrap();
        assert_eq!(found(Target::Unreachable), []);
        assert_eq!(found(Target::Device(tunnel)), []);
        assert!(socket.routes().unwrap().iter().any(|path| path.net == foreign.net));
    });
}

#[test]
fn the_nodes_device_is_found() {
    in_netns(|| {
        let peer = crate::netns::NetNs::create().unwrap();
        let error = crate::node::discover(None).unwrap_err();
        assert!(error.to_string().contains("no default route"), "{error}");
        let spec = crate::link::PodLinkSpec {
            host_name: "up0".into(),
            owner: "test".into(),
            netns: &peer,
            pod_name: "eth0".into(),
            host_mac: Some([2, 0, 0, 0, 0, 7]),
            pod_mac: None,
            mtu: 1480,
            addresses: vec!["192.0.2.254".parse().unwrap(), "2001:db8::fe".parse().unwrap()],
        };
        let link = crate::link::create_pod(&spec, |_| Ok(())).unwrap();
        let mut socket = Socket::open().unwrap();
        for address in ["192.0.2.1/24", "192.0.2.2/24", "2001:db8::1/64"] {
            socket.add_address(link.host_ifindex, address.parse().unwrap()).unwrap();
        }
        let any: IpNet = "0.0.0.0/0".parse().unwrap();
        let gateway = Target::Gateway(link.host_ifindex, "192.0.2.254".parse().unwrap());
        socket.set_route(&Path::new(any, gateway)).unwrap();
        let wanted = crate::node::NodeDevice {
            name: "up0".into(),
            ifindex: link.host_ifindex,
            mac: Some([2, 0, 0, 0, 0, 7]),
            mtu: 1480,
            v4: Some("192.0.2.1".parse().unwrap()),
            v6: Some("2001:db8::1".parse().unwrap()),
        };
        assert_eq!(crate::node::discover(None).unwrap(), wanted);
        assert_eq!(crate::node::discover(Some("up0")).unwrap(), wanted);
        let error = crate::node::discover(Some("up1")).unwrap_err();
        assert!(error.to_string().contains("there is no device up1"), "{error}");
        crate::node::prepare(true, true, "up0").unwrap();
        assert_eq!(crate::sysctl::read("net/ipv4/ip_forward").unwrap(), "1");
        assert_eq!(crate::sysctl::read("net/ipv6/conf/all/forwarding").unwrap(), "1");
    });
}
