//! Replaces addresses and ports in a packet and updates its checksums.

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::generated::{bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_store_bytes};
use weft_abi::{Addr, DropReason};

use crate::nat::checksum::{is_partial, partial_starts_at, sum_difference, update_checksum};
use crate::nat::sctp::update_crc;
use crate::packet::{ECHO, ETH, ICMP, ICMPV6, LATER_FRAGMENT, SCTP, Skb, TCP, UDP, load, skb_gso_size};
use crate::scratch::{HEAD, Scratch};

/// Replaces the source or the destination and its port (or the id of an echo), in the frame and in `s.packet`.
#[inline(always)]
pub fn replace<const SOURCE: bool>(skb: Skb, s: &mut Scratch, new: &Addr, port_be: u16) -> Result<(), DropReason> {
    let v4 = s.packet.version == 4;
    let (old, old_port) = if SOURCE {
        (s.packet.source, s.packet.source_port)
    } else {
        (s.packet.destination, s.packet.destination_port)
    };
    let plain = matches!(s.packet.protocol, TCP | UDP)
        && s.packet.flags & LATER_FRAGMENT == 0
        && u32::from(s.packet.l4) == ETH + if v4 { 20 } else { 40 };
    if plain {
        rewrite_head::<SOURCE>(skb, s, &old, new, old_port, port_be)?;
    } else {
        let address = ETH
            + if v4 { 12 } else { 8 }
            + if SOURCE {
                0
            } else if v4 {
                4
            } else {
                16
            };
        rewrite_address(skb, s, address, &old, new)?;
        let echo = s.packet.flags & ECHO != 0;
        rewrite_port(
            skb,
            s,
            if echo {
                4
            } else if SOURCE {
                0
            } else {
                2
            },
            old_port,
            port_be,
        )?;
    }
    if SOURCE {
        s.packet.source = *new;
        s.packet.source_port = port_be;
    } else {
        s.packet.destination = *new;
        s.packet.destination_port = port_be;
    }
    Ok(())
}

/// The same where nothing lies between addresses and ports, which is nearly always: every call of a helper costs as much
/// as the rest. So addresses, ports and IPv4's checksum are changed in the copy of the head alone, and so is the checksum
/// of TCP and UDP if it is partial; all is written with the TTL or by [`flush_head`].
#[inline(always)]
fn rewrite_head<const SOURCE: bool>(
    skb: Skb,
    s: &mut Scratch,
    old: &Addr,
    new: &Addr,
    old_port: u16,
    port_be: u16,
) -> Result<(), DropReason> {
    let (at, flags) = if s.packet.protocol == TCP { (16, 0) } else { (6, BPF_F_MARK_MANGLED_0 as u64) };
    let v4 = s.packet.version == 4;
    let sum_at = ETH + at + if v4 { 20 } else { 40 };
    let pseudo = flags | BPF_F_PSEUDO_HDR as u64;
    // Of a short packet the copy may end before.
    let partial = s.copied >= sum_at + 2 && is_partial(skb);
    // The partial checksum may be that of an encapsulated packet: then the outer datagram has a complete checksum, or none.
    // With GSO the outer checksum is partial too: it is completed for each segment.
    let outer = s.packet.protocol == UDP && partial && skb_gso_size(skb) == 0 && !partial_starts_at(skb, sum_at - at);
    let frame = s.frame();
    // SAFETY: the helpers take plain numbers; all of these headers are inside the copy.
    let done = unsafe {
        let place = frame.add(sum_at as usize).cast::<u16>();
        let update = |from: u32, to: u32| {
            let sum = place.read();
            if sum == 0 {
                // There is none.
                return;
            }
            place.write(if outer {
                let sum = update_checksum(update_checksum(sum, from, to), u32::from(old_port), u32::from(port_be));
                // 0 would mean that there is none (RFC 768).
                if sum == 0 { u16::MAX } else { sum }
            } else {
                !update_checksum(!sum, from, to)
            });
        };
        if v4 {
            let (from, to) = (old.0[3], new.0[3]);
            let sum = update_checksum(frame.add(24).cast::<u16>().read(), from, to);
            frame.add(24).cast::<u16>().write(sum);
            frame.add(if SOURCE { 26 } else { 30 }).cast::<u32>().write(to);
            frame.add(if SOURCE { 34 } else { 36 }).cast::<u16>().write(port_be);
            if partial {
                update(from, to);
                0
            } else {
                bpf_l4_csum_replace(skb, sum_at, u64::from(from), u64::from(to), pseudo | 4)
            }
        } else {
            frame.add(if SOURCE { 22 } else { 38 }).cast::<Addr>().write(*new);
            frame.add(if SOURCE { 54 } else { 56 }).cast::<u16>().write(port_be);
            let difference = sum_difference(old, new);
            if partial {
                update(u32::MAX, difference);
                0
            } else {
                bpf_l4_csum_replace(skb, sum_at, 0, u64::from(difference), pseudo)
            }
        }
    };
    if partial {
        s.unwritten = (sum_at + 2) as u8;
        return Ok(());
    }
    s.unwritten = head_with_ports(v4) as u8;
    // SAFETY: as above.
    let ports = || unsafe { bpf_l4_csum_replace(skb, sum_at, u64::from(old_port), u64::from(port_be), flags | 2) };
    if done != 0 || old_port != port_be && ports() != 0 {
        return Err(DropReason::WriteError);
    }
    Ok(())
}

