//! The first packet of a connection, and the first one after a change: identifies both ends, evaluates their policies and
//! looks up the route. The result is stored in the connection's entry.

use weft_abi::{DropReason, ENDPOINT_ID_HOST, FlowEntry, NodeConfig, flow_flags, identity, path_action};

use crate::conntrack::entry::{is_closing, is_current, next_flags, now_s, record, set_flags};
use crate::endpoint::lookup::is_node_address;
use crate::forward::route::route;
use crate::hook::Hook;
use crate::lb::choice::mark_entry;
use crate::lb::frontend::is_for_frontend;
use crate::lb::hairpin::decide_hairpin;
use crate::maps::{FLOWS, config};
use crate::nat::masquerade::reserve_port;
use crate::packet::{Skb, TCP, TCP_ACK, TCP_SYN, UDP, UNMASQUERADED};
use crate::policy::enforce::authorize;
use crate::scratch::{Scratch, clear, translated};
use crate::step::step;

step!(decide(hook: Hook, existing: *mut FlowEntry) = weft_step_decide: decide_body);

/// Decides the connection that the packet belongs to and leaves the way of this packet in `s.path`.
#[inline(always)]
fn decide_body(skb: Skb, s: &mut Scratch, hook: Hook, existing: *mut FlowEntry) -> Result<(), DropReason> {
    let Some(config) = config() else { return Err(DropReason::NoConfig) };
    let low = s.low;
    let mut forward = true;
    let mut reopened = false;
    let now = now_s();
    clear(&mut s.entry);
    s.entry.last_seen_s = now;
    s.entry.revision = config.revision;
    s.entry.reported_s = now;
    if existing.is_null() {
        if s.packet.flags & UNMASQUERADED != 0 {
            return Err(DropReason::NoNatMapping);
        }
        s.entry.flags = if low == 1 { flow_flags::ORIGIN_LOW } else { 0 };
    } else {
        // SAFETY: not null: a value of FLOWS, readable for the length of the program.
        let old = unsafe { &mut *existing };
        reopened =
            s.packet.protocol == TCP && s.packet.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN && is_closing(old.flags);
        if reopened {
            s.entry.flags = if low == 1 { flow_flags::ORIGIN_LOW } else { 0 };
        } else {
            s.known = u8::from(is_current(old));
            s.entry.flags = old.flags;
            s.entry.source_identity = old.source_identity;
            s.entry.destination_identity = old.destination_identity;
            forward = (old.flags & flow_flags::ORIGIN_LOW != 0) == (low == 1);
            // The masquerade of a connection outlives every change of policy, and so does its service.
            s.entry.nat_addr = old.nat_addr;
            s.entry.nat_port_be = old.nat_port_be;
            s.entry.frontend = old.frontend;
            s.entry.frontend_port_be = old.frontend_port_be;
        }
    }
    s.reply = u8::from(!forward);
    mark_entry(s, hook, forward, existing)?;
    let verdict = if s.entry.flags & flow_flags::HAIRPIN != 0 {
        decide_hairpin(s, hook, forward)
    } else {
        authorize(skb, s, hook, forward).and_then(|()| route(skb, s, hook, forward))
    };
    if let Err(reason) = verdict {
        if !existing.is_null() {
            // SAFETY: as above. Nothing passes any more without being judged; the entry ages out.
            unsafe { (*existing).revision = 0 };
        }
        return Err(reason);
    }
    let outside = matches!(hook, Hook::FromDevice) && s.translated & translated::FORWARD != 0;
    if outside && s.path.action == path_action::STACK && !is_node_address(&s.packet.destination, config) {
        return Err(DropReason::Unroutable);
    }
    if (matches!(hook, Hook::FromPod) || outside) && leads_to_tunnel_port(s, config) {
        if !existing.is_null() {
            // SAFETY: as above.
            unsafe { (*existing).revision = 0 };
        }
        return Err(DropReason::EncapsulationProhibited);
    }
    let served = s.entry.flags & flow_flags::TRANSLATED != 0;
    if matches!(hook, Hook::FromDevice) && s.path.action == path_action::STACK && s.host == 0 && !served {
        // Routed through this node, not to one of its pods: not tracked.
        return Ok(());
    }
    s.entry.flags = next_flags(&s.packet, s.entry.flags, forward);
    s.path.in_ifindex = s.packet.ifindex;
    // Only pods and clients outside are masqueraded; for the other programs the verifier need not walk this.
    if matches!(hook, Hook::FromPod) && s.path.action == path_action::MASQUERADE
        || outside
            && s.entry.flags & flow_flags::DSR_FRONTEND == 0
            && matches!(s.path.action, path_action::MASQUERADE | path_action::TUNNEL)
    {
        reserve_port(skb, s)?;
    }
    if s.path.action == path_action::TUNNEL {
        s.entry.nat_addr = s.next_hop;
    }
    if forward {
        s.entry.forward = s.path;
    } else {
        s.entry.reply = s.path;
    }
    if existing.is_null() {
        return insert_entry(s, forward);
    }
    // SAFETY: as above.
    let old = unsafe { &mut *existing };
    update_entry(s, old, forward, reopened)
}

