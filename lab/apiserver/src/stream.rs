//! Logs, terminals and ports of pods: they come from the runner of the pod's node, by its unix socket.

mod forward;
mod frames;
mod spdy;

use super::api::Api;
use super::error::ApiError;
use super::object::{items, name, text};
use super::request::Query;
use super::response::{self, Body};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

/// Time for a runner to answer.
const RUNNER_TIMEOUT: Duration = Duration::from_secs(15);
/// Protocols of terminals, the best first.
const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// Channel of the final status.
const STATUS_CHANNEL: u8 = 3;
/// Channel that closes another.
const CLOSE_CHANNEL: u8 = 255;
/// Largest message of a client.
const MESSAGE_MAX: usize = 1 << 20;

/// Where a container is.
struct Place {
    node: String,
    container: String,
}

fn locate(api: &Api, (namespace, pod): (&str, &str), query: &Query) -> Result<Place, ApiError> {
    let object = api.get(&api.builtin("", "pods"), namespace, pod)?;
    let all: Vec<&str> = ["containers", "initContainers", "ephemeralContainers"]
        .iter()
        .flat_map(|field| items(&object.value, &["spec", field]))
        .map(|c| text(c, &["name"]))
        .collect();
    let regular = items(&object.value, &["spec", "containers"]);
    let container = match query.text("container") {
        "" if regular.len() == 1 => text(&regular[0], &["name"]).to_owned(),
        "" => {
            let names: Vec<&str> = regular.iter().map(|c| text(c, &["name"])).collect();
            return Err(ApiError::bad_request(format!(
                "a container name must be specified for pod {pod}, choose one of: [{}]",
                names.join(" ")
            )));
        }
        asked if all.contains(&asked) => asked.to_owned(),
        asked => return Err(ApiError::bad_request(format!("container {asked} is not valid for pod {pod}"))),
    };
    Ok(Place { node: assigned(&object.value)?, container })
}

/// The node that a pod is bound to.
fn assigned(pod: &Value) -> Result<String, ApiError> {
    match text(pod, &["spec", "nodeName"]) {
        "" => Err(ApiError::bad_request(format!("pod {} does not have a host assigned", name(pod)))),
        node => Ok(node.to_owned()),
    }
}

/// Sends a request to a node's runner.
async fn ask(run_dir: &Path, node: &str, request: Request<Empty<Bytes>>) -> Result<Response<Incoming>, ApiError> {
    let socket = run_dir.join(node).join("runner.sock");
    let failed =
        |e: &dyn std::fmt::Display| ApiError::unavailable(format!("the runner of node {node} does not answer: {e}"));
    let work = async {
        let stream = UnixStream::connect(&socket).await.map_err(|e| failed(&e))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(&e))?;
        // The connection lives as long as the answer is read, or the stream that it becomes.
        tokio::spawn(connection.with_upgrades());
        sender.send_request(request).await.map_err(|e| failed(&e))
    };
    tokio::time::timeout(RUNNER_TIMEOUT, work).await.unwrap_or_else(|_| Err(failed(&"timeout")))
}

/// The refusal of a runner.
async fn refusal(response: Response<Incoming>) -> ApiError {
    let code = response.status().as_u16();
    let body = http_body_util::Limited::new(response.into_body(), 64 * 1024).collect().await;
    let body = body.map(|b| b.to_bytes()).unwrap_or_default();
    let message = serde_json::from_slice::<Value>(&body)
        .ok()
        .map(|v| text(&v, &["message"]).to_owned())
        .filter(|m| !m.is_empty())
        .unwrap_or_else(|| format!("the node's runner answered {code}"));
    ApiError::relayed(code, message)
}

fn encode(out: &mut String, value: &str) {
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
}

fn uri(kind: &str, (namespace, pod): (&str, &str), container: &str, query: &Query, passed: &[&str]) -> String {
    let mut uri = format!("http://runner/{kind}/{namespace}/{pod}/{container}");
    let mut sign = '?';
    for parameter in passed {
        for value in query.all(parameter) {
            uri.push(sign);
            uri.push_str(parameter);
            uri.push('=');
            encode(&mut uri, value);
            sign = '&';
        }
    }
    uri
}

