//! The node itself as a client and as a backend of services, packet by packet: at the egress of its device.

use anyhow::{Context, Result};
use std::net::IpAddr;
use weft_abi::{DropReason, FlowEntry, flow_flags, flow_kind, identity, service_flags};
use weft_tests::packet::kernel::{DROP, Kernel, Outcome, PASS, REDIRECT};
use weft_tests::packet::service::{frontend, put_cluster_ip, put_service};
use weft_tests::packet::site::{
    DEVICE, FAMILIES, Family, HOST_MAC_B, ID_C, MAC_B, POD_A, POD_B, Routing, V4, allow_port, free_node, from_b,
    from_node, from_wire, isolate_node, on_node, put_policy,
};
use weft_tests::packet::{ACK, ETH, RST, Read, SCTP, SYN, TCP, UDP, ip, quoted, read};

fn parsed(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn vip(f: Family) -> &'static str {
    if f.v6 { "fd96::5" } else { "10.96.0.5" }
}

/// As whom the node speaks to itself.
fn hairpin(f: Family) -> &'static str {
    if f.v6 { "100::2a:1" } else { "169.254.42.1" }
}

fn passed(outcome: &Outcome) -> Read {
    assert_eq!(outcome.action, REDIRECT);
    read(&outcome.frame)
}

fn to_stack(outcome: &Outcome) -> Read {
    assert_eq!((outcome.action, outcome.mark), (PASS, 0));
    read(&outcome.frame)
}

fn ends(read: &Read) -> (IpAddr, u16, IpAddr, u16) {
    (read.source, read.source_port(), read.destination, read.destination_port())
}

fn dropped(kernel: &mut Kernel, outcome: &Outcome, reason: DropReason) {
    let event = kernel.drain().pop().expect("an event");
    assert_eq!((outcome.action, DropReason::from_raw(event.reason)), (DROP, Some(reason)));
}

fn flow(kernel: &Kernel, one: &str, other: &str) -> Result<Option<FlowEntry>> {
    Ok(kernel.connection(flow_kind::FLOW, one.parse()?, other.parse()?)?.map(|(_, entry)| entry))
}

fn forget(kernel: &mut Kernel) -> Result<()> {
    for key in kernel.flows.keys().collect::<Result<Vec<_>, _>>()? {
        kernel.flows.remove(&key)?;
    }
    for key in kernel.frontends.keys().collect::<Result<Vec<_>, _>>()? {
        kernel.frontends.remove(&key)?;
    }
    Ok(())
}

/// A question and its answer by a protocol.
fn talk(protocol: u8, from: (&str, u16), to: (&str, u16), answer: bool) -> Vec<u8> {
    let header = ip(from.0, to.0);
    match protocol {
        TCP => header.tcp(from.1, to.1, if answer { SYN | ACK } else { SYN }, b""),
        UDP => header.udp(from.1, to.1, b"some text"),
        _ => header.sctp(from.1, to.1),
    }
}

fn everywhere(test: impl Fn(&mut Kernel, Family, Routing) -> Result<()> + Send + Sync + Copy + 'static) {
    for routing in [Routing::Native, Routing::Vxlan] {
        on_node(routing, move |kernel| FAMILIES.iter().try_for_each(|family| test(kernel, *family, routing)));
    }
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
            forget(kernel)?;
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
            forget(kernel)?;
        }
        // Another node's process is reached without the tunnel.
        put_cluster_ip(kernel, 1, frontend(vip(f), 80, TCP), &[(1, f.peer, 8080)])?;
        let seen = passed(&from_node(kernel, &talk(TCP, (f.node, 7), (vip(f), 80), false))?);
        assert_eq!(ends(&seen), (parsed(f.node), 7, parsed(f.peer), 8080));
        let heard = to_stack(&from_wire(kernel, &talk(TCP, (f.peer, 8080), (f.node, 7), true))?);
        assert_eq!(ends(&heard), (parsed(vip(f)), 80, parsed(f.node), 7));
        forget(kernel)
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
            forget(kernel)?;
        }
        Ok(())
    });
}

#[test]
fn a_client_outside_reaches_a_process_of_the_node_that_it_asks() {
    everywhere(|kernel, f, _| {
        let any = if f.v6 { "::" } else { "0.0.0.0" };
        for protocol in [TCP, UDP, SCTP] {
            put_service(kernel, 1, frontend(any, 30080, protocol), service_flags::NODE_PORT, &[(1, f.node, 8080)])?;
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
            forget(kernel)?;
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
        forget(kernel)
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
        forget(kernel)?;
        if routing == Routing::Native {
            put_cluster_ip(kernel, 1, frontend(vip(f), 53, UDP), &[(1, f.c, 5353)])?;
            let outcome = from_node(kernel, &question)?;
            for (sender, shown) in [(f.c, vip(f)), (f.gateway, f.gateway)] {
                let told = to_stack(&from_wire(kernel, &ip(sender, f.node).unreachable(&outcome.frame))?);
                assert_eq!((told.source, told.destination), (parsed(shown), parsed(f.node)));
                assert_eq!(quoted(&told)[l4..l4 + 4], question[l4..l4 + 4], "ports of the quote");
            }
            forget(kernel)?;
        } else {
            // What does not fit the tunnel is told in the service's name.
            put_cluster_ip(kernel, 1, frontend(vip(f), 53, UDP), &[(1, f.c, 5353)])?;
            let told = passed(&from_node(kernel, &ip(f.node, vip(f)).udp(7, 53, &[5; 1430]))?);
            assert_eq!((told.source, told.destination), (parsed(vip(f)), parsed(f.node)));
            assert_eq!(told.rest[..2], if f.v6 { [2, 0] } else { [3, 4] });
            assert_eq!(told.rest[6..8], 1450_u16.to_be_bytes());
            forget(kernel)?;
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
        forget(kernel)
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
        forget(kernel)
    });
}
