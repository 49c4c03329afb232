//! The kernel programs of Weft: what every packet to and from a pod passes.
//!
//! | program | where | what it sees |
//! |---|---|---|
//! | `weft_from_pod` | tcx ingress of a pod's link, host side | everything a pod sends |
//! | `weft_to_pod` | tcx egress of the same | what the node's stack sends to the pod |
//! | `weft_from_device` | tcx ingress of the node's device | everything from the network, tunnels included |
//! | `weft_edge` | XDP of the same | the same before the kernel does, if connections at the edge are accelerated |
//! | `weft_to_device` | tcx egress of the same | what the node's own stack sends: to services, as a backend, under policies |
//! | `weft_from_tunnel`, `weft_to_tunnel` | tcx of the VXLAN device | what the device unwraps, what the stack sends to pods elsewhere |
//! | `weft_connect4`, ... | calls of sockets in the node's control group | services: the table in `sock.rs` |
//! | `weft_collect` | run by the agent | expired connections |
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(missing_docs, reason = "the macro of a program leaves its documentation behind")]

mod balance;
mod checksum;
mod collect;
mod decide;
mod direct;
mod edge;
mod forward;
mod host;
mod icmp;
mod maps;
mod nat;
mod neighbour;
mod notify;
mod own;
mod packet;
mod policy;
mod refuse;
mod route;
mod sctp;
mod service;
mod sock;
mod step;
mod track;
mod tunnel;

use aya_ebpf::bindings::{BPF_F_ZERO_CSUM_TX, TC_ACT_OK, TC_ACT_SHOT, bpf_tunnel_key};
use aya_ebpf::helpers::generated::{bpf_skb_change_type, bpf_skb_get_tunnel_key, bpf_skb_set_tunnel_key};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::{TcContext, XdpContext};
use weft_abi::{Addr, DropReason, identity, ipcache_flags};

use packet::{ICMP_ERROR, Scratch, Skb, UDP, UNMASQUERADED, translated};

/// Which program looks at the packet.
#[derive(Clone, Copy)]
#[repr(u8)]
pub enum Hook {
    /// A pod sent it.
    FromPod,
    /// The node's stack sends it to a pod.
    ToPod,
    /// It came from the network.
    FromDevice,
    /// The node sends it to the network.
    ToDevice,
}

const ARP: u16 = 0x0806;
const PASS: i32 = TC_ACT_OK as i32;

/// Runs a program's body with the scratch memory; an error is a drop.
#[inline(always)]
fn run(skb: Skb, hook: Hook, body: impl FnOnce(Skb, &mut Scratch) -> Result<(), DropReason>) -> i32 {
    let Some(scratch) = maps::SCRATCH.get_ptr_mut(0) else { return TC_ACT_SHOT as i32 };
    // SAFETY: this CPU's own memory; programs of these hooks do not nest.
    let s = unsafe { &mut *scratch };
    s.egress = u8::from(matches!(hook, Hook::FromPod | Hook::ToDevice));
    s.reply = 0;
    s.audited = 0;
    s.known = 0;
    s.host = 0;
    s.own = u8::from(matches!(hook, Hook::ToDevice));
    s.translated = 0;
    s.unwritten = 0;
    s.refusal = 0;
    s.source_identity = 0;
    s.destination_identity = 0;
    s.source_endpoint = 0;
    s.destination_endpoint = 0;
    s.policy = 0;
    s.rule = 0;
    match body(skb, s).and_then(|()| nat::settle(skb, s)) {
        Ok(()) => s.action,
        Err(reason) => {
            // By way of the memory: the verifier would walk the rest for every reason.
            s.reason = reason as u32;
            // SAFETY: what was just written.
            let reason = unsafe { core::ptr::read_volatile(&raw const s.reason) };
            if step::dropped(skb, s, hook, reason).is_err() {
                return TC_ACT_SHOT as i32;
            }
            let refuses = !matches!(hook, Hook::ToPod) && s.refusal != 0;
            if refuses && step::refuse(skb, s).is_ok() { s.action } else { TC_ACT_SHOT as i32 }
        }
    }
}

