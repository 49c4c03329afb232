//! Packets of clients outside to services: at ports of the node and at addresses that lead to it, to backends here and
//! elsewhere; and errors about them.

use anyhow::{Context, Result};
use std::net::IpAddr;
use weft_abi::{DropReason, FrontendKey, flow_kind, identity, service_flags};
use weft_tests::packet::kernel::{DROP, Kernel, Outcome, PASS, REDIRECT};
use weft_tests::packet::service::{frontend, put_cluster_ip, put_range, put_service};
use weft_tests::packet::site::{
    FAMILIES, Family, HOST_MAC_B, ID_C, MAC_B, Routing, V4, allow_port, from_a, from_b, from_wire, isolate, on_node,
    put_policy,
};
use weft_tests::packet::stage::{forget_all, talk};
use weft_tests::packet::{ACK, ETH, RST, Read, SCTP, TCP, UDP, ip, quoted, read};

fn native(test: impl Fn(&mut Kernel, Family) -> Result<()> + Send + Sync + Copy + 'static) {
    on_node(Routing::Native, move |kernel| FAMILIES.iter().try_for_each(|family| test(kernel, *family)));
}

fn parsed(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// An address of a load balancer, which is not the node's.
fn balancer(f: Family) -> &'static str {
    if f.v6 { "2001:db8:7::7" } else { "203.0.113.7" }
}

fn any(f: Family) -> &'static str {
    if f.v6 { "::" } else { "0.0.0.0" }
}

fn passed(outcome: &Outcome) -> Read {
    assert_eq!(outcome.action, REDIRECT);
    read(&outcome.frame)
}

fn ends(read: &Read) -> (IpAddr, u16, IpAddr, u16) {
    (read.source, read.source_port(), read.destination, read.destination_port())
}

fn dropped(kernel: &mut Kernel, outcome: &Outcome, reason: DropReason) {
    let event = kernel.drain().pop().expect("an event");
    assert_eq!((outcome.action, DropReason::from_raw(event.reason)), (DROP, Some(reason)));
}

fn world(f: Family) -> u32 {
    if f.v6 { identity::WORLD_IPV6 } else { identity::WORLD_IPV4 }
}

#[test]
fn a_backend_here_sees_the_client_and_answers_in_the_name_of_the_service() {
    native(|kernel, f| {
        put_policy(
            kernel,
            9,
            &[allow_port(world(f), TCP, 8080), allow_port(world(f), UDP, 8080), allow_port(world(f), SCTP, 8080)],
        )?;
        isolate(kernel, f.b, 9, 9)?;
        kernel.bump(&[2])?;
        for protocol in [TCP, UDP, SCTP] {
            for (key, kind, address) in [
                (frontend(any(f), 30080, protocol), service_flags::NODE_PORT, f.node),
                (frontend(balancer(f), 30080, protocol), service_flags::LOAD_BALANCER, balancer(f)),
            ] {
                put_service(kernel, 1, key, kind, &[(1, f.b, 8080)])?;
                for round in 0..3 {
                    let question = talk(protocol, (f.world, 7000), (address, 30080), false);
                    let seen = passed(&from_wire(kernel, &question)?);
                    assert_eq!(ends(&seen), (parsed(f.world), 7000, parsed(f.b), 8080));
                    assert_eq!((seen.destination_mac, seen.source_mac, seen.ttl), (MAC_B, HOST_MAC_B, 63));
                    let answer = talk(protocol, (f.b, 8080), (f.world, 7000), true);
                    let heard = passed(&from_b(kernel, &answer)?);
                    assert_eq!(ends(&heard), (parsed(address), 30080, parsed(f.world), 7000));
                    if round == 1 {
                        kernel.bump(&[0])?;
                    }
                }
                forget_all(kernel)?;
            }
        }
        // Policy knows the real client, and what it denies leaves nothing.
        put_policy(kernel, 10, &[allow_port(ID_C, TCP, 8080)])?;
        isolate(kernel, f.b, 10, 0)?;
        kernel.bump(&[2])?;
        put_service(kernel, 1, frontend(any(f), 30080, TCP), service_flags::NODE_PORT, &[(1, f.b, 8080)])?;
        kernel.drain();
        let outcome = from_wire(kernel, &talk(TCP, (f.world, 7000), (f.node, 30080), false))?;
        dropped(kernel, &outcome, DropReason::PolicyDenied);
        assert!(kernel.connections()?.is_empty());
        passed(&from_wire(kernel, &talk(TCP, (f.c, 7000), (f.node, 30080), false))?);
        isolate(kernel, f.b, 0, 0)?;
        forget_all(kernel)
    });
}

