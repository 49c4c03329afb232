//! Answers to packets that cannot go on, in the name of the address that they were sent to: made of the packet itself,
//! sent back by the way that it came.

use aya_ebpf::bindings::BPF_F_RECOMPUTE_CSUM;
use aya_ebpf::helpers::generated::{
    bpf_csum_diff, bpf_redirect, bpf_redirect_peer, bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_load_bytes,
    bpf_skb_store_bytes,
};
use weft_abi::DropReason;

use crate::packet::{ETH, ICMP, ICMPV6, Scratch, Skb, TCP, UDP, load, skb_len};
use crate::{Hook, notify, service};

/// Bytes of the packet that are quoted at most. A multiple of 8; enough for all that a sender looks at.
pub const QUOTE: usize = 128;
/// `BPF_ADJ_ROOM_MAC`.
const MODE_MAC: u32 = 1;

/// Nobody stands behind the service: port unreachable (RFC 1122 3.2.2.1, RFC 4443 3.1), which clients of every protocol
/// understand.
#[inline(never)]
pub fn no_backend(skb: Skb, s: &mut Scratch, hook: Hook) -> Result<(), DropReason> {
    notify::dropped(skb, s, hook, DropReason::NoServiceBackend as u32);
    let message = if s.packet.version == 4 { 3 | 3 << 8 } else { 1 | 4 << 8 };
    answer(skb, s, hook, message)
}

/// The packet is larger than what its way behind a service carries: fragmentation needed (RFC 1191), packet too big
/// (RFC 4443 3.2).
#[inline(never)]
pub fn too_big(skb: Skb, s: &mut Scratch, hook: Hook, mtu: u32) -> Result<(), DropReason> {
    notify::dropped(skb, s, hook, DropReason::FragmentationNeeded as u32);
    service::undo(skb, s)?;
    let message = if s.packet.version == 4 { 3 | 4 << 8 } else { 2 };
    answer(skb, s, hook, message | mtu << 16)
}

/// `message`: type, code << 8, what stands in the last two bytes of the header << 16.
#[inline(never)]
fn answer(skb: Skb, s: &mut Scratch, hook: Hook, message: u32) -> Result<(), DropReason> {
    let v4 = s.packet.version == 4;
    let quoted = if s.packet.length > QUOTE as u32 { QUOTE as u32 } else { s.packet.length };
    if quoted < 20 {
        return Err(DropReason::InvalidPacket);
    }
    let links: [[u8; 6]; 2] = load(skb, 0)?;
    let words: &mut [u64; QUOTE / 8] = {
        // SAFETY: as many bytes, and the structure before it is a multiple of 8.
        unsafe { &mut *s.service.quote.as_mut_ptr().cast() }
    };
    for word in words.iter_mut() {
        *word = 0;
    }
    // SAFETY: the helpers read and write the scratch memory and take plain numbers; the length is in bounds.
    unsafe {
        if bpf_skb_load_bytes(skb.cast(), ETH, s.service.quote.as_mut_ptr().cast(), quoted) != 0
            || ETH + quoted < skb_len(skb) && bpf_skb_change_tail(skb, ETH + quoted, 0) != 0
        {
            return Err(DropReason::WriteError);
        }
    }
    let sum = quote_sum(s, quoted);
    let kind = (message & 0xff) as u8;
    let code = (message >> 8) as u8;
    let rest = (message >> 16).to_be();
    let mut head = [0_u8; 62];
    let length = if v4 { 42 } else { 62 };
    for (to, from) in head.iter_mut().zip(links[1].iter().chain(links[0].iter())) {
        *to = *from;
    }
    let mut icmp = [u32::from_ne_bytes([kind, code, 0, 0]), rest];
    // SAFETY: buffers of the stack, as long as the helpers are told; the frame is rewritten from its start.
    unsafe {
        let mut sum = bpf_csum_diff(core::ptr::null_mut(), 0, icmp.as_mut_ptr(), 8, sum) as u32;
        if v4 {
            let mut ip = [0_u32; 5];
            ip[0] = u32::from_ne_bytes([0x45, 0, 0, (quoted + 28) as u8]);
            ip[1] = u32::from_ne_bytes([0, 0, 0x40, 0]);
            ip[3] = s.packet.destination.0[3];
            ip[4] = s.packet.source.0[3];
            ip[2] = u32::from_ne_bytes([64, ICMP, 0, 0]);
            let header = bpf_csum_diff(core::ptr::null_mut(), 0, ip.as_mut_ptr(), 20, 0) as u32;
            let header = fold(header).to_ne_bytes();
            ip[2] = u32::from_ne_bytes([64, ICMP, header[0], header[1]]);
            head[12] = 0x08;
            head.as_mut_ptr().add(14).cast::<[u32; 5]>().write_unaligned(ip);
            icmp[0] |= u32::from_ne_bytes([0, 0, fold(sum).to_ne_bytes()[0], fold(sum).to_ne_bytes()[1]]);
            head.as_mut_ptr().add(34).cast::<[u32; 2]>().write_unaligned(icmp);
        } else {
            let mut pseudo = [0_u32; 10];
            pseudo[0] = s.packet.destination.0[0];
            pseudo[1] = s.packet.destination.0[1];
            pseudo[2] = s.packet.destination.0[2];
            pseudo[3] = s.packet.destination.0[3];
            pseudo[4] = s.packet.source.0[0];
            pseudo[5] = s.packet.source.0[1];
            pseudo[6] = s.packet.source.0[2];
            pseudo[7] = s.packet.source.0[3];
            pseudo[8] = (quoted + 8).to_be();
            pseudo[9] = u32::from(ICMPV6).to_be();
            sum = bpf_csum_diff(core::ptr::null_mut(), 0, pseudo.as_mut_ptr(), 40, sum) as u32;
            head[12] = 0x86;
            head[13] = 0xdd;
            head[14] = 0x60;
            head[19] = (quoted + 8) as u8;
            head[20] = ICMPV6;
            head[21] = 64;
            head.as_mut_ptr().add(22).cast::<[u32; 4]>().write_unaligned(s.packet.destination.0);
            head.as_mut_ptr().add(38).cast::<[u32; 4]>().write_unaligned(s.packet.source.0);
            icmp[0] |= u32::from_ne_bytes([0, 0, fold(sum).to_ne_bytes()[0], fold(sum).to_ne_bytes()[1]]);
            head.as_mut_ptr().add(54).cast::<[u32; 2]>().write_unaligned(icmp);
        }
        if bpf_skb_adjust_room(skb, if v4 { 28 } else { 48 }, MODE_MAC, 0) != 0
            || bpf_skb_store_bytes(skb, 0, head.as_ptr().cast(), length, u64::from(BPF_F_RECOMPUTE_CSUM)) != 0
        {
            return Err(DropReason::WriteError);
        }
        let action = if matches!(hook, Hook::FromPod) {
            // Into the pod past its link's other program: this answer belongs to no connection.
            bpf_redirect_peer(s.packet.ifindex, 0)
        } else {
            bpf_redirect(s.packet.ifindex, 0)
        };
        s.act(action as i32)
    }
}

