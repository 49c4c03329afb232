//! The node itself as a subject of policies. Its traffic is judged and tracked while [`config_flags::HOST_POLICY`] is
//! set, and else passes.
//!
//! Judged is what comes to the node by its device or from its pods, and what it sends by its device or to pods of other
//! nodes. What it sends to its own pods always passes, and so do, so that no policy locks out its author or breaks the
//! network under it: the loopback device, ARP, neighbour discovery and multicast listeners, multicast and broadcast,
//! DHCP, the tunnel between nodes, and what belongs to masqueraded connections of pods or to services.
//!
//! A connection that was there before the policy is judged by the first packet that comes, as if the sender of that
//! packet had opened it.

use weft_abi::{NodeConfig, flow_flags, flow_kind};

use crate::conntrack::key::canonical_key;
use crate::endpoint::lookup::{endpoint, has_host_policy, is_node_address, is_other_node};
use crate::endpoint::neighbour;
use crate::icmp::error::quotes_tracked;
use crate::maps::{FLOWS, config};
use crate::mark::has_socket;
use crate::packet::{ICMP_ERROR, Skb, UDP, UNKNOWN_PORTS, is_multicast};
use crate::scratch::Scratch;

/// Whether a packet to the node must be judged.
#[inline(always)]
pub fn needs_verdict(skb: Skb, s: &mut Scratch, config: &NodeConfig) -> bool {
    has_host_policy(config) && !is_exempt_ingress(skb, s)
}

#[inline(never)]
fn is_exempt_ingress(skb: Skb, s: &mut Scratch) -> bool {
    let Some(config) = config() else { return false };
    if neighbour::is_link_control(s) || is_dhcp(s, true) {
        return true;
    }
    if s.packet.flags & UNKNOWN_PORTS != 0 && s.packet.protocol == UDP && config.tunnel_ifindex != 0 {
        // It may belong to a tunnel packet, which the VXLAN device sees again once it is reassembled.
        return is_other_node(&s.packet.source);
    }
    s.packet.flags & ICMP_ERROR != 0 && quotes_tracked(skb, s)
}

#[inline(never)]
pub fn is_exempt_egress(skb: Skb, s: &mut Scratch) -> bool {
    let Some(config) = config() else { return false };
    if is_multicast(&s.packet.destination) || neighbour::is_link_control(s) || is_dhcp(s, false) {
        return true;
    }
    if !(is_node_address(&s.packet.source, config) || endpoint(&s.packet.source).is_none() && has_socket(skb)) {
        // A pod's packet, which was judged before, or one that the node forwards.
        return true;
    }
    if s.packet.protocol == UDP
        && s.packet.destination_port == config.tunnel_port_be
        && config.tunnel_ifindex != 0
        && is_other_node(&s.packet.destination)
    {
        return true;
    }
    if s.packet.flags & ICMP_ERROR != 0 {
        return quotes_tracked(skb, s);
    }
    canonical_key(&s.packet, flow_kind::NAT, &mut s.nat_key);
    // SAFETY: nothing is read.
    if unsafe { FLOWS.get(&s.nat_key) }.is_some() {
        return true;
    }
    // A pod's reply from a frontend's address.
    canonical_key(&s.packet, flow_kind::FLOW, &mut s.nat_key);
    // SAFETY: read at once.
    unsafe { FLOWS.get(&s.nat_key) }.is_some_and(|entry| entry.flags & flow_flags::SERVICE != 0)
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
