//! Hostile neighbours: what a pod, a client outside or a machine of the nodes' network forges, to be taken for another one or
//! for a node.

use anyhow::Result;
use std::net::IpAddr;
use weft_abi::{DropReason, IpcacheInfo, identity, ipcache_flags, service_flags};
use weft_tests::packet::kernel::{DROP, Kernel, PASS, REDIRECT};
use weft_tests::packet::service::{frontend, put_cluster_ip, put_service};
use weft_tests::packet::site::{
    FAMILIES, Family, ID_A, ID_C, POD_A, Routing, TUNNEL, V4, addr, from_a, from_b, from_node, from_wire, isolate,
    on_node, put_policy,
};
use weft_tests::packet::stage::{any, dropped, forget, native, unwrap, vip};
use weft_tests::packet::{ACK, ETH, SYN, UDP, ip};

/// Where nodes take tunnel packets.
const PORT: u16 = 8472;

/// A third node, in both families.
const THIRD: [&str; 2] = ["172.31.0.13", "fd31::13"];

fn vxlan(test: impl Fn(&mut Kernel, Family) -> Result<()> + Send + Sync + Copy + 'static) {
    on_node(Routing::Vxlan, move |kernel| FAMILIES.iter().try_for_each(|family| test(kernel, *family)));
}

/// A tunnel packet from a node's IPv4 address.
pub fn wrap(node: &str, vni: u32, inner: &[u8]) -> Vec<u8> {
    let mut payload = vec![8, 0, 0, 0];
    payload.extend(&vni.to_be_bytes()[1..]);
    payload.push(0);
    payload.extend(inner);
    ip(node, V4.node).udp(50000, PORT, &payload)
}

fn know_third(kernel: &mut Kernel) -> Result<()> {
    for address in THIRD {
        let info = IpcacheInfo { identity: identity::REMOTE_NODE, flags: ipcache_flags::NODE, node: addr(THIRD[0]) };
        kernel.ipcache.insert(addr(address), info, 0)?;
    }
    Ok(())
}

#[test]
fn no_pod_reaches_the_tunnel_port_of_a_node_however_it_is_translated() {
    vxlan(|kernel, f| {
        know_third(kernel)?;
        let third = THIRD[usize::from(f.v6)];
        // An address that nobody knows may be a node's as well: it would see this node's own as the source.
        for to in [f.peer, f.node, third, f.world] {
            kernel.drain();
            let outcome = from_a(kernel, &ip(f.a, to).udp(50000, PORT, b"forged"))?;
            dropped(kernel, &outcome, DropReason::EncapsulationProhibited);
            put_cluster_ip(kernel, 1, frontend(vip(f), 53, UDP), &[(1, to, PORT)])?;
            let outcome = from_a(kernel, &ip(f.a, vip(f)).udp(50000, 53, b"forged"))?;
            dropped(kernel, &outcome, DropReason::EncapsulationProhibited);
            // By a node port, of either node.
            put_service(kernel, 2, frontend(any(f), 30053, UDP), service_flags::NODE_PORT, &[(2, to, PORT)])?;
            for node in [f.node, f.peer] {
                let outcome = from_a(kernel, &ip(f.a, node).udp(50001, 30053, b"forged"))?;
                dropped(kernel, &outcome, DropReason::EncapsulationProhibited);
            }
        }
        // Tunnels among pods are their own business.
        assert_eq!(from_a(kernel, &ip(f.a, f.b).udp(1, PORT, b"theirs"))?.action, REDIRECT);
        let outcome = from_a(kernel, &ip(f.a, f.c).udp(1, PORT, b"theirs"))?;
        assert_eq!((outcome.action, unwrap(&outcome.frame).0), (REDIRECT, ID_A));
        forget(kernel)
    });
    // Without a tunnel nobody believes what comes to that port.
    native(|kernel, f| {
        assert_eq!(from_a(kernel, &ip(f.a, f.world).udp(1, PORT, b"theirs"))?.action, REDIRECT);
        forget(kernel)
    });
}

