//! Packets through the real kernel programs, one by one: verdicts, rewritten bytes, what the maps hold afterwards.

use anyhow::{Context, Result};
use aya::programs::Program;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use weft_abi::{Addr, DropReason, IpcacheInfo, MetricKey, flow_flags, identity, path_action};
use weft_tests::packet::kernel::{DROP, Kernel, Outcome, PASS, REDIRECT, object};
use weft_tests::packet::site::{
    HOST_MAC_B, ID_A, ID_B, ID_C, MAC_B, POD_A, POD_B, Routing, addr, allow, allow_port, cidr, deny, from_a, from_b,
    from_wire, isolate, on_node, put_cidr, put_policy,
};
use weft_tests::packet::stage::{dropped, flow, native};
use weft_tests::packet::{ACK, FIN, RST, SCTP, SYN, TCP, UDP, ip, quoted, read};

/// The frame passed into a pod, addressed to it, one hop on.
fn delivered_to_b(outcome: &Outcome) {
    assert_eq!(outcome.action, REDIRECT);
    let read = read(&outcome.frame);
    assert_eq!((read.destination_mac, read.source_mac, read.ttl), (MAC_B, HOST_MAC_B, 63));
}

#[test]
fn pods_of_one_node_talk_when_nobody_isolates_them() {
    native(|kernel, f| {
        let (there, back) = (ip(f.a, f.b), ip(f.b, f.a));
        delivered_to_b(&from_a(kernel, &there.tcp(40000, 80, SYN, b""))?);
        let answer = from_b(kernel, &back.tcp(80, 40000, SYN | ACK, b""))?;
        assert_eq!(answer.action, REDIRECT);
        delivered_to_b(&from_a(kernel, &there.tcp(40000, 80, ACK, b"hello"))?);
        let entry = flow(kernel, f.a, f.b)?.context("an entry")?;
        assert_eq!((entry.source_identity, entry.destination_identity), (ID_A, ID_B));
        assert_eq!((entry.source_endpoint, entry.destination_endpoint), (1, 2));
        assert_eq!((entry.forward_packets, entry.reply_packets), (2, 1));
        assert_eq!((entry.forward.ifindex, entry.reply.ifindex), (POD_B, POD_A));
        assert_eq!(entry.flags & flow_flags::SEEN_REPLY, flow_flags::SEEN_REPLY);
        delivered_to_b(&from_a(kernel, &there.udp(5000, 53, b"question"))?);
        delivered_to_b(&from_a(kernel, &there.sctp(5000, 5001))?);
        delivered_to_b(&from_a(kernel, &there.ping(77))?);
        Ok(())
    });
}

#[test]
fn policy_denies_by_default_and_names_the_rule_that_allows() {
    native(|kernel, f| {
        put_policy(kernel, 10, &[allow_port(ID_A, TCP, 80)])?;
        isolate(kernel, f.b, 10, 0)?;
        kernel.bump(&[2])?;
        kernel.drain();
        let packet = ip(f.a, f.b);
        delivered_to_b(&from_a(kernel, &packet.tcp(40000, 80, SYN, b""))?);
        assert_eq!(flow(kernel, f.a, f.b)?.context("an entry")?.ingress_rule, 1);
        for frame in [
            packet.tcp(40001, 81, SYN, b""),
            packet.udp(40001, 80, b""),
            packet.sctp(40001, 80),
            packet.ping(3),
            ip(f.a, f.b).raw(47, &[0; 16]),
        ] {
            let outcome = from_a(kernel, &frame)?;
            let event = kernel.drain().pop().context("an event")?;
            assert_eq!((outcome.action, event.reason), (DROP, DropReason::PolicyDenied as u8));
            assert_eq!(
                (event.policy, event.egress, event.source_identity, event.destination_identity),
                (10, 0, ID_A, ID_B)
            );
        }
        // Denied connections leave nothing behind.
        assert_eq!(
            kernel.connections()?.iter().filter(|(key, _)| key.low == addr(f.a) || key.high == addr(f.a)).count(),
            1
        );
        isolate(kernel, f.b, 0, 0)?;
        Ok(())
    });
}

