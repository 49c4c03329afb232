//! ARP (RFC 826) and neighbour discovery (RFC 4861) of pods: answered for their gateways, and for nothing else.

use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_redirect, bpf_skb_store_bytes};
use weft_abi::{Addr, DropReason};

use crate::endpoint::lookup::endpoint;
use crate::notify;
use crate::packet::{ETH, ICMPV6, Skb, is_multicast, load};
use crate::scratch::Scratch;

/// 169.254.1.1
const GATEWAY_V4: u32 = u32::from_ne_bytes([169, 254, 1, 1]);

/// fe80::1
const GATEWAY_V6: [u32; 4] = [0x0000_80fe_u32.to_le(), 0, 0, 0x0100_0000_u32.to_le()];

#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Arp {
    kinds: [u8; 6],
    operation: u16,
    sender_mac: [u8; 6],
    sender: u32,
    target_mac: [u8; 6],
    target: u32,
}

#[repr(C, packed)]
struct ArpFrame {
    destination: [u8; 6],
    source: [u8; 6],
    ethertype: u16,
    arp: Arp,
}

/// Answers a pod's request for its gateway.
#[inline(never)]
pub fn answer_arp(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let asked: Arp = load(skb, ETH)?;
    s.packet.protocol = 0;
    let (sender, target) = (asked.sender, asked.target);
    let info = match endpoint(&Addr::v4(sender)) {
        Some(info) if info.ifindex == s.packet.ifindex => info,
        _ => return notify::drop_silently(s, DropReason::InvalidSourceIp),
    };
    if asked.operation != 1_u16.to_be() || target != GATEWAY_V4 {
        return notify::drop_silently(s, DropReason::UnknownTarget);
    }
    let frame = ArpFrame {
        destination: info.pod_mac,
        source: info.host_mac,
        ethertype: 0x0806_u16.to_be(),
        arp: Arp {
            kinds: [0, 1, 8, 0, 6, 4],
            operation: 2_u16.to_be(),
            sender_mac: info.host_mac,
            sender: GATEWAY_V4,
            target_mac: info.pod_mac,
            target: sender,
        },
    };
    // SAFETY: 42 bytes of the stack.
    if unsafe { bpf_skb_store_bytes(skb, 0, (&raw const frame).cast(), size_of::<ArpFrame>() as u32, 0) } != 0 {
        return Err(DropReason::WriteError);
    }
    // SAFETY: no pointers.
    s.act(unsafe { bpf_redirect(s.packet.ifindex, 0) } as i32)
}

/// ICMPv6 types of the local link: multicast listeners and neighbour discovery.
#[inline(always)]
pub fn is_link_control(s: &Scratch) -> bool {
    s.packet.protocol == ICMPV6 && matches!(s.packet.icmp_type, 130..=137 | 141..=143)
}

/// Whether a message of the local link was not forwarded: neighbour discovery has hop limit 255 (RFC 4861 7.1), what
/// concerns multicast listeners goes to a group (RFC 3810 5).
#[inline(always)]
pub fn is_of_this_link(s: &Scratch) -> bool {
    if matches!(s.packet.icmp_type, 133..=137 | 141 | 142) {
        s.packet.ttl == 255
    } else {
        is_multicast(&s.packet.destination)
    }
}

#[repr(C, packed)]
struct Advertisement {
    kind: u8,
    code: u8,
    checksum: [u8; 2],
    flags: [u8; 4],
    target: [u32; 4],
    option: [u8; 2],
    mac: [u8; 6],
}

/// Answers a pod's solicitation of its gateway.
#[inline(never)]
pub fn answer_solicitation(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    // Hop limit 255: it was not forwarded (RFC 4861 7.1.1). 32 bytes: with the sender's link-layer address.
    if s.packet.icmp_type != 135 || s.packet.source.is_none() {
        return notify::drop_silently(s, DropReason::UnknownTarget);
    }
    if s.packet.ttl != 255 || s.packet.length != 72 || u32::from(s.packet.l4) != ETH + 40 {
        return Err(DropReason::InvalidPacket);
    }
    let target: [u32; 4] = load(skb, ETH + 48)?;
    if target != GATEWAY_V6 {
        return notify::drop_silently(s, DropReason::UnknownTarget);
    }
    let Some(info) = endpoint(&s.packet.source) else {
        // From the link-local address, which no table has: dropped.
        return notify::drop_silently(s, DropReason::UnknownTarget);
    };
    if info.ifindex != s.packet.ifindex {
        return Err(DropReason::InvalidSourceIp);
    }
    let mut answer = Advertisement {
        kind: 136,
        code: 0,
        checksum: [0; 2],
        // Solicited, override.
        flags: [0x60, 0, 0, 0],
        target: GATEWAY_V6,
        option: [2, 1],
        mac: info.host_mac,
    };
    let addresses = [GATEWAY_V6, s.packet.source.0];
    // Length and next header of the pseudo-header, RFC 8200 8.1.
    let rest: [u32; 2] = [32_u32.to_be(), 58_u32.to_be()];
    // SAFETY: the helpers read from the stack, as many bytes as the variables have.
    unsafe {
        let sum = bpf_csum_diff(core::ptr::null_mut(), 0, addresses.as_ptr().cast_mut().cast(), 32, 0);
        let sum = bpf_csum_diff(core::ptr::null_mut(), 0, rest.as_ptr().cast_mut(), 8, sum as u32);
        let sum = bpf_csum_diff(core::ptr::null_mut(), 0, (&raw mut answer).cast(), 32, sum as u32) as u64;
        let sum = (sum & 0xffff) + (sum >> 16 & 0xffff);
        let sum = (sum & 0xffff) + (sum >> 16);
        answer.checksum = (!(sum as u16)).to_ne_bytes();
        let mut link = [0_u8; 12];
        link[0] = info.pod_mac[0];
        link[1] = info.pod_mac[1];
        link[2] = info.pod_mac[2];
        link[3] = info.pod_mac[3];
        link[4] = info.pod_mac[4];
        link[5] = info.pod_mac[5];
        link[6] = info.host_mac[0];
        link[7] = info.host_mac[1];
        link[8] = info.host_mac[2];
        link[9] = info.host_mac[3];
        link[10] = info.host_mac[4];
        link[11] = info.host_mac[5];
        if bpf_skb_store_bytes(skb, 0, link.as_ptr().cast(), 12, 0) != 0
            || bpf_skb_store_bytes(skb, ETH + 8, addresses.as_ptr().cast(), 32, 0) != 0
            || bpf_skb_store_bytes(skb, ETH + 40, (&raw const answer).cast(), 32, 0) != 0
        {
            return Err(DropReason::WriteError);
        }
        s.act(bpf_redirect(s.packet.ifindex, 0) as i32)
    }
}
