//! The node itself as a client and as a backend of services, packet by packet: at the egress of its device, where its
//! stack has already chosen the way to the frontend.
//!
//! | from | to | the way |
//! |---|---|---|
//! | a process of the node | a pod of the node | out by the pod's link; answers come to the stack as from the frontend |
//! | | a backend elsewhere | by the device or the tunnel; answers come back to `weft_from_device` |
//! | | another process of the node | in by the device again, from the address by which a pod speaks to itself |
//! | a process of the node that a client outside was led to | that client | as it goes, from the frontend's address |
//!
//! What is sent back into the stack or on to a pod's link is decided already. A mark says so to the program that it
//! passes there; nobody else can set it, since marks are taken off where a packet leaves a network namespace.

use aya_ebpf::bindings::BPF_F_INGRESS;
use aya_ebpf::helpers::generated::{bpf_redirect, bpf_skb_change_type, bpf_skb_store_bytes};
use weft_abi::{DropReason, Path, flow_flags, flow_kind};

use crate::decide::endpoint;
use crate::maps::FLOWS;
use crate::packet::{SCTP, Scratch, Skb, TCP, UDP, UNKNOWN_PORTS, translated};
use crate::track::{canonical, config};
use crate::{Hook, PASS, host, service, step};

/// The mark of a packet that was decided by another program of this node.
const DECIDED: u32 = 0x5746_0300;

/// Whether another program has decided the packet, which is then as if it never had the mark.
#[inline(always)]
pub fn is_decided(skb: Skb) -> bool {
    // SAFETY: the context is valid for the length of the program.
    unsafe {
        let mark = &raw mut (*skb).mark;
        if core::ptr::read_volatile(mark) != DECIDED {
            return false;
        }
        core::ptr::write_volatile(mark, 0);
    }
    true
}

/// The same of a packet that comes in by the device: it was addressed to somebody else when it left.
#[inline(always)]
pub fn comes_back(skb: Skb) -> bool {
    // SAFETY: no pointers but the context; 0 is PACKET_HOST.
    is_decided(skb) && unsafe { bpf_skb_change_type(skb, 0) } == 0
}

#[inline(always)]
fn mark(skb: Skb) {
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(&raw mut (*skb).mark, DECIDED) };
}

/// Whether the node's own stack made the packet: it came in by no device.
#[inline(always)]
pub fn is_made_here(skb: Skb) -> bool {
    // SAFETY: as above.
    (unsafe { core::ptr::read_volatile(&raw const (*skb).ingress_ifindex) }) == 0
}

/// Translates what the node sends to a service, and finds out whether it answers a client as a backend: then
/// `s.translated` is not 0, and its connection is to be followed.
#[inline(always)]
pub fn leave(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let Some(config) = config() else { return Err(DropReason::NoConfig) };
    if !matches!(s.packet.protocol, TCP | UDP | SCTP)
        || s.packet.protocol == UDP && s.packet.destination_port == config.tunnel_port_be && config.tunnel_ifindex != 0
    {
        return Ok(());
    }
    if s.packet.flags & UNKNOWN_PORTS != 0 {
        return if service::is_for_frontend(s) { Err(DropReason::FragmentNotFound) } else { Ok(()) };
    }
    s.low = u8::from(canonical(&s.packet, flow_kind::FLOW, &mut s.key));
    let existing = FLOWS.get_ptr_mut(&s.key).unwrap_or(core::ptr::null_mut());
    if answers(s, existing) {
        return Ok(());
    }
    step::translate(skb, s, Hook::ToDevice, existing)?;
    if s.translated != 0
        && let Some(info) = endpoint(&s.packet.destination)
    {
        // Decided as on the pod's link.
        s.packet.ifindex = info.ifindex;
    }
    Ok(())
}

/// Whether the packet answers a client of a service; noted in `s.translated`.
#[inline(always)]
pub fn answers(s: &mut Scratch, existing: *mut weft_abi::FlowEntry) -> bool {
    if existing.is_null() {
        return false;
    }
    // SAFETY: not null: a value of FLOWS, readable for the length of the program.
    let (flags, last) = unsafe { ((*existing).flags, (*existing).last_seen_s) };
    let forward = (flags & flow_flags::ORIGIN_LOW != 0) == (s.low == 1);
    if flags & flow_flags::TRANSLATED == 0 || forward || last == weft_abi::FlowEntry::DELETING {
        return false;
    }
    s.translated = translated::REPLY;
    true
}

/// The hook by whose rules the packet's connection is decided.
#[inline(always)]
pub fn hook(s: &Scratch) -> Hook {
    if endpoint(&s.packet.destination).is_some() { Hook::ToPod } else { Hook::ToDevice }
}

/// Sends the decided packet where the stack would not: to a pod's link, or back into the node.
#[inline(always)]
pub fn depart(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
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
        } else if host::is_own(&s.packet.destination, config) {
            inwards(s, config.device_ifindex);
        } else {
            // An answer, which leaves as it would have left.
            return Ok(());
        }
    }
    mark(skb);
    Ok(())
}

/// Lets the packet come in by the device.
#[inline(always)]
fn inwards(s: &mut Scratch, device: u32) {
    // SAFETY: no pointers.
    s.action = unsafe { bpf_redirect(device, u64::from(BPF_F_INGRESS)) } as i32;
}

/// Sends an answer that was put in the packet's place to the node's process that sent it.
#[inline(always)]
pub fn back(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let device = s.packet.ifindex;
    inwards(s, device);
    mark(skb);
    Ok(())
}

/// Decides a connection of the node to itself by a service: no policy is asked, and both directions stay in the node.
#[inline(always)]
pub fn hairpin(s: &mut Scratch, own: &weft_abi::Addr) -> Result<(), DropReason> {
    let Some(config) = config() else { return Err(DropReason::NoConfig) };
    if !host::is_own(own, config) {
        return Err(DropReason::InvalidSourceIp);
    }
    (s.source_identity, s.destination_identity) = (weft_abi::identity::HOST, weft_abi::identity::HOST);
    (s.entry.source_identity, s.entry.destination_identity) = (s.source_identity, s.destination_identity);
    (s.source_endpoint, s.destination_endpoint) = (0, 0);
    (s.entry.source_endpoint, s.entry.destination_endpoint) = (0, 0);
    s.path = crate::decide::STACK;
    s.next_hop = weft_abi::Addr::NONE;
    Ok(())
}
