//! Services, packet by packet: what a client sends to a frontend goes to a backend, and the answers come from the
//! frontend.
//!
//! Two entries of `FLOWS` belong to such a connection. The one between client and frontend
//! ([`flow_flags::SERVICE`]) says where its packets go instead; it has no path, so the established path of other
//! connections knows nothing of services. The one between client and backend is the connection itself: judged, tracked
//! and sent like any other, and marked [`flow_flags::TRANSLATED`] so that answers get the frontend's address. The first
//! is written after the second was allowed: what is denied leaves nothing behind.

use weft_abi::{
    Addr, DropReason, FlowEntry, FrontendKey, HAIRPIN_V4, HAIRPIN_V6, NodeConfig, Path, RangeKey, backend_flags,
    endpoint_flags, flow_flags, flow_kind, identity, path_action, service_flags,
};

use aya_ebpf::maps::lpm_trie::Key;

use crate::decide::{self, endpoint};
use crate::maps::{BACKENDS, FLOWS, FRONTENDS, RANGES, RangeData};
use crate::packet::{SCTP, Scratch, Skb, TCP, TCP_ACK, TCP_SYN, UDP, UNKNOWN_PORTS, UNMASQUERADED, clear, translated};
use crate::track::{canonical, closing, config, exchange, now_s, tuple};
use crate::{Hook, balance, direct, host, nat, own, refuse, step};

/// Answers of [`translate`]: the packet is as it was.
pub const NOTHING: u32 = 0;
/// As it was, and the entry that it had is gone.
pub const VACATED: u32 = 1;
/// It goes to a backend: look for its connection again.
pub const TRANSLATED: u32 = 2;

/// How many backends of a set are tried: the client may speak to some by the same ports already.
const TRIES: u32 = 4;
/// Seconds after which the ports of one service's datagrams are another's, if an answer is outstanding: a client gets a
/// port again that it had not long before. If the first one speaks again after all, it has them back.
const UDP_IDLE_S: u32 = 3;

/// Translates the packet if it is for a service. `existing` is the entry under its own tuple, if there is one.
#[inline(always)]
pub fn translate(skb: Skb, s: &mut Scratch, hook: Hook, existing: *mut FlowEntry) -> Result<(), DropReason> {
    s.answer = NOTHING;
    if !matches!(s.packet.protocol, TCP | UDP | SCTP)
        || s.packet.flags & UNMASQUERADED != 0
        || s.translated & translated::DIRECT != 0
    {
        return Ok(());
    }
    let low = s.low;
    s.service.low = low;
    s.service.remembered = 0;
    s.service.stale = 0;
    s.service.direct = 0;
    s.service.bound = 0;
    s.service.outside = u8::from(matches!(hook, Hook::FromDevice));
    if !existing.is_null() {
        // SAFETY: not null: a value of FLOWS, readable for the length of the program.
        let old = unsafe { &mut *existing };
        let forward = (old.flags & flow_flags::ORIGIN_LOW != 0) == (low == 1);
        if old.flags & flow_flags::SERVICE != 0 {
            if !forward {
                // Nobody but this node speaks for a frontend.
                return Err(DropReason::InvalidSourceIp);
            }
            if usable(s, old) {
                s.service.remembered = 1;
                s.service.direct = u8::from(old.flags & flow_flags::TELLS != 0);
                s.service.backend.addr = old.nat_addr;
                s.service.backend.port_be = old.nat_port_be;
                s.service.backend.id = old.destination_identity;
                return apply(skb, s);
            }
            s.service.stale = 1;
        } else if !forward || !opens(s) {
            return Ok(());
        }
    }
    if !find(s) {
        if !existing.is_null() && s.service.stale == 1 {
            // SAFETY: a value of FLOWS, readable for the length of the program.
            vacate(s, unsafe { &mut *existing });
            s.answer = VACATED;
        }
        return Ok(());
    }
    if matches!(hook, Hook::FromPod) && !endpoint(&s.packet.source).is_some_and(|i| i.ifindex == s.packet.ifindex) {
        // A pod that speaks for another: refused where senders are looked at.
        return Ok(());
    }
    admit(s)?;
    if s.service.info.flags & service_flags::SKIP_FROM_BACKEND != 0 && balance::is_backend(s) {
        return Ok(());
    }
    if s.service.count == 0 {
        if s.service.outside == 1 && s.service.info.flags & service_flags::EXTERNAL_LOCAL != 0 {
            return Err(DropReason::NoServiceBackend);
        }
        return refuse::no_backend(s);
    }
    let mut free = false;
    s.service.tried = 0;
    for _ in 0..TRIES {
        match step::choose(skb, s) {
            Ok(()) => {
                free = true;
                break;
            }
            Err(DropReason::NoNatMapping) => s.service.tried += 1,
            Err(reason) => return Err(reason),
        }
    }
    if !free {
        return Err(DropReason::NoNatMapping);
    }
    s.service.direct = u8::from(direct::is_wanted(s));
    if !existing.is_null() && s.service.stale == 0 {
        // A connection to the address from before it was a frontend's.
        // SAFETY: as above.
        vacate(s, unsafe { &mut *existing });
    }
    step::apply(skb, s)
}

