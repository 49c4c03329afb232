//! The programs of the node's device.

use aya_ebpf::helpers::generated::bpf_skb_change_type;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use weft_abi::{DropReason, NodeConfig};

use crate::endpoint::lookup::{endpoint, has_host_policy};
use crate::endpoint::neighbour;
use crate::forward::send::send_new;
use crate::forward::vxlan::is_decapsulated;
use crate::hook::{Hook, PASS};
use crate::icmp::error::is_related;
use crate::lb::dsr::receive_option;
use crate::lb::node::{deciding_hook, redirect_translated, translate_egress};
use crate::lb::translate::translate_ingress;
use crate::maps::config;
use crate::mark::{is_locally_generated, returns_to_node, take_mark};
use crate::nat::masquerade::unmasquerade;
use crate::packet::{
    DSR_OPTION, ICMP_ERROR, Skb, TUNNELLED, UDP, UNKNOWN_PORTS, UNMASQUERADED, is_multicast, is_of_vlan,
};
use crate::parse::frame::load_head;
use crate::parse::ip::parse;
use crate::pipeline::host::from_host;
use crate::pipeline::track::{track, track_translated};
use crate::policy::host::needs_verdict;
use crate::programs::run::run;
use crate::scratch::{Scratch, translated};

#[classifier]
pub fn weft_from_device(ctx: TcContext) -> i32 {
    if returns_to_node(ctx.skb.skb) {
        return PASS;
    }
    run(ctx.skb.skb, Hook::FromDevice, from_device)
}

#[inline(always)]
fn from_device(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let ethertype = load_head(skb, s)?;
    if !matches!(ethertype, 0x0800 | 0x86dd) || is_of_vlan(skb) {
        // The node's own: ARP, spanning tree, ...; of a VLAN: for its VLAN devices, and without one the kernel drops it.
        return s.act(PASS);
    }
    parse(skb, s, ethertype)?;
    let Some(config) = config() else { return Err(DropReason::NoConfig) };
    if neighbour::is_link_control(s) && endpoint(&s.packet.destination).is_some() {
        // Pods have one neighbour, their gateway.
        return Err(DropReason::ForbiddenIcmpv6);
    }
    let mut for_node = s.packet.destination == config.node_v4 || s.packet.destination == config.node_v6;
    if for_node && s.packet.flags & ICMP_ERROR == 0 {
        if s.packet.protocol == UDP
            && s.packet.destination_port == config.tunnel_port_be
            && config.tunnel_ifindex != 0
            && s.packet.flags & UNKNOWN_PORTS == 0
        {
            if !is_decapsulated(skb, s)? {
                return s.act(PASS);
            }
            // A packet that this program decapsulates has come in by the tunnel, like those that the VXLAN device
            // decapsulates.
            s.packet.ifindex = config.tunnel_ifindex;
            for_node = addressed_to_node(skb, s, config);
        }
        if for_node && s.packet.flags & ICMP_ERROR == 0 {
            unmasquerade(skb, s)?;
            for_node = s.packet.flags & UNMASQUERADED == 0;
            if for_node {
                translate_ingress(skb, s)?;
            }
        }
    } else if !for_node && (is_multicast(&s.packet.destination) || neighbour::is_link_control(s)) {
        return s.act(PASS);
    }
    if s.packet.flags & DSR_OPTION != 0 {
        receive_option(skb, s)?;
    }
    if s.packet.flags & ICMP_ERROR != 0 && is_related(skb, s, Hook::FromDevice)? {
        return send_new(skb, s);
    }
    // A destination that is no endpoint may be another address of the node.
    let unknown = has_host_policy(config)
        && s.packet.flags & (UNMASQUERADED | TUNNELLED) == 0
        && endpoint(&s.packet.destination).is_none();
    if s.translated & (translated::FORWARD | translated::REPLY) != 0 {
        return track_translated(skb, s, Hook::FromDevice, core::ptr::null_mut());
    }
    if (for_node || unknown) && !needs_verdict(skb, s, config) {
        return s.act(PASS);
    }
    track(skb, s, Hook::FromDevice, config)
}

#[classifier]
pub fn weft_to_device(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    if take_mark(skb) {
        return PASS;
    }
    // Pods' packets were judged before they came here.
    match config() {
        Some(config) if has_host_policy(config) || is_locally_generated(skb) => run(skb, Hook::ToDevice, to_device),
        _ => PASS,
    }
}

#[inline(always)]
fn to_device(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let ethertype = load_head(skb, s)?;
    if !matches!(ethertype, 0x0800 | 0x86dd) {
        return s.act(PASS);
    }
    parse(skb, s, ethertype)?;
    let Some(config) = config() else { return Err(DropReason::NoConfig) };
    if is_locally_generated(skb) {
        if s.packet.flags & ICMP_ERROR != 0 && is_related(skb, s, Hook::ToDevice)? {
            return s.act(PASS);
        }
        translate_egress(skb, s)?;
        if s.translated != 0 {
            let hook = deciding_hook(s);
            track_translated(skb, s, hook, core::ptr::null_mut())?;
            return redirect_translated(skb, s);
        }
    }
    // Without host policies the node's own traffic is neither tracked nor judged.
    if has_host_policy(config) { from_host(skb, s, config) } else { s.act(PASS) }
}

/// Whether a packet out of the tunnel is for the node itself; if so, the stack must see it so.
#[inline(always)]
pub fn addressed_to_node(skb: Skb, s: &Scratch, config: &NodeConfig) -> bool {
    let own = s.packet.destination == config.node_v4 || s.packet.destination == config.node_v6;
    if own {
        // SAFETY: no pointers but the context; 0 is PACKET_HOST.
        unsafe { bpf_skb_change_type(skb, 0) };
    }
    own
}
