//! SCTP's checksum (RFC 9260 6.8, CRC32c over the whole packet) after two bytes of the packet have changed.
//!
//! The CRC is linear: that of the changed packet differs from that of the old one by the CRC of the difference, which is
//! two bytes and as many zeros as follow them. Appending zeros is a multiplication by a power of x, so nothing of the
//! packet need be read, and what was damaged on the way stays detectably damaged.

use core::arch::asm;
use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_loop, bpf_skb_store_bytes};
use weft_abi::DropReason;

use crate::packet::{ETH, FIRST_FRAGMENT, Skb, load};
use crate::scratch::{Append, Scratch};

/// Castagnoli's polynomial, lowest power first.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// Bits of the largest number of bytes.
const STEPS: u32 = 16;

/// `value` or 0. A multiplication, since the verifier takes a mask of one bit apart: it would walk every case of it.
#[inline(always)]
fn times(bit: u32, value: u32) -> u32 {
    let mut product = bit;
    // SAFETY: one instruction on registers.
    unsafe { asm!("{0} *= {1}", inout(wreg) product, in(wreg) value) };
    product
}

/// Product of two polynomials, modulo Castagnoli's.
#[inline(always)]
fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut n = 0;
    while n < 32 {
        product ^= times(a >> (31 - n) & 1, b);
        b = b >> 1 ^ times(b & 1, POLYNOMIAL);
        n += 1;
    }
    product
}

/// By callback: the verifier walks it once, not for every step.
unsafe extern "C" fn append_zeros(_: u32, append: *mut c_void) -> i64 {
    // SAFETY: the argument of the loop.
    let append = unsafe { &mut **append.cast::<*mut Append>() };
    let on = append.behind & 1;
    append.difference = times(on, multiply(append.difference, append.power)) | times(1 - on, append.difference);
    append.power = multiply(append.power, append.power);
    append.behind >>= 1;
    0
}

/// Mends the checksum after two bytes at `offset` of the transport header became `new`.
#[inline(never)]
pub fn update_crc(skb: Skb, s: &mut Scratch, offset: u32, old: u16, new: u16) -> Result<(), DropReason> {
    if s.packet.flags & FIRST_FRAGMENT != 0 {
        // The length of the whole packet is not known.
        return Err(DropReason::FragmentUnsupported);
    }
    let l4 = u32::from(s.packet.l4);
    let behind = (s.packet.length + ETH).wrapping_sub(l4 + offset + 2) & 0xffff;
    // The two bytes, as if they stood at the very end.
    let mut difference = u32::from(u16::from_le(old ^ new));
    for _ in 0..16 {
        difference = difference >> 1 ^ times(difference & 1, POLYNOMIAL);
    }
    s.sctp = Append { difference, behind, power: 1 << 23 };
    // The argument must lie on the stack, and what it leads to must not: the verifier would walk every step.
    let mut append = core::ptr::from_mut(&mut s.sctp);
    // SAFETY: a callback of the right shape and its argument, which outlives the call.
    unsafe { bpf_loop(STEPS, append_zeros as *mut c_void, (&raw mut append).cast(), 0) };
    let difference = s.sctp.difference;
    let sum: u32 = load(skb, l4 + 8)?;
    let sum = sum ^ difference.to_le();
    // SAFETY: four bytes of the stack.
    if unsafe { bpf_skb_store_bytes(skb, l4 + 8, (&raw const sum).cast(), 4, 0) } != 0 {
        return Err(DropReason::WriteError);
    }
    Ok(())
}
