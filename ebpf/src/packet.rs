//! From bytes to a tuple: Ethernet, IPv4, IPv6 with extension headers, TCP, UDP, SCTP, ICMP, fragments.
//!
//! The head of the packet is copied once into a per-CPU buffer and read from there; nothing is trusted before it was
//! compared with the packet's length. What cannot be parsed is an error, never a pass.

use core::arch::asm;
use core::ptr::read_volatile;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use weft_abi::{
    Addr, AffinityKey, BackendInfo, DropReason, EndpointInfo, FlowEntry, FlowKey, FragmentKey, FragmentValue,
    FrontendInfo, FrontendKey, NodeConfig, Path, config_flags, endpoint_flags,
};

use crate::maps::FRAGMENTS;
use crate::policy::Search;

/// Bytes of Ethernet.
pub const ETH: u32 = 14;
/// Bytes before the frame in the buffer, so that the network header is aligned.
const PAD: usize = 2;
/// Bytes of the frame that are copied at most.
pub const HEAD: usize = 80;
/// Bytes that are copied without the helper: enough for IPv4 and TCP, and for IPv6 and TCP, without options.
const SHORT: usize = 62;
const LONG: usize = 78;

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
/// It says which frontend its client sent to, see [`crate::direct`].
pub const FRONTEND_OPTION: u16 = 128;

/// Types of the option that says so.
pub const OPTION_V4: u8 = 0x9a;
pub const OPTION_V6: u8 = 0x1b;

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

/// What policies there are at one end of a packet's way.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct End {
    pub ingress: u32,
    pub egress: u32,
    /// [`endpoint_flags`].
    pub flags: u16,
    /// 1: a pod of this node.
    pub is_pod: u8,
    pub pad: u8,
}

impl End {
    /// Not of this node, or not subject to policies.
    pub const NONE: Self = Self { ingress: 0, egress: 0, flags: 0, is_pod: 0, pad: 0 };

    #[inline(always)]
    pub fn pod(info: &EndpointInfo) -> Self {
        Self { ingress: info.policy_ingress, egress: info.policy_egress, flags: info.flags, is_pod: 1, pad: 0 }
    }

    /// The node itself.
    #[inline(always)]
    pub fn host(config: &NodeConfig) -> Self {
        let flags = if config.flags & config_flags::HOST_AUDIT != 0 { endpoint_flags::AUDIT } else { 0 };
        Self { ingress: config.host_ingress, egress: config.host_egress, flags, is_pod: 0, pad: 0 }
    }
}

/// What a policy is asked.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Asked {
    pub policy: u32,
    /// Identity and address of the other end.
    pub identity: u32,
    pub address: Addr,
    /// The responder's port, as it lies in the packet; of ICMP the type counts instead.
    pub port: u16,
    pub pad: u16,
}

/// Working memory of one packet; a program has 512 bytes of stack, so it lives in a per-CPU map.
#[repr(C, align(8))]
pub struct Scratch {
    pub head: [u8; PAD + HEAD + 2],
    /// Bytes of the frame that `head` holds.
    pub copied: u32,
    pub packet: Packet,
    pub key: FlowKey,
    pub nat_key: FlowKey,
    pub entry: FlowEntry,
    pub nat_entry: FlowEntry,
    pub path: Path,
    pub next_hop: Addr,
    pub source_identity: u32,
    pub destination_identity: u32,
    pub rule: u32,
    pub policy: u32,
    pub source_endpoint: u16,
    pub destination_endpoint: u16,
    /// 1: the direction of `policy` is egress.
    pub egress: u8,
    pub reply: u8,
    /// 1: a policy in audit mode denies the packet.
    pub audited: u8,
    /// 1: the connection was decided by policies that have not changed since; only the way back is looked for.
    pub known: u8,
    /// 1: one end is the node itself, which is subject to policies.
    pub host: u8,
    /// [`translated`].
    pub translated: u8,
    /// 1: the source is the low end of `key`. Here, since the verifier would walk all that follows for either.
    pub low: u8,
    /// 1: the node's own stack sent the packet.
    pub own: u8,
    /// Bytes of `head` up to the last one that was changed there alone, see [`crate::nat::settle`].
    pub unwritten: u8,
    /// Bytes that the frontend takes in the packet; 0: it is not told.
    pub tell: u32,
    /// Where the originator sends to, if `translated` is not 0.
    pub frontend: Addr,
    pub frontend_port: u16,
    pub service: Service,
    pub append: crate::sctp::Append,
    pub edit: crate::icmp::Edit,
    pub from: End,
    pub to: End,
    pub asked: Asked,
    pub search: Search,
    pub fragment: FragmentKey,
    /// What the program shall return. Functions give it here and return `Result<(), DropReason>`, which is one byte:
    /// a larger result is a pair of registers, one half of which is undefined, and the verifier sees that.
    pub action: i32,
    /// The answer of a function that has one, likewise.
    pub answer: u32,
    /// Why the packet is dropped.
    pub reason: u32,
    /// Not 0: what its sender is told of that, see [`crate::refuse`].
    pub refusal: u32,
    /// The packet as it is while `packet` stands for another one.
    pub saved: Packet,
}

