//! Packets of services inside the cluster, one by one: forth and back, policies, what the maps hold, and how it fails.

use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::net::IpAddr;
use weft_abi::{DropReason, FlowEntry, client_hash, flow_flags, flow_kind, path_action};
use weft_tests::packet::kernel::{DROP, Kernel, Outcome, PASS, REDIRECT};
use weft_tests::packet::service::{frontend, put_cluster_ip, put_service, put_set, put_table, remove_set, terminate};
use weft_tests::packet::site::{
    DEVICE, FAMILIES, Family, HOST_MAC_A, HOST_MAC_B, ID_A, ID_B, MAC_A, MAC_B, Routing, V4, addr, allow_port, from_a,
    from_b, from_wire, isolate, on_node, put_policy,
};
use weft_tests::packet::{ACK, ETH, FIN, RST, Read, SCTP, SYN, TCP, UDP, ip, read};

fn both(test: impl Fn(&mut Kernel, Family) -> Result<()> + Send + Sync + Copy + 'static) {
    on_node(Routing::Native, move |kernel| FAMILIES.iter().try_for_each(|family| test(kernel, *family)));
}

fn parsed(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// An address of a service.
fn vip(f: Family) -> &'static str {
    if f.v6 { "fd96::5" } else { "10.96.0.5" }
}

fn second_vip(f: Family) -> &'static str {
    if f.v6 { "fd96::6" } else { "10.96.0.6" }
}

/// As whom a pod speaks to itself.
fn hairpin(f: Family) -> &'static str {
    if f.v6 { "100::2a:1" } else { "169.254.42.1" }
}

/// The frame passed, and what it says.
fn passed(outcome: &Outcome) -> Read {
    assert_eq!(outcome.action, REDIRECT);
    read(&outcome.frame)
}

/// Source, its port, destination, its port.
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
    Ok(())
}

#[test]
fn what_is_sent_to_a_service_goes_to_a_backend_and_answers_come_from_the_service() {
    both(|kernel, f| {
        let (there, back) = (ip(f.a, vip(f)), ip(f.b, f.a));
        for protocol in [TCP, UDP, SCTP] {
            put_cluster_ip(kernel, 1, frontend(vip(f), 80, protocol), &[(1, f.b, 8080)])?;
            let (questions, answers) = match protocol {
                TCP => (
                    [
                        there.tcp(40000, 80, SYN, b""),
                        there.tcp(40000, 80, ACK, b"odd"),
                        there.tcp(40000, 80, ACK, b"even"),
                    ],
                    [
                        back.tcp(8080, 40000, SYN | ACK, b""),
                        back.tcp(8080, 40000, ACK, b"x"),
                        back.tcp(8080, 40000, ACK, b""),
                    ],
                ),
                UDP => (
                    [there.udp(40000, 80, b"1"), there.udp(40000, 80, b"22"), there.udp(40000, 80, b"")],
                    [back.udp(8080, 40000, b"1"), back.udp(8080, 40000, b"22"), back.udp(8080, 40000, b"")],
                ),
                _ => (
                    [there.sctp(40000, 80), there.sctp(40000, 80), there.sctp(40000, 80)],
                    [back.sctp(8080, 40000), back.sctp(8080, 40000), back.sctp(8080, 40000)],
                ),
            };
            for (n, (question, answer)) in questions.iter().zip(&answers).enumerate() {
                let seen = passed(&from_a(kernel, question)?);
                assert_eq!(ends(&seen), (parsed(f.a), 40000, parsed(f.b), 8080), "protocol {protocol}");
                assert_eq!((seen.ttl, seen.destination_mac, seen.source_mac), (63, MAC_B, HOST_MAC_B));
                let heard = passed(&from_b(kernel, answer)?);
                assert_eq!(ends(&heard), (parsed(vip(f)), 80, parsed(f.a), 40000), "protocol {protocol}");
                assert_eq!((heard.ttl, heard.destination_mac, heard.source_mac), (63, MAC_A, HOST_MAC_A));
                if n == 1 {
                    // A change that asks all again loses nothing.
                    kernel.bump(&[0])?;
                }
            }
            let entry = flow(kernel, f.a, f.b)?.context("the connection")?;
            assert_eq!((entry.forward_packets, entry.reply_packets), (3, 3));
            assert_eq!((entry.source_identity, entry.destination_identity), (ID_A, ID_B));
            assert_ne!(entry.flags & flow_flags::TRANSLATED, 0);
            let choice = flow(kernel, f.a, vip(f))?.context("the choice")?;
            assert_ne!(choice.flags & flow_flags::SERVICE, 0);
            assert_eq!((choice.forward.action, choice.reply.action), (path_action::NONE, path_action::NONE));
            forget(kernel)?;
        }
        Ok(())
    });
}

