//! The node itself as a subject of policies: what comes to it and what it sends.

use anyhow::{Context, Result, ensure};
use weft_abi::{DropReason, ENDPOINT_ID_HOST, Event, identity, verdict};
use weft_tests::packet::kernel::{DROP, Kernel, PASS, REDIRECT};
use weft_tests::packet::site::{
    DEVICE, FAMILIES, ID_A, POD_A, Routing, TUNNEL, V4, V6, allow, allow_port, deny, free_node, from_a, from_node,
    from_wire, isolate, isolate_node, on_node, put_open_policy, put_policy,
};
use weft_tests::packet::stage::{flow, native, world};
use weft_tests::packet::{ACK, ETH, ICMP, ICMPV6, RST, SYN, TCP, UDP, ip, read};

/// The last event.
fn last(kernel: &mut Kernel) -> Result<Event> {
    kernel.drain().pop().context("an event")
}

#[test]
fn what_comes_to_the_node_is_judged_and_its_answers_pass() {
    native(|kernel, f| {
        let (there, back) = (ip(f.world, f.node), ip(f.node, f.world));
        // Without policies of its own nothing is judged, tracked or counted.
        let counted = kernel.counted(None)?;
        ensure!(from_wire(kernel, &there.tcp(1000, 80, SYN, b""))?.action == PASS);
        ensure!(from_node(kernel, &back.tcp(80, 1000, SYN | ACK, b""))?.action == PASS);
        ensure!(flow(kernel, f.world, f.node)?.is_none() && kernel.counted(None)? == counted);
        put_policy(kernel, 10, &[allow_port(world(f), TCP, 22), allow(identity::REMOTE_NODE)])?;
        // Nothing may leave but answers.
        put_policy(kernel, 11, &[])?;
        isolate_node(kernel, 10, 11, false)?;
        kernel.drain();
        ensure!(from_wire(kernel, &there.tcp(1000, 80, SYN, b""))?.action == DROP);
        let event = last(kernel)?;
        assert_eq!((event.reason, event.policy, event.egress), (DropReason::PolicyDenied as u8, 10, 0));
        assert_eq!((event.source_identity, event.destination_identity), (world(f), identity::HOST));
        let frame = there.tcp(1000, 22, SYN, b"");
        let outcome = from_wire(kernel, &frame)?;
        ensure!(outcome.action == PASS && outcome.frame == frame);
        let entry = flow(kernel, f.world, f.node)?.context("an entry")?;
        assert_eq!((entry.source_endpoint, entry.destination_endpoint, entry.ingress_rule), (0, ENDPOINT_ID_HOST, 1));
        for flags in [SYN | ACK, ACK, RST] {
            let frame = back.tcp(22, 1000, flags, b"");
            let outcome = from_node(kernel, &frame)?;
            ensure!(outcome.action == PASS && outcome.frame == frame);
        }
        ensure!(from_wire(kernel, &there.tcp(1000, 22, ACK, b"x"))?.action == PASS);
        let entry = flow(kernel, f.world, f.node)?.context("an entry")?;
        assert_eq!((entry.forward_packets, entry.reply_packets), (2, 3));
        // Others by what they are.
        ensure!(from_wire(kernel, &ip(f.peer, f.node).udp(1, 9000, b""))?.action == PASS);
        ensure!(from_wire(kernel, &ip(f.c, f.node).udp(1, 9000, b""))?.action == DROP);
        // An established connection obeys a change at its next packet, of either side.
        put_policy(kernel, 12, &[])?;
        isolate_node(kernel, 12, 11, false)?;
        ensure!(from_node(kernel, &back.tcp(22, 1000, ACK, b"x"))?.action == DROP);
        ensure!(from_wire(kernel, &there.tcp(1000, 22, ACK, b"x"))?.action == DROP);
        isolate_node(kernel, 10, 11, false)?;
        kernel.bump(&[ENDPOINT_ID_HOST])?;
        ensure!(from_node(kernel, &back.tcp(22, 1000, ACK, b"x"))?.action == PASS);
        free_node(kernel)?;
        ensure!(from_wire(kernel, &there.tcp(1000, 80, SYN, b""))?.action == PASS);
        Ok(())
    });
}

