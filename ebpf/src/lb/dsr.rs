//! Direct server return (DSR): a client outside reaches a backend on another node with its own address, and the backend's
//! node replies to it from the frontend's address, past the frontend's node.
//!
//! The frontend's node adds the DSR option with the frontend: an option of IPv4 (type 0x9a: port, address) or a destination
//! option of IPv6 (type 0x1b: address, port), as Cilium has it. Only the first packets carry it, so that a stream keeps
//! its MTU; the same bytes serve inside the tunnel and without one.
//!
//! The option is no credential. The backend's node looks the frontend up in its own table and accepts the option only from a
//! client outside, for a frontend that this client may use, and for a pod that is its backend here. So a forged option
//! gains nothing over a packet to the frontend; everything else is dropped. With a tunnel, the option is accepted out of
//! the tunnel only.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{
    bpf_csum_diff, bpf_l3_csum_replace, bpf_loop, bpf_skb_adjust_room, bpf_skb_store_bytes,
};
use weft_abi::{
    Addr, DSR_BACKENDS_MAX, DropReason, FlowEntry, FrontendKey, NodeConfig, SlotKey, flow_flags, flow_kind, identity,
    ipcache_flags, service_flags,
};

use crate::conntrack::entry::{compare_exchange, is_closing, now_s, set_flags};
use crate::conntrack::key::canonical_key;
use crate::endpoint::lookup::{endpoint, identity_of};
use crate::lb::frontend::check_client;
use crate::maps::{FLOWS, FRONTENDS, IPCACHE, SLOTS, config};
use crate::packet::{
    DSR_OPTION, DSR_OPTION_V4, DSR_OPTION_V6, ETH, SCTP, Skb, TCP, TCP_ACK, TCP_FIN, TCP_SYN, TUNNELLED, UDP,
    UNKNOWN_PORTS, UNMASQUERADED, load, skb_gso_size,
};
use crate::parse::ip::parse_again;
use crate::reject::reject_too_big;
use crate::scratch::{Scratch, translated};
use crate::step::step;

/// `BPF_ADJ_ROOM_NET`: right behind the fixed header.
const MODE_NET: u32 = 0;

/// Bytes of the option: IPv4, and IPv6 with the header that holds it.
const BYTES_V4: u32 = 8;

const BYTES_V6: u32 = 24;

/// Without a handshake the option is in the first `OPTION_PACKETS` packets, and in one of `OPTION_INTERVAL` later.
const OPTION_PACKETS: u64 = 16;

const OPTION_INTERVAL: u64 = 32;

/// Whether the client's packets go to the chosen backend by DSR.
#[inline(never)]
pub fn uses_dsr(s: &Scratch) -> bool {
    let Some(config) = config() else { return false };
    if s.service.outside == 0
        || s.service.info.flags & service_flags::DSR == 0
        || s.service.count > DSR_BACKENDS_MAX
        || s.packet.flags & TUNNELLED != 0
        || identity::scope(identity_of(&s.packet.source, config).0) != identity::SCOPE_WORLD
    {
        return false;
    }
    // Pods only: a backend in a node's own network replies by itself.
    // SAFETY: read at once.
    unsafe { IPCACHE.get(&s.service.backend.addr) }
        .is_some_and(|info| info.flags & (ipcache_flags::NODE | ipcache_flags::LOCAL) == 0)
}

/// Whether the packet of this number repeats the option: earlier ones may have been lost.
#[inline(always)]
pub const fn repeats_option(number: u64) -> bool {
    number < OPTION_PACKETS || number % OPTION_INTERVAL == 0
}

/// Whether the client has closed a connection of which this node sees its half alone: it cannot wait for the FIN of the other
/// end. If the connection goes on, the backend's node decides.
#[inline(always)]
pub const fn is_client_done(flags: u16) -> bool {
    const ENDED: u16 = flow_flags::DSR_FRONTEND | flow_flags::FIN_FORWARD;
    flags & ENDED == ENDED
}

step!(prepare_option(entry: *mut FlowEntry) = weft_step_prepare_option: prepare_option_body);