/// Translates a packet that came by the device to an address of the node, if it is for a service; or notes that it
/// answers the node's own, in `s.translated`.
#[inline(always)]
pub fn enter(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    s.answer = NOTHING;
    if s.packet.flags & UNKNOWN_PORTS != 0 {
        return Ok(());
    }
    if is_hairpin_address(&s.packet.source) {
        return Err(DropReason::InvalidSourceIp);
    }
    s.low = u8::from(canonical(&s.packet, flow_kind::FLOW, &mut s.key));
    let mut existing = FLOWS.get_ptr_mut(&s.key).unwrap_or(core::ptr::null_mut());
    if own::answers(s, existing) || s.packet.flags & crate::packet::TUNNELLED != 0 {
        return Ok(());
    }
    // SAFETY: not null: a value of FLOWS, readable for the length of the program.
    if !existing.is_null() && unsafe { (*existing).flags } & flow_flags::SERVICE == 0 {
        // The node's own, under policies.
        existing = core::ptr::null_mut();
    }
    step::translate(skb, s, Hook::FromDevice, existing)
}

/// Whether a client's packet came to this entry by a service and the entry is not this service's, or the other way
/// round.
#[inline(always)]
pub fn is_foreign(s: &Scratch, entry: &FlowEntry, forward: bool) -> bool {
    let by_service = s.translated & translated::FORWARD != 0;
    // What other nodes translated fits either way.
    let other = if by_service { 0 } else { flow_flags::TRANSLATED };
    let found = entry.flags & (flow_flags::TRANSLATED | flow_flags::DIRECT);
    forward && (found == other || by_service && !is_frontend(s, entry))
}

/// Whether the entry belongs to the frontend that the packet was sent to.
#[inline(always)]
fn is_frontend(s: &Scratch, entry: &FlowEntry) -> bool {
    entry.frontend == s.frontend && entry.frontend_port_be == s.frontend_port
}

/// Whether the packet may begin a connection.
#[inline(always)]
fn opens(s: &Scratch) -> bool {
    s.packet.protocol != TCP || s.packet.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN
}

/// Whether the backend chosen before still counts. An open TCP connection never changes its backend; others do when it
/// is gone.
#[inline(never)]
fn usable(s: &mut Scratch, old: &FlowEntry) -> bool {
    if old.last_seen_s == FlowEntry::DELETING {
        return false;
    }
    if !opens(s) {
        return true;
    }
    if s.packet.protocol == TCP {
        connection(s, &old.nat_addr, old.nat_port_be);
        // SAFETY: read at once.
        let open = unsafe { FLOWS.get(&s.nat_key) }.is_some_and(|entry| {
            // Another frontend's by now: the choice is made anew.
            !closing(entry.flags)
                && entry.frontend == s.packet.destination
                && entry.frontend_port_be == s.packet.destination_port
        });
        if !open {
            return false;
        }
    }
    // SAFETY: values are replaced, never changed in place; compared at once.
    let Some(backend) = (unsafe { BACKENDS.get(&old.destination_identity) }) else { return false };
    backend.addr == old.nat_addr
        && backend.port_be == old.nat_port_be
        && (s.packet.protocol != TCP || backend.flags & backend_flags::TERMINATING == 0)
}

/// Marks a choice as the collector would that removes it; false: it did so before.
#[inline(always)]
fn claim(old: &mut FlowEntry) -> bool {
    let last = old.last_seen_s;
    let usable = old.flags & flow_flags::SERVICE != 0 && last != FlowEntry::DELETING;
    // SAFETY: a field of a map value.
    usable && unsafe { exchange(&raw mut old.last_seen_s, last, FlowEntry::DELETING) } == last
}

/// Removes an entry under `s.key`, as the collector would.
#[inline(always)]
fn vacate(s: &Scratch, old: &mut FlowEntry) {
    let last = old.last_seen_s;
    // SAFETY: a field of a map value.
    if last != FlowEntry::DELETING && unsafe { exchange(&raw mut old.last_seen_s, last, FlowEntry::DELETING) } == last {
        let _ = FLOWS.remove(&s.key);
    }
}

