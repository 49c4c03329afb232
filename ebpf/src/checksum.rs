//! Checksums: their arithmetic, and which packets are still owed one.

use core::arch::asm;

use weft_abi::{Addr, CHECKSUM_MARK, CHECKSUM_START_MARK};

use crate::packet::Skb;

/// The Internet checksum (RFC 1071) of a sum, as it lies in the packet.
#[inline(always)]
pub const fn folded(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// What the sum of an address's words grows by, as `bpf_csum_diff` would have it.
#[inline(always)]
pub fn difference(from: &Addr, to: &Addr) -> u32 {
    let mut sum = 0;
    for (from, to) in from.0.iter().zip(&to.0) {
        sum += u64::from(!*from) + u64::from(*to);
    }
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    (sum as u32).wrapping_add((sum >> 32) as u32)
}

/// The Internet checksum of a header in which a word changed (RFC 1624).
#[inline(always)]
pub const fn mended(sum: u16, from: u32, to: u32) -> u16 {
    folded(!sum as u32 + (!from & 0xffff) + (!from >> 16) + (to & 0xffff) + (to >> 16))
}

/// Whether the packet is owed a checksum that is still to be made, by the device or never (`CHECKSUM_PARTIAL`): its own, or
/// that of a packet inside. False if that is not known.
#[inline(always)]
pub fn owes_checksum(skb: Skb) -> bool {
    let summed: u64;
    // SAFETY: plain moves. Where the kernel says where to look, [`CHECKSUM_MARK`] and what follows become the look into
    // its own description of the packet, by a call that may change what calls change.
    unsafe {
        asm!(
            "r1 = {skb}",
            "r0 = {mark}",
            "r0 = 0",
            "r0 >>= 0",
            "r0 &= 3",
            skb = in(reg) skb, mark = const CHECKSUM_MARK,
            out("r0") summed, out("r1") _, out("r2") _, out("r3") _, out("r4") _, out("r5") _,
        );
    }
    const CHECKSUM_PARTIAL: u64 = 3;
    summed == CHECKSUM_PARTIAL
}

/// Whether the checksum that a packet is owed begins at this offset of the frame: then the sum of the pseudo header lies in
/// its place, and there is nothing of the ports in it.
#[inline(always)]
pub fn owed_begins_at(skb: Skb, offset: u32) -> bool {
    let (head, start, data): (u64, u64, u64);
    // SAFETY: as above, with three loads; a packet that is owed one is met only where they were filled in.
    unsafe {
        asm!(
            "r1 = {skb}",
            "r0 = {mark}",
            "r1 = 0",
            "r2 = 0",
            "r0 = 0",
            skb = in(reg) skb, mark = const CHECKSUM_START_MARK,
            out("r0") data, out("r1") head, out("r2") start, out("r3") _, out("r4") _, out("r5") _,
        );
    }
    head.wrapping_add(start).wrapping_sub(data) == u64::from(offset)
}
