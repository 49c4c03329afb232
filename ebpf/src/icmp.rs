//! ICMP errors belong to the connection that they quote (RFC 1122 3.2.2, RFC 4443 2.4): they pass if it does, and are
//! masqueraded with it.

use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_l4_csum_replace, bpf_skb_store_bytes};
use weft_abi::{Addr, DropReason, NodeConfig, flow_kind};

use crate::maps::FLOWS;
use crate::packet::{ECHO, ETH, ICMP, ICMPV6, SCTP, Scratch, Skb, TCP, UDP, load};
use crate::track::{canonical, fresh};
use crate::{Hook, decide, nat, route};

/// Whether a message other than echo answers another one, whose type is the one before: timestamp, information, address
/// mask; node information.
#[inline(always)]
const fn is_answer(protocol: u8, kind: u8) -> bool {
    if protocol == ICMP { matches!(kind, 14 | 16 | 18) } else { kind == 140 }
}

/// What stands for ports in the tuple of a message other than echo: the type, at the responder's end. So each type is a
/// connection of its own, and an answer belongs to its question's.
#[inline(always)]
pub const fn ports(protocol: u8, kind: u8) -> (u16, u16) {
    if is_answer(protocol, kind) { ((kind as u16 - 1).to_be(), 0) } else { (0, (kind as u16).to_be()) }
}

/// The reverse of [`ports`], for a fragment that has its tuple from the first one. Equal ports are the id of an echo.
#[inline(always)]
pub fn of_fragment(s: &mut Scratch) {
    let (source, destination) = (u16::from_be(s.packet.source_port), u16::from_be(s.packet.destination_port));
    if source == destination {
        s.packet.flags |= ECHO;
        s.packet.icmp_type = echo_type(s.packet.protocol);
    } else {
        s.packet.icmp_type = if destination != 0 { destination as u8 } else { source.wrapping_add(1) as u8 };
    }
}

/// The type that policies are asked about: that of the originator's message.
#[inline(always)]
pub fn judged_type(s: &Scratch) -> u32 {
    let (protocol, kind) = (s.packet.protocol, s.packet.icmp_type);
    let kind = if s.reply == 0 {
        kind
    } else if s.packet.flags & ECHO != 0 {
        echo_type(protocol)
    } else if is_answer(protocol, kind) {
        kind.wrapping_sub(1)
    } else {
        kind
    };
    u32::from(kind)
}

/// Echo request.
#[inline(always)]
const fn echo_type(protocol: u8) -> u8 {
    if protocol == ICMP { 8 } else { 128 }
}

/// Offsets in the frame of the quoted packet's source address and transport header.
struct Quote {
    source: u32,
    l4: u32,
}

/// True: the error quotes a connection that is allowed, and `s.path` leads to the one who must hear of it.
#[inline(always)]
pub fn related(skb: Skb, s: &mut Scratch, hook: Hook, config: &NodeConfig) -> Result<bool, DropReason> {
    s.answer = 0;
    follow(skb, s, hook, config)?;
    Ok(s.answer == 1)
}

