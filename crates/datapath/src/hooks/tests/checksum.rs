//! Checksums of packets that services change, as pods see them: of those that the kernel still owes its checksum, the sum
//! of the pseudo header must be right; of others, the whole. The kernel itself looks at neither between pods.

use super::sockets::Tables;
use super::swap::{join, settings};
use super::*;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::process::Command;
use std::time::Duration;
use weft_model::desired::{Dataplane as _, Touched};

const TCP: u8 = 6;
const UDP: u8 = 17;
/// `struct virtio_net_hdr`, which stands before each frame, and its flag that the checksum is owed.
const HEADER: usize = 10;
const NEEDS_CHECKSUM: u8 = 1;
/// Its word for TCP over IPv4 that is yet to be cut into segments.
const SEGMENTS_V4: u8 = 1;
const PACKET_VNET_HDR: i32 = 15;

/// A socket at a pod's device that shows and sends whole frames, with what the kernel knows of them.
struct Tap(OwnedFd);

/// Whose checksum the kernel still owes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Owed {
    Nobodys,
    Its,
    /// That of something inside.
    Inner,
}

struct Frame {
    protocol: u8,
    source: SocketAddr,
    destination: SocketAddr,
    owed: Owed,
    /// A datagram without a checksum.
    bare: bool,
    /// Yet to be cut into segments.
    whole: bool,
}

impl Tap {
    fn at(netns: &NetNs, device: &str) -> Self {
        let open = || {
            let all = SockProtocol::EthAll;
            let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), all).unwrap();
            let on = 1_i32;
            // SAFETY: a pointer to a number and its size.
            let set = unsafe {
                let size = size_of::<i32>() as u32;
                libc::setsockopt(fd.as_raw_fd(), libc::SOL_PACKET, PACKET_VNET_HDR, (&raw const on).cast(), size)
            };
            assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
            // SAFETY: all zero is a valid address of this kind.
            let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
            address.sll_ifindex = nix::net::if_::if_nametoindex(device).unwrap() as i32;
            // SAFETY: a pointer to an address and its size.
            let bound = unsafe {
                let size = size_of::<libc::sockaddr_ll>() as u32;
                libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size)
            };
            assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
            fd
        };
        let fd: OwnedFd = netns.run(open).unwrap();
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(10, 0)).unwrap();
        Self(fd)
    }

    /// Sends a frame; `owed`: where the checksum would begin that the kernel still owes, and where it would be from there;
    /// `segment`: into how large parts it is to be cut.
    fn send(&self, frame: &[u8], owed: Option<[u16; 2]>, segment: Option<u16>) {
        let mut header = [0; HEADER];
        if let Some([start, offset]) = owed {
            header[0] = NEEDS_CHECKSUM;
            header[6..8].copy_from_slice(&start.to_ne_bytes());
            header[8..10].copy_from_slice(&offset.to_ne_bytes());
        }
        if let Some(segment) = segment {
            header[1] = SEGMENTS_V4;
            // Ethernet, IPv4, TCP.
            header[2..4].copy_from_slice(&54_u16.to_ne_bytes());
            header[4..6].copy_from_slice(&segment.to_ne_bytes());
        }
        let bytes = [&header, frame].concat();
        send(self.0.as_raw_fd(), &bytes, MsgFlags::empty()).unwrap();
    }

    /// Reads until a frame is the one meant; all on the way must be right as well.
    fn until(&self, what: &str, meant: impl Fn(&Frame) -> bool) -> Frame {
        let mut buffer = [0; 1 << 14];
        loop {
            let length = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            if let Some(frame) = check(&buffer[..length])
                && meant(&frame)
            {
                return frame;
            }
        }
    }
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum of the pseudo header.
fn pseudo(addresses: &[u8], protocol: u8, length: usize) -> u32 {
    sum(addresses) + u32::from(protocol) + u32::try_from(length).unwrap()
}

