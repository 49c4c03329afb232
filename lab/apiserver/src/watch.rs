//! Watch: the changes of a collection, as a client's selectors see them.

use super::api::{Api, List, ListOptions};
use super::error::ApiError;
use super::request::Form;
use super::resource::Resource;
use super::response::{Body, Chunks, chunked};
use super::store::{Compacted, Effect, Event, Stored, Topic};
use super::{api, table};
use bytes::Bytes;
use http::Response;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Time between bookmarks, as in known API servers.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
/// A watch without `timeoutSeconds` ends after this.
const TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// Lines that go out as one part of the answer, in bytes.
const PART_BYTES: usize = 16 << 10;
/// Events read from the history in one go.
const BATCH_MAX: usize = 500;

/// What is watched, and how it is told.
#[derive(Debug)]
pub struct Request {
    /// The collection.
    pub resource: Arc<Resource>,
    /// Version in which objects are told.
    pub version: String,
    /// Namespace; empty for all.
    pub namespace: String,
    /// By labels and fields.
    pub selection: ListOptions,
    /// `resourceVersion` of the request.
    pub from: String,
    /// Whether bookmarks are understood.
    pub bookmarks: bool,
    /// Whether the present objects come first, with a bookmark behind them.
    pub initial_events: bool,
    /// When the watch ends.
    pub timeout: Option<Duration>,
    /// Objects, or rows of tables.
    pub form: Form,
}

/// Begins a watch.
///
/// # Errors
/// That it cannot begin there.
pub fn begin(api: &Api, request: Request, stop: CancellationToken) -> Result<Response<Body>, ApiError> {
    let from =
        match request.from.as_str() {
            "" | "0" => None,
            text => Some(text.parse::<u64>().map_err(|_| {
                ApiError::bad_request(format!("query resourceVersion: {text:?}: expected a whole number"))
            })?),
        };
    // Without a revision the present objects come first; the list and the revision belong together.
    let (present, revision) = match from {
        Some(revision) if !request.initial_events => (Vec::new(), revision),
        _ => {
            let List { objects, revision, .. } = api.list(&request.resource, &request.namespace, &request.selection)?;
            (objects, revision)
        }
    };
    let (chunks, response) = chunked("application/json");
    let watcher = Watcher { api: api.clone(), request, chunks, columns_told: false };
    // The task ends with the client, the timeout, or the server.
    tokio::spawn(async move {
        tokio::select! {
            () = watcher.run(present, revision) => {}
            () = stop.cancelled() => {}
        }
    });
    Ok(response)
}

struct Watcher {
    api: Api,
    request: Request,
    chunks: Chunks,
    /// A table's columns are told once.
    columns_told: bool,
}

