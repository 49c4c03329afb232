//! A connection's entry in `FLOWS`: whether its verdict still holds, and what a packet changes in it.

use core::arch::asm;

use weft_abi::{ENDPOINT_ID_MAX, FlowEntry, flow_flags};

use crate::maps::GENERATIONS;
use crate::packet::{Packet, TCP, TCP_FIN, TCP_RST};
use crate::scratch::Scratch;

/// Exchanges `*place` from `old` to `new`; returns what was there.
///
/// # Safety
/// `place` points into a map value.
#[inline(always)]
pub unsafe fn compare_exchange(place: *mut u32, old: u32, new: u32) -> u32 {
    let found: u64;
    // SAFETY: one atomic instruction of the BPF instruction set (v3) on memory that the caller vouches for.
    unsafe {
        asm!("w0 = cmpxchg32_32(r1 + 0, w0, w2)", inout("r0") u64::from(old) => found, in("r1") place, in("r2") u64::from(new));
    }
    found as u32
}

/// Changes the flags of a connection from `old` to `new`: only the bits that differ, each of them at once. The packets of
/// its other direction may be doing the same on another CPU; if both sides close at one time and one flag is lost, the
/// entry stays for as long as an open connection.
#[inline(always)]
pub fn set_flags(entry: &mut FlowEntry, old: u16, new: u16) {
    const OFFSET: usize = core::mem::offset_of!(FlowEntry, flags);
    const _: () = assert!(OFFSET % 4 == 0 && cfg!(target_endian = "little"), "the flags are the low half of a word");
    let (set, keep) = (u32::from(new & !old), !u32::from(old & !new));
    let entry = core::ptr::from_mut(entry);
    // SAFETY: atomic instructions of the BPF instruction set on a word inside a map value, which the caller borrowed.
    unsafe {
        if set != 0 {
            asm!("lock *(u32 *)(r1 + {offset}) |= w2", in("r1") entry, in("r2") u64::from(set), offset = const OFFSET);
        }
        if keep != u32::MAX {
            asm!("lock *(u32 *)(r1 + {offset}) &= w2", in("r1") entry, in("r2") u64::from(keep), offset = const OFFSET);
        }
    }
}

/// Monotonic seconds.
#[inline(always)]
pub fn now_s() -> u32 {
    // SAFETY: no arguments.
    (unsafe { aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns() } / 1_000_000_000) as u32
}

#[inline(always)]
fn generation(slot: u16) -> u32 {
    GENERATIONS.get(u32::from(slot & ENDPOINT_ID_MAX)).copied().unwrap_or(u32::MAX)
}

/// Whether nothing that the verdict rests on has changed since.
#[inline(always)]
pub fn is_current(entry: &FlowEntry) -> bool {
    let revision = entry.revision;
    revision >= generation(0)
        && revision >= generation(entry.source_endpoint)
        && revision >= generation(entry.destination_endpoint)
}

#[inline(always)]
pub fn is_closing(flags: u16) -> bool {
    let both = flow_flags::FIN_FORWARD | flow_flags::FIN_REPLY;
    flags & flow_flags::RST != 0 || flags & both == both
}

/// Notes the packet on its connection; false: the collector has claimed it.
#[inline(always)]
pub fn record(s: &Scratch, entry: &mut FlowEntry, forward: bool) -> bool {
    let now = now_s();
    let last = entry.last_seen_s;
    if last != now {
        if last == FlowEntry::DELETING {
            return false;
        }
        // SAFETY: a field of a map value. Another CPU that refreshed it is as good; only the collector's mark is not.
        if unsafe { compare_exchange(&raw mut entry.last_seen_s, last, now) } == FlowEntry::DELETING {
            return false;
        }
    }
    let length = u64::from(s.packet.length);
    if forward {
        entry.forward_packets += 1;
        entry.forward_bytes += length;
    } else {
        entry.reply_packets += 1;
        entry.reply_bytes += length;
    }
    let old = entry.flags;
    set_flags(entry, old, next_flags(&s.packet, old, forward));
    true
}

/// The connection's state after this packet. A reset only shortens the entry's life, and traffic after it takes that
/// back: a forged one cannot close a connection that goes on.
#[inline(always)]
pub fn next_flags(packet: &Packet, flags: u16, forward: bool) -> u16 {
    let mut flags = flags | if forward { flow_flags::SEEN_FORWARD } else { flow_flags::SEEN_REPLY };
    if packet.protocol == TCP {
        if packet.tcp_flags & TCP_RST != 0 {
            flags |= flow_flags::RST;
        } else {
            flags &= !flow_flags::RST;
        }
        if packet.tcp_flags & TCP_FIN != 0 {
            flags |= if forward { flow_flags::FIN_FORWARD } else { flow_flags::FIN_REPLY };
        }
    }
    flags
}