#[test]
fn events_show_the_service_and_the_backend() {
    both(|kernel, f| {
        put_cluster_ip(kernel, 1, frontend(vip(f), 80, TCP), &[(1, f.b, 8080)])?;
        from_a(kernel, &ip(f.a, vip(f)).tcp(1, 80, SYN, b""))?;
        from_b(kernel, &ip(f.b, f.a).tcp(8080, 1, SYN | ACK, b""))?;
        let events = kernel.drain();
        assert_eq!(events.len(), 2);
        for event in &events {
            assert_eq!((IpAddr::from(event.frontend), u16::from_be(event.frontend_port_be)), (parsed(vip(f)), 80));
        }
        assert_eq!(IpAddr::from(events[0].destination), parsed(f.b));
        assert_eq!(IpAddr::from(events[1].source), parsed(f.b));
        from_a(kernel, &ip(f.a, f.b).tcp(2, 8080, SYN, b""))?;
        let event = kernel.drain().pop().context("an event")?;
        assert!(event.frontend.is_none() && event.frontend_port_be == 0);
        Ok(())
    });
}

#[test]
fn policy_is_asked_about_the_backend_and_what_it_denies_leaves_nothing() {
    both(|kernel, f| {
        put_cluster_ip(kernel, 1, frontend(vip(f), 80, TCP), &[(1, f.b, 8080)])?;
        put_policy(kernel, 20, &[allow_port(ID_B, TCP, 80)])?;
        isolate(kernel, f.a, 0, 20)?;
        kernel.bump(&[1])?;
        kernel.drain();
        let question = ip(f.a, vip(f)).tcp(1, 80, SYN, b"");
        for _ in 0..3 {
            let outcome = from_a(kernel, &question)?;
            dropped(kernel, &outcome, DropReason::PolicyDenied);
        }
        assert!(kernel.connections()?.is_empty());
        put_policy(kernel, 21, &[allow_port(ID_B, TCP, 8080)])?;
        isolate(kernel, f.a, 0, 21)?;
        put_policy(kernel, 22, &[allow_port(ID_A, TCP, 8080)])?;
        isolate(kernel, f.b, 22, 0)?;
        kernel.bump(&[1, 2])?;
        passed(&from_a(kernel, &question)?);
        // And taken back: neither direction passes.
        put_policy(kernel, 23, &[])?;
        isolate(kernel, f.b, 23, 0)?;
        kernel.bump(&[2])?;
        kernel.drain();
        let outcome = from_a(kernel, &ip(f.a, vip(f)).tcp(1, 80, ACK, b"x"))?;
        dropped(kernel, &outcome, DropReason::PolicyDenied);
        let outcome = from_b(kernel, &ip(f.b, f.a).tcp(8080, 1, ACK, b"x"))?;
        dropped(kernel, &outcome, DropReason::PolicyDenied);
        isolate(kernel, f.a, 0, 0)?;
        isolate(kernel, f.b, 0, 0)?;
        kernel.bump(&[1, 2])?;
        forget(kernel)
    });
}

#[test]
fn a_pod_that_speaks_for_another_reaches_no_service() {
    both(|kernel, f| {
        put_cluster_ip(kernel, 1, frontend(vip(f), 80, TCP), &[(1, f.c, 8080)])?;
        put_cluster_ip(kernel, 2, frontend(vip(f), 81, TCP), &[])?;
        kernel.drain();
        for port in [80, 81] {
            let outcome = from_a(kernel, &ip(f.b, vip(f)).tcp(1, port, SYN, b""))?;
            dropped(kernel, &outcome, DropReason::InvalidSourceIp);
        }
        // Nor by a choice that exists, nor as the service itself.
        passed(&from_b(kernel, &ip(f.b, vip(f)).tcp(1, 80, SYN, b""))?);
        kernel.drain();
        let outcome = from_a(kernel, &ip(f.b, vip(f)).tcp(1, 80, ACK, b""))?;
        dropped(kernel, &outcome, DropReason::InvalidSourceIp);
        let forged = ip(vip(f), f.b).tcp(80, 1, ACK, b"");
        let outcome = from_a(kernel, &forged)?;
        dropped(kernel, &outcome, DropReason::InvalidSourceIp);
        let outcome = from_wire(kernel, &forged)?;
        dropped(kernel, &outcome, DropReason::InvalidSourceIp);
        forget(kernel)
    });
}

