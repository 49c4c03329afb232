//! Services, packet by packet: DNAT from a frontend to a backend, and the reverse for replies.
//!
//! Two entries of `FLOWS` belong to such a connection. The one between client and frontend
//! ([`flow_flags::SERVICE`]) has the chosen backend; it has no path, so the established path of other
//! connections is free of services. The one between client and backend is the connection itself: judged, tracked
//! and sent like any other, and marked [`flow_flags::TRANSLATED`] so that replies get the frontend's address. The first
//! is written after the second was allowed: what is denied leaves nothing behind.

use weft_abi::{Addr, DropReason, FlowEntry, backend_flags, flow_flags, flow_kind, service_flags};

use crate::conntrack::entry::{compare_exchange, is_closing, now_s};
use crate::conntrack::key::{canonical_key, flow_key};
use crate::endpoint::lookup::endpoint;
use crate::hook::Hook;
use crate::lb::backend::{choose_backend, is_client_backend, unbind};
use crate::lb::choice::{has_no_outstanding_reply, is_service_reply};
use crate::lb::dsr::{is_client_done, uses_dsr};
use crate::lb::frontend::{check_client, find_frontend, may_open};
use crate::lb::hairpin::{is_hairpin, is_hairpin_address};
use crate::lb::rewrite::{dnat, dnat_inline};
use crate::maps::{BACKENDS, FLOWS, config};
use crate::packet::{SCTP, Skb, TCP, TUNNELLED, UDP, UNKNOWN_PORTS, UNMASQUERADED};
use crate::reject::reject_no_backend;
use crate::scratch::{Scratch, translated};
use crate::step::step;

/// `s.output` of a translation: the packet is unchanged.
pub const UNCHANGED: u32 = 0;

/// Unchanged, and its entry was evicted.
pub const EVICTED: u32 = 1;

/// How many backends of a set are tried: the client may use the same ports with some already.
const TRIES: u32 = 4;

step!(translate(hook: Hook, existing: *mut FlowEntry) = weft_step_translate: translate_body);

/// Translates the packet if it is for a service. `existing`: the entry of its own tuple, or null.
#[inline(always)]
fn translate_body(skb: Skb, s: &mut Scratch, hook: Hook, existing: *mut FlowEntry) -> Result<(), DropReason> {
    s.output = UNCHANGED;
    if !matches!(s.packet.protocol, TCP | UDP | SCTP)
        || s.packet.flags & UNMASQUERADED != 0
        || s.translated & translated::DSR != 0
    {
        return Ok(());
    }
    let low = s.low;
    s.service.low = low;
    s.service.stored = 0;
    s.service.stale = 0;
    s.service.dsr = 0;
    s.service.bound = 0;
    s.service.outside = u8::from(matches!(hook, Hook::FromDevice));
    if !existing.is_null() {
        // SAFETY: not null: a value of FLOWS, readable for the length of the program.
        let old = unsafe { &mut *existing };
        let forward = (old.flags & flow_flags::ORIGIN_LOW != 0) == (low == 1);
        if old.flags & flow_flags::SERVICE != 0 {
            if !forward {
                // Only this node sends from a frontend's address.
                return Err(DropReason::InvalidSourceIp);
            }
            if is_choice_valid(s, old) {
                s.service.stored = 1;
                s.service.dsr = u8::from(old.flags & flow_flags::DSR_FRONTEND != 0);
                s.service.backend.addr = old.nat_addr;
                s.service.backend.port_be = old.nat_port_be;
                s.service.backend.id = old.destination_identity;
                return dnat_inline(skb, s);
            }
            s.service.stale = 1;
        } else if !forward || !may_open(s) {
            return Ok(());
        }
    }
    if !find_frontend(s) {
        if !existing.is_null() && s.service.stale == 1 {
            // SAFETY: a value of FLOWS, readable for the length of the program.
            evict(s, unsafe { &mut *existing });
            s.output = EVICTED;
        }
        return Ok(());
    }
    if matches!(hook, Hook::FromPod) && !endpoint(&s.packet.source).is_some_and(|i| i.ifindex == s.packet.ifindex) {
        // A spoofed source: dropped where the source is identified.
        return Ok(());
    }
    check_client(s)?;
    if s.service.info.flags & service_flags::SKIP_FROM_BACKEND != 0 && is_client_backend(s) {
        return Ok(());
    }
    if s.service.count == 0 {
        if s.service.outside == 1 && s.service.info.flags & service_flags::EXTERNAL_LOCAL != 0 {
            return Err(DropReason::NoServiceBackend);
        }
        return reject_no_backend(s);
    }
    let mut free = false;
    s.service.tried = 0;
    for _ in 0..TRIES {
        match choose_free_backend(skb, s) {
            Ok(()) => {
                free = true;
                break;
            }
            Err(DropReason::NoNatMapping) => s.service.tried += 1,
            Err(reason) => return Err(reason),
        }
    }
    if !free {
        return Err(DropReason::NoNatMapping);
    }
    s.service.dsr = u8::from(uses_dsr(s));
    if !existing.is_null() && s.service.stale == 0 {
        // A connection to the address from before it was a frontend's.
        // SAFETY: as above.
        evict(s, unsafe { &mut *existing });
    }
    dnat(skb, s)
}

