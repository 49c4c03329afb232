//! The node itself as a client and as a backend of services, packet by packet: at the egress of its device.

use anyhow::Context;
use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;
use weft_abi::{DropReason, flow_flags, identity, service_flags};
use weft_tests::packet::kernel::{Outcome, PASS, REDIRECT};
use weft_tests::packet::service::{frontend, put_cluster_ip, put_service};
use weft_tests::packet::site::{
    DEVICE, FAMILIES, HOST_MAC_B, ID_C, MAC_B, POD_A, POD_B, Routing, V4, allow_port, free_node, from_b, from_node,
    from_wire, isolate_node, on_node, put_policy,
};
use weft_tests::packet::stage::{
    any, dropped, ends, everywhere, flow, forget_all, hairpin, parsed, passed, talk, unwrap, vip, wrap,
};
use weft_tests::packet::{ACK, ETH, RST, Read, SCTP, TCP, UDP, ip, quoted, read};

fn to_stack(outcome: &Outcome) -> Read {
    assert_eq!((outcome.action, outcome.mark), (PASS, 0));
    read(&outcome.frame)
}

#[test]
fn a_pod_of_the_node_is_reached_by_its_link_and_answers_come_from_the_service() {
    everywhere(|kernel, f, _| {
        for protocol in [TCP, UDP, SCTP] {
            put_cluster_ip(kernel, 1, frontend(vip(f), 80, protocol), &[(1, f.b, 8080)])?;
            for round in 0..3 {
                let outcome = from_node(kernel, &talk(protocol, (f.node, 7), (vip(f), 80), false))?;
                let seen = passed(&outcome);
                assert_eq!(ends(&seen), (parsed(f.node), 7, parsed(f.b), 8080), "protocol {protocol}");
                assert_eq!((seen.destination_mac, seen.source_mac, seen.ttl), (MAC_B, HOST_MAC_B, 64));
                // At the pod's link it is known to be decided, and nobody hears of it twice.
                assert_ne!(outcome.mark, 0);
                let again = kernel.repeat("weft_to_pod", POD_B, &outcome.frame, 1, outcome.mark)?;
                assert_eq!((again.action, again.mark, again.frame), (PASS, 0, outcome.frame));
                let heard = to_stack(&from_b(kernel, &talk(protocol, (f.b, 8080), (f.node, 7), true))?);
                assert_eq!(ends(&heard), (parsed(vip(f)), 80, parsed(f.node), 7), "protocol {protocol}");
                if round == 1 {
                    kernel.bump(&[0])?;
                }
            }
            let entry = flow(kernel, f.node, f.b)?.context("the connection")?;
            assert_eq!((entry.forward_packets, entry.reply_packets), (3, 3));
            assert_eq!(entry.source_identity, identity::HOST);
            forget_all(kernel)?;
        }
        Ok(())
    });
}

