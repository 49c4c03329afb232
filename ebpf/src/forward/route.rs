//! Routes a packet: into a pod, to the stack, out of the device, through the tunnel, masqueraded.

use aya_ebpf::bindings::bpf_fib_lookup as FibLookup;
use aya_ebpf::helpers::generated::bpf_fib_lookup;
use aya_ebpf::maps::lpm_trie::Key;
use weft_abi::{Addr, DropReason, Path, config_flags, flow_flags, ipcache_flags, path_action, route_flags};

use crate::endpoint::lookup::{endpoint, tunnel_endpoint};
use crate::hook::Hook;
use crate::maps::{IPCACHE, ROUTES, config};
use crate::packet::{Skb, TUNNELLED, UNMASQUERADED};
use crate::scratch::Scratch;
use crate::step::step;

step!(route(hook: Hook, forward: bool) = weft_step_route: route_body);

/// Leaves the way to the packet's destination in `s.path` (and the outer next hop in `s.next_hop`).
#[inline(always)]
fn route_body(skb: Skb, s: &mut Scratch, hook: Hook, forward: bool) -> Result<(), DropReason> {
    let Some(config) = config() else { return Err(DropReason::NoConfig) };
    s.path = Path::STACK;
    s.next_hop = Addr::NONE;
    // The stack routed the packet to the frontend; the route to the backend is another one.
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
    // Requests of a node to a service here come without the tunnel.
    let replies_to_node = flags != 0 && !forward && s.entry.flags & flow_flags::TRANSLATED == 0;
    if tunnel && (is_pod || replies_to_node) {
        let remote = if is_pod { node } else { s.packet.destination };
        let remote =
            if remote.is_none() { return Err(DropReason::NoTunnelEndpoint) } else { tunnel_endpoint(remote, config) };
        s.next_hop = remote;
        fib_lookup(skb, s)?;
        s.next_hop = s.path.target;
        s.path.action = path_action::TUNNEL;
        s.path.target = remote;
        return Ok(());
    }
    let destination = s.packet.destination;
    s.next_hop = destination;
    fib_lookup(skb, s)?;
    s.next_hop = Addr::NONE;
    s.path.action = path_action::DEVICE;
    if through {
        if forward && !of_node && s.entry.flags & flow_flags::DSR_FRONTEND == 0 {
            // So that replies come back here.
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

step!(fib_lookup() = weft_step_fib_lookup: fib_lookup_body);

/// Looks up device and next hop towards `s.next_hop` in the node's FIB; leaves them in `s.path`.
#[inline(always)]
fn fib_lookup_body(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let Some(config) = config() else { return Err(DropReason::NoConfig) };
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
