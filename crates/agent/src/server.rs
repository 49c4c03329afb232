//! The local API: JSON lines over a unix socket that only root can open. One task per connection, requests of a
//! connection one after the other, lines of bounded length.
//!
//! CNI and observers share the socket, not their limits: streams of flows and waits have a limit of their own, and a
//! connection without a request in progress makes room for a new one. So nobody who looks on keeps a pod from starting.

use futures::future::BoxFuture;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use weft_api::agent::{Request, Response};
use weft_api::failure::{Failure, Kind};

/// Longest request. GC lists every attachment of the node.
const LINE_MAX: u64 = 1 << 20;
/// Connections at a time. Beyond that the one that is idle for longest is closed; more wait while all are busy.
const CONNECTIONS_MAX: usize = 512;
/// Of these, that may stream flows or wait for a fact. The others serve requests that end soon.
const STREAMS_MAX: usize = 128;
/// Answers that may wait for a slow reader.
const ANSWERS_MAX: usize = 256;
/// Bytes of answers that are written at once, if there are as many.
const WRITE_BYTES: usize = 64 * 1024;
/// A reader that accepts no byte for so long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Pause after a connection could not be accepted: the process has no file descriptor left, say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers requests. Dropping the future abandons the request.
pub trait Handler: Send + Sync + 'static {
    /// Answers a request with any number of responses.
    fn handle(self: Arc<Self>, request: Request, answers: mpsc::Sender<Response>) -> BoxFuture<'static, ()>;
}

/// Listens on `path`, in place of a socket that a former agent left. The socket is made in a directory that only its
/// owner can enter, and moved to its place with its final mode: nobody else can ever connect.
///
/// # Errors
/// The socket cannot be made.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "expected the path of a file"));
    };
    std::fs::create_dir_all(dir)?;
    let private = PrivateDir::create(dir, name)?;
    let made = private.0.join("s");
    let listener = UnixListener::bind(&made)?;
    std::fs::set_permissions(&made, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&made, path)?;
    Ok(listener)
}

/// A directory beside the socket, removed when dropped.
struct PrivateDir(PathBuf);