/// What was done to a packet of a service's client, or to an answer.
pub mod translated {
    /// It is from a client and has the backend's address now.
    pub const FORWARD: u8 = 1;
    /// The backend is the client itself.
    pub const HAIRPIN: u8 = 2;
    /// It answers a client.
    pub const REPLY: u8 = 4;
    /// It is from a client and had the backend's address when it came.
    pub const DIRECT: u8 = 8;
}

/// The choice of a backend.
#[repr(C)]
pub struct Service {
    /// Between the client and the frontend.
    pub key: FlowKey,
    pub frontend: FrontendKey,
    pub info: FrontendInfo,
    pub backend: BackendInfo,
    /// The set that counts for the client, its size, and that of Maglev's table.
    pub set: u32,
    pub count: u32,
    pub table: u32,
    /// 1: the client is the low end of `key`.
    pub low: u8,
    /// 1: the choice is in FLOWS already.
    pub remembered: u8,
    /// 1: the client is outside.
    pub outside: u8,
    /// 1: this packet bound its client to the backend.
    pub bound: u8,
    /// 1: the backend's node answers the client itself.
    pub direct: u8,
    /// 1: there is a choice that no longer counts, to be replaced.
    pub stale: u8,
    /// How many backends were chosen for this packet and could not be used.
    pub tried: u8,
    pub pad: u8,
    /// Where in the set the last one was.
    pub slot: u32,
    /// What an ICMP error quotes.
    pub quote: [u8; crate::refuse::QUOTE],
    /// Whom the client is bound to as it was looked at, see [`crate::balance::packed`]; 0: nobody.
    pub observed: u64,
    pub affinity: AffinityKey,
}

/// Zeroes a value where it lies: a temporary would take more stack than there is.
#[inline(always)]
pub fn clear(entry: &mut FlowEntry) {
    const WORDS: usize = size_of::<FlowEntry>() / 8;
    const _: () = assert!(size_of::<FlowEntry>() % 8 == 0 && align_of::<FlowEntry>() == 8, "whole words");
    let words = core::ptr::from_mut(entry).cast::<u64>();
    for n in 0..WORDS {
        // SAFETY: plain words of the value, all of which may be zero. Volatile: else it becomes a call that goes byte by
        // byte.
        unsafe { words.add(n).write_volatile(0) };
    }
}

pub type Skb = *mut __sk_buff;

impl Scratch {
    /// Lets the program return `action`.
    #[inline(always)]
    pub fn act(&mut self, action: i32) -> Result<(), DropReason> {
        self.action = action;
        Ok(())
    }

    /// A value at an offset of the frame that the verifier can bound.
    #[inline(always)]
    pub fn at<T: Copy>(&self, offset: usize) -> T {
        // SAFETY: every caller passes offsets that end inside the buffer; the verifier refuses the program otherwise.
        unsafe { *self.head.as_ptr().add(PAD + offset).cast::<T>() }
    }

    /// Start of the frame's copy.
    #[inline(always)]
    pub fn frame(&mut self) -> *mut u8 {
        // SAFETY: inside the buffer.
        unsafe { self.head.as_mut_ptr().add(PAD) }
    }
}

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

