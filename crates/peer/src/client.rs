//! The client: asks another node's agent.

use crate::message::{Pod, read_response, request};
use crate::tls::{Credentials, is_agent};
use anyhow::Context as _;
use futures::future::{BoxFuture, FutureExt as _};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use weft_daemon::tasks::lock;

/// Channels that are kept for the next request.
const CHANNELS_MAX: usize = 256;
/// Pause between two pings of a connection in use.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Time for a connection and one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// Asks a node.
pub trait Ask: Send + Sync + 'static {
    /// Which pods of `node`, at `at`, have these addresses. Fails after a timeout of its own.
    fn ask<'a>(&'a self, node: &'a str, at: IpAddr, addresses: &'a [IpAddr])
    -> BoxFuture<'a, anyhow::Result<Vec<Pod>>>;
}

/// Channels to other agents: gRPC over mutual TLS.
pub struct Client {
    credentials: Arc<Credentials>,
    port: u16,
    channels: Mutex<BTreeMap<(String, IpAddr), Channel>>,
}

impl Client {
    /// Asks agents at this port.
    #[must_use]
    pub fn new(credentials: Arc<Credentials>, port: u16) -> Self {
        Self { credentials, port, channels: Mutex::default() }
    }

    /// The channel to a node. It connects when it is used, and again after its connection ended.
    fn channel(&self, node: &str, at: IpAddr) -> anyhow::Result<Channel> {
        let key = (node.to_owned(), at);
        let mut channels = lock(&self.channels);
        if let Some(channel) = channels.get(&key) {
            return Ok(channel.clone());
        }
        let name =
            ServerName::try_from(node.to_owned()).with_context(|| format!("{node} as a name in certificates"))?;
        let (credentials, address) = (self.credentials.clone(), SocketAddr::new(at, self.port));
        let connector = tower::service_fn(move |_| {
            let (credentials, name) = (credentials.clone(), name.clone());
            async move {
                connect(&credentials, name, address)
                    .await
                    .map(TokioIo::new)
                    .map_err(anyhow::Error::into_boxed_dyn_error)
            }
        });
        let endpoint = Endpoint::from_shared(format!("https://{node}"))?.http2_keep_alive_interval(KEEP_ALIVE);
        let channel = endpoint.connect_with_connector_lazy(connector);
        if channels.len() >= CHANNELS_MAX {
            channels.pop_first();
        }
        channels.insert(key, channel.clone());
        Ok(channel)
    }

    async fn resolve(&self, node: &str, at: IpAddr, addresses: &[IpAddr]) -> anyhow::Result<Vec<Pod>> {
        let asked = weft_api::peer::resolve(self.channel(node, at)?, request(addresses));
        let answer = match tokio::time::timeout(REQUEST_TIMEOUT, asked).await {
            Ok(answer) => answer.map_err(anyhow::Error::from),
            Err(_) => Err(anyhow::anyhow!("no answer within {REQUEST_TIMEOUT:?}")),
        };
        match answer {
            Ok(response) => Ok(read_response(response, at)?),
            Err(error) => {
                // The connection may be one to a machine that is gone.
                lock(&self.channels).remove(&(node.to_owned(), at));
                Err(error)
            }
        }
    }
}

async fn connect(
    credentials: &Credentials,
    name: ServerName<'static>,
    address: SocketAddr,
) -> anyhow::Result<TlsStream<TcpStream>> {
    let connector = TlsConnector::from(credentials.configs()?.client);
    let stream = TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
    stream.set_nodelay(true)?;
    let stream = connector.connect(name, stream).await.with_context(|| format!("TLS with {address}"))?;
    anyhow::ensure!(is_agent(stream.get_ref().1.peer_certificates()), "the certificate of {address} is not an agent's");
    Ok(stream)
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
