//! The node's device before the kernel makes anything of a packet (XDP): clients outside and backends elsewhere.
//!
//! Nothing is decided here. Packets are translated as the entries of their connection say, which the program at tc wrote
//! (`lb/translate.rs`, `pipeline/decide.rs`), and leave by the device that they came by. Whatever is new, opens
//! or is unusual in any way passes, untouched and uncounted, to that program: so there is one place where packets are
//! judged and counted as dropped. While flows are observed all packets pass: that program writes the events.

use core::arch::asm;
use core::ptr::read_volatile;

use aya_ebpf::bindings::{bpf_fib_lookup as FibLookup, xdp_action, xdp_md};
use aya_ebpf::helpers::generated::{
    bpf_csum_diff, bpf_fib_lookup, bpf_redirect, bpf_xdp_load_bytes, bpf_xdp_store_bytes,
};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use weft_abi::{Addr, FlowEntry, NodeConfig, config_flags, flow_flags, flow_kind, path_action};

use crate::conntrack::entry::{is_current, record};
use crate::conntrack::key::{canonical_key, flow_key};
use crate::lb::dsr::repeats_option;
use crate::maps::{BACKENDS, FLOWS, SCRATCH, config};
use crate::nat::checksum::fold;
use crate::notify;
use crate::packet::{ETH, TCP, TCP_FIN, TCP_RST, TCP_SYN, UDP};
use crate::scratch::Scratch;

#[xdp]
pub fn weft_edge(ctx: XdpContext) -> u32 {
    run_xdp(ctx.ctx)
}

/// Most bytes of the frame that are read (TCP in IPv6), and fewest that it must have (UDP in IPv4).
const HEAD: u32 = ETH + 60;

const LEAST: u32 = ETH + 28;

/// The packet after translation.
#[derive(Clone, Copy)]
struct New {
    /// Destination and source.
    macs: [[u8; 6]; 2],
    ends: Ends,
}

/// Its addresses and ports.
#[derive(Clone, Copy)]
struct Ends {
    source: Addr,
    destination: Addr,
    source_port: u16,
    destination_port: u16,
}

/// Runs the program.
#[inline(always)]
pub fn run_xdp(context: *mut xdp_md) -> u32 {
    process(context).unwrap_or(xdp_action::XDP_PASS)
}

#[inline(always)]
fn process(context: *mut xdp_md) -> Option<u32> {
    let config = config().filter(|config| config.flags & config_flags::OBSERVE == 0 && config.tunnel_ifindex == 0)?;
    // SAFETY: this CPU's own memory; programs of these hooks do not nest.
    let s = unsafe { &mut *SCRATCH.get_ptr_mut(0)? };
    let present = load_frame(context, s)?;
    if s.at::<[u8; 6]>(0) != config.device_mac {
        return None;
    }
    match u16::from_be(s.at(12)) {
        0x0800 => {
            read_v4(s, present)?;
            read_transport::<34>(s)?;
            let new = translate_by_entry(context, s, config)?;
            rewrite_frame::<34>(s, &new);
        }
        0x86dd => {
            read_v6(s, present)?;
            read_transport::<54>(s)?;
            let new = translate_by_entry(context, s, config)?;
            rewrite_frame::<54>(s, &new);
        }
        _ => return None,
    }
    let length = bounded(s.copied)?;
    // SAFETY: at most HEAD bytes of the buffer.
    if unsafe { bpf_xdp_store_bytes(context, 0, s.frame().cast(), length) } != 0 {
        // Nothing was written, but the packet was noted: it is lost.
        return Some(xdp_action::XDP_ABORTED);
    }
    notify::count_accelerated(s);
    // To the device that it came by. `XDP_TX` would do the same, but between the two ends of a veth pair what it sends is
    // not seen until something else is, unless the other end has a program, too.
    // SAFETY: no pointers.
    Some(unsafe { bpf_redirect(s.packet.ifindex, 0) } as u32)
}

