//! Ports that the node's own sockets keep off.

use super::*;
use crate::PortGuard;

const IN_USE: &str = "error 98";

#[test]
fn the_node_keeps_off_ports_that_services_have() {
    in_netns(|| {
        let scene = Scene::new();
        let (mut node, pod) = (scene.process(), NetNs::create().unwrap());
        let _server = serve(&pod);
        let mut in_pod = Process::start(&pod, Some(&scene.group.0));
        for protocol in ["tcp", "udp"] {
            assert_eq!(node.ask(&format!("bind {protocol} 0.0.0.0:30080")), "0.0.0.0:30080", "nobody has it yet");
        }
        scene.tables.service("0.0.0.0", 30_080, 1, &V4.backends, |info| info.flags = service_flags::NODE_PORT);
        scene.tables.service("::", 30_081, 2, &V6.backends, |info| info.flags = service_flags::NODE_PORT);
        scene.tables.service("0.0.0.0", 30_082, 3, &V4.backends, |info| info.flags = service_flags::HOST_PORT);
        let cases = [
            ("0.0.0.0:30080", true),
            ("127.0.0.1:30080", true),
            ("[::ffff:192.0.2.1]:30080", true),
            ("[::]:30080", true),
            ("[::1]:30080", false),
            ("[::]:30081", true),
            ("[2001:db8:6::1]:30081", true),
            ("0.0.0.0:30081", false),
            ("0.0.0.0:30082", false),
        ];
        for (address, refused) in cases {
            for protocol in ["tcp", "udp"] {
                let answer = node.ask(&format!("bind {protocol} {address}"));
                assert_eq!(answer, if refused { IN_USE } else { address }, "{protocol}");
                assert_eq!(in_pod.ask(&format!("bind {protocol} {address}")), address, "a pod's ports are its own");
            }
        }
        for address in ["0.0.0.0:0", "[::]:0"] {
            assert!(!node.ask(&format!("bind tcp {address}")).starts_with("error"));
        }
        // Of other kinds the address itself.
        let balancer = |info: &mut FrontendInfo| info.flags = service_flags::LOAD_BALANCER;
        let external = |info: &mut FrontendInfo| info.flags = service_flags::EXTERNAL_IP;
        scene.tables.service(V4.node, 81, 4, &V4.backends, balancer);
        scene.tables.service(V6.node, 81, 5, &V6.backends, external);
        for protocol in ["tcp", "udp"] {
            for address in ["192.0.2.1:81", "[::ffff:192.0.2.1]:81", "[2001:db8:6::1]:81"] {
                assert_eq!(node.ask(&format!("bind {protocol} {address}")), IN_USE);
            }
            for address in ["127.0.0.1:81", "[::1]:81"] {
                assert_eq!(node.ask(&format!("bind {protocol} {address}")), address);
            }
        }
    });
}

#[test]
fn a_whole_range_of_ports_is_kept_or_none_at_all() {
    in_netns(|| {
        let mut scene = Scene::new();
        let (mut node, pod) = (scene.process(), NetNs::create().unwrap());
        let mut in_pod = Process::start(&pod, Some(&scene.group.0));
        pod.run(|| Socket::open().unwrap().set_up(1, true).unwrap()).unwrap();
        scene.tables.service("0.0.0.0", 30_080, 1, &V4.backends, |info| info.flags = service_flags::NODE_PORT);
        let mut guard = |guard| {
            let settings = NodeSettings {
                node_v4: Some(V4.node.parse().unwrap()),
                node_v6: Some(V6.node.parse().unwrap()),
                guard,
                ..swap::settings()
            };
            scene.datapath.configure(&settings).unwrap();
        };
        guard(PortGuard::Range(30_000..=30_100));
        for protocol in ["tcp", "udp"] {
            for (port, refused) in [(29_999, false), (30_000, true), (30_080, true), (30_100, true), (30_101, false)] {
                for host in ["0.0.0.0", "127.0.0.1", "[::]", "[::1]"] {
                    let address = format!("{host}:{port}");
                    let answer = node.ask(&format!("bind {protocol} {address}"));
                    assert_eq!(answer, if refused { IN_USE } else { &address }, "{protocol}");
                    assert_eq!(in_pod.ask(&format!("bind {protocol} {address}")), address, "a pod's ports are its own");
                }
            }
            assert!(!node.ask(&format!("bind {protocol} 0.0.0.0:0")).starts_with("error"));
        }
        // The agent's own, which listens where Services want it to.
        for address in ["0.0.0.0:30001", "[::]:30080"] {
            assert_eq!(node.ask(&format!("bind-marked {address}")), address);
        }
        guard(PortGuard::None);
        for address in ["0.0.0.0:30000", "0.0.0.0:30080", "[::]:30080"] {
            assert_eq!(node.ask(&format!("bind tcp {address}")), address);
        }
    });
}
