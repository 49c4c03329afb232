//! ICMP messages as connections: what stands in the place of ports, and which type policies match.

use crate::packet::{ECHO, ICMP};
use crate::scratch::Scratch;

/// Whether a message other than echo is a reply; its request has the type before: timestamp, information, address mask; node
/// information.
#[inline(always)]
const fn is_reply_type(protocol: u8, kind: u8) -> bool {
    if protocol == ICMP { matches!(kind, 14 | 16 | 18) } else { kind == 140 }
}

/// What stands for ports in the tuple of a message other than echo: the type, at the responder's end. So each type is a
/// connection of its own, and a reply belongs to that of its request.
#[inline(always)]
pub const fn icmp_ports(protocol: u8, kind: u8) -> (u16, u16) {
    if is_reply_type(protocol, kind) { ((kind as u16 - 1).to_be(), 0) } else { (0, (kind as u16).to_be()) }
}

/// The reverse of [`icmp_ports`], for a fragment that has its tuple from the first one. Equal ports are the id of an echo.
#[inline(always)]
pub fn icmp_of_fragment(s: &mut Scratch) {
    let (source, destination) = (u16::from_be(s.packet.source_port), u16::from_be(s.packet.destination_port));
    if source == destination {
        s.packet.flags |= ECHO;
        s.packet.icmp_type = echo_type(s.packet.protocol);
    } else {
        s.packet.icmp_type = if destination != 0 { destination as u8 } else { source.wrapping_add(1) as u8 };
    }
}

/// The type that policies match: that of the originator's message.
#[inline(always)]
pub fn originator_type(s: &Scratch) -> u32 {
    let (protocol, kind) = (s.packet.protocol, s.packet.icmp_type);
    let kind = if s.reply == 0 {
        kind
    } else if s.packet.flags & ECHO != 0 {
        echo_type(protocol)
    } else if is_reply_type(protocol, kind) {
        kind.wrapping_sub(1)
    } else {
        kind
    };
    u32::from(kind)
}

/// Whether it is an echo request.
#[inline(always)]
pub fn is_echo_request(s: &Scratch) -> bool {
    s.packet.flags & ECHO != 0 && s.packet.icmp_type == echo_type(s.packet.protocol)
}

/// Echo request.
#[inline(always)]
const fn echo_type(protocol: u8) -> u8 {
    if protocol == ICMP { 8 } else { 128 }
}