/// Copies the head of the frame; returns how long all of it is.
#[inline(always)]
fn load_frame(context: *mut xdp_md, s: &mut Scratch) -> Option<u32> {
    // SAFETY: the context is valid for the length of the program.
    let (data, end) =
        unsafe { (read_volatile(&raw const (*context).data), read_volatile(&raw const (*context).data_end)) };
    s.packet.ifindex = unsafe {
        // SAFETY: as above.
        read_volatile(&raw const (*context).ingress_ifindex)
    };
    let present = end.wrapping_sub(data);
    s.copied = if present > HEAD { HEAD } else { present };
    let length = bounded(s.copied)?;
    // SAFETY: at most HEAD bytes into the buffer.
    (unsafe { bpf_xdp_load_bytes(context, 0, s.frame().cast(), length) } == 0).then_some(present)
}

/// A length that the verifier can follow.
#[inline(always)]
fn bounded(mut length: u32) -> Option<u32> {
    // SAFETY: no instruction.
    unsafe { asm!("{0} = {0}", inout(reg) length) };
    (length >= LEAST && length <= HEAD).then_some(length)
}

#[inline(always)]
fn read_v4(s: &mut Scratch, present: u32) -> Option<()> {
    let total = u32::from(u16::from_be(s.at(16)));
    s.packet.ttl = s.at(22);
    s.packet.protocol = s.at(23);
    // Options, fragments and the last hop are for the stack; lengths that do not fit are dropped behind the device.
    let fragment = s.at::<u16>(20) & 0x3fff_u16.to_be() != 0;
    if s.at::<u8>(14) != 0x45 || fragment || s.packet.ttl <= 1 || total < 28 || ETH + total > present {
        return None;
    }
    s.packet.version = 4;
    s.packet.length = total;
    s.packet.source = Addr::v4(s.at(26));
    s.packet.destination = Addr::v4(s.at(30));
    Some(())
}

#[inline(always)]
fn read_v6(s: &mut Scratch, present: u32) -> Option<()> {
    let total = u32::from(u16::from_be(s.at(18))) + 40;
    s.packet.protocol = s.at(20);
    s.packet.ttl = s.at(21);
    if s.at::<u8>(14) >> 4 != 6 || s.packet.ttl <= 1 || total < 48 || ETH + total > present {
        return None;
    }
    s.packet.version = 6;
    s.packet.length = total;
    s.packet.source = s.at(22);
    s.packet.destination = s.at(38);
    (!s.packet.source.is_v4() && !s.packet.destination.is_v4()).then_some(())
}

/// The packet has at least 8 bytes behind the network header.
#[inline(always)]
fn read_transport<const L4: usize>(s: &mut Scratch) -> Option<()> {
    let rest = (s.packet.length + ETH).wrapping_sub(L4 as u32);
    s.packet.source_port = s.at(L4);
    s.packet.destination_port = s.at(L4 + 2);
    s.packet.tcp_flags = 0;
    match s.packet.protocol {
        TCP => {
            let header = u32::from(s.at::<u8>(L4 + 12) >> 4) * 4;
            s.packet.tcp_flags = s.at::<u8>(L4 + 13) & 0x3f;
            let good = s.packet.tcp_flags != 0 && s.packet.tcp_flags & TCP_SYN == 0;
            (good && header >= 20 && header <= rest).then_some(())
        }
        UDP => {
            let length = u32::from(u16::from_be(s.at(L4 + 4)));
            (length >= 8 && length <= rest).then_some(())
        }
        _ => None,
    }
}

/// The packet after translation, if its connection is decided and forwarded by this node; counts it on the connection.
#[inline(always)]
fn translate_by_entry(context: *mut xdp_md, s: &mut Scratch, config: &NodeConfig) -> Option<New> {
    if s.packet.length > u32::from(config.pod_mtu) {
        return None;
    }
    let port = u16::from_be(s.packet.destination_port);
    let own = s.packet.destination == config.node_v4 || s.packet.destination == config.node_v6;
    let (ends, entry) =
        if own && port >= config.nat_port_min && port <= config.nat_port_max { to_client(s)? } else { to_backend(s)? };
    let macs = neighbours(context, s, &ends, config)?;
    let forward = s.reply == 0;
    // SAFETY: a map value stays readable for the length of the program.
    record(s, unsafe { &mut *entry }, forward).then_some(New { macs, ends })
}