/// Puts the key of the connection between the packet's client and a backend into `s.nat_key`.
#[inline(always)]
fn connection(s: &mut Scratch, backend: &Addr, port_be: u16) {
    let client = if is_hairpin(s, backend) { hairpin_source(backend.is_v4()) } else { s.packet.source };
    tuple(&client, s.packet.source_port, backend, port_be, s.packet.protocol, flow_kind::FLOW, &mut s.nat_key);
}

/// Whether the client is the backend itself.
#[inline(always)]
fn is_hairpin(s: &Scratch, backend: &Addr) -> bool {
    s.service.outside == 0 && *backend == s.packet.source
}

/// As whom a pod speaks to itself.
#[inline(always)]
pub const fn hairpin_source(v4: bool) -> Addr {
    if v4 { HAIRPIN_V4 } else { HAIRPIN_V6 }
}

/// Looks for the frontend that the packet is for and leaves it in `s.service`.
#[inline(never)]
pub fn find(s: &mut Scratch) -> bool {
    let Some(config) = config() else { return false };
    s.service.frontend = FrontendKey {
        addr: s.packet.destination,
        port_be: s.packet.destination_port,
        protocol: s.packet.protocol,
        pad: 0,
    };
    // SAFETY: values are replaced, never changed in place; copied at once.
    let mut found = unsafe { FRONTENDS.get(&s.service.frontend) };
    if found.is_none() {
        // What the node sends to itself does not come here.
        if s.own == 1 || !host::is_own(&s.packet.destination, config) {
            return false;
        }
        s.service.frontend.addr = if s.packet.version == 4 { FrontendKey::ANY_V4 } else { FrontendKey::ANY_V6 };
        // SAFETY: as above.
        found = unsafe { FRONTENDS.get(&s.service.frontend) };
    }
    let Some(info) = found else { return false };
    s.service.info = *info;
    let info = &s.service.info;
    (s.service.set, s.service.count, s.service.table) = if s.service.outside == 0 {
        (info.internal_set, info.internal_count, info.internal_table)
    } else {
        (info.external_set, info.external_count, info.external_table)
    };
    true
}

/// Whether a packet without ports is for an address that has frontends. Not if the node has the address as well: its own
/// processes may be meant.
#[inline(always)]
pub fn is_for_frontend(s: &Scratch) -> bool {
    if !matches!(s.packet.protocol, TCP | UDP | SCTP) {
        return false;
    }
    let Some(config) = config() else { return false };
    // SAFETY: nothing is read.
    !host::is_own(&s.packet.destination, config)
        && unsafe { FRONTENDS.get(&FrontendKey::of_address(s.packet.destination)) }.is_some()
}

/// Whether the client may use the frontend.
#[inline(never)]
pub fn admit(s: &mut Scratch) -> Result<(), DropReason> {
    if s.service.outside == 0 {
        return Ok(());
    }
    let flags = s.service.info.flags;
    if flags & (service_flags::CLUSTER_IP | service_flags::REDIRECT) != 0 {
        return Err(DropReason::IsClusterIp);
    }
    if flags & service_flags::SOURCE_RANGES != 0 {
        let Some(config) = config() else { return Err(DropReason::NoConfig) };
        // The cluster's own are not meant.
        if identity::scope(sender(s, config)) == identity::SCOPE_WORLD {
            let range = RangeData { service_be: s.service.info.service.to_be(), addr: s.packet.source };
            const BITS: u32 = (size_of::<RangeKey>() as u32 - 4) * 8;
            // Other values are there for the trie alone.
            if RANGES.get(&Key::new(BITS, range)).is_none_or(|allowed| *allowed != 1) {
                return Err(DropReason::SourceRange);
            }
        }
    }
    Ok(())
}

#[inline(always)]
fn sender(s: &Scratch, config: &NodeConfig) -> u32 {
    if s.packet.flags & crate::packet::TUNNELLED != 0 {
        s.packet.tunnel_identity
    } else {
        decide::who(&s.packet.source, config).0
    }
}

/// Chooses a backend that the client does not speak to by the same ports; [`DropReason::NoNatMapping`] if it does.
#[inline(always)]
pub fn choose(_skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    balance::choose(s)?;
    if taken(s) {
        balance::forget(s);
        return Err(DropReason::NoNatMapping);
    }
    Ok(())
}

