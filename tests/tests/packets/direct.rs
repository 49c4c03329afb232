//! Direct server return: at the node that a client outside came to, its packets keep the client's address and tell the
//! backend's node the frontend; there they are believed if the table of services says the same, and answered in the name
//! of the frontend.

use anyhow::{Context, Result};
use std::net::IpAddr;
use weft_abi::{Addr, DSR_BACKENDS_MAX, DropReason, IpcacheInfo, flow_flags, flow_kind, identity, service_flags};
use weft_tests::packet::kernel::{DROP, Kernel, Outcome, PASS, REDIRECT};
use weft_tests::packet::service::{backend, frontend, put_range, put_service, put_set};
use weft_tests::packet::site::{
    DEVICE, FAMILIES, Family, HOST_MAC_B, ID_A, ID_C, MAC_B, POD_A, Routing, V4, addr, allow_port, from_b, from_wire,
    isolate, on_node, put_policy,
};
use weft_tests::packet::{ACK, ETH, FIN, Ip, RST, Read, SCTP, SYN, TCP, UDP, ip, quoted, read};

const DSR: u32 = service_flags::NODE_PORT | service_flags::DSR;
const PORT: u16 = 30080;

fn parsed(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn any(f: Family) -> &'static str {
    if f.v6 { "::" } else { "0.0.0.0" }
}

/// An address of a load balancer, which is no node's.
fn balancer(f: Family) -> &'static str {
    if f.v6 { "2001:db8:7::7" } else { "203.0.113.7" }
}

fn world(f: Family) -> u32 {
    if f.v6 { identity::WORLD_IPV6 } else { identity::WORLD_IPV4 }
}

fn on_both(test: impl Fn(&mut Kernel, Family, Routing) -> Result<()> + Send + Copy + 'static) {
    for routing in [Routing::Native, Routing::Vxlan] {
        on_node(routing, move |kernel| {
            for f in FAMILIES {
                test(kernel, f, routing).with_context(|| format!("{routing:?}, IPv6: {}", f.v6))?;
                forget(kernel)?;
            }
            Ok(())
        });
    }
}

fn forget(kernel: &mut Kernel) -> Result<()> {
    for key in kernel.flows.keys().collect::<Result<Vec<_>, _>>()? {
        kernel.flows.remove(&key)?;
    }
    for key in kernel.frontends.keys().collect::<Result<Vec<_>, _>>()? {
        kernel.frontends.remove(&key)?;
    }
    kernel.drain();
    Ok(())
}

/// A question or more of it, by a protocol.
fn question(header: &Ip, protocol: u8, from: u16, to: u16, opens: bool) -> Vec<u8> {
    match protocol {
        TCP => header.tcp(from, to, if opens { SYN } else { ACK }, if opens { b"" } else { b"more" }),
        UDP => header.udp(from, to, b"some text"),
        _ => header.sctp(from, to),
    }
}

fn answer(from: (&str, u16), to: (&str, u16), protocol: u8) -> Vec<u8> {
    let header = ip(from.0, to.0);
    match protocol {
        TCP => header.tcp(from.1, to.1, SYN | ACK, b""),
        _ => question(&header, protocol, from.1, to.1, false),
    }
}

/// The header of a packet that tells a frontend.
fn telling(from: &str, to: &str, frontend: &str, port: u16) -> Ip {
    let header = ip(from, to);
    match parsed(frontend) {
        IpAddr::V4(address) => {
            let mut option = vec![0x9a, 8];
            option.extend(port.to_be_bytes());
            option.extend(address.octets());
            header.options(&option)
        }
        IpAddr::V6(address) => {
            let mut extension = vec![0, 2, 0x1b, 20];
            extension.extend(address.octets());
            extension.extend(port.to_be_bytes());
            extension.extend([0, 0]);
            header.extension(60, &extension)
        }
    }
}