#[test]
fn a_backend_elsewhere_sees_the_node_and_its_answers_come_from_the_service() {
    everywhere(|kernel, f, routing| {
        for protocol in [TCP, UDP, SCTP] {
            put_cluster_ip(kernel, 1, frontend(vip(f), 80, protocol), &[(1, f.c, 8080)])?;
            for round in 0..3 {
                let outcome = from_node(kernel, &talk(protocol, (f.node, 7), (vip(f), 80), false))?;
                assert_eq!(outcome.action, REDIRECT);
                let seen = if routing == Routing::Vxlan {
                    let (vni, inner) = unwrap(&outcome.frame);
                    assert_eq!(vni, identity::REMOTE_NODE);
                    read(&inner)
                } else {
                    read(&outcome.frame)
                };
                assert_eq!(ends(&seen), (parsed(f.node), 7, parsed(f.c), 8080), "protocol {protocol}");
                // It comes by the same program again, which lets it pass.
                let again = kernel.repeat("weft_to_device", DEVICE, &outcome.frame, 1, outcome.mark)?;
                assert_eq!((again.action, again.mark, again.frame), (PASS, 0, outcome.frame));
                let answer = talk(protocol, (f.c, 8080), (f.node, 7), true);
                let answer = if routing == Routing::Vxlan { wrap(ID_C, &answer) } else { answer };
                let heard = to_stack(&from_wire(kernel, &answer)?);
                assert_eq!(ends(&heard), (parsed(vip(f)), 80, parsed(f.node), 7), "protocol {protocol}");
                if round == 1 {
                    kernel.bump(&[0])?;
                }
            }
            let entry = flow(kernel, f.node, f.c)?.context("the connection")?;
            assert_eq!((entry.forward_packets, entry.reply_packets), (3, 3));
            forget_all(kernel)?;
        }
        // Another node's process is reached without the tunnel.
        put_cluster_ip(kernel, 1, frontend(vip(f), 80, TCP), &[(1, f.peer, 8080)])?;
        let seen = passed(&from_node(kernel, &talk(TCP, (f.node, 7), (vip(f), 80), false))?);
        assert_eq!(ends(&seen), (parsed(f.node), 7, parsed(f.peer), 8080));
        let heard = to_stack(&from_wire(kernel, &talk(TCP, (f.peer, 8080), (f.node, 7), true))?);
        assert_eq!(ends(&heard), (parsed(vip(f)), 80, parsed(f.node), 7));
        forget_all(kernel)
    });
}

/// Through the kernel's own tunnel device, since a single run of a program has no tunnel's key.
#[test]
fn answers_that_the_tunnels_device_unwraps_come_from_the_service_too() {
    on_node(Routing::Vxlan, |kernel| {
        kernel.attach("weft_from_tunnel", "vx0")?;
        let peer = ["address", "add", &format!("{}/32", V4.peer), "dev", "lo"];
        anyhow::ensure!(Command::new("ip").args(peer).status()?.success(), "the other node's address");
        for device in ["all", "vx0"] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{device}/rp_filter"), "0")?;
        }
        let tunnel = UdpSocket::bind((V4.peer, 0))?;
        for f in FAMILIES {
            put_cluster_ip(kernel, 1, frontend(vip(f), 80, UDP), &[(1, f.c, 8080)])?;
            assert_eq!(from_node(kernel, &talk(UDP, (f.node, 7), (vip(f), 80), false))?.action, REDIRECT);
            let process = UdpSocket::bind((parsed(f.node), 7))?;
            process.set_read_timeout(Some(Duration::from_secs(5)))?;
            let whole = wrap(ID_C, &talk(UDP, (f.c, 8080), (f.node, 7), true));
            let mut text = [0; 64];
            for round in 0..3 {
                tunnel.send_to(&read(&whole).rest[8..], (V4.node, 8472))?;
                let (length, from) = process.recv_from(&mut text).context("an answer")?;
                assert_eq!((from.ip(), from.port(), &text[..length]), (parsed(vip(f)), 80, &b"some text"[..]));
                if round == 1 {
                    kernel.bump(&[0])?;
                }
            }
            forget_all(kernel)?;
        }
        Ok(())
    });
}

#[test]
fn the_node_reaches_its_own_process_by_a_service() {
    everywhere(|kernel, f, _| {
        for protocol in [TCP, UDP, SCTP] {
            put_cluster_ip(kernel, 1, frontend(vip(f), 80, protocol), &[(1, f.node, 8080)])?;
            for round in 0..3 {
                let outcome = from_node(kernel, &talk(protocol, (f.node, 7), (vip(f), 80), false))?;
                assert_eq!(ends(&passed(&outcome)), (parsed(hairpin(f)), 7, parsed(f.node), 8080));
                let again = kernel.repeat("weft_from_device", DEVICE, &outcome.frame, 1, outcome.mark)?;
                assert_eq!((again.action, again.mark, again.frame), (PASS, 0, outcome.frame));
                let outcome = from_node(kernel, &talk(protocol, (f.node, 8080), (hairpin(f), 7), true))?;
                assert_eq!(ends(&passed(&outcome)), (parsed(vip(f)), 80, parsed(f.node), 7));
                let again = kernel.repeat("weft_from_device", DEVICE, &outcome.frame, 1, outcome.mark)?;
                assert_eq!((again.action, again.mark), (PASS, 0));
                if round == 1 {
                    kernel.bump(&[0])?;
                }
            }
            // Nobody outside speaks as the node to itself, nor for the service.
            kernel.drain();
            for forged in [(hairpin(f), 7, f.node, 8080), (vip(f), 80, f.node, 7)] {
                let outcome = from_wire(kernel, &talk(protocol, (forged.0, forged.1), (forged.2, forged.3), true))?;
                dropped(kernel, &outcome, DropReason::InvalidSourceIp);
            }
            forget_all(kernel)?;
        }
        Ok(())
    });
}

