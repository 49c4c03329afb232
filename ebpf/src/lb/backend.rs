//! Which backend of a service a client gets: the one it had before (affinity), or one of the set that counts for it, by
//! Maglev's table or at random.

use core::arch::asm;
use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_loop};
use weft_abi::{
    AffinityKey, AffinityValue, DropReason, MaglevKey, MaglevPart, SlotKey, backend_flags, client_hash, service_flags,
};

use crate::conntrack::entry::now_s;
use crate::lb::frontend::find_frontend;
use crate::maps::{AFFINITY, BACKENDS, MAGLEV, SLOTS};
use crate::scratch::Scratch;

/// Largest set that is searched for the client itself: pods of one node.
const OWN_MAX: u32 = 512;

/// Leaves a backend for the packet in `s.service.backend`.
#[inline(never)]
pub fn choose_backend(s: &mut Scratch) -> Result<(), DropReason> {
    s.service.bound = 0;
    let stays = s.service.info.affinity_s != 0;
    // Twice: if another CPU bound the client first, its affinity is found.
    for _ in 0..2 {
        if stays && affinity_backend(s) {
            return Ok(());
        }
        // The set may have been replaced since the frontend was read: read it again.
        if !select_backend(s) && !(find_frontend(s) && select_backend(s)) {
            return Err(DropReason::NoServiceBackend);
        }
        if !stays {
            return Ok(());
        }
        match bind_client(&s.service.affinity, s.service.observed, s.service.backend.id) {
            Binding::Made => {
                s.service.bound = 1;
                return Ok(());
            }
            Binding::NoRoom => return Ok(()),
            Binding::Raced => {}
        }
    }
    Ok(())
}

/// What came of binding a client.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Binding {
    /// It is bound to the backend.
    Made,
    /// Another CPU bound it first.
    Raced,
    /// The table is full: the client is served without affinity.
    NoRoom,
}

/// Both fields of an affinity as one word, for a compare-and-exchange.
#[inline(always)]
pub const fn packed(backend: u32, last_used_s: u32) -> u64 {
    (backend as u64) | (last_used_s as u64) << 32
}

/// The affinity as it is, in one word; null if there is none.
#[inline(always)]
pub fn affinity(key: &AffinityKey) -> (*mut u64, u64) {
    const _: () = assert!(size_of::<AffinityValue>() == 8 && cfg!(target_endian = "little"), "as `packed` has it");
    match AFFINITY.get_ptr_mut(key) {
        // SAFETY: eight bytes of a map value, which the kernel aligns to eight.
        Some(value) => (value.cast(), unsafe { core::ptr::read_volatile(value.cast::<u64>()) }),
        None => (core::ptr::null_mut(), 0),
    }
}

/// Whether the client was not served for so long.
#[inline(always)]
pub fn is_expired(observed: u64, affinity_s: u32) -> bool {
    let idle = now_s().wrapping_sub((observed >> 32) as u32);
    // Another CPU may have refreshed it after this one read the clock.
    idle > affinity_s && idle < u32::MAX / 2
}

/// Notes that the client was served again.
#[inline(always)]
pub fn touch(value: *mut u64, observed: u64) {
    let new = packed(observed as u32, now_s());
    if new != observed {
        // SAFETY: made by `affinity`. Who changed it meanwhile refreshed it as well.
        unsafe { compare_exchange_word(value, observed, new) };
    }
}

/// Binds the client to the backend, if its affinity is still what was observed (0: none): of concurrent first connections
/// one chooses.
#[inline(always)]
pub fn bind_client(key: &AffinityKey, observed: u64, backend: u32) -> Binding {
    const NOEXIST: u64 = 1;
    const EEXIST: i32 = -17;
    let now = now_s();
    if observed != 0 {
        let (value, _) = affinity(key);
        if !value.is_null() {
            // SAFETY: made by `affinity`.
            let was = unsafe { compare_exchange_word(value, observed, packed(backend, now)) };
            return if was == observed { Binding::Made } else { Binding::Raced };
        }
    }
    match AFFINITY.insert(key, &AffinityValue { backend, last_used_s: now }, NOEXIST) {
        Ok(()) => Binding::Made,
        Err(error) if error as i32 == EEXIST => Binding::Raced,
        Err(_) => Binding::NoRoom,
    }
}

/// Exchanges `*place` from `old` to `new`; returns what was there.
///
/// # Safety
/// `place` points to eight bytes of a map value.
#[inline(always)]
unsafe fn compare_exchange_word(place: *mut u64, old: u64, new: u64) -> u64 {
    let found: u64;
    // SAFETY: one atomic instruction on memory that the caller vouches for. Values of this map are changed in place
    // alone: one that is replaced would be changed in vain.
    unsafe {
        asm!("r0 = cmpxchg_64(r1 + 0, r0, r2)", inout("r0") old => found, in("r1") place, in("r2") new);
    }
    found
}

