//! VXLAN (RFC 7348) without a tunnel device in the hot path: packets are encapsulated and decapsulated here. The VNI is
//! the sender's identity.

use aya_ebpf::bindings::{
    BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
    BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO,
};
use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_get_hash_recalc, bpf_skb_adjust_room, bpf_skb_store_bytes};
use aya_ebpf::maps::lpm_trie::Key;
use weft_abi::{Addr, DropReason, NodeConfig, TUNNEL_MAC, identity, ipcache_flags, route_flags};

use crate::endpoint::lookup::{endpoint, tunnel_endpoint};
use crate::maps::{IPCACHE, ROUTES, config};
use crate::nat::checksum::fold;
use crate::packet::{ETH, FIRST_FRAGMENT, LATER_FRAGMENT, Skb, TUNNELLED, UDP, load, skb_gso_size, skb_len};
use crate::parse::frame::load_head;
use crate::parse::ip::parse;
use crate::scratch::Scratch;
use crate::step::step;

/// `BPF_ADJ_ROOM_MAC`.
const MODE_MAC: u32 = 1;

const DECAP_L3_IPV4: u64 = 1 << 7;

const DECAP_L3_IPV6: u64 = 1 << 8;

/// UDP, VXLAN and the inner Ethernet header.
const INNER: usize = 8 + 8 + 14;

#[repr(C)]
struct Outer<const IP: usize> {
    ip: [u8; IP],
    rest: [u8; INNER],
}

/// Encapsulates the packet for the node `remote`. The redirect fills in the outer Ethernet header.
#[inline(never)]
pub fn encapsulate(skb: Skb, s: &mut Scratch, remote: &Addr, config: &NodeConfig) -> Result<(), DropReason> {
    let inner_ip = skb_len(skb) - ETH;
    // SAFETY: no pointers but the context.
    let hash = unsafe { bpf_get_hash_recalc(skb) };
    let port = (49152 + (hash & 0x3fff)) as u16;
    // Other nodes know this one as remote-node.
    let from_host = s.source_identity == identity::HOST;
    let vni = if from_host { identity::REMOTE_NODE } else { s.source_identity & identity::TUNNEL_MASK };
    let mut rest = [0_u8; INNER];
    let udp_length = (inner_ip as u16).wrapping_add(INNER as u16).to_be_bytes();
    let (port, to) = (port.to_be_bytes(), config.tunnel_port_be.to_ne_bytes());
    rest[0] = port[0];
    rest[1] = port[1];
    rest[2] = to[0];
    rest[3] = to[1];
    rest[4] = udp_length[0];
    rest[5] = udp_length[1];
    rest[8] = 0x08;
    rest[12] = (vni >> 16) as u8;
    rest[13] = (vni >> 8) as u8;
    rest[14] = vni as u8;
    // Inner Ethernet: every node's tunnel device has this address.
    rest[16] = TUNNEL_MAC[0];
    rest[17] = TUNNEL_MAC[1];
    rest[18] = TUNNEL_MAC[2];
    rest[19] = TUNNEL_MAC[3];
    rest[20] = TUNNEL_MAC[4];
    rest[21] = TUNNEL_MAC[5];
    rest[22] = 0x02;
    rest[27] = 1;
    let ethertype: [u8; 2] = if s.packet.version == 4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    rest[28] = ethertype[0];
    rest[29] = ethertype[1];
    let l2 = (14_u64 & 0xff) << 56;
    let common =
        BPF_F_ADJ_ROOM_ENCAP_L4_UDP as u64 | BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64 | BPF_F_ADJ_ROOM_FIXED_GSO as u64 | l2;
    if remote.is_v4() {
        if inner_ip + 50 > 65_535 {
            return Err(DropReason::FragmentationNeeded);
        }
        let mut outer = Outer::<20> { ip: [0; 20], rest };
        let total = ((inner_ip + 50) as u16).to_be_bytes();
        let (from, to) = (config.tunnel_source.0[3].to_ne_bytes(), remote.0[3].to_ne_bytes());
        outer.ip[0] = 0x45;
        outer.ip[2] = total[0];
        outer.ip[3] = total[1];
        outer.ip[6] = 0x40;
        outer.ip[8] = 64;
        outer.ip[9] = UDP;
        outer.ip[12] = from[0];
        outer.ip[13] = from[1];
        outer.ip[14] = from[2];
        outer.ip[15] = from[3];
        outer.ip[16] = to[0];
        outer.ip[17] = to[1];
        outer.ip[18] = to[2];
        outer.ip[19] = to[3];
        // SAFETY: 20 bytes of the header; no second buffer.
        let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, outer.ip.as_mut_ptr().cast(), 20, 0) };
        let sum = fold(sum as u32).to_ne_bytes();
        outer.ip[10] = sum[0];
        outer.ip[11] = sum[1];
        // SAFETY: the helpers read `outer`, which is 50 bytes.
        unsafe {
            if bpf_skb_adjust_room(skb, 50, MODE_MAC, common | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 as u64) != 0
                || bpf_skb_store_bytes(skb, ETH, (&raw const outer).cast(), 50, 0) != 0
                || bpf_skb_store_bytes(skb, 12, [0x08_u8, 0x00].as_ptr().cast(), 2, 0) != 0
            {
                return Err(DropReason::WriteError);
            }
        }
    } else {
        if inner_ip + 30 > 65_535 {
            return Err(DropReason::FragmentationNeeded);
        }
        let mut outer = Outer::<40> { ip: [0; 40], rest };
        outer.ip[0] = 0x60;
        outer.ip[4] = udp_length[0];
        outer.ip[5] = udp_length[1];
        outer.ip[6] = UDP;
        outer.ip[7] = 64;
        // SAFETY: two addresses inside the 40 bytes of the header; then the helpers read `outer`, which is 70 bytes.
        unsafe {
            outer.ip.as_mut_ptr().add(8).cast::<[u32; 4]>().write_unaligned(config.tunnel_source.0);
            outer.ip.as_mut_ptr().add(24).cast::<[u32; 4]>().write_unaligned(remote.0);
            if bpf_skb_adjust_room(skb, 70, MODE_MAC, common | BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 as u64) != 0
                || bpf_skb_store_bytes(skb, ETH, (&raw const outer).cast(), 70, 0) != 0
                || bpf_skb_store_bytes(skb, 12, [0x86_u8, 0xdd].as_ptr().cast(), 2, 0) != 0
            {
                return Err(DropReason::WriteError);
            }
        }
    }
    Ok(())
}