/// Of a TCP or UDP frame, which must have the right checksum.
fn check(bytes: &[u8]) -> Option<Frame> {
    let (header, frame) = bytes.split_at(HEADER);
    let (protocol, from, to, l4) = match frame[12..14] {
        [0x08, 0x00] => (frame[23], 26, 30, 34),
        [0x86, 0xdd] => (frame[20], 22, 38, 54),
        _ => return None,
    };
    let at = l4
        + match protocol {
            TCP => 16,
            UDP => 6,
            _ => return None,
        };
    let address = |at: usize| -> IpAddr {
        if l4 == 34 {
            <[u8; 4]>::try_from(&frame[at..at + 4]).unwrap().into()
        } else {
            <[u8; 16]>::try_from(&frame[at..at + 16]).unwrap().into()
        }
    };
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let frame_of = Frame {
        protocol,
        source: SocketAddr::new(address(from), port(l4)),
        destination: SocketAddr::new(address(to), port(l4 + 2)),
        owed: match header[0] & NEEDS_CHECKSUM {
            0 => Owed::Nobodys,
            _ if usize::from(u16::from_ne_bytes([header[6], header[7]])) == l4 => Owed::Its,
            _ => Owed::Inner,
        },
        bare: protocol == UDP && port(at) == 0,
        whole: header[1] != 0,
    };
    if frame_of.bare {
        return Some(frame_of);
    }
    let pseudo = pseudo(&frame[from..l4], protocol, frame.len() - l4);
    // Of what is yet to be cut, each part is owed its own around that of the packet inside.
    let (found, expected) = if frame_of.owed == Owed::Its || frame_of.whole {
        (port(at), fold(pseudo))
    } else {
        // From where the owed one begins, all will sum up to the opposite of what stands in its place now.
        let [start, offset] = [6, 8].map(|n| usize::from(u16::from_ne_bytes([header[n], header[n + 1]])));
        let rest = match frame_of.owed {
            Owed::Inner => sum(&frame[l4..start]) + u32::from(!port(start + offset)),
            _ => sum(&frame[l4..]),
        };
        (fold(pseudo + rest), 0xffff)
    };
    // Both are nothing in this arithmetic.
    let same = found == expected || [found, expected].iter().all(|sum| matches!(*sum, 0 | 0xffff));
    assert!(same, "{} -> {}: {found:#x}, not {expected:#x}", frame_of.source, frame_of.destination);
    Some(frame_of)
}

/// A datagram with its whole checksum.
fn datagram(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let addresses = [octets(from.ip()), octets(to.ip())].concat();
    let mut udp = [from.port().to_be_bytes(), to.port().to_be_bytes(), 13_u16.to_be_bytes(), [0; 2]].concat();
    udp.extend(b"hello");
    let total = !fold(pseudo(&addresses, UDP, udp.len()) + sum(&udp));
    udp[6..8].copy_from_slice(&total.to_be_bytes());
    let mut frame = vec![2; 12];
    if from.is_ipv4() {
        let mut ip = vec![0x45, 0, 0, 33, 0, 0, 0, 0, 64, UDP, 0, 0];
        ip.extend(&addresses);
        let total = !fold(sum(&ip));
        ip[10..12].copy_from_slice(&total.to_be_bytes());
        frame.extend([0x08, 0x00]);
        frame.extend(ip);
    } else {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 13, UDP, 64]);
        frame.extend(&addresses);
    }
    frame.extend(udp);
    frame
}

/// A TCP segment between two that are not there, with the sum of its pseudo header alone.
fn segment(length: usize) -> Vec<u8> {
    let addresses = [192, 168, 99, 1, 192, 168, 99, 2];
    let total = u16::try_from(40 + length).unwrap().to_be_bytes();
    let mut ip = vec![0x45, 0, total[0], total[1], 0, 0, 0, 0, 64, TCP, 0, 0];
    ip.extend(addresses);
    let sum_of_ip = !fold(sum(&ip));
    ip[10..12].copy_from_slice(&sum_of_ip.to_be_bytes());
    let mut tcp = [0, 9, 0, 9, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0].to_vec();
    tcp[16..18].copy_from_slice(&fold(pseudo(&addresses, TCP, 20 + length)).to_be_bytes());
    [&[2; 12][..], &[0x08, 0x00], &ip, &tcp, &vec![7; length]].concat()
}

