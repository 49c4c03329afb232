//! Fragments of datagrams to services: they follow the first one, and without it they have nowhere to go.

use anyhow::Result;
use weft_abi::{DropReason, FrontendInfo, FrontendKey, service_flags};
use weft_tests::packet::kernel::{Kernel, PASS, REDIRECT};
use weft_tests::packet::service::{frontend, put_cluster_ip, put_service};
use weft_tests::packet::site::{DEVICE, Family, ID_A, addr, allow, from_a, from_node, from_wire, isolate, put_policy};
use weft_tests::packet::stage::{any, balancer, dropped, ends, everywhere, forget_all, parsed, vip};
use weft_tests::packet::{ETH, SCTP, TCP, UDP, ip, read};

/// Says that an address has frontends, as whoever writes these does.
fn mark(kernel: &mut Kernel, address: &str) -> Result<()> {
    Ok(kernel.frontends.insert(FrontendKey::of_address(addr(address)), FrontendInfo::default(), 0)?)
}

/// The second fragment of a datagram of which nobody has seen the first one.
fn late(from: &str, to: &str, protocol: u8) -> Vec<u8> {
    ip(from, to).fragment(77, 1400, false).raw(protocol, &[7; 100])
}

fn header(f: Family) -> usize {
    if f.v6 { 40 } else { 20 }
}

#[test]
fn fragments_follow_the_first_one() {
    everywhere(|kernel, f, _| {
        put_cluster_ip(kernel, 1, frontend(vip(f), 53, UDP), &[(1, f.b, 5353)])?;
        mark(kernel, vip(f))?;
        let whole = ip(f.a, vip(f)).udp(7, 53, &[3; 1200]);
        let first = ip(f.a, vip(f)).fragment(9, 0, true).raw(UDP, &whole[ETH + header(f)..ETH + header(f) + 800]);
        let later = ip(f.a, vip(f)).fragment(9, 800, false).raw(UDP, &whole[ETH + header(f) + 800..]);
        let one = from_a(kernel, &first)?;
        let two = from_a(kernel, &later)?;
        assert_eq!((one.action, two.action), (REDIRECT, REDIRECT));
        // Put together they are the datagram, with a right checksum.
        let skip = ETH + header(f) + if f.v6 { 8 } else { 0 };
        let datagram = [&one.frame[skip..], &two.frame[skip..]].concat();
        let whole = ip(f.a, f.b).raw(UDP, &datagram);
        let seen = read(&whole);
        assert_eq!(ends(&seen), (parsed(f.a), 7, parsed(f.b), 5353));
        if !f.v6 {
            for frame in [&one.frame, &two.frame] {
                assert_eq!(weft_tests::packet::checksum(&[&frame[ETH..ETH + 20]]), 0);
                assert_eq!(frame[ETH + 16..ETH + 20], [10, 244, 1, 11]);
            }
        }
        forget_all(kernel)
    });
}

#[test]
fn without_the_first_one_a_fragment_to_a_service_has_nowhere_to_go() {
    everywhere(|kernel, f, _| {
        put_cluster_ip(kernel, 1, frontend(vip(f), 53, UDP), &[(1, f.b, 5353)])?;
        put_service(kernel, 2, frontend(balancer(f), 53, UDP), service_flags::LOAD_BALANCER, &[(2, f.b, 5353)])?;
        mark(kernel, vip(f))?;
        mark(kernel, balancer(f))?;
        kernel.drain();
        for protocol in [TCP, UDP, SCTP] {
            // Of a pod, of a client outside, of the node itself: to every kind of address, and whatever policies say.
            for isolated in [false, true] {
                if isolated {
                    put_policy(kernel, 60, &[])?;
                    isolate(kernel, f.a, 0, 60)?;
                }
                for to in [vip(f), balancer(f)] {
                    let outcome = from_a(kernel, &late(f.a, to, protocol))?;
                    dropped(kernel, &outcome, DropReason::FragmentNotFound);
                }
                isolate(kernel, f.a, 0, 0)?;
            }
            for to in [vip(f), balancer(f)] {
                let outcome = from_wire(kernel, &late(f.world, to, protocol))?;
                dropped(kernel, &outcome, DropReason::FragmentNotFound);
                let outcome = from_node(kernel, &late(f.node, to, protocol))?;
                dropped(kernel, &outcome, DropReason::FragmentNotFound);
            }
        }
        assert!(kernel.connections()?.is_empty());
        forget_all(kernel)
    });
}

#[test]
fn fragments_to_whoever_is_no_service_are_judged_as_ever() {
    everywhere(|kernel, f, _| {
        // Ports of the node are services, but what comes to its address may be for a process of its own.
        put_service(kernel, 1, frontend(any(f), 30053, UDP), service_flags::NODE_PORT, &[(1, f.b, 5353)])?;
        put_service(kernel, 2, frontend(f.node, 53, UDP), service_flags::EXTERNAL_IP, &[(2, f.b, 5353)])?;
        mark(kernel, f.node)?;
        mark(kernel, vip(f))?;
        for from in [f.world, f.peer] {
            let frame = late(from, f.node, UDP);
            let outcome = from_wire(kernel, &frame)?;
            assert_eq!((outcome.action, outcome.frame), (PASS, frame));
        }
        assert_eq!(from_a(kernel, &late(f.a, f.node, UDP))?.action, PASS);
        let frame = late(f.node, f.world, UDP);
        assert_eq!(from_node(kernel, &frame)?.action, PASS);
        // Pods' packets at the device were looked at before.
        assert_eq!(kernel.on("weft_to_device", (1, DEVICE), &late(f.a, vip(f), UDP), 1, 0)?.action, PASS);
        put_policy(kernel, 61, &[allow(ID_A)])?;
        isolate(kernel, f.b, 61, 0)?;
        assert_eq!(from_a(kernel, &late(f.a, f.b, UDP))?.action, REDIRECT);
        isolate(kernel, f.b, 0, 0)?;
        forget_all(kernel)
    });
}
