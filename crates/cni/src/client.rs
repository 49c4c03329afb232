//! One question to the agent: a line of JSON there, a line of JSON back, within a deadline.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};
use weft_api::agent::{Request, Response};

/// Longest answer that is read.
const ANSWER_MAX: usize = 4 << 20;
/// Pause between two attempts to reach an agent that is (re)starting.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Why there is no answer.
#[derive(Debug)]
pub enum AskError {
    /// Nobody listens: the request was not seen.
    Unreachable(io::Error),
    /// The connection broke or the time ran out: the request may have been carried out.
    Interrupted(io::Error),
    /// The answer makes no sense.
    Nonsense(String),
}

/// How long to wait for what.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For somebody to listen.
    pub connect: Duration,
    /// For the answer.
    pub answer: Duration,
}

/// Asks.
///
/// # Errors
/// See [`AskError`].
pub fn ask(socket: &Path, request: &Request, patience: Patience) -> Result<Response, AskError> {
    let mut stream = connect(socket, patience.connect).map_err(AskError::Unreachable)?;
    let mut line = serde_json::to_vec(request).map_err(|error| AskError::Nonsense(format!("request: {error}")))?;
    line.push(b'\n');
    let until = Instant::now() + patience.answer;
    stream.set_write_timeout(Some(patience.answer)).map_err(AskError::Interrupted)?;
    stream.write_all(&line).map_err(AskError::Interrupted)?;
    let answer = read_line(&mut stream, until).map_err(AskError::Interrupted)?;
    serde_json::from_slice(&answer).map_err(|error| AskError::Nonsense(format!("answer: {error}")))
}

fn connect(socket: &Path, patience: Duration) -> io::Result<UnixStream> {
    let until = Instant::now() + patience;
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(error) => {
                let later = matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock
                );
                if !later || Instant::now() + RETRY_PAUSE >= until {
                    return Err(error);
                }
                std::thread::sleep(RETRY_PAUSE);
            }
        }
    }
}

fn read_line(stream: &mut UnixStream, until: Instant) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let n = match stream.read(&mut chunk) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
            Err(error) => return Err(error),
        };
        let end = chunk[..n].iter().position(|byte| *byte == b'\n');
        line.extend_from_slice(&chunk[..end.unwrap_or(n)]);
        if end.is_some() {
            return Ok(line);
        }
        if line.len() > ANSWER_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "answer is too long"));
        }
    }
}
