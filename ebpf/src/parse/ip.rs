//! IPv4, IPv6 with extension headers, fragments.

use weft_abi::{Addr, DropReason, fragment_sender};

use crate::maps::FRAGMENTS;
use crate::packet::{
    DSR_OPTION, DSR_OPTION_V4, DSR_OPTION_V6, ETH, FIRST_FRAGMENT, ICMP, ICMPV6, LATER_FRAGMENT, SCTP, Skb, TCP,
    TUNNELLED, UDP, UNKNOWN_PORTS, load, skb_gso_size,
};
use crate::parse::frame::load_head;
use crate::parse::icmp::icmp_of_fragment;
use crate::parse::transport::parse_transport;
use crate::scratch::Scratch;
use crate::step::step;

/// Parses the network and transport headers.
#[inline(always)]
pub fn parse(skb: Skb, s: &mut Scratch, ethertype: u16) -> Result<(), DropReason> {
    s.packet.tcp_flags = 0;
    s.packet.source_port = 0;
    s.packet.destination_port = 0;
    s.packet.icmp_type = 0;
    s.packet.icmp_code = 0;
    match ethertype {
        0x0800 => parse_v4(skb, s)?,
        0x86dd => parse_v6(skb, s)?,
        _ => return Err(DropReason::UnsupportedL3),
    }
    if s.packet.flags & LATER_FRAGMENT != 0 {
        return read_later_fragment(s);
    }
    parse_transport(skb, s)
}

#[inline(always)]
fn parse_v4(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let available = s.packet.length;
    if available < 20 {
        return Err(DropReason::InvalidPacket);
    }
    let first: u8 = s.at(14);
    let header = u32::from(first & 0x0f) * 4;
    let total = u32::from(u16::from_be(s.at::<u16>(16)));
    if first >> 4 != 4 || header < 20 || header > available {
        return Err(DropReason::InvalidPacket);
    }
    if total < header || total > available {
        // A segmentation super-packet above 64 KiB carries 0.
        if total != 0 || skb_gso_size(skb) == 0 {
            return Err(DropReason::InvalidPacket);
        }
    } else {
        s.packet.length = total;
    }
    s.packet.version = 4;
    s.packet.ttl = s.at(22);
    s.packet.protocol = s.at(23);
    s.packet.source = Addr::v4(s.at(26));
    s.packet.destination = Addr::v4(s.at(30));
    s.packet.l4 = (ETH + header) as u16;
    if header >= 28 && s.at::<u16>(34) == u16::from_ne_bytes([DSR_OPTION_V4, 8]) {
        s.packet.flags |= DSR_OPTION;
    }
    if s.packet.protocol == ICMPV6 {
        return Err(DropReason::UnknownL4);
    }
    let fragment = u16::from_be(s.at::<u16>(20));
    if fragment & 0x3fff != 0 {
        let id = u32::from(s.at::<u16>(18));
        return read_fragment(s, id, u32::from(fragment & 0x1fff) * 8);
    }
    Ok(())
}

#[inline(always)]
fn parse_v6(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let available = s.packet.length;
    if available < 40 || s.at::<u8>(14) >> 4 != 6 {
        return Err(DropReason::InvalidPacket);
    }
    let total = u32::from(u16::from_be(s.at::<u16>(18))) + 40;
    if total > available {
        return Err(DropReason::InvalidPacket);
    }
    if total > 40 || skb_gso_size(skb) == 0 {
        s.packet.length = total;
    }
    s.packet.version = 6;
    s.packet.ttl = s.at(21);
    s.packet.source = s.at(22);
    s.packet.destination = s.at(38);
    s.packet.l4 = (ETH + 40) as u16;
    let next: u8 = s.at(20);
    s.packet.protocol = next;
    if s.packet.source.is_v4() || s.packet.destination.is_v4() {
        // A mapped address on the wire would pass for IPv4 in every map.
        return Err(DropReason::InvalidPacket);
    }
    if matches!(next, TCP | UDP | ICMPV6 | SCTP) {
        return Ok(());
    }
    extensions(skb, s, next)
}