#[test]
fn both_ends_policies_are_asked_and_deny_beats_allow() {
    native(|kernel, f| {
        let packet = ip(f.a, f.b);
        put_policy(kernel, 20, &[allow(ID_B), allow_port(0, UDP, 53)])?;
        put_policy(kernel, 21, &[allow_port(ID_A, TCP, 80)])?;
        isolate(kernel, f.a, 0, 20)?;
        isolate(kernel, f.b, 21, 0)?;
        kernel.bump(&[1, 2])?;
        delivered_to_b(&from_a(kernel, &packet.tcp(1, 80, SYN, b""))?);
        assert_eq!(from_a(kernel, &packet.tcp(1, 81, SYN, b""))?.action, DROP);
        put_policy(kernel, 22, &[allow(ID_B), deny(ID_B).port(TCP, 80)])?;
        isolate(kernel, f.a, 0, 22)?;
        kernel.bump(&[1])?;
        kernel.drain();
        let outcome = from_a(kernel, &packet.tcp(1, 80, ACK, b""))?;
        dropped(kernel, &outcome, DropReason::PolicyDenyRule);
        isolate(kernel, f.a, 0, 0)?;
        isolate(kernel, f.b, 0, 0)?;
        Ok(())
    });
}

#[test]
fn an_established_connection_obeys_the_new_policy_at_the_next_packet_of_either_side() {
    native(|kernel, f| {
        let (there, back) = (ip(f.a, f.b), ip(f.b, f.a));
        put_policy(kernel, 30, &[allow_port(ID_A, TCP, 80)])?;
        put_policy(kernel, 31, &[])?;
        isolate(kernel, f.b, 30, 0)?;
        kernel.bump(&[2])?;
        delivered_to_b(&from_a(kernel, &there.tcp(40000, 80, SYN, b""))?);
        assert_eq!(from_b(kernel, &back.tcp(80, 40000, SYN | ACK, b""))?.action, REDIRECT);
        // A bump that changes nothing for them lets them go on, in either direction first.
        kernel.bump(&[0])?;
        assert_eq!(from_b(kernel, &back.tcp(80, 40000, ACK, b"x"))?.action, REDIRECT);
        delivered_to_b(&from_a(kernel, &there.tcp(40000, 80, ACK, b"x"))?);
        kernel.drain();
        isolate(kernel, f.b, 31, 0)?;
        kernel.bump(&[2])?;
        let outcome = from_b(kernel, &back.tcp(80, 40000, ACK, b"data"))?;
        dropped(kernel, &outcome, DropReason::PolicyDenied);
        let outcome = from_a(kernel, &there.tcp(40000, 80, ACK, b"data"))?;
        dropped(kernel, &outcome, DropReason::PolicyDenied);
        let outcome = from_b(kernel, &back.tcp(80, 40000, ACK, b"data"))?;
        dropped(kernel, &outcome, DropReason::PolicyDenied);
        // And back: the connection goes on.
        isolate(kernel, f.b, 30, 0)?;
        kernel.bump(&[2])?;
        delivered_to_b(&from_a(kernel, &there.tcp(40000, 80, ACK, b"x"))?);
        assert_eq!(from_b(kernel, &back.tcp(80, 40000, ACK, b"x"))?.action, REDIRECT);
        isolate(kernel, f.b, 0, 0)?;
        Ok(())
    });
}

