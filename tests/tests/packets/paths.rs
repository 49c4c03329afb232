//! The ways of a packet beyond its own node: masquerading, VXLAN, neighbours; and the collector of connections.

use anyhow::{Context, Result};
use std::net::IpAddr;
use weft_abi::{Addr, DropReason, FlowEntry, FlowKey, flow_kind, identity};
use weft_tests::packet::kernel::{DROP, Kernel, PASS, REDIRECT};
use weft_tests::packet::site::{
    DEVICE, FAMILIES, Family, HOST_MAC_A, HOST_MAC_B, ID_A, ID_C, MAC_A, MAC_B, POD_A, Routing, TUNNEL, V4, V6, addr,
    allow, allow_port, from_a, from_b, from_wire, isolate, on_node, put_policy,
};
use weft_tests::packet::stage::{native, parsed, unwrap};
use weft_tests::packet::{ACK, ETH, Ip, RST, SYN, TCP, checksum, ip, quoted, read};

fn vxlan(test: impl Fn(&mut Kernel, Family) -> Result<()> + Send + Sync + Copy + 'static) {
    on_node(Routing::Vxlan, move |kernel| FAMILIES.iter().try_for_each(|family| test(kernel, *family)));
}

/// The answer of an outside host to the port that it saw.
type Answer = fn(&Ip, u16) -> Vec<u8>;

#[test]
fn the_world_sees_the_nodes_address_and_answers_come_back() {
    native(|kernel, f| {
        let out = ip(f.a, f.world);
        let frames: [(Vec<u8>, Vec<u8>, Answer); 3] = [
            (out.tcp(40000, 443, SYN, b""), out.tcp(40000, 443, ACK, b"x"), |back, port| {
                back.tcp(443, port, SYN | ACK, b"")
            }),
            (out.udp(40001, 53, b"question"), out.udp(40001, 53, b"odd"), |back, port| back.udp(53, port, b"answer")),
            (out.ping(4444), out.ping(4444), |back, id| back.pong(id)),
        ];
        for (first, second, answer) in &frames {
            let outcome = from_a(kernel, first)?;
            assert_eq!(outcome.action, REDIRECT);
            let seen = read(&outcome.frame);
            assert_eq!((seen.source, seen.destination, seen.ttl), (parsed(f.node), parsed(f.world), 63));
            let port = seen.source_port();
            assert!((20000..30000).contains(&port), "port {port}");
            // The same for the rest of the connection.
            assert_eq!(read(&from_a(kernel, second)?.frame).source_port(), port);
            let back = from_wire(kernel, &answer(&ip(f.world, f.node), port))?;
            assert_eq!(back.action, REDIRECT);
            let heard = read(&back.frame);
            assert_eq!((heard.source, heard.destination, heard.ttl), (parsed(f.world), parsed(f.a), 63));
            assert_eq!((heard.destination_mac, heard.source_mac), (MAC_A, HOST_MAC_A));
            let inside = read(first).source_port();
            assert_eq!(heard.destination_port(), inside);
        }
        // Somebody else does not get in through the hole.
        let outcome = from_a(kernel, &out.udp(40005, 53, b""))?;
        let port = read(&outcome.frame).source_port();
        let stranger = if f.v6 { "2001:db8:100::66" } else { "198.51.100.66" };
        assert_eq!(
            from_wire(kernel, &ip(stranger, f.node).udp(53, port, b""))?.action,
            PASS,
            "the node's own business"
        );
        assert_eq!(from_wire(kernel, &ip(f.world, f.node).udp(54, port, b""))?.action, PASS);
        Ok(())
    });
}

#[test]
fn sctp_keeps_its_port_and_a_second_pod_with_it_is_refused() {
    native(|kernel, f| {
        let outcome = from_a(kernel, &ip(f.a, f.world).sctp(5555, 5000))?;
        assert_eq!(outcome.action, REDIRECT);
        let seen = read(&outcome.frame);
        assert_eq!((seen.source, seen.source_port()), (parsed(f.node), 5555));
        let back = from_wire(kernel, &ip(f.world, f.node).sctp(5000, 5555))?;
        assert_eq!((back.action, read(&back.frame).destination), (REDIRECT, parsed(f.a)));
        kernel.drain();
        assert_eq!(from_b(kernel, &ip(f.b, f.world).sctp(5555, 5000))?.action, DROP);
        assert_eq!(kernel.drain().pop().context("an event")?.reason, DropReason::NoNatMapping as u8);
        // Other protocols have nothing to tell connections apart by.
        assert_eq!(from_a(kernel, &ip(f.a, f.world).raw(47, &[0; 16]))?.action, DROP);
        Ok(())
    });
}

