//! Connections to the API server that count what goes over them, by who asks, verb and kind.

use anyhow::Context as _;
use bytes::Bytes;
use futures::StreamExt as _;
use http::{Method, Request, Response, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, BodyStream, Full, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::client::Body;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tower::BoxError;
use weft_k8s::Client;
use weft_lab_apiserver::InProcess;

/// Who asks, verb, kind.
pub type Key = (&'static str, &'static str, String);

/// What was asked of one kind.
#[derive(Default)]
pub struct Count {
    /// Requests.
    pub requests: AtomicU64,
    /// Answers that are refusals.
    pub refused: AtomicU64,
    /// Bytes of bodies sent.
    pub sent: AtomicU64,
    /// Bytes of bodies received.
    pub received: AtomicU64,
    /// Events of watches.
    pub events: AtomicU64,
    /// How long answers took, watches apart.
    pub latency: Mutex<Vec<Duration>>,
}

/// All counts. Cheap to clone.
#[derive(Clone, Default)]
pub struct Meter(Arc<Mutex<BTreeMap<Key, Arc<Count>>>>);

impl Meter {
    fn of(&self, key: Key) -> Arc<Count> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().clone()
    }

    /// Forgets what was counted; connections go on counting.
    pub fn reset(&self) {
        for count in self.0.lock().unwrap_or_else(PoisonError::into_inner).values() {
            for number in [&count.requests, &count.refused, &count.sent, &count.received, &count.events] {
                number.store(0, Ordering::Relaxed);
            }
            count.latency.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    /// All counts.
    #[must_use]
    pub fn counts(&self) -> Vec<(Key, Arc<Count>)> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().map(|(key, count)| (key.clone(), count.clone())).collect()
    }
}

type AnswerBody = UnsyncBoxBody<Bytes, BoxError>;

/// A client with a connection of its own.
///
/// # Errors
/// The connection cannot be made.
pub async fn connect(server: &InProcess, who: &'static str, meter: &Meter) -> anyhow::Result<Client> {
    over(server, who, meter, None).await
}

/// The same, over a connection whose answers and events come so many milliseconds late.
///
/// # Errors
/// The connection cannot be made.
pub async fn connect_late(
    server: &InProcess,
    who: &'static str,
    meter: &Meter,
    late_ms: Arc<AtomicU64>,
) -> anyhow::Result<Client> {
    over(server, who, meter, Some(late_ms)).await
}

async fn over(
    server: &InProcess,
    who: &'static str,
    meter: &Meter,
    late_ms: Option<Arc<AtomicU64>>,
) -> anyhow::Result<Client> {
    let io = TokioIo::new(server.connect(who));
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(1 << 20).initial_connection_window_size(8 << 20);
    let (sender, connection) = builder.handshake::<_, Full<Bytes>>(io).await.context("connect")?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection");
        }
    });
    let meter = meter.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (mut sender, meter, late_ms) = (sender.clone(), meter.clone(), late_ms.clone());
        async move {
            let (mut head, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let path = head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
            let (verb, kind) = verb_and_kind(&head.method, &path);
            let count = meter.of((who, verb, kind));
            count.requests.fetch_add(1, Ordering::Relaxed);
            count.sent.fetch_add(body.len() as u64, Ordering::Relaxed);
            head.uri = Uri::builder().scheme("http").authority("sim").path_and_query(path).build()?;
            let began = Instant::now();
            sender.ready().await?;
            let answer = sender.send_request(Request::from_parts(head, Full::new(body))).await?;
            let (head, body) = answer.into_parts();
            if !head.status.is_success() {
                count.refused.fetch_add(1, Ordering::Relaxed);
            }
            let body: AnswerBody = if verb == "watch" {
                let counted = late(body, late_ms).map_frame(move |frame| {
                    if let Some(data) = frame.data_ref() {
                        count.received.fetch_add(data.len() as u64, Ordering::Relaxed);
                        let lines = data.iter().filter(|byte| **byte == b'\n').count();
                        count.events.fetch_add(lines as u64, Ordering::Relaxed);
                    }
                    frame
                });
                counted.map_err(Into::into).boxed_unsync()
            } else {
                let bytes = late(body, late_ms).collect().await?.to_bytes();
                count.received.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                count.latency.lock().unwrap_or_else(PoisonError::into_inner).push(began.elapsed());
                Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
            };
            Ok::<_, BoxError>(Response::from_parts(head, body))
        }
    });
    Ok(Client::over(kube::Client::new(service, "default")))
}

/// A body whose parts come late, in their order.
fn late(body: Incoming, late_ms: Option<Arc<AtomicU64>>) -> UnsyncBoxBody<Bytes, hyper::Error> {
    let Some(late_ms) = late_ms else { return body.boxed_unsync() };
    let frames = BodyStream::new(body).then(move |frame| {
        let late_ms = late_ms.load(Ordering::Relaxed);
        async move {
            if late_ms > 0 {
                tokio::time::sleep(Duration::from_millis(late_ms)).await;
            }
            frame
        }
    });
    StreamBody::new(frames).boxed_unsync()
}

fn verb_and_kind(method: &Method, path: &str) -> (&'static str, String) {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let skip = if parts.first() == Some(&"api") { 2 } else { 3 };
    let mut rest = parts.get(skip..).unwrap_or_default();
    if rest.first() == Some(&"namespaces") && rest.len() >= 3 {
        rest = &rest[2..];
    }
    let kind = rest.first().copied().unwrap_or_default().to_owned();
    let named = rest.len() > 1;
    let verb = match *method {
        Method::GET if query.contains("watch=1") => "watch",
        Method::GET if named => "get",
        Method::GET => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        _ => "delete",
    };
    (verb, kind)
}
