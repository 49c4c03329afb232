//! ICMP errors belong to the connection that they quote (RFC 1122 3.2.2, RFC 4443 2.4): they pass if it does, and are
//! masqueraded with it, and translated where it is a service's.

use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_l4_csum_replace, bpf_skb_store_bytes};
use weft_abi::{Addr, DropReason, FlowKey, flow_flags, flow_kind, path_action};

use crate::conntrack::entry::is_current;
use crate::conntrack::key::{canonical_key, flow_key};
use crate::endpoint::lookup::{endpoint, is_pods_address};
use crate::forward::route::route;
use crate::hook::Hook;
use crate::maps::{FLOWS, config};
use crate::nat::checksum::update_checksum;
use crate::nat::masquerade::inside_of;
use crate::nat::rewrite::rewrite_address;
use crate::packet::{ECHO, ETH, ICMP, ICMPV6, SCTP, Skb, TCP, UDP, load};
use crate::parse::icmp::icmp_ports;
use crate::scratch::{Quote, Scratch};
use crate::step::step;

/// The quoted packet is of no tracked connection.
const NONE: u8 = 0;

/// The quoted packet is of a tracked connection.
const FOUND: u8 = 1;

/// The same, and the quote was translated to the inside of the connection.
const CHANGED: u8 = 2;

/// Whether the error quotes an allowed connection; then `s.path` leads to its receiver.
#[inline(always)]
pub fn is_related(skb: Skb, s: &mut Scratch, hook: Hook) -> Result<bool, DropReason> {
    s.output = 0;
    relate(skb, s, hook)?;
    Ok(s.output == 1)
}

/// Leaves the key of the quoted packet's connection in `s.key`, and whether there may be one in `s.icmp_edit.found`.
#[inline(never)]
fn find_quoted(skb: Skb, s: &mut Scratch, hook: Hook) -> Result<(), DropReason> {
    let Some(config) = config() else { return Err(DropReason::NoConfig) };
    s.saved = s.packet;
    s.icmp_edit.found = NONE;
    let for_node = matches!(hook, Hook::FromDevice)
        && (s.saved.destination == config.node_v4 || s.saved.destination == config.node_v6);
    let quote = match parse_quoted(skb, s) {
        Ok(quote) => quote,
        Err(reason) => {
            s.packet = s.saved;
            // To the node itself: its stack handles it.
            return if for_node { Ok(()) } else { Err(reason) };
        }
    };
    s.icmp_edit.quote = quote;
    let about = s.packet.source;
    if for_node {
        canonical_key(&s.packet, flow_kind::NAT, &mut s.nat_key);
    }
    if let Some((inside, port)) = if for_node { inside_of(&s.nat_key) } else { None } {
        let (old, old_port) = (s.packet.source, s.packet.source_port);
        s.packet.source = inside;
        s.packet.source_port = port;
        if s.packet.flags & ECHO != 0 {
            s.packet.destination_port = port;
        }
        canonical_key(&s.packet, flow_kind::FLOW, &mut s.key);
        let echo = s.packet.flags & ECHO != 0;
        s.icmp_edit.destination_port = s.packet.destination_port;
        s.packet = s.saved;
        restore_source(skb, s, &old, &inside)?;
        rewrite_quoted_port(skb, s, quote.l4 + if echo { 4 } else { 0 }, old_port, port)?;
        s.packet.destination = inside;
        s.icmp_edit.found = CHANGED;
    } else {
        let quoted_low = canonical_key(&s.packet, flow_kind::FLOW, &mut s.key);
        let (old_port, client, client_port) = (s.packet.source_port, s.packet.destination, s.packet.destination_port);
        let protocol = s.packet.protocol;
        s.icmp_edit.destination_port = client_port;
        s.packet = s.saved;
        if about != s.packet.destination {
            return Ok(());
        }
        // About a reply of a service: it goes to the backend.
        // SAFETY: copied at once.
        let service = unsafe { FLOWS.get(&s.key) }
            .filter(|entry| {
                entry.flags & (flow_flags::SERVICE | flow_flags::HAIRPIN) == flow_flags::SERVICE
                    && (entry.flags & flow_flags::ORIGIN_LOW != 0) != quoted_low
            })
            .map(|entry| (entry.nat_addr, entry.nat_port_be));
        if let Some((backend, port)) = service {
            flow_key(&backend, port, &client, client_port, protocol, flow_kind::FLOW, &mut s.key);
            restore_source(skb, s, &about, &backend)?;
            rewrite_quoted_port(skb, s, quote.l4, old_port, port)?;
            s.packet.destination = backend;
            s.icmp_edit.found = CHANGED;
        } else if !for_node || is_service_of_node(&s.key) {
            s.icmp_edit.found = FOUND;
        }
    }
    Ok(())
}