#[test]
fn two_pods_with_the_same_port_do_not_collide() {
    native(|kernel, f| {
        // A port of the range is kept if it is free.
        let first = read(&from_a(kernel, &ip(f.a, f.world).tcp(25000, 443, SYN, b""))?.frame).source_port();
        assert_eq!(first, 25000);
        let second = read(&from_b(kernel, &ip(f.b, f.world).tcp(25000, 443, SYN, b""))?.frame).source_port();
        assert_ne!(first, second);
        for (port, pod, mac) in [(first, f.a, MAC_A), (second, f.b, MAC_B)] {
            let back = from_wire(kernel, &ip(f.world, f.node).tcp(443, port, SYN | ACK, b""))?;
            let heard = read(&back.frame);
            assert_eq!((heard.destination, heard.destination_port(), heard.destination_mac), (parsed(pod), 25000, mac));
        }
        Ok(())
    });
}

#[test]
fn errors_about_a_masqueraded_connection_find_the_pod() {
    native(|kernel, f| {
        put_policy(kernel, 9, &[])?;
        isolate(kernel, f.a, 9, 0)?;
        kernel.bump(&[1])?;
        for frame in [
            ip(f.a, f.world).udp(40000, 53, b"some question"),
            ip(f.a, f.world).tcp(40000, 80, SYN, b""),
            ip(f.a, f.world).ping(4321),
        ] {
            let sent = from_a(kernel, &frame)?;
            let error = ip(f.gateway, f.node).unreachable(&sent.frame);
            let outcome = from_wire(kernel, &error)?;
            assert_eq!(outcome.action, REDIRECT);
            let heard = read(&outcome.frame);
            assert_eq!((heard.source, heard.destination), (parsed(f.gateway), parsed(f.a)));
            let inner = quoted(&heard);
            // The pod's own packet again, but for the hop it made.
            let mut own = frame.clone();
            own[ETH + if f.v6 { 7 } else { 8 }] -= 1;
            if !f.v6 {
                own[ETH + 10..ETH + 12].fill(0);
                let sum = checksum(&[&own[ETH..ETH + 20]]);
                own[ETH + 10..ETH + 12].copy_from_slice(&sum.to_be_bytes());
            }
            let header = if f.v6 { 40 } else { 20 };
            assert_eq!(inner[ETH..ETH + header], own[ETH..ETH + header]);
            // Its ports, or the type and id of an echo.
            let echo = matches!(own[ETH + if f.v6 { 6 } else { 9 }], 1 | 58);
            let at = |frame: &[u8], n: usize| frame[ETH + header + n..ETH + header + n + 2].to_vec();
            let places = if echo { [0, 4] } else { [0, 2] };
            assert_eq!(places.map(|n| at(&inner, n)), places.map(|n| at(&own, n)));
        }
        // One whose quote is cut, too.
        let cut = ip(f.gateway, f.node).unreachable(&ip(f.node, f.world).udp(25111, 53, b"q")[..ETH + 25]);
        assert_eq!(from_wire(kernel, &cut)?.action, PASS);
        // An error about nothing of ours is the node's.
        let error = ip(f.gateway, f.node).unreachable(&ip(f.node, f.world).udp(25111, 53, b"q"));
        assert_eq!(from_wire(kernel, &error)?.action, PASS);
        isolate(kernel, f.a, 0, 0)
    });
}

#[test]
fn the_nodes_own_traffic_is_left_alone() {
    native(|kernel, f| {
        for frame in [
            ip(f.world, f.node).tcp(50000, 22, SYN, b""),
            ip(f.peer, f.node).udp(1000, 8472, &[8, 0, 0, 0, 0, 1, 0x2c, 0]),
            ip(f.world, f.node).ping(5),
        ] {
            let outcome = from_wire(kernel, &frame)?;
            assert_eq!((outcome.action, outcome.frame), (PASS, frame));
        }
        assert!(kernel.connections()?.is_empty());
        assert_eq!(kernel.run("weft_to_device", DEVICE, &ip(f.node, f.world).ping(5))?.action, PASS);
        Ok(())
    });
}