#[test]
fn a_client_stays_with_its_backend_as_long_as_the_service_says() {
    both(|kernel, f| {
        let backends: Vec<_> = (0..20).map(|n| (n + 1, f.b, 8000 + n as u16)).collect();
        let key = frontend(vip(f), 80, TCP);
        let mut info = put_cluster_ip(kernel, 3, key, &backends)?;
        let chosen = |kernel: &Kernel, port: u16| -> Result<u16> {
            Ok(passed(&from_a(kernel, &ip(f.a, vip(f)).tcp(port, 80, SYN, b""))?).destination_port())
        };
        let spread: BTreeSet<u16> = (1..100).map(|port| chosen(kernel, port)).collect::<Result<_>>()?;
        assert!(spread.len() > 10, "at random: {spread:?}");
        assert_eq!(kernel.affinity.keys().count(), 0);
        info.affinity_s = 100;
        kernel.frontends.insert(key, info, 0)?;
        let first = chosen(kernel, 1000)?;
        for port in 1001..1050 {
            assert_eq!(chosen(kernel, port)?, first);
        }
        // One that ends, or is gone, or was not used for so long, is left.
        terminate(kernel, u32::from(first) - 8000 + 1)?;
        // New connections choose among the others, as the agent writes it.
        let rest: Vec<_> = backends.iter().copied().filter(|(_, _, port)| *port != first).collect();
        put_cluster_ip(kernel, 3, key, &rest)?;
        kernel.frontends.insert(key, weft_abi::FrontendInfo { internal_count: 19, ..info }, 0)?;
        let second = chosen(kernel, 1050)?;
        assert!((1051..1060).all(|port| chosen(kernel, port).is_ok_and(|to| to == second)));
        let id = u32::from(second) - 8000 + 1;
        let left: Vec<_> = backends.iter().copied().filter(|(_, _, port)| ![first, second].contains(port)).collect();
        put_cluster_ip(kernel, 3, key, &left)?;
        kernel.frontends.insert(key, weft_abi::FrontendInfo { internal_count: 18, ..info }, 0)?;
        let gone = kernel.backends.get(&id, 0)?;
        kernel.backends.remove(&id)?;
        let third: BTreeSet<u16> = (1060..1070).map(|port| chosen(kernel, port)).collect::<Result<_>>()?;
        assert_eq!(third.len(), 1, "again the same for all");
        kernel.backends.insert(id, gone, 0)?;
        let (key, mut value) = kernel.affinity.iter().next().context("an affinity")??;
        let mut left = BTreeSet::new();
        for port in 1070..1090 {
            value.last_used_s = kernel.affinity.get(&key, 0)?.last_used_s.wrapping_sub(101);
            kernel.affinity.insert(key, value, 0)?;
            left.insert(chosen(kernel, port)?);
        }
        assert!(left.len() > 3, "after the time chosen anew: {left:?}");
        kernel.affinity.remove(&key)?;
        forget(kernel)
    });
}

#[test]
fn of_first_packets_on_two_cpus_one_chooses_for_both() {
    both(|kernel, f| {
        let backends: Vec<_> = (0..20).map(|n| (n + 1, f.b, 8000 + n as u16)).collect();
        let key = frontend(vip(f), 80, UDP);
        let mut info = put_cluster_ip(kernel, 3, key, &backends)?;
        info.affinity_s = 100;
        kernel.frontends.insert(key, info, 0)?;
        for round in 0..200 {
            // A client that was never seen, or one that was bound for too long ago.
            for key in kernel.affinity.keys().collect::<Result<Vec<_>, _>>()? {
                let mut value = kernel.affinity.get(&key, 0)?;
                kernel.affinity.remove(&key)?;
                if round % 2 == 1 {
                    value.last_used_s = value.last_used_s.wrapping_sub(1000);
                    kernel.affinity.insert(key, value, 0)?;
                }
            }
            let begin = std::sync::Barrier::new(2);
            let (kernel, begin) = (&*kernel, &begin);
            let ask = |cpu: usize| -> Result<u16> {
                let mut only = nix::sched::CpuSet::new();
                only.set(cpu % std::thread::available_parallelism()?)?;
                nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &only)?;
                let frame = ip(f.a, vip(f)).udp(1000 + 2 * round + cpu as u16, 80, b"first");
                begin.wait();
                Ok(passed(&from_a(kernel, &frame)?).destination_port())
            };
            let (one, other) = std::thread::scope(|scope| {
                let other = scope.spawn(|| ask(1));
                (ask(0), other.join().expect("the other one"))
            });
            assert_eq!(one?, other?, "round {round}");
        }
        forget(kernel)
    });
}