#[test]
fn a_change_that_does_not_touch_a_connection_does_not_redecide_it() {
    native(|kernel, f| {
        let there = ip(f.a, f.b);
        from_a(kernel, &there.tcp(40000, 80, SYN, b""))?;
        let before = flow(kernel, f.a, f.b)?.context("an entry")?.revision;
        kernel.bump(&[9])?;
        from_a(kernel, &there.tcp(40000, 80, ACK, b""))?;
        assert_eq!(flow(kernel, f.a, f.b)?.context("an entry")?.revision, before);
        kernel.bump(&[1])?;
        from_a(kernel, &there.tcp(40000, 80, ACK, b""))?;
        assert!(flow(kernel, f.a, f.b)?.context("an entry")?.revision > before);
        Ok(())
    });
}

#[test]
fn replies_pass_an_isolated_originator_and_nobody_else_does() {
    native(|kernel, f| {
        put_policy(kernel, 40, &[])?;
        isolate(kernel, f.a, 40, 0)?;
        kernel.bump(&[1])?;
        kernel.drain();
        delivered_to_b(&from_a(kernel, &ip(f.a, f.b).udp(4000, 53, b"q"))?);
        assert_eq!(from_b(kernel, &ip(f.b, f.a).udp(53, 4000, b"r"))?.action, REDIRECT);
        kernel.drain();
        let outcome = from_b(kernel, &ip(f.b, f.a).udp(54, 4000, b"r"))?;
        dropped(kernel, &outcome, DropReason::PolicyDenied);
        isolate(kernel, f.a, 0, 0)?;
        Ok(())
    });
}

#[test]
fn nobody_speaks_for_another() {
    native(|kernel, f| {
        for source in [f.b, f.c, f.world, f.node, f.gone] {
            kernel.drain();
            let outcome = from_a(kernel, &ip(source, f.b).tcp(1, 2, SYN, b""))?;
            dropped(kernel, &outcome, DropReason::InvalidSourceIp);
        }
        // Also not within a connection that exists.
        from_a(kernel, &ip(f.a, f.b).tcp(7, 8, SYN, b""))?;
        kernel.drain();
        let outcome = from_b(kernel, &ip(f.a, f.b).tcp(7, 8, ACK, b""))?;
        dropped(kernel, &outcome, DropReason::InvalidSourceIp);
        for source in [f.a, f.b, f.node, f.gone] {
            let outcome = from_wire(kernel, &ip(source, f.b).tcp(7, 8, ACK, b""))?;
            dropped(kernel, &outcome, DropReason::InvalidSourceIp);
        }
        assert_eq!(flow(kernel, f.node, f.b)?, None);
        Ok(())
    });
}

#[test]
fn a_pod_always_reaches_itself() {
    native(|kernel, f| {
        put_policy(kernel, 50, &[])?;
        isolate(kernel, f.a, 50, 50)?;
        kernel.bump(&[1])?;
        assert_eq!(from_a(kernel, &ip(f.a, f.a).tcp(1, 2, SYN, b""))?.action, REDIRECT);
        isolate(kernel, f.a, 0, 0)
    });
}

#[test]
fn the_host_reaches_its_pods_and_pods_their_host_as_policy_says() {
    native(|kernel, f| {
        put_policy(kernel, 60, &[])?;
        isolate(kernel, f.a, 60, 60)?;
        kernel.bump(&[1])?;
        let there = ip(f.node, f.a).tcp(50000, 80, SYN, b"");
        assert_eq!(kernel.run("weft_to_pod", POD_A, &there)?.action, PASS);
        // Its answers go back, whatever egress policy says.
        assert_eq!(from_a(kernel, &ip(f.a, f.node).tcp(80, 50000, SYN | ACK, b""))?.action, PASS);
        kernel.drain();
        let outcome = from_a(kernel, &ip(f.a, f.node).tcp(80, 50001, SYN, b""))?;
        dropped(kernel, &outcome, DropReason::PolicyDenied);
        put_policy(kernel, 61, &[allow_port(identity::HOST, TCP, 6443)])?;
        isolate(kernel, f.a, 60, 61)?;
        kernel.bump(&[1])?;
        assert_eq!(from_a(kernel, &ip(f.a, f.node).tcp(81, 6443, SYN, b""))?.action, PASS);
        isolate(kernel, f.a, 0, 0)
    });
}