#[test]
fn services_leave_checksums_right() {
    in_netns(|| {
        let dir = BpfDir::new();
        let (mut datapath, _) = open(&dir);
        datapath.configure(&settings()).unwrap();
        let (one, two) = (NetNs::create().unwrap(), NetNs::create().unwrap());
        let here = join(&mut datapath, &one, 1);
        let there = join(&mut datapath, &two, 2);
        let services: [IpAddr; 2] = ["198.51.100.1".parse().unwrap(), "2001:db8:5::1".parse().unwrap()];
        let tables = Tables::of(&dir);
        for ((service, backend), set) in services.iter().zip(there).zip(1..) {
            tables.service(&service.to_string(), 8080, set, &[&backend.to_string()], |_| {});
        }
        datapath.bump(&Touched::Node).unwrap();
        for ((service, backend), client) in services.iter().zip(there).zip(here) {
            let (service, backend) = (SocketAddr::new(*service, 8080), SocketAddr::new(backend, 80));
            let (near, far) = (Tap::at(&one, "eth0"), Tap::at(&two, "eth0"));
            let is = |protocol, owed| {
                (
                    move |f: &Frame| (f.protocol, f.destination, f.owed) == (protocol, backend, owed),
                    move |f: &Frame| (f.protocol, f.source, f.owed) == (protocol, service, owed),
                )
            };

            // Its refusal is the shortest packet that there is.
            let refused =
                one.run(|| TcpStream::connect_timeout(&service, Duration::from_secs(10)).unwrap_err()).unwrap();
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);

            let listener = two.run(|| TcpListener::bind(backend).unwrap()).unwrap();
            let mut stream =
                one.run(|| TcpStream::connect_timeout(&service, Duration::from_secs(10)).unwrap()).unwrap();
            let (mut accepted, _) = listener.accept().unwrap();
            let mut word = [0; 5];
            stream.write_all(b"hello").unwrap();
            accepted.read_exact(&mut word).unwrap();
            accepted.write_all(b"again").unwrap();
            stream.read_exact(&mut word).unwrap();
            assert_eq!(&word, b"again");
            let (question, answer) = is(TCP, Owed::Its);
            for _ in 0..3 {
                far.until("a question by TCP", question);
            }
            near.until("an answer by TCP", answer);

            let server = two.run(|| UdpSocket::bind(backend).unwrap()).unwrap();
            let asker = one.run(|| UdpSocket::bind((client, 0)).unwrap()).unwrap();
            asker.send_to(b"hello", service).unwrap();
            let (_, peer) = server.recv_from(&mut word).unwrap();
            server.send_to(b"again", peer).unwrap();
            let (_, from) = asker.recv_from(&mut word).unwrap();
            assert_eq!(from, service);
            let (question, answer) = is(UDP, Owed::Its);
            far.until("a question by UDP", question);
            near.until("an answer by UDP", answer);

            // One that has its checksum already.
            let mut frame = datagram(SocketAddr::new(client, 7777), service);
            near.send(&frame, None, None);
            let seen = far.until("a datagram with its checksum", is(UDP, Owed::Nobodys).0);
            assert_eq!(seen.source, SocketAddr::new(client, 7777));

            // One without, as tunnels send it, around a packet that is owed its own.
            let l4 = frame.len() - 13;
            frame[l4 + 6..l4 + 8].fill(0);
            near.send(&frame, Some([u16::try_from(l4).unwrap() + 8, 2]), None);
            let seen = far.until("a tunnel without a checksum", is(UDP, Owed::Inner).0);
            assert!(seen.bare);

            // The kernel's own tunnel, around a packet that fits and around one that is yet to be cut.
            let name = if client.is_ipv4() { "tunnel4" } else { "tunnel6" };
            let remote = service.ip().to_string();
            let make =
                ["link", "add", name, "type", "vxlan", "id", "5", "dstport", "8080", "udpcsum", "remote", &remote];
            for args in [&make[..], &["link", "set", name, "up"]] {
                assert!(one.run(|| Command::new("ip").args(args).status().unwrap().success()).unwrap(), "{args:?}");
            }
            let tunnel = Tap::at(&one, name);
            let inner = Some([34, 16]);
            tunnel.send(&segment(100), inner, None);
            let seen = far.until("a packet in a tunnel", |f| is(UDP, Owed::Inner).0(f) && !f.bare);
            assert!(!seen.whole);
            tunnel.send(&segment(4000), inner, Some(1000));
            let seen = far.until("segments in a tunnel", |f| is(UDP, Owed::Inner).0(f) && f.whole);
            assert!(!seen.bare);
        }
        drop(datapath);
    });
}
