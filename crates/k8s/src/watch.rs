//! List and watch: the cluster's objects as a stream of changes.
//!
//! Per kind one task: list in pages, watch from there, list again when the server has forgotten our version. A table of
//! keys and hashes (no objects) turns all of that into differences, so a relist, a duplicate, a heartbeat that changes
//! nothing of interest or an event out of order costs the receivers nothing.
//!
//! Nothing counts as gone but by the server's own word: a deletion, a complete list without it, or discovery documents
//! without its kind. A refusal (401, 403), an error, a timeout or a lone 404 is none: what was listed stays in force.

mod drive;
mod kinds;
mod table;

use crate::client::Client;
use crate::convert::Settings;
use crate::discovery::Resource;
use std::hash::Hash;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use weft_model::intent::{Change, Source, SourceProblem};

/// Batches that may wait for the receiver before the watches stop reading.
const BATCHES_MAX: usize = 64;

/// What it means when the server does not give a kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Absence {
    /// The cluster must serve the kind: without a complete list there is no `Synced`.
    Never,
    /// The cluster may not serve the kind, and then there are no objects. While it is forbidden, nobody knows which
    /// objects there are: there is no `Synced`.
    Confirmed,
    /// The same, but while it is forbidden only a feature is missing: it counts as empty, with a lasting problem.
    Tolerated,
}

/// How long a watch waits for what.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The server ends a watch after this time; the next one goes on from the version reached.
    pub watch: Duration,
    /// How much later a silent connection counts as dead.
    pub silence: Duration,
    /// Longest pause between two attempts to list or watch.
    pub retry_max: Duration,
    /// Longest pause between two attempts to list a kind that the server does not serve.
    pub not_served_retry_max: Duration,
    /// How long discovery must not have a kind, at every attempt, before objects that were listed count as gone.
    /// Deleting a CRD deletes its objects one by one first, which the watch reports; this is for deletions that it missed.
    pub not_served_confirm: Duration,
    /// How long requests must fail before that is reported as a problem. Refusals are reported at once.
    pub failing_report: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            watch: Duration::from_secs(290),
            silence: Duration::from_secs(15),
            retry_max: Duration::from_secs(20),
            not_served_retry_max: Duration::from_secs(60),
            not_served_confirm: Duration::from_secs(60),
            failing_report: Duration::from_secs(10),
        }
    }
}

/// A kind of objects and what shall be told about them.
pub trait Kind: Send + Sync + 'static {
    type Key: Eq + Hash + Clone + Send + Sync;
    type Event: Hash + Send + 'static;

    /// Objects per page of a list: large objects, small pages.
    const PAGE: u32;

    /// Path of the collection, such as `/apis/cilium.io/v2/ciliumnodes`.
    fn path(&self) -> &'static str;
    /// `name=value` of a field selector.
    fn field_selector(&self) -> Option<String> {
        None
    }
    /// Whether the server may not serve the kind.
    fn absence(&self) -> Absence {
        Absence::Never
    }
    /// Reads one object.
    ///
    /// # Errors
    /// In words, when not even its name can be read; such an object is logged and skipped.
    fn read(&self, json: &str) -> Result<Seen<Self::Key, Self::Event>, String>;
    /// What to tell when an object is gone.
    fn gone(&self, key: &Self::Key, uid: &str) -> Self::Event;
    /// What to tell after the first complete list.
    fn synced(&self) -> Self::Event;
    /// What to tell when the kind cannot be read any more, or can again (`None`). The log has it in any case.
    fn problem(&self, _problem: Option<SourceProblem>) -> Option<Self::Event> {
        None
    }
}

#[derive(Debug)]
pub struct Seen<K, N> {
    pub key: K,
    /// Its UID; empty where a successor of the same name is as good.
    pub uid: String,
    pub version: String,
    /// What to tell; `None`: it exists, but cannot be used, and what was told before stands.
    pub event: Option<N>,
}

#[derive(Clone, Copy, Debug)]
pub struct EndpointsWatch<'a> {
    /// Until when; it must end with everything else at the latest.
    pub until: &'a CancellationToken,
    /// The cluster must know the kind: as long as it does not, the source is not complete.
    pub required: bool,
}

/// Watches everything that the agent of `node_name` needs, until `stop`. Must be called within a runtime.
///
/// Every source first tells all that exists, then `Synced`, once; after that, changes. The reader sees each source's
/// changes in order. When the reader is slow, the watches wait; when it is gone, they end.
#[must_use]
pub fn start(
    client: &Client,
    node_name: &str,
    settings: Settings,
    endpoints: EndpointsWatch<'_>,
    stop: &CancellationToken,
) -> mpsc::Receiver<Vec<Change>> {
    start_with(client, node_name, settings, endpoints, stop, Timing::default())
}

/// [`start`] with other times.
#[must_use]
pub fn start_with(
    client: &Client,
    node_name: &str,
    settings: Settings,
    endpoints: EndpointsWatch<'_>,
    stop: &CancellationToken,
    timing: Timing,
) -> mpsc::Receiver<Vec<Change>> {
    let (sender, receiver) = mpsc::channel(BATCHES_MAX);
    kinds::each(node_name, settings, endpoints, stop, &mut Starter { client, timing, sender });
    receiver
}

struct Starter<'a> {
    client: &'a Client,
    timing: Timing,
    sender: mpsc::Sender<Vec<Change>>,
}

impl kinds::Visitor for Starter<'_> {
    fn visit(&mut self, kind: impl Kind<Event = Change>, stop: &CancellationToken) {
        let drive = drive::Drive::new(self.client.clone(), kind, self.sender.clone(), self.timing);
        tokio::spawn(drive.run(stop.clone()));
    }
}

/// What an agent lists and watches, and the source that tells of it.
#[must_use]
pub fn watched() -> Vec<(Source, Resource)> {
    struct Collector(Vec<(Source, Resource)>);
    impl kinds::Visitor for Collector {
        fn visit(&mut self, kind: impl Kind<Event = Change> + kinds::AgentKind, _stop: &CancellationToken) {
            self.0.push((kind.source(), Resource::of(Kind::path(&kind))));
        }
    }
    let (mut collector, stop) = (Collector(Vec::new()), CancellationToken::new());
    let endpoints = EndpointsWatch { until: &stop, required: false };
    kinds::each("", Settings::EVERYTHING, endpoints, &stop, &mut collector);
    collector.0
}

/// Watches CiliumEndpoints, which the cluster must know, until `stop`; each is told as a slice of its own ([`crate::convert::endpoint_slice_name`]).
pub fn endpoints(client: &Client, sender: mpsc::Sender<Vec<Change>>, stop: CancellationToken) {
    follow(client.clone(), kinds::Endpoints { required: true }, sender, stop);
}

/// Watches one kind until `stop`, or until nobody listens any more.
pub fn follow<K: Kind>(
    client: Client,
    kind: K,
    sender: mpsc::Sender<Vec<K::Event>>,
    stop: CancellationToken,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(drive::Drive::new(client, kind, sender, Timing::default()).run(stop))
}
