//! Connection tracking: the established path, where one lookup is all.

use core::arch::asm;

use weft_abi::{
    Addr, DropReason, ENDPOINT_ID_MAX, FlowEntry, FlowKey, NodeConfig, Path, config_flags, flow_flags, flow_kind,
    path_action,
};

use crate::maps::{CONFIG, FLOWS, GENERATIONS};
use crate::packet::{Packet, Scratch, Skb, TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, UNKNOWN_PORTS};
use crate::{Hook, balance, forward, notify, service, step};

/// Exchanges `*place` from `old` to `new`; returns what was there.
///
/// # Safety
/// `place` points into a map value.
#[inline(always)]
pub unsafe fn exchange(place: *mut u32, old: u32, new: u32) -> u32 {
    let found: u64;
    // SAFETY: one atomic instruction of the BPF instruction set (v3) on memory that the caller vouches for.
    unsafe {
        asm!("w0 = cmpxchg32_32(r1 + 0, w0, w2)", inout("r0") u64::from(old) => found, in("r1") place, in("r2") u64::from(new));
    }
    found as u32
}

/// Changes the flags of a connection from `old` to `new`: only the bits that differ, each of them at once. The packets of
/// its other direction may be doing the same on another CPU; if both sides close at one time and one flag is lost, the
/// entry stays for as long as an open connection.
#[inline(always)]
pub fn change(entry: &mut FlowEntry, old: u16, new: u16) {
    const OFFSET: usize = core::mem::offset_of!(FlowEntry, flags);
    const _: () = assert!(OFFSET % 4 == 0 && cfg!(target_endian = "little"), "the flags are the low half of a word");
    let (set, keep) = (u32::from(new & !old), !u32::from(old & !new));
    let entry = core::ptr::from_mut(entry);
    // SAFETY: atomic instructions of the BPF instruction set on a word inside a map value, which the caller borrowed.
    unsafe {
        if set != 0 {
            asm!("lock *(u32 *)(r1 + {offset}) |= w2", in("r1") entry, in("r2") u64::from(set), offset = const OFFSET);
        }
        if keep != u32::MAX {
            asm!("lock *(u32 *)(r1 + {offset}) &= w2", in("r1") entry, in("r2") u64::from(keep), offset = const OFFSET);
        }
    }
}

/// The node's configuration, once user space has written it. Not a `Result`: half of that would be undefined, and the
/// verifier sees when a register that nobody wrote is saved.
#[inline(always)]
pub fn config() -> Option<&'static NodeConfig> {
    CONFIG.get(0).filter(|config| config.revision != 0)
}

/// Monotonic seconds.
#[inline(always)]
pub fn now_s() -> u32 {
    // SAFETY: no arguments.
    (unsafe { aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns() } / 1_000_000_000) as u32
}

/// Orders the two ends; true: the source is the low one.
#[inline(always)]
pub fn canonical(packet: &Packet, kind: u8, key: &mut FlowKey) -> bool {
    tuple(&packet.source, packet.source_port, &packet.destination, packet.destination_port, packet.protocol, kind, key)
}

/// The same of loose parts.
#[inline(always)]
pub fn tuple(a: &Addr, a_port: u16, b: &Addr, b_port: u16, protocol: u8, kind: u8, key: &mut FlowKey) -> bool {
    let a_is_low = less(a, a_port, b, b_port);
    key.protocol = protocol;
    key.kind = kind;
    key.pad = 0;
    if a_is_low {
        key.low = *a;
        key.high = *b;
        key.low_port_be = a_port;
        key.high_port_be = b_port;
    } else {
        key.low = *b;
        key.high = *a;
        key.low_port_be = b_port;
        key.high_port_be = a_port;
    }
    a_is_low
}

/// Any total order will do; the last word differs most often.
#[inline(always)]
fn less(a: &Addr, a_port: u16, b: &Addr, b_port: u16) -> bool {
    if a.0[3] != b.0[3] {
        return a.0[3] < b.0[3];
    }
    if a.0[2] != b.0[2] {
        return a.0[2] < b.0[2];
    }
    if a.0[1] != b.0[1] {
        return a.0[1] < b.0[1];
    }
    if a.0[0] != b.0[0] {
        return a.0[0] < b.0[0];
    }
    a_port <= b_port
}

#[inline(always)]
fn generation(slot: u16) -> u32 {
    GENERATIONS.get(u32::from(slot & ENDPOINT_ID_MAX)).copied().unwrap_or(u32::MAX)
}

/// Whether nothing that the verdict rests on has changed since.
#[inline(always)]
pub fn fresh(entry: &FlowEntry) -> bool {
    let revision = entry.revision;
    revision >= generation(0)
        && revision >= generation(entry.source_endpoint)
        && revision >= generation(entry.destination_endpoint)
}

#[inline(always)]
pub fn closing(flags: u16) -> bool {
    let both = flow_flags::FIN_FORWARD | flow_flags::FIN_REPLY;
    flags & flow_flags::RST != 0 || flags & both == both
}

/// Finds or makes the packet's connection and sends the packet on its way.
#[inline(always)]
pub fn track(skb: Skb, s: &mut Scratch, hook: Hook, config: &NodeConfig) -> Result<(), DropReason> {
    let none = core::ptr::null_mut();
    follow::<false>(
        skb,
        s,
        hook,
        config,
        none,
        |s, entry| forward::go(skb, s, Some(entry), config),
        |s| step::send(skb, s),
    )
}

