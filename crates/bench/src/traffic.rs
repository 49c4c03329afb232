//! One slice of traffic between two namespaces, both ends busy-polling on CPUs of their own, so that the figure is
//! the path and not the wake-ups.

use crate::netns;
use anyhow::{Context, Result, bail};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Metric {
    /// TCP request-response, 64 bytes: p50 and p99 in microseconds.
    TcpRr,
    /// UDP request-response: p50 in microseconds.
    UdpRr,
    /// TCP connect-request-response-close: p50 in microseconds.
    TcpCrr,
    /// One TCP stream: Gbit/s.
    TcpStream,
    /// Small UDP packets that arrive: thousands a second.
    UdpPps,
}

impl Metric {
    /// Every metric.
    pub const ALL: [Self; 5] = [Self::TcpRr, Self::UdpRr, Self::TcpCrr, Self::TcpStream, Self::UdpPps];

    /// Names and units of the figures that a slice gives.
    pub fn figures(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::TcpRr => &[("tcp_rr_p50", "us"), ("tcp_rr_p99", "us")],
            Self::UdpRr => &[("udp_rr_p50", "us")],
            Self::TcpCrr => &[("tcp_crr_p50", "us")],
            Self::TcpStream => &[("tcp_stream", "Gbit/s")],
            Self::UdpPps => &[("udp_pps", "k/s")],
        }
    }

    fn is_udp(self) -> bool {
        matches!(self, Self::UdpRr | Self::UdpPps)
    }
}

const MESSAGE: usize = 64;
const CHUNK: usize = 64 * 1024;
/// No single wait lasts longer; a path that loses packets is an error, not a hang.
const TIMEOUT: Duration = Duration::from_secs(3);
/// A datagram without a reply for so long is lost.
const REPLY_TIMEOUT: Duration = Duration::from_millis(50);
/// So many lost datagrams spoil a slice.
const LOST_MAX: u32 = 3;
/// Fewer round trips are no figure.
const ROUND_TRIPS_MIN: usize = 10;

/// Why a slice gave no figure. The machine may have been busy, so such a slice is measured again, see
/// [`crate::scenario::Attempts`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Spoiled {
    /// The client or the server had too little CPU time.
    #[error("starved: only {round_trips} round trips in a slice")]
    Starved {
        /// That were measured.
        round_trips: usize,
    },
    /// Requests or replies were lost, or the server had no CPU time.
    #[error("no reply from {target}: {sent} requests sent, {received} arrived at the server")]
    NoReply {
        /// Where the client sent to.
        target: SocketAddr,
        /// By the client in this slice.
        sent: u64,
        /// By the server in this slice: tells a lost request from a lost reply.
        received: u64,
    },
}

struct Server {
    stop: Arc<AtomicBool>,
    port: Arc<AtomicU16>,
    received: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<Result<()>>>,
}

impl Server {
    fn start(ns: &Path, bind: SocketAddr, metric: Metric) -> Result<Self> {
        let (stop, port, received) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU16::new(0)), Arc::default());
        let thread = {
            let (ns, stop, port, received) =
                (ns.to_path_buf(), Arc::clone(&stop), Arc::clone(&port), Arc::clone(&received));
            std::thread::spawn(move || {
                netns::enter(&ns)?;
                netns::pin(1)?;
                if metric.is_udp() {
                    let socket = UdpSocket::bind(bind).with_context(|| format!("bind {bind}"))?;
                    socket.set_nonblocking(true)?;
                    port.store(socket.local_addr()?.port(), Ordering::Release);
                    serve_udp(&socket, metric, &stop, &received)
                } else {
                    let listener = TcpListener::bind(bind).with_context(|| format!("bind {bind}"))?;
                    listener.set_nonblocking(true)?;
                    port.store(listener.local_addr()?.port(), Ordering::Release);
                    serve_tcp(&listener, metric, &stop, &received)
                }
            })
        };
        let mut server = Self { stop, port, received, thread: Some(thread) };
        let deadline = Instant::now() + TIMEOUT;
        while server.port.load(Ordering::Acquire) == 0 {
            if server.thread.as_ref().is_some_and(std::thread::JoinHandle::is_finished) || Instant::now() > deadline {
                server.end()?;
                bail!("the server in {} did not start", ns.display());
            }
            std::thread::yield_now();
        }
        Ok(server)
    }

    fn end(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Release);
        match self.thread.take().map(std::thread::JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => bail!("the server panicked"),
            None => Ok(()),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("server: {error:#}");
        }
    }
}

fn serve_udp(socket: &UdpSocket, metric: Metric, stop: &AtomicBool, received: &AtomicU64) -> Result<()> {
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            Ok((length, peer)) => {
                received.fetch_add(1, Ordering::Relaxed);
                if metric == Metric::UdpRr {
                    socket.send_to(&buffer[..length], peer).context("answer")?;
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => return Err(error).context("receive"),
        }
    }
    Ok(())
}

