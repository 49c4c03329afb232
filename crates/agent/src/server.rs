//! The local API: JSON lines over a unix socket that only root can open. One task per connection, requests of a
//! connection one after the other, lines of bounded length.

use futures::future::BoxFuture;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weft_api::agent::{Request, Response};
use weft_api::cni::{CniError, code};

/// Longest request. GC lists every attachment of the node.
const LINE_MAX: u64 = 1 << 20;
/// Connections at a time; more wait.
const CONNECTIONS_MAX: usize = 256;
/// Answers that may wait for a slow reader.
const ANSWERS_MAX: usize = 256;
/// Bytes of answers that are written at once, if there are as many.
const WRITE_BYTES: usize = 64 * 1024;
/// A reader that takes nothing for so long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Answers requests. Dropping the future abandons the request.
pub trait Handler: Send + Sync + 'static {
    /// Sends any number of answers.
    fn handle(self: Arc<Self>, request: Request, answers: mpsc::Sender<Response>) -> BoxFuture<'static, ()>;
}

/// Listens on `path`, in place of a socket that a former agent left.
///
/// # Errors
/// The socket cannot be made.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves until `stop`.
pub async fn serve(listener: UnixListener, handler: Arc<impl Handler>, stop: CancellationToken) {
    let tasks = TaskTracker::new();
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(permit) = room.clone().acquire_owned().await else { break };
        let (handler, stop) = (handler.clone(), stop.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                result = connection(stream, handler) => {
                    if let Err(error) = result {
                        tracing::debug!(%error, "connection ended");
                    }
                }
            }
            drop(permit);
        });
    }
    tasks.close();
    tasks.wait().await;
}

async fn connection(stream: UnixStream, handler: Arc<impl Handler>) -> io::Result<()> {
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
        match serde_json::from_slice(&line) {
            Ok(request) => converse(request, &handler, &mut reader, &mut writer).await?,
            Err(error) => answer(&mut writer, &malformed(&error.to_string())).await?,
        }
    }
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
    let streaming = matches!(request, Request::Observe { .. } | Request::Wait(_));
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
                // The next request of an impatient caller waits its turn.
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

fn malformed(problem: &str) -> Response {
    Response::Error(CniError {
        code: code::DECODING_FAILURE,
        msg: "malformed request".into(),
        details: problem.to_owned(),
    })
}

#[cfg(test)]
mod tests;
