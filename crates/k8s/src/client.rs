//! JSON verbs on paths of the API, each with a deadline. Objects are read into the caller's own partial types, so that
//! nothing is kept or even parsed that nobody asked for.

use crate::error::Error;
use futures::Stream;
use http::{Method, Request};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};
use tokio_util::compat::FuturesAsyncReadCompatExt;
use tower::ServiceBuilder;

/// How long one request may take, watches apart.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a connection may take to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that is silent for this long is probed; if nobody answers, it is dead within as long again.
const KEEPALIVE: Duration = Duration::from_secs(15);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
/// The longest line of a watch: objects are limited to about 1.5 MiB by the server's store.
const LINE_BYTES_MAX: usize = 8 << 20;

/// Where the server is and who we are.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A kubeconfig; `None`: the service account of the pod that we run in.
    pub kubeconfig: Option<PathBuf>,
    /// `weft-agent/0.1.0`, say.
    pub user_agent: String,
}

async fn configuration(options: &Options) -> Result<kube::Config, Error> {
    match &options.kubeconfig {
        Some(path) => {
            let failed = |source| Error::Kubeconfig { path: path.clone(), source: Box::new(source) };
            let file = Kubeconfig::read_from(path).map_err(failed)?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(failed)
        }
        None => kube::Config::incluster().map_err(|source| Error::InCluster { source: Box::new(source) }),
    }
}

/// A connection pool to one API server. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    inner: kube::Client,
}

/// What an object must still be for a deletion to happen.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Preconditions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PatchKind {
    /// RFC 7386.
    Merge,
    /// RFC 6902.
    Json,
    /// Kubernetes' own: lists merge by key.
    Strategic,
}

impl PatchKind {
    const fn content_type(self) -> &'static str {
        match self {
            Self::Merge => "application/merge-patch+json",
            Self::Json => "application/json-patch+json",
            Self::Strategic => "application/strategic-merge-patch+json",
        }
    }
}

impl Client {
    /// Reads the configuration. Nothing is sent yet.
    ///
    /// # Errors
    /// When the kubeconfig (or the pod's service account) is missing or unusable.
    pub async fn connect(options: &Options) -> Result<Self, Error> {
        let mut config = configuration(options).await?;
        if let Ok(agent) = http::HeaderValue::from_str(&options.user_agent) {
            config.headers.push((http::header::USER_AGENT, agent));
        }
        let failed = |source| Error::Setup { source: Box::new(source) };
        Ok(Self { inner: stack(config).map_err(failed)? })
    }

    /// The address of the server, where it is named by one.
    ///
    /// # Errors
    /// When the kubeconfig (or the pod's service account) is missing or unusable.
    pub async fn server_address(options: &Options) -> Result<Option<IpAddr>, Error> {
        let url = configuration(options).await?.cluster_url;
        Ok(url.host().and_then(|host| host.trim_matches(['[', ']']).parse().ok()))
    }

    /// Around a client that exists already, such as one over a test's own service.
    #[must_use]
    pub fn over(inner: kube::Client) -> Self {
        Self { inner }
    }

    /// GET, as text: for those who parse lazily.
    pub async fn text(&self, path: &str) -> Result<String, Error> {
        self.send(Method::GET, path, None, Vec::new()).await
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.json(Method::GET, path, None, Vec::new()).await
    }

