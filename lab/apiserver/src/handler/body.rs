//! Bodies of requests.

use crate::error::ApiError;
use crate::protobuf;
use crate::request::content_type;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde_json::Value;
use std::time::Duration;

/// Largest body.
const BODY_MAX: usize = 3 * 1024 * 1024;
/// Time for a body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The whole body.
pub async fn bytes(request: Request<Incoming>) -> Result<Bytes, ApiError> {
    let body = Limited::new(request.into_body(), BODY_MAX);
    match tokio::time::timeout(BODY_TIMEOUT, body.collect()).await {
        Err(_) => Err(ApiError::timeout(format!("the request's body did not arrive in {BODY_TIMEOUT:?}"))),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::too_large(BODY_MAX)),
        Ok(Err(error)) => Err(ApiError::bad_request(format!("the request's body broke off: {error}"))),
        Ok(Ok(body)) => Ok(body.to_bytes()),
    }
}

/// The object in the body, JSON or YAML.
pub async fn object(request: Request<Incoming>) -> Result<Value, ApiError> {
    optional(request).await?.ok_or_else(|| ApiError::bad_request("the request has no body: expected an object"))
}

/// The object in the body, if there is a body.
pub async fn optional(request: Request<Incoming>) -> Result<Option<Value>, ApiError> {
    let media_type = content_type(request.headers()).to_owned();
    let body = bytes(request).await?;
    if body.is_empty() {
        return Ok(None);
    }
    if media_type == protobuf::MEDIA_TYPE {
        return protobuf::decode(&body).map(Some);
    }
    let value = match media_type.as_str() {
        "" | "application/json" => serde_json::from_slice::<Value>(&body).map_err(|e| e.to_string()),
        "application/yaml" => serde_saphyr::from_slice::<Value>(&body).map_err(|e| e.to_string()),
        other => {
            return Err(ApiError::unsupported_media_type(format!(
                "the body of the request was in an unknown format - accepted media types include: application/json, \
                 application/yaml, application/vnd.kubernetes.protobuf; got {other:?}"
            )));
        }
    };
    let value = value.map_err(|e| ApiError::bad_request(format!("the body cannot be read: {e}")))?;
    if value.is_object() { Ok(Some(value)) } else { Err(ApiError::bad_request("the body: expected an object")) }
}
