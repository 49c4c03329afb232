//! Sends a decided packet on its way.

use aya_ebpf::bindings::{TC_ACT_OK, bpf_redir_neigh};
use aya_ebpf::helpers::generated::{bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_store_bytes};
use weft_abi::{Addr, DropReason, FlowEntry, NodeConfig, flow_flags, path_action};

use crate::forward::vxlan::encapsulate;
use crate::lb::dsr::{insert_option, prepare_option};
use crate::lb::rewrite::reverse_dnat;
use crate::maps::config;
use crate::nat::masquerade::masquerade_source;
use crate::nat::rewrite::take_unwritten;
use crate::notify;
use crate::packet::{ETH, Skb, skb_gso_size};
use crate::reject::reject_too_big;
use crate::scratch::{HEAD, Scratch, translated};
use crate::step::step;

/// Follows the path of the entry, or `s.path` where there is none.
#[inline(always)]
pub fn send_established(
    skb: Skb,
    s: &mut Scratch,
    entry: Option<&mut FlowEntry>,
    config: &NodeConfig,
) -> Result<(), DropReason> {
    follow_path::<false>(skb, s, entry, config)
}

/// `SERVICE`: the packet may need a DSR option.
#[inline(always)]
fn follow_path<const SERVICE: bool>(
    skb: Skb,
    s: &mut Scratch,
    mut entry: Option<&mut FlowEntry>,
    config: &NodeConfig,
) -> Result<(), DropReason> {
    let known = entry.as_deref_mut().map_or(core::ptr::null_mut(), core::ptr::from_mut);
    let (path, outside, outside_port, flags) = match entry {
        Some(entry) => {
            let path = if s.reply == 0 { entry.forward } else { entry.reply };
            if path.action == path_action::TUNNEL {
                s.source_identity = if s.reply == 0 { entry.source_identity } else { entry.destination_identity };
            }
            if entry.flags & flow_flags::TRANSLATED != 0 && s.reply != 0 {
                s.frontend = entry.frontend;
                s.frontend_port = entry.frontend_port_be;
            }
            (path, entry.nat_addr, entry.nat_port_be, entry.flags)
        }
        None => {
            if s.entry.flags & flow_flags::TRANSLATED != 0 && s.reply != 0 {
                s.frontend = s.entry.frontend;
                s.frontend_port = s.entry.frontend_port_be;
            }
            (s.path, s.entry.nat_addr, s.entry.nat_port_be, s.entry.flags)
        }
    };
    // Replies get the frontend's address late: ICMP errors of the stack quote the packet as it was.
    let is_reply = flags & flow_flags::TRANSLATED != 0 && s.reply != 0;
    notify::count_forwarded(s);
    match path.action {
        path_action::POD => {
            if s.packet.ttl <= 1 {
                return s.act(TC_ACT_OK as i32);
            }
            if is_reply {
                reverse_dnat(skb, s, flags)?;
            }
            set_macs(s, &path.target);
            decrement_ttl(skb, s)?;
            // SAFETY: no pointers.
            s.act(unsafe { bpf_redirect_peer(path.ifindex, 0) } as i32)
        }
        path_action::STACK => {
            if is_reply {
                reverse_dnat(skb, s, flags)?;
            }
            s.act(TC_ACT_OK as i32)
        }
        path_action::DEVICE | path_action::TUNNEL | path_action::MASQUERADE => {
            // The stack answers with an ICMP error. It must not forward what is masqueraded: the pod's own address would go
            // out.
            let tunnel = path.action == path_action::TUNNEL;
            let masquerade = path.action == path_action::MASQUERADE;
            if s.packet.ttl <= 1 {
                return s.act(TC_ACT_OK as i32);
            }
            if !masquerade && exceeds_mtu(skb, s, config) {
                if s.translated & translated::FORWARD != 0 {
                    // The client does not know the backend that an error of the stack would quote.
                    return reject_too_big(s, u32::from(config.pod_mtu));
                }
                return s.act(TC_ACT_OK as i32);
            }
            if is_reply {
                reverse_dnat(skb, s, flags)?;
            }
            if masquerade || tunnel && flags & flow_flags::MASQUERADED != 0 && s.reply == 0 {
                // With a tunnel `nat_addr` is the next hop of the outer packet.
                let own = if s.packet.version == 4 { config.node_v4 } else { config.node_v6 };
                masquerade_source(skb, s, if tunnel { &own } else { &outside }, outside_port)?;
            }
            let dsr = SERVICE && flags & flow_flags::DSR_FRONTEND != 0 && s.reply == 0;
            if dsr {
                prepare_option(skb, s, known)?;
            }
            decrement_ttl(skb, s)?;
            if dsr && s.dsr_option != 0 {
                insert_option(skb, s)?;
            }
            if tunnel {
                encapsulate(skb, s, &path.target, config)?;
                return redirect_neighbour(s, path.ifindex, &outside);
            }
            redirect_neighbour(s, path.ifindex, &path.target)
        }
        _ => Err(DropReason::FibFailed),
    }
}