/// The client closes first, always. A server that does keeps the client's port in TIME-WAIT, and refuses a connection from
/// the same port whose time stamps are older: those to a service and those to its backend have clocks of their own
/// (RFC 7323 5.3), so one scenario's connections would hold up the other's.
fn serve_tcp(listener: &TcpListener, metric: Metric, stop: &AtomicBool, received: &AtomicU64) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    while !stop.load(Ordering::Relaxed) {
        let mut connection = match listener.accept() {
            Ok((connection, _)) => connection,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::hint::spin_loop();
                continue;
            }
            Err(error) => return Err(error).context("accept"),
        };
        connection.set_nonblocking(true)?;
        connection.set_nodelay(true)?;
        while !stop.load(Ordering::Relaxed) {
            match connection.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => {
                    received.fetch_add(length as u64, Ordering::Relaxed);
                    if metric != Metric::TcpStream {
                        connection.write_all(&buffer[..length]).context("answer")?;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
                Err(_) => break,
            }
        }
    }
    Ok(())
}

/// A way for one slice.
#[derive(Clone, Copy)]
pub struct Way<'a> {
    /// The client's namespace.
    pub client: &'a Path,
    /// The server's namespace.
    pub server: &'a Path,
    /// Where the server listens; port 0: any.
    pub bind: SocketAddr,
    /// Where the client sends to, if not there.
    pub through: Option<SocketAddr>,
    /// The control group that this process is in during the slice.
    pub cgroup: Option<&'a Path>,
}

impl<'a> Way<'a> {
    /// Straight to the server.
    pub fn direct(client: &'a Path, server: &'a Path, address: IpAddr) -> Self {
        Self { client, server, bind: SocketAddr::new(address, 0), through: None, cgroup: None }
    }
}

/// Runs one slice; the figures are those of [`Metric::figures`], in that order.
pub fn slice(way: &Way<'_>, metric: Metric, length: Duration) -> Result<Vec<f64>> {
    let mut server = Server::start(way.server, way.bind, metric)?;
    let target = way.through.unwrap_or(SocketAddr::new(way.bind.ip(), server.port.load(Ordering::Acquire)));
    let received = Arc::clone(&server.received);
    let membership = way.cgroup.map(Membership::begin).transpose()?;
    let figures = netns::inside(way.client, || {
        netns::pin(0)?;
        match metric {
            Metric::TcpRr => tcp_rr(target, length, &received),
            Metric::UdpRr => udp_rr(target, length, &received),
            Metric::TcpCrr => tcp_crr(target, length, &received),
            Metric::TcpStream => tcp_stream(target, length, &received),
            Metric::UdpPps => udp_pps(target, length, &received),
        }
    });
    drop(membership);
    let figures = figures?;
    server.end()?;
    Ok(figures)
}

/// This process in a control group, until dropped.
struct Membership {
    former: PathBuf,
}

impl Membership {
    fn begin(group: &Path) -> Result<Self> {
        let own = std::fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup of version 2")?;
        let former = cgroup_root()?.join(own);
        std::fs::write(group.join("cgroup.procs"), "0").with_context(|| format!("enter {}", group.display()))?;
        Ok(Self { former })
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        if let Err(error) = std::fs::write(self.former.join("cgroup.procs"), "0") {
            eprintln!("still in another control group than {}: {error}", self.former.display());
        }
    }
}

/// Where control groups of version 2 are mounted.
pub fn cgroup_root() -> Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let place = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?, fields.next()?)).filter(|(_, kind)| *kind == "cgroup2")
    });
    Ok(place.context("cgroup version 2 is not mounted")?.0.into())
}

fn percentiles(mut nanoseconds: Vec<u64>, wanted: &[f64]) -> Result<Vec<f64>> {
    if nanoseconds.len() < ROUND_TRIPS_MIN {
        return Err(Spoiled::Starved { round_trips: nanoseconds.len() }.into());
    }
    nanoseconds.sort_unstable();
    let at = |p: f64| nanoseconds[((nanoseconds.len() - 1) as f64 * p) as usize] as f64 / 1000.0;
    Ok(wanted.iter().map(|p| at(*p)).collect())
}

fn read_spin(stream: &mut TcpStream, buffer: &mut [u8], no_reply: impl FnOnce() -> Spoiled) -> Result<()> {
    let (mut done, deadline) = (0, Instant::now() + TIMEOUT);
    while done < buffer.len() {
        match stream.read(&mut buffer[done..]) {
            Ok(0) => bail!("closed early"),
            Ok(length) => done += length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::hint::spin_loop();
                if Instant::now() > deadline {
                    return Err(no_reply().into());
                }
            }
            Err(error) => return Err(error).context("read"),
        }
    }
    Ok(())
}

