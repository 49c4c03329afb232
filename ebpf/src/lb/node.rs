//! The node itself as a client and as a backend of services, packet by packet: at the egress of its device, where its
//! stack has already chosen the way to the frontend.
//!
//! | from | to | the way |
//! |---|---|---|
//! | a process of the node | a pod of the node | out by the pod's link; replies reach the stack from the frontend's address |
//! | | a backend on another node | by the device or the tunnel; replies come back to `weft_from_device` |
//! | | another process of the node | in by the device again, from the hairpin address |
//! | a process of the node, as a backend | a client outside | unchanged, from the frontend's address |
//!
//! Packets that are sent back into the stack or to a pod's link are decided already. A mark tells the program there
//! ([`crate::mark`]).

use aya_ebpf::helpers::generated::{bpf_redirect, bpf_skb_store_bytes};
use weft_abi::{DropReason, Path, flow_kind};

use crate::conntrack::key::canonical_key;
use crate::endpoint::lookup::{endpoint, is_node_address};
use crate::hook::{Hook, PASS};
use crate::lb::choice::is_service_reply;
use crate::lb::frontend::is_for_frontend;
use crate::lb::translate::translate;
use crate::maps::{FLOWS, config};
use crate::mark::{redirect_ingress, set_mark};
use crate::packet::{SCTP, Skb, TCP, UDP, UNKNOWN_PORTS};
use crate::scratch::Scratch;
use crate::step::step;

step!(translate_egress() = weft_step_translate_egress: translate_egress_body);

/// Translates a packet of the node to a service, and detects a reply of the node as a backend. In both cases `s.translated`
/// is not 0, and the connection is tracked.
#[inline(always)]
fn translate_egress_body(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let Some(config) = config() else { return Err(DropReason::NoConfig) };
    if !matches!(s.packet.protocol, TCP | UDP | SCTP)
        || s.packet.protocol == UDP && s.packet.destination_port == config.tunnel_port_be && config.tunnel_ifindex != 0
    {
        return Ok(());
    }
    if s.packet.flags & UNKNOWN_PORTS != 0 {
        return if is_for_frontend(s) { Err(DropReason::FragmentNotFound) } else { Ok(()) };
    }
    s.low = u8::from(canonical_key(&s.packet, flow_kind::FLOW, &mut s.key));
    let existing = FLOWS.get_ptr_mut(&s.key).unwrap_or(core::ptr::null_mut());
    if is_service_reply(s, existing) {
        return Ok(());
    }
    translate(skb, s, Hook::ToDevice, existing)?;
    if s.translated != 0
        && let Some(info) = endpoint(&s.packet.destination)
    {
        // Decided as on the pod's link.
        s.packet.ifindex = info.ifindex;
    }
    Ok(())
}

/// The hook by whose rules the packet's connection is decided.
#[inline(always)]
pub fn deciding_hook(s: &Scratch) -> Hook {
    if endpoint(&s.packet.destination).is_some() { Hook::ToPod } else { Hook::ToDevice }
}

step!(redirect_translated() = weft_step_redirect_translated: redirect_translated_body);

/// Sends the decided packet where the stack would not: to a pod's link, or back into the node.
#[inline(always)]
fn redirect_translated_body(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let Some(config) = config() else { return Err(DropReason::NoConfig) };
    if s.action == PASS {
        if let Some(info) = endpoint(&s.packet.destination) {
            let macs = Path::macs(info.pod_mac, info.host_mac);
            // SAFETY: 12 bytes of the stack.
            if unsafe { bpf_skb_store_bytes(skb, 0, macs.0.as_ptr().cast(), 12, 0) } != 0 {
                return Err(DropReason::WriteError);
            }
            // SAFETY: no pointers.
            s.action = unsafe { bpf_redirect(info.ifindex, 0) } as i32;
        } else if is_node_address(&s.packet.destination, config) {
            redirect_ingress(s, config.device_ifindex);
        } else {
            // A reply to a client outside leaves as routed.
            return Ok(());
        }
    }
    set_mark(skb);
    Ok(())
}
