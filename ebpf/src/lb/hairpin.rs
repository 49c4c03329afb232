//! Hairpin: a client that is its own backend. Its packets get a source address that no host has, so that the replies come
//! back through the programs.

use weft_abi::{Addr, DropReason, HAIRPIN_V4, HAIRPIN_V6, Path, endpoint_flags, identity, path_action};

use crate::endpoint::lookup::{endpoint, is_node_address};
use crate::hook::Hook;
use crate::maps::config;
use crate::scratch::Scratch;

/// Decides a connection of a pod to itself by a service: no policy applies, and both directions lead back into the pod.
#[inline(never)]
pub fn decide_hairpin(s: &mut Scratch, hook: Hook, forward: bool) -> Result<(), DropReason> {
    let pod = if forward { s.packet.destination } else { s.packet.source };
    if matches!(hook, Hook::ToDevice) {
        return decide_node_hairpin(s, &pod);
    }
    let info = match endpoint(&pod) {
        Some(info) if matches!(hook, Hook::FromPod) && info.ifindex == s.packet.ifindex => info,
        _ => return Err(DropReason::InvalidSourceIp),
    };
    if info.flags & endpoint_flags::BLOCKED != 0 {
        return Err(DropReason::EndpointNotReady);
    }
    (s.source_identity, s.destination_identity) = (info.identity, info.identity);
    (s.source_endpoint, s.destination_endpoint) = (info.id, info.id);
    (s.entry.source_identity, s.entry.destination_identity) = (info.identity, info.identity);
    (s.entry.source_endpoint, s.entry.destination_endpoint) = (info.id, info.id);
    s.path = Path {
        action: path_action::POD,
        pad: [0; 3],
        ifindex: info.ifindex,
        in_ifindex: 0,
        target: Path::macs(info.pod_mac, info.host_mac),
    };
    s.next_hop = Addr::NONE;
    Ok(())
}

/// Whether the client is the backend itself.
#[inline(always)]
pub fn is_hairpin(s: &Scratch, backend: &Addr) -> bool {
    s.service.outside == 0 && *backend == s.packet.source
}

#[inline(always)]
pub fn is_hairpin_address(address: &Addr) -> bool {
    *address == HAIRPIN_V4 || *address == HAIRPIN_V6
}

/// Decides a connection of the node to itself by a service: no policy applies, and both directions stay in the node.
#[inline(always)]
pub fn decide_node_hairpin(s: &mut Scratch, own: &Addr) -> Result<(), DropReason> {
    let Some(config) = config() else { return Err(DropReason::NoConfig) };
    if !is_node_address(own, config) {
        return Err(DropReason::InvalidSourceIp);
    }
    (s.source_identity, s.destination_identity) = (identity::HOST, identity::HOST);
    (s.entry.source_identity, s.entry.destination_identity) = (s.source_identity, s.destination_identity);
    (s.source_endpoint, s.destination_endpoint) = (0, 0);
    (s.entry.source_endpoint, s.entry.destination_endpoint) = (0, 0);
    s.path = Path::STACK;
    s.next_hop = Addr::NONE;
    Ok(())
}