    /// GET; `None` when there is no such object.
    pub async fn find<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, Error> {
        match self.get(path).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub async fn create<T: DeserializeOwned>(&self, path: &str, object: &impl Serialize) -> Result<T, Error> {
        let body = encode("POST", path, object)?;
        self.json(Method::POST, path, Some("application/json"), body).await
    }

    /// PUT; conditional when the object carries a resource version.
    pub async fn replace<T: DeserializeOwned>(&self, path: &str, object: &impl Serialize) -> Result<T, Error> {
        let body = encode("PUT", path, object)?;
        self.json(Method::PUT, path, Some("application/json"), body).await
    }

    pub async fn patch<T: DeserializeOwned>(
        &self,
        path: &str,
        kind: PatchKind,
        patch: &impl Serialize,
    ) -> Result<T, Error> {
        let body = encode("PATCH", path, patch)?;
        self.json(Method::PATCH, path, Some(kind.content_type()), body).await
    }

    /// DELETE; an object that is not there counts as deleted.
    pub async fn delete(&self, path: &str, preconditions: &Preconditions) -> Result<(), Error> {
        let options = serde_json::json!({
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": preconditions,
        });
        let body = encode("DELETE", path, &options)?;
        match self.send(Method::DELETE, path, Some("application/json"), body).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The lines of a watch, as they come.
    ///
    /// # Errors
    /// Refusal, timeout of the answer's head, connection.
    pub async fn lines(
        &self,
        path: &str,
    ) -> Result<impl Stream<Item = Result<String, LinesCodecError>> + Send + Unpin + use<>, Error> {
        let request = build(Method::GET, path, None, Vec::new())?;
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, self.inner.request_stream(request)).await;
        let body = answer
            .map_err(|_| Error::Timeout { verb: "WATCH", path: path.to_owned(), seconds: REQUEST_TIMEOUT.as_secs() })?
            .map_err(|error| refusal("WATCH", path, error))?;
        Ok(FramedRead::new(Box::pin(body).compat(), LinesCodec::new_with_max_length(LINE_BYTES_MAX)))
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&'static str>,
        body: Vec<u8>,
    ) -> Result<T, Error> {
        let verb = verb_of(&method);
        let text = self.send(method, path, content_type, body).await?;
        serde_json::from_str(&text).map_err(|source| Error::Answer { verb, path: path.to_owned(), source })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&'static str>,
        body: Vec<u8>,
    ) -> Result<String, Error> {
        let verb = verb_of(&method);
        let request = build(method, path, content_type, body)?;
        match tokio::time::timeout(REQUEST_TIMEOUT, self.inner.request_text(request)).await {
            Ok(answer) => answer.map_err(|error| refusal(verb, path, error)),
            Err(_) => Err(Error::Timeout { verb, path: path.to_owned(), seconds: REQUEST_TIMEOUT.as_secs() }),
        }
    }
}

/// kube's usual client but for two things: connections that have gone dead are noticed by keep-alive, since a watch may
/// be silent for minutes and be well; and nothing is retried behind our back, which would only stretch our deadlines.
fn stack(config: kube::Config) -> Result<kube::Client, kube::Error> {
    if config.proxy_url.is_some() {
        return kube::Client::try_from(config);
    }
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE / 4));
    tcp.set_keepalive_retries(Some(4));
    tcp.set_tcp_user_timeout(Some(KEEPALIVE * 2));
    let https = config.rustls_https_connector_with_connector(tcp)?;
    let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(https);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(tower::BoxError::from)
        .service(http);
    Ok(kube::Client::new(service, config.default_namespace))
}

fn verb_of(method: &Method) -> &'static str {
    match *method {
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "GET",
    }
}

fn encode(verb: &'static str, path: &str, object: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(object).map_err(|source| Error::Answer { verb, path: path.to_owned(), source })
}

fn build(
    method: Method,
    path: &str,
    content_type: Option<&'static str>,
    body: Vec<u8>,
) -> Result<Request<Vec<u8>>, Error> {
    let verb = verb_of(&method);
    let mut request = Request::builder().method(method).uri(path);
    if let Some(content_type) = content_type {
        request = request.header(http::header::CONTENT_TYPE, content_type);
    }
    request.body(body).map_err(|source| Error::Request { verb, path: path.to_owned(), source })
}

fn refusal(verb: &'static str, path: &str, error: kube::Error) -> Error {
    let path = path.to_owned();
    match error {
        kube::Error::Api(status) => Error::Status {
            verb,
            path,
            code: status.code,
            reason: status.reason.clone(),
            message: status.message.clone(),
            retry_after: status
                .details
                .as_ref()
                .map(|details| u64::from(details.retry_after_seconds))
                .filter(|seconds| *seconds > 0)
                .map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX)),
        },
        source => Error::Transport { verb, path, source: Box::new(source) },
    }
}

/// A name as a segment of a path: checked, so that it cannot be anything else.
///
/// # Errors
/// When it holds other than lower-case letters, digits, `-` and `.`, or too much of them.
pub fn segment<'a>(what: &'static str, name: &'a str) -> Result<&'a str, Error> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    let edge = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let bytes = name.as_bytes();
    if bytes.len() <= 253 && bytes.iter().all(|byte| allowed(*byte)) && edge(bytes.first()) && edge(bytes.last()) {
        Ok(name)
    } else {
        Err(Error::Name { what, name: name.to_owned() })
    }
}
