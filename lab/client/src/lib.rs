//! A small client of the Kubernetes API over JSON values, for the parts of the embedded cluster that play the
//! kubelet's and the administrator's role. Agents and the operator have their own.

pub mod follow;
pub mod kubeconfig;

use crate::kubeconfig::Access;
use bytes::{Bytes, BytesMut};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Mutex;

/// Nothing but a watch may take longer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The credentials cannot be used.
    #[error("credentials: {0}")]
    Credentials(String),
    /// The server cannot be reached or broke off.
    #[error("API server: {0}")]
    Connection(String),
    /// The server refused.
    #[error("{code}: {message}")]
    Refused {
        /// HTTP status.
        code: u16,
        /// `reason` of the Status object.
        reason: String,
        /// `message` of the Status object.
        message: String,
    },
}

impl ClientError {
    /// The server's HTTP status, if it answered.
    #[must_use]
    pub const fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }
}

fn broken(e: impl std::fmt::Display) -> ClientError {
    ClientError::Connection(e.to_string())
}

/// A client; cheap to clone, one idle connection is kept.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    access: Access,
    tls: tokio_rustls::TlsConnector,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("access", &self.inner.access).finish_non_exhaustive()
    }
}

impl Client {
    /// A client with these credentials.
    ///
    /// # Errors
    /// That they are unusable.
    pub fn new(access: Access) -> Result<Self, ClientError> {
        let bad = |e: &dyn std::fmt::Display| ClientError::Credentials(e.to_string());
        let mut roots = rustls::RootCertStore::empty();
        for certificate in rustls_pemfile::certs(&mut access.authority.as_slice()) {
            roots.add(certificate.map_err(|e| bad(&e))?).map_err(|e| bad(&e))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| bad(&e))?
            .with_root_certificates(roots);
        let config = match &access.certificate {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain: Vec<CertificateDer<'static>> = rustls_pemfile::certs(&mut certificate.as_slice())
                    .collect::<Result<_, _>>()
                    .map_err(|e| bad(&e))?;
                let key: PrivateKeyDer<'static> = rustls_pemfile::private_key(&mut key.as_slice())
                    .map_err(|e| bad(&e))?
                    .ok_or_else(|| ClientError::Credentials("client-key holds no key".into()))?;
                builder.with_client_auth_cert(chain, key).map_err(|e| bad(&e))?
            }
        };
        let tls = tokio_rustls::TlsConnector::from(Arc::new(config));
        Ok(Self { inner: Arc::new(Inner { access, tls, idle: Mutex::new(Vec::new()) }) })
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        let access = &self.inner.access;
        let tcp = TcpStream::connect((access.host.as_str(), access.port)).await.map_err(broken)?;
        tcp.set_nodelay(true).map_err(broken)?;
        let name = ServerName::try_from(access.server_name.clone()).map_err(broken)?;
        let stream = self.inner.tls.connect(name, tcp).await.map_err(broken)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Ends by itself when the sender is dropped or the server closes.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(sender)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Option<&Value>,
    ) -> Result<(http::Response<Incoming>, SendRequest<Full<Bytes>>), ClientError> {
        let access = &self.inner.access;
        let mut builder = Request::builder()
            .method(method)
            .uri(path)
            .header("host", format!("{}:{}", access.server_name, access.port))
            .header("accept", "application/json")
            .header("user-agent", "weft-local");
        if let Some(token) = &access.token {
            builder = builder.header("authorization", format!("Bearer {token}"));
        }
        let bytes = match body {
            None => Bytes::new(),
            Some(value) => {
                builder = builder.header("content-type", content_type);
                Bytes::from(serde_json::to_vec(value).map_err(broken)?)
            }
        };
        let request = builder.body(Full::new(bytes)).map_err(broken)?;
        loop {
            let idle = self.inner.idle.lock().await.pop();
            let reused = idle.is_some();
            let mut sender = match idle {
                Some(sender) if !sender.is_closed() => sender,
                Some(_) => continue,
                None => self.connect().await?,
            };
            if sender.ready().await.is_err() && reused {
                continue;
            }
            match sender.try_send_request(request.clone()).await {
                Ok(response) => return Ok((response, sender)),
                // The server closed the idle connection before it saw the request: again on a new one.
                Err(mut e) => {
                    if !reused || e.take_message().is_none() {
                        return Err(broken(e.into_error()));
                    }
                }
            }
        }
    }

    /// One request. The answer is the object, or the error that the Status object describes.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Option<&Value>,
    ) -> Result<Value, ClientError> {
        let work = async {
            let (response, sender) = self.send(method, path, content_type, body).await?;
            let status = response.status();
            let bytes = response.into_body().collect().await.map_err(broken)?.to_bytes();
            self.inner.idle.lock().await.push(sender);
            if status.is_success() {
                return Ok(serde_json::from_slice(&bytes)
                    .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned())));
            }
            Err(refused(status, &bytes))
        };
        tokio::time::timeout(REQUEST_TIMEOUT, work)
            .await
            .unwrap_or_else(|_| Err(ClientError::Connection(format!("{path}: no answer in {REQUEST_TIMEOUT:?}"))))
    }

    /// GET.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.request(Method::GET, path, "", None).await
    }

    /// POST.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn create(&self, path: &str, object: &Value) -> Result<Value, ClientError> {
        self.request(Method::POST, path, "application/json", Some(object)).await
    }

    /// PUT.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn replace(&self, path: &str, object: &Value) -> Result<Value, ClientError> {
        self.request(Method::PUT, path, "application/json", Some(object)).await
    }

    /// PATCH with a JSON merge patch.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn merge(&self, path: &str, patch: &Value) -> Result<Value, ClientError> {
        self.request(Method::PATCH, path, "application/merge-patch+json", Some(patch)).await
    }

    /// DELETE.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete(&self, path: &str, options: Option<&Value>) -> Result<Value, ClientError> {
        self.request(Method::DELETE, path, "application/json", options).await
    }

    /// Opens a watch; `path` carries the query up to `resourceVersion`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn watch(&self, path: &str) -> Result<Watch, ClientError> {
        let (response, sender) = tokio::time::timeout(REQUEST_TIMEOUT, self.send(Method::GET, path, "", None))
            .await
            .unwrap_or_else(|_| Err(ClientError::Connection(format!("{path}: no answer in {REQUEST_TIMEOUT:?}"))))?;
        let status = response.status();
        let body = response.into_body();
        if !status.is_success() {
            let bytes = body.collect().await.map_err(broken)?.to_bytes();
            return Err(refused(status, &bytes));
        }
        Ok(Watch { body, buffer: BytesMut::new(), _sender: sender })
    }
}