#[test]
fn a_link_takes_what_is_for_its_own_pod() {
    native(|kernel, f| {
        kernel.drain();
        for destination in [f.b, f.c, f.gone, f.world] {
            let outcome = kernel.run("weft_to_pod", POD_A, &ip(f.node, destination).tcp(1, 80, SYN, b""))?;
            dropped(kernel, &outcome, DropReason::Unroutable);
        }
        Ok(())
    });
}

#[test]
fn prefixes_match_whoever_has_the_address() {
    native(|kernel, f| {
        let number = cidr(5);
        put_cidr(kernel, if f.v6 { "fd44:0:0:1::/64" } else { "10.244.1.0/24" }, number)?;
        put_policy(kernel, 70, &[allow_port(number | identity::SCOPE_POD, TCP, 80)])?;
        isolate(kernel, f.b, 70, 0)?;
        kernel.bump(&[2])?;
        delivered_to_b(&from_a(kernel, &ip(f.a, f.b).tcp(1, 80, SYN, b""))?);
        assert_eq!(from_wire(kernel, &ip(f.c, f.b).tcp(1, 80, SYN, b""))?.action, DROP);
        isolate(kernel, f.b, 0, 0)
    });
}

#[test]
fn pods_elsewhere_are_reached_natively_and_reach_us() {
    native(|kernel, f| {
        let outcome = from_a(kernel, &ip(f.a, f.c).tcp(1, 80, SYN, b""))?;
        assert_eq!((outcome.action, read(&outcome.frame).ttl), (REDIRECT, 63));
        let entry = flow(kernel, f.a, f.c)?.context("an entry")?;
        assert_eq!((entry.forward.action, entry.destination_identity), (path_action::DEVICE, ID_C));
        assert_eq!(entry.forward.target, addr(f.gateway));
        assert_eq!(read(&outcome.frame).source, f.a.parse::<IpAddr>()?);
        assert_eq!(from_wire(kernel, &ip(f.c, f.a).tcp(80, 1, SYN | ACK, b""))?.action, REDIRECT);
        delivered_to_b(&from_wire(kernel, &ip(f.c, f.b).udp(5, 6, b""))?);
        Ok(())
    });
}

#[test]
fn a_pod_address_that_nobody_knows_is_not_the_world() {
    native(|kernel, f| {
        put_policy(kernel, 80, &[allow(if f.v6 { identity::WORLD_IPV6 } else { identity::WORLD_IPV4 })])?;
        isolate(kernel, f.b, 80, 0)?;
        kernel.bump(&[2])?;
        kernel.drain();
        delivered_to_b(&from_wire(kernel, &ip(f.world, f.b).tcp(1, 80, SYN, b""))?);
        kernel.drain();
        let outcome = from_wire(kernel, &ip(f.new, f.b).tcp(1, 80, SYN, b""))?;
        dropped(kernel, &outcome, DropReason::UnknownSender);
        // An address of ours without a pod goes nowhere.
        let outcome = from_a(kernel, &ip(f.a, f.gone).tcp(1, 80, SYN, b""))?;
        dropped(kernel, &outcome, DropReason::Unroutable);
        let outcome = from_wire(kernel, &ip(f.world, f.gone).tcp(1, 80, SYN, b""))?;
        dropped(kernel, &outcome, DropReason::Unroutable);
        // Once it is known, it is judged by what it is.
        kernel.ipcache.insert(addr(f.new), IpcacheInfo { identity: ID_C, flags: 0, node: Addr::NONE }, 0)?;
        put_policy(kernel, 81, &[allow(ID_C)])?;
        isolate(kernel, f.b, 81, 0)?;
        kernel.bump(&[2])?;
        delivered_to_b(&from_wire(kernel, &ip(f.new, f.b).tcp(1, 80, SYN, b""))?);
        kernel.ipcache.remove(&addr(f.new))?;
        isolate(kernel, f.b, 0, 0)
    });
}