impl Watcher {
    async fn run(mut self, present: Vec<Arc<Stored>>, revision: u64) {
        let end = tokio::time::Instant::now() + self.request.timeout.unwrap_or(TIMEOUT);
        for object in present {
            let line = self.told("ADDED", &object.value);
            if self.send(&[line]).await.is_err() {
                return;
            }
        }
        if self.request.initial_events && self.request.bookmarks && self.bookmark(revision, true).await.is_err() {
            return;
        }
        let mut next_bookmark = tokio::time::Instant::now() + BOOKMARK_INTERVAL;
        let mut follower = match self.api.store().follow(self.topic(), revision) {
            Ok(follower) => follower,
            Err(gone) => return self.expired(revision, gone).await,
        };
        loop {
            match follower.next(BATCH_MAX) {
                Err(gone) => return self.expired(follower.reached(), gone).await,
                Ok(events) => {
                    let full = events.len() >= BATCH_MAX;
                    if self.events(&events).await.is_err() {
                        return;
                    }
                    if full {
                        continue;
                    }
                }
            }
            tokio::select! {
                open = follower.changed() => if !open { return },
                () = self.chunks.closed() => return,
                () = tokio::time::sleep_until(end) => return,
                () = tokio::time::sleep_until(next_bookmark), if self.request.bookmarks => {
                    next_bookmark = tokio::time::Instant::now() + BOOKMARK_INTERVAL;
                    // Only after all that was there before it.
                    let told = match follower.next(BATCH_MAX) {
                        Ok(events) if events.is_empty() => self.bookmark(follower.reached(), false).await,
                        Ok(events) => self.events(&events).await,
                        Err(gone) => return self.expired(follower.reached(), gone).await,
                    };
                    if told.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// What the client's selectors allow to follow: as little as possible.
    fn topic(&self) -> Topic {
        let resource = self.request.resource.group_resource();
        match self.request.selection.fields.value_of("spec.nodeName") {
            Some(node) if *resource == *"pods" && !node.is_empty() => Topic::PodsOf(node.into()),
            _ => Topic::Resource(Arc::from(&*resource)),
        }
    }

    async fn expired(&self, revision: u64, gone: Compacted) {
        let error = ApiError::expired(format!("too old resource version: {revision} ({})", gone.oldest));
        let _ = self.send(&[line(&json!({"type": "ERROR", "object": error.status()}))]).await;
    }

    /// What waits together goes out together: under load the cost of a part of the answer is shared by many changes.
    async fn events(&mut self, events: &[Arc<Event>]) -> Result<(), Gone> {
        let mut lines = Vec::with_capacity(events.len());
        for event in events {
            if self.request.namespace.is_empty() || event.key.namespace == self.request.namespace {
                lines.extend(self.event(event));
            }
        }
        self.send(&lines).await
    }

    async fn send(&self, lines: &[Bytes]) -> Result<(), Gone> {
        let mut rest = lines;
        while let Some(first) = rest.first() {
            let mut size = first.len();
            let more = rest[1..].iter().take_while(|line| {
                size += line.len();
                size <= PART_BYTES
            });
            let (part, behind) = rest.split_at(1 + more.count());
            // A single line is shared with all who are told it.
            let bytes = if part.len() == 1 { first.clone() } else { Bytes::from(part.concat()) };
            self.chunks.send(bytes).await.map_err(|_| Gone)?;
            rest = behind;
        }
        Ok(())
    }

    /// Tells a change as it looks through the selectors.
    fn event(&mut self, event: &Event) -> Option<Bytes> {
        let selection = &self.request.selection;
        let fits = |object: &Value| selection.labels.matches(object) && selection.fields.matches(object);
        let before = event.previous.as_ref().is_some_and(|p| fits(&p.value));
        let after = event.effect != Effect::Deleted && fits(&event.object.value);
        match (before, after) {
            (false, true) => Some(self.share(event, Effect::Added)),
            (true, true) => Some(self.share(event, Effect::Modified)),
            (true, false) if event.effect == Effect::Deleted => Some(self.share(event, Effect::Deleted)),
            (true, false) => {
                // The client is told the state that it knew, under the revision of the change.
                let mut last = event.previous.as_ref().map_or(Value::Null, |p| p.value.clone());
                super::object::set(&mut last, &["metadata"], "resourceVersion", event.revision.to_string());
                Some(self.told("DELETED", &last))
            }
            (false, false) => None,
        }
    }

    /// Tells a change in the form that most watchers want, which is written out once for all of them.
    fn share(&mut self, event: &Event, effect: Effect) -> Bytes {
        let resource = &self.request.resource;
        let object = &event.object.value;
        let plain = matches!(self.request.form, Form::Plain | Form::Aggregated)
            && api::in_version(resource, &self.request.version, object).is_none();
        if plain {
            return event.line(effect);
        }
        let kind = match effect {
            Effect::Added => "ADDED",
            Effect::Modified => "MODIFIED",
            Effect::Deleted => "DELETED",
        };
        self.told(kind, object)
    }

    fn told(&mut self, kind: &str, object: &Value) -> Bytes {
        let resource = &self.request.resource;
        let shown = api::in_version(resource, &self.request.version, object);
        let object = shown.as_ref().unwrap_or(object);
        let event = match self.request.form {
            Form::Table => {
                let mut table = table::render(resource, &self.request.version, &[object], "");
                if self.columns_told {
                    table["columnDefinitions"] = json!([]);
                }
                self.columns_told = true;
                json!({"type": kind, "object": table})
            }
            Form::Metadata => json!({"type": kind, "object": super::handler::metadata_only(object)}),
            Form::Plain | Form::Aggregated => json!({"type": kind, "object": object}),
        };
        line(&event)
    }

    async fn bookmark(&self, revision: u64, initial: bool) -> Result<(), Gone> {
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let resource = &self.request.resource;
        let (kind, version) = match self.request.form {
            Form::Metadata => ("PartialObjectMetadata".to_owned(), "meta.k8s.io/v1".to_owned()),
            Form::Table => ("Table".to_owned(), "meta.k8s.io/v1".to_owned()),
            _ => (resource.kind.clone(), resource.api_version(&self.request.version)),
        };
        let bookmark =
            json!({"type": "BOOKMARK", "object": {"kind": kind, "apiVersion": version, "metadata": metadata}});
        self.send(&[line(&bookmark)]).await
    }
}

fn line(event: &Value) -> Bytes {
    let mut text = event.to_string();
    text.push('\n');
    Bytes::from(text)
}

/// The client went away.
struct Gone;
