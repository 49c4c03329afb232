//! The first packet of a connection, and the first one after something changed: who speaks to whom, do their policies
//! allow it, which way does it go. The answer is kept in the connection's entry.

use aya_ebpf::maps::lpm_trie::Key;
use weft_abi::{
    Addr, DropReason, EndpointInfo, FlowEntry, NodeConfig, Path, config_flags, endpoint_flags, flow_flags, identity,
    ipcache_flags, path_action,
};

use crate::maps::{ENDPOINTS, FLOWS, IPCACHE, ROUTES};
use crate::packet::{Scratch, Skb, TUNNELLED, UNMASQUERADED, clear};
use crate::track::{next_flags, now_s};
use crate::{Hook, nat, policy, route};

/// Decides the connection that the packet belongs to and leaves the way of this packet in `s.path`.
#[inline(never)]
pub fn decide(skb: Skb, s: &mut Scratch, hook: Hook, existing: *mut FlowEntry, low: u8) -> Result<(), DropReason> {
    let Some(config) = crate::track::config() else { return Err(DropReason::NoConfig) };
    let mut forward = true;
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
        let reopened = s.packet.protocol == crate::packet::TCP
            && s.packet.tcp_flags & (crate::packet::TCP_SYN | crate::packet::TCP_ACK) == crate::packet::TCP_SYN
            && crate::track::closing(old.flags);
        if reopened {
            s.entry.flags = if low == 1 { flow_flags::ORIGIN_LOW } else { 0 };
        } else {
            s.entry.flags = old.flags;
            s.entry.source_identity = old.source_identity;
            s.entry.destination_identity = old.destination_identity;
            forward = (old.flags & flow_flags::ORIGIN_LOW != 0) == (low == 1);
            // The masquerade of a connection outlives every change of policy.
            s.entry.nat_addr = old.nat_addr;
            s.entry.nat_port_be = old.nat_port_be;
        }
    }
    s.reply = u8::from(!forward);
    let verdict = judge(skb, s, hook, config, forward).and_then(|()| route::route(skb, s, hook, config, forward));
    if let Err(reason) = verdict {
        if !existing.is_null() {
            // SAFETY: as above. Nothing passes any more without being judged; the entry ages out.
            unsafe { (*existing).revision = 0 };
        }
        return Err(reason);
    }
    if matches!(hook, Hook::FromDevice) && s.path.action == path_action::STACK {
        // Through this node, to nobody of ours: not tracked here.
        return Ok(());
    }
    s.entry.flags = next_flags(&s.packet, s.entry.flags, forward);
    s.path.in_ifindex = s.packet.ifindex;
    if s.path.action == path_action::MASQUERADE {
        nat::reserve(s, config)?;
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
        return insert(s, forward);
    }
    // SAFETY: as above.
    let old = unsafe { &mut *existing };
    refresh(s, old, forward)
}

#[inline(always)]
fn insert(s: &mut Scratch, forward: bool) -> Result<(), DropReason> {
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
        Err(error) if error as i32 == EEXIST => Ok(()),
        Err(_) => Err(DropReason::CtInsertFailed),
    }
}

#[inline(always)]
fn refresh(s: &Scratch, old: &mut FlowEntry, forward: bool) -> Result<(), DropReason> {
    let stale = !crate::track::fresh(old);
    old.source_endpoint = s.entry.source_endpoint;
    old.destination_endpoint = s.entry.destination_endpoint;
    old.source_identity = s.entry.source_identity;
    old.destination_identity = s.entry.destination_identity;
    old.egress_rule = s.entry.egress_rule;
    old.ingress_rule = s.entry.ingress_rule;
    old.nat_addr = s.entry.nat_addr;
    old.nat_port_be = s.entry.nat_port_be;
    old.flags = s.entry.flags;
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
    crate::track::seen(s, old, forward);
    Ok(())
}

/// A fragment whose ports are not known yet: judged by its addresses, not tracked.
#[inline(never)]
pub fn untracked(skb: Skb, s: &mut Scratch, hook: Hook, config: &NodeConfig) -> Result<(), DropReason> {
    clear(&mut s.entry);
    judge(skb, s, hook, config, true)?;
    route::route(skb, s, hook, config, true)?;
    if s.path.action == path_action::MASQUERADE {
        return Err(DropReason::FragmentNotFound);
    }
    Ok(())
}

#[inline(always)]
pub fn endpoint(address: &Addr) -> Option<&'static EndpointInfo> {
    // SAFETY: values are replaced, never changed in place.
    unsafe { ENDPOINTS.get(address) }
}

/// Who has the address: (identity, flags of the ipcache).
#[inline(always)]
pub fn who(address: &Addr, config: &NodeConfig) -> (u32, u32) {
    // SAFETY: copied at once.
    if let Some(info) = unsafe { IPCACHE.get(address) } {
        return (info.identity, info.flags);
    }
    if let Some(info) = ROUTES.get(&Key::new(128, *address)) {
        use weft_abi::route_flags::{LOCAL_POOL, REMOTE_POOL};
        if info.flags & (LOCAL_POOL | REMOTE_POOL) != 0 {
            return (identity::UNKNOWN, if info.flags & LOCAL_POOL != 0 { ipcache_flags::LOCAL } else { 0 });
        }
    }
    let world = if config.flags & config_flags::DUAL_STACK == 0 {
        identity::WORLD
    } else if address.is_v4() {
        identity::WORLD_IPV4
    } else {
        identity::WORLD_IPV6
    };
    (world, 0)
}