#[inline(never)]
fn follow(skb: Skb, s: &mut Scratch, hook: Hook, config: &NodeConfig) -> Result<(), DropReason> {
    s.saved = s.packet;
    let mut masqueraded = false;
    let for_node = matches!(hook, Hook::FromDevice)
        && (s.saved.destination == config.node_v4 || s.saved.destination == config.node_v6);
    let quote = match quoted(skb, s) {
        Ok(quote) => quote,
        Err(reason) => {
            s.packet = s.saved;
            // What the node makes of a quote of its own is its business.
            return if for_node { Ok(()) } else { Err(reason) };
        }
    };
    if for_node {
        canonical(&s.packet, flow_kind::NAT, &mut s.nat_key);
        let Some((inside, port)) = nat::inside(&s.nat_key) else {
            s.packet = s.saved;
            return Ok(());
        };
        let (old, old_port) = (s.packet.source, s.packet.source_port);
        s.packet.source = inside;
        s.packet.source_port = port;
        if s.packet.flags & ECHO != 0 {
            s.packet.destination_port = port;
        }
        canonical(&s.packet, flow_kind::FLOW, &mut s.key);
        let echo = s.packet.flags & ECHO != 0;
        s.packet = s.saved;
        unmasquerade(skb, s, &quote, &old, &inside)?;
        port_back(skb, s, quote.l4 + if echo { 4 } else { 0 }, old_port, port)?;
        s.packet.destination = inside;
        masqueraded = true;
    } else {
        canonical(&s.packet, flow_kind::FLOW, &mut s.key);
        let about = s.packet.source;
        s.packet = s.saved;
        if about != s.packet.destination {
            return Ok(());
        }
    }
    let hears_low = s.key.low == s.packet.destination;
    let Some(pointer) = FLOWS.get_ptr_mut(&s.key) else {
        return if masqueraded { Err(DropReason::NoNatMapping) } else { Ok(()) };
    };
    // SAFETY: a map value stays readable for the length of the program.
    let entry = unsafe { &*pointer };
    if !fresh(entry) {
        return if masqueraded { Err(DropReason::NoNatMapping) } else { Ok(()) };
    }
    let origin_low = entry.flags & weft_abi::flow_flags::ORIGIN_LOW != 0;
    let (origin, responder) = (entry.source_identity, entry.destination_identity);
    let to_origin = hears_low == origin_low;
    s.source_identity = if to_origin { responder } else { origin };
    s.destination_identity = if to_origin { origin } else { responder };
    if matches!(hook, Hook::FromDevice) && decide::endpoint(&s.packet.source).is_some() {
        // Our own pods do not speak from out there.
        return Err(DropReason::InvalidSourceIp);
    }
    if matches!(hook, Hook::FromPod) {
        match decide::endpoint(&s.packet.source) {
            Some(info) if info.ifindex == s.packet.ifindex => s.source_identity = info.identity,
            _ => return Err(DropReason::InvalidSourceIp),
        }
    }
    s.reply = u8::from(to_origin);
    route::route(skb, s, hook, config, !to_origin)?;
    if s.path.action == weft_abi::path_action::MASQUERADE {
        return Err(DropReason::NatProtocol);
    }
    s.entry.nat_addr = s.next_hop;
    s.answer = 1;
    Ok(())
}

/// Whether the error quotes a packet of its receiver's, of a connection that is tracked and allowed.
#[inline(never)]
pub fn is_about_tracked(skb: Skb, s: &mut Scratch) -> bool {
    s.saved = s.packet;
    let understood = quoted(skb, s).is_ok();
    canonical(&s.packet, flow_kind::FLOW, &mut s.key);
    let sender = s.packet.source;
    s.packet = s.saved;
    // SAFETY: read at once.
    understood && sender == s.packet.destination && unsafe { FLOWS.get(&s.key) }.is_some_and(fresh)
}

/// Puts the quoted packet's tuple into `s.packet`.
#[inline(always)]
fn quoted(skb: Skb, s: &mut Scratch) -> Result<Quote, DropReason> {
    let start = u32::from(s.packet.l4) + 8;
    let quote = if s.packet.version == 4 {
        let header: [u32; 5] = load(skb, start)?;
        let first = header[0].to_ne_bytes()[0];
        let length = u32::from(first & 0x0f) * 4;
        let fragment = header[1].to_ne_bytes();
        if first >> 4 != 4 || length < 20 || fragment[2] & 0x1f != 0 || fragment[3] != 0 {
            return Err(DropReason::InvalidPacket);
        }
        s.packet.protocol = header[2].to_ne_bytes()[1];
        s.packet.source = Addr::v4(header[3]);
        s.packet.destination = Addr::v4(header[4]);
        Quote { source: start + 12, l4: start + length }
    } else {
        let header: [u32; 10] = load(skb, start)?;
        if header[0].to_ne_bytes()[0] >> 4 != 6 {
            return Err(DropReason::InvalidPacket);
        }
        s.packet.protocol = header[1].to_ne_bytes()[2];
        s.packet.source = Addr([header[2], header[3], header[4], header[5]]);
        s.packet.destination = Addr([header[6], header[7], header[8], header[9]]);
        Quote { source: start + 8, l4: start + 40 }
    };
    let header: [u32; 2] = load(skb, quote.l4)?;
    let bytes = header[0].to_ne_bytes();
    s.packet.flags &= !ECHO;
    match s.packet.protocol {
        TCP | UDP | SCTP => {
            s.packet.source_port = u16::from_ne_bytes([bytes[0], bytes[1]]);
            s.packet.destination_port = u16::from_ne_bytes([bytes[2], bytes[3]]);
        }
        ICMP if matches!(bytes[0], 0 | 8) => echo(s, header[1]),
        ICMPV6 if matches!(bytes[0], 128 | 129) => echo(s, header[1]),
        ICMP | ICMPV6 => (s.packet.source_port, s.packet.destination_port) = ports(s.packet.protocol, bytes[0]),
        _ => {
            s.packet.source_port = 0;
            s.packet.destination_port = 0;
        }
    }
    Ok(quote)
}