/// See the table above.
#[classifier]
pub fn weft_from_pod(ctx: TcContext) -> i32 {
    run(ctx.skb.skb, Hook::FromPod, from_pod)
}

#[inline(always)]
fn from_pod(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let ethertype = packet::load_head(skb, s)?;
    if ethertype == ARP {
        return neighbour::arp(skb, s);
    }
    if packet::skb_vlan(skb) != 0 {
        // A tag would leave the node with the packet.
        return Err(DropReason::UnsupportedL2);
    }
    packet::parse(skb, s, ethertype)?;
    if neighbour::is_discovery(s) {
        return neighbour::discovery(skb, s);
    }
    if is_multicast(&s.packet.destination) || is_link_local(&s.packet.destination) {
        return notify::silently(s, DropReason::Unroutable);
    }
    let Some(config) = track::config() else { return Err(DropReason::NoConfig) };
    if s.packet.protocol == UDP
        && s.packet.destination_port == config.tunnel_port_be
        && config.tunnel_ifindex != 0
        && decide::who(&s.packet.destination, config).1 & ipcache_flags::NODE != 0
    {
        return Err(DropReason::EncapsulationProhibited);
    }
    if s.packet.flags & ICMP_ERROR != 0 && icmp::related(skb, s, Hook::FromPod)? {
        return step::send(skb, s);
    }
    track::track(skb, s, Hook::FromPod, config)
}

/// See the table above.
#[classifier]
pub fn weft_to_pod(ctx: TcContext) -> i32 {
    if own::is_decided(ctx.skb.skb) {
        return PASS;
    }
    run(ctx.skb.skb, Hook::ToPod, to_pod)
}

#[inline(always)]
fn to_pod(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let ethertype = packet::load_head(skb, s)?;
    if ethertype == ARP {
        return s.act(PASS);
    }
    packet::parse(skb, s, ethertype)?;
    if neighbour::is_discovery(s) {
        return s.act(PASS);
    }
    let Some(config) = track::config() else { return Err(DropReason::NoConfig) };
    if s.packet.flags & ICMP_ERROR != 0 && icmp::related(skb, s, Hook::ToPod)? {
        return s.act(PASS);
    }
    track::track(skb, s, Hook::ToPod, config)
}

/// See the table above.
#[classifier]
pub fn weft_from_device(ctx: TcContext) -> i32 {
    if own::comes_back(ctx.skb.skb) {
        return PASS;
    }
    run(ctx.skb.skb, Hook::FromDevice, from_device)
}

#[inline(always)]
fn from_device(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let ethertype = packet::load_head(skb, s)?;
    if !matches!(ethertype, 0x0800 | 0x86dd) {
        // The node's own: ARP, spanning tree, ...
        return s.act(PASS);
    }
    packet::parse(skb, s, ethertype)?;
    let Some(config) = track::config() else { return Err(DropReason::NoConfig) };
    let mut for_node = s.packet.destination == config.node_v4 || s.packet.destination == config.node_v6;
    if for_node && s.packet.flags & ICMP_ERROR == 0 {
        if s.packet.protocol == UDP
            && s.packet.destination_port == config.tunnel_port_be
            && config.tunnel_ifindex != 0
            && s.packet.flags & packet::UNKNOWN_PORTS == 0
        {
            if !tunnel::strip(skb, s)? {
                return s.act(PASS);
            }
            // Whether this program or the tunnel's device unwraps a packet: both are one way in, and another one than
            // the bare network.
            s.packet.ifindex = config.tunnel_ifindex;
            for_node = addressed_to_node(skb, s, config);
        }
        if for_node && s.packet.flags & ICMP_ERROR == 0 {
            step::unmasquerade(skb, s)?;
            for_node = s.packet.flags & UNMASQUERADED == 0;
            if for_node {
                step::enter(skb, s)?;
            }
        }
    } else if !for_node && (is_multicast(&s.packet.destination) || neighbour::is_discovery(s)) {
        return s.act(PASS);
    }
    if s.packet.flags & packet::FRONTEND_OPTION != 0 {
        step::arrive(skb, s)?;
    }
    if s.packet.flags & ICMP_ERROR != 0 && icmp::related(skb, s, Hook::FromDevice)? {
        return step::send(skb, s);
    }
    // What is for nobody that the programs know may be for another address of the node's.
    let nobody = host::is_subject(config)
        && s.packet.flags & (UNMASQUERADED | packet::TUNNELLED) == 0
        && decide::endpoint(&s.packet.destination).is_none();
    if s.translated & (translated::FORWARD | translated::REPLY) != 0 {
        return step::behind(skb, s, Hook::FromDevice, core::ptr::null_mut());
    }
    if (for_node || nobody) && !host::is_judged(skb, s, config) {
        return s.act(PASS);
    }
    track::track(skb, s, Hook::FromDevice, config)
}

