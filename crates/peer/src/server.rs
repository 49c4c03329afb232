//! The server: answers other agents about this node's endpoints.

use crate::message::{Pod, read_request, response};
use crate::tls::{Credentials, is_agent};
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use weft_api::peer::{PeerService, ResolveRequest};

/// Connections at once; one more is refused, and its client asks again.
const CONNECTIONS_MAX: usize = 512;
/// Requests at once on one connection.
const STREAMS_MAX: u32 = 16;
/// Time for a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause between two pings of a connection.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// How long a connection lasts at most: its certificate may have expired.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(3600);
/// Time for requests in progress when a connection gets too old, and when the agent stops.
const DRAIN: Duration = Duration::from_secs(1);
/// Pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections whose handshake is done and that are not served yet.
const READY_MAX: usize = 16;

/// Answers agents until `stop`. `find` tells which of this node's pods have these addresses.
pub async fn serve<F>(listener: TcpListener, credentials: Arc<Credentials>, find: F, stop: CancellationToken)
where
    F: Fn(&[IpAddr]) -> Vec<Pod> + Send + Sync + 'static,
{
    let service = PeerService::new(move |request: ResolveRequest| {
        let addresses = read_request(&request).map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(response(find(&addresses)))
    });
    let (sender, ready) = mpsc::channel(READY_MAX);
    let server = Server::builder()
        .timeout(REQUEST_TIMEOUT)
        .max_concurrent_streams(STREAMS_MAX)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .max_connection_age(CONNECTION_AGE_MAX)
        .max_connection_age_grace(DRAIN)
        .serve_with_incoming_shutdown(service, ReceiverStream::new(ready), stop.cancelled());
    let drained = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        ended = server => if let Err(error) = ended {
            tracing::error!(error = weft_sys::error::describe(&error), "the server for other agents failed");
        },
        () = accept(listener, credentials, sender, &stop) => {}
        () = drained => {}
    }
}

/// Passes on connections of agents, until `stop`.
async fn accept(
    listener: TcpListener,
    credentials: Arc<Credentials>,
    ready: mpsc::Sender<io::Result<AgentStream>>,
    stop: &CancellationToken,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut handshakes = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            // The requests in progress get their time.
            () = stop.cancelled() => return std::future::pending().await,
            Some(_) = handshakes.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection of an agent");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::debug!(%from, limit = CONNECTIONS_MAX, "refused a connection: there are too many");
            continue;
        };
        let (credentials, ready) = (credentials.clone(), ready.clone());
        handshakes.spawn(async move {
            let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(stream, &credentials)).await;
            match handshake.unwrap_or_else(|_| Err(anyhow::anyhow!("no handshake within {HANDSHAKE_TIMEOUT:?}"))) {
                // Fails only when the server is gone.
                Ok(stream) => drop(ready.send(Ok(AgentStream { stream, _place: place })).await),
                Err(error) => tracing::debug!(%from, error = format!("{error:#}"), "refused a connection"),
            }
        });
    }
}

async fn handshake(stream: TcpStream, credentials: &Credentials) -> anyhow::Result<TlsStream<TcpStream>> {
    stream.set_nodelay(true)?;
    let stream = TlsAcceptor::from(credentials.configs()?.server).accept(stream).await?;
    anyhow::ensure!(is_agent(stream.get_ref().1.peer_certificates()), "the certificate is not an agent's");
    Ok(stream)
}

/// A connection of another agent. It counts for as long as it exists.
struct AgentStream {
    stream: TlsStream<TcpStream>,
    _place: OwnedSemaphorePermit,
}

impl Connected for AgentStream {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for AgentStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for AgentStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
