//! Which way a packet goes: into a pod, to the stack, out of the device, through the tunnel, masqueraded.

use aya_ebpf::bindings::bpf_fib_lookup as FibLookup;
use aya_ebpf::helpers::generated::bpf_fib_lookup;
use aya_ebpf::maps::lpm_trie::Key;
use weft_abi::{Addr, DropReason, NodeConfig, Path, config_flags, flow_flags, ipcache_flags, path_action, route_flags};

use crate::Hook;
use crate::decide::{STACK, endpoint};
use crate::maps::{IPCACHE, ROUTES};
use crate::packet::{Scratch, Skb, TUNNELLED, UNMASQUERADED};
use crate::step;

/// Leaves the way to the packet's destination in `s.path` (and the outer next hop in `s.next_hop`).
#[inline(always)]
pub fn route(skb: Skb, s: &mut Scratch, hook: Hook, forward: bool) -> Result<(), DropReason> {
    let Some(config) = crate::track::config() else { return Err(DropReason::NoConfig) };
    s.path = STACK;
    s.next_hop = Addr::NONE;
    // The stack chose the way to the frontend; that of what the node sends to a backend is another one.
    let of_node = matches!(hook, Hook::ToDevice) && forward && s.entry.flags & flow_flags::TRANSLATED != 0;
    if matches!(hook, Hook::ToPod | Hook::ToDevice) && !of_node {
        return Ok(());
    }
    if let Some(info) = endpoint(&s.packet.destination) {
        s.path = Path {
            action: path_action::POD,
            pad: [0; 3],
            ifindex: info.ifindex,
            in_ifindex: 0,
            target: Path::macs(info.pod_mac, info.host_mac),
        };
        return Ok(());
    }
    if s.packet.destination == config.node_v4 || s.packet.destination == config.node_v6 {
        return Ok(());
    }
    // SAFETY: copied field by field; values are replaced, never changed in place.
    let known = unsafe { IPCACHE.get(&s.packet.destination) };
    let (mut node, mut flags) = known.map_or((Addr::NONE, 0), |info| (info.node, info.flags));
    if flags & (ipcache_flags::NODE | ipcache_flags::LOCAL) == ipcache_flags::NODE | ipcache_flags::LOCAL {
        return Ok(());
    }
    let mut is_pod = known.is_some() && flags & ipcache_flags::NODE == 0;
    let mut no_masquerade = false;
    if !is_pod {
        if let Some(info) = ROUTES.get(&Key::new(128, s.packet.destination)) {
            if info.flags & route_flags::LOCAL_POOL != 0 {
                return Err(DropReason::Unroutable);
            }
            if info.flags & route_flags::REMOTE_POOL != 0 && flags & ipcache_flags::NODE == 0 {
                is_pod = true;
                node = info.node;
            }
            no_masquerade = info.flags & route_flags::NO_MASQUERADE != 0;
        }
    } else if flags & ipcache_flags::LOCAL != 0 {
        // Ours, and without an endpoint: it is gone.
        return Err(DropReason::Unroutable);
    }
    // A client outside and a backend elsewhere: both ways lead out of the device again.
    let through = matches!(hook, Hook::FromDevice) && s.entry.flags & flow_flags::TRANSLATED != 0 || of_node;
    if matches!(hook, Hook::FromDevice) && !through {
        // Not for a pod of this node: the stack's business, unless it is a pod's elsewhere.
        return if is_pod || s.packet.flags & TUNNELLED != 0 { Err(DropReason::Unroutable) } else { Ok(()) };
    }
    let tunnel = config.tunnel_ifindex != 0;
    flags &= ipcache_flags::NODE;
    // What a node asks of a service here it asks without the tunnel.
    let answers_node = flags != 0 && !forward && s.entry.flags & flow_flags::TRANSLATED == 0;
    if tunnel && (is_pod || answers_node) {
        let peer = if is_pod { node } else { s.packet.destination };
        let peer = if peer.is_none() { return Err(DropReason::NoTunnelEndpoint) } else { tunnel_peer(peer, config) };
        s.next_hop = peer;
        step::lookup(skb, s)?;
        s.next_hop = s.path.target;
        s.path.action = path_action::TUNNEL;
        s.path.target = peer;
        return Ok(());
    }
    let destination = s.packet.destination;
    s.next_hop = destination;
    step::lookup(skb, s)?;
    s.next_hop = Addr::NONE;
    s.path.action = path_action::DEVICE;
    if through {
        if forward && !of_node && s.entry.flags & flow_flags::TELLS == 0 {
            // So that answers come back here.
            s.path.action = path_action::MASQUERADE;
        }
        return Ok(());
    }
    let to_world = !is_pod && !no_masquerade && (flags == 0 || tunnel);
    let family = if destination.is_v4() { config_flags::MASQUERADE_V4 } else { config_flags::MASQUERADE_V6 };
    if to_world && forward && config.flags & family != 0 && s.packet.flags & UNMASQUERADED == 0 {
        s.path.action = path_action::MASQUERADE;
    }
    Ok(())
}

