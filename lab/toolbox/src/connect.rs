//! One attempt to reach something, and what came of it.

use super::{ConnectArguments, Outcome, resolve_in, sctp};
use socket2::{Domain, Socket, Type};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

/// What is sent to TCP and UDP servers.
const HELLO: &[u8] = b"hello from weft\n";

pub(super) fn run(arguments: &ConnectArguments) -> Outcome {
    let target = match resolve_in(&arguments.host, arguments.port, &arguments.family) {
        Ok(target) => target,
        Err(error) => return Outcome::Failed(format!("{}: {error}", arguments.host)),
    };
    let timeout = arguments.timeout;
    let any = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let source = SocketAddr::new(arguments.source.unwrap_or(any), arguments.source_port);
    if source.is_ipv4() != target.is_ipv4() {
        return Outcome::Failed(format!("--source {}: {} is of the other family", source.ip(), target.ip()));
    }
    let result = if arguments.udp {
        udp(target, source, timeout, usize::from(arguments.size))
    } else if arguments.http {
        http(target, source, timeout)
    } else if arguments.sctp {
        sctp::connect(target, source, timeout)
    } else {
        tcp(target, source, timeout)
    };
    match result {
        Ok(answer) => Outcome::Ok(answer.trim_end().to_owned()),
        Err(error) => Outcome::of(&error),
    }
}

fn open(target: SocketAddr, source: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    if source.port() != 0 || !source.ip().is_unspecified() {
        socket.set_reuse_address(true)?;
        socket.bind(&source.into())?;
    }
    socket.connect_timeout(&target.into(), timeout)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn tcp(target: SocketAddr, source: SocketAddr, timeout: Duration) -> io::Result<String> {
    let mut stream = open(target, source, timeout)?;
    stream.write_all(HELLO)?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    // A server of ours sends a line; another one may send nothing, and was reached all the same.
    while !answer.contains(&b'\n') && answer.len() < buffer.len() {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => answer.extend_from_slice(&buffer[..length]),
            Err(error) if !answer.is_empty() => {
                let _ = error;
                break;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(first_line(&answer))
}

fn first_line(answer: &[u8]) -> String {
    String::from_utf8_lossy(answer).lines().next().unwrap_or_default().to_owned()
}

fn udp(target: SocketAddr, source: SocketAddr, timeout: Duration, size: usize) -> io::Result<String> {
    let socket = UdpSocket::bind(source)?;
    socket.connect(target)?;
    socket.set_read_timeout(Some(timeout))?;
    let mut datagram = HELLO.to_vec();
    datagram.resize(size.max(HELLO.len()), b'.');
    socket.send(&datagram)?;
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer)?;
    Ok(first_line(&buffer[..length]))
}

fn http(target: SocketAddr, source: SocketAddr, timeout: Duration) -> io::Result<String> {
    let mut stream = open(target, source, timeout)?;
    write!(stream, "GET / HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(1 << 20).read_to_end(&mut answer)?;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| io::Error::other("no HTTP answer"))?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    Ok(format!("{status} {}", body.lines().next().unwrap_or_default()))
}
