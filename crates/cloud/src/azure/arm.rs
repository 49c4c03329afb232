//! Requests to Resource Manager: tokens, deadlines, a limit on their rate, throttling, long-running operations, and what
//! its errors mean.

use super::settings::Settings;
use super::token;
use crate::CloudError;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until, timeout};

/// Longest answer that is read.
const ANSWER_MAX: usize = 8 << 20;
/// Between two polls of an operation whose answers have no Retry-After.
const POLL: Duration = Duration::from_secs(2);
/// Longest Retry-After, in seconds, that is respected.
const RETRY_AFTER_MAX: u64 = 600;
/// Longest throttling, in seconds, that is waited out before the caller gets the error.
const THROTTLE_WAIT_MAX: u64 = 5;

/// An answer.
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

struct Pace {
    /// Requests that may be sent at once now.
    saved: f64,
    counted: Instant,
    /// The server throttles until then.
    throttled_until: Option<Instant>,
}

/// See the module.
pub(super) struct Arm {
    settings: Settings,
    http: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    token: Mutex<Option<token::Token>>,
    pace: Mutex<Pace>,
}

/// Checks a resource id: only what can stand in a path, and ending in a resource of that kind.
pub(super) fn check_id(id: &str, kind: &str) -> Result<(), CloudError> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_.()".contains(&byte);
    let parts: Vec<&str> = id.split('/').collect();
    let shape = id.starts_with("/subscriptions/")
        && id.bytes().all(good)
        && parts.iter().skip(1).all(|part| !part.is_empty() && !part.starts_with('.'))
        && parts.len() >= 3
        && parts[parts.len() - 2].eq_ignore_ascii_case(kind);
    if shape {
        Ok(())
    } else {
        Err(CloudError::invalid(format!("expected the resource id of one of {kind}, found {id:?}")))
    }
}

impl Arm {
    pub(super) fn new(settings: &Settings) -> Result<Self, CloudError> {
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_native_roots()
            .map_err(|error| CloudError::unavailable(format!("no certificates to trust: {error}")))?
            .https_or_http()
            .enable_http1()
            .build();
        let pace = Pace { saved: f64::from(settings.burst), counted: Instant::now(), throttled_until: None };
        Ok(Self {
            settings: settings.clone(),
            http: Client::builder(TokioExecutor::new()).build(connector),
            token: Mutex::new(None),
            pace: Mutex::new(pace),
        })
    }

    /// GET of a resource.
    pub(super) async fn get(&self, id: &str, version: &str) -> Result<Value, CloudError> {
        let reply = self.send(Method::GET, &self.url(id, version), None, None).await?;
        json(&reply)
    }

    /// PUT of a resource, if it still has that tag, until the operation has ended.
    pub(super) async fn put(&self, id: &str, version: &str, tag: Option<&str>, body: &Value) -> Result<(), CloudError> {
        let body = Bytes::from(serde_json::to_vec(body).map_err(CloudError::unavailable)?);
        let reply = self.send(Method::PUT, &self.url(id, version), tag, Some(body)).await?;
        let until = Instant::now() + self.settings.operation_timeout;
        timeout(self.settings.operation_timeout, self.follow(reply, until))
            .await
            .map_err(|_| CloudError::unavailable("a long-running operation did not end in time"))?
    }

    fn url(&self, id: &str, version: &str) -> String {
        format!("{}{id}?api-version={version}", self.settings.endpoint)
    }

