//! Rejects packets: TCP resets and ICMP errors from the address that the packet was sent to, written over the packet and
//! sent back by the device that it came by.

use aya_ebpf::bindings::BPF_F_RECOMPUTE_CSUM;
use aya_ebpf::helpers::generated::{
    bpf_csum_diff, bpf_redirect, bpf_redirect_peer, bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_load_bytes,
    bpf_skb_store_bytes,
};
use weft_abi::{Addr, DropReason};

use crate::lb::rewrite::undo_dnat;
use crate::mark::return_to_node;
use crate::nat::checksum::fold;
use crate::nat::rewrite::flush_head;
use crate::packet::{ETH, ICMP, ICMPV6, Skb, TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, UDP, load, skb_len};
use crate::reject::RESET;
use crate::scratch::{QUOTE, Scratch};
use crate::step::step;

/// `BPF_ADJ_ROOM_MAC`.
const MODE_MAC: u32 = 1;

step!(send_rejection() = weft_step_send_rejection: send_rejection_body);

/// Sends the rejection in `s.reject` of the packet that was just dropped: type, code << 8, last two bytes of the header << 16.
#[inline(always)]
fn send_rejection_body(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    if s.reject == RESET {
        return send_reset(skb, s);
    }
    undo_dnat(skb, s)?;
    flush_head(skb, s)?;
    let message = s.reject;
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
    // SAFETY: buffers of the stack, of the lengths given; the frame is rewritten from its start.
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
    }
    send_back(skb, s)
}

/// Sends the rejection, which was written over the packet, back by the device that the packet came by.
#[inline(always)]
fn send_back(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    if s.from_node == 1 {
        return return_to_node(skb, s);
    }
    // SAFETY: no pointers.
    let action = unsafe {
        if s.service.outside == 0 {
            // Into the pod past its link's other program: a rejection belongs to no connection.
            bpf_redirect_peer(s.packet.ifindex, 0)
        } else {
            bpf_redirect(s.packet.ifindex, 0)
        }
    };
    s.act(action as i32)
}

step!(send_reset() = weft_step_send_reset: send_reset_body);

/// Resets a connection as a host does that has none (RFC 9293 3.10.7.1).
#[inline(always)]
fn send_reset_body(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
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
    let partial = !fold(pseudo_sum(s, of_segment)) == segment[4] as u16;
    let pseudo = pseudo_sum(s, 20);
    tcp[4] = if partial {
        u32::from(!fold(pseudo))
    } else {
        // SAFETY: 20 bytes of the stack.
        u32::from(fold(unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, tcp.as_mut_ptr(), 20, pseudo) } as u32))
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
            let sum = fold(bpf_csum_diff(core::ptr::null_mut(), 0, ip.as_mut_ptr(), 20, 0) as u32);
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
    send_back(skb, s)
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
    // SAFETY: in bounds, as was just checked.
    let field = unsafe { s.service.quote.as_ptr().add(at as usize).cast::<u16>().read_unaligned() };
    let sum = pseudo_sum(s, s.packet.length.wrapping_sub(header));
    if !fold(sum) != field {
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