#[test]
fn a_client_outside_reaches_a_process_of_the_node_that_it_asks() {
    everywhere(|kernel, f, _| {
        for protocol in [TCP, UDP, SCTP] {
            put_service(kernel, 1, frontend(any(f), 30080, protocol), service_flags::NODE_PORT, &[(1, f.node, 8080)])?;
            for round in 0..3 {
                let seen = to_stack(&from_wire(kernel, &talk(protocol, (f.world, 7000), (f.node, 30080), false))?);
                assert_eq!(ends(&seen), (parsed(f.world), 7000, parsed(f.node), 8080), "protocol {protocol}");
                let heard = to_stack(&from_node(kernel, &talk(protocol, (f.node, 8080), (f.world, 7000), true))?);
                assert_eq!(ends(&heard), (parsed(f.node), 30080, parsed(f.world), 7000), "protocol {protocol}");
                if round == 1 {
                    kernel.bump(&[0])?;
                }
            }
            let entry = flow(kernel, f.world, f.node)?.context("an entry")?;
            assert_ne!(entry.flags & (flow_flags::TRANSLATED | flow_flags::SERVICE), 0);
            if protocol == UDP {
                // What the node itself says about it is about what the client sent.
                let question = talk(UDP, (f.world, 7001), (f.node, 30080), false);
                let outcome = from_wire(kernel, &question)?;
                let told = to_stack(&from_node(kernel, &ip(f.node, f.world).unreachable(&outcome.frame))?);
                let (l4, quote) = (ETH + if f.v6 { 40 } else { 20 }, quoted(&told));
                assert_eq!(quote[l4..l4 + 4], question[l4..l4 + 4], "ports of the quote");
            }
            forget_all(kernel)?;
        }
        Ok(())
    });
}

#[test]
fn a_service_without_backends_refuses_the_node_at_once() {
    everywhere(|kernel, f, _| {
        for protocol in [TCP, UDP] {
            put_cluster_ip(kernel, 1, frontend(vip(f), 80, protocol), &[])?;
            let outcome = from_node(kernel, &talk(protocol, (f.node, 7), (vip(f), 80), false))?;
            let told = passed(&outcome);
            assert_eq!((told.source, told.destination), (parsed(vip(f)), parsed(f.node)));
            if protocol == TCP {
                assert_eq!(told.rest[13], RST | ACK);
            } else {
                assert_eq!(told.rest[..2], if f.v6 { [1, 4] } else { [3, 3] });
            }
            let again = kernel.repeat("weft_from_device", DEVICE, &outcome.frame, 1, outcome.mark)?;
            assert_eq!((again.action, again.mark, again.frame), (PASS, 0, outcome.frame));
        }
        assert!(kernel.connections()?.is_empty());
        forget_all(kernel)
    });
}

