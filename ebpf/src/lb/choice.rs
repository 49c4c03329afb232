//! What is stored of a choice: the entry between client and frontend, and the flags of the one between client and backend.

use weft_abi::{Addr, DropReason, FlowEntry, flow_flags};

use crate::conntrack::entry::{compare_exchange, now_s};
use crate::hook::Hook;
use crate::lb::backend::refresh_affinity;
use crate::lb::hairpin::is_hairpin_address;
use crate::maps::FLOWS;
use crate::packet::UDP;
use crate::scratch::{Scratch, clear, translated};

/// Seconds after which the tuple of datagrams may be taken over while a reply is outstanding: clients reuse ports soon. If
/// the first sender goes on after all, it takes the tuple back.
const UDP_IDLE_S: u32 = 3;

/// Whether the entry does not fit the packet: of another service, or of none while the packet came by one, or the reverse.
#[inline(always)]
pub fn is_other_services(s: &Scratch, entry: &FlowEntry, forward: bool) -> bool {
    let by_service = s.translated & translated::FORWARD != 0;
    // What other nodes translated fits either way.
    let other = if by_service { 0 } else { flow_flags::TRANSLATED };
    let found = entry.flags & (flow_flags::TRANSLATED | flow_flags::DSR_BACKEND);
    forward && (found == other || by_service && !has_same_frontend(s, entry))
}

/// Whether the entry belongs to the frontend that the packet was sent to.
#[inline(always)]
fn has_same_frontend(s: &Scratch, entry: &FlowEntry) -> bool {
    entry.frontend == s.frontend && entry.frontend_port_be == s.frontend_port
}

/// Marks the entry that is being made of a translated packet's connection.
#[inline(never)]
pub fn mark_entry(s: &mut Scratch, hook: Hook, forward: bool, existing: *mut FlowEntry) -> Result<(), DropReason> {
    if s.translated & translated::FORWARD == 0 {
        if forward && s.translated & translated::DSR != 0 {
            s.entry.flags |= flow_flags::TRANSLATED | flow_flags::DSR_BACKEND;
            s.entry.frontend = s.frontend;
            s.entry.frontend_port_be = s.frontend_port;
            return Ok(());
        }
        let here = s.entry.flags & (flow_flags::TRANSLATED | flow_flags::DSR_BACKEND) == flow_flags::TRANSLATED;
        if forward && here && matches!(hook, Hook::FromPod | Hook::FromDevice) {
            // The same ports without the service: replies would be ambiguous. Of datagrams only while one is outstanding.
            const KEPT: u16 = flow_flags::MASQUERADED | flow_flags::DSR_FRONTEND | flow_flags::HAIRPIN;
            // SAFETY: null, or a value of FLOWS, readable for the length of the program.
            let idle = unsafe { existing.as_ref() }.is_some_and(has_no_outstanding_reply);
            if s.packet.protocol != UDP || !idle || s.entry.flags & KEPT != 0 {
                return Err(DropReason::NoNatMapping);
            }
            s.entry.flags &= !flow_flags::TRANSLATED;
            s.entry.frontend = Addr::NONE;
            s.entry.frontend_port_be = 0;
        }
        if s.entry.flags & flow_flags::HAIRPIN == 0 && is_hairpin_address(&s.packet.destination) {
            return Err(DropReason::Unroutable);
        }
        if !forward && s.entry.flags & flow_flags::TRANSLATED != 0 {
            s.translated |= translated::REPLY;
            s.frontend = s.entry.frontend;
            s.frontend_port = s.entry.frontend_port_be;
        }
        return Ok(());
    }
    let anothers = s.entry.flags & flow_flags::TRANSLATED != 0 && !has_same_frontend(s, &s.entry);
    if !forward || anothers && s.packet.protocol != UDP {
        return Err(DropReason::NoNatMapping);
    }
    s.entry.flags &= !flow_flags::HAIRPIN;
    s.entry.flags |= flow_flags::TRANSLATED;
    if s.service.dsr == 1 && s.entry.flags & flow_flags::MASQUERADED == 0 {
        s.entry.flags |= flow_flags::DSR_FRONTEND;
    }
    if s.translated & translated::HAIRPIN != 0 {
        s.entry.flags |= flow_flags::HAIRPIN;
    }
    s.entry.frontend = s.frontend;
    s.entry.frontend_port_be = s.frontend_port;
    Ok(())
}

