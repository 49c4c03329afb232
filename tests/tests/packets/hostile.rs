//! Packets that mean harm: cut at every byte, with absurd fields, in fragments, behind extension headers. None of them
//! may pass, and none may do harm to the node.

use crate::forged::wrap;
use anyhow::Result;
use weft_abi::DropReason;
use weft_tests::packet::kernel::{DROP, Kernel, Outcome, PASS, REDIRECT};
use weft_tests::packet::site::{
    FAMILIES, Family, ID_C, POD_A, Routing, V4, V6, addr, allow_port, from_a, from_b, from_wire, isolate, on_node,
    put_policy,
};
use weft_tests::packet::stage::native;
use weft_tests::packet::{ACK, ETH, FIN, ICMP, ICMPV6, Ip, RST, SYN, TCP, UDP, ip};

/// Bytes of the headers that a program must see before it lets a packet pass.
fn headers(f: Family, protocol: u8) -> usize {
    ETH + if f.v6 { 40 } else { 20 }
        + match protocol {
            TCP => 20,
            132 => 12,
            _ => 8,
        }
}

#[test]
fn packets_cut_at_any_byte_never_pass() {
    native(|kernel, f| {
        let packet = ip(f.a, f.b);
        let icmp = if f.v6 { ICMPV6 } else { ICMP };
        let frames = [
            (TCP, packet.tcp(1, 80, SYN, b"payload of some bytes")),
            (UDP, packet.udp(1, 80, b"payload of some bytes")),
            (132, packet.sctp(1, 80)),
            (icmp, packet.ping(7)),
            (icmp, packet.unreachable(&ip(f.b, f.a).tcp(80, 1, ACK, b""))),
        ];
        for (protocol, frame) in &frames {
            // The kernel itself refuses to run a program on less than a network header.
            let least = ETH + if f.v6 { 40 } else { 20 };
            assert!(kernel.run("weft_from_pod", POD_A, &frame[..least - 1]).is_err());
            for length in least..frame.len() {
                for program in
                    ["weft_from_pod", "weft_to_pod", "weft_from_device", "weft_from_tunnel", "weft_to_tunnel"]
                {
                    let outcome = kernel.run(program, POD_A, &frame[..length])?;
                    assert_eq!(outcome.action, DROP, "{program}: protocol {protocol} cut at {length}");
                }
                // Whoever cut it also mended the length that it claims: then only the headers must be whole.
                let cut = with_length(f, &frame[..length]);
                if length < headers(f, *protocol) {
                    for program in ["weft_from_pod", "weft_to_pod", "weft_from_device", "weft_from_tunnel"] {
                        let outcome = kernel.run(program, POD_A, &cut)?;
                        assert_eq!(outcome.action, DROP, "{program}: protocol {protocol} of length {length}");
                    }
                }
            }
        }
        Ok(())
    });
}

/// The frame, with the length in its network header as it is.
fn with_length(f: Family, frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let (at, length) =
        if f.v6 { (ETH + 4, frame.len().saturating_sub(ETH + 40)) } else { (ETH + 2, frame.len() - ETH) };
    if frame.len() >= at + 2 {
        frame[at..at + 2].copy_from_slice(&(length as u16).to_be_bytes());
    }
    frame
}

#[test]
fn every_single_wrong_byte_is_survived() {
    on_node(Routing::Vxlan, |kernel| {
        for f in FAMILIES {
            let frame = ip(f.a, f.b).tcp(1, 80, SYN, b"payload");
            for at in 0..frame.len() {
                for value in [0, 1, 0x0f, 0x45, 0x7f, 0x80, 0xff] {
                    let mut frame = frame.clone();
                    frame[at] = value;
                    for program in ["weft_from_pod", "weft_to_pod", "weft_from_device", "weft_from_tunnel"] {
                        let outcome = kernel.run(program, POD_A, &frame)?;
                        assert!(matches!(outcome.action, PASS | DROP | REDIRECT));
                    }
                }
            }
        }
        Ok(())
    });
}

