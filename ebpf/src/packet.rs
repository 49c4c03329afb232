//! A parsed packet, and the fields of the kernel's context. Below all stages.

use core::ptr::read_volatile;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use weft_abi::{Addr, DropReason};

/// Bytes of Ethernet.
pub const ETH: u32 = 14;

pub const TCP: u8 = 6;

pub const UDP: u8 = 17;

pub const SCTP: u8 = 132;

pub const ICMP: u8 = 1;

pub const ICMPV6: u8 = 58;

pub const TCP_FIN: u8 = 1;

pub const TCP_SYN: u8 = 2;

pub const TCP_RST: u8 = 4;

pub const TCP_ACK: u8 = 16;

/// The packet is a fragment other than the first: it has no transport header.
pub const LATER_FRAGMENT: u16 = 1;

/// Its first fragment was not seen: the ports are not known.
pub const UNKNOWN_PORTS: u16 = 2;

/// An ICMP error, which quotes a packet.
pub const ICMP_ERROR: u16 = 4;

/// ICMP echo, request or reply; the id stands in both ports.
pub const ECHO: u16 = 8;

/// The destination was translated back from the outside of a masqueraded connection.
pub const UNMASQUERADED: u16 = 16;

/// It came through a tunnel; `tunnel_identity` is its sender's.
pub const TUNNELLED: u16 = 32;

/// The first of several fragments.
pub const FIRST_FRAGMENT: u16 = 64;

/// It carries a DSR option with the frontend's address and port, see [`crate::lb::dsr`].
pub const DSR_OPTION: u16 = 128;

/// Types of the DSR option.
pub const DSR_OPTION_V4: u8 = 0x9a;

pub const DSR_OPTION_V6: u8 = 0x1b;

/// A parsed packet.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Packet {
    pub source: Addr,
    pub destination: Addr,
    pub source_port: u16,
    pub destination_port: u16,
    pub protocol: u8,
    pub version: u8,
    pub ttl: u8,
    pub tcp_flags: u8,
    /// Offset of the transport header in the frame.
    pub l4: u16,
    pub flags: u16,
    /// Bytes of IP.
    pub length: u32,
    pub ifindex: u32,
    pub tunnel_identity: u32,
    pub icmp_type: u8,
    pub icmp_code: u8,
    pub pad: [u8; 2],
}

pub type Skb = *mut __sk_buff;

#[inline(always)]
pub fn skb_len(skb: Skb) -> u32 {
    // SAFETY: the context is valid for the length of the program.
    unsafe { read_volatile(&raw const (*skb).len) }
}

#[inline(always)]
pub fn skb_ifindex(skb: Skb) -> u32 {
    // SAFETY: as above.
    unsafe { read_volatile(&raw const (*skb).ifindex) }
}

/// The frame has a VLAN tag.
#[inline(always)]
pub fn has_vlan_tag(skb: Skb) -> bool {
    // SAFETY: as above.
    unsafe { read_volatile(&raw const (*skb).vlan_present) != 0 }
}

/// The frame is of a VLAN: VLAN 0 is a priority alone (IEEE 802.1Q 9.6).
#[inline(always)]
pub fn is_of_vlan(skb: Skb) -> bool {
    // SAFETY: as above.
    has_vlan_tag(skb) && unsafe { read_volatile(&raw const (*skb).vlan_tci) } & 0xfff != 0
}

#[inline(always)]
pub fn skb_gso_size(skb: Skb) -> u32 {
    // SAFETY: as above.
    unsafe { read_volatile(&raw const (*skb).gso_size) }
}

/// Copies `T` from any offset of the frame.
#[inline(always)]
pub fn load<T: Copy>(skb: Skb, offset: u32) -> Result<T, DropReason> {
    let mut value = core::mem::MaybeUninit::<T>::uninit();
    // SAFETY: the helper writes all of `value` or fails.
    unsafe {
        if bpf_skb_load_bytes(skb.cast(), offset, value.as_mut_ptr().cast(), size_of::<T>() as u32) != 0 {
            return Err(DropReason::CtTruncatedHeader);
        }
        Ok(value.assume_init())
    }
}

/// fe80::/10: never forwarded (RFC 4291 2.5.6).
#[inline(always)]
pub fn is_link_local(address: &Addr) -> bool {
    let bytes = address.0[0].to_ne_bytes();
    bytes[0] == 0xfe && bytes[1] & 0xc0 == 0x80
}

/// 224.0.0.0/4, 255.255.255.255, ff00::/8.
#[inline(always)]
pub fn is_multicast(address: &Addr) -> bool {
    if address.is_v4() { address.0[3].to_ne_bytes()[0] >= 224 } else { address.0[0].to_ne_bytes()[0] == 0xff }
}