step!(send_entry(entry: *mut FlowEntry) = weft_step_send: send_entry_body);

/// The same off the established path; `entry` may be null.
#[inline(always)]
fn send_entry_body(skb: Skb, s: &mut Scratch, entry: *mut FlowEntry) -> Result<(), DropReason> {
    let Some(config) = config() else { return Err(DropReason::NoConfig) };
    // SAFETY: a value of FLOWS, readable for the length of the program.
    follow_path::<true>(skb, s, unsafe { entry.as_mut() }, config)
}

/// To the neighbour of that address on that device.
#[inline(always)]
fn redirect_neighbour(s: &mut Scratch, ifindex: u32, next_hop: &Addr) -> Result<(), DropReason> {
    const AF_INET: u32 = 2;
    const AF_INET6: u32 = 10;
    // SAFETY: all zero is a valid value.
    let mut to: bpf_redir_neigh = unsafe { core::mem::zeroed() };
    if next_hop.is_v4() {
        to.nh_family = AF_INET;
        to.__bindgen_anon_1.ipv4_nh = next_hop.0[3];
    } else {
        to.nh_family = AF_INET6;
        to.__bindgen_anon_1.ipv6_nh = next_hop.0;
    }
    // SAFETY: `to` lives for the call.
    s.act(unsafe { bpf_redirect_neigh(ifindex, &raw mut to, size_of::<bpf_redir_neigh>() as i32, 0) } as i32)
}

#[inline(always)]
fn set_macs(s: &mut Scratch, macs: &Addr) {
    let frame = s.frame();
    // SAFETY: the first 12 bytes of the frame's copy, which starts two bytes into an aligned buffer.
    unsafe {
        for (n, word) in macs.0.iter().take(3).enumerate() {
            frame.add(n * 4).cast::<[u16; 2]>().write([(*word & 0xffff) as u16, (*word >> 16) as u16]);
        }
    }
}

/// Decrements TTL or hop limit (RFC 1812 5.3.1, RFC 8200 3) and writes the changed head back, translated or not.
#[inline(always)]
fn decrement_ttl(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let v4 = s.packet.version == 4;
    let ttl = s.packet.ttl.wrapping_sub(1);
    let length = if v4 {
        // RFC 1141: the sum grows by what the field shrinks.
        let sum = u32::from(s.at::<u16>(24)) + u32::from(0x0100_u16.to_be());
        let sum = (sum + u32::from(sum >= 0xffff)) as u16;
        let frame = s.frame();
        // SAFETY: inside the copy.
        unsafe {
            frame.add(22).write(ttl);
            frame.add(24).cast::<u16>().write(sum);
        }
        26
    } else {
        // SAFETY: inside the copy.
        unsafe { s.frame().add(21).write(ttl) };
        22
    };
    let length = take_unwritten(s, length);
    if length > HEAD as u32 {
        return Err(DropReason::WriteError);
    }
    // SAFETY: `length` bytes of the copy.
    if unsafe { bpf_skb_store_bytes(skb, 0, s.frame().cast(), length, 0) } != 0 {
        return Err(DropReason::WriteError);
    }
    Ok(())
}

#[inline(always)]
fn exceeds_mtu(skb: Skb, s: &Scratch, config: &NodeConfig) -> bool {
    let mtu = u32::from(config.pod_mtu);
    if s.packet.length <= mtu {
        return false;
    }
    let segment = skb_gso_size(skb);
    // A super-packet leaves in segments: its headers come with each.
    segment == 0 || segment + (u32::from(s.packet.l4) - ETH) + 20 > mtu
}

/// Follows `s.path`.
#[inline(always)]
pub fn send_new(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    send_entry(skb, s, core::ptr::null_mut())
}