#[test]
fn the_last_hop_goes_to_the_stack_which_says_so() {
    native(|kernel, f| {
        for ttl in [0, 1] {
            let frame = ip(f.a, f.b).ttl(ttl).tcp(1, 80, SYN, b"");
            let outcome = from_a(kernel, &frame)?;
            assert_ne!(outcome.action, REDIRECT, "a packet with TTL {ttl} travels on");
            assert_eq!(outcome.frame, frame);
        }
        Ok(())
    });
}

#[test]
fn the_state_of_tcp_follows_its_flags() {
    native(|kernel, f| {
        let (there, back) = (ip(f.a, f.b), ip(f.b, f.a));
        let state = |kernel: &Kernel| -> Result<u16> { Ok(flow(kernel, f.a, f.b)?.context("an entry")?.flags) };
        from_a(kernel, &there.tcp(1, 80, SYN, b""))?;
        from_b(kernel, &back.tcp(80, 1, SYN | ACK, b""))?;
        // A reset does not end what goes on: traffic takes it back.
        from_b(kernel, &back.tcp(80, 1, RST, b""))?;
        assert_ne!(state(kernel)? & flow_flags::RST, 0);
        from_a(kernel, &there.tcp(1, 80, ACK, b""))?;
        assert_eq!(state(kernel)? & flow_flags::RST, 0);
        from_a(kernel, &there.tcp(1, 80, FIN | ACK, b""))?;
        assert_ne!(state(kernel)? & flow_flags::FIN_FORWARD, 0);
        assert_eq!(state(kernel)? & flow_flags::FIN_REPLY, 0);
        from_b(kernel, &back.tcp(80, 1, FIN | ACK, b""))?;
        assert_ne!(state(kernel)? & flow_flags::FIN_REPLY, 0);
        // A new connection of the same ports starts afresh, from either end.
        from_b(kernel, &back.tcp(80, 1, SYN, b""))?;
        let entry = flow(kernel, f.a, f.b)?.context("an entry")?;
        assert_eq!(entry.flags & (flow_flags::FIN_FORWARD | flow_flags::FIN_REPLY | flow_flags::SEEN_REPLY), 0);
        assert_eq!((entry.source_identity, entry.destination_identity), (ID_B, ID_A));
        Ok(())
    });
}

#[test]
fn both_sides_may_close_at_one_moment() {
    const CONNECTIONS: u16 = 4000;
    native(|kernel, f| {
        let (there, back) = (ip(f.a, f.b), ip(f.b, f.a));
        for port in 1..=CONNECTIONS {
            from_a(kernel, &there.tcp(port, 80, SYN, b""))?;
            from_b(kernel, &back.tcp(80, port, SYN | ACK, b""))?;
        }
        let arrived = AtomicU32::new(0);
        let (kernel, arrived) = (&*kernel, &arrived);
        let close = |cpu: usize| -> Result<()> {
            let mut only = nix::sched::CpuSet::new();
            only.set(cpu % std::thread::available_parallelism()?)?;
            nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &only)?;
            for port in 1..=CONNECTIONS {
                let (program, from, frame) = if cpu == 0 {
                    ("weft_from_pod", POD_A, there.tcp(port, 80, FIN | ACK, b""))
                } else {
                    ("weft_from_pod", POD_B, back.tcp(80, port, FIN | ACK, b""))
                };
                arrived.fetch_add(1, Ordering::AcqRel);
                while arrived.load(Ordering::Acquire) < u32::from(port) * 2 {
                    std::thread::yield_now();
                }
                kernel.run(program, from, &frame)?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let other = scope.spawn(|| close(1));
            close(0)?;
            other.join().expect("the other side")
        })?;
        const CLOSED: u16 = flow_flags::FIN_FORWARD | flow_flags::FIN_REPLY;
        let open = kernel.connections()?.iter().filter(|(_, entry)| entry.flags & CLOSED != CLOSED).count();
        assert_eq!(open, 0, "connections that both sides closed are taken for open");
        Ok(())
    });
}

