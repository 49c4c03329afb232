//! What the API server asks of a node: logs, commands in containers, connections to ports. HTTP on a unix socket.
//!
//! `GET /logs/NAMESPACE/POD/CONTAINER` answers text. `POST /exec/...` and `POST /portforward/...` switch to a protocol
//! of frames, or to plain bytes, by `Upgrade: weft-stream`.

mod exec;

use super::record::{ContainerRecord, PodDir, Record, load_all};
use super::{Node, logs};
use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;

/// How long a pod's port may take to accept: both ends are on one machine.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

type Body = BoxBody<Bytes, Infallible>;

/// Why a request is refused.
struct Refusal(StatusCode, String);

fn not_found(message: impl Into<String>) -> Refusal {
    Refusal(StatusCode::NOT_FOUND, message.into())
}

fn bad(message: impl Into<String>) -> Refusal {
    Refusal(StatusCode::BAD_REQUEST, message.into())
}

/// Makes the socket; one that a former runner left is replaced.
pub(super) fn bind(place: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(place) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    UnixListener::bind(place)
}

/// Serves for ever.
pub(super) async fn serve(node: Arc<Node>, listener: UnixListener) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(Arc::clone(&node), stream));
                }
                Err(error) => {
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(super::RETRY).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(node: Arc<Node>, stream: UnixStream) {
    let service = service_fn(move |request| {
        let node = Arc::clone(&node);
        async move { Ok::<_, Infallible>(handle(&node, request).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a request");
    }
}

async fn handle(node: &Arc<Node>, request: Request<Incoming>) -> Response<Body> {
    let result = route(node, request).await;
    result.unwrap_or_else(|Refusal(status, message)| {
        let body = Full::new(Bytes::from(json!({"message": message}).to_string())).boxed();
        let mut response = Response::new(body);
        *response.status_mut() = status;
        response
    })
}

async fn route(node: &Arc<Node>, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    let path = request.uri().path().to_owned();
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match (request.method().clone(), parts.as_slice()) {
        (Method::GET, ["logs", namespace, pod, container]) => {
            let found = find(node, namespace, pod, container)?;
            read_logs(node, found, &query)
        }
        (Method::POST, ["exec", namespace, pod, container]) => {
            let found = find(node, namespace, pod, container)?;
            exec::start(node, found, &query, request)
        }
        (Method::POST, ["attach", ..]) => {
            Err(Refusal(StatusCode::NOT_IMPLEMENTED, "attach is not supported; exec and logs are".into()))
        }
        (Method::POST, ["portforward", namespace, pod]) => forward(node, namespace, pod, &query, request).await,
        _ => Err(not_found(format!("{path}: expected /logs, /exec or /portforward"))),
    }
}

/// A container that was asked for.
struct Found {
    record: Record,
    dir: PodDir,
    name: String,
    container: ContainerRecord,
}

fn find_pod(node: &Node, namespace: &str, pod: &str) -> Result<Record, Refusal> {
    load_all(&node.pods())
        .into_iter()
        .filter(|r| r.namespace == namespace && r.name == pod)
        .max_by(|a, b| a.started.cmp(&b.started))
        .ok_or_else(|| not_found(format!("pod {namespace}/{pod} does not run on {}", node.name)))
}

fn find(node: &Node, namespace: &str, pod: &str, container: &str) -> Result<Found, Refusal> {
    let record = find_pod(node, namespace, pod)?;
    let name = match container {
        "-" if record.containers.len() > 1 => {
            let names: Vec<&str> = record.containers.keys().map(String::as_str).collect();
            return Err(bad(format!("a container name must be specified for pod {pod}, choose one of: {names:?}")));
        }
        "-" => record.containers.keys().next().cloned().unwrap_or_default(),
        name => name.to_owned(),
    };
    let Some(container) = record.containers.get(&name).cloned() else {
        return Err(bad(format!("container {name:?} in pod {pod:?} is waiting to start")));
    };
    Ok(Found { dir: node.pod_dir(&record.uid), name, container, record })
}

/// The parameters of a request; names may repeat.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|p| !p.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        });
        Self(pairs.collect())
    }

    fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(n, _)| n == name).map(|(_, v)| v.clone()).collect()
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
    }

    fn is_set(&self, name: &str) -> bool {
        matches!(self.get(name), Some("true" | "1"))
    }

    fn number(&self, name: &str) -> Result<Option<u64>, Refusal> {
        let parse = |v: &str| v.parse().map_err(|_| bad(format!("{name}={v}: expected a number")));
        self.get(name).map(parse).transpose()
    }
}

