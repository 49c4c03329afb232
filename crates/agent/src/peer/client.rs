//! The asking end.

use super::message::{Pod, ResolveRequest, ResolveResponse, framed, unframed};
use super::tls::{Credentials, is_agent};
use super::{MESSAGE_MAX, RESOLVE};
use anyhow::Context as _;
use futures::future::{BoxFuture, FutureExt as _};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http2::SendRequest;
use hyper::{HeaderMap, Request};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Connections that are kept for the next question.
const KEPT_MAX: usize = 256;
/// How long a connection may be silent.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Asks a node.
pub trait Ask: Send + Sync + 'static {
    /// Which pods of `node`, at `at`, have these addresses.
    fn ask<'a>(&'a self, node: &'a str, at: IpAddr, addresses: &'a [IpAddr])
    -> BoxFuture<'a, anyhow::Result<Vec<Pod>>>;
}

/// See the module.
pub struct Client {
    credentials: Arc<Credentials>,
    port: u16,
    kept: Mutex<BTreeMap<String, SendRequest<Full<Bytes>>>>,
}

impl Client {
    /// Asks agents at this port.
    #[must_use]
    pub fn new(credentials: Arc<Credentials>, port: u16) -> Self {
        Self { credentials, port, kept: Mutex::default() }
    }

    fn take(&self, node: &str) -> Option<SendRequest<Full<Bytes>>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.get(node)?.is_closed() {
            kept.remove(node);
            return None;
        }
        kept.get(node).cloned()
    }

    fn keep(&self, node: &str, connection: SendRequest<Full<Bytes>>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT_MAX {
            kept.pop_first();
        }
        kept.insert(node.to_owned(), connection);
    }

    async fn connect(&self, node: &str, at: IpAddr) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let name =
            ServerName::try_from(node.to_owned()).with_context(|| format!("{node} as a name in certificates"))?;
        let connector = TlsConnector::from(self.credentials.configs()?.client);
        let stream = TcpStream::connect(SocketAddr::new(at, self.port)).await.context("connect")?;
        stream.set_nodelay(true)?;
        let stream = connector.connect(name, stream).await.context("TLS")?;
        anyhow::ensure!(is_agent(stream.get_ref().1.peer_certificates()), "its certificate is not an agent's");
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.context("HTTP/2")?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to an agent");
            }
        });
        Ok(sender)
    }

    async fn resolve(&self, node: &str, at: IpAddr, addresses: &[IpAddr]) -> anyhow::Result<Vec<Pod>> {
        let message = Bytes::from(framed(&ResolveRequest::of(addresses)));
        let mut connection = match self.take(node) {
            Some(connection) => connection,
            None => self.connect(node, at).await?,
        };
        let request = Request::post(format!("https://{node}{RESOLVE}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(message))?;
        connection.ready().await?;
        let response = connection.send_request(request).await?;
        anyhow::ensure!(response.status().is_success(), "HTTP {}", response.status());
        if response.headers().contains_key("grpc-status") {
            succeeded(response.headers())?;
        }
        let whole =
            Limited::new(response.into_body(), MESSAGE_MAX).collect().await.map_err(anyhow::Error::from_boxed)?;
        succeeded(whole.trailers().context("an answer without status")?)?;
        let answer: ResolveResponse = unframed(&whole.to_bytes())?;
        let pods = answer.read(at)?;
        self.keep(node, connection);
        Ok(pods)
    }
}

impl Ask for Client {
    fn ask<'a>(
        &'a self,
        node: &'a str,
        at: IpAddr,
        addresses: &'a [IpAddr],
    ) -> BoxFuture<'a, anyhow::Result<Vec<Pod>>> {
        self.resolve(node, at, addresses).boxed()
    }
}

fn succeeded(headers: &HeaderMap) -> anyhow::Result<()> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match text("grpc-status") {
        "0" => Ok(()),
        code => anyhow::bail!("gRPC status {code}: {}", text("grpc-message")),
    }
}
