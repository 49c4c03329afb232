//! The loop of one watch: list, watch, and what to do when either fails.
//!
//! A failure never counts as an empty list. What was listed stays in force until the server says otherwise: by a deletion,
//! by a complete list, or because its discovery documents no longer have the kind.

use super::kind::{Absence, Kind, Timing};
use super::table::Table;
use crate::client::Client;
use crate::discovery::{self, Resource, Served};
use crate::error::Error;
use crate::list::with_query;
use crate::retry::Backoff;
use futures::{FutureExt, Stream, StreamExt};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_util::codec::LinesCodecError;
use tokio_util::sync::CancellationToken;
use weft_model::intent::SourceProblem;

/// A watch that ends sooner counts as failed: a server that hangs up at once must not be asked in a tight loop.
const WATCH_MIN: Duration = Duration::from_secs(1);
/// Changes per batch, at most.
const BATCH_MAX: usize = 256;

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(default)]
    metadata: PageMetadata,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PageMetadata {
    resource_version: String,
    #[serde(rename = "continue")]
    more: Option<String>,
}

#[derive(Deserialize)]
struct WatchEvent<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Head {
    metadata: HeadMetadata,
    code: u16,
    message: String,
    reason: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct HeadMetadata {
    resource_version: String,
}

enum End {
    ReceiverGone,
    /// In order: go on from the version reached.
    Closed,
    /// The version reached is of no use to the server: list again.
    Relist(String),
    /// The request was refused, or there was no answer.
    Refused(Error),
    /// The connection broke: go on after a pause.
    Broken(String),
}

/// The receiver is gone: the watch ends.
struct ReceiverGone;

/// Why a list is not complete.
enum ListFailed {
    ReceiverGone,
    Request(Error),
}

impl From<Error> for ListFailed {
    fn from(error: Error) -> Self {
        Self::Request(error)
    }
}

impl From<ReceiverGone> for ListFailed {
    fn from(_: ReceiverGone) -> Self {
        Self::ReceiverGone
    }
}

pub(super) struct Drive<K: Kind> {
    client: Client,
    kind: K,
    resource: Resource,
    timing: Timing,
    sender: mpsc::Sender<Vec<K::Event>>,
    table: Table<K>,
    /// `Synced` was sent.
    synced: bool,
    /// What exists is known: from a complete list, or since the kind is not served.
    listed: bool,
    /// Objects were lost with their kind.
    lost: bool,
    retry: Backoff,
    /// The same while the kind is not served.
    not_served_retry: Backoff,
    /// Since when discovery does not have the kind.
    not_served_since: Option<Instant>,
    /// Since when every request fails.
    failing_since: Option<Instant>,
    reported: Option<SourceProblem>,
    version: String,
}

impl<K: Kind> Drive<K> {
    pub(super) fn new(client: Client, kind: K, sender: mpsc::Sender<Vec<K::Event>>, timing: Timing) -> Self {
        Self {
            client,
            resource: Resource::of(kind.path()),
            kind,
            timing,
            sender,
            table: Table::new(),
            synced: false,
            listed: false,
            lost: false,
            retry: Backoff::up_to(timing.retry_max),
            not_served_retry: Backoff::up_to(timing.not_served_retry_max),
            not_served_since: None,
            failing_since: None,
            reported: None,
            version: String::new(),
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        // Dropping the work at an await point is safe: the table is dropped with it.
        tokio::select! {
            () = stop.cancelled() => {}
            _ = self.work() => {}
        }
    }

    async fn work(&mut self) -> Result<(), ReceiverGone> {
        loop {
            match self.list().await {
                Ok(()) => {}
                Err(ListFailed::ReceiverGone) => return Err(ReceiverGone),
                Err(ListFailed::Request(error)) => {
                    self.list_failed(&error).await?;
                    continue;
                }
            }
            self.works().await?;
            loop {
                let began = Instant::now();
                let end = self.watch().await;
                if began.elapsed() >= WATCH_MIN {
                    self.retry.reset();
                }
                match end {
                    End::ReceiverGone => return Err(ReceiverGone),
                    End::Closed if began.elapsed() < WATCH_MIN => self.pause("watch", "closed at once").await,
                    End::Closed => {}
                    End::Relist(why) => {
                        self.pause("watch, listing again", &why).await;
                        break;
                    }
                    // Only a list tells whether the kind is still served.
                    End::Refused(error) if error.is_not_found() => {
                        self.pause("watch, listing again", &error.to_string()).await;
                        break;
                    }
                    End::Refused(error) => self.failed("watch", &error).await?,
                    End::Broken(why) => self.pause("watch", &why).await,
                }
            }
        }
    }

    /// Classifies why the list failed, reports it, and waits for the next attempt.
    async fn list_failed(&mut self, error: &Error) -> Result<(), ReceiverGone> {
        if error.is_not_found() && self.kind.absence() != Absence::Never {
            let unconfirmed = match discovery::served(&self.client, &self.resource).await {
                Served::No => return self.not_served().await,
                Served::Yes => format!("cannot list {}: 404, though discovery has the kind", self.resource),
                Served::Unknown(why) => {
                    format!("cannot list {}: 404, and discovery does not confirm it: {why}", self.resource)
                }
            };
            self.not_served_since = None;
            self.report(Some(unconfirmed.clone())).await?;
            self.pause("list", &unconfirmed).await;
            return Ok(());
        }
        self.not_served_since = None;
        self.failed("list", error).await
    }

    /// Discovery does not have the kind. That is no problem if it never had objects; otherwise they stay in force until
    /// discovery has said so for [`Timing::not_served_confirm`].
    async fn not_served(&mut self) -> Result<(), ReceiverGone> {
        self.failing_since = None;
        let first = self.not_served_since.is_none();
        let since = *self.not_served_since.get_or_insert_with(Instant::now);
        if first {
            self.not_served_retry.reset();
        }
        let objects = self.table.len();
        if objects == 0 {
            if first {
                tracing::info!(resource = %self.resource, "the API server does not serve this kind: it counts as empty");
            }
            // Objects that were lost stay a problem until the kind can be listed again.
            if !self.lost {
                self.report(None).await?;
            }
            self.listed = true;
            self.complete().await?;
        } else if since.elapsed() >= self.timing.not_served_confirm {
            let problem = format!(
                "the API server no longer serves {}: its {objects} objects are no longer in force (was the CRD deleted?)",
                self.resource
            );
            tracing::error!("{problem}");
            self.lost = true;
            self.report(Some(problem)).await?;
            self.complete().await?;
        } else {
            let problem = format!(
                "cannot list {}: the API server no longer serves the kind; its {objects} objects stay in force for now",
                self.resource
            );
            if first {
                tracing::warn!("{problem}");
            }
            self.report(Some(problem)).await?;
        }
        tokio::time::sleep(self.not_served_retry.next()).await;
        Ok(())
    }

    /// A request failed: reports it and waits for the next attempt.
    async fn failed(&mut self, verb: &str, error: &Error) -> Result<(), ReceiverGone> {
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        let resource = self.resource;
        let problem = if error.is_forbidden() {
            format!(
                "cannot {verb} {resource}: {error}; expected a role that grants verbs [list, watch] on resources [{}] of \
                 apiGroups [{:?}], as in deploy/rbac.yaml",
                resource.plural, resource.group
            )
        } else if error.is_not_found() {
            format!("cannot {verb} {resource}: {error}; expected the kind to be served (for custom kinds: deploy/crds)")
        } else {
            format!("cannot {verb} {resource}: {error}")
        };
        if matches!(error.code(), Some(401 | 403 | 404)) || since.elapsed() >= self.timing.failing_report {
            self.report(Some(problem.clone())).await?;
        }
        // After the problem: who hears of no objects must know by then that there may be some.
        if error.is_forbidden() && self.kind.absence() == Absence::Tolerated && !self.synced {
            self.complete().await?;
        }
        let pause = self.retry.next().max(error.retry_after().unwrap_or_default());
        tracing::warn!(%resource, retry_ms = pause.as_millis() as u64, problem, "{verb} failed, trying again");
        tokio::time::sleep(pause).await;
        Ok(())
    }

    async fn works(&mut self) -> Result<(), ReceiverGone> {
        self.failing_since = None;
        self.not_served_since = None;
        self.lost = false;
        self.report(None).await
    }

    /// Sends what keeps the kind from being read, if it is something else than before.
    async fn report(&mut self, problem: Option<String>) -> Result<(), ReceiverGone> {
        let problem = problem.map(|text| SourceProblem { text, listed: self.listed });
        if problem == self.reported {
            return Ok(());
        }
        self.reported.clone_from(&problem);
        match self.kind.problem(problem) {
            Some(event) => self.send(vec![event]).await,
            None => Ok(()),
        }
    }

    async fn complete(&mut self) -> Result<(), ReceiverGone> {
        self.table.begin_list();
        let mut events = Vec::new();
        self.end_list(&mut events);
        self.send(events).await
    }

    async fn send(&self, events: Vec<K::Event>) -> Result<(), ReceiverGone> {
        if events.is_empty() {
            return Ok(());
        }
        self.sender.send(events).await.map_err(|_| ReceiverGone)
    }

    fn end_list(&mut self, events: &mut Vec<K::Event>) {
        self.table.end_list(&self.kind, events);
        if !self.synced {
            self.synced = true;
            events.push(self.kind.synced());
        }
    }

    async fn pause(&mut self, verb: &str, why: &str) {
        let pause = self.retry.next();
        tracing::warn!(resource = %self.resource, retry_ms = pause.as_millis() as u64, why, "{verb} interrupted");
        tokio::time::sleep(pause).await;
    }

    async fn list(&mut self) -> Result<(), ListFailed> {
        self.table.begin_list();
        let mut more: Option<String> = None;
        loop {
            let mut query = vec![("limit", K::PAGE.to_string())];
            query.extend(self.kind.field_selector().map(|fields| ("fieldSelector", fields)));
            query.extend(more.take().map(|token| ("continue", token)));
            let path = with_query(self.kind.path(), &query);
            let text = self.client.text(&path).await?;
            let page: Page<'_> =
                serde_json::from_str(&text).map_err(|source| Error::Answer { verb: "LIST", path, source })?;
            let mut events = Vec::new();
            for item in page.items.unwrap_or_default() {
                match self.kind.read(item.get()) {
                    Ok(seen) => self.table.listed(&self.kind, seen, &mut events),
                    Err(problem) => tracing::warn!(resource = %self.resource, problem, "unreadable object skipped"),
                }
            }
            more = page.metadata.more.filter(|token| !token.is_empty());
            if more.is_none() {
                self.version = page.metadata.resource_version;
                self.listed = true;
                self.end_list(&mut events);
            }
            self.send(events).await?;
            if more.is_none() {
                return Ok(());
            }
        }
    }

    async fn watch(&mut self) -> End {
        let mut query = vec![
            ("watch", "1".to_owned()),
            ("allowWatchBookmarks", "true".to_owned()),
            ("timeoutSeconds", self.timing.watch.as_secs().max(1).to_string()),
            ("resourceVersion", self.version.clone()),
        ];
        query.extend(self.kind.field_selector().map(|fields| ("fieldSelector", fields)));
        let path = with_query(self.kind.path(), &query);
        let mut lines = match self.client.lines(&path).await {
            Ok(lines) => lines,
            Err(error) if error.is_expired() => return End::Relist(error.to_string()),
            Err(error) => return End::Refused(error),
        };
        if self.works().await.is_err() {
            return End::ReceiverGone;
        }
        let deadline = Instant::now() + self.timing.watch + self.timing.silence;
        loop {
            let first = match timeout_at(deadline, lines.next()).await {
                Err(_) => return End::Broken("the connection has gone silent".to_owned()),
                Ok(None) => return End::Closed,
                Ok(Some(line)) => line,
            };
            let (events, end) = self.batch(first, &mut lines);
            if self.send(events).await.is_err() {
                return End::ReceiverGone;
            }
            if let Some(end) = end {
                return end;
            }
        }
    }

    /// One line and all that have come in with it.
    fn batch(
        &mut self,
        first: Result<String, LinesCodecError>,
        lines: &mut (impl Stream<Item = Result<String, LinesCodecError>> + Unpin),
    ) -> (Vec<K::Event>, Option<End>) {
        let mut events = Vec::new();
        let mut line = first;
        loop {
            let end = match line {
                Ok(line) => self.event(&line, &mut events),
                Err(error) => Some(End::Broken(error.to_string())),
            };
            if end.is_some() || events.len() >= BATCH_MAX {
                return (events, end);
            }
            match lines.next().now_or_never() {
                None => return (events, None),
                Some(None) => return (events, Some(End::Closed)),
                Some(Some(next)) => line = next,
            }
        }
    }

    fn event(&mut self, line: &str, events: &mut Vec<K::Event>) -> Option<End> {
        if line.trim().is_empty() {
            return None;
        }
        let event: WatchEvent<'_> = match serde_json::from_str(line) {
            Ok(event) => event,
            Err(error) => return Some(End::Relist(format!("unreadable event: {error}"))),
        };
        let json = event.object.get();
        match event.kind {
            "ADDED" | "MODIFIED" | "DELETED" => {
                self.retry.reset();
                match self.kind.read(json) {
                    Ok(seen) => {
                        self.version.clone_from(&seen.version);
                        match event.kind {
                            "DELETED" => self.table.deleted(&self.kind, &seen, events),
                            _ => self.table.modified(&self.kind, seen, events),
                        }
                    }
                    Err(problem) => tracing::warn!(resource = %self.resource, problem, "unreadable object skipped"),
                }
                None
            }
            "BOOKMARK" => {
                self.retry.reset();
                let head: Head = serde_json::from_str(json).unwrap_or_default();
                if !head.metadata.resource_version.is_empty() {
                    self.version = head.metadata.resource_version;
                }
                None
            }
            "ERROR" => {
                let head: Head = serde_json::from_str(json).unwrap_or_default();
                let why = format!("{} ({} {})", head.message, head.code, head.reason);
                // Whatever it is: only a fresh list is certain to lead out of it.
                Some(End::Relist(why))
            }
            other => {
                tracing::debug!(resource = %self.resource, event = other, "unknown event skipped");
                None
            }
        }
    }
}
