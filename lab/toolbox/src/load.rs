//! Many connections at once: some that stay and are used all the time, and new ones at a steady rate.

use super::{LoadArguments, resolve};
use socket2::SockRef;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// What goes there and back.
const PING: &[u8; 16] = b"WEFTSTRM-load...";
/// What a connection that stays begins with; its answer tells who answers.
const HELLO: &[u8] = b"hello from load\n";

#[derive(Default)]
struct Counters {
    /// Connections that stay, as far as they were made.
    held: AtomicU64,
    /// Exchanges on them.
    exchanges: AtomicU64,
    /// Of them, those on which an answer did not come in time, or that were cut.
    broken: AtomicU64,
    opened: AtomicU64,
    ok: AtomicU64,
    refused: AtomicU64,
    timeout: AtomicU64,
    failed: AtomicU64,
    /// By the names of those who answer: connections that stay, and those of them that broke.
    by_pod: Mutex<BTreeMap<String, [u64; 2]>>,
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    fn report(&self, last: bool) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let report = serde_json::json!({
            "final": last,
            "held": read(&self.held),
            "exchanges": read(&self.exchanges),
            "broken": read(&self.broken),
            "opened": read(&self.opened),
            "ok": read(&self.ok),
            "refused": read(&self.refused),
            "timeout": read(&self.timeout),
            "failed": read(&self.failed),
            "held_by": self.by_pod(0),
            "broken_by": self.by_pod(1),
        });
        println!("{report}");
    }

    fn note(&self, pod: &str, what: usize) {
        self.by_pod.lock().unwrap_or_else(PoisonError::into_inner).entry(pod.to_owned()).or_default()[what] += 1;
    }

    fn by_pod(&self, what: usize) -> BTreeMap<String, u64> {
        let all = self.by_pod.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter(|(_, counts)| counts[what] > 0).map(|(pod, counts)| (pod.clone(), counts[what])).collect()
    }
}

pub(super) fn run(arguments: &LoadArguments) -> io::Result<ExitCode> {
    let target = resolve(&arguments.host, arguments.port)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(load(target, arguments));
    // Connections that still wait are nobody's business any more.
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

async fn load(target: SocketAddr, arguments: &LoadArguments) {
    let counters = Arc::new(Counters::default());
    let (patience, end) = (arguments.timeout, Instant::now() + arguments.duration);
    for _ in 0..arguments.hold {
        tokio::spawn(hold(target, patience, Arc::clone(&counters)));
    }
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    let mut report_at = Instant::now() + arguments.interval;
    let began = Instant::now();
    let mut due = 0_u64;
    while Instant::now() < end {
        tick.tick().await;
        let wanted = began.elapsed().as_secs_f64() * f64::from(arguments.rate);
        while (due as f64) < wanted {
            due += 1;
            tokio::spawn(open(target, patience, Arc::clone(&counters)));
        }
        if Instant::now() >= report_at {
            counters.report(false);
            report_at += arguments.interval;
        }
    }
    // What was opened last has its time, too.
    let last = Instant::now() + patience + Duration::from_millis(200);
    let settled = |counters: &Counters| {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let done = [&counters.ok, &counters.refused, &counters.timeout, &counters.failed].map(read);
        done.iter().sum::<u64>() == read(&counters.opened)
    };
    while Instant::now() < last && !settled(&counters) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    counters.report(true);
}

/// There and back within `patience`.
async fn exchange(stream: &mut TcpStream, patience: Duration) -> io::Result<()> {
    let mut answer = [0; PING.len()];
    timeout(patience, async {
        stream.write_all(PING).await?;
        stream.read_exact(&mut answer).await
    })
    .await
    .map_err(|_| io::ErrorKind::TimedOut)??;
    if answer == *PING { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

async fn connect(target: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let stream = timeout(patience, TcpStream::connect(target)).await.map_err(|_| io::ErrorKind::TimedOut)??;
    stream.set_nodelay(true)?;
    // Closed at once: no port is kept for a connection that is over.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    Ok(stream)
}

/// Asks who answers: the greeting, and behind it what was said, as it comes back.
async fn ask(stream: &mut TcpStream, patience: Duration) -> io::Result<String> {
    let mut answer = Vec::new();
    timeout(patience, async {
        stream.write_all(HELLO).await?;
        let mut buffer = [0; 512];
        while !answer.ends_with(HELLO) {
            match stream.read(&mut buffer).await? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                length => answer.extend_from_slice(&buffer[..length]),
            }
        }
        Ok(())
    })
    .await
    .map_err(|_| io::ErrorKind::TimedOut)??;
    let text = String::from_utf8_lossy(&answer);
    let pod = text.strip_prefix("pod=").and_then(|rest| rest.split(' ').next());
    pod.map(str::to_owned).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

async fn hold(target: SocketAddr, patience: Duration, counters: Arc<Counters>) {
    let Ok(mut stream) = connect(target, patience).await else { return };
    let Ok(pod) = ask(&mut stream, patience).await else { return };
    add(&counters.held);
    counters.note(&pod, 0);
    loop {
        if exchange(&mut stream, patience).await.is_err() {
            add(&counters.broken);
            counters.note(&pod, 1);
            return;
        }
        add(&counters.exchanges);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn open(target: SocketAddr, patience: Duration, counters: Arc<Counters>) {
    add(&counters.opened);
    let result = match connect(target, patience).await {
        Ok(mut stream) => exchange(&mut stream, patience).await,
        Err(error) => Err(error),
    };
    add(match result.map_err(|error| error.kind()) {
        Ok(()) => &counters.ok,
        Err(io::ErrorKind::ConnectionRefused) => &counters.refused,
        Err(io::ErrorKind::TimedOut) => &counters.timeout,
        Err(_) => &counters.failed,
    });
}