/// See the table above.
#[xdp]
pub fn weft_edge(ctx: XdpContext) -> u32 {
    edge::run(ctx.ctx)
}

/// See the table above.
#[classifier]
pub fn weft_to_device(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    if own::is_decided(skb) {
        return PASS;
    }
    // Pods' packets were judged before they came here.
    match track::config() {
        Some(config) if host::is_subject(config) || own::is_made_here(skb) => run(skb, Hook::ToDevice, to_device),
        _ => PASS,
    }
}

#[inline(always)]
fn to_device(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let ethertype = packet::load_head(skb, s)?;
    if !matches!(ethertype, 0x0800 | 0x86dd) {
        return s.act(PASS);
    }
    packet::parse(skb, s, ethertype)?;
    let Some(config) = track::config() else { return Err(DropReason::NoConfig) };
    if own::is_made_here(skb) {
        if s.packet.flags & ICMP_ERROR != 0 && icmp::related(skb, s, Hook::ToDevice)? {
            return s.act(PASS);
        }
        step::leave(skb, s)?;
        if s.translated != 0 {
            let hook = own::hook(s);
            step::behind(skb, s, hook, core::ptr::null_mut())?;
            return step::depart(skb, s);
        }
    }
    // Unless policies say otherwise the node's own traffic is the node's own business.
    if host::is_subject(config) { host::outbound(skb, s, config) } else { s.act(PASS) }
}

/// See the table above.
#[classifier]
pub fn weft_from_tunnel(ctx: TcContext) -> i32 {
    run(ctx.skb.skb, Hook::FromDevice, from_tunnel)
}

/// Leaves the identity that a known node gave the sender in `s.answer`. A function of its own for its stack.
#[inline(never)]
fn tunnel_sender(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let Some(config) = track::config() else { return Err(DropReason::NoConfig) };
    let v4 = config.tunnel_source.is_v4();
    // SAFETY: all zero is a valid key; the helper fills as much as it is told.
    let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
    let flags = if v4 { 0 } else { 1 };
    // SAFETY: as above.
    if unsafe { bpf_skb_get_tunnel_key(skb, &raw mut key, size_of::<bpf_tunnel_key>() as u32, flags) } != 0 {
        return Err(DropReason::NoTunnelKey);
    }
    // SAFETY: the member of the tunnel's family.
    let peer = unsafe {
        if v4 {
            // The helper gives host order.
            Addr::v4(key.__bindgen_anon_1.remote_ipv4.to_be())
        } else {
            Addr(key.__bindgen_anon_1.remote_ipv6)
        }
    };
    if decide::who(&peer, config).1 & (ipcache_flags::NODE | ipcache_flags::LOCAL) != ipcache_flags::NODE {
        return Err(DropReason::UnknownSender);
    }
    s.answer = key.tunnel_id;
    Ok(())
}

