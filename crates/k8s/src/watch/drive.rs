//! The loop of one watch: list, watch, and what to do when either fails.

use super::Kind;
use super::table::Table;
use crate::client::Client;
use crate::error::Error;
use futures::{FutureExt, Stream, StreamExt};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::hash::BuildHasher;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_util::codec::LinesCodecError;
use tokio_util::sync::CancellationToken;

/// A server ends a watch after this time; we ask anew from where it ended.
const WATCH_SECONDS: u64 = 290;
/// How much later we give up on a connection that has gone silent.
const SILENCE_SECONDS: u64 = 15;
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(20);
/// The longest pause between two looks for a kind that the server does not know.
const UNKNOWN_RETRY_MAX: Duration = Duration::from_secs(60);
/// How long a server must not know a kind before the objects that it had of it count as gone. A server that starts says
/// so of kinds that it has not loaded yet.
const UNKNOWN_PATIENCE: Duration = Duration::from_secs(300);
/// A watch shorter than this was no watch.
const BRIEF: Duration = Duration::from_secs(1);
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
struct Event<'a> {
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

/// How a watch ended.
enum End {
    /// Nobody listens any more.
    Unheard,
    /// In order: go on from the version reached.
    Closed,
    /// The server has forgotten our version: list again.
    Forgotten(String),
    /// The connection or the server failed: go on after a pause.
    Failed(String),
}

/// One watch.
pub(super) struct Drive<K: Kind> {
    client: Client,
    kind: K,
    sender: mpsc::Sender<Vec<K::News>>,
    table: Table<K>,
    synced: bool,
    retry: Retry,
    /// Where to watch from.
    version: String,
}

