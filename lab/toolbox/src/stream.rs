//! A long stream of numbered packets that come back from a toolbox server. Reports are lines of JSON.

use super::serve::{BUFFER_BYTES, STREAM_MAGIC};
use super::{StreamArguments, resolve};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::json;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long the last packets may take to come back.
const LAST_WITHIN: Duration = Duration::from_secs(3);
/// The sender wakes this often and sends what is due.
const TICK: Duration = Duration::from_micros(500);
/// The most gaps that a report lists.
const GAPS_MAX: usize = 100;
/// Bytes of magic and number.
const HEADER: usize = 16;

/// What came back so far.
#[derive(Default)]
struct Received {
    /// One bit per number.
    seen: Vec<u64>,
    count: u64,
    duplicates: u64,
    reordered: u64,
    highest: Option<u64>,
    last: Option<Instant>,
    longest_pause: Duration,
    interval_pause: Duration,
}

impl Received {
    fn note(&mut self, number: u64, now: Instant) {
        let (word, bit) = ((number / 64) as usize, 1_u64 << (number % 64));
        if word >= self.seen.len() {
            self.seen.resize(word + 1, 0);
        }
        if self.seen[word] & bit != 0 {
            self.duplicates += 1;
            return;
        }
        self.seen[word] |= bit;
        self.count += 1;
        if self.highest.is_some_and(|h| number < h) {
            self.reordered += 1;
        }
        self.highest = self.highest.max(Some(number));
        if let Some(last) = self.last {
            let pause = now.duration_since(last);
            self.longest_pause = self.longest_pause.max(pause);
            self.interval_pause = self.interval_pause.max(pause);
        }
        self.last = Some(now);
    }

    /// Runs of numbers that did not come back: first and last of each, the first hundred runs.
    fn gaps(&self, sent: u64) -> Vec<(u64, u64)> {
        let missing = |n: u64| self.seen.get((n / 64) as usize).is_none_or(|word| word & (1 << (n % 64)) == 0);
        let mut gaps: Vec<(u64, u64)> = Vec::new();
        for number in (0..sent).filter(|n| missing(*n)) {
            let count = gaps.len();
            match gaps.last_mut() {
                Some((_, end)) if *end + 1 == number => *end = number,
                _ if count == GAPS_MAX => break,
                _ => gaps.push((number, number)),
            }
        }
        gaps
    }
}

/// What both directions share.
struct Shared {
    sent: AtomicU64,
    refused: AtomicU64,
    done: AtomicBool,
    received: Mutex<Received>,
}

