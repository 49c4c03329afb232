//! The programs of the VXLAN device.

use aya_ebpf::bindings::{BPF_F_ZERO_CSUM_TX, bpf_tunnel_key};
use aya_ebpf::helpers::generated::{bpf_skb_get_tunnel_key, bpf_skb_set_tunnel_key, bpf_skb_store_bytes};
use aya_ebpf::macros::classifier;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::TcContext;
use weft_abi::{Addr, DropReason, identity, ipcache_flags};

use crate::endpoint::lookup::{endpoint, has_host_policy, identity_of};
use crate::endpoint::neighbour;
use crate::forward::send::send_new;
use crate::forward::vxlan::parse_inner;
use crate::hook::{Hook, PASS};
use crate::icmp::error::is_related;
use crate::lb::dsr::receive_option;
use crate::lb::translate::translate_ingress;
use crate::maps::{IPCACHE, ROUTES, config};
use crate::nat::masquerade::unmasquerade;
use crate::notify;
use crate::packet::{DSR_OPTION, ICMP_ERROR, Skb, UNMASQUERADED, is_multicast};
use crate::parse::frame::load_head;
use crate::parse::ip::parse;
use crate::pipeline::host::track_host;
use crate::pipeline::track::{track, track_translated};
use crate::policy::host::needs_verdict;
use crate::programs::device::addressed_to_node;
use crate::programs::run::run;
use crate::scratch::{Scratch, translated};

#[classifier]
pub fn weft_from_tunnel(ctx: TcContext) -> i32 {
    run(ctx.skb.skb, Hook::FromDevice, from_tunnel)
}

/// Reads the sender's identity from the tunnel key into `s.output`. Not inlined: it needs stack of its own.
#[inline(never)]
fn tunnel_sender(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let Some(config) = config() else { return Err(DropReason::NoConfig) };
    let v4 = config.tunnel_source.is_v4();
    // SAFETY: all zero is a valid key; the helper fills the given length.
    let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
    let flags = if v4 { 0 } else { 1 };
    // SAFETY: as above.
    if unsafe { bpf_skb_get_tunnel_key(skb, &raw mut key, size_of::<bpf_tunnel_key>() as u32, flags) } != 0 {
        return Err(DropReason::NoTunnelKey);
    }
    // SAFETY: the member of the tunnel's family.
    let remote = unsafe {
        if v4 {
            // The helper gives host order.
            Addr::v4(key.__bindgen_anon_1.remote_ipv4.to_be())
        } else {
            Addr(key.__bindgen_anon_1.remote_ipv6)
        }
    };
    if identity_of(&remote, config).1 & (ipcache_flags::NODE | ipcache_flags::LOCAL) != ipcache_flags::NODE {
        return Err(DropReason::UnknownSender);
    }
    s.tunnel_peer = remote;
    s.output = key.tunnel_id;
    Ok(())
}

#[inline(always)]
fn from_tunnel(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let Some(config) = config() else { return Err(DropReason::NoConfig) };
    tunnel_sender(skb, s)?;
    let sender = s.output;
    parse_inner(skb, s, sender)?;
    let mut for_node = addressed_to_node(skb, s, config);
    if for_node && s.packet.flags & ICMP_ERROR == 0 {
        unmasquerade(skb, s)?;
        for_node = s.packet.flags & UNMASQUERADED == 0;
        if for_node {
            translate_ingress(skb, s)?;
        }
    }
    if s.packet.flags & DSR_OPTION != 0 {
        receive_option(skb, s)?;
    }
    if s.packet.flags & ICMP_ERROR != 0 && is_related(skb, s, Hook::FromDevice)? {
        return send_new(skb, s);
    }
    if s.translated & (translated::FORWARD | translated::REPLY) != 0 {
        return track_translated(skb, s, Hook::FromDevice, core::ptr::null_mut());
    }
    if for_node && !needs_verdict(skb, s, config) {
        return s.act(PASS);
    }
    track(skb, s, Hook::FromDevice, config)
}

#[classifier]
pub fn weft_to_tunnel(ctx: TcContext) -> i32 {
    run(ctx.skb.skb, Hook::ToPod, to_tunnel)
}

#[inline(always)]
fn to_tunnel(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let ethertype = load_head(skb, s)?;
    if !matches!(ethertype, 0x0800 | 0x86dd) {
        return notify::drop_silently(s, DropReason::UnsupportedL3);
    }
    parse(skb, s, ethertype)?;
    if is_multicast(&s.packet.destination) || neighbour::is_link_control(s) {
        return notify::drop_silently(s, DropReason::Unroutable);
    }
    let Some(config) = config() else { return Err(DropReason::NoConfig) };
    // SAFETY: copied at once.
    let known = unsafe { IPCACHE.get(&s.packet.destination) }.map(|info| info.node);
    let remote = match known {
        Some(node) => node,
        None => ROUTES.get(&Key::new(128, s.packet.destination)).map_or(Addr::NONE, |info| info.node),
    };
    if remote.is_none() || remote.is_v4() != config.tunnel_source.is_v4() {
        return Err(DropReason::NoTunnelEndpoint);
    }
    // SAFETY: all zero is a valid key.
    let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
    key.tunnel_id = endpoint(&s.packet.source).map_or(identity::REMOTE_NODE, |info| info.identity);
    key.tunnel_ttl = 64;
    let mut flags = BPF_F_ZERO_CSUM_TX as u64;
    if remote.is_v4() {
        key.__bindgen_anon_1.remote_ipv4 = u32::from_be(remote.0[3]);
    } else {
        key.__bindgen_anon_1.remote_ipv6 = remote.0;
        flags |= 1;
    }
    // All tunnel devices have one MAC, and a device takes frames with its own as the source for a loop.
    const SOURCE: [u8; 6] = [2, 0, 0, 0, 0, 1];
    // SAFETY: six bytes of a constant.
    if unsafe { bpf_skb_store_bytes(skb, 6, SOURCE.as_ptr().cast(), 6, 0) } != 0 {
        return Err(DropReason::WriteError);
    }
    // SAFETY: the key lives for the call.
    if unsafe { bpf_skb_set_tunnel_key(skb, &raw mut key, size_of::<bpf_tunnel_key>() as u32, flags) } != 0 {
        return Err(DropReason::NoTunnelKey);
    }
    if has_host_policy(config) && endpoint(&s.packet.source).is_none() {
        return track_host(skb, s, config);
    }
    s.act(PASS)
}
