//! rtnetlink, synchronous: one request, one answer. Errors carry the kernel's own words where it has some.

use crate::netns::NetNs;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::constants::NETLINK_ROUTE;
use netlink_sys::{Socket as RawSocket, SocketAddr};
use std::io;

pub mod address;
pub mod device;
pub mod diag;
pub mod neighbour;
pub mod path;

/// Attempts at a list that changes while it is read.
const DUMP_ATTEMPTS: usize = 20;
/// The attribute of an error that holds the kernel's words.
const ERROR_TEXT: u16 = 1;
/// Bytes of a netlink message's header.
const HEADER: usize = 16;

/// A request that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{what}{}", text.as_ref().map(|text| format!(" ({text})")).unwrap_or_default())]
pub struct NetlinkError {
    /// What was attempted on what.
    pub what: String,
    /// The kernel's own words.
    pub text: Option<String>,
    /// The error.
    #[source]
    pub source: io::Error,
}

impl NetlinkError {
    /// Whether it is this error number.
    #[must_use]
    pub fn is(&self, errno: i32) -> bool {
        self.source.raw_os_error() == Some(errno)
    }

    pub(crate) fn new(what: impl Into<String>, source: io::Error) -> Self {
        Self { what: what.into(), text: None, source }
    }
}

impl From<NetlinkError> for io::Error {
    fn from(error: NetlinkError) -> Self {
        let kind = error.source.kind();
        Self::new(kind, format!("{error}: {}", error.source))
    }
}

/// A connection to one network namespace, the one in which it was opened.
pub struct Socket {
    socket: RawSocket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// In the calling thread's namespace.
    ///
    /// # Errors
    /// A system call failed.
    pub fn open() -> io::Result<Self> {
        let mut socket = RawSocket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_ext_ack(true)?;
        // An error needs not carry back the whole request.
        socket.set_cap_ack(true)?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(64 << 10) })
    }

    /// In another namespace. The socket stays there, whoever uses it.
    ///
    /// # Errors
    /// A system call failed.
    pub fn open_in(netns: &NetNs) -> io::Result<Self> {
        netns.run(Self::open)?
    }

    /// Sends a request and waits for it to be done.
    pub(crate) fn request(
        &mut self,
        what: impl FnOnce() -> String,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), NetlinkError> {
        match self.exchange(message, NLM_F_REQUEST | NLM_F_ACK | flags, |_| {}) {
            Ok(_) => Ok(()),
            Err((source, text)) => Err(NetlinkError { what: what(), text, source }),
        }
    }

    /// Asks for one object.
    pub(crate) fn get(
        &mut self,
        what: impl FnOnce() -> String,
        message: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>, NetlinkError> {
        let mut answer = None;
        match self.exchange(message, NLM_F_REQUEST | NLM_F_ACK, |message| answer = Some(message)) {
            Ok(_) => Ok(answer),
            Err((source, text)) => Err(NetlinkError { what: what(), text, source }),
        }
    }

    /// Asks for all objects of a kind.
    pub(crate) fn dump(
        &mut self,
        what: impl FnOnce() -> String,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut all = Vec::new();
            match self.exchange(message.clone(), NLM_F_REQUEST | NLM_F_DUMP, |message| all.push(message)) {
                Ok(Whole::Yes) => return Ok(all),
                Ok(Whole::Interrupted) => {}
                Err((source, text)) => return Err(NetlinkError { what: what(), text, source }),
            }
        }
        Err(NetlinkError::new(what(), io::Error::new(io::ErrorKind::TimedOut, "it changes faster than it can be read")))
    }

    fn exchange(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        mut each: impl FnMut(RouteNetlinkMessage),
    ) -> Result<Whole, (io::Error, Option<String>)> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        let plain = |error: io::Error| (error, None);
        self.socket.send(&bytes, 0).map_err(plain)?;

        let mut whole = Whole::Yes;
        loop {
            self.receive().map_err(plain)?;
            let mut rest = self.buffer.as_slice();
            while rest.len() >= HEADER {
                let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
                if length < HEADER || length > rest.len() {
                    return Err(plain(broken("length of a message")));
                }
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&rest[..length])
                    .map_err(|error| plain(broken(error)))?;
                rest = &rest[length.next_multiple_of(4).min(rest.len())..];
                let (header, payload) = answer.into_parts();
                // An answer to a former request, given up half-way.
                if header.sequence_number != self.sequence {
                    continue;
                }
                if header.flags & NLM_F_DUMP_INTR != 0 {
                    whole = Whole::Interrupted;
                }
                match payload {
                    NetlinkPayload::InnerMessage(message) => each(message),
                    NetlinkPayload::Done(_) => return Ok(whole),
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            None => Ok(whole),
                            Some(code) => Err((io::Error::from_raw_os_error(-code.get()), error_text(&error.header))),
                        };
                    }
                    _ => {}
                }
            }
        }
    }

    /// Reads one datagram, however long, into the buffer.
    fn receive(&mut self) -> io::Result<()> {
        self.buffer.clear();
        let needed = loop {
            let peek = libc::MSG_PEEK | libc::MSG_TRUNC;
            match self.socket.recv(&mut self.buffer, peek) {
                Ok(needed) => break needed,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        };
        self.buffer.clear();
        if self.buffer.capacity() < needed {
            self.buffer.reserve(needed);
        }
        self.socket.recv(&mut self.buffer, 0).map(drop)
    }
}

/// Whether a list was read without a change in between.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Whole {
    Yes,
    Interrupted,
}

fn broken(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the kernel's answer: {what}"))
}

/// The kernel's words behind the header of the refused request.
fn error_text(bytes: &[u8]) -> Option<String> {
    let mut rest = bytes.get(HEADER..)?;
    loop {
        let header = rest.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]);
        let value = rest.get(4..length)?;
        if kind == ERROR_TEXT {
            let text = value.split(|byte| *byte == 0).next()?;
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_an_error_are_found_behind_other_attributes() {
        let mut bytes = vec![0; HEADER];
        bytes.extend([8, 0, 2, 0, 1, 2, 3, 4]);
        bytes.extend([9, 0, 1, 0]);
        bytes.extend(b"nope\0");
        assert_eq!(error_text(&bytes), Some("nope".to_owned()));
    }

    #[test]
    fn truncated_errors_have_no_words() {
        let mut bytes = vec![0; HEADER];
        bytes.extend([9, 0, 1, 0]);
        bytes.extend(b"nope\0");
        for length in 0..bytes.len() {
            assert_eq!(error_text(&bytes[..length]), None, "{length}");
        }
    }
}