/// The logs of a container.
///
/// # Errors
/// That they cannot be had.
pub async fn logs(api: &Api, run_dir: &Path, pod: (&str, &str), query: &Query) -> Result<Response<Body>, ApiError> {
    let place = locate(api, pod, query)?;
    for number in ["tailLines", "sinceSeconds", "limitBytes"] {
        query.number(number)?;
    }
    for flag in ["follow", "timestamps", "previous"] {
        query.flag(flag)?;
    }
    let passed = ["follow", "tailLines", "sinceSeconds", "sinceTime", "timestamps", "previous", "limitBytes"];
    let request = Request::get(uri("logs", pod, &place.container, query, &passed))
        .body(Empty::new())
        .map_err(ApiError::internal)?;
    let answer = ask(run_dir, &place.node, request).await?;
    if !answer.status().is_success() {
        return Err(refusal(answer).await);
    }
    let (chunks, response) = response::chunked("text/plain");
    let mut body = answer.into_body();
    tokio::spawn(async move {
        loop {
            let frame = tokio::select! {
                frame = body.frame() => frame,
                () = chunks.closed() => return,
            };
            let Some(Ok(frame)) = frame else { return };
            if let Ok(data) = frame.into_data()
                && chunks.send(data).await.is_err()
            {
                return;
            }
        }
    });
    Ok(response)
}

/// A websocket that a client asked for, not yet answered.
struct Handshake {
    protocol: &'static str,
    accept: HeaderValue,
}

impl Handshake {
    /// Reads what the client offers, and takes the first of `protocols` that is among it.
    fn read(request: &Request<Incoming>, kind: &str, protocols: &[&'static str]) -> Result<Self, ApiError> {
        let header = |name| request.headers().get(name).and_then(|v: &HeaderValue| v.to_str().ok()).unwrap_or_default();
        let expected = protocols.join(", ");
        if !header(UPGRADE).eq_ignore_ascii_case("websocket") {
            return Err(ApiError::bad_request(format!("{kind}: expected a websocket with one of {expected}")));
        }
        let offered: Vec<&str> = header(SEC_WEBSOCKET_PROTOCOL).split(',').map(str::trim).collect();
        let protocol = protocols.iter().find(|p| offered.contains(*p));
        let protocol = protocol
            .ok_or_else(|| ApiError::bad_request(format!("{kind}: {offered:?}: expected one of {expected}")))?;
        let key = header(SEC_WEBSOCKET_KEY);
        if key.is_empty() {
            return Err(ApiError::bad_request("Sec-WebSocket-Key: expected a key"));
        }
        let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(ApiError::internal)?;
        Ok(Self { protocol, accept })
    }

    /// The answer after which the connection is a websocket.
    fn response(self) -> Response<Body> {
        let mut response = Response::new(response::full(Bytes::new()));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(self.protocol));
        headers.insert(SEC_WEBSOCKET_ACCEPT, self.accept);
        response
    }
}

/// The server's side of a connection that has become a websocket.
async fn websocket(connection: Upgraded) -> WebSocketStream<TokioIo<Upgraded>> {
    let config = WebSocketConfig::default().max_message_size(Some(MESSAGE_MAX)).max_frame_size(Some(MESSAGE_MAX));
    WebSocketStream::from_raw_socket(TokioIo::new(connection), Role::Server, Some(config)).await
}

/// Asks a runner for a stream of bytes.
async fn open(run_dir: &Path, node: &str, uri: String) -> Result<Upgraded, ApiError> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(uri)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "weft-stream")
        .body(Empty::new())
        .map_err(ApiError::internal)?;
    let answer = ask(run_dir, node, request).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refusal(answer).await);
    }
    hyper::upgrade::on(answer).await.map_err(ApiError::internal)
}