#[test]
fn no_client_outside_reaches_the_tunnel_port_of_a_node_by_a_service() {
    vxlan(|kernel, f| {
        for flags in [service_flags::NODE_PORT, service_flags::NODE_PORT | service_flags::DSR] {
            for to in [f.peer, f.node, f.world] {
                put_service(kernel, 1, frontend(any(f), 30053, UDP), flags, &[(1, to, PORT)])?;
                kernel.drain();
                let outcome = from_wire(kernel, &ip(f.world, f.node).udp(50000, 30053, b"forged"))?;
                dropped(kernel, &outcome, DropReason::EncapsulationProhibited);
                forget(kernel)?;
            }
            put_service(kernel, 1, frontend(any(f), 30053, UDP), flags, &[(1, f.c, PORT)])?;
            assert_eq!(from_wire(kernel, &ip(f.world, f.node).udp(50000, 30053, b"a pod's"))?.action, REDIRECT);
            forget(kernel)?;
        }
        Ok(())
    });
}

#[test]
fn a_tunnel_packet_must_be_of_the_node_whose_pod_it_names() {
    vxlan(|kernel, f| {
        know_third(kernel)?;
        put_policy(kernel, 20, &[])?;
        isolate(kernel, f.b, 20, 0)?;
        kernel.bump(&[2])?;
        let world = weft_tests::packet::stage::world(f);
        let third = THIRD[usize::from(f.v6)];
        // (outer source, VNI, inner source): may it be?
        for (node, vni, from, fits) in [
            (V4.peer, ID_C, f.c, true),
            (V4.peer, ID_C, f.new, true),
            (V4.peer, identity::REMOTE_NODE, f.peer, true),
            (V4.peer, world, f.world, true),
            (V4.peer, world, f.peer, true),
            (THIRD[0], identity::REMOTE_NODE, third, true),
            // Another node's pod, known or not.
            (THIRD[0], ID_C, f.c, false),
            (THIRD[0], ID_C, f.new, false),
            (THIRD[0], identity::REMOTE_NODE, f.peer, false),
            // A pod's identity for what is no pod.
            (V4.peer, ID_C, f.world, false),
            (V4.peer, ID_C, f.peer, false),
            // A pod as a node, or as the world.
            (V4.peer, identity::REMOTE_NODE, f.c, false),
            (V4.peer, world, f.c, false),
            (V4.peer, world, f.new, false),
        ] {
            kernel.drain();
            let outcome = from_wire(kernel, &wrap(node, vni, &ip(from, f.a).tcp(1, 80, SYN, b"")))?;
            let what = format!("{from} by {node} as {vni}");
            if fits {
                assert_eq!(outcome.action, REDIRECT, "{what}");
            } else {
                let event = kernel.drain().pop().expect("an event");
                let found = (outcome.action, DropReason::from_raw(event.reason));
                assert_eq!(found, (DROP, Some(DropReason::InvalidIdentity)), "{what}");
            }
            forget(kernel)?;
        }
        isolate(kernel, f.b, 0, 0)
    });
}

#[test]
fn a_packet_is_unwrapped_once() {
    vxlan(|kernel, f| {
        let forged = wrap(V4.peer, ID_C, &ip(f.c, f.a).tcp(1, 80, SYN, b""));
        for to in [V4.node, V4.world] {
            let inner = ip(V4.peer, to).udp(50000, PORT, &forged[ETH + 28..]);
            kernel.drain();
            let outcome = from_wire(kernel, &wrap(V4.peer, identity::REMOTE_NODE, &inner))?;
            dropped(kernel, &outcome, DropReason::EncapsulationProhibited);
        }
        // In a pod's own tunnel.
        let inner = ip(f.c, f.a).udp(50000, PORT, &forged[ETH + 28..]);
        assert_eq!(from_wire(kernel, &wrap(V4.peer, ID_C, &inner))?.action, REDIRECT);
        forget(kernel)
    });
}