/// The frontend that a frame tells.
fn told(frame: &[u8]) -> Option<(IpAddr, u16)> {
    let packet = &frame[ETH..];
    let port = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    if packet[0] >> 4 == 4 {
        let here = packet[0] & 15 == 7 && packet[20..22] == [0x9a, 8];
        here.then(|| (IpAddr::from(<[u8; 4]>::try_from(&packet[24..28]).expect("four")), port(22)))
    } else {
        let here = packet[6] == 60 && packet[41..44] == [2, 0x1b, 20];
        here.then(|| (IpAddr::from(<[u8; 16]>::try_from(&packet[44..60]).expect("sixteen")), port(60)))
    }
}

/// What leaves for the other node, out of the tunnel if there is one; with the sender's identity in it.
fn sent(routing: Routing, outcome: &Outcome) -> (Option<u32>, Vec<u8>) {
    assert_eq!(outcome.action, REDIRECT);
    if routing == Routing::Native {
        return (None, outcome.frame.clone());
    }
    let outer = read(&outcome.frame);
    assert_eq!((outer.source, outer.destination, outer.protocol), (parsed(V4.node), parsed(V4.peer), UDP));
    let vni = u32::from_be_bytes([0, outer.rest[12], outer.rest[13], outer.rest[14]]);
    (Some(vni), outer.rest[16..].to_vec())
}

/// The same from the other node.
fn arriving(routing: Routing, sender: u32, inner: &[u8]) -> Vec<u8> {
    if routing == Routing::Native {
        return inner.to_vec();
    }
    let mut payload = vec![8, 0, 0, 0];
    payload.extend(&sender.to_be_bytes()[1..]);
    payload.push(0);
    payload.extend(inner);
    ip(V4.peer, V4.node).udp(50000, 8472, &payload)
}

fn passed(outcome: &Outcome) -> Read {
    assert_eq!(outcome.action, REDIRECT);
    read(&outcome.frame)
}

fn ends(read: &Read) -> (IpAddr, u16, IpAddr, u16) {
    (read.source, read.source_port(), read.destination, read.destination_port())
}

#[track_caller]
fn dropped(kernel: &mut Kernel, outcome: &Outcome, reason: DropReason) {
    let event = kernel.drain().pop().expect("an event");
    assert_eq!((outcome.action, DropReason::from_raw(event.reason)), (DROP, Some(reason)));
}

#[test]
fn the_first_node_keeps_the_clients_address_and_tells_the_frontend_first() {
    on_both(|kernel, f, routing| {
        for protocol in [TCP, UDP, SCTP] {
            for (key, address) in
                [(frontend(any(f), PORT, protocol), f.node), (frontend(balancer(f), PORT, protocol), balancer(f))]
            {
                put_service(kernel, 1, key, DSR, &[(1, f.c, 8080)])?;
                for round in 0..40 {
                    let frame = question(&ip(f.world, address), protocol, 7000, PORT, round == 0);
                    let (vni, inner) = sent(routing, &from_wire(kernel, &frame)?);
                    let seen = read(&inner);
                    assert_eq!(ends(&seen), (parsed(f.world), 7000, parsed(f.c), 8080));
                    assert_eq!((seen.ttl, vni.is_none_or(|vni| vni == world(f))), (63, true));
                    let tells = if protocol == TCP { round == 0 } else { round < 15 || (round + 1) % 32 == 0 };
                    assert_eq!(told(&inner), tells.then_some((parsed(address), PORT)), "packet {round}");
                    if round % 10 == 3 {
                        kernel.bump(&[0])?;
                    }
                }
                // A connection that is opened again is told again.
                if protocol == TCP {
                    let frame = question(&ip(f.world, address), TCP, 7000, PORT, true);
                    let (_, inner) = sent(routing, &from_wire(kernel, &frame)?);
                    assert_eq!(told(&inner), Some((parsed(address), PORT)));
                }
                assert!(kernel.connections()?.iter().all(|(key, _)| key.kind == flow_kind::FLOW), "no masquerade");
                forget(kernel)?;
            }
        }
        Ok(())
    });
}