/// A terminal: the client's websocket, joined to the stream of the runner.
///
/// # Errors
/// That there is none.
pub async fn terminal(
    api: &Api,
    run_dir: &Path,
    pod: (&str, &str),
    kind: &str,
    query: &Query,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let handshake = Handshake::read(&request, kind, &PROTOCOLS)?;
    if kind == "exec" && query.all("command").next().is_none() {
        return Err(ApiError::bad_request("query command: expected at least one"));
    }
    let place = locate(api, pod, query)?;
    let mut parameters = Query::default();
    for flag in ["stdin", "stdout", "stderr", "tty"] {
        parameters.push(flag, if query.flag(flag)? { "true" } else { "false" });
    }
    for command in query.all("command") {
        parameters.push("command", command);
    }
    let passed = ["command", "stdin", "stdout", "stderr", "tty"];
    let runner = open(run_dir, &place.node, uri(kind, pod, &place.container, &parameters, &passed)).await?;
    let client = hyper::upgrade::on(&mut request);
    // Both ends outlive this request: the task ends when either of them does.
    tokio::spawn(async move {
        match client.await {
            Ok(client) => join(websocket(client).await, TokioIo::new(runner)).await,
            Err(error) => tracing::debug!(%error, "a terminal's connection broke off before it began"),
        }
    });
    Ok(handshake.response())
}

/// Ports of a pod: the client's websocket, and a stream of the runner for each connection in it.
///
/// # Errors
/// That the pod has no node, or that the client speaks something else.
pub fn forward(
    api: &Api,
    run_dir: &Path,
    pod: (&str, &str),
    mut request: Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let object = api.get(&api.builtin("", "pods"), pod.0, pod.1)?;
    let node = assigned(&object.value)?;
    let handshake = Handshake::read(&request, "portforward (kubectl 1.31 or newer)", &[forward::PROTOCOL])?;
    let (run_dir, path) = (run_dir.to_owned(), format!("http://runner/portforward/{}/{}", pod.0, pod.1));
    let client = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let client = match client.await {
            Ok(client) => websocket(client).await,
            Err(error) => return tracing::debug!(%error, "a port-forward's connection broke off before it began"),
        };
        let connect = |port: u16| {
            let (run_dir, node, uri) = (run_dir.clone(), node.clone(), format!("{path}?port={port}"));
            async move { open(&run_dir, &node, uri).await.map(TokioIo::new).map_err(|error| error.message) }
        };
        forward::serve(client, connect).await;
    });
    Ok(handshake.response())
}

/// Carries messages between a client and a runner until one of them ends.
async fn join<C, R>(client: WebSocketStream<C>, runner: R)
where
    C: AsyncRead + AsyncWrite + Unpin,
    R: AsyncRead + AsyncWrite + Unpin,
{
    let (mut to_client, mut from_client) = client.split();
    let (mut from_runner, mut to_runner) = tokio::io::split(runner);
    let inward = async {
        while let Some(Ok(message)) = from_client.next().await {
            let data = match message {
                Message::Binary(data) => data,
                Message::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
                Message::Close(_) => break,
                _ => continue,
            };
            let Some((channel, payload)) = data.split_first() else { continue };
            // Only input, sizes and ends of input come from clients.
            if !matches!(*channel, 0 | 4 | CLOSE_CHANNEL) {
                continue;
            }
            if frames::write(&mut to_runner, *channel, payload).await.is_err() {
                break;
            }
        }
    };
    let outward = async {
        let mut ended = false;
        while let Ok(Some((channel, payload))) = frames::read(&mut from_runner).await {
            if channel == CLOSE_CHANNEL {
                continue;
            }
            let mut message = Vec::with_capacity(payload.len() + 1);
            message.push(channel);
            message.extend_from_slice(&payload);
            if to_client.send(Message::Binary(message.into())).await.is_err() {
                return;
            }
            if channel == STATUS_CHANNEL {
                ended = true;
                break;
            }
        }
        if !ended {
            let status = ApiError::internal("the node's runner ended the stream").status().to_string();
            let mut message = vec![STATUS_CHANNEL];
            message.extend_from_slice(status.as_bytes());
            let _ = to_client.send(Message::Binary(message.into())).await;
        }
        // kubectl takes any other code, and none, for a broken stream.
        let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let _ = to_client.send(Message::Close(Some(normal))).await;
        let _ = to_client.flush().await;
    };
    tokio::pin!(inward, outward);
    // A client that stopped sending may still listen, but one that closed the websocket does not.
    tokio::select! {
        () = &mut outward => {}
        () = &mut inward => {}
    }
}