#[test]
fn a_denied_client_leaves_no_affinity() {
    both(|kernel, f| {
        let key = frontend(vip(f), 80, UDP);
        let info = put_cluster_ip(kernel, 1, key, &[(1, f.b, 53)])?;
        kernel.frontends.insert(key, weft_abi::FrontendInfo { affinity_s: 100, ..info }, 0)?;
        put_policy(kernel, 20, &[])?;
        isolate(kernel, f.b, 20, 0)?;
        assert_eq!(from_a(kernel, &ip(f.a, vip(f)).udp(1, 80, b""))?.action, DROP);
        assert_eq!(kernel.affinity.keys().count(), 0);
        isolate(kernel, f.b, 0, 0)
    });
}

#[test]
fn maglev_chooses_the_same_on_every_node() {
    let choices = || {
        let (send, receive) = std::sync::mpsc::channel();
        on_node(Routing::Native, move |kernel| {
            for f in FAMILIES {
                let backends: Vec<_> = (0..10).map(|n| (n + 1, f.b, 8000 + n as u16)).collect();
                let table: Vec<u16> = (0..251_u16).map(|n| n * 7 % 10).collect();
                let key = frontend(vip(f), 80, TCP);
                let mut info = put_cluster_ip(kernel, 3, key, &backends)?;
                info.internal_table = 251;
                kernel.frontends.insert(key, info, 0)?;
                put_table(kernel, 3, &table)?;
                for port in 1..200 {
                    let seen = passed(&from_a(kernel, &ip(f.a, vip(f)).tcp(port, 80, SYN, b""))?);
                    let hash = client_hash(&addr(f.a), port.to_be(), TCP);
                    assert_eq!(seen.destination_port(), 8000 + table[hash as usize % 251]);
                    send.send(seen.destination_port())?;
                }
                info.affinity_s = 1;
                kernel.frontends.insert(key, info, 0)?;
                let hash = client_hash(&addr(f.a), 0, TCP);
                let seen = passed(&from_a(kernel, &ip(f.a, vip(f)).tcp(1000, 80, SYN, b""))?);
                assert_eq!(seen.destination_port(), 8000 + table[hash as usize % 251]);
                forget(kernel)?;
            }
            Ok(())
        });
        receive.iter().collect::<Vec<u16>>()
    };
    assert_eq!(choices(), choices());
}

#[test]
fn a_set_that_is_replaced_meanwhile_is_looked_for_once_more() {
    both(|kernel, f| {
        let key = frontend(vip(f), 80, TCP);
        let mut info = put_cluster_ip(kernel, 1, key, &[(1, f.b, 8080)])?;
        info.internal_set = 77;
        kernel.frontends.insert(key, info, 0)?;
        kernel.drain();
        let outcome = from_a(kernel, &ip(f.a, vip(f)).tcp(1, 80, SYN, b""))?;
        dropped(kernel, &outcome, DropReason::NoServiceBackend);
        // A set of another service is none.
        put_set(kernel, 77, &[weft_tests::packet::service::backend(2, TCP, (9, f.b, 99))])?;
        let outcome = from_a(kernel, &ip(f.a, vip(f)).tcp(1, 80, SYN, b""))?;
        dropped(kernel, &outcome, DropReason::NoServiceBackend);
        remove_set(kernel, 77)?;
        assert!(kernel.connections()?.is_empty());
        Ok(())
    });
}

#[test]
fn a_pod_reaches_itself_by_its_own_service() {
    both(|kernel, f| {
        put_policy(kernel, 50, &[])?;
        isolate(kernel, f.a, 50, 50)?;
        kernel.bump(&[1])?;
        let there = ip(f.a, vip(f));
        for protocol in [TCP, UDP, SCTP] {
            put_cluster_ip(kernel, 1, frontend(vip(f), 80, protocol), &[(1, f.a, 8080)])?;
            let back = ip(f.a, hairpin(f));
            let (question, answer) = match protocol {
                TCP => (there.tcp(7, 80, SYN, b""), back.tcp(8080, 7, SYN | ACK, b"")),
                UDP => (there.udp(7, 80, b"q"), back.udp(8080, 7, b"a")),
                _ => (there.sctp(7, 80), back.sctp(8080, 7)),
            };
            for round in 0..3 {
                let seen = passed(&from_a(kernel, &question)?);
                assert_eq!(ends(&seen), (parsed(hairpin(f)), 7, parsed(f.a), 8080));
                assert_eq!((seen.destination_mac, seen.source_mac), (MAC_A, HOST_MAC_A));
                let heard = passed(&from_a(kernel, &answer)?);
                assert_eq!(ends(&heard), (parsed(vip(f)), 80, parsed(f.a), 7));
                if round == 1 {
                    kernel.bump(&[1])?;
                }
            }
            let entry = flow(kernel, hairpin(f), f.a)?.context("the connection")?;
            assert_eq!((entry.forward_packets, entry.reply_packets), (3, 3));
            // Nobody else gets in by it.
            kernel.drain();
            let outcome = from_b(kernel, &answer)?;
            dropped(kernel, &outcome, DropReason::InvalidSourceIp);
            let forged = match protocol {
                TCP => ip(hairpin(f), f.a).tcp(7, 8080, ACK, b""),
                UDP => ip(hairpin(f), f.a).udp(7, 8080, b""),
                _ => ip(hairpin(f), f.a).sctp(7, 8080),
            };
            for outcome in [from_wire(kernel, &forged)?, from_b(kernel, &forged)?] {
                assert_eq!(outcome.action, DROP);
                kernel.drain();
            }
            forget(kernel)?;
            // Without a connection the address leads nowhere.
            let outcome = from_a(kernel, &answer)?;
            dropped(kernel, &outcome, DropReason::Unroutable);
        }
        isolate(kernel, f.a, 0, 0)?;
        kernel.bump(&[1])
    });
}

