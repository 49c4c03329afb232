//! Destination NAT of a service's packets, and its reverse.

use weft_abi::{Addr, DropReason, flow_flags};

use crate::lb::hairpin::is_hairpin;
use crate::nat::rewrite::replace;
use crate::packet::Skb;
use crate::scratch::{Scratch, translated};
use crate::step::step;

/// `s.output` of a translation: the packet goes to a backend, so its connection is another one.
pub const TRANSLATED: u32 = 2;

step!(dnat() = weft_step_dnat: dnat_inline);

/// Gives the packet the backend's address. Inlined where packets of a choice that is stored already pass.
#[inline(always)]
pub fn dnat_inline(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let (backend, port_be) = (s.service.backend.addr, s.service.backend.port_be);
    let hairpin = is_hairpin(s, &backend);
    s.service.key = s.key;
    s.frontend = s.packet.destination;
    s.frontend_port = s.packet.destination_port;
    s.translated = translated::FORWARD | if hairpin { translated::HAIRPIN } else { 0 };
    set_destination(skb, s, &backend, port_be)?;
    if hairpin {
        let port_be = s.packet.source_port;
        set_source(skb, s, &Addr::hairpin(backend.is_v4()), port_be)?;
    }
    s.output = TRANSLATED;
    Ok(())
}

step!(reverse_dnat(flags: u16) = weft_step_reverse_dnat: reverse_dnat_body);

/// Replaces the source of a backend's reply by the frontend, which is in `s.frontend`.
#[inline(always)]
fn reverse_dnat_body(skb: Skb, s: &mut Scratch, flags: u16) -> Result<(), DropReason> {
    let (pod, frontend, port_be) = (s.packet.source, s.frontend, s.frontend_port);
    s.translated |= translated::REPLY;
    set_source(skb, s, &frontend, port_be)?;
    if flags & flow_flags::HAIRPIN != 0 {
        let port_be = s.packet.destination_port;
        set_destination(skb, s, &pod, port_be)?;
    }
    Ok(())
}

/// Restores the addresses of a translated packet as the client wrote them.
#[inline(never)]
pub fn undo_dnat(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    if s.translated & translated::FORWARD == 0 {
        return Ok(());
    }
    let (backend, frontend, port_be) = (s.packet.destination, s.frontend, s.frontend_port);
    set_destination(skb, s, &frontend, port_be)?;
    if s.translated & translated::HAIRPIN != 0 {
        let port_be = s.packet.source_port;
        set_source(skb, s, &backend, port_be)?;
    }
    s.translated = 0;
    Ok(())
}

/// Replaces the source, in the frame and in `s`.
#[inline(always)]
fn set_source(skb: Skb, s: &mut Scratch, address: &Addr, port_be: u16) -> Result<(), DropReason> {
    replace::<true>(skb, s, address, port_be)
}

/// Replaces the destination, in the frame and in `s`.
#[inline(always)]
fn set_destination(skb: Skb, s: &mut Scratch, address: &Addr, port_be: u16) -> Result<(), DropReason> {
    replace::<false>(skb, s, address, port_be)
}