#[test]
fn half_a_connection_lives_as_long_as_the_whole() {
    on_both(|kernel, f, routing| {
        put_service(kernel, 1, frontend(any(f), PORT, TCP), DSR, &[(1, f.c, 8080)])?;
        let state = |kernel: &Kernel| -> Result<u16> {
            let entry = kernel.connection(flow_kind::FLOW, parsed(f.world), parsed(f.c))?.context("the connection")?;
            Ok(entry.1.flags & (flow_flags::SEEN_REPLY | flow_flags::FIN_FORWARD | flow_flags::RST))
        };
        for (flags, expected) in [
            (SYN, 0),
            (SYN, 0),
            (ACK, flow_flags::SEEN_REPLY),
            (ACK, flow_flags::SEEN_REPLY),
            // The other side's end is not seen: soon forgotten.
            (FIN | ACK, flow_flags::FIN_FORWARD),
            (ACK, flow_flags::FIN_FORWARD),
            (SYN, 0),
            (ACK, flow_flags::SEEN_REPLY),
            (RST, flow_flags::SEEN_REPLY | flow_flags::RST),
        ] {
            let frame = ip(f.world, f.node).tcp(7000, PORT, flags, b"");
            sent(routing, &from_wire(kernel, &frame)?);
            assert_eq!(state(kernel)?, expected, "after TCP flags {flags}");
        }
        Ok(())
    });
}

#[test]
fn ports_are_anothers_once_the_client_is_done_with_them() {
    on_both(|kernel, f, routing| {
        put_service(kernel, 1, frontend(any(f), PORT, TCP), DSR, &[(1, f.c, 8080)])?;
        put_service(kernel, 2, frontend(any(f), PORT + 1, TCP), DSR, &[(2, f.c, 8080)])?;
        put_service(kernel, 3, frontend(any(f), PORT + 2, TCP), service_flags::NODE_PORT, &[(3, f.c, 8080)])?;
        let send =
            |kernel: &Kernel, port: u16, flags: u8| from_wire(kernel, &ip(f.world, f.node).tcp(7000, port, flags, b""));
        for (first, second) in [(PORT, PORT + 1), (PORT, PORT + 2), (PORT + 1, PORT)] {
            for flags in [SYN, ACK] {
                sent(routing, &send(kernel, first, flags)?);
            }
            // Answers of two connections could not be told apart.
            let outcome = send(kernel, second, SYN)?;
            dropped(kernel, &outcome, DropReason::NoNatMapping);
            // The other side's end does not come by here.
            for flags in [FIN | ACK, ACK] {
                sent(routing, &send(kernel, first, flags)?);
            }
            let (_, inner) = sent(routing, &send(kernel, second, SYN)?);
            let direct = second != PORT + 2;
            assert_eq!(read(&inner).source, parsed(if direct { f.world } else { f.node }), "{first}, then {second}");
            assert_eq!(told(&inner), direct.then_some((parsed(f.node), second)));
            sent(routing, &send(kernel, second, ACK)?);
            sent(routing, &send(kernel, second, RST)?);
        }
        Ok(())
    });
}

#[test]
fn a_later_fragment_may_tell_the_frontend() {
    on_both(|kernel, f, routing| {
        put_service(kernel, 1, frontend(any(f), PORT, UDP), DSR, &[(1, f.c, 8080), (2, f.b, 8080)])?;
        for round in 0..3_u32 {
            let whole = ip(f.world, f.b).udp(7000, 8080, &[7; 1200]);
            let content = &whole[ETH + if f.v6 { 40 } else { 20 }..];
            let first = if round == 0 { telling(f.world, f.b, f.peer, PORT) } else { ip(f.world, f.b) };
            let later = if round == 0 { ip(f.world, f.b) } else { telling(f.world, f.b, f.peer, PORT) };
            let first = first.fragment(round + 1, 0, true).raw(UDP, &content[..800]);
            let later = later.fragment(round + 1, 800, false).raw(UDP, &content[800..]);
            for frame in [first, later] {
                assert_eq!(from_wire(kernel, &arriving(routing, world(f), &frame))?.action, REDIRECT, "{round}");
            }
        }
        Ok(())
    });
}