/// Bytes of the frame up to the ports, where nothing lies before them.
#[inline(always)]
const fn head_with_ports(v4: bool) -> u32 {
    ETH + if v4 { 24 } else { 44 }
}

/// How many bytes of the copy are to be written, `least` or up to the last that was changed there; they are then taken
/// for written.
#[inline(always)]
pub fn take_unwritten(s: &mut Scratch, least: u32) -> u32 {
    let unwritten = u32::from(core::mem::take(&mut s.unwritten));
    if unwritten > least { unwritten } else { least }
}

/// Writes what was translated in the copy of the head alone.
#[inline(always)]
pub fn flush_head(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    if s.unwritten == 0 {
        return Ok(());
    }
    // From IPv4's checksum on; of what lies before, others may have written since.
    let (from, least) = if s.packet.version == 4 { (24, head_with_ports(true)) } else { (22, head_with_ports(false)) };
    let end = take_unwritten(s, least);
    if end > HEAD as u32 {
        return Err(DropReason::WriteError);
    }
    let length = end - from;
    // SAFETY: `length` bytes of the copy.
    if unsafe { bpf_skb_store_bytes(skb, from, s.frame().add(from as usize).cast(), length, 0) } != 0 {
        return Err(DropReason::WriteError);
    }
    Ok(())
}

/// Offset of the checksum in the transport header, and the helper's flags.
#[inline(always)]
fn checksum_field(protocol: u8) -> Option<(u32, u64)> {
    match protocol {
        TCP => Some((16, 0)),
        UDP => Some((6, BPF_F_MARK_MANGLED_0 as u64)),
        ICMP | ICMPV6 => Some((2, 0)),
        // SCTP's covers no addresses.
        _ => None,
    }
}

/// Replaces an address of the IP header and updates the checksums.
#[inline(always)]
pub fn rewrite_address(skb: Skb, s: &mut Scratch, offset: u32, old: &Addr, new: &Addr) -> Result<(), DropReason> {
    let l4 = u32::from(s.packet.l4);
    let has_l4 = s.packet.flags & LATER_FRAGMENT == 0;
    // SAFETY: the helpers copy from the scratch memory or take plain numbers.
    unsafe {
        if s.packet.version == 4 {
            let (from, to) = (old.0[3], new.0[3]);
            if has_l4 && s.packet.protocol != ICMP {
                if let Some((at, flags)) = checksum_field(s.packet.protocol) {
                    let flags = flags | BPF_F_PSEUDO_HDR as u64 | 4;
                    if bpf_l4_csum_replace(skb, l4 + at, u64::from(from), u64::from(to), flags) != 0 {
                        return Err(DropReason::WriteError);
                    }
                }
            }
            if bpf_l3_csum_replace(skb, ETH + 10, u64::from(from), u64::from(to), 4) != 0
                || bpf_skb_store_bytes(skb, offset, (&raw const to).cast(), 4, 0) != 0
            {
                return Err(DropReason::WriteError);
            }
            // The copy's checksum is written back with the TTL.
            let sum: u16 = load(skb, ETH + 10)?;
            s.frame().add(24).cast::<u16>().write(sum);
        } else {
            let to = new.0;
            if has_l4 {
                if let Some((at, flags)) = checksum_field(s.packet.protocol) {
                    let sum = u64::from(sum_difference(old, new));
                    if bpf_l4_csum_replace(skb, l4 + at, 0, sum, flags | BPF_F_PSEUDO_HDR as u64) != 0 {
                        return Err(DropReason::WriteError);
                    }
                }
            }
            if bpf_skb_store_bytes(skb, offset, to.as_ptr().cast(), 16, 0) != 0 {
                return Err(DropReason::WriteError);
            }
        }
    }
    Ok(())
}

/// Replaces a port (or the id of an echo) at `offset` of the transport header.
#[inline(always)]
pub fn rewrite_port(skb: Skb, s: &mut Scratch, offset: u32, old: u16, new: u16) -> Result<(), DropReason> {
    if s.packet.flags & LATER_FRAGMENT != 0 || old == new {
        return Ok(());
    }
    let l4 = u32::from(s.packet.l4);
    if s.packet.protocol == SCTP {
        update_crc(skb, s, offset, old, new)?;
        // SAFETY: a copy of two bytes.
        return if unsafe { bpf_skb_store_bytes(skb, l4 + offset, (&raw const new).cast(), 2, 0) } == 0 {
            Ok(())
        } else {
            Err(DropReason::WriteError)
        };
    }
    let Some((at, flags)) = checksum_field(s.packet.protocol) else { return Err(DropReason::NatProtocol) };
    // SAFETY: plain numbers, and a copy of two bytes.
    unsafe {
        if bpf_l4_csum_replace(skb, l4 + at, u64::from(old), u64::from(new), flags | 2) != 0
            || bpf_skb_store_bytes(skb, l4 + offset, (&raw const new).cast(), 2, 0) != 0
        {
            return Err(DropReason::WriteError);
        }
    }
    Ok(())
}