/// Whether another connection has the ports that the packet would have behind the service: answers could not be told
/// apart.
#[inline(never)]
fn taken(s: &mut Scratch) -> bool {
    let (backend, port_be) = (s.service.backend.addr, s.service.backend.port_be);
    connection(s, &backend, port_be);
    let Some(config) = config() else { return true };
    let Some(entry) = FLOWS.get_ptr_mut(&s.nat_key) else { return false };
    // SAFETY: a map value stays readable for the length of the program.
    let entry = unsafe { &mut *entry };
    let last = entry.last_seen_s;
    if last == FlowEntry::DELETING {
        return true;
    }
    if entry.flags & flow_flags::TRANSLATED != 0
        && entry.frontend == s.packet.destination
        && entry.frontend_port_be == s.packet.destination_port
    {
        return false;
    }
    let idle = if s.packet.protocol == UDP { UDP_IDLE_S } else { config.other_s };
    if s.packet.protocol == TCP && closing(entry.flags) {
        // Opened again where it is.
        return false;
    }
    // Datagrams have no end; but where every one was answered, none is awaited by those who had the ports before.
    let answered = s.packet.protocol == UDP && entry.reply_packets >= entry.forward_packets;
    let over = if s.packet.protocol == TCP {
        direct::is_done(entry.flags)
    } else {
        answered || now_s().wrapping_sub(last).wrapping_sub(idle) < u32::MAX / 2
    };
    // SAFETY: a field of a map value.
    if over && unsafe { exchange(&raw mut entry.last_seen_s, last, FlowEntry::DELETING) } == last {
        let _ = FLOWS.remove(&s.nat_key);
        return false;
    }
    true
}

/// Gives the packet the backend's address.
#[inline(always)]
pub fn apply(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let (backend, port_be) = (s.service.backend.addr, s.service.backend.port_be);
    let hairpin = is_hairpin(s, &backend);
    s.service.key = s.key;
    s.frontend = s.packet.destination;
    s.frontend_port = s.packet.destination_port;
    s.translated = translated::FORWARD | if hairpin { translated::HAIRPIN } else { 0 };
    destination(skb, s, &backend, port_be)?;
    if hairpin {
        let port_be = s.packet.source_port;
        source(skb, s, &hairpin_source(backend.is_v4()), port_be)?;
    }
    s.answer = TRANSLATED;
    Ok(())
}

/// Gives the answer of a backend the address of the frontend that the client sent to, which is in `s.frontend`.
#[inline(always)]
pub fn back(skb: Skb, s: &mut Scratch, flags: u16) -> Result<(), DropReason> {
    let (pod, frontend, port_be) = (s.packet.source, s.frontend, s.frontend_port);
    s.translated |= translated::REPLY;
    source(skb, s, &frontend, port_be)?;
    if flags & flow_flags::HAIRPIN != 0 {
        let port_be = s.packet.destination_port;
        destination(skb, s, &pod, port_be)?;
    }
    Ok(())
}

/// Gives a translated packet of a client back what the client wrote.
#[inline(never)]
pub fn undo(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    if s.translated & translated::FORWARD == 0 {
        return Ok(());
    }
    let (backend, frontend, port_be) = (s.packet.destination, s.frontend, s.frontend_port);
    destination(skb, s, &frontend, port_be)?;
    if s.translated & translated::HAIRPIN != 0 {
        let port_be = s.packet.source_port;
        source(skb, s, &backend, port_be)?;
    }
    s.translated = 0;
    Ok(())
}

/// Replaces the source, in the frame and in `s`.
#[inline(always)]
fn source(skb: Skb, s: &mut Scratch, address: &Addr, port_be: u16) -> Result<(), DropReason> {
    nat::replace::<true>(skb, s, address, port_be)
}

/// Replaces the destination, in the frame and in `s`.
#[inline(always)]
fn destination(skb: Skb, s: &mut Scratch, address: &Addr, port_be: u16) -> Result<(), DropReason> {
    nat::replace::<false>(skb, s, address, port_be)
}

