//! Listening where Services want the agent to, which others on the node cannot while ports are kept for Services.

use nix::sys::socket::{self as calls, AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, sockopt};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;
use weft_abi::LISTENER_MARK;

/// Listens by TCP; the socket does not block.
///
/// # Errors
/// The address cannot be had.
pub fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let family = if at.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = calls::socket(family, SockType::Stream, flags, None)?;
    calls::setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    // Who has no right to a mark is like everybody.
    let is_marked = calls::setsockopt(&socket, sockopt::Mark, &LISTENER_MARK).is_ok();
    calls::bind(socket.as_raw_fd(), &SockaddrStorage::from(at))?;
    if is_marked {
        // Replies carry the mark, too.
        calls::setsockopt(&socket, sockopt::Mark, &0)?;
    }
    calls::listen(&socket, Backlog::MAXCONN)?;
    Ok(socket.into())
}
