//! The first packet of a connection, and the first one after something changed: who speaks to whom, do their policies
//! allow it, which way does it go. The answer is kept in the connection's entry.

use aya_ebpf::maps::lpm_trie::Key;
use weft_abi::{
    Addr, DropReason, ENDPOINT_ID_HOST, EndpointInfo, FlowEntry, NodeConfig, Path, config_flags, endpoint_flags,
    flow_flags, identity, ipcache_flags, path_action,
};

use crate::maps::{ENDPOINTS, FLOWS, IPCACHE, ROUTES};
use crate::packet::{End, Scratch, Skb, TUNNELLED, UNMASQUERADED, clear, translated};
use crate::track::{next_flags, now_s};
use crate::{Hook, host, notify, route, service, step};

/// Decides the connection that the packet belongs to and leaves the way of this packet in `s.path`.
#[inline(always)]
pub fn decide(skb: Skb, s: &mut Scratch, hook: Hook, existing: *mut FlowEntry) -> Result<(), DropReason> {
    let Some(config) = crate::track::config() else { return Err(DropReason::NoConfig) };
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
        reopened = s.packet.protocol == crate::packet::TCP
            && s.packet.tcp_flags & (crate::packet::TCP_SYN | crate::packet::TCP_ACK) == crate::packet::TCP_SYN
            && crate::track::closing(old.flags);
        if reopened {
            s.entry.flags = if low == 1 { flow_flags::ORIGIN_LOW } else { 0 };
        } else {
            s.known = u8::from(crate::track::fresh(old));
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
    service::mark(s, hook, forward)?;
    let verdict = if s.entry.flags & flow_flags::HAIRPIN != 0 {
        service::hairpin(s, hook, forward)
    } else {
        judge(skb, s, hook, forward).and_then(|()| step::route(skb, s, hook, forward))
    };
    if let Err(reason) = verdict {
        if !existing.is_null() {
            // SAFETY: as above. Nothing passes any more without being judged; the entry ages out.
            unsafe { (*existing).revision = 0 };
        }
        return Err(reason);
    }
    let outside = matches!(hook, Hook::FromDevice) && s.translated & translated::FORWARD != 0;
    if outside && s.path.action == path_action::STACK && !host::is_own(&s.packet.destination, config) {
        return Err(DropReason::Unroutable);
    }
    let served = s.entry.flags & flow_flags::TRANSLATED != 0;
    if matches!(hook, Hook::FromDevice) && s.path.action == path_action::STACK && s.host == 0 && !served {
        // Through this node, to nobody of ours: not tracked here.
        return Ok(());
    }
    s.entry.flags = next_flags(&s.packet, s.entry.flags, forward);
    s.path.in_ifindex = s.packet.ifindex;
    // Only pods are masqueraded, and clients outside; the verifier need not look into it for the other programs.
    if matches!(hook, Hook::FromPod) && s.path.action == path_action::MASQUERADE
        || outside
            && s.entry.flags & flow_flags::TELLS == 0
            && matches!(s.path.action, path_action::MASQUERADE | path_action::TUNNEL)
    {
        step::reserve(skb, s)?;
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
    refresh(s, old, forward, reopened)
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
        // But without its entry answers of a backend would not be a service's.
        Err(error) if error as i32 == EEXIST && s.translated == 0 => Ok(()),
        // The node must stay within reach when its pods have filled the table; answers are then judged as well.
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
fn refresh(s: &Scratch, old: &mut FlowEntry, forward: bool, reopened: bool) -> Result<(), DropReason> {
    // A connection that is opened again shares nothing with the one before: neither the way back, nor where that led.
    let stale = reopened || !crate::track::fresh(old);
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
    // What the other direction's packets told meanwhile stays.
    const TRACKED: u16 = flow_flags::SEEN_FORWARD
        | flow_flags::SEEN_REPLY
        | flow_flags::FIN_FORWARD
        | flow_flags::FIN_REPLY
        | flow_flags::RST;
    let (found, kept) = (old.flags, if reopened { 0 } else { old.flags & TRACKED });
    crate::track::change(old, found, s.entry.flags | kept);
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

/// A fragment whose ports are not known yet: judged by its addresses, not tracked. To a frontend nobody knows where it
/// would have to go.
#[inline(always)]
pub fn untracked(skb: Skb, s: &mut Scratch, hook: Hook) -> Result<(), DropReason> {
    if service::is_for_frontend(s) {
        return Err(DropReason::FragmentNotFound);
    }
    clear(&mut s.entry);
    judge(skb, s, hook, true)?;
    step::route(skb, s, hook, true)?;
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

/// Asks the policies of both ends, as far as they are on this node, about the originator's packet. In parts that leave
/// what they found in the scratch memory: the verifier forgets on which way they came to it.
#[inline(always)]
fn judge(skb: Skb, s: &mut Scratch, hook: Hook, forward: bool) -> Result<(), DropReason> {
    step::destination(skb, s, hook)?;
    step::source(skb, s, hook)?;
    step::ask(skb, s, forward)
}

/// Who the packet is for.
#[inline(always)]
pub fn destination(skb: Skb, s: &mut Scratch, hook: Hook) -> Result<(), DropReason> {
    let Some(config) = crate::track::config() else { return Err(DropReason::NoConfig) };
    s.host = 0;
    if let Some(info) = endpoint(&s.packet.destination) {
        if matches!(hook, Hook::ToPod) && info.ifindex != s.packet.ifindex {
            // This link leads to another pod.
            return Err(DropReason::Unroutable);
        }
        s.to = End::pod(info);
        s.destination_identity = info.identity;
        s.destination_endpoint = info.id;
        return Ok(());
    }
    let to_host = host::is_subject(config)
        && match hook {
            Hook::FromPod => host::is_own(&s.packet.destination, config),
            Hook::FromDevice => {
                s.packet.flags & UNMASQUERADED == 0
                    && (host::is_own(&s.packet.destination, config) || !route::is_forwarded(skb, s))
            }
            _ => false,
        };
    if matches!(hook, Hook::ToPod) {
        // This link leads to none.
        return Err(DropReason::Unroutable);
    }
    if to_host {
        s.host = 1;
        s.to = End::host(config);
        s.destination_identity = identity::HOST;
        s.destination_endpoint = ENDPOINT_ID_HOST;
    } else {
        s.to = End::NONE;
        s.destination_identity = who(&s.packet.destination, config).0;
        s.destination_endpoint = 0;
    }
    Ok(())
}

/// Who the packet is from; after its destination. Nobody speaks for another one, RFC 2827.
#[inline(always)]
pub fn source(skb: Skb, s: &mut Scratch, hook: Hook) -> Result<(), DropReason> {
    let Some(config) = crate::track::config() else { return Err(DropReason::NoConfig) };
    if let Some(info) = endpoint(&s.packet.source) {
        if matches!(hook, Hook::FromDevice) || matches!(hook, Hook::FromPod) && info.ifindex != s.packet.ifindex {
            return Err(DropReason::InvalidSourceIp);
        }
        s.from = End::pod(info);
        s.source_identity = info.identity;
        s.source_endpoint = info.id;
        return Ok(());
    }
    if matches!(hook, Hook::FromPod)
        || matches!(hook, Hook::FromDevice) && (s.packet.source == config.node_v4 || s.packet.source == config.node_v6)
    {
        return Err(DropReason::InvalidSourceIp);
    }
    s.source_identity = if matches!(hook, Hook::ToDevice) {
        identity::HOST
    } else if s.packet.flags & TUNNELLED != 0 {
        s.packet.tunnel_identity
    } else {
        let (found, flags) = who(&s.packet.source, config);
        let node_itself =
            flags & (ipcache_flags::NODE | ipcache_flags::LOCAL) == ipcache_flags::NODE | ipcache_flags::LOCAL;
        // Nobody outside has an address of this node's; and where pods come by tunnel, none comes without.
        let pod = found == identity::UNKNOWN || found >= identity::ALLOCATED_MIN;
        let untold = matches!(hook, Hook::FromDevice) && config.tunnel_ifindex != 0 && pod;
        if matches!(hook, Hook::FromDevice) && flags & ipcache_flags::LOCAL != 0 || untold && s.host == 0 {
            return Err(DropReason::InvalidSourceIp);
        }
        if matches!(hook, Hook::ToPod) && (node_itself || has_socket(skb)) {
            identity::HOST
        } else if untold {
            // To the node pods may come so, but nobody vouches for them.
            identity::UNKNOWN
        } else {
            found
        }
    };
    let from_host = host::is_subject(config)
        && (matches!(hook, Hook::ToDevice) || matches!(hook, Hook::ToPod) && s.source_identity == identity::HOST);
    if from_host {
        s.host = 1;
        s.from = End::host(config);
        s.source_endpoint = ENDPOINT_ID_HOST;
    } else {
        s.from = End::NONE;
        s.source_endpoint = 0;
    }
    Ok(())
}

/// Asks the policies of the originator and the responder of the connection, whichever way this packet goes.
#[inline(always)]
pub fn ask(skb: Skb, s: &mut Scratch, forward: bool) -> Result<(), DropReason> {
    let Some(config) = crate::track::config() else { return Err(DropReason::NoConfig) };
    if (s.from.flags | s.to.flags) & endpoint_flags::BLOCKED != 0 {
        return Err(DropReason::EndpointNotReady);
    }
    let known = s.entry.source_identity;
    let (origin, responder) = if forward { (s.from, s.to) } else { (s.to, s.from) };
    (s.entry.source_endpoint, s.entry.destination_endpoint) =
        if forward { (s.source_endpoint, s.destination_endpoint) } else { (s.destination_endpoint, s.source_endpoint) };
    (s.entry.source_identity, s.entry.destination_identity) =
        if forward { (s.source_identity, s.destination_identity) } else { (s.destination_identity, s.source_identity) };
    if !forward && origin.is_pod == 0 && config.tunnel_ifindex != 0 && known != 0 {
        // A tunnel told who the originator is.
        s.entry.source_identity = known;
    }
    if s.entry.source_endpoint != 0 && s.entry.source_endpoint == s.entry.destination_endpoint {
        // A pod and itself.
        return Ok(());
    }
    s.asked.port = if forward { s.packet.destination_port } else { s.packet.source_port };
    // To its own pods the node may always speak.
    let to_own_pod = origin.is_pod == 0 && responder.is_pod == 1;
    if origin.egress != 0 && !to_own_pod {
        s.egress = 1;
        s.asked.policy = origin.egress;
        s.asked.identity = s.entry.destination_identity;
        s.asked.address = if forward { s.packet.destination } else { s.packet.source };
        let verdict = step::policy(skb, s);
        audited(s, verdict, origin.flags)?;
        s.entry.egress_rule = s.rule;
    }
    if responder.ingress != 0 && !(to_own_pod && s.entry.source_identity == identity::HOST) {
        s.egress = 0;
        s.asked.policy = responder.ingress;
        s.asked.identity = s.entry.source_identity;
        s.asked.address = if forward { s.packet.source } else { s.packet.destination };
        let mut verdict = step::policy(skb, s);
        if verdict == Err(DropReason::PolicyDenied) && s.asked.identity == identity::UNKNOWN {
            verdict = Err(DropReason::UnknownSender);
        }
        audited(s, verdict, responder.flags)?;
        s.entry.ingress_rule = s.rule;
    }
    Ok(())
}

/// Lets pass, reported, what a policy in audit mode denies.
#[inline(always)]
fn audited(s: &mut Scratch, verdict: Result<(), DropReason>, flags: u16) -> Result<(), DropReason> {
    use DropReason::{PolicyDenied, PolicyDenyRule, UnknownSender};
    match verdict {
        Err(reason @ (PolicyDenied | PolicyDenyRule | UnknownSender)) if flags & endpoint_flags::AUDIT != 0 => {
            if s.known == 0 {
                notify::audited(s, reason as u32);
            }
            s.audited = 1;
            // No rule allowed it.
            s.rule = 0;
            Ok(())
        }
        _ => verdict,
    }
}

/// The packet was made on this node: it has a socket.
#[inline(always)]
pub fn has_socket(skb: Skb) -> bool {
    // SAFETY: the context is valid.
    !unsafe { core::ptr::read_volatile(&raw const (*skb).__bindgen_anon_2.sk) }.is_null()
}

/// A path that hands the packet to the stack.
pub const STACK: Path = Path { action: path_action::STACK, pad: [0; 3], ifindex: 0, in_ifindex: 0, target: Addr::NONE };
