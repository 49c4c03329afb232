//! The programs of a pod's link.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use weft_abi::DropReason;

use crate::endpoint::neighbour;
use crate::forward::send::send_new;
use crate::hook::{Hook, PASS};
use crate::icmp::error::is_related;
use crate::maps::config;
use crate::mark::take_mark;
use crate::notify;
use crate::packet::{ICMP_ERROR, Skb, has_vlan_tag, is_link_local, is_multicast};
use crate::parse::frame::load_head;
use crate::parse::ip::parse;
use crate::pipeline::track::track;
use crate::programs::run::{ARP, run};
use crate::scratch::Scratch;

#[classifier]
pub fn weft_from_pod(ctx: TcContext) -> i32 {
    run(ctx.skb.skb, Hook::FromPod, from_pod)
}

#[inline(always)]
fn from_pod(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let ethertype = load_head(skb, s)?;
    if ethertype == ARP {
        return neighbour::answer_arp(skb, s);
    }
    if has_vlan_tag(skb) {
        // A tag would leave the node with the packet.
        return Err(DropReason::VlanFiltered);
    }
    parse(skb, s, ethertype)?;
    if neighbour::is_link_control(s) {
        return neighbour::answer_solicitation(skb, s);
    }
    if is_multicast(&s.packet.destination) || is_link_local(&s.packet.destination) {
        return notify::drop_silently(s, DropReason::Unroutable);
    }
    let Some(config) = config() else { return Err(DropReason::NoConfig) };
    if s.packet.flags & ICMP_ERROR != 0 && is_related(skb, s, Hook::FromPod)? {
        return send_new(skb, s);
    }
    track(skb, s, Hook::FromPod, config)
}

#[classifier]
pub fn weft_to_pod(ctx: TcContext) -> i32 {
    if take_mark(ctx.skb.skb) {
        return PASS;
    }
    run(ctx.skb.skb, Hook::ToPod, to_pod)
}

#[inline(always)]
fn to_pod(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let ethertype = load_head(skb, s)?;
    if ethertype == ARP {
        return s.act(PASS);
    }
    parse(skb, s, ethertype)?;
    if neighbour::is_link_control(s) {
        // The node's own, which resolves the pod. What was forwarded is somebody's who wants to be taken for a router.
        return if neighbour::is_of_this_link(s) { s.act(PASS) } else { Err(DropReason::ForbiddenIcmpv6) };
    }
    let Some(config) = config() else { return Err(DropReason::NoConfig) };
    if s.packet.flags & ICMP_ERROR != 0 && is_related(skb, s, Hook::ToPod)? {
        return s.act(PASS);
    }
    track(skb, s, Hook::ToPod, config)
}
