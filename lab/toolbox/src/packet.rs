//! Raw sockets and checksums for the protocols that the kernel does not speak for us, and datagrams with the address
//! that they came to.

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockaddrLike, SockaddrStorage, getsockname, recvmsg,
    sendmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Makes the kernel tell which address each datagram was sent to.
pub(super) fn tell_destinations(socket: &UdpSocket) -> io::Result<()> {
    match getsockname::<SockaddrStorage>(socket.as_raw_fd())?.family() {
        Some(AddressFamily::Inet6) => setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?,
        _ => setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?,
    }
    Ok(())
}

/// The next datagram: its length, who sent it, and which of our addresses to.
pub(super) fn receive_at(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr, IpAddr)> {
    let mut space = nix::cmsg_space!(libc::in6_pktinfo, libc::in_pktinfo);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty())?;
    let peer = message.address.as_ref().and_then(socket_address);
    let peer = peer.ok_or_else(|| io::Error::other("a datagram without a sender"))?;
    let local = message.cmsgs()?.find_map(|c| match c {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            Some(IpAddr::V4(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr))))
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr))),
        _ => None,
    });
    Ok((message.bytes, peer, local.ok_or_else(|| io::Error::other("a datagram without a destination"))?))
}

/// Sends a datagram from that address of ours.
pub(super) fn send_from(socket: &UdpSocket, bytes: &[u8], peer: SocketAddr, local: IpAddr) -> io::Result<()> {
    let parts = [IoSlice::new(bytes)];
    let to = SockaddrStorage::from(peer);
    let sent = match local {
        IpAddr::V4(own) => {
            let address = libc::in_addr { s_addr: u32::from(own).to_be() };
            let info =
                libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: address, ipi_addr: libc::in_addr { s_addr: 0 } };
            let control = [ControlMessage::Ipv4PacketInfo(&info)];
            sendmsg(socket.as_raw_fd(), &parts, &control, MsgFlags::empty(), Some(&to))
        }
        IpAddr::V6(own) => {
            let info = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: own.octets() }, ipi6_ifindex: 0 };
            let control = [ControlMessage::Ipv6PacketInfo(&info)];
            sendmsg(socket.as_raw_fd(), &parts, &control, MsgFlags::empty(), Some(&to))
        }
    };
    sent.map(drop).map_err(Into::into)
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|a| SocketAddr::from((a.ip(), a.port())));
    v4.or_else(|| address.as_sockaddr_in6().map(|a| SocketAddr::from((a.ip(), a.port()))))
}

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

    /// Sends from an address of ours that a packet came to.
    pub(super) fn send_from(&self, packet: &[u8], peer: IpAddr, local: IpAddr) -> io::Result<()> {
        send_from(&self.socket, packet, SocketAddr::new(peer, 0), local)
    }

    /// Sends from this address only.
    pub(super) fn bind(&self, local: IpAddr) -> io::Result<()> {
        nix::sys::socket::bind(self.socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(local, 0)))?;
        Ok(())
    }

    /// Needed before [`Self::receive_at`].
    pub(super) fn tell_destinations(&self) -> io::Result<()> {
        tell_destinations(&self.socket)
    }

    /// The next packet's transport header and payload.
    pub(super) fn receive(&self) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; 65_536];
        let (length, _) = self.socket.recv_from(&mut buffer)?;
        buffer.truncate(length);
        Ok(self.behind_ip_header(buffer))
    }

    /// The next packet, its sender, and the address that it was sent to.
    pub(super) fn receive_at(&self) -> io::Result<(Vec<u8>, IpAddr, IpAddr)> {
        let mut buffer = vec![0; 65_536];
        let (length, from, to) = receive_at(&self.socket, &mut buffer)?;
        buffer.truncate(length);
        Ok((self.behind_ip_header(buffer), from.ip(), to))
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