/// A VXLAN packet from the other node.
fn wrap(source: &str, vni: u32, inner: &[u8]) -> Vec<u8> {
    let mut payload = vec![8, 0, 0, 0];
    payload.extend(&vni.to_be_bytes()[1..]);
    payload.push(0);
    payload.extend(inner);
    let mut outer = ip(source, V4.node);
    outer.dont_fragment = false;
    let mut frame = outer.udp(50000, 8472, &payload);
    // VXLAN's outer checksum is zero.
    frame[ETH + 26..ETH + 28].fill(0);
    frame
}

#[test]
fn the_tunnel_carries_the_senders_identity() {
    vxlan(|kernel, f| {
        let packet = ip(f.a, f.c).tcp(1, 80, SYN, b"hello");
        for _ in 0..2 {
            let outcome = from_a(kernel, &packet)?;
            assert_eq!(outcome.action, REDIRECT);
            let (vni, inner) = unwrap(&outcome.frame);
            assert_eq!(vni, ID_A);
            let inner = read(&inner);
            assert_eq!((inner.source, inner.destination, inner.ttl), (parsed(f.a), parsed(f.c), 63));
            assert_eq!(&inner.rest[20..], b"hello");
        }
        let outcome = from_wire(kernel, &wrap(V4.peer, ID_C, &ip(f.c, f.a).tcp(80, 1, SYN | ACK, b"")))?;
        assert_eq!(outcome.action, REDIRECT);
        let inner = read(&outcome.frame);
        assert_eq!((inner.source, inner.destination, inner.ttl), (parsed(f.c), parsed(f.a), 63));
        assert_eq!((inner.destination_mac, inner.source_mac), (MAC_A, HOST_MAC_A));
        Ok(())
    });
}

#[test]
fn a_receiver_judges_by_the_identity_in_the_tunnel() {
    vxlan(|kernel, f| {
        put_policy(kernel, 10, &[allow_port(999, TCP, 80)])?;
        isolate(kernel, f.b, 10, 0)?;
        kernel.bump(&[2])?;
        // A pod that nobody has told of: its node says who it is.
        let frame = ip(f.new, f.b).tcp(1, 80, SYN, b"");
        assert_eq!(from_wire(kernel, &wrap(V4.peer, 998, &frame))?.action, DROP);
        let outcome = from_wire(kernel, &wrap(V4.peer, 999, &frame))?;
        assert_eq!(outcome.action, REDIRECT);
        assert_eq!((read(&outcome.frame).destination_mac, read(&outcome.frame).source_mac), (MAC_B, HOST_MAC_B));
        // The answer goes to the node that has the pool, and carries ours.
        let outcome = from_b(kernel, &ip(f.b, f.new).tcp(80, 1, SYN | ACK, b""))?;
        assert_eq!(unwrap(&outcome.frame).0, 301);
        isolate(kernel, f.b, 0, 0)
    });
}

#[test]
fn a_connection_that_is_opened_again_finds_its_way_through_the_tunnel_again() {
    vxlan(|kernel, f| {
        let opens = wrap(V4.peer, ID_C, &ip(f.c, f.a).tcp(7, 80, SYN, b""));
        let next_hop = |kernel: &Kernel| -> Result<Addr> {
            let found = kernel.connection(flow_kind::FLOW, parsed(f.c), parsed(f.a))?;
            Ok(found.context("the connection")?.1.nat_addr)
        };
        from_wire(kernel, &opens)?;
        from_a(kernel, &ip(f.a, f.c).tcp(80, 7, SYN | ACK, b""))?;
        let known = next_hop(kernel)?;
        assert!(!known.is_none(), "answers go to the other node");
        from_wire(kernel, &wrap(V4.peer, ID_C, &ip(f.c, f.a).tcp(7, 80, RST, b"")))?;
        from_wire(kernel, &opens)?;
        assert_eq!(from_a(kernel, &ip(f.a, f.c).tcp(80, 7, SYN | ACK, b""))?.action, REDIRECT);
        assert_eq!(next_hop(kernel)?, known);
        Ok(())
    });
}