#[test]
fn what_the_stack_sends_by_the_tunnel_is_no_loop_for_its_receiver() {
    vxlan(|kernel, f| {
        let mut frame = ip(f.node, f.c).tcp(1, 80, SYN, b"");
        frame[..6].copy_from_slice(&weft_abi::TUNNEL_MAC);
        frame[6..12].copy_from_slice(&weft_abi::TUNNEL_MAC);
        let outcome = kernel.run("weft_to_tunnel", TUNNEL, &frame)?;
        assert_eq!(outcome.action, PASS);
        // For the receiving device, and not from it.
        assert_eq!(outcome.frame[..6], weft_abi::TUNNEL_MAC);
        assert_ne!(outcome.frame[6..12], weft_abi::TUNNEL_MAC);
        assert_eq!(outcome.frame[12..], frame[12..]);
        Ok(())
    });
}

/// Neighbour discovery and multicast listeners (RFC 4861, 3122, 2710, 3810).
const LINK_TYPES: [u8; 11] = [130, 131, 132, 133, 134, 135, 136, 137, 141, 142, 143];

#[test]
fn messages_of_the_link_are_the_nodes_and_no_way_into_a_pod() {
    for routing in [Routing::Native, Routing::Vxlan] {
        on_node(routing, |kernel| {
            let f = FAMILIES[1];
            put_policy(kernel, 20, &[])?;
            isolate(kernel, f.a, 20, 20)?;
            kernel.bump(&[1])?;
            for kind in LINK_TYPES {
                for ttl in [255, 254, 64, 1] {
                    let message = |from: &str, to: &str| ip(from, to).ttl(ttl).icmp(kind, 0, b"payload for somebody");
                    for from in ["fe80::bad", f.world, f.peer, f.c] {
                        kernel.drain();
                        let outcome = from_wire(kernel, &message(from, f.a))?;
                        dropped(kernel, &outcome, DropReason::ForbiddenIcmpv6);
                    }
                    // The node's own stack judges what is for it.
                    for to in ["fe80::11", f.node, "ff02::1"] {
                        assert_eq!(from_wire(kernel, &message("fe80::bad", to))?.action, PASS, "{kind} to {to}");
                    }
                    // To a pod's link: only what the node itself sends there.
                    let outcome = kernel.run("weft_to_pod", POD_A, &message("fe80::1", f.a))?;
                    let discovery = matches!(kind, 133..=137 | 141 | 142);
                    assert_eq!(outcome.action, if discovery && ttl == 255 { PASS } else { DROP }, "{kind} of {ttl}");
                    let outcome = kernel.run("weft_to_pod", POD_A, &message("fe80::1", "ff02::1"))?;
                    assert_eq!(outcome.action, if !discovery || ttl == 255 { PASS } else { DROP }, "{kind} of {ttl}");
                    // Nor from one pod to another, or out of the node.
                    for to in [f.a, f.c, f.world, f.node] {
                        assert_ne!(from_b(kernel, &message(f.b, to))?.action, REDIRECT, "{kind} to {to}");
                    }
                }
            }
            isolate(kernel, f.a, 0, 0)
        });
    }
}

#[test]
fn the_node_still_resolves_its_pods() {
    native(|kernel, f| {
        if f.v6 {
            let solicitation =
                ip("fe80::1", f.a).ttl(255).icmp(135, 0, &[&[0; 4][..], &f.a.parse::<IpAddr>().map(octets)?].concat());
            assert_eq!(kernel.run("weft_to_pod", POD_A, &solicitation)?.action, PASS);
        }
        assert_eq!(from_node(kernel, &ip(f.node, f.world).tcp(1, 80, ACK, b""))?.action, PASS);
        Ok(())
    });
}

/// Without policies: only what can have seen a packet may complain of it.
#[test]
fn errors_about_connections_of_others_pass_from_nobody() {
    for routing in [Routing::Native, Routing::Vxlan] {
        on_node(routing, move |kernel| {
            FAMILIES.iter().try_for_each(|family| errors_of_others(kernel, *family, routing))
        });
    }
}

