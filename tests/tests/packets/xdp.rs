//! The program before the kernel (XDP): it does to packets of decided connections at the edge what the program behind the
//! device does, to the byte, and leaves everything else to that one.

use anyhow::{Context, Result};
use std::net::IpAddr;
use weft_abi::{MetricKey, config_flags, flow_flags, flow_kind, service_flags};
use weft_tests::packet::kernel::{Kernel, Outcome, REDIRECT, XDP_PASS, XDP_REDIRECT};
use weft_tests::packet::service::{frontend, put_service};
use weft_tests::packet::site::{DEVICE, FAMILIES, Family, MAC_DEVICE, POD_A, Routing, from_a, from_wire, on_node};
use weft_tests::packet::{ACK, ETH, FIN, Ip, RST, SCTP, SYN, TCP, UDP, ip, read};

const PORT: u16 = 30080;
const SNAT: u32 = service_flags::NODE_PORT;
const DSR: u32 = service_flags::NODE_PORT | service_flags::DSR;
/// The gateway's MAC on the test's node.
const GATEWAY: [u8; 6] = [2, 0, 0, 0, 9, 9];

fn parsed(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn any(f: Family) -> &'static str {
    if f.v6 { "::" } else { "0.0.0.0" }
}

fn balancer(f: Family) -> &'static str {
    if f.v6 { "2001:db8:7::7" } else { "203.0.113.7" }
}