#[test]
fn a_backend_elsewhere_sees_the_node_and_answers_come_back_through_it() {
    native(|kernel, f| {
        for protocol in [TCP, UDP, SCTP] {
            put_service(kernel, 1, frontend(any(f), 30080, protocol), service_flags::NODE_PORT, &[(1, f.c, 8080)])?;
            let mut port = None;
            for round in 0..3 {
                let question = talk(protocol, (f.world, 7000), (f.node, 30080), false);
                let seen = passed(&from_wire(kernel, &question)?);
                assert_eq!(
                    (seen.source, seen.destination, seen.destination_port()),
                    (parsed(f.node), parsed(f.c), 8080)
                );
                let own = *port.get_or_insert(seen.source_port());
                assert_eq!(seen.source_port(), own, "the same for the whole connection");
                let answer = talk(protocol, (f.c, 8080), (f.node, own), true);
                let heard = passed(&from_wire(kernel, &answer)?);
                assert_eq!(ends(&heard), (parsed(f.node), 30080, parsed(f.world), 7000));
                if round == 1 {
                    kernel.bump(&[0])?;
                }
            }
            // Another client with the same port is another one.
            let second = if f.v6 { "2001:db8:100::66" } else { "198.51.100.66" };
            let outcome = from_wire(kernel, &talk(protocol, (second, 7000), (f.node, 30080), false))?;
            if protocol != SCTP {
                assert_ne!(Some(passed(&outcome).source_port()), port);
            }
            forget_all(kernel)?;
        }
        Ok(())
    });
}

/// The inner frame of a VXLAN packet, with its VNI.
fn unwrap(frame: &[u8]) -> (u32, Vec<u8>) {
    let outer = read(frame);
    assert_eq!((outer.source, outer.destination, outer.protocol), (parsed(V4.node), parsed(V4.peer), UDP));
    let vni = u32::from_be_bytes([0, outer.rest[12], outer.rest[13], outer.rest[14]]);
    (vni, outer.rest[16..].to_vec())
}

/// A VXLAN packet from the other node.
fn wrap(vni: u32, inner: &[u8]) -> Vec<u8> {
    let mut payload = vec![8, 0, 0, 0];
    payload.extend(&vni.to_be_bytes()[1..]);
    payload.push(0);
    payload.extend(inner);
    ip(V4.peer, V4.node).udp(50000, 8472, &payload)
}

#[test]
fn the_tunnel_carries_clients_to_backends_elsewhere_and_their_answers() {
    on_node(Routing::Vxlan, |kernel| {
        for f in FAMILIES {
            put_service(kernel, 1, frontend(any(f), 30080, TCP), service_flags::NODE_PORT, &[(1, f.c, 8080)])?;
            let mut port = None;
            for round in 0..3 {
                let outcome = from_wire(kernel, &talk(TCP, (f.world, 7000), (f.node, 30080), false))?;
                assert_eq!(outcome.action, REDIRECT);
                let (vni, inner) = unwrap(&outcome.frame);
                let seen = read(&inner);
                assert_eq!(vni, world(f));
                assert_eq!(
                    (seen.source, seen.destination, seen.destination_port()),
                    (parsed(f.node), parsed(f.c), 8080)
                );
                let own = *port.get_or_insert(seen.source_port());
                assert_eq!(seen.source_port(), own);
                let answer = wrap(ID_C, &talk(TCP, (f.c, 8080), (f.node, own), true));
                let heard = passed(&from_wire(kernel, &answer)?);
                assert_eq!(ends(&heard), (parsed(f.node), 30080, parsed(f.world), 7000));
                if round == 1 {
                    kernel.bump(&[0])?;
                }
            }
            // What does not fit the tunnel is told in the service's name.
            let large = ip(f.world, f.node).tcp(7000, 30080, ACK, &[5; 1430]);
            let told = passed(&from_wire(kernel, &large)?);
            assert_eq!((told.source, told.destination), (parsed(f.node), parsed(f.world)));
            assert_eq!(told.rest[..2], if f.v6 { [2, 0] } else { [3, 4] });
            assert_eq!(told.rest[6..8], 1450_u16.to_be_bytes());
            assert_eq!(quoted(&told)[ETH + 40..ETH + 60], large[ETH + 40..ETH + 60]);
            forget_all(kernel)?;
        }
        Ok(())
    });
}

