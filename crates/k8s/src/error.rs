//! What can go wrong between us and the API server.

use std::path::PathBuf;

/// A request that failed, or a client that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig cannot be used.
    #[error("kubeconfig {path}: {source}", path = path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<kube::config::KubeconfigError>,
    },
    /// No kubeconfig was given, and this is no pod with a service account.
    #[error("no kubeconfig was given, and there is no service account of a pod to use instead: {source}")]
    InCluster {
        /// Why.
        source: Box<kube::config::InClusterError>,
    },
    /// The credentials or certificates cannot be used.
    #[error("cannot make a client of the API server: {source}")]
    Setup {
        /// Why.
        source: Box<kube::Error>,
    },
    /// A path or header could not be built.
    #[error("{verb} {path}: not a request: {source}")]
    Request {
        /// HTTP verb.
        verb: &'static str,
        /// Path and query.
        path: String,
        /// Why.
        source: http::Error,
    },
    /// No answer in time.
    #[error("{verb} {path}: no answer within {seconds} s")]
    Timeout {
        /// HTTP verb.
        verb: &'static str,
        /// Path and query.
        path: String,
        /// The deadline.
        seconds: u64,
    },
    /// The server refused.
    #[error("{verb} {path}: {message} ({code} {reason})")]
    Status {
        /// HTTP verb.
        verb: &'static str,
        /// Path and query.
        path: String,
        /// HTTP code.
        code: u16,
        /// Machine-readable reason.
        reason: String,
        /// The server's words.
        message: String,
    },
    /// The connection failed.
    #[error("{verb} {path}: {source}")]
    Transport {
        /// HTTP verb.
        verb: &'static str,
        /// Path and query.
        path: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// The answer is not what the API promises.
    #[error("{verb} {path}: cannot read the answer: {source}")]
    Answer {
        /// HTTP verb.
        verb: &'static str,
        /// Path and query.
        path: String,
        /// Why.
        source: serde_json::Error,
    },
    /// A name that cannot be part of a path.
    #[error("{what} {name:?}: expected lower-case letters, digits, '-' and '.', at most 253 of them")]
    Name {
        /// Of what.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A manifest of ours or of the user's that is not one.
    #[error("{what}: {problem}")]
    Manifest {
        /// Which.
        what: String,
        /// Why.
        problem: String,
    },
}

impl Error {
    /// HTTP code of a refusal.
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

    /// The object (or its kind) does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    /// An object of that name exists.
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
