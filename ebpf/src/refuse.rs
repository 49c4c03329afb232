//! Answers to packets that cannot go on, in the name of the address that they were sent to: made of the packet itself,
//! sent back by the way that it came.

use aya_ebpf::bindings::BPF_F_RECOMPUTE_CSUM;
use aya_ebpf::helpers::generated::{
    bpf_csum_diff, bpf_redirect, bpf_redirect_peer, bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_load_bytes,
    bpf_skb_store_bytes,
};
use weft_abi::{Addr, DropReason};

use crate::checksum::folded;
use crate::packet::{
    ETH, FIRST_FRAGMENT, ICMP, ICMPV6, LATER_FRAGMENT, Scratch, Skb, TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, UDP,
    load, skb_len,
};
use crate::{nat, own, service, step};

/// Bytes of the packet that are quoted at most. A multiple of 8; enough for all that a sender looks at.
pub const QUOTE: usize = 128;
/// `BPF_ADJ_ROOM_MAC`.
const MODE_MAC: u32 = 1;
/// In the place of ICMP's type and code, which have none such: a reset of TCP.
const RESET: u32 = 0xffff;

/// Nobody stands behind the service. TCP is told by TCP, since a client inside its call of connect(2) may never hear of
/// an ICMP error (Linux discards it while the call has the socket); others by port unreachable (RFC 1122 3.2.2.1,
/// RFC 4443 3.1). A reset is not answered, nor is a fragment that is not the first.
#[inline(always)]
pub fn no_backend(s: &mut Scratch) -> Result<(), DropReason> {
    let v4 = s.packet.version == 4;
    let tcp = s.packet.protocol == TCP;
    let plain = u32::from(s.packet.l4) == ETH + if v4 { 20 } else { 40 } && s.packet.flags & FIRST_FRAGMENT == 0;
    s.refusal = if s.packet.flags & LATER_FRAGMENT != 0 || tcp && s.packet.tcp_flags & TCP_RST != 0 {
        0
    } else if tcp && plain {
        RESET
    } else if v4 {
        3 | 3 << 8
    } else {
        1 | 4 << 8
    };
    Err(DropReason::NoServiceBackend)
}

/// The packet is larger than what its way behind a service carries: fragmentation needed (RFC 1191), packet too big
/// (RFC 4443 3.2).
#[inline(always)]
pub fn too_big(s: &mut Scratch, mtu: u32) -> Result<(), DropReason> {
    s.refusal = mtu << 16 | if s.packet.version == 4 { 3 | 4 << 8 } else { 2 };
    Err(DropReason::FragmentationNeeded)
}

/// Sends what `s.refusal` says about the packet that was just dropped: type, code << 8, what stands in the last two bytes
/// of the header << 16.
#[inline(always)]
pub fn answer(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    if s.refusal == RESET {
        return step::reset(skb, s);
    }
    service::undo(skb, s)?;
    nat::settle(skb, s)?;
    let message = s.refusal;
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
    // The quote was summed up; its memory is used again, since there is little stack.
    s.service.quote = [0; QUOTE];
    let head = &mut s.service.quote;
    let length = if v4 { 42 } else { 62 };
    // SAFETY: the first 12 bytes of the buffer. Back to where it came from.
    unsafe { head.as_mut_ptr().cast::<[[u8; 6]; 2]>().write_unaligned([links[1], links[0]]) };
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
            let header = folded(header).to_ne_bytes();
            ip[2] = u32::from_ne_bytes([64, ICMP, header[0], header[1]]);
            head[12] = 0x08;
            head.as_mut_ptr().add(14).cast::<[u32; 5]>().write_unaligned(ip);
            icmp[0] |= u32::from_ne_bytes([0, 0, folded(sum).to_ne_bytes()[0], folded(sum).to_ne_bytes()[1]]);
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
            icmp[0] |= u32::from_ne_bytes([0, 0, folded(sum).to_ne_bytes()[0], folded(sum).to_ne_bytes()[1]]);
            head.as_mut_ptr().add(54).cast::<[u32; 2]>().write_unaligned(icmp);
        }
        if bpf_skb_adjust_room(skb, if v4 { 28 } else { 48 }, MODE_MAC, 0) != 0
            || bpf_skb_store_bytes(skb, 0, head.as_ptr().cast(), length, u64::from(BPF_F_RECOMPUTE_CSUM)) != 0
        {
            return Err(DropReason::WriteError);
        }
    }
    back(skb, s)
}

/// Sends what stands in the packet's place by the way that it came.
#[inline(always)]
fn back(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    if s.own == 1 {
        return own::back(skb, s);
    }
    // SAFETY: no pointers.
    let action = unsafe {
        if s.service.outside == 0 {
            // Into the pod past its link's other program: this answer belongs to no connection.
            bpf_redirect_peer(s.packet.ifindex, 0)
        } else {
            bpf_redirect(s.packet.ifindex, 0)
        }
    };
    s.act(action as i32)
}

