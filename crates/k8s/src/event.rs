//! Warnings on objects, where `kubectl describe` and `kubectl get events` show them.

use crate::client::{Client, PatchKind, segment};
use crate::error::Error;
use crate::wire::path;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

/// Longest message; the API server admits 1,024 bytes.
const MESSAGE_BYTES_MAX: usize = 1000;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct About {
    /// `NetworkPolicy`, `Pod`, `Node`.
    pub kind: &'static str,
    /// `networking.k8s.io/v1`, `v1`.
    pub api_version: &'static str,
    /// Its namespace; empty for cluster-scoped kinds, whose events are kept in `default`.
    pub namespace: String,
    pub name: String,
    /// Its UID; may be empty where it is not known.
    pub uid: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Counted {
    count: u32,
}

/// Writes a warning. The same warning again raises its count, it makes no second object.
pub async fn warn(client: &Client, about: &About, reason: &str, message: &str, component: &str) -> Result<(), Error> {
    let namespace = if about.namespace.is_empty() { "default" } else { &about.namespace };
    let collection = format!("{}/{}/events", path::NAMESPACES, segment("namespace", namespace)?);
    let mut message = message.to_owned();
    if message.len() > MESSAGE_BYTES_MAX {
        let end = (0..=MESSAGE_BYTES_MAX).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
        message.truncate(end);
    }
    let digest = Sha256::digest(format!("{}\0{}\0{reason}\0{message}\0{component}", about.kind, about.uid));
    let hash: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    // Room for the hash within the 253 characters of a name; cut where the name stays one.
    let stem: String = about.name.chars().take(230).collect();
    let name = format!("{}.{hash}", stem.trim_end_matches(['.', '-']));
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let object_path = format!("{collection}/{}", segment("event", &name)?);
    if let Some(known) = client.find::<Counted>(&object_path).await? {
        let patch = json!({"count": known.count.saturating_add(1), "lastTimestamp": now});
        client.patch::<serde::de::IgnoredAny>(&object_path, PatchKind::Merge, &patch).await?;
        return Ok(());
    }
    let event = json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": {
            "apiVersion": about.api_version,
            "kind": about.kind,
            "namespace": about.namespace,
            "name": about.name,
            "uid": about.uid,
        },
        "type": "Warning",
        "reason": reason,
        "message": message,
        "count": 1,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "source": {"component": component},
        "reportingComponent": component,
        "reportingInstance": component,
    });
    match client.create::<serde::de::IgnoredAny>(&collection, &event).await {
        // Another of us wrote the same in this moment.
        Err(error) if error.is_already_exists() => Ok(()),
        other => other.map(|_| ()),
    }
}