fn refused(status: StatusCode, bytes: &[u8]) -> ClientError {
    let object: Value = serde_json::from_slice(bytes).unwrap_or(Value::Null);
    let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
    let message = match text("message") {
        m if m.is_empty() => String::from_utf8_lossy(bytes).trim().to_owned(),
        m => m,
    };
    ClientError::Refused { code: status.as_u16(), reason: text("reason"), message }
}

/// An open watch.
pub struct Watch {
    body: Incoming,
    buffer: BytesMut,
    /// Dropping it would close the connection.
    _sender: SendRequest<Full<Bytes>>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

/// An event of a watch: its type (`ADDED`, `MODIFIED`, `DELETED`, `BOOKMARK`, `ERROR`) and the object.
pub type WatchEvent = (String, Value);

impl Watch {
    /// The next event; `None` when the server ends the watch, as it does from time to time.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn next(&mut self) -> Result<Option<WatchEvent>, ClientError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line = self.buffer.split_to(end + 1);
                if line.trim_ascii().is_empty() {
                    continue;
                }
                let mut event: Value = serde_json::from_slice(&line).map_err(broken)?;
                let kind = event["type"].as_str().unwrap_or_default().to_owned();
                return Ok(Some((kind, event["object"].take())));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(data) = frame.map_err(broken)?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}