/// Whether the node's routing table sends a packet that came from the network on; else it is for the node itself.
#[inline(never)]
pub fn is_forwarded(skb: Skb, s: &Scratch) -> bool {
    const SKIP_NEIGH: u32 = 16;
    let mut query: FibLookup = unsafe {
        // SAFETY: all zero is a valid query.
        core::mem::zeroed()
    };
    query.ifindex = s.packet.ifindex;
    if s.packet.version == 4 {
        query.family = 2;
        query.__bindgen_anon_3.ipv4_src = s.packet.source.0[3];
        query.__bindgen_anon_4.ipv4_dst = s.packet.destination.0[3];
    } else {
        query.family = 10;
        query.__bindgen_anon_3.ipv6_src = s.packet.source.0;
        query.__bindgen_anon_4.ipv6_dst = s.packet.destination.0;
    }
    // SAFETY: the query lives on the stack for the call.
    let answer = unsafe { bpf_fib_lookup(skb.cast(), &raw mut query, size_of::<FibLookup>() as i32, SKIP_NEIGH) };
    // Found; found, with a neighbour that is not resolved yet; found, and the packet too big for it.
    matches!(answer, 0 | 7 | 8)
}

/// The underlay has one family; a node known by its other address is the same node.
#[inline(always)]
fn tunnel_peer(node: Addr, config: &NodeConfig) -> Addr {
    if node.is_v4() == config.tunnel_source.is_v4() {
        return node;
    }
    // SAFETY: copied at once.
    unsafe { IPCACHE.get(&node) }.map_or(node, |info| info.node)
}

/// Asks the node's routing table for device and next hop on the way to `s.next_hop`; leaves them in `s.path`.
#[inline(always)]
pub fn lookup(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let Some(config) = crate::track::config() else { return Err(DropReason::NoConfig) };
    let destination = s.next_hop;
    const SKIP_NEIGH: u32 = 16;
    const OUTPUT: u32 = 2;
    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 10;
    let mut query: FibLookup = unsafe {
        // SAFETY: all zero is a valid query.
        core::mem::zeroed()
    };
    let v4 = destination.is_v4();
    query.family = if v4 { AF_INET } else { AF_INET6 };
    query.ifindex = config.device_ifindex;
    if v4 {
        query.__bindgen_anon_4.ipv4_dst = destination.0[3];
        query.__bindgen_anon_3.ipv4_src = config.node_v4.0[3];
    } else {
        query.__bindgen_anon_4.ipv6_dst = destination.0;
        query.__bindgen_anon_3.ipv6_src = config.node_v6.0;
    }
    // SAFETY: the query lives on the stack for the call.
    let answer =
        unsafe { bpf_fib_lookup(skb.cast(), &raw mut query, size_of::<FibLookup>() as i32, SKIP_NEIGH | OUTPUT) };
    // 0: found; 7: found, neighbour not resolved yet.
    if answer != 0 && answer != 7 {
        return Err(DropReason::FibFailed);
    }
    s.path.ifindex = query.ifindex;
    // SAFETY: the helper filled the member of the family that was asked (or the other one for a gateway of the other
    // family, which is then in `family`).
    s.path.target = unsafe {
        if query.family == AF_INET {
            Addr::v4(query.__bindgen_anon_4.ipv4_dst)
        } else {
            Addr(query.__bindgen_anon_4.ipv6_dst)
        }
    };
    Ok(())
}
