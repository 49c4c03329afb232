//! Frames by hand: built byte by byte with right checksums, and read back without trust.

pub mod contents;
pub mod kernel;
pub mod service;
pub mod site;
pub mod stage;

use std::net::IpAddr;

/// Bytes of Ethernet.
pub const ETH: usize = 14;
/// Protocol numbers.
pub const ICMP: u8 = 1;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// ICMP for IPv6.
pub const ICMPV6: u8 = 58;
/// SCTP.
pub const SCTP: u8 = 132;

/// TCP flags.
pub const FIN: u8 = 1;
/// SYN.
pub const SYN: u8 = 2;
/// RST.
pub const RST: u8 = 4;
/// ACK.
pub const ACK: u8 = 16;

/// A fragment's place.
#[derive(Clone, Copy, Debug)]
pub struct Fragment {
    /// Identification.
    pub id: u32,
    /// Bytes before it.
    pub offset: u16,
    /// More follow.
    pub more: bool,
}

/// The network header of a frame to be.
#[derive(Clone, Debug)]
pub struct Ip {
    /// Source.
    pub source: IpAddr,
    /// Destination.
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// "Don't fragment" (IPv4).
    pub dont_fragment: bool,
    /// Options of IPv4, a multiple of four bytes.
    pub options: Vec<u8>,
    /// Extension headers of IPv6: (type, whole header with its first byte open).
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// If it is a fragment.
    pub fragment: Option<Fragment>,
}

/// A header from `source` to `destination`.
///
/// # Panics
/// If they are no addresses of one family.
#[must_use]
pub fn ip(source: &str, destination: &str) -> Ip {
    let (source, destination): (IpAddr, IpAddr) =
        (source.parse().expect("an address"), destination.parse().expect("an address"));
    assert_eq!(source.is_ipv4(), destination.is_ipv4(), "one family");
    Ip {
        source,
        destination,
        ttl: 64,
        dont_fragment: true,
        options: Vec::new(),
        extensions: Vec::new(),
        fragment: None,
    }
}

impl Ip {
    /// With this TTL.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// As a fragment.
    #[must_use]
    pub fn fragment(mut self, id: u32, offset: u16, more: bool) -> Self {
        self.fragment = Some(Fragment { id, offset, more });
        self.dont_fragment = false;
        self
    }

    /// With these options (IPv4).
    #[must_use]
    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    /// With one more extension header (IPv6), of the size and content given (the first byte is filled in).
    #[must_use]
    pub fn extension(mut self, kind: u8, header: &[u8]) -> Self {
        self.extensions.push((kind, header.to_vec()));
        self
    }

    /// A TCP segment.
    #[must_use]
    pub fn tcp(&self, source: u16, destination: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut segment = Vec::new();
        segment.extend(source.to_be_bytes());
        segment.extend(destination.to_be_bytes());
        segment.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        segment.extend(payload);
        self.summed(TCP, segment, 16)
    }

