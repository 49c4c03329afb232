//! As much of HTTP/1.1 as health checks and readers of metrics need: a request without a body, one answer, the end of the connection.

use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Longest head of a request.
const HEAD_MAX: usize = 8 << 10;
/// Connections of one listener at the same time.
const CONNECTIONS_MAX: usize = 32;
/// How long one connection may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause after a connection could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// A body of JSON.
pub(super) const JSON: &str = "application/json";

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Answer {
    /// 200, or else 503.
    pub(super) ok: bool,
    /// How much of the traffic the node is worth.
    pub(super) weight: Option<usize>,
    /// What the body is.
    pub(super) kind: &'static str,
    /// Text.
    pub(super) body: String,
}

/// Answers until `stop`. A path that `answer` does not know is not found.
pub(super) async fn serve<A>(listener: TcpListener, answer: A, stop: CancellationToken)
where
    A: Fn(&str) -> Option<Answer> + Send + Sync + 'static,
{
    let answer = Arc::new(answer);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        // Who comes when all places are taken is turned away: load balancers ask again.
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let answer = answer.clone();
        tokio::spawn(async move {
            // A connection that breaks concerns nobody but its client.
            let _ = tokio::time::timeout(PATIENCE, exchange(stream, &*answer)).await;
            drop(place);
        });
    }
}

async fn exchange(mut stream: TcpStream, answer: impl Fn(&str) -> Option<Answer>) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut part = [0_u8; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let n = stream.read(&mut part).await?;
        if n == 0 || head.len() + n > HEAD_MAX {
            return Ok(());
        }
        head.extend_from_slice(part.get(..n).unwrap_or_default());
    }
    let text = respond(&head, answer);
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await
}

/// The whole response to the head of a request.
fn respond(head: &[u8], answer: impl Fn(&str) -> Option<Answer>) -> String {
    let line = head.split(|byte| *byte == b'\r').next().and_then(|line| std::str::from_utf8(line).ok());
    let mut words = line.unwrap_or_default().split(' ');
    let (method, target, version) = (words.next(), words.next().unwrap_or_default(), words.next());
    if !version.is_some_and(|version| version.starts_with("HTTP/1.")) || words.next().is_some() {
        return response("400 Bad Request", None, JSON, "", false);
    }
    if !matches!(method, Some("GET" | "HEAD")) {
        return response("405 Method Not Allowed", None, JSON, "", false);
    }
    let path = target.split('?').next().unwrap_or_default();
    let without_body = method == Some("HEAD");
    match answer(path) {
        Some(Answer { ok, weight, kind, body }) => {
            response(if ok { "200 OK" } else { "503 Service Unavailable" }, weight, kind, &body, without_body)
        }
        None => response("404 Not Found", None, JSON, "", without_body),
    }
}

fn response(status: &str, weight: Option<usize>, kind: &str, body: &str, without_body: bool) -> String {
    let weight = weight.map(|weight| format!("X-Load-Balancing-Endpoint-Weight: {weight}\r\n")).unwrap_or_default();
    let length = body.len();
    let body = if without_body { "" } else { body };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nX-Content-Type-Options: nosniff\r\n{weight}\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

#[cfg(test)]
mod tests {
    use super::{Answer, JSON, respond};

    #[test]
    fn requests_are_answered_and_nonsense_is_refused() {
        let answer = |path: &str| {
            (path == "/a").then(|| Answer { ok: true, weight: Some(3), kind: JSON, body: "{}".to_owned() })
        };
        let status = |head: &str| respond(head.as_bytes(), answer).split("\r\n").next().map(str::to_owned);
        let table = [
            ("GET /a HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200 OK"),
            ("GET /a?x=y HTTP/1.0\r\n\r\n", "HTTP/1.1 200 OK"),
            ("GET /b HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found"),
            ("POST /a HTTP/1.1\r\n\r\n", "HTTP/1.1 405 Method Not Allowed"),
            ("GET /a\r\n\r\n", "HTTP/1.1 400 Bad Request"),
            ("GET /a HTTP/1.1 x\r\n\r\n", "HTTP/1.1 400 Bad Request"),
            ("\u{0}\r\n\r\n", "HTTP/1.1 400 Bad Request"),
            ("\r\n\r\n", "HTTP/1.1 400 Bad Request"),
        ];
        for (head, expected) in table {
            assert_eq!(status(head).as_deref(), Some(expected), "{head:?}");
        }
        let whole = respond(b"HEAD /a HTTP/1.1\r\n\r\n", answer);
        assert!(whole.contains("\r\nX-Load-Balancing-Endpoint-Weight: 3\r\n"), "{whole}");
        assert!(whole.contains("\r\nContent-Length: 2\r\n") && whole.ends_with("\r\n\r\n"), "{whole}");
        assert!(respond(&[0xff, 0xfe, b'\r'], answer).starts_with("HTTP/1.1 400"));
    }
}
