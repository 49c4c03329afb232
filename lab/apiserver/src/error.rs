//! Refusals: every error that a client sees is a `Status` object that names the field and what was expected.

use serde_json::{Value, json};

/// Why one field is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// The machine-readable reason, as Kubernetes has it: `FieldValueInvalid`, `FieldValueRequired`, ...
    pub reason: &'static str,
    /// Where: `spec.ingress[0].ports[1].endPort`.
    pub field: String,
    /// What was found and what was expected.
    pub message: String,
}

impl Cause {
    /// The value is of the right type, but wrong.
    pub fn invalid(field: impl Into<String>, value: &Value, expected: impl std::fmt::Display) -> Self {
        Self {
            reason: "FieldValueInvalid",
            field: field.into(),
            message: format!("Invalid value: {}: {expected}", brief(value)),
        }
    }

    /// The value is missing.
    pub fn required(field: impl Into<String>, expected: impl std::fmt::Display) -> Self {
        let expected = expected.to_string();
        let message =
            if expected.is_empty() { "Required value".to_owned() } else { format!("Required value: {expected}") };
        Self { reason: "FieldValueRequired", field: field.into(), message }
    }

    /// The value is none of those that are supported.
    pub fn unsupported(field: impl Into<String>, value: &Value, supported: &[&str]) -> Self {
        let list = supported.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(", ");
        Self {
            reason: "FieldValueNotSupported",
            field: field.into(),
            message: format!("Unsupported value: {}: supported values: {list}", brief(value)),
        }
    }

    /// The value may not be given here.
    pub fn forbidden(field: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self { reason: "FieldValueForbidden", field: field.into(), message: format!("Forbidden: {why}") }
    }

    /// The value was given before.
    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self {
            reason: "FieldValueDuplicate",
            field: field.into(),
            message: format!("Duplicate value: {}", brief(value)),
        }
    }
}

/// A value in an error message: never longer than a line.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 200 {
        return text;
    }
    let head: String = text.chars().take(200).collect();
    format!("{head}...")
}

/// A refused request.
#[derive(Clone, Debug)]
pub struct ApiError {
    /// HTTP status.
    pub code: u16,
    /// Reason of the `Status` object.
    pub reason: &'static str,
    /// Message for a human.
    pub message: String,
    details: Value,
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)
    }
}

impl std::error::Error for ApiError {}

impl ApiError {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Value::Null }
    }

    /// The request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// Nobody said who asks.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(401, "Unauthorized", message)
    }

    /// What is asked may not be done.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(403, "Forbidden", message)
    }

    /// No such object. `resource` is the group resource: `deployments.apps`.
    pub fn not_found(resource: &str, name: &str) -> Self {
        let mut e = Self::new(404, "NotFound", format!("{resource} {name:?} not found"));
        e.details = kind_and_name(resource, name);
        e
    }

    /// No such path.
    pub fn no_such_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    /// The path exists, but not for this method.
    pub fn method_not_allowed(what: impl Into<String>) -> Self {
        Self::new(405, "MethodNotAllowed", what)
    }

    /// No offered media type can be served.
    pub fn not_acceptable(offered: &str) -> Self {
        Self::new(406, "NotAcceptable", format!("Accept {offered:?}: expected application/json"))
    }

    /// The object is there already.
    pub fn already_exists(resource: &str, name: &str) -> Self {
        let mut e = Self::new(409, "AlreadyExists", format!("{resource} {name:?} already exists"));
        e.details = kind_and_name(resource, name);
        e
    }

    /// The object is not what the client takes it for.
    pub fn conflict(resource: &str, name: &str, why: impl std::fmt::Display) -> Self {
        let mut e = Self::new(409, "Conflict", format!("Operation cannot be fulfilled on {resource} {name:?}: {why}"));
        e.details = kind_and_name(resource, name);
        e
    }

    /// The resource version asked for is no longer, or not yet, known.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// The body is too large.
    pub fn too_large(limit: usize) -> Self {
        Self::new(413, "RequestEntityTooLarge", format!("the request's body is larger than {limit} bytes"))
    }

    /// The body's media type is not one that this server reads.
    pub fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// Fields are wrong. `kind` is the group kind: `Deployment.apps`.
    pub fn invalid(kind: &str, name: &str, causes: &[Cause]) -> Self {
        let lines: Vec<String> = causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        let text = match lines.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let mut e = Self::new(422, "Invalid", format!("{kind} {name:?} is invalid: {text}"));
        let mut details = kind_and_name(kind, name);
        details["causes"] = causes
            .iter()
            .map(|c| json!({"reason": c.reason, "message": c.message, "field": c.field}))
            .collect::<Vec<_>>()
            .into();
        e.details = details;
        e
    }

    /// Too many requests of this kind at once.
    pub fn too_many_requests(message: impl Into<String>) -> Self {
        Self::new(429, "TooManyRequests", message)
    }

    /// The server is at fault.
    pub fn internal(message: impl std::fmt::Display) -> Self {
        Self::new(500, "InternalError", format!("Internal error occurred: {message}"))
    }

    /// Somebody whom the server needs did not answer.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// It took too long.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(504, "Timeout", message)
    }

    /// A refusal with a status of somebody else's choosing.
    pub fn relayed(code: u16, message: impl Into<String>) -> Self {
        let reason = match code {
            400 => "BadRequest",
            404 => "NotFound",
            409 => "Conflict",
            503 => "ServiceUnavailable",
            _ => "InternalError",
        };
        Self::new(code.clamp(400, 599), reason, message)
    }

    /// The `Status` object.
    pub fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status
    }
}

fn kind_and_name(group_resource: &str, name: &str) -> Value {
    let (kind, group) = group_resource.split_once('.').unwrap_or((group_resource, ""));
    let mut details = json!({"name": name, "kind": kind});
    if !group.is_empty() {
        details["group"] = group.into();
    }
    details
}