fn connect(target: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, TIMEOUT).with_context(|| format!("connect to {target}"))?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

fn tcp_rr(target: SocketAddr, length: Duration, received: &AtomicU64) -> Result<Vec<f64>> {
    let mut stream = connect(target)?;
    let mut buffer = [7; MESSAGE];
    let mut times = Vec::with_capacity(1 << 16);
    let end = Instant::now() + length;
    loop {
        let start = Instant::now();
        if start > end {
            break;
        }
        stream.write_all(&buffer).context("write")?;
        let sent = times.len() as u64 + 1;
        read_spin(&mut stream, &mut buffer, || no_reply(target, sent, received))?;
        times.push(start.elapsed().as_nanos() as u64);
    }
    percentiles(times, &[0.5, 0.99])
}

fn no_reply(target: SocketAddr, sent: u64, received: &AtomicU64) -> Spoiled {
    Spoiled::NoReply { target, sent, received: received.load(Ordering::Relaxed) }
}

fn udp_rr(target: SocketAddr, length: Duration, received: &AtomicU64) -> Result<Vec<f64>> {
    let bind: SocketAddr = if target.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
    let socket = UdpSocket::bind(bind)?;
    socket.connect(target)?;
    socket.set_nonblocking(true)?;
    let mut buffer = [7; MESSAGE];
    let mut times = Vec::with_capacity(1 << 16);
    let (end, mut sent, mut lost) = (Instant::now() + length, 0, 0);
    'messages: loop {
        let start = Instant::now();
        if start > end {
            break;
        }
        socket.send(&buffer).context("send")?;
        sent += 1;
        loop {
            match socket.recv(&mut buffer) {
                Ok(_) => break,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    std::hint::spin_loop();
                    if start.elapsed() > REPLY_TIMEOUT {
                        lost += 1;
                        if lost > LOST_MAX {
                            return Err(no_reply(target, sent, received).into());
                        }
                        continue 'messages;
                    }
                }
                Err(error) => return Err(error).context("receive"),
            }
        }
        times.push(start.elapsed().as_nanos() as u64);
    }
    percentiles(times, &[0.5])
}

fn tcp_crr(target: SocketAddr, length: Duration, received: &AtomicU64) -> Result<Vec<f64>> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, socket};
    use std::os::fd::AsRawFd;
    let family = if target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let storage = SockaddrStorage::from(target);
    let mut buffer = [7; MESSAGE];
    let mut times = Vec::with_capacity(1 << 14);
    let end = Instant::now() + length;
    loop {
        let start = Instant::now();
        if start > end {
            break;
        }
        let fd = socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)?;
        match nix::sys::socket::connect(fd.as_raw_fd(), &storage) {
            Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => {}
            Err(error) => return Err(error).with_context(|| format!("connect to {target}")),
        }
        let mut stream = TcpStream::from(fd);
        loop {
            match stream.write(&buffer) {
                Ok(_) => break,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    std::hint::spin_loop();
                    if start.elapsed() > TIMEOUT {
                        return Err(no_reply(target, times.len() as u64 + 1, received).into());
                    }
                }
                Err(error) => return Err(error).with_context(|| format!("connect to {target}")),
            }
        }
        let sent = times.len() as u64 + 1;
        read_spin(&mut stream, &mut buffer, || no_reply(target, sent, received))?;
        drop(stream);
        times.push(start.elapsed().as_nanos() as u64);
    }
    percentiles(times, &[0.5])
}

fn tcp_stream(target: SocketAddr, length: Duration, received: &AtomicU64) -> Result<Vec<f64>> {
    let mut stream = connect(target)?;
    let buffer = vec![7; CHUNK];
    let (start, before) = (Instant::now(), received.load(Ordering::Relaxed));
    while start.elapsed() < length {
        match stream.write(&buffer) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => return Err(error).context("write"),
        }
    }
    let bytes = received.load(Ordering::Relaxed) - before;
    Ok(vec![bytes as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9])
}

fn udp_pps(target: SocketAddr, length: Duration, received: &AtomicU64) -> Result<Vec<f64>> {
    let bind: SocketAddr = if target.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
    let socket = UdpSocket::bind(bind)?;
    socket.connect(target)?;
    let buffer = [7; MESSAGE];
    let (start, before) = (Instant::now(), received.load(Ordering::Relaxed));
    while start.elapsed() < length {
        match socket.send(&buffer) {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock) => {}
            Err(error) => return Err(error).context("send"),
        }
    }
    let packets = received.load(Ordering::Relaxed) - before;
    Ok(vec![packets as f64 / start.elapsed().as_secs_f64() / 1e3])
}
