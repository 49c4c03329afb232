//! List, then watch, and again whenever the watch ends: a stream of changes that never loses one.

use super::{Client, ClientError};
use serde_json::Value;
use std::time::Duration;
use tokio::sync::mpsc::Sender;

/// A change of what is followed.
#[derive(Clone, PartialEq, Debug)]
pub enum Change {
    /// Everything there is now.
    All(Vec<Value>),
    /// This object is new or changed.
    Put(Value),
    /// This object is gone.
    Gone(Value),
}

/// Follows a collection until the receiver goes away. `selector` is a query such as `fieldSelector=...`, or empty.
pub async fn follow(client: Client, collection: String, selector: String, changes: Sender<Change>) {
    let mut pause = Duration::from_millis(50);
    while !changes.is_closed() {
        match once(&client, &collection, &selector, &changes).await {
            Ok(()) => pause = Duration::from_millis(50),
            Err(error) => {
                tracing::debug!(%collection, %error, "watch");
                pause = (pause * 2).min(Duration::from_secs(2));
            }
        }
        tokio::time::sleep(pause).await;
    }
}

async fn once(client: &Client, collection: &str, selector: &str, changes: &Sender<Change>) -> Result<(), ClientError> {
    let mut list = client.get(&format!("{collection}?{selector}")).await?;
    let mut version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
    let items = match list["items"].take() {
        Value::Array(items) => items,
        _ => Vec::new(),
    };
    if changes.send(Change::All(items)).await.is_err() {
        return Ok(());
    }
    loop {
        let path = format!(
            "{collection}?{selector}&watch=true&allowWatchBookmarks=true&timeoutSeconds=300&resourceVersion={version}"
        );
        let mut watch = client.watch(&path).await?;
        loop {
            let event = tokio::select! {
                event = watch.next() => event?,
                () = changes.closed() => return Ok(()),
            };
            let Some((kind, object)) = event else { break };
            if let Some(newer) = object["metadata"]["resourceVersion"].as_str() {
                newer.clone_into(&mut version);
            }
            let change = match kind.as_str() {
                "ADDED" | "MODIFIED" => Change::Put(object),
                "DELETED" => Change::Gone(object),
                "BOOKMARK" => continue,
                // 410 Gone, most likely: list again.
                _ => return Ok(()),
            };
            if changes.send(change).await.is_err() {
                return Ok(());
            }
        }
    }
}