#[inline(always)]
fn from_tunnel(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let Some(config) = track::config() else { return Err(DropReason::NoConfig) };
    tunnel_sender(skb, s)?;
    let sender = s.answer;
    step::inner(skb, s, sender)?;
    let mut for_node = addressed_to_node(skb, s, config);
    if for_node && s.packet.flags & ICMP_ERROR == 0 {
        step::unmasquerade(skb, s)?;
        for_node = s.packet.flags & UNMASQUERADED == 0;
        if for_node {
            step::enter(skb, s)?;
        }
    }
    if s.packet.flags & packet::FRONTEND_OPTION != 0 {
        step::arrive(skb, s)?;
    }
    if s.packet.flags & ICMP_ERROR != 0 && icmp::related(skb, s, Hook::FromDevice)? {
        return step::send(skb, s);
    }
    if s.translated & (translated::FORWARD | translated::REPLY) != 0 {
        return step::behind(skb, s, Hook::FromDevice, core::ptr::null_mut());
    }
    if for_node && !host::is_judged(skb, s, config) {
        return s.act(PASS);
    }
    track::track(skb, s, Hook::FromDevice, config)
}

/// Whether a packet out of the tunnel is for the node itself; if so, the stack must see it so.
#[inline(always)]
fn addressed_to_node(skb: Skb, s: &Scratch, config: &weft_abi::NodeConfig) -> bool {
    let own = s.packet.destination == config.node_v4 || s.packet.destination == config.node_v6;
    if own {
        // SAFETY: no pointers but the context; 0 is PACKET_HOST.
        unsafe { bpf_skb_change_type(skb, 0) };
    }
    own
}

/// See the table above.
#[classifier]
pub fn weft_to_tunnel(ctx: TcContext) -> i32 {
    run(ctx.skb.skb, Hook::ToPod, to_tunnel)
}

#[inline(always)]
fn to_tunnel(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let ethertype = packet::load_head(skb, s)?;
    if !matches!(ethertype, 0x0800 | 0x86dd) {
        return notify::silently(s, DropReason::UnsupportedL3);
    }
    packet::parse(skb, s, ethertype)?;
    if is_multicast(&s.packet.destination) || neighbour::is_discovery(s) {
        return notify::silently(s, DropReason::Unroutable);
    }
    let Some(config) = track::config() else { return Err(DropReason::NoConfig) };
    // SAFETY: copied at once.
    let known = unsafe { maps::IPCACHE.get(&s.packet.destination) }.map(|info| info.node);
    let peer = match known {
        Some(node) => node,
        None => maps::ROUTES.get(&Key::new(128, s.packet.destination)).map_or(Addr::NONE, |info| info.node),
    };
    if peer.is_none() || peer.is_v4() != config.tunnel_source.is_v4() {
        return Err(DropReason::NoTunnelEndpoint);
    }
    // SAFETY: all zero is a valid key.
    let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
    key.tunnel_id = decide::endpoint(&s.packet.source).map_or(identity::REMOTE_NODE, |info| info.identity);
    key.tunnel_ttl = 64;
    let mut flags = BPF_F_ZERO_CSUM_TX as u64;
    if peer.is_v4() {
        key.__bindgen_anon_1.remote_ipv4 = u32::from_be(peer.0[3]);
    } else {
        key.__bindgen_anon_1.remote_ipv6 = peer.0;
        flags |= 1;
    }
    // SAFETY: the key lives for the call.
    if unsafe { bpf_skb_set_tunnel_key(skb, &raw mut key, size_of::<bpf_tunnel_key>() as u32, flags) } != 0 {
        return Err(DropReason::NoTunnelKey);
    }
    if host::is_subject(config) && decide::endpoint(&s.packet.source).is_none() {
        return host::send(skb, s, config);
    }
    s.act(PASS)
}

/// See the table above.
#[classifier]
pub fn weft_collect(ctx: TcContext) -> i32 {
    // SAFETY: the context is valid for the length of the program.
    collect::collect(unsafe { core::ptr::read_volatile(&raw const (*ctx.skb.skb).mark) })
}

/// fe80::/10: never forwarded (RFC 4291 2.5.6).
#[inline(always)]
fn is_link_local(address: &Addr) -> bool {
    let bytes = address.0[0].to_ne_bytes();
    bytes[0] == 0xfe && bytes[1] & 0xc0 == 0x80
}

/// 224.0.0.0/4, 255.255.255.255, ff00::/8.
#[inline(always)]
fn is_multicast(address: &Addr) -> bool {
    if address.is_v4() { address.0[3].to_ne_bytes()[0] >= 224 } else { address.0[0].to_ne_bytes()[0] == 0xff }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";