/// The sum over what is quoted. A transport checksum that the sender leaves to its device is filled in after this
/// program, inside the quote as well; what the sum will be then follows from what stands in its place now (the sum over
/// the pseudo-header).
#[inline(never)]
fn quote_sum(s: &mut Scratch, quoted: u32) -> u32 {
    let v4 = s.packet.version == 4;
    // SAFETY: reads the scratch memory.
    let whole =
        unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, s.service.quote.as_mut_ptr().cast(), QUOTE as u32, 0) } as u32;
    let header = u32::from(s.packet.l4) - ETH;
    let at = match s.packet.protocol {
        TCP => header + 16,
        UDP => header + 6,
        _ => return whole,
    };
    if at > QUOTE as u32 - 2 || at + 2 > quoted || !v4 && header != 40 {
        return whole;
    }
    // SAFETY: in bounds, as was just looked at.
    let field = unsafe { s.service.quote.as_ptr().add(at as usize).cast::<u16>().read_unaligned() };
    let mut pseudo = [0_u32; 10];
    let length = s.packet.length.wrapping_sub(header);
    pseudo[0] = s.packet.source.0[3];
    pseudo[1] = s.packet.destination.0[3];
    pseudo[2] = length.to_be();
    pseudo[3] = u32::from(s.packet.protocol).to_be();
    if !v4 {
        pseudo[4] = s.packet.source.0[0];
        pseudo[5] = s.packet.source.0[1];
        pseudo[6] = s.packet.source.0[2];
        pseudo[7] = s.packet.destination.0[0];
        pseudo[8] = s.packet.destination.0[1];
        pseudo[9] = s.packet.destination.0[2];
    }
    // SAFETY: 40 bytes of the stack; then 40 bytes of the scratch memory.
    unsafe {
        let sum = bpf_csum_diff(core::ptr::null_mut(), 0, pseudo.as_mut_ptr(), 40, 0) as u32;
        if !fold(sum) != field {
            return whole;
        }
        let completed = u32::from(!field);
        if v4 {
            // A right IPv4 header adds nothing.
            completed
        } else {
            bpf_csum_diff(core::ptr::null_mut(), 0, s.service.quote.as_mut_ptr().cast(), 40, completed) as u32
        }
    }
}

/// The Internet checksum (RFC 1071) of a sum, as it lies in the packet.
#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}
