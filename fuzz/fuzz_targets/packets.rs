//! Any frame through the kernel's programs. Pod A may open TCP port 80 of pod B, and nothing else may pass: judged by a
//! parser that shares no code with the programs.
#![no_main]

use etherparse::{EtherType, NetSlice, SlicedPacket, TransportSlice};
use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use std::net::IpAddr;
use weft_tests::packet::kernel::{DROP, Kernel};
use weft_tests::packet::site::{
    DEVICE, FAMILIES, Family, ID_A, ID_B, POD_A, Routing, allow_port, devices, fill, isolate, put_policy,
};
use weft_tests::packet::{ACK, Ip, RST, SYN, TCP, ip};

thread_local! {
    static KERNEL: RefCell<Kernel> = RefCell::new(node().expect("a node with its programs; needs root"));
}

fn node() -> anyhow::Result<Kernel> {
    devices()?;
    let mut kernel = Kernel::load()?;
    fill(&mut kernel, Routing::Native)?;
    put_policy(&mut kernel, 7, &[allow_port(ID_B, TCP, 80)])?;
    put_policy(&mut kernel, 8, &[allow_port(ID_A, TCP, 80)])?;
    put_policy(&mut kernel, 9, &[])?;
    for f in FAMILIES {
        isolate(&mut kernel, f.a, 9, 7)?;
        isolate(&mut kernel, f.b, 8, 9)?;
    }
    Ok(kernel)
}

/// Frames to begin with: what is allowed, what is not, and what quotes either.
fn template(n: u8, f: Family) -> Vec<u8> {
    let packet = ip(f.a, f.b);
    match n % 10 {
        0 => packet.tcp(1024, 80, SYN, b"payload"),
        1 => packet.tcp(1024, 80, ACK, b"more payload"),
        2 => packet.tcp(1024, 81, SYN, b""),
        3 => packet.udp(1024, 80, b"datagram"),
        4 => packet.sctp(1024, 80),
        5 => packet.ping(7),
        6 => packet.unreachable(&ip(f.b, f.a).tcp(80, 1024, ACK, b"")),
        7 => ip(f.world, f.b).tcp(1024, 80, SYN, b""),
        8 => ip(f.c, f.a).tcp(80, 1024, SYN | ACK, b""),
        _ => Ip { ttl: 1, ..ip(f.a, f.world) }.tcp(1024, 80, RST, b""),
    }
}

fuzz_target!(|data: &[u8]| {
    let [which, cut, patches @ ..] = data else { return };
    let family = FAMILIES[usize::from(which & 1)];
    let mut frame = template(which >> 2, family);
    for patch in patches.chunks_exact(3) {
        let at = usize::from(u16::from_be_bytes([patch[0], patch[1]])) % (frame.len() + 8);
        if at < frame.len() {
            frame[at] = patch[2];
        } else {
            frame.insert(frame.len().min(14 + at % 60), patch[2]);
        }
    }
    let length = frame.len().saturating_sub(usize::from(*cut % 64));
    frame.truncate(length);
    let from_pod = which & 2 == 0;
    KERNEL.with_borrow(|kernel| {
        let (program, ifindex) = if from_pod { ("weft_from_pod", POD_A) } else { ("weft_from_device", DEVICE) };
        // The kernel itself refuses what is shorter than a network header.
        let Ok(outcome) = kernel.run(program, ifindex, &frame) else { return };
        if outcome.action == DROP {
            return;
        }
        if let Err(why) = may_pass(&frame, from_pod, outcome.action) {
            panic!("{program} answers {} to a packet that must not pass: {why}\n{frame:02x?}", outcome.action);
        }
    });
});

/// Behind the header of a fragment that is not the first is no header: the parser must not look for one.
fn is_later_fragment(ip: &[u8]) -> Result<bool, String> {
    const HOP_BY_HOP: u8 = 0;
    const FRAGMENT: u8 = 44;
    let (Some(mut next), mut offset) = (ip.get(6).copied(), 40) else { return Ok(false) };
    while let (HOP_BY_HOP | 43 | FRAGMENT | 60, Some(header)) = (next, ip.get(offset..offset + 8)) {
        let later = next == FRAGMENT && (header[2] != 0 || header[3] & 0xf8 != 0);
        offset += if next == FRAGMENT { 8 } else { (usize::from(header[1]) + 1) * 8 };
        next = header[0];
        if next == HOP_BY_HOP {
            return Err("hop-by-hop options stand behind another header".to_owned());
        }
        if later {
            return Ok(true);
        }
    }
    Ok(false)
}

fn may_pass(frame: &[u8], from_pod: bool, action: u32) -> Result<(), String> {
    // What comes from the network and is not for a pod is the node's own business.
    if !from_pod && action == weft_tests::packet::kernel::PASS {
        return Ok(());
    }
    let ethertype = EtherType(u16::from_be_bytes([frame[12], frame[13]]));
    if ethertype == EtherType::ARP {
        return Ok(());
    }
    let ip = &frame[14..];
    let headerless = match ethertype {
        EtherType::IPV4 => ip.len() >= 20 && (ip[6] & 0x1f != 0 || ip[7] != 0),
        EtherType::IPV6 => is_later_fragment(ip)?,
        _ => false,
    };
    if headerless {
        return Ok(());
    }
    // A pod may send itself what it likes; an authentication header (RFC 4302) is a protocol, not looked into.
    let itself = match ethertype {
        EtherType::IPV6 if ip.len() >= 40 => ip[8..24] == ip[24..40],
        EtherType::IPV4 if ip.len() >= 20 => ip[12..16] == ip[16..20],
        _ => false,
    };
    if from_pod && itself {
        return Ok(());
    }
    let parsed = SlicedPacket::from_ethernet(frame).map_err(|error| format!("it is malformed: {error}"))?;
    let (source, destination): (IpAddr, IpAddr) = match &parsed.net {
        Some(NetSlice::Ipv4(v4)) => (v4.header().source_addr().into(), v4.header().destination_addr().into()),
        Some(NetSlice::Ipv6(v6)) => (v6.header().source_addr().into(), v6.header().destination_addr().into()),
        _ => return Err("it is no IP".to_owned()),
    };
    let is = |address: IpAddr, of: fn(&Family) -> &'static str| {
        FAMILIES.iter().any(|f| of(f).parse::<IpAddr>().is_ok_and(|known| known == address))
    };
    // By the number of the type: codes that nobody knows make no other message of it.
    let error = match &parsed.transport {
        Some(TransportSlice::Icmpv4(icmp)) => matches!(icmp.slice()[0], 3 | 11 | 12),
        // Who has this address: answered to the pod itself.
        Some(TransportSlice::Icmpv6(icmp)) if from_pod && icmp.slice()[0] == 135 => return Ok(()),
        Some(TransportSlice::Icmpv6(icmp)) => matches!(icmp.slice()[0], 1..=4),
        _ => false,
    };
    if from_pod != is(source, |f| f.a) {
        return Err(format!("its source is {source}"));
    }
    // Whoever talks to itself is not asked.
    if error || (from_pod && source == destination) {
        return Ok(());
    }
    if parsed.is_ip_payload_fragmented() {
        return Ok(());
    }
    match &parsed.transport {
        Some(TransportSlice::Tcp(tcp)) if from_pod && is(destination, |f| f.b) && tcp.destination_port() == 80 => {
            Ok(())
        }
        // An answer to what pod A opened.
        Some(TransportSlice::Tcp(tcp)) if !from_pod && is(source, |f| f.b) && tcp.source_port() == 80 => Ok(()),
        _ => Err(format!("no rule allows {source} -> {destination}")),
    }
}
