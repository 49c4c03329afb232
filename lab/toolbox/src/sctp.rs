//! The beginning of an SCTP association, INIT and INIT ACK, in packets of our own making: this works on kernels
//! without SCTP, and is all that a policy on SCTP ports needs to show itself.

use super::packet::{RawSocket, SCTP, crc32c};
use super::serve::greeting;
use std::io;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
/// Parameter that an INIT ACK must carry; ours holds the line that tells who answered whom.
const STATE_COOKIE: u16 = 7;

struct Packet {
    source_port: u16,
    destination_port: u16,
    tag: u32,
    chunk: u8,
    /// Behind the chunk's header.
    body: Vec<u8>,
}

impl Packet {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64);
        bytes.extend_from_slice(&self.source_port.to_be_bytes());
        bytes.extend_from_slice(&self.destination_port.to_be_bytes());
        bytes.extend_from_slice(&self.tag.to_be_bytes());
        bytes.extend_from_slice(&[0; 4]);
        let length = u16::try_from(4 + self.body.len()).unwrap_or(u16::MAX);
        bytes.extend_from_slice(&[self.chunk, 0]);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&self.body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let sum = crc32c(&bytes);
        bytes[8..12].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let tag = u32::from_be_bytes(bytes.get(4..8)?.try_into().ok()?);
        let sum = u32::from_le_bytes(bytes.get(8..12)?.try_into().ok()?);
        let mut unsummed = bytes.to_vec();
        unsummed.get_mut(8..12)?.fill(0);
        if crc32c(&unsummed) != sum {
            return None;
        }
        let end = 12 + usize::from(number(14)?);
        let body = bytes.get(16..end)?.to_vec();
        Some(Self { source_port: number(0)?, destination_port: number(2)?, tag, chunk: *bytes.get(12)?, body })
    }
}

/// Initiate tag, receiver window, streams out and in, first sequence number.
fn init_body(tag: u32) -> Vec<u8> {
    let mut body = tag.to_be_bytes().to_vec();
    body.extend_from_slice(&65_536_u32.to_be_bytes());
    body.extend_from_slice(&[0, 1, 0, 1]);
    body.extend_from_slice(&1_u32.to_be_bytes());
    body
}

fn tag() -> u32 {
    uuid::Uuid::new_v4().as_u128() as u32 | 1
}

/// A port for an association: as in a kernel's own SCTP, no two of this process have the same. Where a service or a
/// masquerade stands between, associations with equal ports cannot be told apart, and SCTP's ports are never changed.
fn own_port() -> u16 {
    static START: OnceLock<u32> = OnceLock::new();
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Odd, so that all of the range comes before the first comes again; and not by one, as another process may have
    // begun nearby.
    const STEP: u32 = 397;
    let start = *START.get_or_init(tag);
    32_768 + (start.wrapping_add(NEXT.fetch_add(STEP, Ordering::Relaxed)) % 16_384) as u16
}

/// How long the first INIT is waited for; each one after it twice as long (RFC 9260 4.2, T1-init; shorter than its
/// second, as tests do not wait that long).
const FIRST_WAIT: Duration = Duration::from_millis(300);