#[test]
fn nobody_lies_through_the_tunnel() {
    vxlan(|kernel, f| {
        // Where pods come by tunnel, nobody is one without: neither in a new connection nor in one that exists.
        from_a(kernel, &ip(f.a, f.c).tcp(9, 80, SYN, b""))?;
        assert_eq!(from_wire(kernel, &wrap(V4.peer, ID_C, &ip(f.c, f.a).tcp(80, 9, SYN | ACK, b"")))?.action, REDIRECT);
        for frame in [ip(f.c, f.a).tcp(80, 9, ACK, b""), ip(f.c, f.a).tcp(1, 2, SYN, b""), ip(f.new, f.a).ping(1)] {
            kernel.drain();
            assert_eq!(from_wire(kernel, &frame)?.action, DROP);
            assert_eq!(kernel.drain().pop().context("an event")?.reason, DropReason::InvalidSourceIp as u8);
        }
        let inner = ip(f.c, f.b).tcp(1, 80, SYN, b"");
        for (source, vni, reason) in [
            (V4.world, ID_C, DropReason::UnknownSender),
            (V4.peer, identity::HOST, DropReason::InvalidIdentity),
            (V4.peer, identity::UNKNOWN, DropReason::InvalidIdentity),
        ] {
            kernel.drain();
            let outcome = from_wire(kernel, &wrap(source, vni, &inner))?;
            let event = kernel.drain().pop().context("an event")?;
            assert_eq!((outcome.action, event.reason), (DROP, reason as u8), "from {source} as {vni}");
        }
        // A pod of ours, from outside.
        assert_eq!(from_wire(kernel, &wrap(V4.peer, ID_C, &ip(f.a, f.b).tcp(1, 80, SYN, b"")))?.action, DROP);
        // No VNI at all.
        let mut frame = wrap(V4.peer, ID_C, &inner);
        frame[ETH + 28] = 0;
        assert_eq!(from_wire(kernel, &frame)?.action, DROP);
        // Cut inside: never delivered.
        let whole = wrap(V4.peer, ID_C, &inner);
        for length in ETH + 28..whole.len() {
            let mut cut = whole[..length].to_vec();
            cut[ETH + 2..ETH + 4].copy_from_slice(&((length - ETH) as u16).to_be_bytes());
            cut[ETH + 24..ETH + 26].copy_from_slice(&((length - ETH - 20) as u16).to_be_bytes());
            cut[ETH + 10..ETH + 12].fill(0);
            let sum = checksum(&[&cut[ETH..ETH + 20]]);
            cut[ETH + 10..ETH + 12].copy_from_slice(&sum.to_be_bytes());
            assert_eq!(from_wire(kernel, &cut)?.action, DROP, "cut at {length}");
        }
        // A pod that makes its own tunnel packets.
        kernel.drain();
        let forged = ip(f.a, f.peer).udp(50000, 8472, &[8, 0, 0, 0, 0, 0, 6, 0]);
        assert_eq!(from_a(kernel, &forged)?.action, DROP);
        assert_eq!(kernel.drain().pop().context("an event")?.reason, DropReason::EncapsulationProhibited as u8);
        Ok(())
    });
}

#[test]
fn with_a_tunnel_other_nodes_see_our_address_and_their_calls_are_answered_through_it() {
    vxlan(|kernel, f| {
        let outcome = from_a(kernel, &ip(f.a, f.peer).tcp(40000, 22, SYN, b""))?;
        assert_eq!(outcome.action, REDIRECT);
        assert_eq!(read(&outcome.frame).source, parsed(f.node));
        // The other node's own call came through the tunnel, and the answer goes there.
        let call = ip(f.peer, f.a).tcp(50000, 80, SYN, b"");
        assert_eq!(from_wire(kernel, &wrap(V4.peer, identity::REMOTE_NODE, &call))?.action, REDIRECT);
        let answer = from_a(kernel, &ip(f.a, f.peer).tcp(80, 50000, SYN | ACK, b""))?;
        assert_eq!(answer.action, REDIRECT);
        assert_eq!(unwrap(&answer.frame).0, ID_A);
        Ok(())
    });
}

#[test]
fn the_stack_sends_through_the_tunnel_device_with_a_key() {
    vxlan(|kernel, f| {
        assert_eq!(kernel.run("weft_to_tunnel", TUNNEL, &ip(f.node, f.c).tcp(1, 2, SYN, b""))?.action, PASS);
        assert_eq!(kernel.run("weft_to_tunnel", TUNNEL, &ip(f.node, f.world).tcp(1, 2, SYN, b""))?.action, DROP);
        Ok(())
    });
}

