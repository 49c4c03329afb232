//! What clients of services without backends are told, packet by packet: TCP by a reset, others by an ICMP error.

use anyhow::Context;
use weft_abi::{DropReason, service_flags};
use weft_tests::packet::kernel::{DROP, Kernel, Outcome};
use weft_tests::packet::service::{frontend, put_cluster_ip, put_service};
use weft_tests::packet::site::{from_a, from_wire};
use weft_tests::packet::stage::{native, parsed, passed, vip};
use weft_tests::packet::{ACK, ETH, FIN, ICMP, ICMPV6, RST, SCTP, SYN, TCP, UDP, checksum, ip, quoted, read};

/// As if the sender left the transport checksum at `at` of the header to its device: the sum over the pseudo-header
/// stands in its place.
fn partial(frame: &[u8], at: usize) -> Vec<u8> {
    let l4 = read(frame).l4;
    let mut partial = frame.to_vec();
    partial[l4 + at..l4 + at + 2].fill(0);
    let complete = &frame[l4 + at..l4 + at + 2];
    // The sum over the segment without its checksum, taken from what is complete.
    let segment = checksum(&[&partial[l4..]]);
    let total = u32::from(!u16::from_be_bytes([complete[0], complete[1]]));
    let pseudo = total + 0xffff - u32::from(!segment);
    let pseudo = (pseudo & 0xffff) + (pseudo >> 16);
    partial[l4 + at..l4 + at + 2].copy_from_slice(&(pseudo as u16).to_be_bytes());
    partial
}

/// The answer is a reset of the segment, with these numbers.
fn reset(outcome: &Outcome, frame: &[u8], sequence: u32, acknowledged: Option<u32>) {
    let (answer, asked) = (passed(outcome), read(frame));
    assert_eq!((answer.source, answer.destination), (asked.destination, asked.source));
    assert_eq!((answer.source_port(), answer.destination_port()), (asked.destination_port(), asked.source_port()));
    assert_eq!((answer.destination_mac, answer.source_mac), (asked.source_mac, asked.destination_mac));
    assert_eq!((answer.protocol, answer.ttl, answer.rest.len()), (TCP, 64, 20));
    assert_eq!(outcome.frame.len(), answer.l4 + 20, "nothing behind it");
    assert_eq!(answer.rest[4..8], sequence.to_be_bytes(), "sequence number");
    assert_eq!(answer.rest[8..12], acknowledged.unwrap_or(0).to_be_bytes(), "acknowledgement number");
    assert_eq!(answer.rest[12..14], [0x50, if acknowledged.is_some() { RST | ACK } else { RST }]);
    assert_eq!(answer.rest[14..16], [0, 0], "window");
}

#[test]
fn tcp_is_reset_as_by_a_host_that_knows_nothing_of_it() {
    native(|kernel, f| {
        put_cluster_ip(kernel, 1, frontend(vip(f), 80, TCP), &[])?;
        let any = if f.v6 { "::" } else { "0.0.0.0" };
        put_service(kernel, 2, frontend(any, 30080, TCP), service_flags::NODE_PORT, &[])?;
        for outside in [false, true] {
            let (there, port) = if outside { (ip(f.world, f.node), 30080) } else { (ip(f.a, vip(f)), 80) };
            let send = |kernel: &Kernel, frame: &[u8]| {
                if outside { from_wire(kernel, frame) } else { from_a(kernel, frame) }
            };
            // All of them have the sequence number 1 and acknowledge 2.
            for (flags, data, sequence, acknowledged) in [
                (SYN, 0, 0, Some(2)),
                (SYN, 5, 0, Some(7)),
                (FIN, 3, 0, Some(5)),
                (SYN | ACK, 0, 2, None),
                (ACK, 0, 2, None),
                (ACK, 700, 2, None),
                (ACK | FIN, 1, 2, None),
            ] {
                let frame = there.tcp(40000, port, flags, &vec![7; data]);
                kernel.drain();
                let before = kernel.counted(Some(DropReason::NoServiceBackend))?;
                reset(&send(kernel, &frame)?, &frame, sequence, acknowledged);
                let event = kernel.drain().pop().context("an event")?;
                assert_eq!(event.reason, DropReason::NoServiceBackend as u8);
                assert_eq!(kernel.counted(Some(DropReason::NoServiceBackend))?, before + 1);
                // What the client's device was to fill in, the device does fill in.
                let mut outcome = send(kernel, &partial(&frame, 16))?;
                let l4 = ETH + if f.v6 { 40 } else { 20 };
                let sum = checksum(&[&outcome.frame[l4..]]);
                outcome.frame[l4 + 16..l4 + 18].copy_from_slice(&sum.to_be_bytes());
                reset(&outcome, &frame, sequence, acknowledged);
            }
            // Numbers go round.
            let mut frame = there.tcp(40000, port, SYN, b"");
            let l4 = read(&frame).l4;
            frame[l4 + 4..l4 + 8].fill(0xff);
            assert_eq!(passed(&send(kernel, &frame)?).rest[4..12], [0; 8]);
            // Options of TCP are part of the header, not of what is acknowledged.
            let mut segment = there.tcp(40000, port, SYN, &[1; 8])[l4..].to_vec();
            segment[12] = 0x70;
            let frame = there.raw(TCP, &segment);
            let outcome = send(kernel, &frame)?;
            assert_eq!(read(&outcome.frame).rest[8..12], 2_u32.to_be_bytes());
            // A reset is not answered.
            for flags in [RST, RST | ACK] {
                let outcome = send(kernel, &there.tcp(40000, port, flags, b""))?;
                assert_eq!(outcome.action, DROP);
            }
            // With more between IP and TCP than the answer would have, ICMP says it.
            let odd = if f.v6 {
                there.clone().extension(60, &[0, 0, 1, 4, 0, 0, 0, 0]).tcp(40000, port, SYN, b"")
            } else {
                there.clone().options(&[1; 4]).tcp(40000, port, SYN, b"")
            };
            let answer = passed(&send(kernel, &odd)?);
            assert_eq!(answer.protocol, if f.v6 { ICMPV6 } else { ICMP });
            assert_eq!(answer.rest[..2], if f.v6 { [1, 4] } else { [3, 3] });
        }
        assert!(kernel.connections()?.is_empty());
        Ok(())
    });
}