/// Whether the packet, whatever it was translated to, is for the tunnel port of something that is no pod. With a tunnel every
/// such address may be one of a node: other nodes believe what comes to that port from here.
#[inline(always)]
fn leads_to_tunnel_port(s: &Scratch, config: &NodeConfig) -> bool {
    s.packet.protocol == UDP
        && s.packet.destination_port == config.tunnel_port_be
        && config.tunnel_ifindex != 0
        && !is_to_pod(s)
}

/// Whether the packet's way ends at a pod, here or by the tunnel.
#[inline(always)]
fn is_to_pod(s: &Scratch) -> bool {
    s.path.action == path_action::POD
        || s.path.action == path_action::TUNNEL && s.destination_identity != identity::REMOTE_NODE
}

#[inline(always)]
fn insert_entry(s: &mut Scratch, forward: bool) -> Result<(), DropReason> {
    if forward {
        s.entry.forward_packets = 1;
        s.entry.forward_bytes = u64::from(s.packet.length);
    } else {
        s.entry.reply_packets = 1;
        s.entry.reply_bytes = u64::from(s.packet.length);
    }
    // Only if absent: an entry that the collector has claimed must not be replaced under its hands.
    const NOEXIST: u64 = 1;
    const EEXIST: i32 = -17;
    match FLOWS.insert(&s.key, &s.entry, NOEXIST) {
        Ok(()) => Ok(()),
        // Another CPU was faster, or the collector is about to remove an expired one: this packet was judged and
        // passes; the next one finds the entry or makes it.
        // But without the entry a backend's replies would not be translated.
        Err(error) if error as i32 == EEXIST && s.translated == 0 => Ok(()),
        // The node must stay reachable when its pods have filled the table; replies are then judged as well.
        Err(_) if is_node_alone(&s.entry) => Ok(()),
        Err(_) => Err(DropReason::CtInsertFailed),
    }
}

/// The node itself is one end of the connection, and no pod of its is the other.
#[inline(always)]
fn is_node_alone(entry: &FlowEntry) -> bool {
    matches!((entry.source_endpoint, entry.destination_endpoint), (ENDPOINT_ID_HOST, 0) | (0, ENDPOINT_ID_HOST))
}

#[inline(always)]
fn update_entry(s: &Scratch, old: &mut FlowEntry, forward: bool, reopened: bool) -> Result<(), DropReason> {
    // A reopened connection keeps nothing of the one before, neither of the two paths.
    let stale = reopened || !is_current(old);
    old.source_endpoint = s.entry.source_endpoint;
    old.destination_endpoint = s.entry.destination_endpoint;
    old.source_identity = s.entry.source_identity;
    old.destination_identity = s.entry.destination_identity;
    old.egress_rule = s.entry.egress_rule;
    old.ingress_rule = s.entry.ingress_rule;
    old.nat_addr = s.entry.nat_addr;
    old.nat_port_be = s.entry.nat_port_be;
    old.frontend = s.entry.frontend;
    old.frontend_port_be = s.entry.frontend_port_be;
    // Flags that the other direction's packets set meanwhile stay.
    const TRACKED: u16 = flow_flags::SEEN_FORWARD
        | flow_flags::SEEN_REPLY
        | flow_flags::FIN_FORWARD
        | flow_flags::FIN_REPLY
        | flow_flags::RST;
    let (found, kept) = (old.flags, if reopened { 0 } else { old.flags & TRACKED });
    set_flags(old, found, s.entry.flags | kept);
    if stale {
        // The other direction finds its way anew.
        if forward {
            old.reply.action = path_action::NONE;
        } else {
            old.forward.action = path_action::NONE;
        }
    }
    if forward {
        old.forward = s.entry.forward;
    } else {
        old.reply = s.entry.reply;
    }
    old.revision = s.entry.revision;
    record(s, old, forward);
    Ok(())
}

step!(untracked(hook: Hook) = weft_step_untracked: untracked_body);

/// A fragment whose ports are not known yet: judged by its addresses, not tracked. To a frontend it is dropped, since the
/// backend depends on the ports.
#[inline(always)]
fn untracked_body(skb: Skb, s: &mut Scratch, hook: Hook) -> Result<(), DropReason> {
    if is_for_frontend(s) {
        return Err(DropReason::FragmentNotFound);
    }
    clear(&mut s.entry);
    authorize(skb, s, hook, true)?;
    route(skb, s, hook, true)?;
    if s.path.action == path_action::MASQUERADE {
        return Err(DropReason::FragmentNotFound);
    }
    Ok(())
}