/// Before a packet leaves for a backend that replies directly: updates the state of its connection, of which this node sees
/// one half alone, and leaves the size of the DSR option in `s.dsr_option`, 0: this packet needs none.
#[inline(always)]
fn prepare_option_body(skb: Skb, s: &mut Scratch, entry: *mut FlowEntry) -> Result<(), DropReason> {
    s.dsr_option = 0;
    let Some(config) = config() else { return Err(DropReason::NoConfig) };
    let entry = if entry.is_null() { FLOWS.get_ptr_mut(&s.key).unwrap_or(core::ptr::null_mut()) } else { entry };
    if entry.is_null() {
        return Err(DropReason::CtInsertFailed);
    }
    // SAFETY: a value of FLOWS, readable for the length of the program.
    let entry = unsafe { &mut *entry };
    let (old, packets) = (entry.flags, entry.forward_packets);
    let mut flags = old;
    let tcp = s.packet.protocol == TCP;
    let opens = tcp && s.packet.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN;
    if opens {
        flags &= !(flow_flags::SEEN_REPLY | flow_flags::FIN_FORWARD | flow_flags::DSR_OPTION_SENT);
    } else if tcp && flags & flow_flags::FIN_FORWARD != 0 || s.packet.tcp_flags & TCP_FIN != 0 {
        // The reply is not seen: the timeout is that of a connection that is not open yet.
        flags &= !flow_flags::SEEN_REPLY;
    } else if tcp {
        // A client that goes on has seen a reply.
        flags |= flow_flags::SEEN_REPLY;
    }
    let sent = flags & flow_flags::DSR_OPTION_SENT != 0;
    if !sent || !tcp && repeats_option(packets) {
        let v4 = s.packet.version == 4;
        let bytes = if v4 { BYTES_V4 } else { BYTES_V6 };
        let room = if v4 {
            u32::from(s.packet.l4) + bytes <= ETH + 60
        } else {
            // Hop-by-hop options come first or not at all (RFC 8200 section 4.1).
            s.at::<u8>(20) != 0
        };
        let super_packet = skb_gso_size(skb) != 0;
        let fits = s.packet.length + bytes <= u32::from(config.pod_mtu);
        if room && fits && !super_packet {
            s.dsr_option = bytes;
            flags |= flow_flags::DSR_OPTION_SENT;
        } else if !sent {
            if fits || super_packet {
                return Err(DropReason::FragmentationNeeded);
            }
            return reject_too_big(s, u32::from(config.pod_mtu) - bytes);
        }
    }
    set_flags(entry, old, flags);
    Ok(())
}

step!(insert_option() = weft_step_insert_option: insert_option_body);

/// Inserts the option with the frontend, after the head of the packet was written back.
#[inline(always)]
fn insert_option_body(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let (port, frontend) = (s.frontend_port.to_ne_bytes(), s.frontend);
    let bytes = s.dsr_option;
    // SAFETY: plain numbers; buffers of the stack, as long as the helpers are told.
    unsafe {
        if bpf_skb_adjust_room(skb, bytes as i32, MODE_NET, 0) != 0 {
            return Err(DropReason::WriteError);
        }
        if s.packet.version == 4 {
            let head: u32 = s.at(14);
            let mut from = [head];
            let option = [u32::from_ne_bytes([DSR_OPTION_V4, BYTES_V4 as u8, port[0], port[1]]), frontend.0[3]];
            let mut to = [resize(head, BYTES_V4 as i32), option[0], option[1]];
            let sum = bpf_csum_diff(from.as_mut_ptr(), 4, to.as_mut_ptr(), 12, 0);
            if sum < 0
                || bpf_skb_store_bytes(skb, ETH, to.as_ptr().cast(), 4, 0) != 0
                || bpf_skb_store_bytes(skb, ETH + 20, option.as_ptr().cast(), BYTES_V4, 0) != 0
                || bpf_l3_csum_replace(skb, ETH + 10, 0, sum as u64, 0) != 0
            {
                return Err(DropReason::WriteError);
            }
        } else {
            let length = u16::from_be(s.at(18)).wrapping_add(BYTES_V6 as u16).to_be_bytes();
            let head = [length[0], length[1], 60];
            let header = [
                // The option's length: all behind it.
                u32::from_ne_bytes([s.at(20), (BYTES_V6 / 8 - 1) as u8, DSR_OPTION_V6, BYTES_V6 as u8 - 4]),
                frontend.0[0],
                frontend.0[1],
                frontend.0[2],
                frontend.0[3],
                u32::from_ne_bytes([port[0], port[1], 0, 0]),
            ];
            if bpf_skb_store_bytes(skb, ETH + 4, head.as_ptr().cast(), 3, 0) != 0
                || bpf_skb_store_bytes(skb, ETH + 40, header.as_ptr().cast(), BYTES_V6, 0) != 0
            {
                return Err(DropReason::WriteError);
            }
        }
    }
    Ok(())
}