#[test]
fn errors_about_a_connection_pass_and_others_do_not() {
    native(|kernel, f| {
        put_policy(kernel, 90, &[allow_port(ID_A, UDP, 53)])?;
        isolate(kernel, f.b, 90, 90)?;
        put_policy(kernel, 91, &[allow_port(ID_B, UDP, 53)])?;
        isolate(kernel, f.a, 91, 91)?;
        kernel.bump(&[1, 2])?;
        let question = ip(f.a, f.b).udp(4000, 53, b"q");
        delivered_to_b(&from_a(kernel, &question)?);
        assert_eq!(from_b(kernel, &ip(f.b, f.a).unreachable(&question))?.action, REDIRECT);
        // About nothing that exists, or told by somebody who pretends.
        let other = ip(f.a, f.b).udp(4001, 53, b"q");
        assert_eq!(from_b(kernel, &ip(f.b, f.a).unreachable(&other))?.action, DROP);
        assert_eq!(from_b(kernel, &ip(f.c, f.a).unreachable(&question))?.action, DROP);
        // A quote that is not the hearer's own packet.
        assert_eq!(from_b(kernel, &ip(f.b, f.a).unreachable(&ip(f.c, f.b).udp(4000, 53, b"q")))?.action, DROP);
        // Cut quotes.
        for length in 0..48 {
            let frame = ip(f.b, f.a).unreachable(&question[..(14 + length).min(question.len())]);
            let outcome = from_b(kernel, &frame)?;
            let whole = length >= if f.v6 { 48 } else { 28 };
            assert!(whole || outcome.action == DROP, "a quote of {length} bytes passes");
        }
        isolate(kernel, f.a, 0, 0)?;
        isolate(kernel, f.b, 0, 0)
    });
}

#[test]
fn a_router_on_the_way_may_tell_the_path_mtu() {
    native(|kernel, f| {
        put_policy(kernel, 95, &[allow(ID_C)])?;
        isolate(kernel, f.a, 95, 95)?;
        kernel.bump(&[1])?;
        let segment = ip(f.a, f.c).tcp(4000, 80, ACK, &[0; 200]);
        assert_eq!(from_a(kernel, &segment)?.action, REDIRECT);
        let mut body = if f.v6 { 1280_u32.to_be_bytes().to_vec() } else { vec![0, 0, 5, 0] };
        body.extend(&segment[14..134]);
        let too_big = if f.v6 { ip(f.gateway, f.a).icmp(2, 0, &body) } else { ip(f.gateway, f.a).icmp(3, 4, &body) };
        let outcome = from_wire(kernel, &too_big)?;
        assert_eq!(outcome.action, REDIRECT);
        assert_eq!(quoted(&read(&outcome.frame))[14..134], segment[14..134]);
        isolate(kernel, f.a, 0, 0)
    });
}

#[test]
fn an_endpoint_without_a_policy_in_force_is_closed() {
    native(|kernel, f| {
        isolate(kernel, f.b, 4242, 0)?;
        kernel.bump(&[2])?;
        kernel.drain();
        let outcome = from_a(kernel, &ip(f.a, f.b).tcp(1, 80, SYN, b""))?;
        dropped(kernel, &outcome, DropReason::EndpointNotReady);
        isolate(kernel, f.b, 0, 0)
    });
}

#[test]
fn a_full_table_drops_and_says_so() {
    on_node(Routing::Native, |kernel| {
        let template = {
            from_a(kernel, &ip("10.244.1.10", "10.244.1.11").tcp(1, 80, SYN, b""))?;
            kernel.connections()?.pop().context("an entry")?
        };
        let mut refused = false;
        for n in 0..10_000_u32 {
            let mut key = template.0;
            key.low = Addr([9, 9, 9, n]);
            refused = kernel.flows.insert(key, template.1, 0).is_err();
            if refused {
                break;
            }
        }
        assert!(refused, "the table is full");
        kernel.drain();
        let outcome = from_a(kernel, &ip("10.244.1.10", "10.244.1.11").tcp(2, 80, SYN, b""))?;
        dropped(kernel, &outcome, DropReason::CtInsertFailed);
        Ok(())
    });
}