/// The same of a packet that was translated for a service. Apart from it, so that neither is a loop. `choice` is the
/// entry between client and frontend, if it is known.
#[inline(always)]
pub fn behind(skb: Skb, s: &mut Scratch, hook: Hook, choice: *mut FlowEntry) -> Result<(), DropReason> {
    let Some(config) = config() else { return Err(DropReason::NoConfig) };
    follow::<true>(skb, s, hook, config, choice, |s, entry| step::go(skb, s, entry), |s| step::send(skb, s))
}

/// Finds or makes the packet's connection; `go` is for the packet of one that is decided already, `send` for the others.
#[inline(always)]
pub fn follow<const BEHIND: bool>(
    skb: Skb,
    s: &mut Scratch,
    hook: Hook,
    config: &NodeConfig,
    choice: *mut FlowEntry,
    go: impl FnOnce(&mut Scratch, &mut FlowEntry) -> Result<(), DropReason>,
    send: impl FnOnce(&mut Scratch) -> Result<(), DropReason>,
) -> Result<(), DropReason> {
    if s.packet.flags & UNKNOWN_PORTS != 0 {
        step::untracked(skb, s, hook)?;
        return send(s);
    }
    // Where packets of clients come in, services are looked for: off the established path, since their entries have no
    // path of their own.
    let serves = BEHIND || matches!(hook, Hook::FromPod | Hook::FromDevice);
    let low = canonical(&s.packet, flow_kind::FLOW, &mut s.key);
    s.low = u8::from(low);
    let mut existing = FLOWS.get_ptr_mut(&s.key);
    if let Some(pointer) = existing {
        // SAFETY: a map value stays readable for the length of the program; other CPUs may write fields meanwhile,
        // each of which is one word that is right before and after.
        let entry = unsafe { &mut *pointer };
        let forward = (entry.flags & flow_flags::ORIGIN_LOW != 0) == low;
        s.reply = u8::from(!forward);
        let path: &Path = if forward { &entry.forward } else { &entry.reply };
        let opening =
            s.packet.protocol == TCP && s.packet.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN && closing(entry.flags);
        if path.in_ifindex == s.packet.ifindex
            && path.action != path_action::NONE
            && !opening
            && !(serves && service::is_foreign(s, entry, forward))
            && fresh(entry)
            && seen(s, entry, forward)
        {
            if config.flags & config_flags::OBSERVE != 0 {
                notify::trace(skb, s, entry, hook);
            }
            return go(s, entry);
        }
        // SAFETY: as above.
        if unsafe { core::ptr::read_volatile(&raw const entry.last_seen_s) } == FlowEntry::DELETING {
            existing = None;
        }
    }
    let mut existing = existing.unwrap_or(core::ptr::null_mut());
    if !BEHIND && serves {
        step::translate(skb, s, hook, existing)?;
        match s.answer {
            service::NOTHING => {}
            service::VACATED => existing = core::ptr::null_mut(),
            _ => return step::behind(skb, s, hook, existing),
        }
    }
    let decided = step::decide(skb, s, hook, existing);
    if BEHIND {
        if decided.is_err() {
            balance::forget(s);
        } else {
            service::remember(s, choice)?;
        }
    }
    decided?;
    if config.flags & config_flags::OBSERVE != 0 && s.audited == 0 {
        notify::verdict(skb, s, hook);
    }
    send(s)
}

/// Notes the packet on its connection; false: the collector has claimed it.
#[inline(always)]
pub fn seen(s: &Scratch, entry: &mut FlowEntry, forward: bool) -> bool {
    let now = now_s();
    let last = entry.last_seen_s;
    if last != now {
        if last == FlowEntry::DELETING {
            return false;
        }
        // SAFETY: a field of a map value. Another CPU that refreshed it is as good; only the collector's mark is not.
        if unsafe { exchange(&raw mut entry.last_seen_s, last, now) } == FlowEntry::DELETING {
            return false;
        }
    }
    let length = u64::from(s.packet.length);
    if forward {
        entry.forward_packets += 1;
        entry.forward_bytes += length;
    } else {
        entry.reply_packets += 1;
        entry.reply_bytes += length;
    }
    let old = entry.flags;
    change(entry, old, next_flags(&s.packet, old, forward));
    true
}

/// The connection's state after this packet. A reset only shortens the entry's life, and traffic after it takes that
/// back: a forged one cannot close a connection that goes on.
#[inline(always)]
pub fn next_flags(packet: &Packet, flags: u16, forward: bool) -> u16 {
    let mut flags = flags | if forward { flow_flags::SEEN_FORWARD } else { flow_flags::SEEN_REPLY };
    if packet.protocol == TCP {
        if packet.tcp_flags & TCP_RST != 0 {
            flags |= flow_flags::RST;
        } else {
            flags &= !flow_flags::RST;
        }
        if packet.tcp_flags & TCP_FIN != 0 {
            flags |= if forward { flow_flags::FIN_FORWARD } else { flow_flags::FIN_REPLY };
        }
    }
    flags
}
