//! Connections: TLS, who the client is, HTTP/1.1 and HTTP/2, limits.

use super::api::Api;
use super::handler::{Handler, User};
use super::pki::{Pki, PkiError};
use super::response;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use std::convert::Infallible;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections at once.
const CONNECTIONS_MAX: usize = 4096;
/// Time for the TLS handshake, and for the head of a request.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes on their way within the process, each direction of a connection.
const PIPE_BYTES: usize = 256 << 10;
/// Time for connections to end after the server was told to.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// What a server consists of.
#[derive(Debug)]
pub struct Config {
    /// The API.
    pub api: Api,
    /// Bound sockets, in whatever network namespace.
    pub listeners: Vec<TcpListener>,
    /// The server's and the clients' certificates.
    pub pki: Pki,
    /// Where the nodes' runners listen: `<dir>/<node>/runner.sock`.
    pub run_dir: PathBuf,
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The certificates are unusable.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// A socket is unusable.
    #[error("listener {index}")]
    Listener {
        /// Which.
        index: usize,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Serves until `stop` is cancelled.
///
/// # Errors
/// That it cannot start.
pub async fn serve(config: Config, stop: CancellationToken) -> Result<(), ServeError> {
    let acceptor = TlsAcceptor::from(Arc::new(config.pki.server()?));
    let handler = Arc::new(Handler::new(config.api, config.run_dir, stop.clone()));
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let tasks = TaskTracker::new();
    for (index, listener) in config.listeners.into_iter().enumerate() {
        let failed = |source| ServeError::Listener { index, source };
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
        let (acceptor, handler, permits) = (acceptor.clone(), handler.clone(), permits.clone());
        let (stop, all) = (stop.clone(), tasks.clone());
        tasks.spawn(async move {
            loop {
                let Ok(permit) = permits.clone().acquire_owned().await else { return };
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = stop.cancelled() => return,
                };
                let Ok((stream, _)) = accepted else {
                    // Out of descriptors, say: connections that end give some back.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                let (acceptor, handler, stop) = (acceptor.clone(), handler.clone(), stop.clone());
                all.spawn(async move {
                    connection(stream, acceptor, handler, stop).await;
                    drop(permit);
                });
            }
        });
    }
    stop.cancelled().await;
    tasks.close();
    if tokio::time::timeout(DRAIN_TIMEOUT, tasks.wait()).await.is_err() {
        tracing::debug!(left = tasks.len(), "connections are cut");
    }
    Ok(())
}

/// The API for clients of the same process: HTTP/2 over pipes in memory, the same handlers, no TLS.
#[derive(Clone, Debug)]
pub struct InProcess {
    handler: Arc<Handler>,
    stop: CancellationToken,
}

impl InProcess {
    /// Over an API, until `stop`.
    #[must_use]
    pub fn new(api: Api, run_dir: PathBuf, stop: CancellationToken) -> Self {
        Self { handler: Arc::new(Handler::new(api, run_dir, stop.clone())), stop }
    }

    /// A connection on behalf of `user`; its other end is served.
    #[must_use]
    pub fn connect(&self, user: &str) -> tokio::io::DuplexStream {
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let user = Arc::new(User { name: user.to_owned(), groups: vec!["system:masters".to_owned()] });
        let (handler, stop) = (self.handler.clone(), self.stop.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let (handler, user) = (handler.clone(), user.clone());
                async move { Ok::<_, Infallible>(handler.answer(request, Some(&user)).await) }
            });
            let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            builder.timer(TokioTimer::new()).max_concurrent_streams(1000);
            tokio::select! {
                ended = builder.serve_connection(TokioIo::new(ours), service) => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "connection");
                    }
                }
                () = stop.cancelled() => {}
            }
        });
        theirs
    }
}

async fn connection(
    stream: tokio::net::TcpStream,
    acceptor: TlsAcceptor,
    handler: Arc<Handler>,
    stop: CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake"),
        Err(_) => return,
    };
    let user = stream.get_ref().1.peer_certificates().and_then(|c| c.first()).and_then(|c| user(c)).map(Arc::new);
    let service = service_fn(move |request| {
        let (handler, user) = (handler.clone(), user.clone());
        async move {
            // Whatever a request does to its task, the server answers.
            let work = tokio::spawn(async move { handler.answer(request, user.as_deref()).await });
            Ok::<_, Infallible>(work.await.unwrap_or_else(|error| {
                tracing::error!(%error, "a request failed");
                response::refusal(&super::error::ApiError::internal("the request's task failed"))
            }))
        }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(120));
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(1000).keep_alive_interval(Duration::from_secs(30));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(%error, "connection");
            }
        }
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(DRAIN_TIMEOUT, connection).await;
        }
    }
}

/// Who a certificate, already verified, is for.
fn user(certificate: &[u8]) -> Option<User> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    Some(User { name, groups })
}