#[test]
fn absurd_fields_are_no_packets() {
    native(|kernel, f| {
        let good = ip(f.a, f.b).tcp(1, 80, SYN, b"");
        let with = |at: usize, value: u8| {
            let mut frame = good.clone();
            frame[ETH + at] = value;
            frame
        };
        let l4 = if f.v6 { 40 } else { 20 };
        let mut bad = vec![with(0, 0x05), with(0, 0xf5), with(l4 + 12, 0x40), with(l4 + 12, 0xf0)];
        for flags in [0, SYN | FIN, SYN | RST, 0x3f, SYN | FIN | ACK] {
            bad.push(with(l4 + 13, flags));
        }
        if f.v6 {
            bad.extend([with(0, 0x45), with(4, 0xff)]);
        } else {
            bad.extend([
                with(0, 0x44),
                with(0, 0x40),
                with(0, 0x4f),
                with(0, 0x65),
                with(2, 0xff),
                with(3, 19),
                with(3, 0),
            ]);
        }
        for frame in &bad {
            kernel.drain();
            let outcome = from_a(kernel, frame)?;
            assert_eq!(outcome.action, DROP, "{:02x?}", &frame[ETH..]);
            let event = kernel.drain().pop().map(|event| event.reason);
            assert!(matches!(event, Some(132 | 134 | 135 | 142)), "{event:?} {:02x?}", &frame[ETH..]);
        }
        // A datagram longer than its packet, or shorter than its header.
        for length in [0_u8, 7, 10] {
            let mut frame = ip(f.a, f.b).udp(1, 80, b"");
            frame[ETH + l4 + 5] = length;
            assert_eq!(from_a(kernel, &frame)?.action, DROP, "a datagram of {length} bytes");
        }
        for ethertype in [0x8100_u16, 0x88cc, 0x0000, 0xffff, 0x8847] {
            let mut frame = good.clone();
            frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
            assert_eq!(from_a(kernel, &frame)?.action, DROP);
        }
        Ok(())
    });
}

#[test]
fn an_address_of_the_other_family_in_disguise_is_refused() {
    on_node(Routing::Native, |kernel| {
        for (source, destination) in [("::ffff:10.244.1.10", V6.b), (V6.a, "::ffff:10.244.1.11")] {
            assert_eq!(from_a(kernel, &ip(source, destination).tcp(1, 80, SYN, b""))?.action, DROP);
            assert_eq!(from_wire(kernel, &ip(source, destination).tcp(1, 80, SYN, b""))?.action, DROP);
        }
        // Each family has its own ICMP.
        assert_eq!(from_a(kernel, &ip(V4.a, V4.b).raw(ICMPV6, &[128, 0, 0, 0, 0, 1, 0, 1]))?.action, DROP);
        assert_eq!(from_a(kernel, &ip(V6.a, V6.b).raw(ICMP, &[8, 0, 0, 0, 0, 1, 0, 1]))?.action, DROP);
        Ok(())
    });
}

#[test]
fn bytes_beyond_the_length_do_not_count() {
    native(|kernel, f| {
        // Ethernet pads short frames.
        let mut frame = ip(f.a, f.b).udp(1, 53, b"");
        frame.extend([0; 18]);
        assert_eq!(from_a(kernel, &frame)?.action, REDIRECT);
        // But a header in the padding is no header.
        let mut frame = ip(f.a, f.b).raw(TCP, &[0; 8]);
        frame.extend([0x50; 40]);
        assert_eq!(from_a(kernel, &frame)?.action, DROP);
        Ok(())
    });
}

/// Hands a frame to the program of its sender's device.
type Send = fn(&Kernel, &[u8]) -> Result<Outcome>;

/// A datagram in fragments of `size` bytes of payload.
fn fragments(packet: &Ip, whole: &[u8], protocol: u8, id: u32, size: usize) -> Vec<Vec<u8>> {
    let header = if packet.source.is_ipv4() { 20 } else { 40 };
    let content = &whole[ETH + header..];
    let count = content.len().div_ceil(size);
    content
        .chunks(size)
        .enumerate()
        .map(|(n, piece)| packet.clone().fragment(id, (n * size) as u16, n + 1 < count).raw(protocol, piece))
        .collect()
}

#[test]
fn fragments_follow_their_first_one_in_any_order() {
    native(|kernel, f| {
        put_policy(kernel, 10, &[allow_port(300, UDP, 53)])?;
        isolate(kernel, f.b, 10, 0)?;
        kernel.bump(&[2])?;
        let packet = ip(f.a, f.b);
        let open = fragments(&packet, &packet.udp(4000, 53, &[7; 4000]), UDP, 11, 1400);
        let closed = fragments(&packet, &packet.udp(4000, 54, &[7; 4000]), UDP, 12, 1400);
        assert_eq!(open.len(), 3);
        for fragment in &open {
            assert_eq!(from_a(kernel, fragment)?.action, REDIRECT);
        }
        for fragment in &closed {
            assert_eq!(from_a(kernel, fragment)?.action, DROP);
        }
        // Out of order: what comes early passes where the peer may say anything at all; it is worth nothing without
        // the first one, which is judged.
        let open = fragments(&packet, &packet.udp(4000, 53, &[7; 4000]), UDP, 13, 1400);
        for fragment in open.iter().rev() {
            assert_eq!(from_a(kernel, fragment)?.action, REDIRECT);
        }
        let closed = fragments(&packet, &packet.udp(4000, 54, &[7; 4000]), UDP, 14, 1400);
        assert_eq!(from_a(kernel, &closed[0])?.action, DROP, "the first one decides");
        // Of a peer that may say nothing, not even those.
        let stranger = ip(f.c, f.b);
        for fragment in fragments(&stranger, &stranger.udp(4000, 53, &[7; 4000]), UDP, 15, 1400).iter().rev() {
            assert_eq!(from_wire(kernel, fragment)?.action, DROP);
        }
        isolate(kernel, f.b, 0, 0)
    });
}