/// Decapsulates a packet from a known node; true: the packet is the inner one now, parsed; false: it is left to the VXLAN
/// device.
#[inline(always)]
pub fn is_decapsulated(skb: Skb, s: &mut Scratch) -> Result<bool, DropReason> {
    s.output = 0;
    decapsulate(skb, s)?;
    Ok(s.output == 1)
}

step!(decapsulate() = weft_step_decapsulate: decapsulate_body);

/// See [`is_decapsulated`].
#[inline(always)]
fn decapsulate_body(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    // SAFETY: copied at once.
    let known = unsafe { IPCACHE.get(&s.packet.source) }
        .is_some_and(|info| info.flags & (ipcache_flags::NODE | ipcache_flags::LOCAL) == ipcache_flags::NODE);
    if !known {
        return Err(DropReason::UnknownSender);
    }
    s.tunnel_peer = s.packet.source;
    if skb_gso_size(skb) != 0 || s.packet.flags & (FIRST_FRAGMENT | LATER_FRAGMENT) != 0 {
        // The device segments a GSO packet, the stack reassembles fragments.
        return Ok(());
    }
    let l4 = u32::from(s.packet.l4);
    let header: [u32; 2] = load(skb, l4 + 8)?;
    let ethertype: u16 = u16::from_be(load(skb, l4 + 28)?);
    if header[0].to_ne_bytes()[0] & 0x08 == 0 {
        return Err(DropReason::NoTunnelKey);
    }
    let outer = l4 + INNER as u32 - ETH;
    let flag = match ethertype {
        0x0800 => DECAP_L3_IPV4,
        0x86dd => DECAP_L3_IPV6,
        _ => return Err(DropReason::UnsupportedL3),
    };
    if s.packet.version == 4 && l4 != ETH + 20 || s.packet.version == 6 && l4 != ETH + 40 {
        return Ok(());
    }
    let vni = header[1].to_ne_bytes();
    let sender = u32::from(vni[0]) << 16 | u32::from(vni[1]) << 8 | u32::from(vni[2]);
    let kind = ethertype.to_be();
    // SAFETY: the helpers take plain numbers and two bytes of the stack.
    unsafe {
        if bpf_skb_adjust_room(skb, -(outer as i32), MODE_MAC, flag) != 0
            || bpf_skb_store_bytes(skb, 12, (&raw const kind).cast(), 2, 0) != 0
        {
            return Err(DropReason::WriteError);
        }
    }
    parse_inner(skb, s, sender)?;
    s.output = 1;
    Ok(())
}

step!(parse_inner(sender: u32) = weft_step_parse_inner: parse_inner_body);

/// Parses an unwrapped packet whose sender the tunnel named.
#[inline(always)]
fn parse_inner_body(skb: Skb, s: &mut Scratch, sender: u32) -> Result<(), DropReason> {
    let ethertype = load_head(skb, s)?;
    // The network's fragments are none of the tunnel's.
    s.packet.tunnel_identity = sender;
    s.packet.flags |= TUNNELLED;
    parse(skb, s, ethertype)?;
    // Another node's own packets have identity remote-node; HOST is this node alone.
    if sender == identity::UNKNOWN || sender == identity::HOST {
        return Err(DropReason::InvalidIdentity);
    }
    let Some(config) = config() else { return Err(DropReason::NoConfig) };
    if s.packet.protocol == UDP
        && s.packet.destination_port == config.tunnel_port_be
        && endpoint(&s.packet.destination).is_none()
    {
        // Unwrapped once: the stack would unwrap it again, and believe it.
        return Err(DropReason::EncapsulationProhibited);
    }
    Ok(())
}

/// Whether the sender that the tunnel names may be the packet's: a pod's identity for an address of a pod of the node that
/// the packet came from, another one for a node's address and for what that node passes on for clients outside.
#[inline(never)]
pub fn check_sender(s: &mut Scratch) -> Result<(), DropReason> {
    let Some(config) = config() else { return Err(DropReason::NoConfig) };
    let is_pods = s.packet.tunnel_identity >= identity::ALLOCATED_MIN;
    // SAFETY: copied at once.
    let known = unsafe { IPCACHE.get(&s.packet.source) }.map(|info| (info.node, info.flags));
    let (node, of_pod) = match known {
        Some((_, flags)) if flags & ipcache_flags::NODE != 0 => (s.packet.source, false),
        Some((node, _)) => (node, true),
        None => match ROUTES.get(&Key::new(128, s.packet.source)) {
            Some(info) if info.flags & route_flags::REMOTE_POOL != 0 => (info.node, true),
            // A client outside, by the node that it reached.
            _ => (Addr::NONE, false),
        },
    };
    let fits = node.is_none() || tunnel_endpoint(node, config) == s.tunnel_peer;
    if is_pods == of_pod && fits { Ok(()) } else { Err(DropReason::InvalidIdentity) }
}