#[test]
fn what_the_node_sends_is_judged_and_answers_come_back() {
    native(|kernel, f| {
        let (there, back) = (ip(f.node, f.world), ip(f.world, f.node));
        put_policy(kernel, 20, &[])?;
        put_policy(kernel, 21, &[allow_port(world(f), TCP, 443), allow_port(302, TCP, 80), deny(0).port(UDP, 53)])?;
        isolate_node(kernel, 20, 21, false)?;
        kernel.drain();
        ensure!(from_node(kernel, &there.udp(40000, 53, b"q"))?.action == DROP);
        let event = last(kernel)?;
        assert_eq!((event.reason, event.policy, event.egress), (DropReason::PolicyDenyRule as u8, 21, 1));
        assert_eq!((event.source_identity, event.destination_identity), (identity::HOST, world(f)));
        ensure!(from_wire(kernel, &back.tcp(443, 40000, SYN | ACK, b""))?.action == DROP, "before there is a question");
        ensure!(from_node(kernel, &there.tcp(40000, 443, SYN, b""))?.action == PASS);
        ensure!(from_wire(kernel, &back.tcp(443, 40000, SYN | ACK, b""))?.action == PASS);
        ensure!(from_node(kernel, &there.tcp(40000, 443, ACK, b"x"))?.action == PASS);
        // Errors about what is tracked pass, others do not.
        let segment = there.tcp(40000, 443, ACK, &[0; 200]);
        ensure!(from_wire(kernel, &ip(f.gateway, f.node).unreachable(&segment))?.action == PASS);
        let other = there.tcp(40001, 443, ACK, &[0; 200]);
        ensure!(from_wire(kernel, &ip(f.gateway, f.node).unreachable(&other))?.action == DROP);
        // To a pod of another node; not to one that has no class.
        ensure!(from_node(kernel, &ip(f.node, f.c).tcp(40000, 80, SYN, b""))?.action == PASS);
        ensure!(from_node(kernel, &ip(f.node, f.c).tcp(40000, 81, SYN, b""))?.action == DROP);
        ensure!(from_node(kernel, &ip(f.node, f.new).tcp(40000, 80, SYN, b""))?.action == DROP);
        // To its own pods always, and those answer.
        isolate(kernel, f.a, 20, 20)?;
        kernel.bump(&[1])?;
        ensure!(kernel.run("weft_to_pod", POD_A, &ip(f.node, f.a).tcp(40000, 10250, SYN, b""))?.action == PASS);
        ensure!(from_a(kernel, &ip(f.a, f.node).tcp(10250, 40000, SYN | ACK, b""))?.action == PASS);
        isolate(kernel, f.a, 0, 0)?;
        free_node(kernel)
    });
}