#[test]
fn the_backends_node_answers_in_the_name_of_the_frontend() {
    on_both(|kernel, f, routing| {
        put_policy(
            kernel,
            9,
            &[allow_port(world(f), TCP, 8080), allow_port(world(f), UDP, 8080), allow_port(world(f), SCTP, 8080)],
        )?;
        isolate(kernel, f.b, 9, 9)?;
        kernel.bump(&[2])?;
        for protocol in [TCP, UDP, SCTP] {
            for (key, address) in
                [(frontend(any(f), PORT, protocol), f.peer), (frontend(balancer(f), PORT, protocol), balancer(f))]
            {
                put_service(kernel, 1, key, DSR, &[(1, f.c, 8080), (2, f.b, 8080)])?;
                for round in 0..6 {
                    let header = if round % 2 == 0 { telling(f.world, f.b, address, PORT) } else { ip(f.world, f.b) };
                    let frame = question(&header, protocol, 7000, 8080, round == 0);
                    let seen = passed(&from_wire(kernel, &arriving(routing, world(f), &frame))?);
                    assert_eq!(ends(&seen), (parsed(f.world), 7000, parsed(f.b), 8080));
                    assert_eq!((seen.destination_mac, seen.source_mac, seen.ttl), (MAC_B, HOST_MAC_B, 63));
                    assert_eq!(seen.l4, ETH + if f.v6 { 40 } else { 20 }, "the pod sees nothing of it");
                    assert_eq!(seen.rest, read(&frame).rest);
                    let heard = passed(&from_b(kernel, &answer((f.b, 8080), (f.world, 7000), protocol))?);
                    assert_eq!(ends(&heard), (parsed(address), PORT, parsed(f.world), 7000), "straight to the client");
                    if round == 2 {
                        kernel.bump(&[0, 2])?;
                    }
                }
                forget(kernel)?;
            }
        }
        // Its policy knows the real client.
        put_policy(kernel, 10, &[allow_port(ID_C, TCP, 8080)])?;
        isolate(kernel, f.b, 10, 0)?;
        kernel.bump(&[2])?;
        put_service(kernel, 1, frontend(any(f), PORT, TCP), DSR, &[(2, f.b, 8080)])?;
        let frame = question(&telling(f.world, f.b, f.peer, PORT), TCP, 7000, 8080, true);
        let outcome = from_wire(kernel, &arriving(routing, world(f), &frame))?;
        dropped(kernel, &outcome, DropReason::PolicyDenied);
        assert!(kernel.connections()?.is_empty(), "it leaves nothing");
        isolate(kernel, f.b, 0, 0)
    });
}