    /// A UDP datagram.
    #[must_use]
    pub fn udp(&self, source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
        let mut datagram = Vec::new();
        datagram.extend(source.to_be_bytes());
        datagram.extend(destination.to_be_bytes());
        datagram.extend((payload.len() as u16 + 8).to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(payload);
        self.summed(UDP, datagram, 6)
    }

    /// An SCTP packet (INIT).
    #[must_use]
    pub fn sctp(&self, source: u16, destination: u16) -> Vec<u8> {
        let mut packet = Vec::new();
        packet.extend(source.to_be_bytes());
        packet.extend(destination.to_be_bytes());
        packet.extend([0; 8]);
        packet.extend([1, 0, 0, 20, 0, 0, 0, 9, 0, 0, 0x10, 0, 0, 1, 0, 1, 0, 0, 0, 7]);
        let sum = crc32c(&packet);
        packet[8..12].copy_from_slice(&sum.to_le_bytes());
        self.raw(SCTP, &packet)
    }

    /// An echo request.
    #[must_use]
    pub fn ping(&self, id: u16) -> Vec<u8> {
        self.icmp(if self.source.is_ipv4() { 8 } else { 128 }, 0, &echo(id))
    }

    /// An echo reply.
    #[must_use]
    pub fn pong(&self, id: u16) -> Vec<u8> {
        self.icmp(if self.source.is_ipv4() { 0 } else { 129 }, 0, &echo(id))
    }

    /// "Port unreachable" about a frame.
    #[must_use]
    pub fn unreachable(&self, about: &[u8]) -> Vec<u8> {
        let mut body = vec![0; 4];
        body.extend(about.iter().skip(ETH).take(120));
        if self.source.is_ipv4() { self.icmp(3, 3, &body) } else { self.icmp(1, 4, &body) }
    }

    /// Any ICMP message of this family: `body` follows type, code and checksum.
    #[must_use]
    pub fn icmp(&self, kind: u8, code: u8, body: &[u8]) -> Vec<u8> {
        let mut message = vec![kind, code, 0, 0];
        message.extend(body);
        if self.source.is_ipv4() {
            let sum = checksum(&[&message]);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            self.raw(ICMP, &message)
        } else {
            self.summed(ICMPV6, message, 2)
        }
    }

    /// Fills the checksum at `at`, over pseudo-header and `segment`, and adds the headers before it.
    fn summed(&self, protocol: u8, mut segment: Vec<u8>, at: usize) -> Vec<u8> {
        let sum = checksum(&[&self.pseudo_header(protocol, segment.len()), &segment]);
        let sum = if sum == 0 && protocol == UDP { 0xffff } else { sum };
        segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        self.raw(protocol, &segment)
    }

    fn pseudo_header(&self, protocol: u8, length: usize) -> Vec<u8> {
        pseudo_header(self.source, self.destination, protocol, length)
    }

    /// A frame with any content.
    #[must_use]
    pub fn raw(&self, protocol: u8, content: &[u8]) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend([8, 0]);
                let header = 20 + self.options.len();
                let mut ip = vec![0x40 | (header / 4) as u8, 0];
                ip.extend(((header + content.len()) as u16).to_be_bytes());
                let fragment = self.fragment.unwrap_or(Fragment { id: 7, offset: 0, more: false });
                ip.extend((fragment.id as u16).to_be_bytes());
                let field = (fragment.offset / 8)
                    | if fragment.more { 0x2000 } else { 0 }
                    | if self.dont_fragment { 0x4000 } else { 0 };
                ip.extend(field.to_be_bytes());
                ip.extend([self.ttl, protocol, 0, 0]);
                ip.extend(source.octets());
                ip.extend(destination.octets());
                ip.extend(&self.options);
                let sum = checksum(&[&ip]);
                ip[10..12].copy_from_slice(&sum.to_be_bytes());
                frame.extend(ip);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame.extend([0x86, 0xdd]);
                let mut extensions = self.extensions.clone();
                if let Some(fragment) = self.fragment {
                    let field = fragment.offset | u16::from(fragment.more);
                    let mut header = vec![0, 0];
                    header.extend(field.to_be_bytes());
                    header.extend(fragment.id.to_be_bytes());
                    extensions.push((44, header));
                }
                let length: usize = extensions.iter().map(|(_, header)| header.len()).sum::<usize>() + content.len();
                frame.extend([0x60, 0, 0, 0]);
                frame.extend((length as u16).to_be_bytes());
                frame.push(extensions.first().map_or(protocol, |(kind, _)| *kind));
                frame.push(self.ttl);
                frame.extend(source.octets());
                frame.extend(destination.octets());
                for (n, (_, header)) in extensions.iter().enumerate() {
                    let mut header = header.clone();
                    header[0] = extensions.get(n + 1).map_or(protocol, |(kind, _)| *kind);
                    frame.extend(header);
                }
            }
            _ => unreachable!("one family"),
        }
        frame.extend(content);
        frame
    }
}

fn echo(id: u16) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    body.extend([0, 1]);
    body.extend(b"weft weft weft");
    body
}

fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    let mut header = Vec::new();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            header.extend(source.octets());
            header.extend(destination.octets());
            header.extend([0, protocol]);
            header.extend((length as u16).to_be_bytes());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            header.extend(source.octets());
            header.extend(destination.octets());
            header.extend((length as u32).to_be_bytes());
            header.extend([0, 0, 0, protocol]);
        }
        _ => unreachable!("one family"),
    }
    header
}

/// RFC 1071 over several pieces, each of even length but the last.
#[must_use]
pub fn checksum(pieces: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for piece in pieces {
        for pair in piece.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// SCTP's checksum of a packet in which it is zero, bit by bit (RFC 9260 appendix A).
#[must_use]
pub fn crc32c(packet: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in packet {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

/// The fields of a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Read {
    /// Destination MAC.
    pub destination_mac: [u8; 6],
    /// Source MAC.
    pub source_mac: [u8; 6],
    /// Source.
    pub source: IpAddr,
    /// Destination.
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Protocol, after extension headers.
    pub protocol: u8,
    /// Transport header and what follows.
    pub rest: Vec<u8>,
    /// Offset of the transport header.
    pub l4: usize,
}

impl Read {
    /// Source port (or the id of an echo).
    #[must_use]
    pub fn source_port(&self) -> u16 {
        let at = if matches!(self.protocol, ICMP | ICMPV6) { 4 } else { 0 };
        u16::from_be_bytes([self.rest[at], self.rest[at + 1]])
    }

    /// Destination port (or the id of an echo).
    #[must_use]
    pub fn destination_port(&self) -> u16 {
        let at = if matches!(self.protocol, ICMP | ICMPV6) { 4 } else { 2 };
        u16::from_be_bytes([self.rest[at], self.rest[at + 1]])
    }
}

/// Reads a frame (without fragments) and checks every checksum in it.
///
/// # Panics
/// If anything is wrong with it: the programs under test made it.
#[must_use]
pub fn read(frame: &[u8]) -> Read {
    let (destination_mac, source_mac) = (frame[0..6].try_into().expect("six"), frame[6..12].try_into().expect("six"));
    let packet = &frame[ETH..];
    let (source, destination, ttl, protocol, header, end): (IpAddr, IpAddr, u8, u8, usize, usize) =
        match u16::from_be_bytes([frame[12], frame[13]]) {
            0x0800 => {
                let header = usize::from(packet[0] & 15) * 4;
                assert_eq!(checksum(&[&packet[..header]]), 0, "checksum of the IPv4 header");
                let four = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).expect("four"));
                let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
                (four(12), four(16), packet[8], packet[9], header, total)
            }
            0x86dd => {
                let sixteen = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).expect("sixteen"));
                let total = 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]]));
                let (mut protocol, mut header) = (packet[6], 40);
                while matches!(protocol, 0 | 43 | 60) {
                    protocol = packet[header];
                    header += (usize::from(packet[header + 1]) + 1) * 8;
                }
                (sixteen(8), sixteen(24), packet[7], protocol, header, total)
            }
            other => panic!("no IP: {other:#06x}"),
        };
    let rest = packet[header..end].to_vec();
    match protocol {
        ICMP => assert_eq!(checksum(&[&rest]), 0, "checksum of ICMP"),
        UDP if rest[6..8] == [0, 0] => {}
        SCTP => {
            let mut packet = rest.clone();
            packet[8..12].fill(0);
            assert_eq!(rest[8..12], crc32c(&packet).to_le_bytes(), "checksum of SCTP");
        }
        TCP | UDP | ICMPV6 => {
            let pseudo = pseudo_header(source, destination, protocol, rest.len());
            assert_eq!(checksum(&[&pseudo, &rest]), 0, "checksum of protocol {protocol}");
        }
        _ => {}
    }
    Read { destination_mac, source_mac, source, destination, ttl, protocol, rest, l4: ETH + header }
}

/// An Ethernet frame around the IP packet that an ICMP error quotes.
#[must_use]
pub fn quoted(error: &Read) -> Vec<u8> {
    let inner = &error.rest[8..];
    let mut frame = vec![0; 12];
    frame.extend(if inner[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] });
    frame.extend(inner);
    frame
}