#[test]
fn packets_too_large_for_the_tunnel_are_told_by_the_stack() {
    vxlan(|kernel, f| {
        assert_eq!(from_a(kernel, &ip(f.a, f.c).udp(1, 2, &[0; 1300]))?.action, REDIRECT);
        let large = ip(f.a, f.c).udp(1, 2, &[0; 1430]);
        let outcome = from_a(kernel, &large)?;
        assert_eq!((outcome.action, outcome.frame), (PASS, large));
        // Between pods of one node nothing is too large.
        assert_eq!(from_a(kernel, &ip(f.a, f.b).udp(1, 2, &[0; 1430]))?.action, REDIRECT);
        Ok(())
    });
}

#[test]
fn gateways_are_answered_and_nobody_else() {
    on_node(Routing::Native, |kernel| {
        let arp = |sender: [u8; 4], target: [u8; 4]| {
            let mut frame = vec![0xff; 6];
            frame.extend(MAC_A);
            frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
            frame.extend(MAC_A);
            frame.extend(sender);
            frame.extend([0; 6]);
            frame.extend(target);
            frame
        };
        let outcome = from_a(kernel, &arp([10, 244, 1, 10], [169, 254, 1, 1]))?;
        assert_eq!(outcome.action, REDIRECT);
        assert_eq!(outcome.frame[0..6], MAC_A);
        assert_eq!(outcome.frame[20..22], [0, 2]);
        assert_eq!(outcome.frame[22..28], HOST_MAC_A);
        assert_eq!(outcome.frame[28..32], [169, 254, 1, 1]);
        assert_eq!(from_a(kernel, &arp([10, 244, 1, 10], [10, 244, 1, 11]))?.action, DROP);
        assert_eq!(from_a(kernel, &arp([10, 244, 1, 11], [169, 254, 1, 1]))?.action, DROP);
        for length in 14..42 {
            assert_eq!(from_a(kernel, &arp([10, 244, 1, 10], [169, 254, 1, 1])[..length])?.action, DROP);
        }
        let solicit = |target: &str, ttl: u8| {
            let mut body = vec![0; 4];
            let IpAddr::V6(v6) = parsed(target) else { unreachable!("IPv6") };
            body.extend(v6.octets());
            body.extend([1, 1]);
            body.extend(MAC_A);
            ip(V6.a, "ff02::1:ff00:1").ttl(ttl).icmp(135, 0, &body)
        };
        let outcome = from_a(kernel, &solicit("fe80::1", 255))?;
        assert_eq!(outcome.action, REDIRECT);
        let answer = read(&outcome.frame);
        assert_eq!((answer.source, answer.destination, answer.ttl), (parsed("fe80::1"), parsed(V6.a), 255));
        assert_eq!((answer.rest[0], answer.destination_mac), (136, MAC_A));
        assert_eq!(answer.rest[24..32], [&[2, 1], &HOST_MAC_A[..]].concat());
        assert_eq!(from_a(kernel, &solicit("fe80::1", 64))?.action, DROP);
        assert_eq!(from_a(kernel, &solicit(V6.b, 255))?.action, DROP);
        Ok(())
    });
}

#[test]
fn multicast_of_pods_goes_nowhere() {
    native(|kernel, f| {
        if f.v6 {
            for to in ["fe80::1", "febf::1"] {
                assert_eq!(from_a(kernel, &ip(f.a, to).udp(5353, 5353, b""))?.action, DROP);
            }
        }
        let to = if f.v6 { "ff02::fb" } else { "224.0.0.251" };
        assert_eq!(from_a(kernel, &ip(f.a, to).udp(5353, 5353, b""))?.action, DROP);
        assert!(kernel.connections()?.is_empty());
        Ok(())
    });
}

/// Makes an entry look as if nothing had come for that long.
fn age(kernel: &mut Kernel, key: &FlowKey, seconds: u32) -> Result<()> {
    let mut entry: FlowEntry = kernel.flows.get(key, 0)?;
    entry.last_seen_s = entry.last_seen_s.wrapping_sub(seconds);
    kernel.flows.insert(key, entry, 0)?;
    Ok(())
}

fn collect(kernel: &Kernel) -> Result<usize> {
    kernel.run("weft_collect", DEVICE, &ip(V4.a, V4.b).ping(1))?;
    Ok(kernel.connections()?.len())
}

