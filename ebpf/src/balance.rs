//! Which backend of a service a client gets: the one it had before (affinity), or one of the set that counts for it, by
//! Maglev's table or at random.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_loop};
use weft_abi::{
    AffinityKey, AffinityValue, DropReason, MaglevKey, MaglevPart, SlotKey, backend_flags, client_hash, service_flags,
};

use crate::maps::{AFFINITY, BACKENDS, MAGLEV, SLOTS};
use crate::packet::Scratch;
use crate::service;
use crate::track::now_s;

/// Largest set in which a client is looked for that may be a backend itself: pods of one node.
const OWN_MAX: u32 = 512;

/// Leaves a backend for the packet in `s.service.backend`.
#[inline(never)]
pub fn choose(s: &mut Scratch) -> Result<(), DropReason> {
    if s.service.info.affinity_s != 0 && had(s) || pick(s) {
        return Ok(());
    }
    // The set may have been replaced since the frontend was read.
    if service::find(s) && pick(s) { Ok(()) } else { Err(DropReason::NoServiceBackend) }
}

/// The backend that the client had, if it still takes connections.
#[inline(never)]
fn had(s: &mut Scratch) -> bool {
    let key = AffinityKey { client: s.packet.source, service: s.service.info.service };
    // SAFETY: two words, copied at once.
    let Some(AffinityValue { backend: id, last_used_s }) = (unsafe { AFFINITY.get(&key) }).copied() else {
        return false;
    };
    let idle = now_s().wrapping_sub(last_used_s);
    if idle > s.service.info.affinity_s && idle < u32::MAX / 2 {
        return false;
    }
    // SAFETY: values are replaced, never changed in place; copied at once.
    let Some(backend) = (unsafe { BACKENDS.get(&id) }) else { return false };
    s.service.backend = *backend;
    let outside = s.service.outside == 1;
    let local = if outside { service_flags::EXTERNAL_LOCAL } else { service_flags::INTERNAL_LOCAL };
    s.service.backend.service == s.service.info.service
        && s.service.backend.flags & backend_flags::TERMINATING == 0
        && (s.service.info.flags & local == 0 || s.service.backend.flags & backend_flags::LOCAL != 0)
}

/// One of the set.
#[inline(never)]
fn pick(s: &mut Scratch) -> bool {
    let (set, count, table) = (s.service.set, s.service.count, s.service.table);
    if count == 0 {
        return false;
    }
    let slot = if table == 0 {
        // SAFETY: no arguments.
        unsafe { bpf_get_prandom_u32() % count }
    } else {
        let port_be = if s.service.info.affinity_s == 0 { s.packet.source_port } else { 0 };
        let entry = client_hash(&s.packet.source, port_be, s.packet.protocol) % table;
        const ENTRIES: u32 = MaglevPart::ENTRIES as u32;
        // SAFETY: values are replaced, never changed in place; one of its entries is copied.
        let Some(part) = (unsafe { MAGLEV.get(&MaglevKey { set, part: entry / ENTRIES }) }) else { return false };
        let Some(slot) = part.0.get((entry % ENTRIES) as usize) else { return false };
        u32::from(*slot)
    };
    // SAFETY: as above.
    let Some(backend) = (unsafe { SLOTS.get(&SlotKey { set, slot }) }) else { return false };
    s.service.backend = *backend;
    s.service.backend.service == s.service.info.service && s.service.backend.protocol == s.packet.protocol
}

/// Keeps the choice for the client's next connections.
#[inline(always)]
pub fn remember(s: &mut Scratch) {
    if s.service.info.affinity_s != 0 {
        let key = AffinityKey { client: client(s), service: s.service.info.service };
        let value = AffinityValue { backend: s.service.backend.id, last_used_s: now_s() };
        // A full table forgets the oldest.
        let _ = AFFINITY.insert(&key, &value, 0);
    }
}

/// The client of a packet that is translated already.
#[inline(always)]
fn client(s: &Scratch) -> weft_abi::Addr {
    if s.service.low == 1 { s.service.key.low } else { s.service.key.high }
}

/// Whether the client is one of the set.
#[inline(never)]
pub fn is_backend(s: &mut Scratch) -> bool {
    s.answer = 0;
    let count = if s.service.count > OWN_MAX { OWN_MAX } else { s.service.count };
    // The argument must lie on the stack.
    let mut this = core::ptr::from_mut(s);
    // SAFETY: a callback of the right shape and its argument, which outlives the call.
    unsafe { bpf_loop(count, compare as *mut c_void, (&raw mut this).cast(), 0) };
    core::mem::take(&mut s.answer) == 1
}

unsafe extern "C" fn compare(slot: u32, s: *mut c_void) -> i64 {
    // SAFETY: the argument of the loop; this CPU's own memory, which the caller does not use meanwhile.
    let s = unsafe { &mut **s.cast::<*mut Scratch>() };
    // SAFETY: compared at once.
    let own = unsafe { SLOTS.get(&SlotKey { set: s.service.set, slot }) }.is_some_and(|b| b.addr == s.packet.source);
    s.answer = u32::from(own);
    i64::from(own)
}
