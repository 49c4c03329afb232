//! The server: TCP, HTTP, UDP and SCTP on one port, in both families. Every answer names the pod, the protocol, its peer,
//! and the address that the peer reached.
//!
//! Told to end, it behaves as a server should: it goes on accepting while its clients learn of it, then serves the
//! connections that there are to their end. Its pod's grace period bounds that.

use super::packet::{receive_at, send_from, tell_destinations};
use super::{ServeArguments, sctp};
use nix::sys::socket::{setsockopt, sockopt};
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener, UdpSocket};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a numbered stream's packets begin with; they are sent back as they came.
pub(super) const STREAM_MAGIC: &[u8; 8] = b"WEFTSTRM";

/// Room for bursts: a stream must not lose packets in this socket.
pub(super) const BUFFER_BYTES: usize = 8 << 20;

pub(super) fn run(arguments: &ServeArguments) -> io::Result<ExitCode> {
    let (port, name) = (arguments.port, Arc::<str>::from(arguments.name.as_str()));
    let drain = Duration::try_from_secs_f64(arguments.drain).map_err(io::Error::other)?;
    let udp = bind_udp(port)?;
    let listener = bind_tcp(port)?;
    for v6 in [false, true] {
        let name = Arc::clone(&name);
        // A machine that lets nobody make packets goes without SCTP.
        std::thread::spawn(move || sctp::respond(v6, port, &name));
    }
    {
        let name = Arc::clone(&name);
        std::thread::spawn(move || serve_udp(&udp, port, &name));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut ends = signal(SignalKind::terminate())?;
        println!("{name} serves TCP, HTTP, UDP and SCTP on port {port}");
        serve_tcp(listener, name, &mut ends, drain).await
    })?;
    Ok(ExitCode::SUCCESS)
}

fn both_families<T>(port: u16, bind: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    // On Linux a socket of :: serves IPv4, too; where there is no IPv6 it cannot be made.
    bind((std::net::Ipv6Addr::UNSPECIFIED, port).into())
        .or_else(|_| bind((std::net::Ipv4Addr::UNSPECIFIED, port).into()))
}

fn bind_tcp(port: u16) -> io::Result<StdListener> {
    let listener = both_families(port, StdListener::bind)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn bind_udp(port: u16) -> io::Result<UdpSocket> {
    let socket = both_families(port, UdpSocket::bind)?;
    tell_destinations(&socket)?;
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES);
    Ok(socket)
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The line that tells who answered whom.
pub(super) fn greeting(name: &str, protocol: &str, peer: SocketAddr, local: SocketAddr) -> String {
    format!("pod={name} protocol={protocol} local={} peer={}\n", canonical(local), canonical(peer))
}

fn serve_udp(socket: &UdpSocket, port: u16, name: &str) {
    let mut buffer = vec![0; 65_536];
    loop {
        // An ICMP error about an earlier answer is reported here; it concerns nobody else.
        let Ok((length, peer, local)) = receive_at(socket, &mut buffer) else { continue };
        let data = &buffer[..length];
        if data.starts_with(STREAM_MAGIC) {
            let _ = send_from(socket, data, peer, local);
        } else {
            let mut answer = greeting(name, "udp", peer, SocketAddr::new(local, port)).into_bytes();
            answer.extend_from_slice(data);
            let _ = send_from(socket, &answer, peer, local);
        }
    }
}

/// Until a signal says to end, and everything after it is done.
async fn serve_tcp(listener: StdListener, name: Arc<str>, ends: &mut Signal, drain: Duration) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut connections = tokio::task::JoinSet::new();
    let mut accepting = std::pin::pin!(async {
        ends.recv().await;
        tokio::time::sleep(drain).await;
    });
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let name = Arc::clone(&name);
                    connections.spawn(async move { serve_connection(stream, canonical(peer), &name).await });
                }
                // Out of files: wait for some connection to end.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            },
            Some(_) = connections.join_next() => {}
            () = &mut accepting => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
    Ok(())
}

async fn serve_connection(mut stream: TcpStream, peer: SocketAddr, name: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let local = canonical(stream.local_addr()?);
    let mut buffer = vec![0; 65_536];
    let mut length = stream.read(&mut buffer).await?;
    if length == 0 {
        return Ok(());
    }
    if is_http(&buffer[..length]) {
        return serve_http(stream, buffer, length, (peer, local), name).await;
    }
    if !buffer[..length].starts_with(STREAM_MAGIC) {
        stream.write_all(greeting(name, "tcp", peer, local).as_bytes()).await?;
    }
    while length > 0 {
        stream.write_all(&buffer[..length]).await?;
        length = stream.read(&mut buffer).await?;
    }
    Ok(())
}

fn is_http(data: &[u8]) -> bool {
    ["GET ", "HEAD ", "POST ", "PUT ", "DELETE ", "OPTIONS ", "PATCH "].iter().any(|m| data.starts_with(m.as_bytes()))
}

/// One request after another, each answered with a line of JSON that says what was asked.
async fn serve_http(
    mut stream: TcpStream,
    mut buffer: Vec<u8>,
    mut length: usize,
    (peer, local): (SocketAddr, SocketAddr),
    name: &str,
) -> io::Result<()> {
    loop {
        let end = loop {
            if let Some(end) = buffer[..length].windows(4).position(|w| w == b"\r\n\r\n") {
                break end + 4;
            }
            let got = if length < buffer.len() { stream.read(&mut buffer[length..]).await? } else { 0 };
            if got == 0 {
                return Ok(());
            }
            length += got;
        };
        let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
        let mut first = head.lines().next().unwrap_or_default().split(' ');
        let (method, path) = (first.next().unwrap_or_default(), first.next().unwrap_or("/"));
        let header = |wanted: &str| {
            head.lines()
                .filter_map(|l| l.split_once(':'))
                .find(|(n, _)| n.eq_ignore_ascii_case(wanted))
                .map(|(_, v)| v.trim().to_owned())
        };
        // The request's body is read past, so that the next request begins where it should.
        let mut body: usize = header("content-length").and_then(|v| v.parse().ok()).unwrap_or(0);
        let have = body.min(length - end);
        buffer.copy_within(end + have..length, 0);
        length -= end + have;
        body -= have;
        let mut sink = [0; 4096];
        while body > 0 {
            let want = body.min(sink.len());
            match stream.read(&mut sink[..want]).await? {
                0 => return Ok(()),
                got => body -= got,
            }
        }
        let host = header("host");
        let answer = serde_json::json!({
            "pod": name, "protocol": "http", "peer": peer.to_string(), "local": local.to_string(), "method": method,
            "path": path, "host": host,
        });
        let answer = format!("{answer}\n");
        let close = header("connection").is_some_and(|v| v.eq_ignore_ascii_case("close")) || head.contains("HTTP/1.0");
        let wanted = path.strip_prefix("/status/").and_then(|code| code.parse::<u16>().ok());
        let status = wanted.filter(|code| (200..600).contains(code)).unwrap_or(200);
        let text = if method == "HEAD" { "" } else { answer.as_str() };
        let head = format!(
            "HTTP/1.1 {status} {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: {}\r\n\r\n",
            http::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("Status"),
            answer.len(),
            if close { "close" } else { "keep-alive" },
        );
        stream.write_all(format!("{head}{text}").as_bytes()).await?;
        if close {
            return Ok(());
        }
    }
}