#[test]
fn a_forged_first_fragment_spoils_nobody_elses_datagram() {
    // A datagram from A to B, or from C to A by the tunnel: somebody else says where it goes, with the same id.
    let spoil = |kernel: &mut Kernel, f: Family, packet: &Ip, receive: Send, forge: Send| -> Result<()> {
        put_policy(kernel, 10, &[allow_port(300, UDP, 53), allow_port(ID_C, UDP, 53)])?;
        isolate(kernel, f.a, 10, 0)?;
        isolate(kernel, f.b, 10, 0)?;
        kernel.bump(&[1, 2])?;
        let whole = fragments(packet, &packet.udp(4000, 53, &[7; 2000]), UDP, 31, 1400);
        let forged = fragments(packet, &packet.udp(4000, 54, &[7; 2000]), UDP, 31, 1400);
        assert_eq!(receive(kernel, &whole[0])?.action, REDIRECT);
        assert_eq!(forge(kernel, &forged[0])?.action, DROP);
        assert_eq!(receive(kernel, &whole[1])?.action, REDIRECT, "the sender's own ports");
        // Nor does a stranger's fragment live on what the sender said.
        assert_eq!(forge(kernel, &forged[1])?.action, DROP);
        isolate(kernel, f.a, 0, 0)?;
        isolate(kernel, f.b, 0, 0)
    };
    native(move |kernel, f| {
        spoil(kernel, f, &ip(f.a, f.b), from_a, from_b)?;
        spoil(kernel, f, &ip(f.a, f.b), from_a, from_wire)
    });
    on_node(Routing::Vxlan, move |kernel| {
        FAMILIES.iter().try_for_each(|f| {
            let by_tunnel: Send = |kernel, frame| from_wire(kernel, &wrap(V4.peer, ID_C, frame));
            spoil(kernel, *f, &ip(f.c, f.a), by_tunnel, from_b)?;
            spoil(kernel, *f, &ip(f.c, f.a), by_tunnel, from_wire)
        })
    });
}

#[test]
fn no_fragment_overlays_a_transport_header() {
    native(|kernel, f| {
        let packet = ip(f.a, f.b);
        let whole = packet.tcp(1, 80, SYN, &[0; 100]);
        let tiny = fragments(&packet, &whole, TCP, 21, 8);
        assert_eq!(from_a(kernel, &tiny[0])?.action, DROP, "a first fragment without the whole header");
        for offset in [8_u16, 16] {
            let frame = packet.clone().fragment(22, offset, true).raw(TCP, &[0; 64]);
            assert_eq!(from_a(kernel, &frame)?.action, DROP, "a fragment at {offset}");
        }
        Ok(())
    });
}

#[test]
fn extension_headers_are_walked_and_too_many_refused() {
    on_node(Routing::Native, |kernel| {
        put_policy(kernel, 10, &[allow_port(300, TCP, 80)])?;
        isolate(kernel, V6.b, 10, 0)?;
        kernel.bump(&[2])?;
        let options = [0, 0, 1, 4, 0, 0, 0, 0];
        let plain = ip(V6.a, V6.b);
        let hop = plain.clone().extension(0, &options);
        let four = hop.clone().extension(60, &options).extension(43, &options).extension(60, &options);
        let five = four.clone().extension(60, &options);
        for packet in [&plain, &hop, &four] {
            assert_eq!(from_a(kernel, &packet.tcp(1, 80, SYN, b""))?.action, REDIRECT);
            assert_eq!(from_a(kernel, &packet.tcp(1, 81, SYN, b""))?.action, DROP);
        }
        kernel.drain();
        assert_eq!(from_a(kernel, &five.tcp(1, 80, SYN, b""))?.action, DROP);
        let reason = kernel.drain().pop().map(|event| event.reason);
        assert_eq!(reason, Some(DropReason::Ipv6ExtensionHeader as u8));
        // Cut anywhere in the chain.
        let frame = four.tcp(1, 80, SYN, b"");
        for length in ETH + 40..frame.len() {
            assert_eq!(from_a(kernel, &with_length(V6, &frame[..length]))?.action, DROP, "cut at {length}");
        }
        // A header that claims to be longer than the packet.
        let mut long = hop.tcp(1, 80, SYN, b"");
        long[ETH + 41] = 200;
        assert_eq!(from_a(kernel, &long)?.action, DROP);
        // Options of IPv4 are stepped over likewise.
        put_policy(kernel, 11, &[allow_port(300, TCP, 80)])?;
        isolate(kernel, V4.b, 11, 0)?;
        kernel.bump(&[2])?;
        for options in [&[1_u8; 4][..], &[1; 40]] {
            let packet = ip(V4.a, V4.b).options(options);
            assert_eq!(from_a(kernel, &packet.tcp(1, 80, SYN, b""))?.action, REDIRECT);
            assert_eq!(from_a(kernel, &packet.tcp(1, 81, SYN, b""))?.action, DROP);
        }
        Ok(())
    });
}