/// Undoes percent encoding.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let hex = bytes.get(at + 1..at + 3).and_then(|h| std::str::from_utf8(h).ok());
        match (byte, hex.and_then(|h| u8::from_str_radix(h, 16).ok())) {
            (b'%', Some(value)) => {
                decoded.push(value);
                at += 3;
            }
            (b'+', _) => {
                decoded.push(b' ');
                at += 1;
            }
            (other, _) => {
                decoded.push(*other);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn read_logs(node: &Node, found: Found, query: &Query) -> Result<Response<Body>, Refusal> {
    let current =
        found.container.attempt.ok_or_else(|| bad(format!("container {:?} is waiting to start", found.name)))?;
    let attempt = if query.is_set("previous") {
        let missing = || bad(format!("previous terminated container {:?} not found", found.name));
        current.checked_sub(1).ok_or_else(missing)?
    } else {
        current
    };
    let since = match (query.number("sinceSeconds")?, query.get("sinceTime")) {
        (Some(seconds), _) => {
            let seconds = i64::try_from(seconds).map_err(|_| bad("sinceSeconds: is too large"))?;
            Some(jiff::Timestamp::now() - jiff::SignedDuration::from_secs(seconds))
        }
        (None, Some(time)) => Some(time.parse().map_err(|_| bad(format!("sinceTime={time}: expected RFC 3339")))?),
        (None, None) => None,
    };
    let options = logs::Options {
        follow: query.is_set("follow"),
        timestamps: query.is_set("timestamps"),
        tail: query.number("tailLines")?.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
        since,
        limit_bytes: query.number("limitBytes")?,
    };
    let place = super::containers::log(node, &found.record, &found.name, attempt);
    let files = found.dir.container(&found.name, attempt);
    let (sender, receiver) = mpsc::channel::<Bytes>(16);
    std::thread::Builder::new()
        .name("logs".into())
        .spawn(move || {
            let live = || files.read_exit().is_none() && files.spec().exists();
            logs::send(&place, &options, live, &sender);
        })
        .map_err(|e| Refusal(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    let stream = futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|bytes| (bytes, receiver))
    });
    let body = StreamBody::new(stream.map(|bytes| Ok::<_, Infallible>(Frame::data(bytes))));
    let mut response = Response::new(BodyExt::boxed(body));
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("text/plain"));
    Ok(response)
}

/// Answers 101 and hands the connection to `work`.
fn upgrade<F>(
    request: Request<Incoming>,
    work: impl FnOnce(TokioIo<hyper::upgrade::Upgraded>) -> F + Send + 'static,
) -> Result<Response<Body>, Refusal>
where
    F: Future<Output = ()> + Send + 'static,
{
    if request.headers().get("upgrade").is_none_or(|v| v != "weft-stream") {
        return Err(bad("expected the header Upgrade: weft-stream"));
    }
    tokio::spawn(async move {
        match hyper::upgrade::on(request).await {
            Ok(upgraded) => work(TokioIo::new(upgraded)).await,
            Err(error) => tracing::debug!(%error, "upgrade"),
        }
    });
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header("connection", "Upgrade")
        .header("upgrade", "weft-stream")
        .body(Full::new(Bytes::new()).boxed());
    response.map_err(|e| Refusal(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))
}

/// One connection to a port of a pod, made inside the pod.
async fn forward(
    node: &Node,
    namespace: &str,
    pod: &str,
    query: &Query,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let record = find_pod(node, namespace, pod)?;
    let port =
        query.number("port")?.and_then(|p| u16::try_from(p).ok()).ok_or_else(|| bad("port: expected a number"))?;
    let connected = tokio::task::spawn_blocking(move || weft_sys::netns::within(&record.netns, || connect(port)));
    let stream =
        connected.await.map_err(|e| Refusal(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?.map_err(|e| {
            Refusal(StatusCode::BAD_GATEWAY, format!("connect to port {port} of pod {namespace}/{pod}: {e}"))
        })?;
    let words = |e: io::Error| Refusal(StatusCode::INTERNAL_SERVER_ERROR, e.to_string());
    stream.set_nonblocking(true).map_err(words)?;
    let mut far = TcpStream::from_std(stream).map_err(words)?;
    upgrade(request, move |mut near| async move {
        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
    })
}

/// Connects to a port of the network namespace that the thread is in: what listens may do so for either family only.
fn connect(port: u16) -> io::Result<std::net::TcpStream> {
    let attempt = |ip: IpAddr| {
        let connected = std::net::TcpStream::connect_timeout(&SocketAddr::new(ip, port), CONNECT_TIMEOUT);
        connected.map_err(|e| io::Error::new(e.kind(), format!("{ip}: {e}")))
    };
    attempt(Ipv4Addr::LOCALHOST.into()).or_else(|v4| {
        attempt(Ipv6Addr::LOCALHOST.into()).map_err(|v6| io::Error::new(v4.kind(), format!("{v4}; {v6}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_either_family_are_found_and_a_closed_one_names_both() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = std::net::TcpListener::bind(address).expect("a port");
            let port = listener.local_addr().expect("is bound").port();
            connect(port).expect(address);
            drop(listener);
            let error = connect(port).expect_err("is closed");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            let text = error.to_string();
            assert!(text.contains("127.0.0.1: ") && text.contains("::1: "), "{text}");
        }
    }

    #[test]
    fn queries() {
        let query = Query::parse("command=sh&command=-c&command=echo+a%20b%26&tty=true&tailLines=x");
        assert_eq!(query.all("command"), ["sh", "-c", "echo a b&"]);
        assert!(query.is_set("tty") && !query.is_set("stdin"));
        assert!(query.number("tailLines").is_err());
        assert_eq!(decode("%zz%4"), "%zz%4");
    }
}