#[test]
fn errors_about_a_backend_tell_the_node_of_the_service() {
    everywhere(|kernel, f, routing| {
        put_cluster_ip(kernel, 1, frontend(vip(f), 53, UDP), &[(1, f.b, 5353)])?;
        let question = talk(UDP, (f.node, 7), (vip(f), 53), false);
        let l4 = ETH + if f.v6 { 40 } else { 20 };
        let outcome = from_node(kernel, &question)?;
        let told = to_stack(&from_b(kernel, &ip(f.b, f.node).unreachable(&outcome.frame))?);
        assert_eq!((told.source, told.destination), (parsed(vip(f)), parsed(f.node)));
        assert_eq!(quoted(&told)[l4..l4 + 4], question[l4..l4 + 4], "ports of the quote");
        forget_all(kernel)?;
        if routing == Routing::Native {
            put_cluster_ip(kernel, 1, frontend(vip(f), 53, UDP), &[(1, f.c, 5353)])?;
            let outcome = from_node(kernel, &question)?;
            for (sender, shown) in [(f.c, vip(f)), (f.gateway, f.gateway)] {
                let told = to_stack(&from_wire(kernel, &ip(sender, f.node).unreachable(&outcome.frame))?);
                assert_eq!((told.source, told.destination), (parsed(shown), parsed(f.node)));
                assert_eq!(quoted(&told)[l4..l4 + 4], question[l4..l4 + 4], "ports of the quote");
            }
            forget_all(kernel)?;
        } else {
            // What does not fit the tunnel is told in the service's name.
            put_cluster_ip(kernel, 1, frontend(vip(f), 53, UDP), &[(1, f.c, 5353)])?;
            let told = passed(&from_node(kernel, &ip(f.node, vip(f)).udp(7, 53, &[5; 1430]))?);
            assert_eq!((told.source, told.destination), (parsed(vip(f)), parsed(f.node)));
            assert_eq!(told.rest[..2], if f.v6 { [2, 0] } else { [3, 4] });
            assert_eq!(told.rest[6..8], 1450_u16.to_be_bytes());
            forget_all(kernel)?;
        }
        Ok(())
    });
}

#[test]
fn what_is_no_service_leaves_as_it_is() {
    everywhere(|kernel, f, _| {
        put_cluster_ip(kernel, 1, frontend(vip(f), 80, TCP), &[(1, f.b, 8080)])?;
        for frame in [
            talk(TCP, (f.node, 7), (f.world, 443), false),
            talk(TCP, (f.node, 7), (f.world, 443), true),
            talk(UDP, (f.node, 7), (vip(f), 80), false),
            talk(TCP, (f.node, 7), (vip(f), 81), false),
            ip(f.node, vip(f)).ping(9),
        ] {
            let outcome = from_node(kernel, &frame)?;
            assert_eq!((outcome.action, outcome.mark, outcome.frame), (PASS, 0, frame));
        }
        // A pod's packet was looked at where it came from.
        let frame = talk(TCP, (f.a, 7), (vip(f), 80), false);
        let outcome = kernel.on("weft_to_device", (POD_A, DEVICE), &frame, 1, 0)?;
        assert_eq!((outcome.action, outcome.frame), (PASS, frame));
        assert!(kernel.connections()?.is_empty());
        forget_all(kernel)
    });
}

#[test]
fn policies_of_the_node_are_asked_about_the_backend() {
    everywhere(|kernel, f, _| {
        put_cluster_ip(kernel, 1, frontend(vip(f), 80, TCP), &[(1, f.c, 8080)])?;
        put_policy(kernel, 20, &[allow_port(ID_C, TCP, 80)])?;
        put_policy(kernel, 21, &[allow_port(ID_C, TCP, 8080)])?;
        put_policy(kernel, 22, &[])?;
        let question = talk(TCP, (f.node, 7), (vip(f), 80), false);
        isolate_node(kernel, 22, 20, false)?;
        kernel.drain();
        let outcome = from_node(kernel, &question)?;
        dropped(kernel, &outcome, DropReason::PolicyDenied);
        assert!(kernel.connections()?.is_empty(), "it leaves nothing");
        isolate_node(kernel, 22, 21, false)?;
        assert_eq!(from_node(kernel, &question)?.action, REDIRECT);
        // Its own pods the node always reaches.
        put_cluster_ip(kernel, 2, frontend(vip(f), 81, TCP), &[(2, f.b, 8080)])?;
        isolate_node(kernel, 22, 22, false)?;
        assert_eq!(ends(&passed(&from_node(kernel, &talk(TCP, (f.node, 8), (vip(f), 81), false))?)).2, parsed(f.b));
        free_node(kernel)?;
        forget_all(kernel)
    });
}