    /// Follows a long-running operation to its end.
    async fn follow(&self, first: Reply, until: Instant) -> Result<(), CloudError> {
        let text = |name: &str| first.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (place, by_status) = match (text("azure-asyncoperation"), text("location")) {
            (Some(place), _) => (place, true),
            (None, Some(place)) if first.status == StatusCode::ACCEPTED => (place, false),
            _ if first.status == StatusCode::ACCEPTED => {
                return Err(CloudError::invalid("202 with neither Azure-AsyncOperation nor Location"));
            }
            _ => return Ok(()),
        };
        // The token goes there: nowhere else than where it belongs.
        if origin(&place).is_none() || origin(&place) != origin(&self.settings.endpoint) {
            return Err(CloudError::invalid(format!("an operation at another server: {place:?}")));
        }
        let mut pause = retry_after(&first.headers).map_or(POLL, Duration::from_secs);
        while Instant::now() + pause < until {
            tokio::time::sleep(pause).await;
            let reply = match self.send(Method::GET, &place, None, None).await {
                Ok(reply) => reply,
                // The operation goes on, whatever becomes of a poll.
                Err(CloudError::Throttled { seconds, .. }) => {
                    pause = Duration::from_secs(seconds);
                    continue;
                }
                Err(CloudError::Unavailable { .. }) => continue,
                Err(error) => return Err(error),
            };
            pause = retry_after(&reply.headers).map_or(POLL, Duration::from_secs);
            if !by_status {
                if reply.status != StatusCode::ACCEPTED {
                    return Ok(());
                }
                continue;
            }
            let operation = json(&reply)?;
            match operation["status"].as_str() {
                Some("Succeeded") => return Ok(()),
                Some("Failed" | "Canceled") => {
                    return Err(meaning(StatusCode::BAD_REQUEST, &operation["error"], &reply.headers));
                }
                Some(_) => {}
                None => return Err(CloudError::invalid("operation: status: expected a text")),
            }
        }
        Err(CloudError::unavailable("a long-running operation did not end in time"))
    }