/// Marks the entry that is being made of a translated packet's connection.
#[inline(never)]
pub fn mark(s: &mut Scratch, hook: Hook, forward: bool) -> Result<(), DropReason> {
    if s.translated & translated::FORWARD == 0 {
        if forward && s.translated & translated::DIRECT != 0 {
            s.entry.flags |= flow_flags::TRANSLATED | flow_flags::DIRECT;
            s.entry.frontend = s.frontend;
            s.entry.frontend_port_be = s.frontend_port;
            return Ok(());
        }
        let here = s.entry.flags & (flow_flags::TRANSLATED | flow_flags::DIRECT) == flow_flags::TRANSLATED;
        if forward && here && matches!(hook, Hook::FromPod | Hook::FromDevice) {
            // The same ports, but not by the service: answers could not be told apart.
            return Err(DropReason::NoNatMapping);
        }
        if s.entry.flags & flow_flags::HAIRPIN == 0 && is_hairpin_address(&s.packet.destination) {
            return Err(DropReason::Unroutable);
        }
        if !forward && s.entry.flags & flow_flags::TRANSLATED != 0 {
            s.translated |= translated::REPLY;
            s.frontend = s.entry.frontend;
            s.frontend_port = s.entry.frontend_port_be;
        }
        return Ok(());
    }
    let anothers = s.entry.flags & flow_flags::TRANSLATED != 0 && !is_frontend(s, &s.entry);
    if !forward || anothers && s.packet.protocol != UDP {
        return Err(DropReason::NoNatMapping);
    }
    s.entry.flags &= !flow_flags::HAIRPIN;
    s.entry.flags |= flow_flags::TRANSLATED;
    if s.service.direct == 1 && s.entry.flags & flow_flags::MASQUERADED == 0 {
        s.entry.flags |= flow_flags::TELLS;
    }
    if s.translated & translated::HAIRPIN != 0 {
        s.entry.flags |= flow_flags::HAIRPIN;
    }
    s.entry.frontend = s.frontend;
    s.entry.frontend_port_be = s.frontend_port;
    Ok(())
}

#[inline(always)]
fn is_hairpin_address(address: &Addr) -> bool {
    *address == HAIRPIN_V4 || *address == HAIRPIN_V6
}

/// Decides a connection of a pod to itself by a service: no policy is asked, and both directions lead back into the pod.
#[inline(never)]
pub fn hairpin(s: &mut Scratch, hook: Hook, forward: bool) -> Result<(), DropReason> {
    let pod = if forward { s.packet.destination } else { s.packet.source };
    if matches!(hook, Hook::ToDevice) {
        return own::hairpin(s, &pod);
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

/// Keeps the choice of a backend, once the connection to it was allowed; `old` is the one before, null: not looked
/// for yet.
#[inline(never)]
pub fn remember(s: &mut Scratch, old: *mut FlowEntry) -> Result<(), DropReason> {
    if s.translated & translated::FORWARD == 0 || s.service.remembered == 1 {
        return Ok(());
    }
    let flags = flow_flags::SERVICE
        | if s.service.low == 1 { flow_flags::ORIGIN_LOW } else { 0 }
        | if s.translated & translated::HAIRPIN != 0 { flow_flags::HAIRPIN } else { 0 }
        | s.entry.flags & flow_flags::TELLS;
    if s.service.stale == 1 {
        let old = if old.is_null() { FLOWS.get_ptr_mut(&s.service.key).unwrap_or(old) } else { old };
        // SAFETY: a value of FLOWS, readable for the length of the program.
        if let Some(old) = unsafe { old.as_mut() }
            && claim(old)
        {
            // What is claimed is absent for everybody else until it is given back, so it is changed where it lies: half as
            // dear as a new entry.
            old.flags = flags;
            old.nat_addr = s.service.backend.addr;
            old.nat_port_be = s.service.backend.port_be;
            old.destination_identity = s.service.backend.id;
            // SAFETY: a field of a map value.
            unsafe { exchange(&raw mut old.last_seen_s, FlowEntry::DELETING, now_s()) };
            balance::remember(s);
            return Ok(());
        }
    }
    clear(&mut s.nat_entry);
    s.nat_entry.last_seen_s = now_s();
    s.nat_entry.flags = flags;
    s.nat_entry.nat_addr = s.service.backend.addr;
    s.nat_entry.nat_port_be = s.service.backend.port_be;
    s.nat_entry.destination_identity = s.service.backend.id;
    const NOEXIST: u64 = 1;
    if FLOWS.insert(&s.service.key, &s.nat_entry, NOEXIST).is_err() {
        // The table is full; or another CPU was faster, and unless it chose the same the client must try again: its next
        // packets go where that entry says.
        // SAFETY: compared at once.
        let same = unsafe { FLOWS.get(&s.service.key) }.is_some_and(|other| {
            other.flags & flow_flags::SERVICE != 0
                && other.nat_addr == s.nat_entry.nat_addr
                && other.nat_port_be == s.nat_entry.nat_port_be
                && other.last_seen_s != FlowEntry::DELETING
        });
        if !same {
            return Err(DropReason::CtInsertFailed);
        }
    }
    balance::remember(s);
    Ok(())
}
