//! The node itself as a subject of policies. Its traffic is judged and tracked while [`config_flags::HOST_POLICY`] is
//! set, and else not looked at.
//!
//! Judged is what comes to the node by its device or from its pods, and what it sends by its device or to pods of other
//! nodes. What it sends to its own pods always passes, and so do, lest a policy locks out its own author or breaks the
//! network under it: the loopback device, ARP, neighbour discovery and multicast listeners, multicast and broadcast,
//! DHCP, the tunnel between nodes, and what belongs to masqueraded connections of pods or to services.
//!
//! A connection that was there before the policy is judged by the first packet that comes, as if the sender of that
//! packet had opened it.

use weft_abi::{Addr, DropReason, NodeConfig, config_flags, flow_flags, flow_kind, ipcache_flags};

use crate::decide::{endpoint, has_socket};
use crate::maps::{FLOWS, IPCACHE};
use crate::packet::{ICMP_ERROR, Scratch, Skb, UDP, UNKNOWN_PORTS};
use crate::track::{self, canonical};
use crate::{Hook, PASS, icmp, is_multicast, neighbour, notify};

/// Whether policies are asked about the node's own traffic.
#[inline(always)]
pub fn is_subject(config: &NodeConfig) -> bool {
    config.flags & config_flags::HOST_POLICY != 0
}

/// Whether this is an address of the node's own that the programs were told of.
#[inline(always)]
pub fn is_own(address: &Addr, config: &NodeConfig) -> bool {
    *address == config.node_v4 || *address == config.node_v6 || {
        const OWN: u32 = ipcache_flags::NODE | ipcache_flags::LOCAL;
        // SAFETY: read at once.
        unsafe { IPCACHE.get(address) }.is_some_and(|info| info.flags & OWN == OWN)
    }
}

/// Whether a packet to the node must be judged.
#[inline(always)]
pub fn is_judged(skb: Skb, s: &mut Scratch, config: &NodeConfig) -> bool {
    is_subject(config) && !always_in(skb, s)
}

#[inline(never)]
fn always_in(skb: Skb, s: &mut Scratch) -> bool {
    let Some(config) = track::config() else { return false };
    if neighbour::is_discovery(s) || is_dhcp(s, true) {
        return true;
    }
    if s.packet.flags & UNKNOWN_PORTS != 0 && s.packet.protocol == UDP && config.tunnel_ifindex != 0 {
        // Perhaps of a packet of the tunnel, the device of which looks at it again when it is whole.
        return is_node(&s.packet.source);
    }
    s.packet.flags & ICMP_ERROR != 0 && icmp::is_about_tracked(skb, s)
}

/// Judges a packet that leaves by the node's device, if the node made it.
#[inline(always)]
pub fn outbound(skb: Skb, s: &mut Scratch, config: &NodeConfig) -> Result<(), DropReason> {
    if always_out(skb, s) { s.act(PASS) } else { send(skb, s, config) }
}

#[inline(never)]
fn always_out(skb: Skb, s: &mut Scratch) -> bool {
    let Some(config) = track::config() else { return false };
    if is_multicast(&s.packet.destination) || neighbour::is_discovery(s) || is_dhcp(s, false) {
        return true;
    }
    if !(is_own(&s.packet.source, config) || endpoint(&s.packet.source).is_none() && has_socket(skb)) {
        // A pod's, which was judged before, or somebody else's.
        return true;
    }
    if s.packet.protocol == UDP
        && s.packet.destination_port == config.tunnel_port_be
        && config.tunnel_ifindex != 0
        && is_node(&s.packet.destination)
    {
        return true;
    }
    if s.packet.flags & ICMP_ERROR != 0 {
        return icmp::is_about_tracked(skb, s);
    }
    canonical(&s.packet, flow_kind::NAT, &mut s.nat_key);
    // SAFETY: nothing is read.
    if unsafe { FLOWS.get(&s.nat_key) }.is_some() {
        return true;
    }
    // A pod's answer in the name of a service.
    canonical(&s.packet, flow_kind::FLOW, &mut s.nat_key);
    // SAFETY: read at once.
    unsafe { FLOWS.get(&s.nat_key) }.is_some_and(|entry| entry.flags & flow_flags::SERVICE != 0)
}

/// Judges and tracks what the node sends.
#[inline(always)]
pub fn send(skb: Skb, s: &mut Scratch, config: &NodeConfig) -> Result<(), DropReason> {
    track::follow::<false>(skb, s, Hook::ToDevice, config, core::ptr::null_mut(), |s, _| pass(s), pass)
}

#[inline(always)]
fn pass(s: &mut Scratch) -> Result<(), DropReason> {
    notify::forwarded(s);
    s.act(PASS)
}

/// Whether the address is another node's.
#[inline(always)]
fn is_node(address: &Addr) -> bool {
    // SAFETY: read at once.
    unsafe { IPCACHE.get(address) }
        .is_some_and(|info| info.flags & (ipcache_flags::NODE | ipcache_flags::LOCAL) == ipcache_flags::NODE)
}

/// Between a DHCP client on this node and its server (RFC 2131 4.1, RFC 8415 7.2).
#[inline(always)]
fn is_dhcp(s: &Scratch, inwards: bool) -> bool {
    let (client, server): (u16, u16) = if s.packet.version == 4 { (68, 67) } else { (546, 547) };
    let (source, destination) = if inwards { (server, client) } else { (client, server) };
    s.packet.protocol == UDP
        && s.packet.source_port == source.to_be()
        && s.packet.destination_port == destination.to_be()
}