#[test]
fn tcp_stays_with_its_backend_until_it_ends_and_a_new_connection_chooses() {
    both(|kernel, f| {
        let key = frontend(vip(f), 80, TCP);
        put_cluster_ip(kernel, 1, key, &[(1, f.b, 8001)])?;
        let there = ip(f.a, vip(f));
        let to = |kernel: &Kernel, flags: u8| -> Result<u16> {
            Ok(passed(&from_a(kernel, &there.tcp(7, 80, flags, b""))?).destination_port())
        };
        assert_eq!(to(kernel, SYN)?, 8001);
        put_cluster_ip(kernel, 1, key, &[(2, f.b, 8002)])?;
        assert_eq!(to(kernel, SYN)?, 8001, "said again, the first one is meant");
        passed(&from_b(kernel, &ip(f.b, f.a).tcp(8001, 7, SYN | ACK, b""))?);
        terminate(kernel, 1)?;
        assert_eq!(to(kernel, ACK)?, 8001);
        kernel.backends.remove(&1)?;
        assert_eq!(to(kernel, ACK)?, 8001);
        // Both sides end it; the same ports begin anew with what there is.
        assert_eq!(to(kernel, FIN | ACK)?, 8001);
        passed(&from_b(kernel, &ip(f.b, f.a).tcp(8001, 7, FIN | ACK, b""))?);
        assert_eq!(to(kernel, ACK)?, 8001);
        assert_eq!(to(kernel, SYN)?, 8002);
        let heard = passed(&from_b(kernel, &ip(f.b, f.a).tcp(8002, 7, SYN | ACK, b""))?);
        assert_eq!(ends(&heard), (parsed(vip(f)), 80, parsed(f.a), 7));
        // One that opens while its backend ends goes elsewhere.
        put_cluster_ip(kernel, 1, key, &[(3, f.b, 8003)])?;
        terminate(kernel, 2)?;
        assert_eq!(to(kernel, SYN)?, 8003);
        forget(kernel)
    });
}

#[test]
fn udp_leaves_a_backend_that_is_gone_and_none_that_ends() {
    both(|kernel, f| {
        let key = frontend(vip(f), 53, UDP);
        put_cluster_ip(kernel, 1, key, &[(1, f.b, 8001)])?;
        let to = |kernel: &Kernel| -> Result<u16> {
            Ok(passed(&from_a(kernel, &ip(f.a, vip(f)).udp(7, 53, b"q"))?).destination_port())
        };
        assert_eq!(to(kernel)?, 8001);
        put_cluster_ip(kernel, 1, key, &[(2, f.b, 8002)])?;
        terminate(kernel, 1)?;
        assert_eq!(to(kernel)?, 8001);
        kernel.backends.remove(&1)?;
        assert_eq!(to(kernel)?, 8002);
        assert_eq!(to(kernel)?, 8002);
        // Its number, given to another one, is not it.
        put_set(kernel, 9, &[weft_tests::packet::service::backend(5, UDP, (2, f.c, 9999))])?;
        put_cluster_ip(kernel, 1, key, &[(3, f.b, 8003)])?;
        assert_eq!(to(kernel)?, 8003);
        // No service any more: the packet is what it says.
        kernel.frontends.remove(&key)?;
        kernel.backends.remove(&3)?;
        let seen = passed(&from_a(kernel, &ip(f.a, vip(f)).udp(7, 53, b"q"))?);
        assert_eq!(seen.destination, parsed(vip(f)));
        assert_eq!(flow(kernel, f.a, vip(f))?.context("plain")?.flags & flow_flags::SERVICE, 0);
        // And one again, which a stale connection notices.
        put_cluster_ip(kernel, 1, key, &[(4, f.b, 8004)])?;
        kernel.bump(&[0])?;
        assert_eq!(to(kernel)?, 8004);
        forget(kernel)
    });
}

