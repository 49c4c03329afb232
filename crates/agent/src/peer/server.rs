//! The answering end.

use super::message::{Pod, ResolveRequest, ResolveResponse, framed, unframed};
use super::tls::{Credentials, is_agent};
use super::{MESSAGE_MAX, RESOLVE};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Connections at once; who comes when all places are taken is turned away, and asks again.
const CONNECTIONS_MAX: usize = 512;
/// Requests at once on one connection.
const STREAMS_MAX: u32 = 16;
/// Time for the handshake, and for one request.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a connection may be silent.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// How long a connection lasts at most: a certificate that ran out is found out.
const CONNECTION_MAX: Duration = Duration::from_secs(3600);
/// Pause after a connection could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// Codes of gRPC.
#[derive(Clone, Copy, Debug)]
enum Code {
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    Unimplemented = 12,
}

type Refusal = (Code, String);

/// Answers agents until `stop`. `find` tells which of this node's pods have these addresses.
pub async fn serve<F>(listener: TcpListener, credentials: Arc<Credentials>, find: F, stop: CancellationToken)
where
    F: Fn(&[IpAddr]) -> Vec<Pod> + Send + Sync + 'static,
{
    let (find, places) = (Arc::new(find), Arc::new(Semaphore::new(CONNECTIONS_MAX)));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, from)) = accepted else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let (credentials, find, stop) = (credentials.clone(), find.clone(), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                outcome = tokio::time::timeout(CONNECTION_MAX, connection(stream, &credentials, find)) => {
                    if let Ok(Err(error)) = outcome {
                        tracing::debug!(%from, %error, "an agent's connection");
                    }
                }
            }
            drop(place);
        });
    }
}

async fn connection<F>(stream: TcpStream, credentials: &Credentials, find: Arc<F>) -> anyhow::Result<()>
where
    F: Fn(&[IpAddr]) -> Vec<Pod> + Send + Sync + 'static,
{
    stream.set_nodelay(true)?;
    let acceptor = TlsAcceptor::from(credentials.configs()?.server);
    let stream = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await??;
    anyhow::ensure!(is_agent(stream.get_ref().1.peer_certificates()), "its certificate is not an agent's");
    let service = service_fn(move |request| {
        let find = find.clone();
        async move { Ok::<_, Infallible>(respond(answer(request, &*find).await)) }
    });
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE).max_concurrent_streams(STREAMS_MAX);
    builder.serve_connection(TokioIo::new(stream), service).await?;
    Ok(())
}

async fn answer(request: Request<Incoming>, find: &impl Fn(&[IpAddr]) -> Vec<Pod>) -> Result<Vec<u8>, Refusal> {
    if request.uri().path() != RESOLVE {
        return Err((Code::Unimplemented, format!("no method {}", request.uri().path())));
    }
    let body = tokio::time::timeout(PATIENCE, Limited::new(request.into_body(), MESSAGE_MAX).collect()).await;
    let body = body.map_err(|_| (Code::DeadlineExceeded, "the request does not come to an end".to_owned()))?;
    let body = body.map_err(|error| (Code::InvalidArgument, error.to_string()))?.to_bytes();
    let request: ResolveRequest = unframed(&body).map_err(|error| (Code::InvalidArgument, error.to_string()))?;
    let addresses = request.read().map_err(|error| (Code::InvalidArgument, error.to_string()))?;
    Ok(framed(&ResolveResponse::of(find(&addresses))))
}

/// The status comes after the message.
fn respond(outcome: Result<Vec<u8>, Refusal>) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    let (body, code, text) = match outcome {
        Ok(body) => (body, 0, String::new()),
        Err((code, text)) => (Vec::new(), code as i32, text),
    };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", code.into());
    // What a header cannot carry is not said; the code is.
    if let Ok(text) = text.parse() {
        trailers.insert("grpc-message", text);
    }
    let body = Full::new(Bytes::from(body)).with_trailers(async move { Some(Ok(trailers)) });
    let mut response = Response::new(body.boxed_unsync());
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static("application/grpc"));
    response
}