#[test]
fn pods_are_judged_on_their_way_to_their_node() {
    native(|kernel, f| {
        put_policy(kernel, 30, &[allow_port(ID_A, TCP, 6443)])?;
        isolate_node(kernel, 30, 0, false)?;
        kernel.drain();
        ensure!(from_a(kernel, &ip(f.a, f.node).tcp(1, 6443, SYN, b""))?.action == PASS);
        ensure!(kernel.run("weft_to_pod", POD_A, &ip(f.node, f.a).tcp(6443, 1, SYN | ACK, b""))?.action == PASS);
        kernel.drain();
        ensure!(from_a(kernel, &ip(f.a, f.node).tcp(1, 6444, SYN, b""))?.action == DROP);
        let event = last(kernel)?;
        assert_eq!((event.policy, event.egress, event.source_identity), (30, 0, ID_A));
        // Both policies: the pod's own, too.
        put_policy(kernel, 31, &[])?;
        isolate(kernel, f.a, 0, 31)?;
        kernel.bump(&[1])?;
        ensure!(from_a(kernel, &ip(f.a, f.node).tcp(1, 6443, ACK, b""))?.action == DROP);
        assert_eq!(last(kernel)?.policy, 31);
        isolate(kernel, f.a, 0, 0)?;
        kernel.bump(&[1])?;
        // And pods among themselves and with the world are none of its business.
        put_policy(kernel, 32, &[])?;
        isolate_node(kernel, 32, 32, false)?;
        ensure!(from_a(kernel, &ip(f.a, f.b).tcp(1, 80, SYN, b""))?.action == REDIRECT);
        let sent = from_a(kernel, &ip(f.a, f.world).tcp(40000, 443, SYN, b""))?;
        ensure!(sent.action == REDIRECT);
        ensure!(from_node(kernel, &sent.frame)?.action == PASS, "masqueraded");
        let answer = ip(f.world, f.node).tcp(443, read(&sent.frame).source_port(), SYN | ACK, b"");
        ensure!(from_wire(kernel, &answer)?.action == REDIRECT);
        ensure!(from_wire(kernel, &ip(f.gateway, f.node).unreachable(&sent.frame))?.action == REDIRECT);
        let native = from_a(kernel, &ip(f.a, f.c).tcp(40000, 443, SYN, b""))?;
        ensure!(from_node(kernel, &native.frame)?.action == PASS);
        // A port of that range, but of nobody's connection.
        ensure!(from_wire(kernel, &ip(f.world, f.node).tcp(443, 20001, SYN, b""))?.action == DROP);
        ensure!(from_node(kernel, &ip(f.node, f.world).tcp(20001, 443, SYN, b""))?.action == DROP);
        free_node(kernel)
    });
}

#[test]
fn types_of_icmp_and_protocols_count_for_the_node_too() {
    native(|kernel, f| {
        let (protocol, request) = if f.v6 { (ICMPV6, 128) } else { (ICMP, 8) };
        put_policy(kernel, 40, &[allow_port(world(f), protocol, request), allow_port(world(f), 47, 0)])?;
        put_policy(kernel, 41, &[])?;
        isolate_node(kernel, 40, 41, false)?;
        let (there, back) = (ip(f.world, f.node), ip(f.node, f.world));
        ensure!(from_wire(kernel, &there.ping(5))?.action == PASS);
        ensure!(from_node(kernel, &back.pong(5))?.action == PASS);
        ensure!(from_node(kernel, &back.ping(6))?.action == DROP);
        ensure!(from_wire(kernel, &there.icmp(if f.v6 { 139 } else { 13 }, 0, &[0; 16]))?.action == DROP);
        ensure!(from_wire(kernel, &there.raw(47, &[0; 24]))?.action == PASS);
        ensure!(from_wire(kernel, &there.raw(112, &[0; 24]))?.action == DROP);
        free_node(kernel)
    });
}

#[test]
fn nobody_is_locked_out_of_the_network_under_the_policies() {
    native(|kernel, f| {
        put_policy(kernel, 50, &[])?;
        isolate_node(kernel, 50, 50, false)?;
        if f.v6 {
            // Neighbours, routers, listeners; unicast too.
            for kind in [133, 134, 135, 136, 143] {
                for to in [f.node, "ff02::1", "fe80::11"] {
                    ensure!(from_wire(kernel, &ip(f.gateway, to).ttl(255).icmp(kind, 0, &[0; 20]))?.action == PASS);
                }
                ensure!(from_node(kernel, &ip(f.node, f.gateway).ttl(255).icmp(kind, 0, &[0; 20]))?.action == PASS);
            }
            ensure!(from_wire(kernel, &ip("fe80::9", "fe80::11").udp(547, 546, b""))?.action == PASS);
            ensure!(from_node(kernel, &ip("fe80::11", "ff02::1:2").udp(546, 547, b""))?.action == PASS);
        } else {
            let mut arp = vec![0xff; 12];
            arp.extend([8, 6]);
            arp.extend([0; 28]);
            ensure!(from_wire(kernel, &arp)?.action == PASS && from_node(kernel, &arp)?.action == PASS);
            ensure!(from_wire(kernel, &ip(f.gateway, f.node).udp(67, 68, b""))?.action == PASS);
            ensure!(from_node(kernel, &ip(f.node, f.gateway).udp(68, 67, b""))?.action == PASS);
            ensure!(from_wire(kernel, &ip(f.gateway, "224.0.0.1").raw(2, &[0; 8]))?.action == PASS);
        }
        ensure!(from_wire(kernel, &ip(f.gateway, f.node).udp(67, 69, b""))?.action == DROP);
        free_node(kernel)
    });
}

