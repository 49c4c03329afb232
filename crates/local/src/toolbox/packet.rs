//! Raw sockets and checksums for the protocols that the kernel does not speak for us.

use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

/// A raw socket for one protocol in one family. It hands out packets from the transport header on.
#[derive(Debug)]
pub(super) struct RawSocket {
    /// A raw socket in truth; std's type knows all that is needed of it.
    socket: UdpSocket,
    v6: bool,
}

/// IP protocol numbers.
pub(super) const ICMP: i32 = 1;
pub(super) const ICMPV6: i32 = 58;
pub(super) const SCTP: i32 = 132;

impl RawSocket {
    pub(super) fn open(v6: bool, protocol: i32) -> io::Result<Self> {
        let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(protocol)))?;
        Ok(Self { socket: UdpSocket::from(socket), v6 })
    }

    /// Only packets from there, and errors about packets to there.
    pub(super) fn connect(&self, peer: IpAddr) -> io::Result<()> {
        self.socket.connect(SocketAddr::new(peer, 0))
    }

    pub(super) fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.socket.set_read_timeout(Some(timeout.max(Duration::from_millis(1))))
    }

    pub(super) fn send(&self, packet: &[u8]) -> io::Result<()> {
        self.socket.send(packet).map(drop)
    }

    pub(super) fn send_to(&self, packet: &[u8], peer: IpAddr) -> io::Result<()> {
        self.socket.send_to(packet, SocketAddr::new(peer, 0)).map(drop)
    }

    /// The next packet's transport header and payload.
    pub(super) fn receive(&self) -> io::Result<Vec<u8>> {
        self.receive_from().map(|(packet, _)| packet)
    }

    /// The next packet and its sender.
    pub(super) fn receive_from(&self) -> io::Result<(Vec<u8>, IpAddr)> {
        let mut buffer = vec![0; 65_536];
        let (length, from) = self.socket.recv_from(&mut buffer)?;
        buffer.truncate(length);
        Ok((self.behind_ip_header(buffer), from.ip()))
    }

    /// IPv4 raw sockets hand out the IP header, IPv6 ones do not.
    fn behind_ip_header(&self, packet: Vec<u8>) -> Vec<u8> {
        if self.v6 {
            return packet;
        }
        let length = packet.first().map_or(0, |b| usize::from(b & 15) * 4);
        packet.get(length..).unwrap_or_default().to_vec()
    }
}

/// The Internet checksum.
pub(super) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | c.get(1).map_or(0, |b| u32::from(*b))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

/// CRC32c, which protects SCTP packets.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_of_the_standard_check_string() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn checksum_of_a_packet_that_holds_it_is_zero() {
        let mut packet = [8, 0, 0, 0, 1, 2, 3, 4, 5];
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(checksum(&packet), 0);
    }
}