/// RFC 8200 section 4: walks up to four extension headers. Authentication (RFC 4302) is a protocol here, as it is for
/// IPv4: policies name it.
#[inline(never)]
fn extensions(skb: Skb, s: &mut Scratch, first: u8) -> Result<(), DropReason> {
    let mut next = first;
    let mut offset = ETH + 40;
    if first == 60 && s.at::<[u8; 4]>(54)[1..] == [2, DSR_OPTION_V6, 20] {
        s.packet.flags |= DSR_OPTION;
    }
    for _ in 0..4 {
        match next {
            // Hop-by-hop, routing, destination options.
            0 | 43 | 60 => {
                let header: [u8; 2] = load(skb, offset)?;
                next = header[0];
                offset += (u32::from(header[1]) + 1) * 8;
            }
            44 => {
                let header: [u32; 2] = load(skb, offset)?;
                let bytes = header[0].to_ne_bytes();
                next = bytes[0];
                // A later fragment has no further headers.
                if next == 0 {
                    return Err(DropReason::Ipv6ExtensionHeader);
                }
                let field = u16::from_be_bytes([bytes[2], bytes[3]]);
                offset += 8;
                if field & 0xfff9 != 0 {
                    s.packet.protocol = next;
                    s.packet.l4 = offset as u16;
                    read_fragment(s, header[1], u32::from(field & 0xfff8))?;
                    if s.packet.flags & LATER_FRAGMENT != 0 {
                        return Ok(());
                    }
                }
            }
            _ => break,
        }
        // Hop-by-hop options stand right behind the IPv6 header or nowhere (RFC 8200 section 4.1).
        if next == 0 {
            return Err(DropReason::Ipv6ExtensionHeader);
        }
    }
    if matches!(next, 0 | 43 | 44 | 60) || offset > 2048 {
        return Err(DropReason::Ipv6ExtensionHeader);
    }
    // A header that claims more than there is; missing ports are found when they are read.
    if offset > ETH + s.packet.length {
        return Err(DropReason::InvalidPacket);
    }
    if next == ICMP {
        return Err(DropReason::UnknownL4);
    }
    s.packet.protocol = next;
    s.packet.l4 = offset as u16;
    Ok(())
}

/// Remembers which datagram this is a fragment of. RFC 1858, RFC 3128: none may overlay a transport header.
#[inline(always)]
fn read_fragment(s: &mut Scratch, id: u32, offset: u32) -> Result<(), DropReason> {
    s.fragment.source = s.packet.source;
    s.fragment.destination = s.packet.destination;
    s.fragment.id_be = id;
    s.fragment.protocol = s.packet.protocol;
    s.fragment.sender = sender_of_fragment(s);
    if offset == 0 {
        s.packet.flags |= FIRST_FRAGMENT;
        return Ok(());
    }
    if offset < 24 {
        return Err(DropReason::FragmentUnsupported);
    }
    s.packet.flags |= LATER_FRAGMENT;
    Ok(())
}

/// Whose ports later fragments may use. A first fragment is remembered before its source address is checked: so a pod that
/// forges one spoils nobody else's datagrams.
#[inline(always)]
fn sender_of_fragment(s: &Scratch) -> [u8; 3] {
    if s.packet.flags & TUNNELLED != 0 {
        fragment_sender::TUNNEL
    } else if s.egress != 0 && s.from_node == 0 {
        let index = s.packet.ifindex.to_le_bytes();
        [index[0], index[1], index[2]]
    } else {
        fragment_sender::NETWORK
    }
}

#[inline(always)]
fn read_later_fragment(s: &mut Scratch) -> Result<(), DropReason> {
    // SAFETY: the value is copied at once; a concurrent change gives the ports of one of two datagrams with the same
    // id, which their first fragments were judged by.
    if let Some(ports) = unsafe { FRAGMENTS.get(&s.fragment) } {
        s.packet.source_port = ports.source_port_be;
        s.packet.destination_port = ports.destination_port_be;
        if matches!(s.packet.protocol, ICMP | ICMPV6) {
            icmp_of_fragment(s);
        }
    } else {
        s.packet.flags |= UNKNOWN_PORTS;
    }
    Ok(())
}

step!(parse_again() = weft_step_parse_again: parse_again_body);

/// Parses the packet anew: it has come the way that it came before.
#[inline(always)]
fn parse_again_body(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let tunnelled = s.packet.flags & TUNNELLED;
    let ethertype = load_head(skb, s)?;
    s.packet.flags |= tunnelled;
    parse(skb, s, ethertype)
}