/// On a node that nobody observes.
fn unobserved(routing: Routing, test: impl Fn(&mut Kernel, Family) -> Result<()> + Send + Sync + Copy + 'static) {
    on_node(routing, move |kernel| {
        let mut config = kernel.config.get(&0, 0)?;
        config.flags &= !config_flags::OBSERVE;
        kernel.config.set(0, config, 0)?;
        for f in FAMILIES {
            test(kernel, f).with_context(|| format!("IPv6: {}", f.v6))?;
            forget(kernel)?;
        }
        Ok(())
    });
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

/// For the node's device.
fn to_device(mut frame: Vec<u8>) -> Vec<u8> {
    frame[..6].copy_from_slice(&MAC_DEVICE);
    frame
}

fn before(kernel: &Kernel, frame: &[u8]) -> Result<Outcome> {
    kernel.before_kernel("weft_edge", DEVICE, frame)
}

fn segment(header: &Ip, protocol: u8, from: u16, to: u16, flags: u8) -> Vec<u8> {
    to_device(match protocol {
        TCP => header.tcp(from, to, flags, b"some text"),
        UDP => header.udp(from, to, b"some text"),
        _ => header.sctp(from, to),
    })
}

#[track_caller]
fn left_alone(kernel: &Kernel, what: &str, frame: &[u8]) {
    let connections = kernel.connections().expect("the table");
    let outcome = before(kernel, frame).expect("the kernel runs it");
    assert_eq!((outcome.action, outcome.frame.as_slice()), (XDP_PASS, frame), "{what}");
    assert_eq!(kernel.connections().expect("the table"), connections, "{what}: counted");
}

/// Both programs do the same to the packet.
#[track_caller]
fn the_same(kernel: &Kernel, frame: &[u8]) -> Vec<u8> {
    let behind = from_wire(kernel, frame).expect("the kernel runs it");
    assert_eq!(behind.action, REDIRECT);
    let accelerated = kernel.counted_as(MetricKey::ACCELERATED).expect("the counters");
    let forwarded = kernel.counted(None).expect("the counters");
    let outcome = before(kernel, frame).expect("the kernel runs it");
    assert_eq!(outcome.action, XDP_REDIRECT);
    assert_eq!(outcome.frame[ETH..], behind.frame[ETH..]);
    assert_eq!(outcome.frame[..12], [GATEWAY, MAC_DEVICE].concat(), "to the gateway");
    assert_eq!(kernel.counted_as(MetricKey::ACCELERATED).expect("the counters"), accelerated + 1);
    assert_eq!(kernel.counted(None).expect("the counters"), forwarded + 1);
    let _checksums = read(&outcome.frame);
    outcome.frame
}

#[test]
fn what_is_decided_passes_as_it_does_behind_the_device() {
    unobserved(Routing::Native, |kernel, f| {
        for mode in [SNAT, DSR] {
            for protocol in [TCP, UDP] {
                for (key, address) in
                    [(frontend(any(f), PORT, protocol), f.node), (frontend(balancer(f), PORT, protocol), balancer(f))]
                {
                    put_service(kernel, 1, key, mode, &[(1, f.c, 8080)])?;
                    let client = ip(f.world, address);
                    let opening = segment(&client, protocol, 7000, PORT, SYN);
                    left_alone(kernel, "the first packet", &opening);
                    assert_eq!(from_wire(kernel, &opening)?.action, REDIRECT);
                    let more = segment(&client, protocol, 7000, PORT, ACK);
                    if mode == DSR {
                        // Until the backend's node knows for sure.
                        for _ in 0..if protocol == TCP { 1 } else { 14 } {
                            left_alone(kernel, "a packet that tells", &more);
                            from_wire(kernel, &more)?;
                        }
                    }
                    let seen = read(&the_same(kernel, &more));
                    let source = if mode == DSR { f.world } else { f.node };
                    assert_eq!((seen.source, seen.destination, seen.ttl), (parsed(source), parsed(f.c), 63));
                    if mode == SNAT {
                        let answer = segment(&ip(f.c, f.node), protocol, 8080, seen.source_port(), ACK);
                        let heard = read(&the_same(kernel, &answer));
                        assert_eq!((heard.source, heard.source_port()), (parsed(address), PORT));
                        assert_eq!((heard.destination, heard.destination_port()), (parsed(f.world), 7000));
                    }
                    let entry = kernel.connection(flow_kind::FLOW, parsed(f.world), parsed(f.c))?;
                    let (_, entry) = entry.context("the connection")?;
                    let forward = if mode == SNAT {
                        3
                    } else if protocol == TCP {
                        4
                    } else {
                        17
                    };
                    let reply = if mode == SNAT { 2 } else { 0 };
                    assert_eq!((entry.forward_packets, entry.reply_packets), (forward, reply));
                    forget(kernel)?;
                }
            }
        }
        Ok(())
    });
}

#[test]
fn the_end_of_a_connection_is_noted() {
    unobserved(Routing::Native, |kernel, f| {
        put_service(kernel, 1, frontend(any(f), PORT, TCP), SNAT, &[(1, f.c, 8080)])?;
        let client = ip(f.world, f.node);
        let outcome = from_wire(kernel, &segment(&client, TCP, 7000, PORT, SYN))?;
        let own = read(&outcome.frame).source_port();
        // The first answer finds its way.
        assert_eq!(from_wire(kernel, &segment(&ip(f.c, f.node), TCP, 8080, own, SYN | ACK))?.action, REDIRECT);
        for flags in [FIN | ACK, RST] {
            assert_eq!(before(kernel, &segment(&client, TCP, 7000, PORT, flags))?.action, XDP_REDIRECT);
        }
        let back = segment(&ip(f.c, f.node), TCP, 8080, own, FIN | ACK);
        assert_eq!(before(kernel, &back)?.action, XDP_REDIRECT);
        let entry = kernel.connection(flow_kind::FLOW, parsed(f.world), parsed(f.c))?.context("the connection")?;
        let ends = flow_flags::FIN_FORWARD | flow_flags::FIN_REPLY;
        assert_eq!(entry.1.flags & ends, ends);
        // With direct return it is the program behind the device that knows what an end means.
        forget(kernel)?;
        put_service(kernel, 1, frontend(any(f), PORT, TCP), DSR, &[(1, f.c, 8080)])?;
        for flags in [SYN, ACK] {
            from_wire(kernel, &segment(&client, TCP, 7000, PORT, flags))?;
        }
        for flags in [FIN | ACK, RST | ACK] {
            left_alone(kernel, "an end", &segment(&client, TCP, 7000, PORT, flags));
        }
        from_wire(kernel, &segment(&client, TCP, 7000, PORT, FIN | ACK))?;
        left_alone(kernel, "after the end", &segment(&client, TCP, 7000, PORT, ACK));
        Ok(())
    });
}

#[test]
fn what_is_new_unusual_or_revoked_is_left_to_the_program_behind() {
    unobserved(Routing::Native, |kernel, f| {
        for protocol in [TCP, UDP] {
            put_service(kernel, 1, frontend(any(f), PORT, protocol), SNAT, &[(1, f.c, 8080)])?;
            put_service(kernel, 2, frontend(any(f), PORT + 1, protocol), SNAT, &[(2, f.b, 8080)])?;
            let client = ip(f.world, f.node);
            let more = segment(&client, protocol, 7000, PORT, ACK);
            for port in [PORT, PORT + 1] {
                assert_eq!(from_wire(kernel, &segment(&client, protocol, 7000, port, SYN))?.action, REDIRECT);
            }
            assert_eq!(before(kernel, &more)?.action, XDP_REDIRECT);
            left_alone(kernel, "a backend here", &segment(&client, protocol, 7000, PORT + 1, ACK));
            left_alone(kernel, "another client", &segment(&client, protocol, 7001, PORT, ACK));
            left_alone(kernel, "no service", &segment(&client, protocol, 7000, 22, ACK));
            left_alone(kernel, "the last hop", &segment(&client.clone().ttl(1), protocol, 7000, PORT, ACK));
            left_alone(kernel, "an opening", &segment(&client, TCP, 7000, PORT, SYN));
            left_alone(kernel, "SCTP", &segment(&client, SCTP, 7000, PORT, 0));
            left_alone(kernel, "an echo", &to_device(client.ping(7)));
            let fragment = client.clone().fragment(9, 0, true);
            left_alone(kernel, "a fragment", &segment(&fragment, protocol, 7000, PORT, ACK));
            let optional = client.clone().options(&[1, 1, 1, 0]).extension(60, &[0, 0, 1, 4, 0, 0, 0, 0]);
            left_alone(kernel, "options", &segment(&optional, protocol, 7000, PORT, ACK));
            for (at, what) in [(0, "for another one on the wire"), (12, "no IP"), (ETH, "another version")] {
                let mut other = more.clone();
                other[at] ^= 0x30;
                left_alone(kernel, what, &other);
            }
            for length in 14..more.len() {
                left_alone(kernel, "cut short", &more[..length]);
            }
            let large = ip(f.world, f.node);
            let large = match protocol {
                TCP => large.tcp(7000, PORT, ACK, &[7; 1600]),
                _ => large.udp(7000, PORT, &[7; 1600]),
            };
            left_alone(kernel, "too big", &to_device(large));
            // Answers of somebody who was not asked.
            left_alone(kernel, "a stranger", &segment(&ip(f.new, f.node), protocol, 8080, 20_001, ACK));
            // A pod's own connection to the outside.
            let asked = from_a(kernel, &segment(&ip(f.a, f.world), protocol, 5, 99, SYN))?;
            let own = read(&asked.frame).source_port();
            left_alone(kernel, "a pod's answer", &segment(&ip(f.world, f.node), protocol, 99, own, ACK));
            // By another device than it was decided for.
            assert_eq!(kernel.before_kernel("weft_edge", POD_A, &more)?.action, XDP_PASS);
            // Policies, or anything that the verdict rests on, have changed.
            kernel.bump(&[0])?;
            left_alone(kernel, "revoked", &more);
            from_wire(kernel, &more)?;
            assert_eq!(before(kernel, &more)?.action, XDP_REDIRECT, "and decided again");
            if protocol == UDP {
                kernel.backends.remove(&1)?;
                left_alone(kernel, "a backend that is gone", &more);
            }
            // Somebody wants to see it.
            let mut config = kernel.config.get(&0, 0)?;
            config.flags |= config_flags::OBSERVE;
            kernel.config.set(0, config, 0)?;
            left_alone(kernel, "observed", &more);
            config.flags &= !config_flags::OBSERVE;
            kernel.config.set(0, config, 0)?;
            forget(kernel)?;
        }
        Ok(())
    });
}

#[test]
fn by_tunnel_everything_is_left_to_the_program_behind() {
    unobserved(Routing::Vxlan, |kernel, f| {
        put_service(kernel, 1, frontend(any(f), PORT, TCP), SNAT, &[(1, f.c, 8080)])?;
        let client = ip(f.world, f.node);
        assert_eq!(from_wire(kernel, &segment(&client, TCP, 7000, PORT, SYN))?.action, REDIRECT);
        left_alone(kernel, "a decided connection", &segment(&client, TCP, 7000, PORT, ACK));
        Ok(())
    });
}

#[test]
fn a_datagram_without_a_checksum_stays_without() {
    unobserved(Routing::Native, |kernel, f| {
        put_service(kernel, 1, frontend(any(f), PORT, UDP), SNAT, &[(1, f.c, 8080)])?;
        let mut frame = segment(&ip(f.world, f.node), UDP, 7000, PORT, 0);
        from_wire(kernel, &frame)?;
        if !f.v6 {
            frame[ETH + 26..ETH + 28].fill(0);
            assert_eq!(read(&the_same(kernel, &frame)).rest[6..8], [0, 0]);
        }
        Ok(())
    });
}