/// Whether it is a connection behind a service: the node's own stack knows its frontend, not its backend.
#[inline(always)]
fn is_service_of_node(key: &FlowKey) -> bool {
    // SAFETY: read at once.
    unsafe { FLOWS.get(key) }.is_some_and(|entry| entry.flags & flow_flags::TRANSLATED != 0)
}

step!(relate(hook: Hook) = weft_step_relate: relate_body);

/// Looks up the connection and the path of the error, see [`is_related`].
#[inline(always)]
fn relate_body(skb: Skb, s: &mut Scratch, hook: Hook) -> Result<(), DropReason> {
    find_quoted(skb, s, hook)?;
    if s.icmp_edit.found == NONE {
        return Ok(());
    }
    let masqueraded = s.icmp_edit.found == CHANGED;
    let receiver_low = s.key.low == s.packet.destination;
    let Some(pointer) = FLOWS.get_ptr_mut(&s.key) else {
        return if masqueraded { Err(DropReason::NoNatMapping) } else { Ok(()) };
    };
    // SAFETY: a map value stays readable for the length of the program.
    let entry = unsafe { &*pointer };
    if !is_current(entry) {
        return if masqueraded { Err(DropReason::NoNatMapping) } else { Ok(()) };
    }
    let origin_low = entry.flags & flow_flags::ORIGIN_LOW != 0;
    let (origin, responder) = (entry.source_identity, entry.destination_identity);
    let to_origin = receiver_low == origin_low;
    s.source_identity = if to_origin { responder } else { origin };
    s.destination_identity = if to_origin { origin } else { responder };
    if matches!(hook, Hook::FromDevice) && endpoint(&s.packet.source).is_some() {
        // No pod of this node is outside.
        return Err(DropReason::InvalidSourceIp);
    }
    check_witness(s, hook)?;
    if matches!(hook, Hook::FromPod) {
        match endpoint(&s.packet.source) {
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
        s.icmp_edit.responder = if receiver_low { s.key.high } else { s.key.low };
        s.icmp_edit.hairpin = u8::from(entry.flags & flow_flags::HAIRPIN != 0);
        restore_frontend(skb, s)?;
    } else if masqueraded && matches!(hook, Hook::FromDevice) {
        s.entry.flags = entry.flags & (flow_flags::TRANSLATED | flow_flags::DSR_FRONTEND);
    }
    route(skb, s, hook, !to_origin)?;
    // Nothing more is to be done to it.
    s.entry.flags = 0;
    if s.path.action == path_action::MASQUERADE {
        return Err(DropReason::NatProtocol);
    }
    s.entry.nat_addr = s.next_hop;
    s.output = 1;
    Ok(())
}

/// Whether the sender of the error can have seen the quoted packet: a pod only if it is an end of the connection, anybody
/// outside only if the connection leads out of the node. Otherwise a guessed connection's path MTU could be changed, or the
/// connection ended.
#[inline(never)]
fn check_witness(s: &Scratch, hook: Hook) -> Result<(), DropReason> {
    let other = if s.key.low == s.packet.destination { s.key.high } else { s.key.low };
    if s.packet.source == other || matches!(hook, Hook::ToPod | Hook::ToDevice) {
        return Ok(());
    }
    let leads_out = matches!(hook, Hook::FromDevice) && endpoint(&other).is_none();
    if leads_out && !is_pods_address(&s.packet.source) { Ok(()) } else { Err(DropReason::InvalidPacket) }
}

/// For the client the error is about its packet to the frontend: replaces the backend in the quote, and as the source.
#[inline(never)]
fn restore_frontend(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let (responder, frontend, frontend_port) = (s.icmp_edit.responder, s.frontend, s.frontend_port);
    if s.icmp_edit.hairpin == 1 {
        // Hairpin: the quoted source is the hairpin address.
        let own = s.packet.destination;
        restore_source(skb, s, &own, &responder)?;
        s.packet.destination = responder;
    }
    let v4 = s.packet.version == 4;
    let at = s.icmp_edit.quote.source + if v4 { 4 } else { 16 };
    rewrite_quoted_address(skb, s, at, &responder, &frontend)?;
    let (at, old_port) = (s.icmp_edit.quote.l4 + 2, s.icmp_edit.destination_port);
    rewrite_quoted_port(skb, s, at, old_port, frontend_port)?;
    if s.packet.source == responder {
        rewrite_address(skb, s, ETH + if v4 { 12 } else { 8 }, &responder, &frontend)?;
        s.packet.source = frontend;
    }
    Ok(())
}

/// Whether the error quotes a packet of its receiver's, of a connection that is tracked and allowed.
#[inline(never)]
pub fn quotes_tracked(skb: Skb, s: &mut Scratch) -> bool {
    s.saved = s.packet;
    let understood = parse_quoted(skb, s).is_ok();
    canonical_key(&s.packet, flow_kind::FLOW, &mut s.key);
    let sender = s.packet.source;
    s.packet = s.saved;
    // SAFETY: read at once.
    understood && sender == s.packet.destination && unsafe { FLOWS.get(&s.key) }.is_some_and(is_current)
}

/// Puts the quoted packet's tuple into `s.packet`.
#[inline(always)]
fn parse_quoted(skb: Skb, s: &mut Scratch) -> Result<Quote, DropReason> {
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
        if s.packet.source.is_v4() || s.packet.destination.is_v4() {
            // Mapped addresses would be those of another packet.
            return Err(DropReason::InvalidPacket);
        }
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
        ICMP if matches!(bytes[0], 0 | 8) => read_echo(s, header[1]),
        ICMPV6 if matches!(bytes[0], 128 | 129) => read_echo(s, header[1]),
        ICMP | ICMPV6 => (s.packet.source_port, s.packet.destination_port) = icmp_ports(s.packet.protocol, bytes[0]),
        _ => {
            s.packet.source_port = 0;
            s.packet.destination_port = 0;
        }
    }
    Ok(quote)
}