#[test]
fn the_same_ports_behind_two_services_are_told_apart_or_refused() {
    both(|kernel, f| {
        put_cluster_ip(kernel, 1, frontend(vip(f), 80, TCP), &[(1, f.b, 8080)])?;
        put_cluster_ip(kernel, 2, frontend(second_vip(f), 80, TCP), &[(2, f.b, 8080)])?;
        passed(&from_a(kernel, &ip(f.a, vip(f)).tcp(7, 80, SYN, b""))?);
        kernel.drain();
        let second = ip(f.a, second_vip(f)).tcp(7, 80, SYN, b"");
        let outcome = from_a(kernel, &second)?;
        dropped(kernel, &outcome, DropReason::NoNatMapping);
        let outcome = from_a(kernel, &ip(f.a, f.b).tcp(7, 8080, SYN, b""))?;
        dropped(kernel, &outcome, DropReason::NoNatMapping);
        // The first one is not harmed, and once it is over its ports are free.
        let heard = passed(&from_b(kernel, &ip(f.b, f.a).tcp(8080, 7, SYN | ACK, b""))?);
        assert_eq!(heard.source, parsed(vip(f)));
        passed(&from_b(kernel, &ip(f.b, f.a).tcp(8080, 7, RST, b""))?);
        passed(&from_a(kernel, &second)?);
        let heard = passed(&from_b(kernel, &ip(f.b, f.a).tcp(8080, 7, SYN | ACK, b""))?);
        assert_eq!(heard.source, parsed(second_vip(f)));
        // With other backends there is a way, whatever the first draw is.
        let three = [(1, f.b, 8080), (3, f.b, 8081), (4, f.b, 8082)];
        put_cluster_ip(kernel, 1, frontend(vip(f), 80, TCP), &three)?;
        forget(kernel)?;
        for port in 1000..1060 {
            for busy in [8080, 8081] {
                passed(&from_a(kernel, &ip(f.a, f.b).tcp(port, busy, SYN, b""))?);
            }
            let seen = passed(&from_a(kernel, &ip(f.a, vip(f)).tcp(port, 80, SYN, b""))?);
            assert_eq!(seen.destination_port(), 8082);
        }
        forget(kernel)
    });
}

#[test]
fn ports_of_datagrams_that_are_answered_or_rest_are_another_services_until_the_first_one_speaks_again() {
    both(|kernel, f| {
        for (n, address) in [(1, vip(f)), (2, second_vip(f))] {
            put_cluster_ip(kernel, n, frontend(address, 53, UDP), &[(n, f.b, 5353)])?;
        }
        let ask = |kernel: &Kernel, to: &str| from_a(kernel, &ip(f.a, to).udp(7, 53, b"q"));
        let answered = |kernel: &Kernel| -> Result<IpAddr> {
            Ok(passed(&from_b(kernel, &ip(f.b, f.a).udp(5353, 7, b"a"))?).source)
        };
        passed(&ask(kernel, vip(f))?);
        kernel.drain();
        let outcome = ask(kernel, second_vip(f))?;
        dropped(kernel, &outcome, DropReason::NoNatMapping);
        assert_eq!(answered(kernel)?, parsed(vip(f)));
        // No answer is outstanding: who has the port now may speak to whom it likes.
        passed(&ask(kernel, second_vip(f))?);
        assert_eq!(answered(kernel)?, parsed(second_vip(f)));
        passed(&ask(kernel, vip(f))?);
        forget(kernel)?;
        passed(&ask(kernel, vip(f))?);
        kernel.drain();
        let outcome = ask(kernel, second_vip(f))?;
        dropped(kernel, &outcome, DropReason::NoNatMapping);
        let rest = |kernel: &mut Kernel| -> Result<()> {
            let (key, mut entry) = kernel.connection(flow_kind::FLOW, parsed(f.a), parsed(f.b))?.context("an entry")?;
            entry.last_seen_s = entry.last_seen_s.wrapping_sub(4);
            Ok(kernel.flows.insert(key, entry, 0)?)
        };
        rest(kernel)?;
        passed(&ask(kernel, second_vip(f))?);
        assert_eq!(answered(kernel)?, parsed(second_vip(f)));
        passed(&ask(kernel, vip(f))?);
        assert_eq!(answered(kernel)?, parsed(vip(f)));
        forget(kernel)
    });
}