#[test]
fn a_backend_in_another_nodes_network_is_reached_without_the_tunnel() {
    for routing in [Routing::Native, Routing::Vxlan] {
        on_node(routing, |kernel| {
            for f in FAMILIES {
                let question = talk(TCP, (f.world, 7000), (f.node, 30080), false);
                put_service(kernel, 1, frontend(any(f), 30080, TCP), service_flags::NODE_PORT, &[(1, f.peer, 8080)])?;
                let seen = passed(&from_wire(kernel, &question)?);
                assert_eq!((seen.source, seen.destination), (parsed(f.node), parsed(f.peer)));
                assert_eq!(seen.destination_port(), 8080);
                let answer = talk(TCP, (f.peer, 8080), (f.node, seen.source_port()), true);
                let heard = passed(&from_wire(kernel, &answer)?);
                assert_eq!(ends(&heard), (parsed(f.node), 30080, parsed(f.world), 7000));
                forget_all(kernel)?;
            }
            Ok(())
        });
    }
}

#[test]
fn who_may_not_use_a_service_is_told_nothing() {
    native(|kernel, f| {
        kernel.drain();
        put_cluster_ip(kernel, 1, frontend(balancer(f), 80, TCP), &[(1, f.b, 8080)])?;
        let question = talk(TCP, (f.world, 7000), (balancer(f), 80), false);
        let outcome = from_wire(kernel, &question)?;
        dropped(kernel, &outcome, DropReason::IsClusterIp);
        let flags = service_flags::LOAD_BALANCER | service_flags::SOURCE_RANGES;
        put_service(kernel, 2, frontend(balancer(f), 80, TCP), flags, &[(1, f.b, 8080)])?;
        let outcome = from_wire(kernel, &question)?;
        dropped(kernel, &outcome, DropReason::SourceRange);
        // Another service's range is not this one's; and its own lets in whom it names.
        put_range(kernel, 3, if f.v6 { "::/0" } else { "0.0.0.0/0" })?;
        let outcome = from_wire(kernel, &question)?;
        dropped(kernel, &outcome, DropReason::SourceRange);
        // Pods are no clients outside.
        passed(&from_a(kernel, &talk(TCP, (f.a, 7000), (balancer(f), 80), false))?);
        put_range(kernel, 2, if f.v6 { "2001:db8:100::/48" } else { "198.51.100.0/24" })?;
        passed(&from_wire(kernel, &question)?);
        forget_all(kernel)
    });
}

#[test]
fn a_service_without_backends_refuses_clients_outside_unless_only_local_ones_count() {
    native(|kernel, f| {
        let key = frontend(any(f), 30080, TCP);
        put_service(kernel, 1, key, service_flags::NODE_PORT, &[])?;
        let question = talk(TCP, (f.world, 7000), (f.node, 30080), false);
        let told = passed(&from_wire(kernel, &question)?);
        assert_eq!(ends(&told), (parsed(f.node), 30080, parsed(f.world), 7000));
        assert_eq!((told.protocol, told.rest[13]), (TCP, RST | ACK));
        put_service(kernel, 1, key, service_flags::NODE_PORT | service_flags::EXTERNAL_LOCAL, &[])?;
        kernel.drain();
        let outcome = from_wire(kernel, &question)?;
        dropped(kernel, &outcome, DropReason::NoServiceBackend);
        // What is no service stays the node's own.
        for frame in [talk(TCP, (f.world, 7000), (f.node, 22), false), ip(f.world, f.node).tcp(1, 30081, RST, b"")] {
            let outcome = from_wire(kernel, &frame)?;
            assert_eq!((outcome.action, outcome.frame), (PASS, frame));
        }
        assert!(kernel.connections()?.is_empty());
        assert_ne!(FrontendKey::ANY_V4, FrontendKey::ANY_V6);
        forget_all(kernel)
    });
}