#[test]
fn others_hear_that_nobody_listens() {
    native(|kernel, f| {
        let there = ip(f.a, vip(f));
        for protocol in [UDP, SCTP] {
            put_cluster_ip(kernel, 1, frontend(vip(f), 80, protocol), &[])?;
        }
        let frames = [
            there.udp(40000, 80, b""),
            there.udp(40000, 80, b"odd"),
            there.udp(40000, 80, &[9; 1400]),
            there.sctp(40000, 80),
        ];
        for frame in &frames {
            kernel.drain();
            let before = kernel.counted(Some(DropReason::NoServiceBackend))?;
            let outcome = from_a(kernel, frame)?;
            let answer = passed(&outcome);
            assert_eq!((answer.source, answer.destination), (parsed(vip(f)), parsed(f.a)));
            assert_eq!(
                (answer.destination_mac, answer.source_mac),
                (frame[6..12].try_into()?, frame[0..6].try_into()?)
            );
            assert_eq!(answer.rest[..2], if f.v6 { [1, 4] } else { [3, 3] });
            assert_eq!(answer.rest[4..8], [0; 4]);
            let quote = quoted(&answer);
            assert_eq!(quote.len(), frame.len().min(ETH + 128));
            assert_eq!(quote[ETH..], frame[ETH..quote.len()]);
            let event = kernel.drain().pop().context("an event")?;
            assert_eq!(event.reason, DropReason::NoServiceBackend as u8);
            assert_eq!(kernel.counted(Some(DropReason::NoServiceBackend))?, before + 1);
        }
        // A checksum that the device shall fill in: filled in, inside the quote, the whole is right.
        let frame = &frames[1];
        let l4 = read(frame).l4;
        let mut outcome = from_a(kernel, &partial(frame, 6))?;
        let shift = if f.v6 { 48 } else { 28 };
        outcome.frame[shift + l4 + 6..shift + l4 + 8].copy_from_slice(&frame[l4 + 6..l4 + 8]);
        let answer = read(&outcome.frame);
        assert_eq!(quoted(&answer)[ETH..], frame[ETH..]);
        assert!(kernel.connections()?.is_empty());
        Ok(())
    });
}

#[test]
fn of_a_datagram_in_fragments_the_first_one_alone_is_answered() {
    native(|kernel, f| {
        put_cluster_ip(kernel, 1, frontend(vip(f), 80, UDP), &[])?;
        let whole = ip(f.a, vip(f)).udp(7, 80, &[3; 1200]);
        let header = ETH + if f.v6 { 40 } else { 20 };
        let first = ip(f.a, vip(f)).fragment(9, 0, true).raw(UDP, &whole[header..header + 800]);
        let later = ip(f.a, vip(f)).fragment(9, 800, false).raw(UDP, &whole[header + 800..]);
        assert_eq!(passed(&from_a(kernel, &first)?).rest[..2], if f.v6 { [1, 4] } else { [3, 3] });
        assert_eq!(from_a(kernel, &later)?.action, DROP);
        Ok(())
    });
}