/// Asks the policies of both ends, as far as they are on this node, about the originator's packet.
#[inline(never)]
fn judge(skb: Skb, s: &mut Scratch, hook: Hook, config: &NodeConfig, forward: bool) -> Result<(), DropReason> {
    let source = endpoint(&s.packet.source);
    let destination = endpoint(&s.packet.destination);
    // Nobody speaks for another one, RFC 2827.
    match (hook, source) {
        (Hook::FromPod, Some(info)) if info.ifindex == s.packet.ifindex => {}
        (Hook::FromPod, _) | (Hook::FromDevice, Some(_)) => return Err(DropReason::InvalidSourceIp),
        _ => {}
    }
    if matches!(hook, Hook::FromDevice) && (s.packet.source == config.node_v4 || s.packet.source == config.node_v6) {
        return Err(DropReason::InvalidSourceIp);
    }
    if matches!(hook, Hook::ToPod) && !destination.is_some_and(|info| info.ifindex == s.packet.ifindex) {
        // This link leads to another pod, or to none.
        return Err(DropReason::Unroutable);
    }
    let source_identity = match source {
        Some(info) => info.identity,
        None if s.packet.flags & TUNNELLED != 0 => s.packet.tunnel_identity,
        None => {
            let (found, flags) = who(&s.packet.source, config);
            let node_itself =
                flags & (ipcache_flags::NODE | ipcache_flags::LOCAL) == ipcache_flags::NODE | ipcache_flags::LOCAL;
            // Nobody outside has an address of this node's; and where pods come by tunnel, none comes without.
            let pod = found == identity::UNKNOWN || found >= identity::ALLOCATED_MIN;
            if matches!(hook, Hook::FromDevice)
                && (flags & ipcache_flags::LOCAL != 0 || config.tunnel_ifindex != 0 && pod)
            {
                return Err(DropReason::InvalidSourceIp);
            }
            if matches!(hook, Hook::ToPod) && (node_itself || has_socket(skb)) { identity::HOST } else { found }
        }
    };
    let destination_identity = match destination {
        Some(info) => info.identity,
        None => who(&s.packet.destination, config).0,
    };
    s.source_identity = source_identity;
    s.destination_identity = destination_identity;
    s.source_endpoint = source.map_or(0, |info| info.id);
    s.destination_endpoint = destination.map_or(0, |info| info.id);
    if source.is_some_and(|info| info.flags & endpoint_flags::BLOCKED != 0)
        || destination.is_some_and(|info| info.flags & endpoint_flags::BLOCKED != 0)
    {
        return Err(DropReason::EndpointNotReady);
    }
    // The originator's and the responder's side of the connection, whichever way this packet goes.
    let (origin, responder) = if forward { (source, destination) } else { (destination, source) };
    let known = s.entry.source_identity;
    let (mut origin_identity, responder_identity) =
        if forward { (source_identity, destination_identity) } else { (destination_identity, source_identity) };
    if !forward && origin.is_none() && config.tunnel_ifindex != 0 && known != 0 {
        // A tunnel told who the originator is.
        origin_identity = known;
    }
    s.entry.source_identity = origin_identity;
    s.entry.destination_identity = responder_identity;
    s.entry.source_endpoint = origin.map_or(0, |info| info.id);
    s.entry.destination_endpoint = responder.map_or(0, |info| info.id);
    let port = if forward { s.packet.destination_port } else { s.packet.source_port };
    let itself = s.entry.source_endpoint != 0 && s.entry.source_endpoint == s.entry.destination_endpoint;
    let (origin_address, responder_address): (*const Addr, *const Addr) = if forward {
        (&raw const s.packet.source, &raw const s.packet.destination)
    } else {
        (&raw const s.packet.destination, &raw const s.packet.source)
    };
    if itself {
        return Ok(());
    }
    if let Some(info) = origin {
        if info.policy_egress != 0 {
            s.egress = 1;
            policy::judge(s, info.policy_egress, responder_identity, responder_address, port)?;
            s.entry.egress_rule = s.rule;
        }
    }
    if let Some(info) = responder {
        if info.policy_ingress != 0 && origin_identity != identity::HOST {
            s.egress = 0;
            let verdict = policy::judge(s, info.policy_ingress, origin_identity, origin_address, port);
            if verdict == Err(DropReason::PolicyDenied) && origin_identity == identity::UNKNOWN {
                return Err(DropReason::UnknownSender);
            }
            verdict?;
            s.entry.ingress_rule = s.rule;
        }
    }
    Ok(())
}

/// The packet was made on this node: it has a socket.
#[inline(always)]
fn has_socket(skb: Skb) -> bool {
    // SAFETY: the context is valid.
    !unsafe { core::ptr::read_volatile(&raw const (*skb).__bindgen_anon_2.sk) }.is_null()
}

/// A path that hands the packet to the stack.
pub const STACK: Path = Path { action: path_action::STACK, pad: [0; 3], ifindex: 0, in_ifindex: 0, target: Addr::NONE };