/// Takes back what [`choose_backend`] bound for this packet: it goes nowhere.
#[inline(never)]
pub fn unbind(s: &mut Scratch) {
    if s.service.bound == 0 {
        return;
    }
    s.service.bound = 0;
    let (_, now) = affinity(&s.service.affinity);
    if now as u32 == s.service.backend.id {
        let _ = AFFINITY.remove(&s.service.affinity);
    }
}

/// The backend of the client's affinity, if it still takes connections.
#[inline(never)]
fn affinity_backend(s: &mut Scratch) -> bool {
    s.service.affinity = AffinityKey { client: s.packet.source, service: s.service.info.service };
    let (value, observed) = affinity(&s.service.affinity);
    s.service.observed = observed;
    if value.is_null() {
        return false;
    }
    if is_expired(observed, s.service.info.affinity_s) {
        return false;
    }
    let id = observed as u32;
    // SAFETY: values are replaced, never changed in place; copied at once.
    let Some(backend) = (unsafe { BACKENDS.get(&id) }) else { return false };
    s.service.backend = *backend;
    let outside = s.service.outside == 1;
    let local = if outside { service_flags::EXTERNAL_LOCAL } else { service_flags::INTERNAL_LOCAL };
    s.service.backend.service == s.service.info.service
        && s.service.backend.flags & backend_flags::TERMINATING == 0
        && (s.service.info.flags & local == 0 || s.service.backend.flags & backend_flags::LOCAL != 0)
}

/// Selects a backend of the set; the next one after a failed try.
#[inline(never)]
fn select_backend(s: &mut Scratch) -> bool {
    let (set, count, table) = (s.service.set, s.service.count, s.service.table);
    if count == 0 {
        return false;
    }
    let tried = u32::from(s.service.tried);
    let slot = if table == 0 {
        // SAFETY: no arguments.
        let start = if tried == 0 { unsafe { bpf_get_prandom_u32() } } else { s.service.slot + 1 };
        start % count
    } else {
        let port_be = if s.service.info.affinity_s == 0 { s.packet.source_port } else { 0 };
        let entry = client_hash(&s.packet.source, port_be, s.packet.protocol).wrapping_add(tried) % table;
        const ENTRIES: u32 = MaglevPart::ENTRIES as u32;
        // SAFETY: values are replaced, never changed in place; one of its entries is copied.
        let Some(part) = (unsafe { MAGLEV.get(&MaglevKey { set, part: entry / ENTRIES }) }) else { return false };
        let Some(slot) = part.0.get((entry % ENTRIES) as usize) else { return false };
        u32::from(*slot)
    };
    s.service.slot = slot;
    // SAFETY: as above.
    let Some(backend) = (unsafe { SLOTS.get(&SlotKey { set, slot }) }) else { return false };
    s.service.backend = *backend;
    s.service.backend.service == s.service.info.service && s.service.backend.protocol == s.packet.protocol
}

/// Refreshes the client's affinity, once its connection was allowed.
#[inline(always)]
pub fn refresh_affinity(s: &mut Scratch) {
    if s.service.info.affinity_s != 0 {
        let (value, observed) = affinity(&s.service.affinity);
        if !value.is_null() && observed as u32 == s.service.backend.id {
            touch(value, observed);
        }
    }
}

/// Whether the client is one of the set.
#[inline(never)]
pub fn is_client_backend(s: &mut Scratch) -> bool {
    s.output = 0;
    let count = if s.service.count > OWN_MAX { OWN_MAX } else { s.service.count };
    // The argument must lie on the stack.
    let mut this = core::ptr::from_mut(s);
    // SAFETY: a callback of the right shape and its argument, which outlives the call.
    unsafe { bpf_loop(count, compare_source as *mut c_void, (&raw mut this).cast(), 0) };
    core::mem::take(&mut s.output) == 1
}

unsafe extern "C" fn compare_source(slot: u32, s: *mut c_void) -> i64 {
    // SAFETY: the argument of the loop; this CPU's own memory, which the caller does not use meanwhile.
    let s = unsafe { &mut **s.cast::<*mut Scratch>() };
    // SAFETY: compared at once.
    let own = unsafe { SLOTS.get(&SlotKey { set: s.service.set, slot }) }.is_some_and(|b| b.addr == s.packet.source);
    s.output = u32::from(own);
    i64::from(own)
}