/// Sends INIT until INIT ACK or ABORT comes back.
pub(super) fn connect(target: SocketAddr, source: SocketAddr, timeout: Duration) -> io::Result<String> {
    let socket = RawSocket::open(target.is_ipv6(), SCTP)?;
    if !source.ip().is_unspecified() {
        socket.bind(source.ip())?;
    }
    socket.connect(target.ip())?;
    let own_tag = tag();
    let source_port = if source.port() == 0 { own_port() } else { source.port() };
    let init = Packet { source_port, destination_port: target.port(), tag: 0, chunk: INIT, body: init_body(own_tag) };
    let deadline = Instant::now() + timeout;
    let mut wait = FIRST_WAIT;
    loop {
        socket.send(&init.bytes())?;
        let again = (Instant::now() + wait).min(deadline);
        wait *= 2;
        while let Some(left) = again.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) {
            socket.set_timeout(left)?;
            let bytes = match socket.receive() {
                Ok(bytes) => bytes,
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => break,
                Err(e) => return Err(e),
            };
            let Some(answer) = Packet::parse(&bytes) else { continue };
            if answer.source_port != target.port() || answer.destination_port != source_port || answer.tag != own_tag {
                continue;
            }
            match answer.chunk {
                INIT_ACK => return Ok(String::from_utf8_lossy(cookie(&answer.body)).into_owned()),
                ABORT => return Err(io::ErrorKind::ConnectionRefused.into()),
                _ => {}
            }
        }
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

/// The state cookie behind the fixed part of an INIT ACK.
fn cookie(body: &[u8]) -> &[u8] {
    let header = |at: usize| body.get(16 + at..18 + at).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]));
    let end = 16 + usize::from(header(2));
    if header(0) == STATE_COOKIE { body.get(20..end).unwrap_or_default() } else { &[] }
}

/// Answers INIT on the port with INIT ACK, and on every other port with ABORT, for ever or until packets cannot be made.
pub(super) fn respond(v6: bool, port: u16, name: &str) {
    let Ok(socket) = RawSocket::open(v6, SCTP) else { return };
    if socket.tell_destinations().is_err() {
        return;
    }
    loop {
        let Ok((bytes, peer, local)) = socket.receive_at() else { continue };
        let Some(request) = Packet::parse(&bytes).filter(|p| p.chunk == INIT && p.body.len() >= 16) else { continue };
        let (peer_at, local_at) =
            (SocketAddr::new(peer, request.source_port), SocketAddr::new(local, request.destination_port));
        let line = greeting(name, "sctp", peer_at, local_at);
        let _ = socket.send_from(&answer(&request, port, line.trim_end().as_bytes()).bytes(), peer, local);
    }
}

fn answer(request: &Packet, port: u16, line: &[u8]) -> Packet {
    let peer_tag = request.body.get(..4).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
    let mut answer = Packet {
        source_port: request.destination_port,
        destination_port: request.source_port,
        tag: peer_tag,
        chunk: ABORT,
        body: Vec::new(),
    };
    if request.destination_port == port {
        answer.chunk = INIT_ACK;
        answer.body = init_body(tag());
        answer.body.extend_from_slice(&STATE_COOKIE.to_be_bytes());
        answer.body.extend_from_slice(&u16::try_from(4 + line.len()).unwrap_or(4).to_be_bytes());
        answer.body.extend_from_slice(line);
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_survives_and_a_changed_one_does_not() {
        let packet = Packet { source_port: 1, destination_port: 2, tag: 3, chunk: INIT, body: init_body(4) };
        let mut bytes = packet.bytes();
        let back = Packet::parse(&bytes).expect("is whole");
        assert_eq!((back.source_port, back.destination_port, back.tag, back.body), (1, 2, 3, init_body(4)));
        for length in 0..bytes.len() {
            assert!(Packet::parse(&bytes[..length]).is_none(), "cut at {length}");
        }
        bytes[17] ^= 1;
        assert!(Packet::parse(&bytes).is_none());
    }

    #[test]
    fn no_two_associations_have_the_same_port() {
        let ports: std::collections::BTreeSet<u16> = (0..16_384).map(|_| own_port()).collect();
        assert_eq!((ports.len(), ports.first(), ports.last()), (16_384, Some(&32_768), Some(&49_151)));
    }

    #[test]
    fn the_answer_carries_the_line_on_the_port_and_is_an_abort_elsewhere() {
        let init = Packet { source_port: 9, destination_port: 80, tag: 0, chunk: INIT, body: init_body(4) };
        let back = Packet::parse(&answer(&init, 80, b"who").bytes()).expect("is whole");
        assert_eq!((back.chunk, back.tag, back.destination_port, cookie(&back.body)), (INIT_ACK, 4, 9, &b"who"[..]));
        assert_eq!(Packet::parse(&answer(&init, 81, b"who").bytes()).map(|p| p.chunk), Some(ABORT));
    }
}
