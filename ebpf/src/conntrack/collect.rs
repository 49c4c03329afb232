//! The collector of expired connections.
//!
//! It claims an entry by exchanging `last_seen_s`, as it read it, for a mark, and only then deletes it. A packet that
//! refreshed the entry in between makes the exchange fail; a packet that comes later finds the mark, and never replaces
//! a marked entry. So no entry is deleted that was refreshed.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_for_each_map_elem, bpf_map_delete_elem};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use weft_abi::{Addr, FlowEntry, FlowKey, NodeConfig, flow_flags, flow_kind};

use crate::conntrack::entry::{compare_exchange, is_closing, now_s};
use crate::maps::{FLOWS, config};
use crate::packet::{SCTP, TCP};

#[classifier]
pub fn weft_collect(ctx: TcContext) -> i32 {
    // SAFETY: the context is valid for the length of the program.
    collect(unsafe { core::ptr::read_volatile(&raw const (*ctx.skb.skb).mark) })
}

#[repr(C)]
struct Pass {
    config: NodeConfig,
    now: u32,
    left: u32,
}

/// Walks all entries; returns how many are left. Under pressure all timeouts are halved `pressure` times.
#[inline(always)]
pub fn collect(pressure: u32) -> i32 {
    let Some(config) = config() else { return 0 };
    let mut pass = Pass { config: *config, now: now_s(), left: 0 };
    let pressure = pressure & 15;
    pass.config.tcp_established_s >>= pressure;
    pass.config.tcp_syn_s >>= pressure;
    pass.config.tcp_close_s >>= pressure;
    pass.config.other_s >>= pressure;
    // SAFETY: the map's address, a callback of the right shape, and its argument, which outlives the call.
    unsafe {
        bpf_for_each_map_elem(
            (&raw const FLOWS).cast_mut().cast(),
            visit_entry as *mut c_void,
            (&raw mut pass).cast(),
            0,
        );
    }
    pass.left as i32
}

unsafe extern "C" fn visit_entry(map: *mut c_void, key: *mut c_void, value: *mut c_void, pass: *mut c_void) -> i64 {
    // SAFETY: the kernel gives a key and a value of FLOWS and the argument of the walk.
    let (flow, entry, pass) =
        unsafe { (&*key.cast::<FlowKey>(), &mut *value.cast::<FlowEntry>(), &mut *pass.cast::<Pass>()) };
    let last = entry.last_seen_s;
    let idle = pass.now.wrapping_sub(last);
    // An entry refreshed by another CPU a moment ago may be from the "future" second.
    if last == FlowEntry::DELETING || idle > u32::MAX / 2 {
        pass.left += 1;
        return 0;
    }
    let timeout = if flow.kind == flow_kind::NAT || entry.flags & flow_flags::SERVICE != 0 {
        // Lives as long as its connection; a new one gets a moment to be found.
        if connection_lives(flow, entry) { u32::MAX } else { 2 }
    } else if flow.protocol == TCP || flow.protocol == SCTP && entry.flags & flow_flags::SEEN_REPLY != 0 {
        if is_closing(entry.flags) {
            pass.config.tcp_close_s
        } else if entry.flags & flow_flags::SEEN_REPLY != 0 && entry.flags & flow_flags::SEEN_FORWARD != 0 {
            pass.config.tcp_established_s
        } else {
            pass.config.tcp_syn_s
        }
    } else {
        pass.config.other_s
    };
    if idle > timeout {
        // SAFETY: a field of the map value.
        if unsafe { compare_exchange(&raw mut entry.last_seen_s, last, FlowEntry::DELETING) } == last {
            // SAFETY: the walk's own map and key; removing the visited element is allowed.
            unsafe { bpf_map_delete_elem(map, key) };
            return 0;
        }
    }
    pass.left += 1;
    0
}

/// Whether the connection whose outside tuple this is still has an entry. One end of the key is the outside address, or the
/// frontend's; with the inside one, or the backend's, in its place it is the connection's key, up to order.
#[inline(always)]
fn connection_lives(flow: &FlowKey, entry: &FlowEntry) -> bool {
    if entry.flags & flow_flags::SERVICE != 0 {
        return has_connection(flow, entry, entry.flags & flow_flags::ORIGIN_LOW == 0);
    }
    has_connection(flow, entry, true) || has_connection(flow, entry, false)
}

#[inline(never)]
fn has_connection(flow: &FlowKey, entry: &FlowEntry, outside_is_low: bool) -> bool {
    let icmp = matches!(flow.protocol, 1 | 58);
    let (peer, peer_port) = if outside_is_low { (flow.high, flow.high_port_be) } else { (flow.low, flow.low_port_be) };
    let peer_port = if icmp { entry.nat_port_be } else { peer_port };
    let hairpin = entry.flags & flow_flags::HAIRPIN != 0;
    let mut key = FlowKey {
        low: entry.nat_addr,
        high: if hairpin { Addr::hairpin(peer.is_v4()) } else { peer },
        low_port_be: entry.nat_port_be,
        high_port_be: peer_port,
        protocol: flow.protocol,
        kind: flow_kind::FLOW,
        pad: 0,
    };
    if is_live(&key) {
        return true;
    }
    core::mem::swap(&mut key.low, &mut key.high);
    core::mem::swap(&mut key.low_port_be, &mut key.high_port_be);
    is_live(&key)
}

#[inline(always)]
fn is_live(key: &FlowKey) -> bool {
    // SAFETY: read at once.
    unsafe { FLOWS.get(key) }.is_some_and(|entry| entry.last_seen_s != FlowEntry::DELETING)
}