/// The first word of an IPv4 header, with a header and a packet that are so many bytes longer.
#[inline(always)]
const fn resize(head: u32, bytes: i32) -> u32 {
    let [first, service, high, low] = head.to_ne_bytes();
    let total = u16::from_be_bytes([high, low]).wrapping_add(bytes as u16).to_be_bytes();
    u32::from_ne_bytes([first.wrapping_add((bytes / 4) as u8), service, total[0], total[1]])
}

step!(receive_option() = weft_step_receive_option: receive_option_body);

/// Removes the option from a packet for a pod of this node and checks its frontend against the table of services.
#[inline(always)]
fn receive_option_body(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let Some(config) = config() else { return Err(DropReason::NoConfig) };
    if endpoint(&s.packet.destination).is_none() {
        // Not for a pod of this node.
        return Ok(());
    }
    if s.packet.flags & (UNKNOWN_PORTS | UNMASQUERADED) != 0 || !matches!(s.packet.protocol, TCP | UDP | SCTP) {
        return Err(DropReason::InvalidPacket);
    }
    let tunnelled = s.packet.flags & TUNNELLED;
    let sender = if tunnelled != 0 { s.packet.tunnel_identity } else { identity_of(&s.packet.source, config).0 };
    if config.tunnel_ifindex != 0 && tunnelled == 0 || identity::scope(sender) != identity::SCOPE_WORLD {
        return Err(DropReason::UnknownSender);
    }
    let ifindex = s.packet.ifindex;
    remove_option(skb, s)?;
    parse_again(skb, s)?;
    s.packet.ifindex = ifindex;
    if s.packet.flags & DSR_OPTION != 0 {
        return Err(DropReason::InvalidPacket);
    }
    s.translated = translated::DSR;
    if !is_tracked(s, config)? {
        check_frontend(s, config)?;
    }
    Ok(())
}

/// Leaves the frontend in `s.frontend` and `s.frontend_port` and closes the gap.
#[inline(never)]
fn remove_option(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    // SAFETY: plain numbers; buffers of the stack, as long as the helpers are told.
    unsafe {
        if s.packet.version == 4 {
            let option: [u32; 2] = load(skb, ETH + 20)?;
            let head: u32 = load(skb, ETH)?;
            let bytes = option[0].to_ne_bytes();
            s.frontend_port = u16::from_ne_bytes([bytes[2], bytes[3]]);
            s.frontend = Addr::v4(option[1]);
            let mut from = [head, option[0], option[1]];
            let mut to = [resize(head, -(BYTES_V4 as i32))];
            let sum = bpf_csum_diff(from.as_mut_ptr(), 12, to.as_mut_ptr(), 4, 0);
            if sum < 0
                || bpf_skb_adjust_room(skb, -(BYTES_V4 as i32), MODE_NET, 0) != 0
                || bpf_skb_store_bytes(skb, ETH, to.as_ptr().cast(), 4, 0) != 0
                || bpf_l3_csum_replace(skb, ETH + 10, 0, sum as u64, 0) != 0
            {
                return Err(DropReason::WriteError);
            }
        } else {
            let header: [u32; 6] = load(skb, ETH + 40)?;
            let head: [u8; 2] = load(skb, ETH + 4)?;
            s.frontend = Addr([header[1], header[2], header[3], header[4]]);
            s.frontend_port = (header[5] & 0xffff) as u16;
            let length = u16::from_be_bytes(head).wrapping_sub(BYTES_V6 as u16).to_be_bytes();
            let head = [length[0], length[1], header[0].to_ne_bytes()[0]];
            if bpf_skb_adjust_room(skb, -(BYTES_V6 as i32), MODE_NET, 0) != 0
                || bpf_skb_store_bytes(skb, ETH + 4, head.as_ptr().cast(), 3, 0) != 0
            {
                return Err(DropReason::WriteError);
            }
        }
    }
    Ok(())
}

