//! A command in a container, its streams in frames: channel, length, bytes.

use super::{Body, Found, Node, Query, Refusal, bad, upgrade};
use crate::pod::ContainerDir;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::process::Command;
use tokio::sync::mpsc;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// The longest frame that is accepted.
const FRAME_MAX: usize = 1 << 20;

/// What the client wants.
struct Wish {
    weft: PathBuf,
    files: ContainerDir,
    command: Vec<String>,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

nix::ioctl_write_ptr_bad!(
    /// Tells a terminal its size.
    set_window_size,
    libc::TIOCSWINSZ,
    nix::pty::Winsize
);

pub(super) fn start(
    node: &Arc<Node>,
    found: Found,
    query: &Query,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let attempt = found.container.attempt.unwrap_or_default();
    let files = found.dir.container(&found.name, attempt);
    if files.first_process().is_none() {
        let message = format!("container {:?} of pod {:?} does not run", found.name, found.record.name);
        return Err(Refusal(StatusCode::CONFLICT, message));
    }
    let command = query.all("command");
    if command.is_empty() {
        return Err(bad("command: expected at least one"));
    }
    let tty = query.is_set("tty");
    let wish = Wish {
        weft: node.program(),
        files,
        command,
        stdin: query.is_set("stdin"),
        stdout: query.is_set("stdout") || tty,
        stderr: query.is_set("stderr") && !tty,
        tty,
    };
    upgrade(request, move |connection| async move {
        if let Err(error) = run(wish, connection).await {
            tracing::debug!(%error, "exec");
        }
    })
}

async fn run(wish: Wish, connection: TokioIo<Upgraded>) -> io::Result<()> {
    let (reader, writer) = tokio::io::split(connection);
    let (frames, outgoing) = mpsc::channel(32);
    let writing = tokio::spawn(write_frames(writer, outgoing));
    let result =
        if wish.tty { with_terminal(&wish, reader, &frames).await } else { with_pipes(&wish, reader, &frames).await };
    let status = match result {
        Ok(status) => describe(status),
        Err(error) => failure(&error.to_string()),
    };
    let _ = frames.send((STATUS, status.to_string().into_bytes())).await;
    drop(frames);
    writing.await.map_err(io::Error::other)?
}

/// The metav1.Status that ends every exec.
fn describe(status: ExitStatus) -> Value {
    if status.success() {
        return json!({"metadata": {}, "status": "Success"});
    }
    let code = status.code().unwrap_or(137);
    json!({
        "metadata": {},
        "status": "Failure",
        "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

fn failure(message: &str) -> Value {
    json!({"metadata": {}, "status": "Failure", "reason": "InternalError", "message": message, "code": 500})
}

fn command(wish: &Wish, terminal: Option<&str>) -> Command {
    let mut command = Command::new(&wish.weft);
    command.args(["internal", "exec"]).arg(&wish.files.0);
    if let Some(terminal) = terminal {
        command.args(["--tty", terminal]);
    }
    command.arg("--").args(&wish.command).kill_on_drop(true);
    command
}

async fn with_pipes(
    wish: &Wish,
    reader: impl AsyncRead + Unpin + Send + 'static,
    frames: &mpsc::Sender<(u8, Vec<u8>)>,
) -> io::Result<ExitStatus> {
    let pipe = |on: bool| if on { Stdio::piped() } else { Stdio::null() };
    let mut child =
        command(wish, None).stdin(pipe(wish.stdin)).stdout(pipe(wish.stdout)).stderr(pipe(wish.stderr)).spawn()?;
    let mut outputs = tokio::task::JoinSet::new();
    if let Some(stdout) = child.stdout.take() {
        outputs.spawn(copy_out(stdout, STDOUT, frames.clone()));
    }
    if let Some(stderr) = child.stderr.take() {
        outputs.spawn(copy_out(stderr, STDERR, frames.clone()));
    }
    let stdin = child.stdin.take();
    let input = copy_in(reader, stdin, |_| {});
    tokio::pin!(input);
    let status = tokio::select! {
        status = child.wait() => status?,
        // The client is gone: the command goes, too.
        _ = &mut input => {
            child.start_kill()?;
            child.wait().await?
        }
    };
    while outputs.join_next().await.is_some() {}
    Ok(status)
}

async fn with_terminal(
    wish: &Wish,
    reader: impl AsyncRead + Unpin + Send + 'static,
    frames: &mpsc::Sender<(u8, Vec<u8>)>,
) -> io::Result<ExitStatus> {
    let pty = nix::pty::openpty(None, None)?;
    let name = nix::unistd::ttyname(&pty.slave)?;
    let master = pty.master;
    let mut child = command(wish, Some(&name.to_string_lossy()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let output = tokio::fs::File::from_std(File::from(master.try_clone()?));
    let input = tokio::fs::File::from_std(File::from(master.try_clone()?));
    // With our own end of the terminal open the output never ends; it is closed once the command has opened its own,
    // which is at its end at the latest.
    let slave = pty.slave;
    let outputs = tokio::spawn(copy_out(output, STDOUT, frames.clone()));
    let resize = move |size: &[u8]| set_size(&master, size);
    let input = copy_in(reader, Some(input), resize);
    tokio::pin!(input);
    let status = tokio::select! {
        status = child.wait() => status?,
        _ = &mut input => {
            child.start_kill()?;
            child.wait().await?
        }
    };
    drop(slave);
    let _ = outputs.await;
    Ok(status)
}

fn set_size(terminal: &OwnedFd, size: &[u8]) {
    let Ok(size) = serde_json::from_slice::<Value>(size) else { return };
    let number = |field: &str| size[field].as_u64().and_then(|n| u16::try_from(n).ok());
    if let (Some(columns), Some(rows)) = (number("Width"), number("Height")) {
        let size = nix::pty::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the descriptor is open for as long as `terminal` is borrowed, and `size` is what the call reads.
        let _ = unsafe { set_window_size(terminal.as_raw_fd(), &raw const size) };
    }
}

async fn copy_out(mut from: impl AsyncRead + Unpin, channel: u8, frames: mpsc::Sender<(u8, Vec<u8>)>) {
    let mut buffer = vec![0; 32 * 1024];
    loop {
        // A terminal whose other end is closed answers with an error instead of an end.
        match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(length) => {
                if frames.send((channel, buffer[..length].to_vec())).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Passes input on until the client goes away.
async fn copy_in(
    mut reader: impl AsyncRead + Unpin,
    mut stdin: Option<impl AsyncWrite + Unpin>,
    mut resize: impl FnMut(&[u8]),
) {
    while let Ok((channel, data)) = read_frame(&mut reader).await {
        match channel {
            STDIN => {
                if let Some(pipe) = &mut stdin
                    && !data.is_empty()
                    && (pipe.write_all(&data).await.is_err() || pipe.flush().await.is_err())
                {
                    stdin = None;
                }
            }
            RESIZE => resize(&data),
            CLOSE if data.first() == Some(&STDIN) => stdin = None,
            _ => {}
        }
    }
}

async fn read_frame(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<(u8, Vec<u8>)> {
    let channel = reader.read_u8().await?;
    let length = reader.read_u32().await? as usize;
    if length > FRAME_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("frame of {length} bytes")));
    }
    let mut data = vec![0; length];
    reader.read_exact(&mut data).await?;
    Ok((channel, data))
}

async fn write_frames(
    mut writer: impl AsyncWrite + Unpin,
    mut frames: mpsc::Receiver<(u8, Vec<u8>)>,
) -> io::Result<()> {
    while let Some((channel, data)) = frames.recv().await {
        let length = u32::try_from(data.len()).map_err(io::Error::other)?;
        let mut frame = Vec::with_capacity(5 + data.len());
        frame.push(channel);
        frame.extend_from_slice(&length.to_be_bytes());
        frame.extend_from_slice(&data);
        writer.write_all(&frame).await?;
        writer.flush().await?;
    }
    writer.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_survive_and_long_ones_are_refused() {
        let (near, mut far) = tokio::io::duplex(1024);
        let (sender, receiver) = mpsc::channel(4);
        let writing = tokio::spawn(write_frames(near, receiver));
        sender.send((STDERR, b"abc".to_vec())).await.expect("is open");
        drop(sender);
        assert_eq!(read_frame(&mut far).await.expect("a frame"), (STDERR, b"abc".to_vec()));
        writing.await.expect("ends").expect("wrote");
        let mut long: &[u8] = &[1, 0xff, 0, 0, 0];
        assert!(read_frame(&mut long).await.is_err());
    }
}
