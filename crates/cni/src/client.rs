//! The client of the agent: one request, one response, each a line of JSON, within a deadline.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};
use weft_api::agent::{Request, Response};

/// Bytes of a response, at most.
const RESPONSE_BYTES_MAX: usize = 4 << 20;
/// Pause between two attempts to connect to an agent that is (re)starting.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// There is no response.
#[derive(Debug)]
pub enum RequestError {
    /// The agent does not listen: it has not seen the request.
    Unreachable(io::Error),
    /// The connection broke or timed out: the request may have been carried out.
    Interrupted(io::Error),
    /// The response is malformed.
    Malformed(String),
}

/// Timeouts of a request.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Until the agent listens.
    pub connect: Duration,
    /// Until the response is complete.
    pub response: Duration,
}

/// Sends a request and reads the response.
///
/// # Errors
/// See [`RequestError`].
pub fn send(socket: &Path, request: &Request, timeouts: Timeouts) -> Result<Response, RequestError> {
    let mut stream = connect(socket, timeouts.connect).map_err(RequestError::Unreachable)?;
    let mut line = serde_json::to_vec(request).map_err(|error| RequestError::Malformed(format!("request: {error}")))?;
    line.push(b'\n');
    let until = Instant::now() + timeouts.response;
    stream.set_write_timeout(Some(timeouts.response)).map_err(RequestError::Interrupted)?;
    stream.write_all(&line).map_err(RequestError::Interrupted)?;
    let response = read_line(&mut stream, until).map_err(RequestError::Interrupted)?;
    serde_json::from_slice(&response).map_err(|error| RequestError::Malformed(format!("response: {error}")))
}

fn connect(socket: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let until = Instant::now() + timeout;
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
        if line.len() > RESPONSE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the response is too long"));
        }
    }
}