#[test]
fn nobody_is_believed_about_a_frontend_that_is_not_so() {
    on_both(|kernel, f, routing| {
        let key = frontend(any(f), PORT, TCP);
        let tell = |kernel: &Kernel, sender: u32, from: &str, address: &str, port: u16| {
            let frame = question(&telling(from, f.b, address, port), TCP, 7000, 8080, true);
            from_wire(kernel, &arriving(routing, sender, &frame))
        };
        // No such service; one without this pod; this pod by another port.
        let outcome = tell(kernel, world(f), f.world, f.peer, PORT)?;
        dropped(kernel, &outcome, DropReason::NoServiceBackend);
        for other in [(1, f.c, 8080), (2, f.b, 9090), (3, f.a, 8080)] {
            put_service(kernel, 1, key, DSR, &[other])?;
            let outcome = tell(kernel, world(f), f.world, f.peer, PORT)?;
            dropped(kernel, &outcome, DropReason::NoServiceBackend);
        }
        put_service(kernel, 1, key, DSR, &[(2, f.b, 8080)])?;
        // An address that is no node's, another port, this node's own address (it would not have sent it).
        for (address, port) in [(f.gateway, PORT), (f.world, PORT), (f.peer, PORT + 1), (f.node, PORT)] {
            let outcome = tell(kernel, world(f), f.world, address, port)?;
            dropped(kernel, &outcome, DropReason::NoServiceBackend);
        }
        // Frontends that nobody outside may use.
        for (kind, reason) in [
            (service_flags::CLUSTER_IP, DropReason::IsClusterIp),
            (service_flags::REDIRECT, DropReason::IsClusterIp),
            (service_flags::HOST_PORT, DropReason::NoServiceBackend),
            (service_flags::LOAD_BALANCER | service_flags::SOURCE_RANGES, DropReason::SourceRange),
        ] {
            put_service(kernel, 7, frontend(balancer(f), 80, TCP), kind | service_flags::DSR, &[(2, f.b, 8080)])?;
            let outcome = tell(kernel, world(f), f.world, balancer(f), 80)?;
            dropped(kernel, &outcome, reason);
        }
        put_range(kernel, 7, if f.v6 { "2001:db8:100::/48" } else { "198.51.100.0/24" })?;
        passed(&tell(kernel, world(f), f.world, balancer(f), 80)?);
        // Pods and nodes are no clients outside; nor is who only says so, where there is a tunnel.
        for sender in [ID_A, ID_C, identity::REMOTE_NODE] {
            if routing == Routing::Vxlan {
                let outcome = tell(kernel, sender, f.world, f.peer, PORT)?;
                dropped(kernel, &outcome, DropReason::UnknownSender);
            }
        }
        for from in [f.c, f.peer] {
            if routing == Routing::Native {
                let outcome = tell(kernel, 0, from, f.peer, PORT)?;
                dropped(kernel, &outcome, DropReason::UnknownSender);
            }
        }
        let frame = question(&telling(f.world, f.b, f.peer, PORT), TCP, 7000, 8080, true);
        if routing == Routing::Vxlan {
            let outcome = from_wire(kernel, &frame)?;
            dropped(kernel, &outcome, DropReason::UnknownSender);
        }
        // Two options, one of them hidden behind the other.
        let mut twice = telling(f.world, f.b, f.peer, PORT);
        let again = twice.clone();
        twice.options.extend(&again.options);
        twice.extensions.extend(again.extensions);
        let frame = question(&twice, TCP, 7000, 8080, true);
        let outcome = from_wire(kernel, &arriving(routing, world(f), &frame))?;
        dropped(kernel, &outcome, DropReason::InvalidPacket);
        // With other protocols there is nothing to tell.
        let frame = telling(f.world, f.b, f.peer, PORT).ping(9);
        let outcome = from_wire(kernel, &arriving(routing, world(f), &frame))?;
        dropped(kernel, &outcome, DropReason::InvalidPacket);
        // What a pod here sends with it is the business of who it sends to.
        let frame = question(&telling(f.a, f.b, f.peer, PORT), TCP, 7000, 8080, true);
        let outcome = kernel.run("weft_from_pod", POD_A, &frame)?;
        passed(&outcome);
        let heard = passed(&from_b(kernel, &answer((f.b, 8080), (f.a, 7000), TCP))?);
        assert_eq!(heard.source, parsed(f.b), "its answers are its own");
        Ok(())
    });
}

#[test]
fn a_connection_is_one_frontends_alone() {
    on_both(|kernel, f, routing| {
        for protocol in [TCP, UDP] {
            put_service(kernel, 1, frontend(any(f), PORT, protocol), DSR, &[(2, f.b, 8080)])?;
            put_service(kernel, 2, frontend(any(f), PORT + 1, protocol), DSR, &[(3, f.b, 8080)])?;
            let tell = |kernel: &Kernel, port: u16| {
                let frame = question(&telling(f.world, f.b, f.peer, port), protocol, 7000, 8080, true);
                from_wire(kernel, &arriving(routing, world(f), &frame))
            };
            passed(&tell(kernel, PORT)?);
            let outcome = tell(kernel, PORT + 1)?;
            dropped(kernel, &outcome, DropReason::NoNatMapping);
            passed(&tell(kernel, PORT)?);
            let heard = passed(&from_b(kernel, &answer((f.b, 8080), (f.world, 7000), protocol))?);
            assert_eq!(heard.source_port(), PORT);
            forget(kernel)?;
        }
        // What the pod itself began is not turned round.
        put_service(kernel, 1, frontend(any(f), PORT, UDP), DSR, &[(2, f.b, 8080)])?;
        from_b(kernel, &ip(f.b, f.world).udp(8080, 7000, b"a question of the pod"))?;
        let frame = question(&telling(f.world, f.b, f.peer, PORT), UDP, 7000, 8080, true);
        let outcome = from_wire(kernel, &arriving(routing, world(f), &frame))?;
        dropped(kernel, &outcome, DropReason::NoNatMapping);
        forget(kernel)?;
        // A packet that overtook the one that tells.
        put_service(kernel, 1, frontend(any(f), PORT, UDP), DSR, &[(2, f.b, 8080)])?;
        let plain = question(&ip(f.world, f.b), UDP, 7000, 8080, true);
        passed(&from_wire(kernel, &arriving(routing, world(f), &plain))?);
        passed(&from_wire(kernel, &arriving(routing, world(f), &frame))?);
        let heard = passed(&from_b(kernel, &answer((f.b, 8080), (f.world, 7000), UDP))?);
        assert_eq!((heard.source, heard.source_port()), (parsed(f.peer), PORT));
        // A TCP connection that is over makes room for the next one by the same ports.
        put_service(kernel, 2, frontend(any(f), PORT, TCP), DSR, &[(3, f.b, 8080)])?;
        put_service(kernel, 3, frontend(any(f), PORT + 1, TCP), DSR, &[(4, f.b, 8080)])?;
        for port in [PORT, PORT + 1] {
            let frame = question(&telling(f.world, f.b, f.peer, port), TCP, 7000, 8080, true);
            passed(&from_wire(kernel, &arriving(routing, world(f), &frame))?);
            let heard = passed(&from_b(kernel, &answer((f.b, 8080), (f.world, 7000), TCP))?);
            assert_eq!(heard.source_port(), port);
            let end = ip(f.world, f.b).tcp(7000, 8080, RST, b"");
            passed(&from_wire(kernel, &arriving(routing, world(f), &end))?);
        }
        Ok(())
    });
}