impl<K: Kind> Drive<K> {
    pub(super) fn new(client: Client, kind: K, sender: mpsc::Sender<Vec<K::News>>) -> Self {
        let version = String::new();
        Self { client, kind, sender, table: Table::new(), synced: false, retry: Retry::new(), version }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        // Dropping the work at an await point is safe: the table dies with it.
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.work() => {}
        }
    }

    async fn work(&mut self) {
        // Since when the server does not know the kind, and the pauses between looks for it.
        let mut unknown: Option<(Instant, Retry)> = None;
        loop {
            match self.list().await {
                Ok(true) => unknown = None,
                Ok(false) => return,
                Err(error) if error.is_not_found() && self.kind.may_be_missing() => {
                    let (since, retry) = unknown.get_or_insert_with(|| {
                        tracing::info!(kind = self.kind.name(), "the API server does not know this kind");
                        (Instant::now(), Retry::up_to(UNKNOWN_RETRY_MAX))
                    });
                    let pause = retry.next();
                    if (self.table.is_empty() || since.elapsed() >= UNKNOWN_PATIENCE) && !self.tell_none().await {
                        return;
                    }
                    tokio::time::sleep(pause).await;
                    continue;
                }
                Err(error) => {
                    self.pause("cannot list", &error.to_string()).await;
                    continue;
                }
            }
            loop {
                let began = Instant::now();
                match self.watch().await {
                    End::Unheard => return,
                    // A server that hangs up at once must not be asked in a tight loop.
                    End::Closed if began.elapsed() < BRIEF => self.pause("watch ended early", "closed at once").await,
                    End::Closed => {}
                    End::Forgotten(why) => {
                        self.pause("listing again", &why).await;
                        break;
                    }
                    End::Failed(why) => self.pause("watch interrupted", &why).await,
                }
            }
        }
    }

    /// Tells that there are no objects. False: nobody listens any more.
    async fn tell_none(&mut self) -> bool {
        self.table.begin_list();
        let mut news = Vec::new();
        self.end_list(&mut news);
        news.is_empty() || self.sender.send(news).await.is_ok()
    }

    fn end_list(&mut self, news: &mut Vec<K::News>) {
        self.table.end_list(&self.kind, news);
        if !self.synced {
            self.synced = true;
            news.push(self.kind.synced());
        }
    }

    async fn pause(&mut self, what: &str, why: &str) {
        let pause = self.retry.next();
        tracing::warn!(kind = self.kind.name(), retry_ms = pause.as_millis() as u64, why, "{what}");
        tokio::time::sleep(pause).await;
    }

    /// Reads all pages. False: nobody listens any more.
    async fn list(&mut self) -> Result<bool, Error> {
        self.table.begin_list();
        let mut more: Option<String> = None;
        loop {
            let mut query = vec![("limit", K::PAGE.to_string())];
            query.extend(self.kind.field_selector().map(|fields| ("fieldSelector", fields)));
            query.extend(more.take().map(|token| ("continue", token)));
            let path = with_query(&self.kind.path(), &query);
            let text = self.client.text(&path).await?;
            let page: Page<'_> =
                serde_json::from_str(&text).map_err(|source| Error::Answer { verb: "LIST", path, source })?;
            let mut news = Vec::new();
            for item in page.items.unwrap_or_default() {
                match self.kind.read(item.get()) {
                    Ok(seen) => self.table.listed(&self.kind, seen, &mut news),
                    Err(problem) => tracing::warn!(kind = self.kind.name(), problem, "unreadable object skipped"),
                }
            }
            more = page.metadata.more.filter(|token| !token.is_empty());
            if more.is_none() {
                self.version = page.metadata.resource_version;
                self.end_list(&mut news);
            }
            if !news.is_empty() && self.sender.send(news).await.is_err() {
                return Ok(false);
            }
            if more.is_none() {
                return Ok(true);
            }
        }
    }

    async fn watch(&mut self) -> End {
        let mut query = vec![
            ("watch", "1".to_owned()),
            ("allowWatchBookmarks", "true".to_owned()),
            ("timeoutSeconds", WATCH_SECONDS.to_string()),
            ("resourceVersion", self.version.clone()),
        ];
        query.extend(self.kind.field_selector().map(|fields| ("fieldSelector", fields)));
        let path = with_query(&self.kind.path(), &query);
        let mut lines = match self.client.lines(&path).await {
            Ok(lines) => lines,
            Err(error) if error.is_expired() => return End::Forgotten(error.to_string()),
            Err(error) => return End::Failed(error.to_string()),
        };
        let deadline = Instant::now() + Duration::from_secs(WATCH_SECONDS + SILENCE_SECONDS);
        loop {
            let first = match timeout_at(deadline, lines.next()).await {
                Err(_) => return End::Failed("the connection has gone silent".to_owned()),
                Ok(None) => return End::Closed,
                Ok(Some(line)) => line,
            };
            let (news, end) = self.batch(first, &mut lines);
            if !news.is_empty() && self.sender.send(news).await.is_err() {
                return End::Unheard;
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
    ) -> (Vec<K::News>, Option<End>) {
        let mut news = Vec::new();
        let mut line = first;
        loop {
            let end = match line {
                Ok(line) => self.event(&line, &mut news),
                Err(error) => Some(End::Failed(error.to_string())),
            };
            if end.is_some() || news.len() >= BATCH_MAX {
                return (news, end);
            }
            match lines.next().now_or_never() {
                None => return (news, None),
                Some(None) => return (news, Some(End::Closed)),
                Some(Some(next)) => line = next,
            }
        }
    }

    fn event(&mut self, line: &str, news: &mut Vec<K::News>) -> Option<End> {
        if line.trim().is_empty() {
            return None;
        }
        let event: Event<'_> = match serde_json::from_str(line) {
            Ok(event) => event,
            Err(error) => return Some(End::Forgotten(format!("unreadable event: {error}"))),
        };
        let json = event.object.get();
        match event.kind {
            "ADDED" | "MODIFIED" | "DELETED" => {
                self.retry.reset();
                match self.kind.read(json) {
                    Ok(seen) => {
                        self.version.clone_from(&seen.version);
                        match event.kind {
                            "DELETED" => self.table.deleted(&self.kind, &seen, news),
                            _ => self.table.modified(&self.kind, seen, news),
                        }
                    }
                    Err(problem) => tracing::warn!(kind = self.kind.name(), problem, "unreadable object skipped"),
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
                Some(End::Forgotten(why))
            }
            other => {
                tracing::debug!(kind = self.kind.name(), event = other, "unknown event skipped");
                None
            }
        }
    }
}

/// Path and query, encoded.
pub(crate) fn with_query(path: &str, query: &[(&str, String)]) -> String {
    let mut text = path.to_owned();
    for (n, (name, value)) in query.iter().enumerate() {
        text.push(if n == 0 { '?' } else { '&' });
        text.push_str(name);
        text.push('=');
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => text.push(char::from(byte)),
                other => {
                    text.push('%');
                    text.push(char::from_digit(u32::from(other >> 4), 16).unwrap_or('0').to_ascii_uppercase());
                    text.push(char::from_digit(u32::from(other & 15), 16).unwrap_or('0').to_ascii_uppercase());
                }
            }
        }
    }
    text
}

/// Growing pauses with a random part, so that a thousand agents do not come back at once.
pub(crate) struct Retry {
    pause: Duration,
    max: Duration,
    random: std::hash::RandomState,
    turn: u64,
}

impl Retry {
    pub(crate) fn new() -> Self {
        Self::up_to(RETRY_MAX)
    }

    fn up_to(max: Duration) -> Self {
        Self { pause: RETRY_FIRST, max, random: std::hash::RandomState::new(), turn: 0 }
    }

    /// Things work again.
    pub(crate) fn reset(&mut self) {
        self.pause = RETRY_FIRST;
    }

    /// Between half and all of the present pause, which doubles.
    pub(crate) fn next(&mut self) -> Duration {
        self.turn += 1;
        let half = self.pause / 2;
        let part = (self.random.hash_one(self.turn) % 1024) as u32;
        let pause = half + half * part / 1024;
        self.pause = (self.pause * 2).min(self.max);
        pause
    }
}
