//! Why a cloud did not do what it was asked.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum CloudError {
    /// No address of the subnet is free.
    #[error("the subnet is full: {subnet} ({message}); a larger or another subnet, or fewer pods, would help")]
    SubnetFull {
        /// Its name or prefix.
        subnet: String,
        /// The cloud's words.
        message: String,
    },
    /// A limit of the account or the resource.
    #[error("a quota of the cloud is used up: {message}")]
    Quota {
        /// The cloud's words.
        message: String,
    },
    /// Too many requests.
    #[error("the cloud throttles requests, retry after {seconds} s: {message}")]
    Throttled {
        /// For how long.
        seconds: u64,
        /// The cloud's words.
        message: String,
    },
    /// Somebody else changed the resource, or is changing it.
    #[error("the cloud's resource changed meanwhile: {message}")]
    Conflict {
        /// The cloud's words.
        message: String,
    },
    /// The identity may not do it.
    #[error("the cloud does not allow it: {message}")]
    Forbidden {
        /// The cloud's words.
        message: String,
    },
    /// The node's machine or interface is not there.
    #[error("the cloud does not know {what}")]
    NotFound {
        /// What was looked for.
        what: String,
    },
    /// Refused for another reason.
    #[error("the cloud refuses: {code}: {message}")]
    Refused {
        /// Machine-readable.
        code: String,
        /// The cloud's words.
        message: String,
    },
    /// It cannot be reached, or fails.
    #[error("the cloud does not answer: {message}")]
    Unavailable {
        /// What happened.
        message: String,
    },
    /// The answer is not what its interface promises.
    #[error("the cloud's answer is invalid: {message}")]
    InvalidAnswer {
        /// Field, what was expected and what was found.
        message: String,
    },
    /// This kind of cloud has no such thing.
    #[error("{message}")]
    Unsupported {
        /// What.
        message: String,
    },
}

impl CloudError {
    /// How long to wait before the next attempt, at least.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { seconds, .. } => Some(Duration::from_secs(*seconds)),
            _ => None,
        }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::InvalidAnswer { message: message.into() }
    }

    pub(crate) fn unavailable(message: impl ToString) -> Self {
        Self::Unavailable { message: message.to_string() }
    }
}
