//! Many connections at once: some that stay and are used all the time, and new ones at a steady rate.

use super::{LoadArguments, resolve};
use socket2::SockRef;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// What goes there and back.
const PING: &[u8; 16] = b"WEFTSTRM-load...";

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
        });
        println!("{report}");
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

async fn hold(target: SocketAddr, patience: Duration, counters: Arc<Counters>) {
    let Ok(mut stream) = connect(target, patience).await else { return };
    add(&counters.held);
    loop {
        if exchange(&mut stream, patience).await.is_err() {
            add(&counters.broken);
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