impl PrivateDir {
    fn create(dir: &Path, name: &OsStr) -> io::Result<Self> {
        // Only one agent runs on these directories: what is there was left by one that was killed in between.
        let path = dir.join(format!(".{}", name.to_string_lossy()));
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        // Empty, unless something failed; the next agent removes it too.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Serves until `stop`.
pub async fn serve(listener: UnixListener, handler: Arc<impl Handler>, stop: CancellationToken) {
    let mut connections = Connections::default();
    let streams = Arc::new(Semaphore::new(STREAMS_MAX));
    loop {
        let may_accept = connections.make_room();
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(ended) = connections.tasks.join_next_with_id() => {
                connections.ended(ended);
                continue;
            }
            accepted = listener.accept(), if may_accept => accepted,
        };
        match accepted {
            Ok((stream, _)) => connections.spawn(stream, handler.clone(), streams.clone()),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to the local API");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    connections.tasks.shutdown().await;
}

/// When a connection became idle, in events of the server; [`BUSY`] while a request is in progress.
type IdleSince = Arc<AtomicU64>;
const BUSY: u64 = u64::MAX;

/// Counts events: what became idle first has the lowest number.
#[derive(Clone, Default)]
struct Clock(Arc<AtomicU64>);

impl Clock {
    fn tick(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

#[derive(Default)]
struct Connections {
    tasks: JoinSet<io::Result<()>>,
    open: HashMap<Id, (IdleSince, AbortHandle)>,
    clock: Clock,
}

impl Connections {
    fn spawn(&mut self, stream: UnixStream, handler: Arc<impl Handler>, streams: Arc<Semaphore>) {
        let idle_since = Arc::new(AtomicU64::new(self.clock.tick()));
        let work = connection(
            stream,
            handler,
            streams,
            Activity { idle_since: idle_since.clone(), clock: self.clock.clone() },
        );
        let task = self.tasks.spawn(work);
        self.open.insert(task.id(), (idle_since, task));
    }

    fn ended(&mut self, ended: Result<(Id, io::Result<()>), JoinError>) {
        let id = match ended {
            Ok((id, result)) => {
                if let Err(error) = result {
                    tracing::debug!(%error, "a connection to the local API broke");
                }
                id
            }
            Err(error) => error.id(),
        };
        self.open.remove(&id);
    }

    /// Whether one more may be accepted. Closes the connection that is idle for longest if need be.
    fn make_room(&mut self) -> bool {
        if self.open.len() < CONNECTIONS_MAX {
            return true;
        }
        let idle = self.open.iter().map(|(id, (since, _))| (since.load(Ordering::Relaxed), *id));
        let Some((_, id)) = idle.filter(|(since, _)| *since != BUSY).min_by_key(|(since, _)| *since) else {
            return false;
        };
        if let Some((_, task)) = self.open.remove(&id) {
            tracing::debug!(connections = CONNECTIONS_MAX, "too many connections to the local API: closed an idle one");
            task.abort();
        }
        true
    }
}

/// What a connection tells the server of itself.
struct Activity {
    idle_since: IdleSince,
    clock: Clock,
}

impl Activity {
    fn busy(&self) {
        self.idle_since.store(BUSY, Ordering::Relaxed);
    }

    fn idle(&self) {
        self.idle_since.store(self.clock.tick(), Ordering::Relaxed);
    }
}

async fn connection(
    stream: UnixStream,
    handler: Arc<impl Handler>,
    streams: Arc<Semaphore>,
    activity: Activity,
) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        let n = (&mut reader).take(LINE_MAX).read_until(b'\n', &mut line).await?;
        if n == 0 {
            return Ok(());
        }
        if line.last() != Some(&b'\n') {
            let problem = if line.len() as u64 >= LINE_MAX { "request is too long" } else { "request is cut off" };
            return answer(&mut writer, &malformed(problem)).await;
        }
        activity.busy();
        let request: Request = match serde_json::from_slice(&line) {
            Ok(request) => request,
            Err(error) => {
                answer(&mut writer, &malformed(&error.to_string())).await?;
                activity.idle();
                continue;
            }
        };
        let permit = if streams_or_waits(&request) { Some(streams.try_acquire()) } else { None };
        match permit {
            Some(Err(_)) => answer(&mut writer, &too_many_streams()).await?,
            permit => {
                converse(request, &handler, &mut reader, &mut writer).await?;
                drop(permit);
            }
        }
        activity.idle();
    }
}

/// Whether a request may take any time.
fn streams_or_waits(request: &Request) -> bool {
    matches!(request, Request::Observe { .. } | Request::Wait(_))
}

/// Passes answers on until there are no more, or the caller hangs up.
async fn converse(
    request: Request,
    handler: &Arc<impl Handler>,
    reader: &mut BufReader<OwnedReadHalf>,
    writer: &mut OwnedWriteHalf,
) -> io::Result<()> {
    // A caller that goes away ends a stream of flows at once. Changes of endpoints go on to their end: half an ADD
    // would have to be undone anyway.
    let streaming = streams_or_waits(&request);
    let (sender, mut answers) = mpsc::channel(ANSWERS_MAX);
    let mut work = handler.clone().handle(request, sender);
    let (mut working, mut watching) = (true, streaming);
    let mut lines = Vec::new();
    loop {
        // What can be had without waiting goes out in one piece: a stream of flows would cost a call for each.
        let full = lines.len() >= WRITE_BYTES;
        let next = tokio::select! {
            biased;
            () = std::future::ready(()), if full => None,
            next = answers.recv() => Some(next),
            () = &mut work, if working => {
                working = false;
                continue;
            }
            left = reader.fill_buf(), if watching => {
                if left?.is_empty() {
                    return Ok(());
                }
                // The caller sent its next request already: that one waits its turn.
                watching = false;
                continue;
            }
            () = std::future::ready(()), if !lines.is_empty() => None,
        };
        if let Some(Some(next)) = &next {
            line_of(next, &mut lines)?;
            continue;
        }
        if let Err(error) = write(writer, &mut lines).await {
            if working && !streaming {
                work.await;
            }
            return Err(error);
        }
        if next.is_some() {
            return Ok(());
        }
    }
}

async fn answer(writer: &mut OwnedWriteHalf, response: &Response) -> io::Result<()> {
    let mut line = Vec::new();
    line_of(response, &mut line)?;
    write(writer, &mut line).await
}

fn line_of(response: &Response, to: &mut Vec<u8>) -> io::Result<()> {
    serde_json::to_writer(&mut *to, response).map_err(io::Error::other)?;
    to.push(b'\n');
    Ok(())
}

async fn write(writer: &mut OwnedWriteHalf, lines: &mut Vec<u8>) -> io::Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    tokio::time::timeout(WRITE_TIMEOUT, writer.write_all(lines))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    lines.clear();
    Ok(())
}

fn too_many_streams() -> Response {
    Response::Error(Failure::new(
        Kind::TryAgain,
        "too many observers",
        format!("expected at most {STREAMS_MAX} streams of flows and waits at a time"),
    ))
}

fn malformed(problem: &str) -> Response {
    Response::Error(Failure::new(Kind::Malformed, "malformed request", problem.to_owned()))
}

#[cfg(test)]
mod tests;