#[test]
fn without_a_configuration_nothing_passes() {
    native(|kernel, f| {
        let config = kernel.config.get(&0, 0)?;
        kernel.config.set(0, weft_abi::NodeConfig::default(), 0)?;
        for frame in [ip(f.a, f.b).tcp(1, 80, SYN, b""), ip(f.a, f.world).udp(1, 2, b""), ip(f.a, f.b).ping(3)] {
            assert_eq!(from_a(kernel, &frame)?.action, DROP);
        }
        kernel.config.set(0, config, 0)?;
        // Nor anything of a pod that has gone.
        let info = kernel.endpoints.get(&addr(f.a), 0)?;
        kernel.endpoints.remove(&addr(f.a))?;
        assert_eq!(from_a(kernel, &ip(f.a, f.b).tcp(1, 80, SYN, b""))?.action, DROP);
        kernel.endpoints.insert(addr(f.a), info, 0)?;
        Ok(())
    });
}

/// An error about a connection between two pods of this node does not come from the network in one's name.
#[test]
fn errors_in_the_name_of_a_pod_of_ours() {
    native(|kernel, f| {
        from_a(kernel, &ip(f.a, f.b).tcp(1024, 80, SYN, b""))?;
        let error = ip(f.a, f.b).unreachable(&ip(f.b, f.a).tcp(80, 1024, ACK, b""));
        assert_eq!(from_a(kernel, &error)?.action, REDIRECT, "the pod itself may say so");
        assert_eq!(from_wire(kernel, &error)?.action, DROP);
        let event = kernel.drain().pop().expect("an event");
        assert_eq!(event.reason, DropReason::InvalidSourceIp as u8);
        Ok(())
    });
}

#[test]
fn hop_by_hop_options_stand_first_or_nowhere() {
    on_node(Routing::Native, |kernel| {
        let (options, padding) = ([0, 0, 1, 4, 0, 0, 0, 0], [0; 8]);
        let right = ip(V6.a, V6.b).extension(0, &options).extension(43, &padding).tcp(1, 80, SYN, b"");
        assert_eq!(from_a(kernel, &right)?.action, REDIRECT);
        kernel.drain();
        let wrong = ip(V6.a, V6.b).extension(43, &padding).extension(0, &options).tcp(1, 80, SYN, b"");
        assert_eq!(from_a(kernel, &wrong)?.action, DROP);
        assert_eq!(kernel.drain().pop().expect("an event").reason, DropReason::Ipv6ExtensionHeader as u8);
        // A later fragment, too, though nobody looks at what is behind it.
        let later = ip(V6.a, V6.b).extension(0, &options).fragment(7, 64, false).raw(0, &[0; 64]);
        assert_eq!(from_a(kernel, &later)?.action, DROP);
        assert_eq!(kernel.drain().pop().expect("an event").reason, DropReason::Ipv6ExtensionHeader as u8);
        Ok(())
    });
}

#[test]
fn extension_headers_do_not_reach_beyond_the_packet() {
    on_node(Routing::Native, |kernel| {
        // A protocol without ports, of which nothing else is read.
        const GRE: u8 = 47;
        let mut frame = ip(V6.a, V6.b).extension(60, &[0, 0, 1, 4, 0, 0, 0, 0]).udp(1, 80, b"");
        frame[ETH + 40] = GRE;
        assert_eq!(from_a(kernel, &frame)?.action, REDIRECT);
        kernel.drain();
        frame[ETH + 41] = 2;
        assert_eq!(from_a(kernel, &frame)?.action, DROP);
        assert_eq!(kernel.drain().pop().expect("an event").reason, DropReason::InvalidPacket as u8);
        Ok(())
    });
}
