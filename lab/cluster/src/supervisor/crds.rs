//! The custom resources that agents and operator use, installed through the API like anywhere else.

use serde_json::Value;
use std::time::Duration;
use weft_lab_client::Client;

/// File name and text of every definition.
const DEFINITIONS: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/crds.rs"));

const COLLECTION: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// Creates or updates all of them; tries until the server takes them.
pub(super) async fn install(client: &Client) {
    for (file, text) in DEFINITIONS {
        for part in text.split("\n---") {
            if part.lines().all(|l| l.trim().is_empty() || l.trim().starts_with('#') || l.trim() == "---") {
                continue;
            }
            let definition: Value = match serde_saphyr::from_str(part) {
                Ok(value) => value,
                Err(error) => {
                    tracing::error!(file, %error, "is no YAML");
                    continue;
                }
            };
            for _ in 0..50 {
                match put(client, definition.clone()).await {
                    Ok(()) => break,
                    Err(error) => tracing::warn!(file, %error, "custom resource definition"),
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn put(client: &Client, mut definition: Value) -> Result<(), weft_lab_client::ClientError> {
    match client.create(COLLECTION, &definition).await {
        Err(error) if error.code() == Some(409) => {}
        other => return other.map(drop),
    }
    let path = format!("{COLLECTION}/{}", definition["metadata"]["name"].as_str().unwrap_or_default());
    let existing = client.get(&path).await?;
    definition["metadata"]["resourceVersion"] = existing["metadata"]["resourceVersion"].clone();
    client.replace(&path, &definition).await.map(drop)
}
