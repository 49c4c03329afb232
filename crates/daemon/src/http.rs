//! HTTP for health checks and metrics: a request, an answer, the end of the connection.
//!
//! Any client can open connections and send nothing. That must not keep out the probe of a load balancer,
//! or the node would lose its traffic: at a limit the server closes the connection that has waited longest for its
//! request, of the source that has most of them, and serves the newest.

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::cmp::Reverse;
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio_util::sync::CancellationToken;

pub use hyper::{Response, StatusCode};

/// Content type of metrics.
pub const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Content type of JSON.
pub const JSON: &str = "application/json";
/// Content type of plain text.
pub const TEXT: &str = "text/plain; charset=utf-8";

/// Longest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// Pause after a connection could not be accepted: the process has no file descriptor left, say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Limits of one listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Connections at once.
    pub connections_max: usize,
    /// Connections at once from one source: an IPv4 address, or a /64 of IPv6.
    pub per_source_max: usize,
    /// Time for the head of a request.
    pub head_timeout: Duration,
    /// Time for a connection as a whole.
    pub connection_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 256,
            per_source_max: 64,
            head_timeout: Duration::from_secs(5),
            connection_timeout: Duration::from_secs(10),
        }
    }
}

/// An answer with a body of that content type.
#[must_use]
pub fn response(status: StatusCode, content_type: &'static str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Answers GET and HEAD until `stop`. `answer` gets the path; one that it does not know is not found.
pub async fn serve<A>(listener: TcpListener, limits: Limits, answer: A, stop: CancellationToken)
where
    A: Fn(&str) -> Option<Response<String>> + Send + Sync + 'static,
{
    let answer = Arc::new(answer);
    let mut open = Connections { limits, open: HashMap::new(), accepted: 0 };
    // Dropped at the end, with all connections.
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            Some(ended) = tasks.join_next_with_id() => {
                open.remove(&ended.map_or_else(|error| error.id(), |(id, ())| id));
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept an HTTP connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let source = Source::of(from.ip());
        open.make_room(source);
        let asked = Arc::new(AtomicBool::new(false));
        let task = tasks.spawn(exchange(stream, limits, answer.clone(), asked.clone()));
        open.insert(source, asked, task);
    }
}

async fn exchange<A>(stream: TcpStream, limits: Limits, answer: Arc<A>, asked: Arc<AtomicBool>)
where
    A: Fn(&str) -> Option<Response<String>>,
{
    let service = service_fn(|request: Request<Incoming>| {
        asked.store(true, Ordering::Relaxed);
        let response = respond(&request, &*answer);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .keep_alive(false)
        .max_buf_size(HEAD_BYTES_MAX)
        .title_case_headers(true);
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    // A connection that breaks, or that is too slow, concerns nobody but its client.
    let _ = tokio::time::timeout(limits.connection_timeout, serving).await;
}

fn respond<B>(request: &Request<B>, answer: impl Fn(&str) -> Option<Response<String>>) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let mut response = if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, "expected GET or HEAD\n".to_owned());
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        refused
    } else if let Some(found) = answer(path) {
        found
    } else {
        response(StatusCode::NOT_FOUND, TEXT, "not found\n".to_owned())
    };
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response.map(|body| Full::new(Bytes::from(body)))
}

/// Who counts as one client. A host has a whole /64 of IPv6 to connect from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Source(IpAddr);

impl Source {
    fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(v6) => {
                let [a, b, c, d, ..] = v6.segments();
                Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
            }
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

struct Connection {
    source: Source,
    /// How many were accepted before it.
    serial: u64,
    /// Its request is here.
    asked: Arc<AtomicBool>,
    task: AbortHandle,
}

/// Connections of a listener.
struct Connections {
    limits: Limits,
    open: HashMap<Id, Connection>,
    accepted: u64,
}

impl Connections {
    fn insert(&mut self, source: Source, asked: Arc<AtomicBool>, task: AbortHandle) {
        let serial = self.accepted;
        self.accepted += 1;
        self.open.insert(task.id(), Connection { source, serial, asked, task });
    }

    fn remove(&mut self, id: &Id) {
        self.open.remove(id);
    }

    /// Closes connections until one more of that source is within the limits.
    fn make_room(&mut self, source: Source) {
        let per_source = |open: &HashMap<Id, Connection>| {
            let mut counts: HashMap<Source, usize> = HashMap::new();
            open.values().for_each(|connection| *counts.entry(connection.source).or_default() += 1);
            counts
        };
        let counts = per_source(&self.open);
        if counts.get(&source).is_some_and(|count| *count >= self.limits.per_source_max) {
            self.evict(|connection| (connection.source == source).then_some(0));
        }
        if self.open.len() >= self.limits.connections_max {
            let counts = per_source(&self.open);
            self.evict(|connection| counts.get(&connection.source).copied());
        }
    }

    /// Closes the first by weight (`None`: not this one): the heaviest, of these one that still waits for its request, of
    /// these the oldest.
    fn evict(&mut self, weight: impl Fn(&Connection) -> Option<usize>) {
        let order = |connection: &Connection| {
            let asked = connection.asked.load(Ordering::Relaxed);
            Some((Reverse(weight(connection)?), asked, connection.serial))
        };
        let ranked = self.open.iter().filter_map(|(id, connection)| Some((order(connection)?, *id)));
        let Some((_, id)) = ranked.min_by_key(|(order, _)| *order) else { return };
        if let Some(connection) = self.open.remove(&id) {
            tracing::debug!(source = %connection.source.0, "too many HTTP connections: closed one that sent no request");
            connection.task.abort();
        }
    }
}

#[cfg(test)]
mod tests;
