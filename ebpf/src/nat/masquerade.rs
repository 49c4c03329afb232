//! Masquerading: pods reach the outside with the node's address and a port of a range that the node's own sockets do
//! not use.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_loop};
use weft_abi::{Addr, DropReason, FlowEntry, FlowKey, flow_flags, flow_kind};

use crate::conntrack::entry::now_s;
use crate::conntrack::key::{canonical_key, flow_key};
use crate::maps::{FLOWS, config};
use crate::nat::rewrite::{flush_head, replace};
use crate::packet::{ECHO, SCTP, Skb, TCP, UDP, UNMASQUERADED};
use crate::scratch::{Scratch, clear};
use crate::step::step;

/// Which tries a port gets before the connection is refused.
const TRIES: u32 = 32;

step!(reserve_port() = weft_step_reserve_port: reserve_port_body);

/// Takes an outside port for the connection in `s.packet`, unless it has one.
#[inline(always)]
fn reserve_port_body(_skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let Some(config) = config() else { return Err(DropReason::NoConfig) };
    let echo = s.packet.flags & ECHO != 0;
    if !(matches!(s.packet.protocol, TCP | UDP | SCTP) || echo) {
        return Err(DropReason::NatProtocol);
    }
    let outside = if s.packet.version == 4 { config.node_v4 } else { config.node_v6 };
    if outside.is_none() {
        return Err(DropReason::NoNatMapping);
    }
    let inside_port = s.packet.source_port;
    let inside = s.packet.source;
    clear(&mut s.nat_entry);
    s.nat_entry.last_seen_s = now_s();
    s.nat_entry.nat_addr = inside;
    s.nat_entry.nat_port_be = inside_port;
    let low = u32::from(config.nat_port_min);
    let range = u32::from(config.nat_port_max).wrapping_sub(low).wrapping_add(1) & 0xffff;
    if low == 0 || range == 0 {
        return Err(DropReason::NoNatMapping);
    }
    let had = s.entry.nat_port_be;
    if s.entry.flags & flow_flags::MASQUERADED != 0 && had != 0 && try_port(s, &outside, had, echo) {
        // The port that it had; also where the address of the node is another now.
        s.entry.nat_addr = outside;
        return Ok(());
    }
    let mut attempt = Attempt {
        s: core::ptr::from_mut(s),
        low,
        range,
        // SAFETY: no arguments.
        start: unsafe { bpf_get_prandom_u32() } >> 1,
        taken: 0,
    };
    // SAFETY: a callback of the right shape and its argument, which outlives the call.
    unsafe {
        bpf_loop(TRIES, attempt_port as *mut c_void, (&raw mut attempt).cast(), 0);
    }
    let taken = attempt.taken as u16;
    if taken == 0 {
        return Err(DropReason::NoNatMapping);
    }
    s.entry.nat_addr = outside;
    s.entry.nat_port_be = taken;
    s.entry.flags |= flow_flags::MASQUERADED;
    Ok(())
}

/// Looking for a free port.
#[repr(C)]
struct Attempt {
    s: *mut Scratch,
    low: u32,
    range: u32,
    start: u32,
    taken: u32,
}

/// By callback: the verifier walks it once, not for every try.
unsafe extern "C" fn attempt_port(n: u32, attempt: *mut c_void) -> i64 {
    // SAFETY: the argument of the loop.
    let attempt = unsafe { &mut *attempt.cast::<Attempt>() };
    // SAFETY: this CPU's own memory, which the caller of the loop has borrowed and does not use meanwhile.
    let s = unsafe { &mut *attempt.s };
    let Some(config) = config() else { return 1 };
    let outside = if s.packet.version == 4 { config.node_v4 } else { config.node_v6 };
    let (low, range) = (attempt.low, attempt.range);
    if range == 0 {
        return 1;
    }
    let own = u32::from(u16::from_be(s.packet.source_port));
    let port =
        if n == 0 && own >= low && own < low + range { own } else { low + attempt.start.wrapping_add(n) % range };
    let keeps_port = s.packet.protocol == SCTP;
    let port_be = if keeps_port { s.packet.source_port } else { (port as u16).to_be() };
    if try_port(s, &outside, port_be, s.packet.flags & ECHO != 0) {
        attempt.taken = u32::from(port_be);
        return 1;
    }
    i64::from(keeps_port)
}

#[inline(never)]
fn try_port(s: &mut Scratch, outside: &Addr, port_be: u16, echo: bool) -> bool {
    let peer_port = if echo { port_be } else { s.packet.destination_port };
    flow_key(outside, port_be, &s.packet.destination, peer_port, s.packet.protocol, flow_kind::NAT, &mut s.nat_key);
    if FLOWS.insert(&s.nat_key, &s.nat_entry, 1).is_ok() {
        return true;
    }
    // SAFETY: compared at once.
    unsafe { FLOWS.get(&s.nat_key) }.is_some_and(|old| {
        old.nat_addr == s.nat_entry.nat_addr
            && old.nat_port_be == s.nat_entry.nat_port_be
            && old.last_seen_s != FlowEntry::DELETING
    })
}

step!(unmasquerade() = weft_step_unmasquerade: unmasquerade_body);

/// Restores the inside destination of a reply to a masqueraded connection, in the frame and in `s`.
#[inline(always)]
fn unmasquerade_body(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let Some(config) = config() else { return Err(DropReason::NoConfig) };
    let port = u16::from_be(s.packet.destination_port);
    // SCTP keeps its port, whatever that is.
    if s.packet.protocol != SCTP && (port < config.nat_port_min || port > config.nat_port_max) {
        return Ok(());
    }
    canonical_key(&s.packet, flow_kind::NAT, &mut s.nat_key);
    // SAFETY: copied at once.
    let Some(entry) = (unsafe { FLOWS.get(&s.nat_key) }) else { return Ok(()) };
    if entry.last_seen_s == FlowEntry::DELETING {
        return Ok(());
    }
    let (inside, inside_port) = (entry.nat_addr, entry.nat_port_be);
    replace::<false>(skb, s, &inside, inside_port)?;
    flush_head(skb, s)?;
    if s.packet.flags & ECHO != 0 {
        s.packet.source_port = inside_port;
    }
    s.packet.flags |= UNMASQUERADED;
    Ok(())
}

/// Puts the outside address and port into the frame, the head of which is written with the TTL; `s.packet` stays what it
/// was inside.
#[inline(never)]
pub fn masquerade_source(skb: Skb, s: &mut Scratch, outside: &Addr, port_be: u16) -> Result<(), DropReason> {
    let (source, source_port) = (s.packet.source, s.packet.source_port);
    replace::<true>(skb, s, outside, port_be)?;
    s.packet.source = source;
    s.packet.source_port = source_port;
    Ok(())
}

/// The inside end of a masqueraded connection's entry under this key.
#[inline(always)]
pub fn inside_of(key: &FlowKey) -> Option<(Addr, u16)> {
    // SAFETY: copied at once.
    let entry = unsafe { FLOWS.get(key) }?;
    (entry.last_seen_s != FlowEntry::DELETING).then_some((entry.nat_addr, entry.nat_port_be))
}