#[test]
fn ports_of_datagrams_that_were_answered_behind_a_service_are_free_for_the_backend_itself() {
    both(|kernel, f| {
        put_cluster_ip(kernel, 1, frontend(vip(f), 53, UDP), &[(1, f.b, 5353)])?;
        let through = |kernel: &Kernel| from_a(kernel, &ip(f.a, vip(f)).udp(7, 53, b"q"));
        let direct = |kernel: &Kernel| from_a(kernel, &ip(f.a, f.b).udp(7, 5353, b"q"));
        let reply = |kernel: &Kernel| -> Result<IpAddr> {
            Ok(passed(&from_b(kernel, &ip(f.b, f.a).udp(5353, 7, b"a"))?).source)
        };
        passed(&through(kernel)?);
        kernel.drain();
        // A reply from the frontend is outstanding.
        let outcome = direct(kernel)?;
        dropped(kernel, &outcome, DropReason::NoNatMapping);
        assert_eq!(reply(kernel)?, parsed(vip(f)));
        let seen = passed(&direct(kernel)?);
        assert_eq!((seen.destination, seen.destination_port()), (parsed(f.b), 5353));
        assert_eq!(reply(kernel)?, parsed(f.b));
        // And back.
        let seen = passed(&through(kernel)?);
        assert_eq!((seen.destination, seen.destination_port()), (parsed(f.b), 5353));
        assert_eq!(reply(kernel)?, parsed(vip(f)));
        passed(&direct(kernel)?);
        assert_eq!(reply(kernel)?, parsed(f.b));
        forget(kernel)?;
        // Never answered, and silent for longer than any reply takes.
        passed(&through(kernel)?);
        let (key, mut entry) = kernel.connection(flow_kind::FLOW, parsed(f.a), parsed(f.b))?.context("an entry")?;
        entry.last_seen_s = entry.last_seen_s.wrapping_sub(4);
        kernel.flows.insert(key, entry, 0)?;
        passed(&direct(kernel)?);
        assert_eq!(reply(kernel)?, parsed(f.b));
        forget(kernel)
    });
}

#[test]
fn a_choice_lives_as_long_as_its_connection() {
    both(|kernel, f| {
        let collect = |kernel: &Kernel| kernel.run("weft_collect", DEVICE, &ip(V4.a, V4.b).ping(1));
        for backend in [f.b, f.a] {
            put_cluster_ip(kernel, 1, frontend(vip(f), 80, TCP), &[(1, backend, 8080)])?;
            passed(&from_a(kernel, &ip(f.a, vip(f)).tcp(7, 80, SYN, b""))?);
            let client = if backend == f.a { hairpin(f) } else { f.a };
            for (one, other, left) in [(f.a, vip(f), 2), (client, backend, 0)] {
                let (key, mut entry) =
                    kernel.connection(flow_kind::FLOW, parsed(one), parsed(other))?.context("an entry")?;
                entry.last_seen_s = entry.last_seen_s.wrapping_sub(50_000);
                kernel.flows.insert(key, entry, 0)?;
                collect(kernel)?;
                collect(kernel)?;
                assert_eq!(kernel.connections()?.len(), left);
            }
        }
        Ok(())
    });
}

#[test]
fn a_choice_that_does_not_fit_lets_nothing_pass() {
    on_node(Routing::Native, |kernel| {
        let f = V4;
        put_cluster_ip(kernel, 1, frontend(vip(f), 80, TCP), &[(1, f.b, 8080)])?;
        from_a(kernel, &ip(f.a, f.b).tcp(1, 80, SYN, b""))?;
        let template = kernel.connections()?.pop().context("an entry")?;
        let mut n = 0_u32;
        let mut fill = |kernel: &mut Kernel| loop {
            n += 1;
            let mut key = template.0;
            key.low = weft_abi::Addr([9, 9, 9, n]);
            if kernel.flows.insert(key, template.1, 0).is_err() {
                return key;
            }
        };
        fill(kernel);
        let last = weft_abi::FlowKey { low: weft_abi::Addr([9, 9, 9, 1]), ..template.0 };
        kernel.flows.remove(&last)?;
        // There is room for the connection and none for the choice.
        kernel.drain();
        let outcome = from_a(kernel, &ip(f.a, vip(f)).tcp(2, 80, SYN, b""))?;
        dropped(kernel, &outcome, DropReason::CtInsertFailed);
        Ok(())
    });
}