/// Whether the packet's connection is tracked for this frontend already. Evicts an entry of another one that is over.
#[inline(never)]
fn is_tracked(s: &mut Scratch, config: &NodeConfig) -> Result<bool, DropReason> {
    let low = canonical_key(&s.packet, flow_kind::FLOW, &mut s.key);
    let Some(entry) = FLOWS.get_ptr_mut(&s.key) else { return Ok(false) };
    // SAFETY: a map value stays readable for the length of the program.
    let entry = unsafe { &mut *entry };
    let (last, flags) = (entry.last_seen_s, entry.flags);
    if last == FlowEntry::DELETING {
        return Ok(false);
    }
    const SAME: u16 = flow_flags::TRANSLATED | flow_flags::DSR_BACKEND;
    let forward = (flags & flow_flags::ORIGIN_LOW != 0) == low;
    let same = entry.frontend == s.frontend && entry.frontend_port_be == s.frontend_port;
    if forward && flags & flow_flags::TRANSLATED != 0 && same {
        // Also if the client reached this node first.
        set_flags(entry, flags, flags | SAME);
        return Ok(true);
    }
    let tcp = s.packet.protocol == TCP;
    let over =
        if tcp { is_closing(flags) } else { now_s().wrapping_sub(last).wrapping_sub(config.other_s) < u32::MAX / 2 };
    // The client and the pod use these ports already. Without a handshake, an entry without a frontend is this connection:
    // one of its packets overtook the first one with the option.
    if !over && (tcp || !forward || flags & flow_flags::TRANSLATED != 0) {
        return Err(DropReason::NoNatMapping);
    }
    // SAFETY: a field of a map value.
    if unsafe { compare_exchange(&raw mut entry.last_seen_s, last, FlowEntry::DELETING) } == last {
        let _ = FLOWS.remove(&s.key);
    }
    Ok(false)
}

/// Whether this client may reach this pod by the frontend.
#[inline(never)]
fn check_frontend(s: &mut Scratch, config: &NodeConfig) -> Result<(), DropReason> {
    let mut key = FrontendKey { addr: s.frontend, port_be: s.frontend_port, protocol: s.packet.protocol, pad: 0 };
    // SAFETY: values are replaced, never changed in place; copied at once.
    let mut found = unsafe { FRONTENDS.get(&key) };
    if found.is_none() {
        // A port of the nodes, at any node's address.
        // SAFETY: read at once.
        let node = unsafe { IPCACHE.get(&s.frontend) }.is_some_and(|info| info.flags & ipcache_flags::NODE != 0);
        if !node || s.frontend == config.node_v4 || s.frontend == config.node_v6 {
            return Err(DropReason::NoServiceBackend);
        }
        key.addr = if s.packet.version == 4 { FrontendKey::ANY_V4 } else { FrontendKey::ANY_V6 };
        // SAFETY: as above.
        found = unsafe { FRONTENDS.get(&key) };
    }
    let Some(info) = found else { return Err(DropReason::NoServiceBackend) };
    s.service.info = *info;
    s.service.outside = 1;
    s.service.set = info.external_set;
    s.service.count = info.external_count;
    if s.service.info.flags & service_flags::HOST_PORT != 0 {
        return Err(DropReason::NoServiceBackend);
    }
    check_client(s)?;
    s.output = 0;
    let count = if s.service.count > DSR_BACKENDS_MAX { 0 } else { s.service.count };
    // The argument must lie on the stack.
    let mut this = core::ptr::from_mut(s);
    // SAFETY: a callback of the right shape and its argument, which outlives the call.
    unsafe { bpf_loop(count, compare_backend as *mut c_void, (&raw mut this).cast(), 0) };
    if core::mem::take(&mut s.output) == 1 { Ok(()) } else { Err(DropReason::NoServiceBackend) }
}

unsafe extern "C" fn compare_backend(slot: u32, s: *mut c_void) -> i64 {
    // SAFETY: the argument of the loop; this CPU's own memory, which the caller does not use meanwhile.
    let s = unsafe { &mut **s.cast::<*mut Scratch>() };
    // SAFETY: compared at once.
    let this = unsafe { SLOTS.get(&SlotKey { set: s.service.set, slot }) }.is_some_and(|backend| {
        backend.addr == s.packet.destination
            && backend.port_be == s.packet.destination_port
            && backend.protocol == s.packet.protocol
    });
    s.output = u32::from(this);
    i64::from(this)
}