#[test]
fn connections_expire_by_their_state() {
    native(|kernel, f| {
        let (there, back) = (ip(f.a, f.b), ip(f.b, f.a));
        let expires = |kernel: &mut Kernel, after: u32| -> Result<()> {
            let (key, _) = kernel.connections()?.pop().context("an entry")?;
            age(kernel, &key, after - 5)?;
            assert_eq!(collect(kernel)?, 1, "too early, before {after} s");
            age(kernel, &key, 10)?;
            assert_eq!(collect(kernel)?, 0, "too late, after {after} s");
            Ok(())
        };
        from_a(kernel, &there.tcp(1, 80, SYN, b""))?;
        expires(kernel, 60)?;
        from_a(kernel, &there.tcp(1, 80, SYN, b""))?;
        from_b(kernel, &back.tcp(80, 1, SYN | ACK, b""))?;
        from_a(kernel, &there.tcp(1, 80, ACK, b""))?;
        expires(kernel, 8000)?;
        from_a(kernel, &there.tcp(1, 80, SYN, b""))?;
        from_b(kernel, &back.tcp(80, 1, SYN | ACK, b""))?;
        from_b(kernel, &back.tcp(80, 1, weft_tests::packet::RST, b""))?;
        expires(kernel, 10)?;
        from_a(kernel, &there.udp(1, 53, b""))?;
        expires(kernel, 60)?;
        // A packet in time keeps it.
        from_a(kernel, &there.udp(1, 53, b""))?;
        let (key, _) = kernel.connections()?.pop().context("an entry")?;
        age(kernel, &key, 55)?;
        from_a(kernel, &there.udp(1, 53, b""))?;
        age(kernel, &key, 55)?;
        assert_eq!(collect(kernel)?, 1);
        kernel.flows.remove(&key)?;
        Ok(())
    });
}

#[test]
fn a_claimed_entry_is_neither_used_nor_replaced_and_the_packet_is_judged() {
    native(|kernel, f| {
        put_policy(kernel, 10, &[allow(ID_A)])?;
        isolate(kernel, f.b, 10, 0)?;
        kernel.bump(&[2])?;
        from_a(kernel, &ip(f.a, f.b).udp(1, 53, b""))?;
        let (key, mut entry) = kernel.connections()?.pop().context("an entry")?;
        entry.last_seen_s = FlowEntry::DELETING;
        kernel.flows.insert(key, entry, 0)?;
        assert_eq!(from_a(kernel, &ip(f.a, f.b).udp(1, 53, b""))?.action, REDIRECT);
        assert_eq!(kernel.flows.get(&key, 0)?, entry);
        put_policy(kernel, 11, &[])?;
        isolate(kernel, f.b, 11, 0)?;
        assert_eq!(from_a(kernel, &ip(f.a, f.b).udp(1, 53, b""))?.action, DROP);
        kernel.flows.remove(&key)?;
        isolate(kernel, f.b, 0, 0)
    });
}

#[test]
fn a_masquerade_lives_as_long_as_its_connection() {
    native(|kernel, f| {
        from_a(kernel, &ip(f.a, f.world).tcp(1, 443, SYN, b""))?;
        let count = kernel.connections()?.len();
        assert_eq!(count, 2);
        let (outside, _) =
            kernel.connection(flow_kind::NAT, parsed(f.node), parsed(f.world))?.context("its outside")?;
        let (inside, _) = kernel.connection(flow_kind::FLOW, parsed(f.a), parsed(f.world))?.context("the inside")?;
        assert!(outside.low == addr(f.node) || outside.high == addr(f.node));
        age(kernel, &outside, 50_000)?;
        assert_eq!(collect(kernel)?, 2);
        age(kernel, &inside, 50_000)?;
        collect(kernel)?;
        assert_eq!(collect(kernel)?, 0);
        let _: Addr = inside.low;
        Ok(())
    });
}

#[test]
fn what_comes_by_the_tunnel_device_needs_a_key() {
    vxlan(|kernel, f| {
        assert_eq!(kernel.run("weft_from_tunnel", TUNNEL, &ip(f.c, f.a).tcp(1, 2, SYN, b""))?.action, DROP);
        assert_eq!(kernel.run("weft_from_pod", POD_A, &ip(f.c, f.a).tcp(1, 2, SYN, b""))?.action, DROP);
        Ok(())
    });
}