/// Answers a segment as a host does that knows nothing of the connection (RFC 9293 3.10.7.1).
#[inline(always)]
pub fn reset(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let v4 = s.packet.version == 4;
    let header = if v4 { 20_u32 } else { 40 };
    let links: [[u8; 6]; 2] = load(skb, 0)?;
    let segment: [u32; 5] = load(skb, ETH + header)?;
    let flags = s.packet.tcp_flags;
    let offset = u32::from(segment[3].to_ne_bytes()[0] >> 4) * 4;
    let of_segment = s.packet.length.wrapping_sub(header);
    let length = of_segment
        .wrapping_sub(offset)
        .wrapping_add(u32::from(flags & TCP_SYN != 0))
        .wrapping_add(u32::from(flags & TCP_FIN != 0));
    let mut tcp = if flags & TCP_ACK != 0 {
        [0, segment[2], 0, u32::from_ne_bytes([0x50, TCP_RST, 0, 0]), 0]
    } else {
        let next = u32::from_be(segment[1]).wrapping_add(length);
        [0, 0, next.to_be(), u32::from_ne_bytes([0x50, TCP_RST | TCP_ACK, 0, 0]), 0]
    };
    tcp[0] = segment[0].rotate_left(16);
    // Where the device shall fill in the checksum, it will do so here too: the place is the same.
    let partial = !folded(pseudo_sum(s, of_segment)) == segment[4] as u16;
    let pseudo = pseudo_sum(s, 20);
    tcp[4] = if partial {
        u32::from(!folded(pseudo))
    } else {
        // SAFETY: 20 bytes of the stack.
        u32::from(folded(unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, tcp.as_mut_ptr(), 20, pseudo) } as u32))
    };
    let (source, destination) = (s.packet.source, s.packet.destination);
    let head = &mut s.service.quote;
    // SAFETY: the frame's first bytes, inside the buffer: links, IP, TCP.
    unsafe {
        let head = head.as_mut_ptr();
        head.cast::<[[u8; 6]; 2]>().write_unaligned([links[1], links[0]]);
        if v4 {
            let mut ip = [0_u32; 5];
            ip[0] = u32::from_ne_bytes([0x45, 0, 0, 40]);
            ip[1] = u32::from_ne_bytes([0, 0, 0x40, 0]);
            ip[2] = u32::from_ne_bytes([64, TCP, 0, 0]);
            ip[3] = destination.0[3];
            ip[4] = source.0[3];
            let sum = folded(bpf_csum_diff(core::ptr::null_mut(), 0, ip.as_mut_ptr(), 20, 0) as u32);
            ip[2] |= u32::from(sum) << 16;
            head.add(12).cast::<u16>().write_unaligned(0x0800_u16.to_be());
            head.add(14).cast::<[u32; 5]>().write_unaligned(ip);
            head.add(34).cast::<[u32; 5]>().write_unaligned(tcp);
        } else {
            let ip = [u32::from_ne_bytes([0x60, 0, 0, 0]), u32::from_ne_bytes([0, 20, TCP, 64])];
            head.add(12).cast::<u16>().write_unaligned(0x86dd_u16.to_be());
            head.add(14).cast::<[u32; 2]>().write_unaligned(ip);
            head.add(22).cast::<[u32; 4]>().write_unaligned(destination.0);
            head.add(38).cast::<[u32; 4]>().write_unaligned(source.0);
            head.add(54).cast::<[u32; 5]>().write_unaligned(tcp);
        }
        let whole = if v4 { ETH + 40 } else { ETH + 60 };
        if skb_len(skb) != whole && bpf_skb_change_tail(skb, whole, 0) != 0
            || bpf_skb_store_bytes(skb, 0, head.cast(), whole, u64::from(BPF_F_RECOMPUTE_CSUM)) != 0
        {
            return Err(DropReason::WriteError);
        }
    }
    back(skb, s)
}

/// The sum over the pseudo-header of a TCP segment of that length between the packet's ends, either way.
#[inline(never)]
fn pseudo_sum(s: &Scratch, length: u32) -> u32 {
    let word = |address: &Addr, n: usize| if s.packet.version == 4 { 0 } else { address.0[n] };
    let (a, b) = (&s.packet.source, &s.packet.destination);
    let mut pseudo = [
        a.0[3],
        b.0[3],
        word(a, 0),
        word(a, 1),
        word(a, 2),
        word(b, 0),
        word(b, 1),
        word(b, 2),
        length.to_be(),
        u32::from(s.packet.protocol).to_be(),
    ];
    // SAFETY: 40 bytes of the stack.
    unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, pseudo.as_mut_ptr(), 40, 0) as u32 }
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
    let sum = pseudo_sum(s, s.packet.length.wrapping_sub(header));
    if !folded(sum) != field {
        return whole;
    }
    let completed = u32::from(!field);
    if v4 {
        // A right IPv4 header adds nothing.
        return completed;
    }
    // SAFETY: 40 bytes of the scratch memory.
    unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, s.service.quote.as_mut_ptr().cast(), 40, completed) as u32 }
}
