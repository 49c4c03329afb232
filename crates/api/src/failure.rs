//! Why the agent did not do what it was asked for.

use serde::{Deserialize, Serialize};

/// What the caller can do about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The agent is not ready for pods; the details say what it waits for.
    NotReady,
    /// The same request may succeed a moment later.
    TryAgain,
    /// The request makes no sense; the details name the field and what was expected.
    Malformed,
    /// What the request brings along does not fit the agent's settings.
    Misconfigured,
    /// The container, or its network namespace, is gone.
    NoContainer,
    /// The node has no address left.
    NoAddresses,
    /// A file of the node or its kernel: somebody must look at the node.
    System,
    /// The state of the cluster or of the node does not allow it.
    #[serde(other)]
    Refused,
}

/// An error of the agent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{summary}{}{details}", if details.is_empty() { "" } else { ": " })]
pub struct Failure {
    /// What the caller can do.
    pub kind: Kind,
    /// What happened, in a few words.
    pub summary: String,
    /// To what, why, and what was expected.
    #[serde(default)]
    pub details: String,
}

impl Failure {
    /// One with its texts.
    #[must_use]
    pub fn new(kind: Kind, summary: impl Into<String>, details: impl Into<String>) -> Self {
        Self { kind, summary: summary.into(), details: details.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::{Failure, Kind};

    #[test]
    fn a_kind_of_a_newer_agent_counts_as_refused() {
        let text = r#"{"kind":"on_fire","summary":"the node burns"}"#;
        let failure: Failure = serde_json::from_str(text).expect("a failure");
        assert_eq!(failure, Failure::new(Kind::Refused, "the node burns", ""));
        assert_eq!(failure.to_string(), "the node burns");
        let failure = Failure::new(Kind::NotReady, "the agent is not ready", "waiting for the node");
        let text = serde_json::to_string(&failure).expect("text");
        assert_eq!(serde_json::from_str::<Failure>(&text).expect("a failure"), failure);
        assert_eq!(failure.to_string(), "the agent is not ready: waiting for the node");
    }
}
