//! Sockets of a network namespace, as the kernel's socket diagnosis tells of them; and their end by its hand.

use super::HEADER;
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::{Socket as RawSocket, SocketAddr};
use std::io;

/// `NETLINK_SOCK_DIAG`
const FAMILY: isize = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Bytes of `struct inet_diag_sockid`, where it lies in an answer, and where its cookie lies in it.
const ID: usize = 48;
const ID_AT: usize = 4;
const COOKIE_AT: usize = 40;

/// Address families of sockets.
pub const FAMILIES: [u8; 2] = [2, 10];

/// A socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    family: u8,
    protocol: u8,
    /// Ports, addresses, device and cookie, as the kernel wrote them.
    id: [u8; ID],
}

impl Found {
    /// The number that no other socket of this boot has.
    #[must_use]
    pub fn cookie(&self) -> u64 {
        word(&self.id, COOKIE_AT).zip(word(&self.id, COOKIE_AT + 4)).map_or(0, |(low, high)| low | high << 32)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    let word = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?).into())
}

/// A connection to the calling thread's network namespace.
pub struct Diagnosis {
    socket: RawSocket,
    buffer: Vec<u8>,
}

impl Diagnosis {
    /// # Errors
    /// A system call failed.
    pub fn open() -> io::Result<Self> {
        let mut socket = RawSocket::new(FAMILY)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, buffer: Vec::with_capacity(64 << 10) })
    }

    /// Calls `each` for every socket of the family and protocol in one of `states` (a bit for each).
    ///
    /// # Errors
    /// A system call failed, or the kernel refused.
    pub fn for_each(&mut self, family: u8, protocol: u8, states: u32, mut each: impl FnMut(Found)) -> io::Result<()> {
        self.send(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, family, protocol, states, &[0; ID])?;
        loop {
            if self.receive(|message| {
                let id = message.get(ID_AT..ID_AT + ID).and_then(|id| id.try_into().ok());
                if let Some(id) = id {
                    each(Found { family, protocol, id });
                }
            })? {
                return Ok(());
            }
        }
    }

    /// Ends a socket: whoever waits for it is told that the connection was aborted. `false`: it is gone already.
    ///
    /// # Errors
    /// A system call failed, or the kernel refused.
    pub fn destroy(&mut self, found: &Found) -> io::Result<bool> {
        self.send(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, found.family, found.protocol, u32::MAX, &found.id)?;
        let result = loop {
            match self.receive(|_| {}) {
                Ok(false) => {}
                Ok(true) => break Ok(true),
                Err(error) => break Err(error),
            }
        };
        match result {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => Ok(false),
            other => other,
        }
    }

    fn send(&mut self, kind: u16, flags: u16, family: u8, protocol: u8, states: u32, id: &[u8; ID]) -> io::Result<()> {
        // `struct nlmsghdr` and `struct inet_diag_req_v2`.
        let mut request = Vec::with_capacity(HEADER + 8 + ID);
        let length = u32::try_from(HEADER + 8 + ID).map_err(io::Error::other)?;
        request.extend(length.to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend(flags.to_ne_bytes());
        request.extend([0; 8]);
        request.extend([family, protocol, 0, 0]);
        request.extend(states.to_ne_bytes());
        request.extend(id);
        self.socket.send(&request, 0).map(drop)
    }

    /// Reads once; `true`: the answer is complete.
    fn receive(&mut self, mut each: impl FnMut(&[u8])) -> io::Result<bool> {
        self.buffer.clear();
        self.socket.recv(&mut self.buffer, 0)?;
        let mut rest = self.buffer.as_slice();
        while let Some(length) = word(rest, 0) {
            let length = usize::try_from(length).map_err(io::Error::other)?;
            let Some(message) = rest.get(..length).filter(|message| message.len() >= HEADER) else {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "netlink message of a wrong length"));
            };
            match u16::from_ne_bytes([message[4], message[5]]) {
                NLMSG_DONE => return Ok(true),
                NLMSG_ERROR => {
                    // The kernel writes the negative of the number; 0: done.
                    let number = message.get(HEADER..HEADER + 4).and_then(|bytes| bytes.try_into().ok());
                    let number = i32::from_ne_bytes(number.unwrap_or([0; 4]));
                    return if number == 0 { Ok(true) } else { Err(io::Error::from_raw_os_error(-number)) };
                }
                SOCK_DIAG_BY_FAMILY => each(&message[HEADER..]),
                _ => {}
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(false)
    }
}