#[inline(always)]
fn echo(s: &mut Scratch, word: u32) {
    let id = (word & 0xffff) as u16;
    s.packet.source_port = id;
    s.packet.destination_port = id;
    s.packet.flags |= ECHO;
}

/// The outer destination and the quoted source become the inside address.
#[inline(always)]
fn unmasquerade(skb: Skb, s: &mut Scratch, quote: &Quote, old: &Addr, new: &Addr) -> Result<(), DropReason> {
    let outer = if s.packet.version == 4 { ETH + 16 } else { ETH + 24 };
    nat::rewrite(skb, s, outer, old, new)?;
    let check = u32::from(s.packet.l4) + 2;
    // SAFETY: the helpers read from the stack.
    unsafe {
        if s.packet.version == 4 {
            // The quoted header's own checksum changes by as much the other way: the sum over both stays.
            let sum: u16 = load(skb, quote.source - 2)?;
            let (from, to) = (old.0[3], new.0[3]);
            let mended = mend(sum, from, to);
            if bpf_skb_store_bytes(skb, quote.source, (&raw const to).cast(), 4, 0) != 0
                || bpf_skb_store_bytes(skb, quote.source - 2, (&raw const mended).cast(), 2, 0) != 0
            {
                return Err(DropReason::WriteError);
            }
        } else {
            let (mut from, mut to) = (old.0, new.0);
            let sum = bpf_csum_diff(from.as_mut_ptr(), 16, to.as_mut_ptr(), 16, 0);
            if sum < 0
                || bpf_l4_csum_replace(skb, check, 0, sum as u64, 0) != 0
                || bpf_skb_store_bytes(skb, quote.source, to.as_ptr().cast(), 16, 0) != 0
            {
                return Err(DropReason::WriteError);
            }
        }
    }
    Ok(())
}

/// RFC 1624: the checksum after `from` became `to`.
#[inline(always)]
fn mend(sum: u16, from: u32, to: u32) -> u16 {
    let mut total = u32::from(!sum);
    total += (!from & 0xffff) + (!from >> 16) + (to & 0xffff) + (to >> 16);
    total = (total & 0xffff) + (total >> 16);
    total = (total & 0xffff) + (total >> 16);
    !(total as u16)
}

/// The quoted source port (or echo id) becomes the inside one.
#[inline(always)]
fn port_back(skb: Skb, s: &Scratch, offset: u32, old: u16, new: u16) -> Result<(), DropReason> {
    if old == new {
        return Ok(());
    }
    let check = u32::from(s.packet.l4) + 2;
    // SAFETY: plain numbers, and two bytes of the stack.
    unsafe {
        if bpf_l4_csum_replace(skb, check, u64::from(old), u64::from(new), 2) != 0
            || bpf_skb_store_bytes(skb, offset, (&raw const new).cast(), 2, 0) != 0
        {
            return Err(DropReason::WriteError);
        }
    }
    Ok(())
}
