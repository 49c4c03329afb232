//! Internet checksums, and packets whose checksum is not complete yet (`CHECKSUM_PARTIAL`).

use core::arch::asm;

use weft_abi::{Addr, CHECKSUM_MARK, CHECKSUM_START_MARK};

use crate::packet::Skb;

/// The Internet checksum (RFC 1071) of a sum, as it lies in the packet.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// The difference that replacing an address makes to a sum, as `bpf_csum_diff` returns it.
#[inline(always)]
pub fn sum_difference(from: &Addr, to: &Addr) -> u32 {
    let mut sum = 0;
    for (from, to) in from.0.iter().zip(&to.0) {
        sum += u64::from(!*from) + u64::from(*to);
    }
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    (sum as u32).wrapping_add((sum >> 32) as u32)
}

/// The Internet checksum of a header in which a word changed (RFC 1624).
#[inline(always)]
pub const fn update_checksum(sum: u16, from: u32, to: u32) -> u16 {
    fold(!sum as u32 + (!from & 0xffff) + (!from >> 16) + (to & 0xffff) + (to >> 16))
}

/// Whether the packet is `CHECKSUM_PARTIAL`: the device completes the checksum, of this packet or of one that it
/// encapsulates. False where the kernel does not show it.
#[inline(always)]
pub fn is_partial(skb: Skb) -> bool {
    let summed: u64;
    // SAFETY: plain moves. The loader replaces [`CHECKSUM_MARK`] and the instructions after it by a load from the
    // kernel's `sk_buff`, with a call that clobbers the caller-saved registers.
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

/// Whether the partial checksum starts at this offset of the frame (`csum_start`): then the field holds the sum of the pseudo
/// header, without the ports.
#[inline(always)]
pub fn partial_starts_at(skb: Skb, offset: u32) -> bool {
    let (head, start, data): (u64, u64, u64);
    // SAFETY: as above, with three loads; `is_partial` is true only where the loader filled them in.
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
