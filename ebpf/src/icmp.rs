//! ICMP errors belong to the connection that they quote (RFC 1122 3.2.2, RFC 4443 2.4): they pass if it does, and are
//! masqueraded with it, and translated where it is a service's.

use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_l4_csum_replace, bpf_skb_store_bytes};
use weft_abi::{Addr, DropReason, flow_flags, flow_kind};

use crate::checksum::mended;
use crate::maps::FLOWS;
use crate::packet::{ECHO, ETH, ICMP, ICMPV6, SCTP, Scratch, Skb, TCP, UDP, load};
use crate::track::{canonical, fresh, tuple};
use crate::{Hook, decide, nat, step};

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
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Quote {
    source: u32,
    l4: u32,
}

/// What an error needs changed so that its hearer knows what it is about.
#[repr(C)]
pub struct Edit {
    quote: Quote,
    responder: Addr,
    /// The quoted packet's.
    destination_port: u16,
    hairpin: u8,
    /// [`NONE`], [`FOUND`] or [`CHANGED`].
    found: u8,
}

/// It quotes nothing that is tracked here.
const NONE: u8 = 0;
/// It quotes the packet of a connection.
const FOUND: u8 = 1;
/// The same, and it was changed to be about the inside of it.
const CHANGED: u8 = 2;

/// True: the error quotes a connection that is allowed, and `s.path` leads to the one who must hear of it.
#[inline(always)]
pub fn related(skb: Skb, s: &mut Scratch, hook: Hook) -> Result<bool, DropReason> {
    s.answer = 0;
    step::related(skb, s, hook)?;
    Ok(s.answer == 1)
}

/// Leaves the key of the quoted packet's connection in `s.key`, and whether there may be one in `s.edit.found`.
#[inline(never)]
fn find(skb: Skb, s: &mut Scratch, hook: Hook) -> Result<(), DropReason> {
    let Some(config) = crate::track::config() else { return Err(DropReason::NoConfig) };
    s.saved = s.packet;
    s.edit.found = NONE;
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
    s.edit.quote = quote;
    let about = s.packet.source;
    if for_node {
        canonical(&s.packet, flow_kind::NAT, &mut s.nat_key);
    }
    if let Some((inside, port)) = if for_node { nat::inside(&s.nat_key) } else { None } {
        let (old, old_port) = (s.packet.source, s.packet.source_port);
        s.packet.source = inside;
        s.packet.source_port = port;
        if s.packet.flags & ECHO != 0 {
            s.packet.destination_port = port;
        }
        canonical(&s.packet, flow_kind::FLOW, &mut s.key);
        let echo = s.packet.flags & ECHO != 0;
        s.edit.destination_port = s.packet.destination_port;
        s.packet = s.saved;
        source_back(skb, s, &old, &inside)?;
        port_back(skb, s, quote.l4 + if echo { 4 } else { 0 }, old_port, port)?;
        s.packet.destination = inside;
        s.edit.found = CHANGED;
    } else {
        let quoted_low = canonical(&s.packet, flow_kind::FLOW, &mut s.key);
        let (old_port, client, client_port) = (s.packet.source_port, s.packet.destination, s.packet.destination_port);
        let protocol = s.packet.protocol;
        s.edit.destination_port = client_port;
        s.packet = s.saved;
        if about != s.packet.destination {
            return Ok(());
        }
        // About an answer of a service: its backend wants to know.
        // SAFETY: copied at once.
        let service = unsafe { FLOWS.get(&s.key) }
            .filter(|entry| {
                entry.flags & (flow_flags::SERVICE | flow_flags::HAIRPIN) == flow_flags::SERVICE
                    && (entry.flags & flow_flags::ORIGIN_LOW != 0) != quoted_low
            })
            .map(|entry| (entry.nat_addr, entry.nat_port_be));
        if let Some((backend, port)) = service {
            tuple(&backend, port, &client, client_port, protocol, flow_kind::FLOW, &mut s.key);
            source_back(skb, s, &about, &backend)?;
            port_back(skb, s, quote.l4, old_port, port)?;
            s.packet.destination = backend;
            s.edit.found = CHANGED;
        } else if !for_node || is_service_of_node(&s.key) {
            s.edit.found = FOUND;
        }
    }
    Ok(())
}

/// Whether it is a connection behind a service: to the node itself an error about it says nothing, as it does not know
/// the backend.
#[inline(always)]
fn is_service_of_node(key: &weft_abi::FlowKey) -> bool {
    // SAFETY: read at once.
    unsafe { FLOWS.get(key) }.is_some_and(|entry| entry.flags & flow_flags::TRANSLATED != 0)
}