#[inline(always)]
fn read_echo(s: &mut Scratch, word: u32) {
    let id = (word & 0xffff) as u16;
    s.packet.source_port = id;
    s.packet.destination_port = id;
    s.packet.flags |= ECHO;
}

/// The outer destination and the quoted source become another address.
#[inline(never)]
fn restore_source(skb: Skb, s: &mut Scratch, old: &Addr, new: &Addr) -> Result<(), DropReason> {
    let outer = if s.packet.version == 4 { ETH + 16 } else { ETH + 24 };
    rewrite_address(skb, s, outer, old, new)?;
    let at = s.icmp_edit.quote.source;
    rewrite_quoted_address(skb, s, at, old, new)
}

/// An address of the quoted header becomes another one.
#[inline(never)]
fn rewrite_quoted_address(skb: Skb, s: &mut Scratch, at: u32, old: &Addr, new: &Addr) -> Result<(), DropReason> {
    let check = u32::from(s.packet.l4) + 2;
    // SAFETY: the helpers read from the stack.
    unsafe {
        if s.packet.version == 4 {
            // The quoted header's own checksum changes by as much the other way: the sum over both stays.
            let sum_at = s.icmp_edit.quote.source - 2;
            let sum: u16 = load(skb, sum_at)?;
            let (from, to) = (old.0[3], new.0[3]);
            let sum = update_checksum(sum, from, to);
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
fn rewrite_quoted_port(skb: Skb, s: &Scratch, offset: u32, old: u16, new: u16) -> Result<(), DropReason> {
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
