//! TCP, UDP, SCTP, ICMP.

use weft_abi::{DropReason, FragmentValue};

use crate::maps::FRAGMENTS;
use crate::packet::{
    ECHO, ETH, FIRST_FRAGMENT, ICMP, ICMP_ERROR, ICMPV6, SCTP, Skb, TCP, TCP_FIN, TCP_RST, TCP_SYN, UDP, load,
    skb_gso_size,
};
use crate::parse::icmp::icmp_ports;
use crate::scratch::Scratch;

#[inline(always)]
pub fn parse_transport(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let l4 = u32::from(s.packet.l4);
    let rest = (s.packet.length + ETH).wrapping_sub(l4);
    let need = match s.packet.protocol {
        TCP => 20,
        UDP | ICMP | ICMPV6 => 8,
        SCTP => 12,
        // Protocols without ports: (addresses, protocol) is all there is.
        _ => return Ok(()),
    };
    if rest < need || rest > 0x00ff_ffff {
        return Err(DropReason::CtTruncatedHeader);
    }
    // What was copied is read from the copy, even if it is more than the protocol has: the rest is not used.
    let header: [u32; 4] = match s.packet.protocol {
        _ if l4 == ETH + 20 && s.copied >= ETH + 36 => s.at(34),
        _ if l4 == ETH + 40 && s.copied >= ETH + 56 => s.at(54),
        TCP => load(skb, l4)?,
        SCTP => {
            let words: [u32; 3] = load(skb, l4)?;
            [words[0], words[1], words[2], 0]
        }
        _ => {
            let words: [u32; 2] = load(skb, l4)?;
            [words[0], words[1], 0, 0]
        }
    };
    let ports = header[0].to_ne_bytes();
    if matches!(s.packet.protocol, ICMP | ICMPV6) {
        s.packet.icmp_type = ports[0];
        s.packet.icmp_code = ports[1];
        let echo = if s.packet.protocol == ICMP { matches!(ports[0], 0 | 8) } else { matches!(ports[0], 128 | 129) };
        let error = if s.packet.protocol == ICMP { matches!(ports[0], 3 | 11 | 12) } else { matches!(ports[0], 1..=4) };
        if echo {
            let id = (header[1] & 0xffff) as u16;
            s.packet.source_port = id;
            s.packet.destination_port = id;
            s.packet.flags |= ECHO;
        } else {
            (s.packet.source_port, s.packet.destination_port) = icmp_ports(s.packet.protocol, ports[0]);
            if error {
                s.packet.flags |= ICMP_ERROR;
            }
        }
    } else {
        s.packet.source_port = u16::from_ne_bytes([ports[0], ports[1]]);
        s.packet.destination_port = u16::from_ne_bytes([ports[2], ports[3]]);
    }
    if s.packet.protocol == TCP {
        let word = header[3].to_ne_bytes();
        s.packet.tcp_flags = word[1] & 0x3f;
        let flags = s.packet.tcp_flags;
        let data = u32::from(word[0] >> 4) * 4;
        if data < 20
            || data > rest
            || flags == 0
            || flags & (TCP_SYN | TCP_FIN) == TCP_SYN | TCP_FIN
            || flags & (TCP_SYN | TCP_RST) == TCP_SYN | TCP_RST
        {
            return Err(DropReason::InvalidPacket);
        }
    }
    if s.packet.protocol == UDP && s.packet.flags & FIRST_FRAGMENT == 0 {
        // RFC 768. A super-packet's length may be anything.
        let length = u32::from(u16::from_be((header[1] & 0xffff) as u16));
        if (length < 8 || length > rest) && skb_gso_size(skb) == 0 {
            return Err(DropReason::InvalidPacket);
        }
    }
    if s.packet.flags & FIRST_FRAGMENT != 0 {
        let ports =
            FragmentValue { source_port_be: s.packet.source_port, destination_port_be: s.packet.destination_port };
        // A full table evicts; later fragments are then judged without ports.
        let _ = FRAGMENTS.insert(&s.fragment, &ports, 0);
    }
    Ok(())
}