/// Whether a connection of datagrams awaits no reply, so that its tuple may be taken over: datagrams have no end.
#[inline(always)]
pub fn has_no_outstanding_reply(entry: &FlowEntry) -> bool {
    entry.reply_packets >= entry.forward_packets
        || now_s().wrapping_sub(entry.last_seen_s).wrapping_sub(UDP_IDLE_S) < u32::MAX / 2
}

/// Claims a choice, as the collector does before it removes one; false: it did so before.
#[inline(always)]
fn claim(old: &mut FlowEntry) -> bool {
    let last = old.last_seen_s;
    let usable = old.flags & flow_flags::SERVICE != 0 && last != FlowEntry::DELETING;
    // SAFETY: a field of a map value.
    usable && unsafe { compare_exchange(&raw mut old.last_seen_s, last, FlowEntry::DELETING) } == last
}

/// Stores the choice of a backend, once the connection to it was allowed; `old` is the entry before, null: not looked up
/// yet.
#[inline(never)]
pub fn store_choice(s: &mut Scratch, old: *mut FlowEntry) -> Result<(), DropReason> {
    if s.translated & translated::FORWARD == 0 || s.service.stored == 1 {
        return Ok(());
    }
    let flags = flow_flags::SERVICE
        | if s.service.low == 1 { flow_flags::ORIGIN_LOW } else { 0 }
        | if s.translated & translated::HAIRPIN != 0 { flow_flags::HAIRPIN } else { 0 }
        | s.entry.flags & flow_flags::DSR_FRONTEND;
    if s.service.stale == 1 {
        let old = if old.is_null() { FLOWS.get_ptr_mut(&s.service.key).unwrap_or(old) } else { old };
        // SAFETY: a value of FLOWS, readable for the length of the program.
        if let Some(old) = unsafe { old.as_mut() }
            && claim(old)
        {
            // A claimed entry is absent for all other packets until it is released, so it is changed in place, which costs half
            // of an insertion.
            old.flags = flags;
            old.nat_addr = s.service.backend.addr;
            old.nat_port_be = s.service.backend.port_be;
            old.destination_identity = s.service.backend.id;
            // SAFETY: a field of a map value.
            unsafe { compare_exchange(&raw mut old.last_seen_s, FlowEntry::DELETING, now_s()) };
            refresh_affinity(s);
            return Ok(());
        }
    }
    clear(&mut s.nat_entry);
    s.nat_entry.last_seen_s = now_s();
    s.nat_entry.flags = flags;
    s.nat_entry.nat_addr = s.service.backend.addr;
    s.nat_entry.nat_port_be = s.service.backend.port_be;
    s.nat_entry.destination_identity = s.service.backend.id;
    const NOEXIST: u64 = 1;
    if FLOWS.insert(&s.service.key, &s.nat_entry, NOEXIST).is_err() {
        // The table is full; or another CPU was faster, and unless it chose the same the client must try again: its next
        // packets follow that entry.
        // SAFETY: compared at once.
        let same = unsafe { FLOWS.get(&s.service.key) }.is_some_and(|other| {
            other.flags & flow_flags::SERVICE != 0
                && other.nat_addr == s.nat_entry.nat_addr
                && other.nat_port_be == s.nat_entry.nat_port_be
                && other.last_seen_s != FlowEntry::DELETING
        });
        if !same {
            return Err(DropReason::CtInsertFailed);
        }
    }
    refresh_affinity(s);
    Ok(())
}

/// Whether the packet is a reply to a client of a service; noted in `s.translated`.
#[inline(always)]
pub fn is_service_reply(s: &mut Scratch, existing: *mut FlowEntry) -> bool {
    if existing.is_null() {
        return false;
    }
    // SAFETY: not null: a value of FLOWS, readable for the length of the program.
    let (flags, last) = unsafe { ((*existing).flags, (*existing).last_seen_s) };
    let forward = (flags & flow_flags::ORIGIN_LOW != 0) == (s.low == 1);
    if flags & flow_flags::TRANSLATED == 0 || forward || last == FlowEntry::DELETING {
        return false;
    }
    s.translated = translated::REPLY;
    true
}