/// A reply of a backend on another node to the masqueraded address: goes to the client, from the frontend's address.
#[inline(always)]
fn to_client(s: &mut Scratch) -> Option<(Ends, *mut FlowEntry)> {
    canonical_key(&s.packet, flow_kind::NAT, &mut s.nat_key);
    // SAFETY: copied at once.
    let outside = unsafe { FLOWS.get(&s.nat_key) }?;
    let (client, client_port, last) = (outside.nat_addr, outside.nat_port_be, outside.last_seen_s);
    let low = flow_key(
        &s.packet.source,
        s.packet.source_port,
        &client,
        client_port,
        s.packet.protocol,
        flow_kind::FLOW,
        &mut s.key,
    );
    let pointer = FLOWS.get_ptr_mut(&s.key)?;
    // SAFETY: a map value stays readable for the length of the program.
    let entry = unsafe { &mut *pointer };
    const WANTED: u16 = flow_flags::TRANSLATED | flow_flags::MASQUERADED;
    let decided = entry.flags & (WANTED | flow_flags::HAIRPIN | flow_flags::DSR_BACKEND) == WANTED
        && (entry.flags & flow_flags::ORIGIN_LOW != 0) != low
        && entry.reply.action == path_action::DEVICE
        && entry.reply.in_ifindex == s.packet.ifindex
        && last != FlowEntry::DELETING
        && is_current(entry);
    if !decided {
        return None;
    }
    s.reply = 1;
    let ends = Ends {
        source: entry.frontend,
        source_port: entry.frontend_port_be,
        destination: client,
        destination_port: client_port,
    };
    Some((ends, pointer))
}

/// A client's packet to a frontend, for a backend on another node.
#[inline(always)]
fn to_backend(s: &mut Scratch) -> Option<(Ends, *mut FlowEntry)> {
    let low = canonical_key(&s.packet, flow_kind::FLOW, &mut s.key);
    // SAFETY: copied at once.
    let choice = unsafe { FLOWS.get(&s.key) }?;
    let (flags, last, number) = (choice.flags, choice.last_seen_s, choice.destination_identity);
    let (backend, backend_port) = (choice.nat_addr, choice.nat_port_be);
    if flags & (flow_flags::SERVICE | flow_flags::HAIRPIN) != flow_flags::SERVICE
        || (flags & flow_flags::ORIGIN_LOW != 0) != low
        || last == FlowEntry::DELETING
    {
        return None;
    }
    let tcp = s.packet.protocol == TCP;
    if !tcp {
        // If the backend is gone, another one is chosen at tc.
        // SAFETY: compared at once.
        let exists =
            unsafe { BACKENDS.get(&number) }.is_some_and(|info| info.addr == backend && info.port_be == backend_port);
        if !exists {
            return None;
        }
    }
    let low = flow_key(
        &s.packet.source,
        s.packet.source_port,
        &backend,
        backend_port,
        s.packet.protocol,
        flow_kind::FLOW,
        &mut s.nat_key,
    );
    let pointer = FLOWS.get_ptr_mut(&s.nat_key)?;
    // SAFETY: a map value stays readable for the length of the program.
    let entry = unsafe { &mut *pointer };
    let decided = entry.flags & (flow_flags::TRANSLATED | flow_flags::HAIRPIN | flow_flags::DSR_BACKEND)
        == flow_flags::TRANSLATED
        && (entry.flags & flow_flags::ORIGIN_LOW != 0) == low
        && entry.frontend == s.packet.destination
        && entry.frontend_port_be == s.packet.destination_port
        && entry.forward.in_ifindex == s.packet.ifindex
        && is_current(entry);
    if !decided {
        return None;
    }
    s.reply = 0;
    let ends = Ends {
        source: s.packet.source,
        source_port: s.packet.source_port,
        destination: backend,
        destination_port: backend_port,
    };
    match entry.forward.action {
        path_action::MASQUERADE => {
            Some((Ends { source: entry.nat_addr, source_port: entry.nat_port_be, ..ends }, pointer))
        }
        path_action::DEVICE if entry.flags & flow_flags::DSR_FRONTEND != 0 => {
            // Packets with a DSR option, and those that change the timeout of the connection, take the program at tc.
            let as_usual = if tcp {
                const OPEN: u16 = flow_flags::DSR_OPTION_SENT | flow_flags::SEEN_REPLY;
                entry.flags & (OPEN | flow_flags::FIN_FORWARD) == OPEN && s.packet.tcp_flags & (TCP_FIN | TCP_RST) == 0
            } else {
                entry.flags & flow_flags::DSR_OPTION_SENT != 0 && !repeats_option(entry.forward_packets + 1)
            };
            as_usual.then_some((ends, pointer))
        }
        _ => None,
    }
}

