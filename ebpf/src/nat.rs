//! Masquerading: pods reach the outside with the node's address and a port of a range that the node's own sockets do
//! not use.

use core::ffi::c_void;

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::generated::{
    bpf_get_prandom_u32, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_loop, bpf_skb_store_bytes,
};
use weft_abi::{Addr, DropReason, FlowEntry, FlowKey, flow_flags, flow_kind};

use crate::checksum::{difference, mended, owed_begins_at, owes_checksum};
use crate::maps::FLOWS;
use crate::packet::{
    ECHO, ETH, HEAD, ICMP, ICMPV6, LATER_FRAGMENT, SCTP, Scratch, Skb, TCP, UDP, UNMASQUERADED, clear, load,
    skb_gso_size,
};
use crate::sctp;
use crate::track::{canonical, now_s, tuple};

/// Which tries a port gets before the connection is refused.
const TRIES: u32 = 32;

/// Takes an outside port for the connection in `s.packet`, unless it has one.
#[inline(always)]
pub fn reserve(_skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let Some(config) = crate::track::config() else { return Err(DropReason::NoConfig) };
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
    let Some(config) = crate::track::config() else { return 1 };
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
    tuple(outside, port_be, &s.packet.destination, peer_port, s.packet.protocol, flow_kind::NAT, &mut s.nat_key);
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

/// If the packet answers a masqueraded connection: gives it back its inside destination, in the frame and in `s`.
#[inline(always)]
pub fn inbound(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let Some(config) = crate::track::config() else { return Err(DropReason::NoConfig) };
    let port = u16::from_be(s.packet.destination_port);
    // SCTP keeps its port, whatever that is.
    if s.packet.protocol != SCTP && (port < config.nat_port_min || port > config.nat_port_max) {
        return Ok(());
    }
    canonical(&s.packet, flow_kind::NAT, &mut s.nat_key);
    // SAFETY: copied at once.
    let Some(entry) = (unsafe { FLOWS.get(&s.nat_key) }) else { return Ok(()) };
    if entry.last_seen_s == FlowEntry::DELETING {
        return Ok(());
    }
    let (inside, inside_port) = (entry.nat_addr, entry.nat_port_be);
    replace::<false>(skb, s, &inside, inside_port)?;
    settle(skb, s)?;
    if s.packet.flags & ECHO != 0 {
        s.packet.source_port = inside_port;
    }
    s.packet.flags |= UNMASQUERADED;
    Ok(())
}

/// Puts the outside address and port into the frame, the head of which is written with the TTL; `s.packet` stays what it
/// was inside.
#[inline(never)]
pub fn outbound(skb: Skb, s: &mut Scratch, outside: &Addr, port_be: u16) -> Result<(), DropReason> {
    let (source, source_port) = (s.packet.source, s.packet.source_port);
    replace::<true>(skb, s, outside, port_be)?;
    s.packet.source = source;
    s.packet.source_port = source_port;
    Ok(())
}

/// Replaces the source or the destination and its port (or the id of an echo), in the frame and in `s.packet`.
#[inline(always)]
pub fn replace<const SOURCE: bool>(skb: Skb, s: &mut Scratch, new: &Addr, port_be: u16) -> Result<(), DropReason> {
    let v4 = s.packet.version == 4;
    let (old, old_port) = if SOURCE {
        (s.packet.source, s.packet.source_port)
    } else {
        (s.packet.destination, s.packet.destination_port)
    };
    let plain = matches!(s.packet.protocol, TCP | UDP)
        && s.packet.flags & LATER_FRAGMENT == 0
        && u32::from(s.packet.l4) == ETH + if v4 { 20 } else { 40 };
    if plain {
        at_once::<SOURCE>(skb, s, &old, new, old_port, port_be)?;
    } else {
        let address = ETH
            + if v4 { 12 } else { 8 }
            + if SOURCE {
                0
            } else if v4 {
                4
            } else {
                16
            };
        rewrite(skb, s, address, &old, new)?;
        let echo = s.packet.flags & ECHO != 0;
        ports(
            skb,
            s,
            if echo {
                4
            } else if SOURCE {
                0
            } else {
                2
            },
            old_port,
            port_be,
        )?;
    }
    if SOURCE {
        s.packet.source = *new;
        s.packet.source_port = port_be;
    } else {
        s.packet.destination = *new;
        s.packet.destination_port = port_be;
    }
    Ok(())
}

/// The same where nothing lies between addresses and ports, which is nearly always: every call of a helper costs as much
/// as the rest. So addresses, ports and IPv4's checksum are changed in the copy of the head alone, and so is the checksum
/// of TCP and UDP if it is still owed; all is written with the TTL or by [`settle`].
#[inline(always)]
fn at_once<const SOURCE: bool>(
    skb: Skb,
    s: &mut Scratch,
    old: &Addr,
    new: &Addr,
    old_port: u16,
    port_be: u16,
) -> Result<(), DropReason> {
    let (at, flags) = if s.packet.protocol == TCP { (16, 0) } else { (6, BPF_F_MARK_MANGLED_0 as u64) };
    let v4 = s.packet.version == 4;
    let sum_at = ETH + at + if v4 { 20 } else { 40 };
    let pseudo = flags | BPF_F_PSEUDO_HDR as u64;
    // Of a short packet the copy may end before.
    let owes = s.copied >= sum_at + 2 && owes_checksum(skb);
    // What is owed may be that of a packet inside: a datagram around it has its whole own, or none. One that is yet to be
    // cut into segments is owed it all the same, with each of them.
    let around = s.packet.protocol == UDP && owes && skb_gso_size(skb) == 0 && !owed_begins_at(skb, sum_at - at);
    let frame = s.frame();
    // SAFETY: the helpers take plain numbers; all of these headers are inside the copy.
    let done = unsafe {
        let place = frame.add(sum_at as usize).cast::<u16>();
        let mend = |from: u32, to: u32| {
            let sum = place.read();
            if sum == 0 {
                // There is none.
                return;
            }
            place.write(if around {
                let sum = mended(mended(sum, from, to), u32::from(old_port), u32::from(port_be));
                // Nothing would say that there is none (RFC 768).
                if sum == 0 { u16::MAX } else { sum }
            } else {
                !mended(!sum, from, to)
            });
        };
        if v4 {
            let (from, to) = (old.0[3], new.0[3]);
            let sum = mended(frame.add(24).cast::<u16>().read(), from, to);
            frame.add(24).cast::<u16>().write(sum);
            frame.add(if SOURCE { 26 } else { 30 }).cast::<u32>().write(to);
            frame.add(if SOURCE { 34 } else { 36 }).cast::<u16>().write(port_be);
            if owes {
                mend(from, to);
                0
            } else {
                bpf_l4_csum_replace(skb, sum_at, u64::from(from), u64::from(to), pseudo | 4)
            }
        } else {
            frame.add(if SOURCE { 22 } else { 38 }).cast::<Addr>().write(*new);
            frame.add(if SOURCE { 54 } else { 56 }).cast::<u16>().write(port_be);
            let difference = difference(old, new);
            if owes {
                mend(u32::MAX, difference);
                0
            } else {
                bpf_l4_csum_replace(skb, sum_at, 0, u64::from(difference), pseudo)
            }
        }
    };
    if owes {
        s.unwritten = (sum_at + 2) as u8;
        return Ok(());
    }
    s.unwritten = translated_head(v4) as u8;
    // SAFETY: as above.
    let ports = || unsafe { bpf_l4_csum_replace(skb, sum_at, u64::from(old_port), u64::from(port_be), flags | 2) };
    if done != 0 || old_port != port_be && ports() != 0 {
        return Err(DropReason::WriteError);
    }
    Ok(())
}

/// Bytes of the frame up to the ports, where nothing lies before them.
#[inline(always)]
const fn translated_head(v4: bool) -> u32 {
    ETH + if v4 { 24 } else { 44 }
}

/// How many bytes of the copy are to be written, `least` or up to the last that was changed there; they are then taken
/// for written.
#[inline(always)]
pub fn written(s: &mut Scratch, least: u32) -> u32 {
    let unwritten = u32::from(core::mem::take(&mut s.unwritten));
    if unwritten > least { unwritten } else { least }
}

/// Writes what was translated in the copy of the head alone.
#[inline(always)]
pub fn settle(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    if s.unwritten == 0 {
        return Ok(());
    }
    // From IPv4's checksum on; of what lies before, others may have written since.
    let (from, least) = if s.packet.version == 4 { (24, translated_head(true)) } else { (22, translated_head(false)) };
    let end = written(s, least);
    if end > HEAD as u32 {
        return Err(DropReason::WriteError);
    }
    let length = end - from;
    // SAFETY: `length` bytes of the copy.
    if unsafe { bpf_skb_store_bytes(skb, from, s.frame().add(from as usize).cast(), length, 0) } != 0 {
        return Err(DropReason::WriteError);
    }
    Ok(())
}

/// Offset of the checksum in the transport header, and the helper's flags.
#[inline(always)]
fn checksum(protocol: u8) -> Option<(u32, u64)> {
    match protocol {
        TCP => Some((16, 0)),
        UDP => Some((6, BPF_F_MARK_MANGLED_0 as u64)),
        ICMP | ICMPV6 => Some((2, 0)),
        // SCTP's covers no addresses.
        _ => None,
    }
}

/// Replaces an address of the IP header and mends the checksums.
#[inline(always)]
pub fn rewrite(skb: Skb, s: &mut Scratch, offset: u32, old: &Addr, new: &Addr) -> Result<(), DropReason> {
    let l4 = u32::from(s.packet.l4);
    let has_l4 = s.packet.flags & LATER_FRAGMENT == 0;
    // SAFETY: the helpers copy from the scratch memory or take plain numbers.
    unsafe {
        if s.packet.version == 4 {
            let (from, to) = (old.0[3], new.0[3]);
            if has_l4 && s.packet.protocol != ICMP {
                if let Some((at, flags)) = checksum(s.packet.protocol) {
                    let flags = flags | BPF_F_PSEUDO_HDR as u64 | 4;
                    if bpf_l4_csum_replace(skb, l4 + at, u64::from(from), u64::from(to), flags) != 0 {
                        return Err(DropReason::WriteError);
                    }
                }
            }
            if bpf_l3_csum_replace(skb, ETH + 10, u64::from(from), u64::from(to), 4) != 0
                || bpf_skb_store_bytes(skb, offset, (&raw const to).cast(), 4, 0) != 0
            {
                return Err(DropReason::WriteError);
            }
            // The copy's checksum is written back with the TTL.
            let sum: u16 = load(skb, ETH + 10)?;
            s.frame().add(24).cast::<u16>().write(sum);
        } else {
            let to = new.0;
            if has_l4 {
                if let Some((at, flags)) = checksum(s.packet.protocol) {
                    let sum = u64::from(difference(old, new));
                    if bpf_l4_csum_replace(skb, l4 + at, 0, sum, flags | BPF_F_PSEUDO_HDR as u64) != 0 {
                        return Err(DropReason::WriteError);
                    }
                }
            }
            if bpf_skb_store_bytes(skb, offset, to.as_ptr().cast(), 16, 0) != 0 {
                return Err(DropReason::WriteError);
            }
        }
    }
    Ok(())
}

/// Replaces a port (or the id of an echo) at `offset` of the transport header.
#[inline(always)]
pub fn ports(skb: Skb, s: &mut Scratch, offset: u32, old: u16, new: u16) -> Result<(), DropReason> {
    if s.packet.flags & LATER_FRAGMENT != 0 || old == new {
        return Ok(());
    }
    let l4 = u32::from(s.packet.l4);
    if s.packet.protocol == SCTP {
        sctp::mend(skb, s, offset, old, new)?;
        // SAFETY: a copy of two bytes.
        return if unsafe { bpf_skb_store_bytes(skb, l4 + offset, (&raw const new).cast(), 2, 0) } == 0 {
            Ok(())
        } else {
            Err(DropReason::WriteError)
        };
    }
    let Some((at, flags)) = checksum(s.packet.protocol) else { return Err(DropReason::NatProtocol) };
    // SAFETY: plain numbers, and a copy of two bytes.
    unsafe {
        if bpf_l4_csum_replace(skb, l4 + at, u64::from(old), u64::from(new), flags | 2) != 0
            || bpf_skb_store_bytes(skb, l4 + offset, (&raw const new).cast(), 2, 0) != 0
        {
            return Err(DropReason::WriteError);
        }
    }
    Ok(())
}

/// The inside end of a masqueraded connection's entry under this key.
#[inline(always)]
pub fn inside(key: &FlowKey) -> Option<(Addr, u16)> {
    // SAFETY: copied at once.
    let entry = unsafe { FLOWS.get(key) }?;
    (entry.last_seen_s != FlowEntry::DELETING).then_some((entry.nat_addr, entry.nat_port_be))
}
