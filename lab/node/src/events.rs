//! Events about pods: what `kubectl describe` shows.

use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use weft_lab_client::Client;

/// The same words about the same pod are not said again so soon.
const SILENCE: Duration = Duration::from_secs(30);

/// Writes events.
pub(crate) struct Events {
    client: Client,
    node: String,
    said: Mutex<HashMap<(String, String), Instant>>,
}

/// Normal or Warning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Severity {
    Normal,
    Warning,
}

impl Events {
    pub(crate) fn new(client: Client, node: &str) -> Self {
        Self { client, node: node.to_owned(), said: Mutex::new(HashMap::new()) }
    }

    /// Says it, unless it was just said. An event that cannot be written is lost.
    pub(crate) async fn pod(&self, pod: &Value, severity: Severity, reason: &str, message: &str) {
        let metadata = &pod["metadata"];
        let key = (metadata["uid"].as_str().unwrap_or_default().to_owned(), format!("{reason} {message}"));
        {
            let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            said.retain(|_, at| at.elapsed() < SILENCE);
            if said.insert(key, Instant::now()).is_some() {
                return;
            }
        }
        let namespace = metadata["namespace"].as_str().unwrap_or("default");
        let now = format!("{:.0}", jiff::Timestamp::now());
        let event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": format!("{}.{}", metadata["name"].as_str().unwrap_or("pod"), uuid::Uuid::new_v4().simple()),
                "namespace": namespace,
            },
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "namespace": namespace,
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
            "type": if severity == Severity::Warning { "Warning" } else { "Normal" },
            "reason": reason,
            "message": message,
            "source": {"component": "kubelet", "host": self.node},
            "reportingComponent": "kubelet",
            "reportingInstance": self.node,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        });
        if let Err(error) = self.client.create(&format!("/api/v1/namespaces/{namespace}/events"), &event).await {
            tracing::debug!(%error, reason, message, "event");
        }
    }
}