pub(super) fn run(arguments: &StreamArguments) -> io::Result<ExitCode> {
    let target = resolve(&arguments.host, arguments.port)?;
    let shared = Shared {
        sent: AtomicU64::new(0),
        refused: AtomicU64::new(0),
        done: AtomicBool::new(false),
        received: Mutex::new(Received::default()),
    };
    let result = if arguments.tcp { tcp(target, arguments, &shared) } else { udp(target, arguments, &shared) };
    let broken = result.err().map(|e| e.to_string());
    let sent = shared.sent.load(Ordering::Relaxed);
    let received = shared.received.lock().unwrap_or_else(PoisonError::into_inner);
    let lost = sent - received.count.min(sent);
    println!(
        "{}",
        json!({
            "final": true,
            "protocol": if arguments.tcp { "tcp" } else { "udp" },
            "target": target.to_string(),
            "sent": sent,
            "received": received.count,
            "lost": lost,
            "duplicates": received.duplicates,
            "reordered": received.reordered,
            "refused": shared.refused.load(Ordering::Relaxed),
            "max_pause_ms": millis(received.longest_pause),
            "gaps": received.gaps(sent),
            "error": broken,
        })
    );
    let whole = lost == 0 && sent > 0 && broken.is_none();
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn packet(size: u16, number: u64) -> Vec<u8> {
    let mut bytes = vec![0x5a; usize::from(size)];
    bytes[..8].copy_from_slice(STREAM_MAGIC);
    bytes[8..HEADER].copy_from_slice(&number.to_be_bytes());
    bytes
}

fn number(bytes: &[u8]) -> Option<u64> {
    let rest = bytes.strip_prefix(STREAM_MAGIC)?;
    Some(u64::from_be_bytes(rest.get(..8)?.try_into().ok()?))
}

/// Calls `send` with each number when it is due, until the time is over.
fn pace(arguments: &StreamArguments, shared: &Shared, mut send: impl FnMut(u64) -> io::Result<()>) -> io::Result<()> {
    let began = Instant::now();
    let total = (arguments.duration.as_secs_f64() * f64::from(arguments.rate)) as u64;
    let mut number = 0;
    while number < total {
        let due = ((began.elapsed().as_secs_f64() * f64::from(arguments.rate)) as u64).min(total);
        while number < due {
            send(number)?;
            number += 1;
            shared.sent.store(number, Ordering::Relaxed);
        }
        std::thread::sleep(TICK);
    }
    Ok(())
}

/// Reports now and then until the sender is done; also while the sender waits for room.
fn reports(arguments: &StreamArguments, shared: &Shared) {
    let began = Instant::now();
    let mut next = arguments.interval;
    while !shared.done.load(Ordering::Relaxed) {
        let elapsed = began.elapsed();
        if elapsed >= arguments.duration {
            break;
        }
        if elapsed >= next {
            next += arguments.interval;
            report(elapsed, shared);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn report(elapsed: Duration, shared: &Shared) {
    let mut received = shared.received.lock().unwrap_or_else(PoisonError::into_inner);
    // A pause that still lasts counts as well.
    let pause = received.interval_pause.max(received.last.map_or(elapsed, |at| at.elapsed()));
    received.interval_pause = Duration::ZERO;
    let line = json!({
        "seconds": millis(elapsed) / 1e3,
        "sent": shared.sent.load(Ordering::Relaxed),
        "received": received.count,
        "highest": received.highest,
        "pause_ms": millis(pause),
    });
    println!("{line}");
    let _ = io::stdout().flush();
}

/// Waits until everything is back, or as long as the last packets may take.
fn wait_for_last(shared: &Shared) {
    let deadline = Instant::now() + LAST_WITHIN;
    while Instant::now() < deadline {
        let count = shared.received.lock().unwrap_or_else(PoisonError::into_inner).count;
        if count >= shared.sent.load(Ordering::Relaxed) {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    shared.done.store(true, Ordering::Relaxed);
}

fn udp(target: SocketAddr, arguments: &StreamArguments, shared: &Shared) -> io::Result<()> {
    let any: SocketAddr = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().expect("an address");
    let socket = UdpSocket::bind(any)?;
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES);
    socket.connect(target)?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    std::thread::scope(|scope| {
        scope.spawn(|| reports(arguments, shared));
        scope.spawn(|| {
            let mut buffer = vec![0; 65_536];
            while !shared.done.load(Ordering::Relaxed) {
                match socket.recv(&mut buffer) {
                    Ok(length) => note(shared, &buffer[..length]),
                    Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                        shared.refused.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(_) => {}
                }
            }
        });
        // An error that an earlier packet met is reported by send; this packet was not sent then: once more.
        let paced = pace(arguments, shared, |number| {
            let bytes = packet(arguments.size, number);
            socket.send(&bytes).or_else(|_| socket.send(&bytes)).or(Ok(0)).map(drop)
        });
        wait_for_last(shared);
        paced
    })
}

fn note(shared: &Shared, bytes: &[u8]) {
    if let Some(number) = number(bytes) {
        shared.received.lock().unwrap_or_else(PoisonError::into_inner).note(number, Instant::now());
    }
}

fn tcp(target: SocketAddr, arguments: &StreamArguments, shared: &Shared) -> io::Result<()> {
    let mut writer = TcpStream::connect_timeout(&target, Duration::from_secs(5))?;
    writer.set_nodelay(true)?;
    // What cannot be delivered fills the socket's buffer; the sender then waits, but no longer than it was to run.
    writer.set_write_timeout(Some(Duration::from_millis(50)))?;
    let deadline = Instant::now() + arguments.duration + LAST_WITHIN;
    let mut reader = writer.try_clone()?;
    reader.set_read_timeout(Some(Duration::from_millis(50)))?;
    std::thread::scope(|scope| {
        scope.spawn(|| reports(arguments, shared));
        scope.spawn(|| {
            let mut record = vec![0; usize::from(arguments.size)];
            let mut filled = 0;
            while !shared.done.load(Ordering::Relaxed) {
                match reader.read(&mut record[filled..]) {
                    Ok(0) => break,
                    Ok(length) => filled += length,
                    Err(e) if is_temporary(&e) => {}
                    Err(_) => break,
                }
                if filled == record.len() {
                    note(shared, &record);
                    filled = 0;
                }
            }
        });
        let paced =
            pace(arguments, shared, |number| write_until(&mut writer, &packet(arguments.size, number), deadline));
        wait_for_last(shared);
        paced
    })
}

/// Writes all of it, or fails if there was no room for it until then.
fn write_until(writer: &mut TcpStream, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        match writer.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(length) => bytes = &bytes[length..],
            Err(e) if is_temporary(&e) && Instant::now() < deadline => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_duplicates_and_order_are_noticed() {
        let mut received = Received::default();
        let now = Instant::now();
        for number in [0, 1, 5, 4, 4, 64, 65] {
            received.note(number, now);
        }
        assert_eq!((received.count, received.duplicates, received.reordered), (6, 1, 1));
        assert_eq!(received.gaps(70), [(2, 3), (6, 63), (66, 69)]);
    }

    #[test]
    fn numbers_survive() {
        assert_eq!(number(&packet(64, 77)), Some(77));
        assert_eq!(number(b"WEFT"), None);
    }
}