#[test]
fn what_passes_and_what_drops_is_counted_and_events_are_bounded() {
    on_node(Routing::Native, |kernel| {
        let mut config = kernel.config.get(&0, 0)?;
        config.events_per_s = 10;
        kernel.config.set(0, config, 0)?;
        put_policy(kernel, 99, &[])?;
        isolate(kernel, "10.244.1.11", 99, 0)?;
        let frame = ip("10.244.1.10", "10.244.1.11").tcp(1, 80, SYN, b"");
        let passed = kernel.counted(None)?;
        for _ in 0..1000 {
            assert_eq!(from_a(kernel, &frame)?.action, DROP);
        }
        assert_eq!(kernel.counted(Some(DropReason::PolicyDenied))?, 1000);
        assert_eq!(kernel.counted(None)?, passed);
        let events = kernel.drain();
        assert!((10..200).contains(&events.len()), "{} events", events.len());
        let suppressed = kernel.metrics.get(&MetricKey::index(MetricKey::SUPPRESSED, false), 0)?;
        assert_eq!(suppressed.iter().map(|value| value.packets).sum::<u64>(), 1000 - events.len() as u64);
        // The ones that were not sent are told by the next that is, on the same CPU.
        config.events_per_s = 1_000_000;
        kernel.config.set(0, config, 0)?;
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        let mut told: u32 = events.iter().map(|event| event.suppressed).sum();
        let mut sent = events.len() as u32;
        let mut runs = 1000;
        while told + sent < runs && std::time::Instant::now() < deadline {
            from_a(kernel, &frame)?;
            runs += 1;
            let events = kernel.drain();
            told += events.iter().map(|event| event.suppressed).sum::<u32>();
            sent += events.len() as u32;
        }
        assert_eq!(told + sent, runs);
        Ok(())
    });
}

#[test]
fn the_verifier_has_room_left() {
    on_node(Routing::Native, |kernel| {
        let verified = kernel.verified()?;
        assert_eq!(verified.len(), 8);
        for (name, instructions) in verified {
            println!("{name}: {instructions}");
            assert!(instructions < 150_000, "{name}: {instructions} of a million");
        }
        Ok(())
    });
}

#[test]
fn the_verifier_takes_the_programs_at_sockets() -> Result<()> {
    let mut ebpf = aya::EbpfLoader::new().load(&object()?)?;
    let mut verified = 0;
    for (name, program) in ebpf.programs_mut() {
        match program {
            Program::CgroupSockAddr(program) => program.load(),
            Program::CgroupSock(program) => program.load(),
            _ => continue,
        }
        .with_context(|| format!("load {name}"))?;
        let instructions = program.info()?.verified_instruction_count().context("the kernel counts")?;
        println!("{name}: {instructions}");
        assert!(instructions < 50_000, "{name}: {instructions}");
        verified += 1;
    }
    assert_eq!(verified, 11);
    Ok(())
}

#[test]
fn sctp_is_told_apart_by_its_ports() {
    native(|kernel, f| {
        put_policy(kernel, 97, &[allow_port(ID_A, SCTP, 5000)])?;
        isolate(kernel, f.b, 97, 0)?;
        kernel.bump(&[2])?;
        delivered_to_b(&from_a(kernel, &ip(f.a, f.b).sctp(1, 5000))?);
        assert_eq!(from_b(kernel, &ip(f.b, f.a).sctp(5000, 1))?.action, REDIRECT);
        assert_eq!(from_a(kernel, &ip(f.a, f.b).sctp(1, 5001))?.action, DROP);
        isolate(kernel, f.b, 0, 0)
    });
}