#[test]
fn every_address_of_the_node_is_guarded() {
    native(|kernel, f| {
        // One that the programs were never told of: the routing table knows it. Of an address of IPv6 that is added, the
        // kernel makes this route some time afterwards.
        let other = if f.v6 { "fd99::1" } else { "192.0.2.99" };
        let ok =
            std::process::Command::new("ip").args(["route", "add", "local", other, "dev", "lo"]).status()?.success();
        ensure!(ok, "an address's route");
        put_policy(kernel, 60, &[allow_port(world(f), TCP, 22)])?;
        put_policy(kernel, 61, &[])?;
        ensure!(from_wire(kernel, &ip(f.world, other).tcp(1, 80, SYN, b""))?.action == PASS);
        isolate_node(kernel, 60, 61, false)?;
        ensure!(from_wire(kernel, &ip(f.world, other).tcp(1, 80, SYN, b""))?.action == DROP);
        ensure!(from_wire(kernel, &ip(f.world, other).tcp(1, 22, SYN, b""))?.action == PASS);
        ensure!(from_wire(kernel, &ip(f.world, other).tcp(1, 22, ACK, b"x"))?.action == PASS);
        ensure!(flow(kernel, f.world, other)?.is_some());
        // What only travels through the node is not its own.
        let through = if f.v6 { "2001:db8:200::1" } else { "203.0.113.1" };
        ensure!(from_wire(kernel, &ip(f.world, through).tcp(1, 80, SYN, b""))?.action == PASS);
        ensure!(flow(kernel, f.world, through)?.is_none());
        free_node(kernel)
    });
}

#[test]
fn an_audit_of_the_node_lets_pass_and_tells() {
    native(|kernel, f| {
        put_open_policy(kernel, 70, &[deny(0).port(TCP, 22)])?;
        put_policy(kernel, 71, &[])?;
        isolate_node(kernel, 70, 71, true)?;
        kernel.drain();
        ensure!(from_wire(kernel, &ip(f.world, f.node).tcp(1, 22, SYN, b""))?.action == PASS);
        let event = last(kernel)?;
        assert_eq!((event.verdict, event.policy, event.egress, event.rule), (verdict::AUDIT, 70, 0, 1));
        ensure!(from_node(kernel, &ip(f.node, f.world).tcp(22, 1, SYN | ACK, b""))?.action == PASS);
        kernel.drain();
        ensure!(from_node(kernel, &ip(f.node, f.world).tcp(5, 443, SYN, b""))?.action == PASS);
        let event = last(kernel)?;
        assert_eq!((event.verdict, event.policy, event.egress, event.rule), (verdict::AUDIT, 71, 1, 0));
        isolate_node(kernel, 70, 71, false)?;
        ensure!(from_wire(kernel, &ip(f.world, f.node).tcp(1, 22, ACK, b""))?.action == DROP);
        ensure!(from_wire(kernel, &ip(f.world, f.node).tcp(1, 23, SYN, b""))?.action == PASS);
        free_node(kernel)
    });
}