/// Looks for the connection and its way; [`related`] says what for.
#[inline(always)]
pub fn follow(skb: Skb, s: &mut Scratch, hook: Hook) -> Result<(), DropReason> {
    find(skb, s, hook)?;
    if s.edit.found == NONE {
        return Ok(());
    }
    let masqueraded = s.edit.found == CHANGED;
    let hears_low = s.key.low == s.packet.destination;
    let Some(pointer) = FLOWS.get_ptr_mut(&s.key) else {
        return if masqueraded { Err(DropReason::NoNatMapping) } else { Ok(()) };
    };
    // SAFETY: a map value stays readable for the length of the program.
    let entry = unsafe { &*pointer };
    if !fresh(entry) {
        return if masqueraded { Err(DropReason::NoNatMapping) } else { Ok(()) };
    }
    let origin_low = entry.flags & flow_flags::ORIGIN_LOW != 0;
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
    // Also what the way depends on; nothing else of the scratch memory's entry is this connection's.
    s.entry.flags = 0;
    if to_origin && entry.flags & flow_flags::TRANSLATED != 0 {
        s.entry.flags = flow_flags::TRANSLATED;
        s.frontend = entry.frontend;
        s.frontend_port = entry.frontend_port_be;
        s.edit.responder = if hears_low { s.key.high } else { s.key.low };
        s.edit.hairpin = u8::from(entry.flags & flow_flags::HAIRPIN != 0);
        frontend_back(skb, s)?;
    } else if masqueraded && matches!(hook, Hook::FromDevice) {
        s.entry.flags = entry.flags & (flow_flags::TRANSLATED | flow_flags::TELLS);
    }
    step::route(skb, s, hook, !to_origin)?;
    // Nothing more is to be done to it.
    s.entry.flags = 0;
    if s.path.action == weft_abi::path_action::MASQUERADE {
        return Err(DropReason::NatProtocol);
    }
    s.entry.nat_addr = s.next_hop;
    s.answer = 1;
    Ok(())
}

/// To the client the error is about what it sent: to the frontend. What the backend itself says the frontend says.
#[inline(never)]
fn frontend_back(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let (responder, frontend, frontend_port) = (s.edit.responder, s.frontend, s.frontend_port);
    if s.edit.hairpin == 1 {
        // The pod spoke to itself in another name.
        let own = s.packet.destination;
        source_back(skb, s, &own, &responder)?;
        s.packet.destination = responder;
    }
    let v4 = s.packet.version == 4;
    let at = s.edit.quote.source + if v4 { 4 } else { 16 };
    quoted_address(skb, s, at, &responder, &frontend)?;
    let (at, old_port) = (s.edit.quote.l4 + 2, s.edit.destination_port);
    port_back(skb, s, at, old_port, frontend_port)?;
    if s.packet.source == responder {
        nat::rewrite(skb, s, ETH + if v4 { 12 } else { 8 }, &responder, &frontend)?;
        s.packet.source = frontend;
    }
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

/// The outer destination and the quoted source become another address.
#[inline(never)]
fn source_back(skb: Skb, s: &mut Scratch, old: &Addr, new: &Addr) -> Result<(), DropReason> {
    let outer = if s.packet.version == 4 { ETH + 16 } else { ETH + 24 };
    nat::rewrite(skb, s, outer, old, new)?;
    let at = s.edit.quote.source;
    quoted_address(skb, s, at, old, new)
}

/// An address of the quoted header becomes another one.
#[inline(never)]
fn quoted_address(skb: Skb, s: &mut Scratch, at: u32, old: &Addr, new: &Addr) -> Result<(), DropReason> {
    let check = u32::from(s.packet.l4) + 2;
    // SAFETY: the helpers read from the stack.
    unsafe {
        if s.packet.version == 4 {
            // The quoted header's own checksum changes by as much the other way: the sum over both stays.
            let sum_at = s.edit.quote.source - 2;
            let sum: u16 = load(skb, sum_at)?;
            let (from, to) = (old.0[3], new.0[3]);
            let sum = mended(sum, from, to);
            if bpf_skb_store_bytes(skb, at, (&raw const to).cast(), 4, 0) != 0
                || bpf_skb_store_bytes(skb, sum_at, (&raw const sum).cast(), 2, 0) != 0
            {
                return Err(DropReason::WriteError);
            }
        } else {
            let (mut from, mut to) = (old.0, new.0);
            let sum = bpf_csum_diff(from.as_mut_ptr(), 16, to.as_mut_ptr(), 16, 0);
            if sum < 0
                || bpf_l4_csum_replace(skb, check, 0, sum as u64, 0) != 0
                || bpf_skb_store_bytes(skb, at, to.as_ptr().cast(), 16, 0) != 0
            {
                return Err(DropReason::WriteError);
            }
        }
    }
    Ok(())
}

/// A quoted port (or echo id) becomes another one.
#[inline(never)]
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