#[test]
fn clients_of_the_cluster_and_backends_of_nodes_are_served_by_the_nodes_address() {
    on_both(|kernel, f, routing| {
        put_service(kernel, 1, frontend(any(f), PORT, TCP), DSR, &[(1, f.c, 8080)])?;
        let mut cases = vec![f.peer];
        if routing == Routing::Native {
            // By tunnel pods come to a node with their node's address.
            cases.push(f.new);
        }
        for client in cases {
            let frame = question(&ip(client, f.node), TCP, 7000, PORT, true);
            let (_, inner) = sent(routing, &from_wire(kernel, &frame)?);
            assert_eq!((read(&inner).source, told(&inner)), (parsed(f.node), None));
        }
        for backend in [f.peer, f.gateway] {
            forget(kernel)?;
            put_service(kernel, 2, frontend(any(f), PORT, TCP), DSR, &[(2, backend, 8080)])?;
            let outcome = from_wire(kernel, &question(&ip(f.world, f.node), TCP, 7001, PORT, true))?;
            assert_eq!((passed(&outcome).source, told(&outcome.frame)), (parsed(f.node), None));
        }
        // More backends than their nodes will look through.
        forget(kernel)?;
        let many: Vec<_> = (0..=DSR_BACKENDS_MAX).map(|n| backend(3, TCP, (n + 10, f.c, 8080))).collect();
        let mut info = put_service(kernel, 3, frontend(any(f), PORT, TCP), DSR, &[])?;
        for (count, expected) in [(DSR_BACKENDS_MAX + 1, f.node), (DSR_BACKENDS_MAX, f.world)] {
            put_set(kernel, 3, &many[..count as usize])?;
            (info.internal_count, info.external_count) = (count, count);
            kernel.frontends.insert(frontend(any(f), PORT, TCP), info, 0)?;
            let frame = question(&ip(f.world, f.node), TCP, 7002 + count as u16, PORT, true);
            let (_, inner) = sent(routing, &from_wire(kernel, &frame)?);
            assert_eq!(read(&inner).source, parsed(expected), "{count} backends");
        }
        Ok(())
    });
}