    /// One request, with a token; a token that is refused is renewed once, and a short throttling waited out once.
    async fn send(
        &self,
        method: Method,
        url: &str,
        tag: Option<&str>,
        body: Option<Bytes>,
    ) -> Result<Reply, CloudError> {
        let (mut renewed, mut waited) = (false, false);
        loop {
            self.wait_turn().await;
            let secret = self.token(renewed).await?;
            let mut request = Request::builder()
                .method(method.clone())
                .uri(url)
                .header(header::AUTHORIZATION, format!("Bearer {secret}"))
                .header(header::USER_AGENT, concat!("weft-operator/", env!("CARGO_PKG_VERSION")));
            if let Some(tag) = tag {
                request = request.header(header::IF_MATCH, tag);
            }
            if body.is_some() {
                request = request.header(header::CONTENT_TYPE, "application/json");
            }
            let request = request.body(Full::new(body.clone().unwrap_or_default())).map_err(CloudError::unavailable)?;
            let reply = self.exchange(request).await?;
            if reply.status.is_success() {
                return Ok(reply);
            }
            if reply.status == StatusCode::UNAUTHORIZED && !renewed {
                renewed = true;
                continue;
            }
            let error: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
            let error = meaning(reply.status, &error["error"], &reply.headers);
            let CloudError::Throttled { seconds, .. } = &error else { return Err(error) };
            self.pace.lock().await.throttled_until = Some(Instant::now() + Duration::from_secs(*seconds));
            if waited || *seconds > THROTTLE_WAIT_MAX {
                return Err(error);
            }
            waited = true;
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Reply, CloudError> {
        let exchange = async {
            let answer = self.http.request(request).await.map_err(|error| {
                let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
                CloudError::unavailable(format!("{error}{cause}"))
            })?;
            let (parts, body) = answer.into_parts();
            let body = Limited::new(body, ANSWER_MAX).collect().await;
            let body = body.map_err(|error| CloudError::invalid(format!("the answer's body: {error}")))?.to_bytes();
            Ok(Reply { status: parts.status, headers: parts.headers, body })
        };
        let limit = self.settings.request_timeout;
        let answer = timeout(limit, exchange).await;
        answer.map_err(|_| CloudError::unavailable(format!("no answer within {} s", limit.as_secs_f32())))?
    }

    async fn token(&self, renew: bool) -> Result<String, CloudError> {
        let mut kept = self.token.lock().await;
        if let Some(token) = kept.as_ref().filter(|token| token.good() && !renew) {
            return Ok(token.secret.clone());
        }
        let request = Request::get(token::url(&self.settings)).header("Metadata", "true");
        let request = request.body(Full::default()).map_err(CloudError::unavailable)?;
        let reply = self.exchange(request).await?;
        if !reply.status.is_success() {
            let error: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
            let words = error["error_description"].as_str().unwrap_or("no managed identity?").to_owned();
            let message = format!("no token from the metadata service: {} {words}", reply.status);
            return Err(match reply.status.as_u16() {
                429 => CloudError::Throttled { seconds: retry_after(&reply.headers).unwrap_or(5), message },
                500.. => CloudError::Unavailable { message },
                _ => CloudError::Forbidden { message },
            });
        }
        let token = token::read(&reply.body)?;
        let secret = token.secret.clone();
        *kept = Some(token);
        Ok(secret)
    }

    /// Waits for this request's turn.
    async fn wait_turn(&self) {
        loop {
            let mut pace = self.pace.lock().await;
            let now = Instant::now();
            if let Some(until) = pace.throttled_until.filter(|until| *until > now) {
                drop(pace);
                sleep_until(until).await;
                continue;
            }
            let rate = f64::from(self.settings.rate.max(1));
            let gained = (now - pace.counted).as_secs_f64() * rate;
            pace.saved = (pace.saved + gained).min(f64::from(self.settings.burst.max(1)));
            pace.counted = now;
            if pace.saved >= 1.0 {
                pace.saved -= 1.0;
                return;
            }
            let missing = (1.0 - pace.saved) / rate;
            drop(pace);
            tokio::time::sleep(Duration::from_secs_f64(missing)).await;
        }
    }
}

fn json(reply: &Reply) -> Result<Value, CloudError> {
    serde_json::from_slice(&reply.body).map_err(|error| CloudError::invalid(format!("no JSON: {error}")))
}

fn origin(url: &str) -> Option<(String, String)> {
    let uri: Uri = url.parse().ok()?;
    Some((uri.scheme_str()?.to_owned(), uri.authority()?.to_string()))
}

/// Seconds; the form with a date is not used here.
fn retry_after(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse::<u64>().ok().map(|seconds| seconds.min(RETRY_AFTER_MAX))
}

/// What an error means for us.
fn meaning(status: StatusCode, error: &Value, headers: &HeaderMap) -> CloudError {
    let text = |value: &Value| value.as_str().unwrap_or_default().chars().take(500).collect::<String>();
    let (code, message) = (text(&error["code"]), text(&error["message"]));
    // The cause is often one level down.
    let inner = error["details"].as_array().into_iter().flatten().map(|detail| text(&detail["code"]));
    let codes: Vec<String> = std::iter::once(code.clone()).chain(inner).collect();
    let any = |test: &dyn Fn(&str) -> bool| codes.iter().any(|code| test(code));
    let words = if message.is_empty() { format!("{status} {code}") } else { message };
    if any(&|code| matches!(code, "SubnetIsFull" | "SubnetFull" | "InsufficientFreeAddressesInSubnet")) {
        return CloudError::SubnetFull { subnet: "the pods' subnet".to_owned(), message: words };
    }
    if status == StatusCode::TOO_MANY_REQUESTS || any(&|code| code == "TooManyRequests" || code.contains("Throttl")) {
        return CloudError::Throttled { seconds: retry_after(headers).unwrap_or(10), message: words };
    }
    if any(&|code| code.contains("Quota") || code.contains("LimitExceeded") || code.contains("LimitReached")) {
        return CloudError::Quota { message: words };
    }
    let busy = |code: &str| {
        matches!(code, "AnotherOperationInProgress" | "RetryableError" | "OperationNotAllowedOnResource" | "Canceled")
            || code.ends_with("Preempted")
    };
    match status.as_u16() {
        401 | 403 => CloudError::Forbidden { message: words },
        404 => CloudError::NotFound { what: words },
        409 | 412 => CloudError::Conflict { message: words },
        _ if any(&busy) => CloudError::Conflict { message: words },
        500.. => match retry_after(headers) {
            Some(seconds) => CloudError::Throttled { seconds, message: words },
            None => CloudError::Unavailable { message: words },
        },
        _ => CloudError::Refused { code, message: words },
    }
}