#[test]
fn a_udp_checksum_of_zero_stays_zero() {
    on_node(Routing::Native, |kernel| {
        let f = V4;
        put_cluster_ip(kernel, 1, frontend(vip(f), 53, UDP), &[(1, f.b, 5353)])?;
        let mut frame = ip(f.a, vip(f)).udp(7, 53, b"q");
        frame[ETH + 26..ETH + 28].fill(0);
        let seen = passed(&from_a(kernel, &frame)?);
        assert_eq!((seen.destination_port(), &seen.rest[6..8]), (5353, &[0, 0][..]));
        Ok(())
    });
}

#[test]
fn a_node_port_of_any_node_leads_pods_to_backends() {
    for routing in [Routing::Native, Routing::Vxlan] {
        on_node(routing, |kernel| FAMILIES.iter().try_for_each(|f| node_ports(kernel, *f)));
    }
}

fn node_ports(kernel: &mut Kernel, f: Family) -> Result<()> {
    const NODE_PORT: u32 = weft_abi::service_flags::NODE_PORT;
    let any = if f.v6 { "::" } else { "0.0.0.0" };
    for protocol in [TCP, UDP, SCTP] {
        put_service(kernel, 1, frontend(any, 30080, protocol), NODE_PORT, &[(1, f.b, 8080)])?;
        put_service(kernel, 2, frontend(any, 8081, protocol), weft_abi::service_flags::HOST_PORT, &[(2, f.b, 8080)])?;
        let open = |ends: weft_tests::packet::Ip, from, to| match protocol {
            TCP => ends.tcp(from, to, SYN, b""),
            UDP => ends.udp(from, to, b"x"),
            _ => ends.sctp(from, to),
        };
        let answer = |ends: weft_tests::packet::Ip, from, to| match protocol {
            TCP => ends.tcp(from, to, SYN | ACK, b""),
            UDP => ends.udp(from, to, b"x"),
            _ => ends.sctp(from, to),
        };
        for (client, node) in [(7, f.node), (8, f.peer)] {
            let seen = passed(&from_a(kernel, &open(ip(f.a, node), client, 30080))?);
            assert_eq!(ends(&seen), (parsed(f.a), client, parsed(f.b), 8080), "{node}");
            let heard = passed(&from_b(kernel, &answer(ip(f.b, f.a), 8080, client))?);
            assert_eq!(ends(&heard), (parsed(node), 30080, parsed(f.a), client));
            // Policies see the pod, whichever node is asked.
            put_policy(kernel, 20, &[allow_port(ID_A, protocol, 8081)])?;
            isolate(kernel, f.b, 20, 0)?;
            kernel.bump(&[2])?;
            kernel.drain();
            let outcome = from_a(kernel, &open(ip(f.a, node), client + 10, 30080))?;
            dropped(kernel, &outcome, DropReason::PolicyDenied);
            isolate(kernel, f.b, 0, 0)?;
            kernel.bump(&[2])?;
        }
        forget(kernel)?;
        // Another node's host port is that node's business, other ports of the own node are its own.
        let outcome = from_a(kernel, &open(ip(f.a, f.peer), 9, 8081))?;
        assert_ne!(outcome.action, DROP);
        assert!(flow(kernel, f.a, f.peer)?.is_some_and(|entry| entry.flags & flow_flags::SERVICE == 0));
        assert_eq!(from_a(kernel, &open(ip(f.a, f.node), 9, 30081))?.action, PASS);
        forget(kernel)?;
    }
    // A connection that was opened before, through the other node, goes on as it is.
    let outcome = from_a(kernel, &ip(f.a, f.peer).tcp(11, 30080, ACK, b"x"))?;
    assert_ne!(outcome.action, DROP);
    assert!(flow(kernel, f.a, f.peer)?.is_some_and(|entry| entry.flags & flow_flags::SERVICE == 0));
    forget(kernel)
}

#[test]
fn pods_that_a_redirect_leads_to_reach_what_is_behind_it() {
    both(|kernel, f| {
        let key = frontend(vip(f), 80, TCP);
        let flags = weft_abi::service_flags::REDIRECT | weft_abi::service_flags::SKIP_FROM_BACKEND;
        put_service(kernel, 1, key, flags, &[(1, f.b, 8080)])?;
        let seen = passed(&from_a(kernel, &ip(f.a, vip(f)).tcp(7, 80, SYN, b""))?);
        assert_eq!(seen.destination, parsed(f.b));
        let seen = passed(&from_b(kernel, &ip(f.b, vip(f)).tcp(7, 80, SYN, b""))?);
        assert_eq!(seen.destination, parsed(vip(f)));
        forget(kernel)
    });
}