#[test]
fn the_tunnel_between_nodes_is_open_and_what_is_in_it_is_judged() {
    on_node(Routing::Vxlan, |kernel| {
        put_policy(kernel, 80, &[allow_port(302, TCP, 80)])?;
        put_policy(kernel, 81, &[allow_port(302, TCP, 81)])?;
        isolate_node(kernel, 80, 81, false)?;
        let wrap = |inner: &[u8]| {
            let mut payload = vec![8, 0, 0, 0, 0, 1, 0x2e, 0];
            payload.extend(inner);
            let mut frame = ip(V4.peer, V4.node).udp(50000, 8472, &payload);
            frame[ETH + 26..ETH + 28].fill(0);
            frame
        };
        for f in FAMILIES {
            ensure!(from_wire(kernel, &wrap(&ip(f.c, f.node).tcp(1, 80, SYN, b"")))?.action == PASS);
            ensure!(from_wire(kernel, &wrap(&ip(f.c, f.node).tcp(1, 82, SYN, b"")))?.action == DROP);
            // Its answer, by the tunnel's device; then a connection of the node's own.
            let send = |kernel: &Kernel, frame: &[u8]| kernel.run("weft_to_tunnel", TUNNEL, frame);
            ensure!(send(kernel, &ip(f.node, f.c).tcp(80, 1, SYN | ACK, b""))?.action == PASS);
            ensure!(send(kernel, &ip(f.node, f.c).tcp(2, 82, SYN, b""))?.action == DROP);
            ensure!(send(kernel, &ip(f.node, f.c).tcp(2, 81, SYN, b""))?.action == PASS);
            ensure!(from_wire(kernel, &wrap(&ip(f.c, f.node).tcp(81, 2, SYN | ACK, b"")))?.action == PASS);
            // A pod that comes without the tunnel is nobody.
            ensure!(from_wire(kernel, &ip(f.c, f.node).tcp(3, 80, SYN, b""))?.action == DROP);
        }
        // The outer packets.
        let sent = from_a(kernel, &ip(V6.a, V6.c).tcp(1, 80, SYN, b""))?;
        ensure!(sent.action == REDIRECT);
        ensure!(from_node(kernel, &sent.frame)?.action == PASS);
        ensure!(from_node(kernel, &ip(V4.node, V4.peer).udp(50000, 8472, &[8, 0, 0, 0, 0, 0, 6, 0]))?.action == PASS);
        ensure!(from_node(kernel, &ip(V4.node, V4.world).udp(50000, 8472, &[8, 0, 0, 0, 0, 0, 6, 0]))?.action == DROP);
        let late = ip(V4.peer, V4.node).fragment(9, 1480, false).raw(UDP, &[0; 64]);
        ensure!(from_wire(kernel, &late)?.action == PASS);
        ensure!(kernel.run("weft_to_device", DEVICE, &ip(V4.node, V4.world).ping(1))?.action == DROP);
        Ok(())
    });
}

#[test]
fn a_full_table_does_not_lock_the_node_up() {
    on_node(Routing::Native, |kernel| {
        put_policy(kernel, 90, &[allow_port(0, TCP, 22)])?;
        isolate_node(kernel, 90, 90, false)?;
        from_wire(kernel, &ip(V4.world, V4.node).tcp(1, 22, SYN, b""))?;
        let (key, entry) = kernel.connections()?.pop().context("an entry")?;
        let mut n = 0;
        while n < 10_000
            && kernel.flows.insert(weft_abi::FlowKey { low: weft_abi::Addr([9, 9, 9, n]), ..key }, entry, 0).is_ok()
        {
            n += 1;
        }
        ensure!(from_wire(kernel, &ip(V4.world, V4.node).tcp(2, 22, SYN, b""))?.action == PASS);
        ensure!(from_wire(kernel, &ip(V4.world, V4.node).tcp(2, 23, SYN, b""))?.action == DROP);
        // A pod's connection to the node needs its entry.
        ensure!(from_a(kernel, &ip(V4.a, V4.node).tcp(2, 22, SYN, b""))?.action == DROP);
        Ok(())
    });
}