#[test]
fn errors_show_the_client_what_it_sent_and_the_backend_what_it_answered() {
    native(|kernel, f| {
        let vip = balancer(f);
        put_cluster_ip(kernel, 1, frontend(vip, 53, UDP), &[(1, f.b, 5353)])?;
        put_service(kernel, 2, frontend(any(f), 30053, UDP), service_flags::NODE_PORT, &[(2, f.b, 5353)])?;
        put_service(kernel, 3, frontend(any(f), 30054, UDP), service_flags::NODE_PORT, &[(3, f.c, 5353)])?;
        let header = if f.v6 { 40 } else { 20 };
        let addresses = if f.v6 { 8..40 } else { 12..20 };
        let same = |told: &Read, question: &[u8]| {
            let inner = quoted(told);
            let inner = &inner[ETH..];
            assert_eq!(inner[addresses.clone()], question[ETH..][addresses.clone()], "addresses of the quote");
            assert_eq!(inner[header..header + 4], question[ETH + header..ETH + header + 4], "ports of the quote");
        };
        // A backend here says that nobody listens, to a pod and to a client outside.
        for (question, from_outside, address) in [
            (ip(f.a, vip).udp(7, 53, b"question"), false, vip),
            (ip(f.world, f.node).udp(7, 30053, b"question"), true, f.node),
        ] {
            let outcome = if from_outside { from_wire(kernel, &question)? } else { from_a(kernel, &question)? };
            let seen = passed(&outcome);
            let told = passed(&from_b(kernel, &ip(f.b, &seen.source.to_string()).unreachable(&outcome.frame))?);
            assert_eq!((told.source, told.destination), (parsed(address), seen.source));
            same(&told, &question);
        }
        // One elsewhere, and a router on the way.
        let question = ip(f.world, f.node).udp(8, 30054, b"question");
        let outcome = from_wire(kernel, &question)?;
        for (sender, shown) in [(f.c, f.node), (f.gateway, f.gateway)] {
            let told = passed(&from_wire(kernel, &ip(sender, f.node).unreachable(&outcome.frame))?);
            assert_eq!((told.source, told.destination), (parsed(shown), parsed(f.world)));
            same(&told, &question);
        }
        // The client says that nobody waits for the answer: its backend hears it.
        let answer = ip(f.b, f.world).udp(5353, 7, b"answer");
        let heard = from_b(kernel, &answer)?;
        assert_eq!(heard.action, REDIRECT);
        let told = passed(&from_wire(kernel, &ip(f.world, f.node).unreachable(&heard.frame))?);
        assert_eq!((told.source, told.destination), (parsed(f.world), parsed(f.b)));
        same(&told, &answer);
        // About a connection that is none of ours: the node's own business.
        let other = ip(f.gateway, f.node).unreachable(&ip(f.node, f.world).udp(30053, 99, b""));
        assert_eq!(from_wire(kernel, &other)?.action, PASS);
        forget_all(kernel)
    });
}

#[test]
fn a_pod_that_asks_itself_hears_its_own_errors() {
    native(|kernel, f| {
        put_cluster_ip(kernel, 1, frontend(balancer(f), 53, UDP), &[(1, f.a, 5353)])?;
        let question = ip(f.a, balancer(f)).udp(7, 53, b"question");
        let outcome = from_a(kernel, &question)?;
        let seen = passed(&outcome);
        let told = passed(&from_a(kernel, &ip(f.a, &seen.source.to_string()).unreachable(&outcome.frame))?);
        assert_eq!((told.source, told.destination), (parsed(balancer(f)), parsed(f.a)));
        let inner = quoted(&told);
        let at = ETH + if f.v6 { 8 } else { 12 };
        let end = ETH + if f.v6 { 44 } else { 24 };
        assert_eq!(inner[at..end], question[at..end]);
        let entry = kernel.connection(flow_kind::FLOW, seen.source, parsed(f.a))?.context("the connection")?;
        assert_eq!(entry.1.forward_packets, 1);
        forget_all(kernel)
    });
}