step!(translate_ingress() = weft_step_translate_ingress: translate_ingress_body);

/// Translates a packet that came by the device to an address of the node, if it is for a service; or notes that it
/// is a reply to the node's own, in `s.translated`.
#[inline(always)]
fn translate_ingress_body(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    s.output = UNCHANGED;
    if s.packet.flags & UNKNOWN_PORTS != 0 {
        return Ok(());
    }
    if is_hairpin_address(&s.packet.source) {
        return Err(DropReason::InvalidSourceIp);
    }
    s.low = u8::from(canonical_key(&s.packet, flow_kind::FLOW, &mut s.key));
    let mut existing = FLOWS.get_ptr_mut(&s.key).unwrap_or(core::ptr::null_mut());
    if is_service_reply(s, existing) || s.packet.flags & TUNNELLED != 0 {
        return Ok(());
    }
    // SAFETY: not null: a value of FLOWS, readable for the length of the program.
    if !existing.is_null() && unsafe { (*existing).flags } & flow_flags::SERVICE == 0 {
        // The node's own, under policies.
        existing = core::ptr::null_mut();
    }
    translate(skb, s, Hook::FromDevice, existing)
}

/// Whether the stored choice is still valid. An open TCP connection never changes its backend; others do when it
/// is gone.
#[inline(never)]
fn is_choice_valid(s: &mut Scratch, old: &FlowEntry) -> bool {
    if old.last_seen_s == FlowEntry::DELETING {
        return false;
    }
    if !may_open(s) {
        return true;
    }
    if s.packet.protocol == TCP {
        backend_key(s, &old.nat_addr, old.nat_port_be);
        // SAFETY: read at once.
        let open = unsafe { FLOWS.get(&s.nat_key) }.is_some_and(|entry| {
            // Another frontend's by now: the choice is made anew.
            !is_closing(entry.flags)
                && entry.frontend == s.packet.destination
                && entry.frontend_port_be == s.packet.destination_port
        });
        if !open {
            return false;
        }
    }
    // SAFETY: values are replaced, never changed in place; compared at once.
    let Some(backend) = (unsafe { BACKENDS.get(&old.destination_identity) }) else { return false };
    backend.addr == old.nat_addr
        && backend.port_be == old.nat_port_be
        && (s.packet.protocol != TCP || backend.flags & backend_flags::TERMINATING == 0)
}

/// Removes an entry under `s.key`, as the collector would.
#[inline(always)]
fn evict(s: &Scratch, old: &mut FlowEntry) {
    let last = old.last_seen_s;
    // SAFETY: a field of a map value.
    if last != FlowEntry::DELETING
        && unsafe { compare_exchange(&raw mut old.last_seen_s, last, FlowEntry::DELETING) } == last
    {
        let _ = FLOWS.remove(&s.key);
    }
}

/// Puts the key of the connection between the packet's client and a backend into `s.nat_key`.
#[inline(always)]
fn backend_key(s: &mut Scratch, backend: &Addr, port_be: u16) {
    let client = if is_hairpin(s, backend) { Addr::hairpin(backend.is_v4()) } else { s.packet.source };
    flow_key(&client, s.packet.source_port, backend, port_be, s.packet.protocol, flow_kind::FLOW, &mut s.nat_key);
}

step!(choose_free_backend() = weft_step_choose_backend: choose_free_backend_body);

/// Chooses a backend with which the client does not use the same ports; [`DropReason::NoNatMapping`] if it does.
#[inline(always)]
fn choose_free_backend_body(_skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    choose_backend(s)?;
    if is_tuple_taken(s) {
        unbind(s);
        return Err(DropReason::NoNatMapping);
    }
    Ok(())
}

/// Whether another connection has the tuple that the packet would have behind the service: replies would be ambiguous.
#[inline(never)]
fn is_tuple_taken(s: &mut Scratch) -> bool {
    let (backend, port_be) = (s.service.backend.addr, s.service.backend.port_be);
    backend_key(s, &backend, port_be);
    let Some(config) = config() else { return true };
    let Some(entry) = FLOWS.get_ptr_mut(&s.nat_key) else { return false };
    // SAFETY: a map value stays readable for the length of the program.
    let entry = unsafe { &mut *entry };
    let last = entry.last_seen_s;
    if last == FlowEntry::DELETING {
        return true;
    }
    if entry.flags & flow_flags::TRANSLATED != 0
        && entry.frontend == s.packet.destination
        && entry.frontend_port_be == s.packet.destination_port
    {
        return false;
    }
    if s.packet.protocol == TCP && is_closing(entry.flags) {
        // Opened again where it is.
        return false;
    }
    let over = match s.packet.protocol {
        TCP => is_client_done(entry.flags),
        UDP => has_no_outstanding_reply(entry),
        _ => now_s().wrapping_sub(last).wrapping_sub(config.other_s) < u32::MAX / 2,
    };
    // SAFETY: a field of a map value.
    if over && unsafe { compare_exchange(&raw mut entry.last_seen_s, last, FlowEntry::DELETING) } == last {
        let _ = FLOWS.remove(&s.nat_key);
        return false;
    }
    true
}
