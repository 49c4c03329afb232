//! The key of a connection: its two ends in one order, whichever of them sends.

use weft_abi::{Addr, FlowKey};

use crate::packet::Packet;

/// Orders the two ends; true: the source is the low one.
#[inline(always)]
pub fn canonical_key(packet: &Packet, kind: u8, key: &mut FlowKey) -> bool {
    flow_key(
        &packet.source,
        packet.source_port,
        &packet.destination,
        packet.destination_port,
        packet.protocol,
        kind,
        key,
    )
}

/// The same of loose parts.
#[inline(always)]
pub fn flow_key(a: &Addr, a_port: u16, b: &Addr, b_port: u16, protocol: u8, kind: u8, key: &mut FlowKey) -> bool {
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