#[test]
fn what_does_not_fit_with_the_frontend_is_told_or_goes_without() {
    on_both(|kernel, f, routing| {
        put_service(kernel, 1, frontend(any(f), PORT, UDP), DSR, &[(1, f.c, 8080)])?;
        let mtu = if routing == Routing::Vxlan { 1450 } else { 1500 };
        let (header, bytes) = if f.v6 { (48, 24) } else { (28, 8) };
        let large = ip(f.world, f.node).udp(7000, PORT, &vec![5; mtu - header]);
        let heard = passed(&from_wire(kernel, &large)?);
        assert_eq!((heard.source, heard.destination), (parsed(f.node), parsed(f.world)));
        assert_eq!(heard.rest[..2], if f.v6 { [2, 0] } else { [3, 4] });
        assert_eq!(heard.rest[6..8], ((mtu - bytes) as u16).to_be_bytes());
        assert_eq!(quoted(&heard)[ETH + header - 8..ETH + header], large[ETH + header - 8..ETH + header]);
        // What fits just so; and then, once it was told, also what did not.
        let fits = ip(f.world, f.node).udp(7000, PORT, &vec![5; mtu - header - bytes]);
        let (_, inner) = sent(routing, &from_wire(kernel, &fits)?);
        assert_eq!((inner.len(), told(&inner)), (ETH + mtu, Some((parsed(f.node), PORT))));
        let (_, inner) = sent(routing, &from_wire(kernel, &large)?);
        assert_eq!((inner.len(), told(&inner), read(&inner).source), (ETH + mtu, None, parsed(f.world)));
        Ok(())
    });
}

#[test]
fn errors_reach_the_backend_by_the_first_node_and_the_client_straight() {
    on_both(|kernel, f, routing| {
        // The backend says that nobody listens.
        put_service(kernel, 1, frontend(any(f), PORT, UDP), DSR, &[(2, f.b, 8080)])?;
        let frame = question(&telling(f.world, f.b, f.peer, PORT), UDP, 7000, 8080, true);
        let outcome = from_wire(kernel, &arriving(routing, world(f), &frame))?;
        let told = passed(&from_b(kernel, &ip(f.b, f.world).unreachable(&outcome.frame))?);
        assert_eq!((told.source, told.destination), (parsed(f.peer), parsed(f.world)));
        let inner = quoted(&told);
        let ports = ETH + if f.v6 { 40 } else { 20 };
        assert_eq!(inner[ports..ports + 4], [7000_u16.to_be_bytes(), PORT.to_be_bytes()].concat());
        forget(kernel)?;
        // The client, or a router, says something of an answer that came straight: it goes on to the backend.
        put_service(kernel, 1, frontend(any(f), PORT, UDP), DSR, &[(1, f.c, 8080)])?;
        sent(routing, &from_wire(kernel, &question(&ip(f.world, f.node), UDP, 7000, PORT, true))?);
        let about = ip(f.node, f.world).udp(PORT, 7000, b"an answer");
        let (_, inner) = sent(routing, &from_wire(kernel, &ip(f.world, f.node).unreachable(&about))?);
        let told = read(&inner);
        assert_eq!((told.source, told.destination), (parsed(f.world), parsed(f.c)));
        let inner = quoted(&told);
        assert_eq!(inner[ports..ports + 4], [8080_u16.to_be_bytes(), 7000_u16.to_be_bytes()].concat());
        // There it is about the pod's own.
        forget(kernel)?;
        put_service(kernel, 1, frontend(any(f), PORT, UDP), DSR, &[(2, f.b, 8080)])?;
        from_wire(kernel, &arriving(routing, world(f), &frame))?;
        let about = ip(f.b, f.world).udp(8080, 7000, b"an answer");
        let error = arriving(routing, world(f), &ip(f.world, f.b).unreachable(&about));
        let told = passed(&from_wire(kernel, &error)?);
        assert_eq!((told.source, told.destination), (parsed(f.world), parsed(f.b)));
        Ok(())
    });
}

#[test]
fn what_is_for_nobody_here_keeps_its_options() {
    on_node(Routing::Native, |kernel| {
        for f in FAMILIES {
            kernel.ipcache.insert(addr(f.gateway), IpcacheInfo { identity: 6, flags: 1, node: Addr::NONE }, 0)?;
            for to in [f.node, f.gateway] {
                let frame = question(&telling(f.world, to, f.peer, PORT), TCP, 7000, 8080, true);
                let outcome = kernel.run("weft_from_device", DEVICE, &frame)?;
                assert_eq!((outcome.action, outcome.frame), (PASS, frame));
            }
        }
        Ok(())
    });
}
