//! The head of a frame, copied once into the scratch memory.

use core::arch::asm;
use core::ptr::read_volatile;

use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use weft_abi::DropReason;

use crate::packet::{ETH, Skb, skb_ifindex, skb_len};
use crate::scratch::{HEAD, Scratch};

/// Bytes that are copied without the helper: enough for IPv4 and TCP, and for IPv6 and TCP, without options.
const SHORT: usize = 62;

const LONG: usize = 78;

/// Copies the head of the frame; returns its ethertype (as a number).
#[inline(always)]
pub fn load_head(skb: Skb, s: &mut Scratch) -> Result<u16, DropReason> {
    let mut length = skb_len(skb);
    s.packet.length = length.wrapping_sub(ETH);
    s.packet.ifindex = skb_ifindex(skb);
    s.packet.version = 0;
    s.packet.flags = 0;
    if length < ETH {
        return Err(DropReason::UnsupportedL2);
    }
    if length > HEAD as u32 {
        length = HEAD as u32;
    }
    // The compiler must not fold the two bounds into one that the verifier cannot follow.
    // SAFETY: no instruction.
    unsafe { asm!("{0} = {0}", inout(reg) length) };
    if length < ETH || length > HEAD as u32 {
        return Err(DropReason::UnsupportedL2);
    }
    s.copied = copy_words(skb, s);
    if s.copied == 0 {
        // SAFETY: at most HEAD bytes.
        if unsafe { bpf_skb_load_bytes(skb.cast(), 0, s.frame().cast(), length) } != 0 {
            return Err(DropReason::InvalidPacket);
        }
        s.copied = length;
    }
    Ok(u16::from_be(s.at(12)))
}

/// Copies words of the head where they lie in the packet's linear part, which is several times faster than the helper;
/// returns how many bytes, 0 if there are too few. The words end where fields do: a field that is read from two stores
/// would wait for both.
#[inline(always)]
fn copy_words(skb: Skb, s: &mut Scratch) -> u32 {
    macro_rules! words {
        ($from:ident, $to:ident, $($offset:literal)*) => { $(
            // SAFETY: the caller compared the packet's length, and the buffer is longer; the instruction needs no
            // alignment.
            unsafe {
                asm!(
                    concat!("{word} = *(u64 *)({from} + ", $offset, ")"),
                    concat!("*(u64 *)({to} + ", $offset, ") = {word}"),
                    word = out(reg) _, from = in(reg) $from, to = in(reg) $to,
                );
            }
        )* };
    }
    // SAFETY: the context is valid for the length of the program; the verifier knows the two as ends of the packet.
    let (from, end) =
        unsafe { (read_volatile(&raw const (*skb).data) as usize, read_volatile(&raw const (*skb).data_end) as usize) };
    let to = s.frame();
    if from + SHORT > end {
        return 0;
    }
    words!(from, to, 0 6 14 22 30 38 46 54);
    if from + LONG > end {
        return SHORT as u32;
    }
    words!(from, to, 62 70);
    LONG as u32
}