/// Looks up the next hop in the node's FIB: its MAC and that of the device. Only if that is the device that the packet came
/// by and the neighbour is resolved.
#[inline(always)]
fn neighbours(context: *mut xdp_md, s: &Scratch, ends: &Ends, config: &NodeConfig) -> Option<[[u8; 6]; 2]> {
    const OUTPUT: u32 = 2;
    let mut query: FibLookup = unsafe {
        // SAFETY: all zero is a valid query.
        core::mem::zeroed()
    };
    query.ifindex = s.packet.ifindex;
    if s.packet.version == 4 {
        query.family = 2;
        query.__bindgen_anon_4.ipv4_dst = ends.destination.0[3];
        query.__bindgen_anon_3.ipv4_src = config.node_v4.0[3];
    } else {
        query.family = 10;
        query.__bindgen_anon_4.ipv6_dst = ends.destination.0;
        query.__bindgen_anon_3.ipv6_src = config.node_v6.0;
    }
    // SAFETY: the query lives on the stack for the call.
    let answer = unsafe { bpf_fib_lookup(context.cast(), &raw mut query, size_of::<FibLookup>() as i32, OUTPUT) };
    (answer == 0 && query.ifindex == s.packet.ifindex).then_some([query.dmac, query.smac])
}

/// Writes the new addresses into the copy of the packet's head and updates the checksums (RFC 1624).
#[inline(always)]
fn rewrite_frame<const L4: usize>(s: &mut Scratch, new: &New) {
    let ends = &new.ends;
    let words = |source: &Addr, destination: &Addr, from: u16, to: u16| {
        let (a, b) = (source.0, destination.0);
        let ports = u32::from(from) | u32::from(to) << 16;
        [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], ports]
    };
    let mut from = words(&s.packet.source, &s.packet.destination, s.packet.source_port, s.packet.destination_port);
    let mut to = words(&ends.source, &ends.destination, ends.source_port, ends.destination_port);
    put(s, 0, new.macs);
    let udp = s.packet.protocol == UDP;
    let sum: u16 = if udp { s.at(L4 + 6) } else { s.at(L4 + 16) };
    // Without a checksum, as only UDP in IPv4 may be.
    if !(udp && sum == 0 && L4 == 34) {
        // SAFETY: two buffers of the stack of this length.
        let total = unsafe { bpf_csum_diff(from.as_mut_ptr(), 36, to.as_mut_ptr(), 36, u32::from(!sum)) };
        let sum = fold(total as u32);
        if udp {
            put(s, L4 + 6, if sum == 0 { 0xffff } else { sum });
        } else {
            put(s, L4 + 16, sum);
        }
    }
    put(s, L4, ends.source_port);
    put(s, L4 + 2, ends.destination_port);
    let ttl = s.packet.ttl.wrapping_sub(1);
    if L4 == 34 {
        let sum: u16 = s.at(24);
        // The ports are not in this one, but the TTL is.
        from[8] = u32::from(s.packet.ttl);
        to[8] = u32::from(ttl);
        // SAFETY: as above.
        let total = unsafe { bpf_csum_diff(from.as_mut_ptr(), 36, to.as_mut_ptr(), 36, u32::from(!sum)) };
        put(s, 24, fold(total as u32));
        put(s, 22, ttl);
        put(s, 26, ends.source.0[3]);
        put(s, 30, ends.destination.0[3]);
    } else {
        put(s, 21, ttl);
        put(s, 22, ends.source);
        put(s, 38, ends.destination);
    }
}

/// Writes a field of the copy.
#[inline(always)]
fn put<T: Copy>(s: &mut Scratch, offset: usize, value: T) {
    // SAFETY: every caller passes offsets that end inside the buffer; the verifier refuses the program otherwise.
    unsafe { s.frame().add(offset).cast::<T>().write_unaligned(value) };
}