/// Not 0: the frame has a VLAN tag.
#[inline(always)]
pub fn skb_vlan(skb: Skb) -> u32 {
    // SAFETY: as above.
    unsafe { read_volatile(&raw const (*skb).vlan_present) }
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
    s.copied = copy(skb, s);
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
fn copy(skb: Skb, s: &mut Scratch) -> u32 {
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

/// Parses the network and transport headers.
#[inline(always)]
pub fn parse(skb: Skb, s: &mut Scratch, ethertype: u16) -> Result<(), DropReason> {
    s.packet.tcp_flags = 0;
    s.packet.source_port = 0;
    s.packet.destination_port = 0;
    s.packet.icmp_type = 0;
    s.packet.icmp_code = 0;
    match ethertype {
        0x0800 => parse_v4(skb, s)?,
        0x86dd => parse_v6(skb, s)?,
        _ => return Err(DropReason::UnsupportedL3),
    }
    if s.packet.flags & LATER_FRAGMENT != 0 {
        return later_fragment(s);
    }
    transport(skb, s)
}

#[inline(always)]
fn parse_v4(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let available = s.packet.length;
    if available < 20 {
        return Err(DropReason::InvalidPacket);
    }
    let first: u8 = s.at(14);
    let header = u32::from(first & 0x0f) * 4;
    let total = u32::from(u16::from_be(s.at::<u16>(16)));
    if first >> 4 != 4 || header < 20 || header > available {
        return Err(DropReason::InvalidPacket);
    }
    if total < header || total > available {
        // A segmentation super-packet above 64 KiB carries 0.
        if total != 0 || skb_gso_size(skb) == 0 {
            return Err(DropReason::InvalidPacket);
        }
    } else {
        s.packet.length = total;
    }
    s.packet.version = 4;
    s.packet.ttl = s.at(22);
    s.packet.protocol = s.at(23);
    s.packet.source = Addr::v4(s.at(26));
    s.packet.destination = Addr::v4(s.at(30));
    s.packet.l4 = (ETH + header) as u16;
    if header >= 28 && s.at::<u16>(34) == u16::from_ne_bytes([OPTION_V4, 8]) {
        s.packet.flags |= FRONTEND_OPTION;
    }
    if s.packet.protocol == ICMPV6 {
        return Err(DropReason::UnknownL4);
    }
    let fragment = u16::from_be(s.at::<u16>(20));
    if fragment & 0x3fff != 0 {
        let id = u32::from(s.at::<u16>(18));
        return fragmented(s, id, u32::from(fragment & 0x1fff) * 8);
    }
    Ok(())
}

#[inline(always)]
fn parse_v6(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let available = s.packet.length;
    if available < 40 || s.at::<u8>(14) >> 4 != 6 {
        return Err(DropReason::InvalidPacket);
    }
    let total = u32::from(u16::from_be(s.at::<u16>(18))) + 40;
    if total > available {
        return Err(DropReason::InvalidPacket);
    }
    if total > 40 || skb_gso_size(skb) == 0 {
        s.packet.length = total;
    }
    s.packet.version = 6;
    s.packet.ttl = s.at(21);
    s.packet.source = s.at(22);
    s.packet.destination = s.at(38);
    s.packet.l4 = (ETH + 40) as u16;
    let next: u8 = s.at(20);
    s.packet.protocol = next;
    if s.packet.source.is_v4() || s.packet.destination.is_v4() {
        // A mapped address on the wire would pass for IPv4 in every map.
        return Err(DropReason::InvalidPacket);
    }
    if matches!(next, TCP | UDP | ICMPV6 | SCTP) {
        return Ok(());
    }
    extensions(skb, s, next)
}

/// RFC 8200 section 4: walks up to four extension headers. Authentication (RFC 4302) is a protocol here, as it is for
/// IPv4: policies name it.
#[inline(never)]
fn extensions(skb: Skb, s: &mut Scratch, first: u8) -> Result<(), DropReason> {
    let mut next = first;
    let mut offset = ETH + 40;
    if first == 60 && s.at::<[u8; 4]>(54)[1..] == [2, OPTION_V6, 20] {
        s.packet.flags |= FRONTEND_OPTION;
    }
    for _ in 0..4 {
        match next {
            // Hop-by-hop, routing, destination options.
            0 | 43 | 60 => {
                let header: [u8; 2] = load(skb, offset)?;
                next = header[0];
                offset += (u32::from(header[1]) + 1) * 8;
            }
            44 => {
                let header: [u32; 2] = load(skb, offset)?;
                let bytes = header[0].to_ne_bytes();
                next = bytes[0];
                // Of a later fragment there is nothing else to look at.
                if next == 0 {
                    return Err(DropReason::Ipv6ExtensionHeader);
                }
                let field = u16::from_be_bytes([bytes[2], bytes[3]]);
                offset += 8;
                if field & 0xfff9 != 0 {
                    s.packet.protocol = next;
                    s.packet.l4 = offset as u16;
                    fragmented(s, header[1], u32::from(field & 0xfff8))?;
                    if s.packet.flags & LATER_FRAGMENT != 0 {
                        return Ok(());
                    }
                }
            }
            _ => break,
        }
        // Hop-by-hop options stand right behind the IPv6 header or nowhere (RFC 8200 section 4.1).
        if next == 0 {
            return Err(DropReason::Ipv6ExtensionHeader);
        }
    }
    if matches!(next, 0 | 43 | 44 | 60) || offset > 2048 {
        return Err(DropReason::Ipv6ExtensionHeader);
    }
    // A header that claims more than there is; who has ports is found out when they are read.
    if offset > ETH + s.packet.length {
        return Err(DropReason::InvalidPacket);
    }
    if next == ICMP {
        return Err(DropReason::UnknownL4);
    }
    s.packet.protocol = next;
    s.packet.l4 = offset as u16;
    Ok(())
}

/// Remembers which datagram this is a fragment of. RFC 1858, RFC 3128: none may overlay a transport header.
#[inline(always)]
fn fragmented(s: &mut Scratch, id: u32, offset: u32) -> Result<(), DropReason> {
    s.fragment = FragmentKey {
        source: s.packet.source,
        destination: s.packet.destination,
        id_be: id,
        protocol: s.packet.protocol,
        pad: [0; 3],
    };
    if offset == 0 {
        s.packet.flags |= FIRST_FRAGMENT;
        return Ok(());
    }
    if offset < 24 {
        return Err(DropReason::FragmentUnsupported);
    }
    s.packet.flags |= LATER_FRAGMENT;
    Ok(())
}

#[inline(always)]
fn later_fragment(s: &mut Scratch) -> Result<(), DropReason> {
    // SAFETY: the value is copied at once; a concurrent change gives the ports of one of two datagrams with the same
    // id, which their first fragments were judged by.
    if let Some(ports) = unsafe { FRAGMENTS.get(&s.fragment) } {
        s.packet.source_port = ports.source_port_be;
        s.packet.destination_port = ports.destination_port_be;
        if matches!(s.packet.protocol, ICMP | ICMPV6) {
            crate::icmp::of_fragment(s);
        }
    } else {
        s.packet.flags |= UNKNOWN_PORTS;
    }
    Ok(())
}

#[inline(always)]
fn transport(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let l4 = u32::from(s.packet.l4);
    let rest = (s.packet.length + ETH).wrapping_sub(l4);
    let need = match s.packet.protocol {
        TCP => 20,
        UDP | ICMP | ICMPV6 => 8,
        SCTP => 12,
        // Protocols without ports: (addresses, protocol) is all there is.
        _ => return Ok(()),
    };
    if rest < need || rest > 0x00ff_ffff {
        return Err(DropReason::CtTruncatedHeader);
    }
    // What was copied is read from the copy, even if it is more than the protocol has: the rest is not looked at.
    let header: [u32; 4] = match s.packet.protocol {
        _ if l4 == ETH + 20 && s.copied >= ETH + 36 => s.at(34),
        _ if l4 == ETH + 40 && s.copied >= ETH + 56 => s.at(54),
        TCP => load(skb, l4)?,
        SCTP => {
            let words: [u32; 3] = load(skb, l4)?;
            [words[0], words[1], words[2], 0]
        }
        _ => {
            let words: [u32; 2] = load(skb, l4)?;
            [words[0], words[1], 0, 0]
        }
    };
    let ports = header[0].to_ne_bytes();
    if matches!(s.packet.protocol, ICMP | ICMPV6) {
        s.packet.icmp_type = ports[0];
        s.packet.icmp_code = ports[1];
        let echo = if s.packet.protocol == ICMP { matches!(ports[0], 0 | 8) } else { matches!(ports[0], 128 | 129) };
        let error = if s.packet.protocol == ICMP { matches!(ports[0], 3 | 11 | 12) } else { matches!(ports[0], 1..=4) };
        if echo {
            let id = (header[1] & 0xffff) as u16;
            s.packet.source_port = id;
            s.packet.destination_port = id;
            s.packet.flags |= ECHO;
        } else {
            (s.packet.source_port, s.packet.destination_port) = crate::icmp::ports(s.packet.protocol, ports[0]);
            if error {
                s.packet.flags |= ICMP_ERROR;
            }
        }
    } else {
        s.packet.source_port = u16::from_ne_bytes([ports[0], ports[1]]);
        s.packet.destination_port = u16::from_ne_bytes([ports[2], ports[3]]);
    }
    if s.packet.protocol == TCP {
        let word = header[3].to_ne_bytes();
        s.packet.tcp_flags = word[1] & 0x3f;
        let flags = s.packet.tcp_flags;
        let data = u32::from(word[0] >> 4) * 4;
        if data < 20
            || data > rest
            || flags == 0
            || flags & (TCP_SYN | TCP_FIN) == TCP_SYN | TCP_FIN
            || flags & (TCP_SYN | TCP_RST) == TCP_SYN | TCP_RST
        {
            return Err(DropReason::InvalidPacket);
        }
    }
    if s.packet.protocol == UDP && s.packet.flags & FIRST_FRAGMENT == 0 {
        // RFC 768. A super-packet's length may be anything.
        let length = u32::from(u16::from_be((header[1] & 0xffff) as u16));
        if (length < 8 || length > rest) && skb_gso_size(skb) == 0 {
            return Err(DropReason::InvalidPacket);
        }
    }
    if s.packet.flags & FIRST_FRAGMENT != 0 {
        let ports =
            FragmentValue { source_port_be: s.packet.source_port, destination_port_be: s.packet.destination_port };
        // A full table evicts; later fragments are then judged without ports.
        let _ = FRAGMENTS.insert(&s.fragment, &ports, 0);
    }
    Ok(())
}
