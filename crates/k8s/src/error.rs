//! What can go wrong between us and the API server.

use std::path::PathBuf;
use std::time::Duration;

/// A request that failed, or a client that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig cannot be used.
    #[error("kubeconfig {path}: {source}", path = path.display())]
    Kubeconfig { path: PathBuf, source: Box<kube::config::KubeconfigError> },
    /// No kubeconfig was given, and this is no pod with a service account.
    #[error("no kubeconfig was given, and there is no service account of a pod to use instead: {source}")]
    InCluster { source: Box<kube::config::InClusterError> },
    /// The credentials or certificates cannot be used.
    #[error("cannot make a client of the API server: {source}")]
    Setup { source: Box<kube::Error> },
    /// A path or header could not be built.
    #[error("{verb} {path}: not a request: {source}")]
    Request { verb: &'static str, path: String, source: http::Error },
    #[error("{verb} {path}: no answer within {seconds} s")]
    Timeout { verb: &'static str, path: String, seconds: u64 },
    #[error("{verb} {path}: {message} ({code} {reason})")]
    Status {
        verb: &'static str,
        path: String,
        code: u16,
        reason: String,
        message: String,
        /// How long the server wants to be left alone.
        retry_after: Option<Duration>,
    },
    #[error("{verb} {path}: {source}")]
    Transport { verb: &'static str, path: String, source: Box<kube::Error> },
    /// The answer is not what the API promises.
    #[error("{verb} {path}: cannot read the answer: {source}")]
    Answer { verb: &'static str, path: String, source: serde_json::Error },
    /// A name that cannot be part of a path.
    #[error("{what} {name:?}: expected lower-case letters, digits, '-' and '.', at most 253 of them")]
    Name { what: &'static str, name: String },
    /// A manifest of ours or of the user's that is not one.
    #[error("{what}: {problem}")]
    Manifest { what: String, problem: String },
}

impl Error {
    #[must_use]
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Status { code, .. } => Some(*code),
            _ => None,
        }
    }

    fn reason(&self) -> &str {
        match self {
            Self::Status { reason, .. } => reason,
            _ => "",
        }
    }

    /// How long the server wants to be left alone, if it says so (429, 503).
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The credentials do not allow the verb on the resource.
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        self.code() == Some(403)
    }

    /// The object (or its kind) does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    #[must_use]
    pub fn is_already_exists(&self) -> bool {
        self.code() == Some(409) && self.reason() == "AlreadyExists"
    }

    /// The object changed since it was read, or a precondition does not hold.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        (self.code() == Some(409) && self.reason() != "AlreadyExists") || self.code() == Some(412)
    }

    /// The resource version is too old to watch or page from.
    #[must_use]
    pub fn is_expired(&self) -> bool {
        self.code() == Some(410)
    }
}