fn errors_of_others(kernel: &mut Kernel, f: Family, routing: Routing) -> Result<()> {
    let by_network = |from: &str, vni: u32, frame: Vec<u8>| {
        if routing == Routing::Vxlan && from == f.c { wrap(V4.peer, vni, &frame) } else { frame }
    };
    for (to, seen_by_router) in [(f.b, false), (f.c, true), (f.world, true)] {
        let packet = ip(f.a, to).udp(4000, 53, b"question");
        assert_eq!(from_a(kernel, &packet)?.action, REDIRECT);
        let error = |from: &str| ip(from, f.a).unreachable(&packet);
        // Its other end.
        let heard = match to {
            to if to == f.b => from_b(kernel, &error(f.b))?,
            // What comes back to the masquerade quotes that.
            to if to == f.world => from_a(kernel, &packet)?,
            to => from_wire(kernel, &by_network(to, ID_C, error(to)))?,
        };
        assert_eq!(heard.action, REDIRECT, "{to}");
        // Pods that are none of its ends.
        if to != f.b {
            assert_eq!(from_b(kernel, &error(f.b))?.action, DROP, "{to}");
        }
        for pod in [f.c, f.new].into_iter().filter(|pod| *pod != to) {
            let outcome = from_wire(kernel, &by_network(pod, ID_C, error(pod)))?;
            assert_eq!(outcome.action, DROP, "{pod} of {to}");
        }
        // A router, or somebody outside who says so.
        for router in [f.gateway, "203.0.113.9", "2001:db8:9::9"].into_iter().filter(|one| one.contains(':') == f.v6) {
            let passes = from_wire(kernel, &error(router))?.action == REDIRECT;
            assert_eq!(passes, seen_by_router, "{router} of {to}");
        }
        forget(kernel)?;
    }
    Ok(())
}

#[test]
fn an_echo_request_is_no_answer() {
    for routing in [Routing::Native, Routing::Vxlan] {
        on_node(routing, |kernel| {
            FAMILIES.iter().try_for_each(|f| {
                put_policy(kernel, 20, &[])?;
                isolate(kernel, f.b, 0, 20)?;
                kernel.bump(&[2])?;
                assert_eq!(from_a(kernel, &ip(f.a, f.b).ping(7))?.action, REDIRECT);
                for _ in 0..2 {
                    kernel.drain();
                    let outcome = from_b(kernel, &ip(f.b, f.a).ping(7))?;
                    dropped(kernel, &outcome, DropReason::PolicyDenied);
                    assert_eq!(from_b(kernel, &ip(f.b, f.a).pong(7))?.action, REDIRECT, "the answer itself");
                }
                isolate(kernel, f.b, 0, 0)?;
                kernel.bump(&[2])?;
                assert_eq!(from_b(kernel, &ip(f.b, f.a).ping(7))?.action, REDIRECT, "allowed by itself");
                forget(kernel)
            })
        });
    }
}

#[test]
fn a_syn_is_no_answer() {
    for routing in [Routing::Native, Routing::Vxlan] {
        on_node(routing, |kernel| {
            FAMILIES.iter().try_for_each(|f| {
                put_policy(kernel, 20, &[])?;
                isolate(kernel, f.b, 0, 20)?;
                kernel.bump(&[2])?;
                let (open, back) = (ip(f.a, f.b), ip(f.b, f.a));
                assert_eq!(from_a(kernel, &open.tcp(4000, 80, SYN, b""))?.action, REDIRECT);
                assert_eq!(from_b(kernel, &back.tcp(80, 4000, SYN | ACK, b""))?.action, REDIRECT);
                for _ in 0..2 {
                    kernel.drain();
                    let outcome = from_b(kernel, &back.tcp(80, 4000, SYN, b""))?;
                    dropped(kernel, &outcome, DropReason::PolicyDenied);
                    // It harms nobody: the connection goes on.
                    assert_eq!(from_a(kernel, &open.tcp(4000, 80, ACK, b"x"))?.action, REDIRECT);
                    assert_eq!(from_b(kernel, &back.tcp(80, 4000, ACK, b"y"))?.action, REDIRECT);
                }
                isolate(kernel, f.b, 0, 0)?;
                kernel.bump(&[2])?;
                assert_eq!(from_b(kernel, &back.tcp(80, 4000, SYN, b""))?.action, REDIRECT, "allowed by itself");
                forget(kernel)
            })
        });
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
