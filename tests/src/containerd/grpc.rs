//! A unary gRPC call over a unix socket: one HTTP/2 connection each, which a runtime that was started again does not mind.

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{HeaderMap, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use std::path::Path;
use std::time::Duration;
use tokio::net::UnixStream;

/// Longer than containerd waits for a CNI executable.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);
/// A flag (compressed or not) and the length stand before every message.
const HEADER_BYTES: usize = 5;

/// Calls `/SERVICE/METHOD`.
///
/// # Errors
/// What the service answers, or that it does not.
pub(super) fn call<Q: Message, A: Message + Default>(socket: &Path, method: &str, question: &Q) -> Result<A> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = async {
        tokio::time::timeout(ANSWER_WITHIN, exchange(socket, method, question.encode_to_vec()))
            .await
            .map_err(|_| anyhow!("no answer in {ANSWER_WITHIN:?}"))?
    };
    let answer = runtime.block_on(answer).with_context(|| method.to_owned())?;
    A::decode(answer).with_context(|| format!("{method}: the answer"))
}

async fn exchange(socket: &Path, method: &str, message: Vec<u8>) -> Result<Bytes> {
    let stream = UnixStream::connect(socket).await.with_context(|| socket.display().to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut body = vec![0];
    body.extend(u32::try_from(message.len())?.to_be_bytes());
    body.extend(message);
    let request = Request::post(format!("http://localhost{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from(body)))?;
    let response = sender.send_request(request).await?;
    ensure!(response.status().is_success(), "HTTP {}", response.status());
    // An error without an answer has its status among the headers.
    if response.headers().contains_key("grpc-status") {
        succeeded(response.headers())?;
    }
    let whole = response.into_body().collect().await?;
    succeeded(whole.trailers().context("no trailers")?)?;
    let body = whole.to_bytes();
    let length = body.get(1..HEADER_BYTES).context("the answer is too short")?;
    let length = u32::from_be_bytes(length.try_into()?) as usize;
    ensure!(body[0] == 0 && body.len() == HEADER_BYTES + length, "the answer is compressed, or not whole");
    Ok(body.slice(HEADER_BYTES..))
}

fn succeeded(headers: &HeaderMap) -> Result<()> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match text("grpc-status") {
        "0" => Ok(()),
        code => bail!("gRPC status {code}: {}", text("grpc-message")),
    }
}
