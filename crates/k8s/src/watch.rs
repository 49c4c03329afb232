//! List and watch: the cluster's objects as a stream of changes.
//!
//! Per kind one task: list in pages, watch from there, list again when the server has forgotten our version. A table of
//! keys and hashes (no objects) turns all of that into differences, so a relist, a duplicate, a heartbeat that changes
//! nothing of interest or an event out of order costs the readers nothing. Nothing is reported gone but by the server's
//! own word: a deletion, or a complete list without it.

mod drive;
mod kinds;
mod table;

use crate::client::Client;
use crate::convert::Settings;
pub(crate) use drive::{Retry, with_query};
use std::hash::Hash;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use weft_model::intent::{Change, PolicyKind};

/// Batches that may wait for the reader before the watches stop reading.
const BATCHES_MAX: usize = 64;

/// A kind of objects and what shall be told about them.
pub trait Kind: Send + Sync + 'static {
    /// What names an object.
    type Key: Eq + Hash + Clone + Send + Sync;
    /// What is told.
    type News: Hash + Send + 'static;

    /// Objects per page of a list: large objects, small pages.
    const PAGE: u32;

    /// For logs.
    fn name(&self) -> &'static str;
    /// Path of the collection.
    fn path(&self) -> String;
    /// `name=value` of a field selector.
    fn field_selector(&self) -> Option<String> {
        None
    }
    /// Whether a server may not know the kind. That counts as having no objects of it, until it is known.
    fn may_be_missing(&self) -> bool {
        false
    }
    /// Reads one object.
    ///
    /// # Errors
    /// In words, when not even its name can be read; such an object is logged and skipped.
    fn read(&self, json: &str) -> Result<Seen<Self::Key, Self::News>, String>;
    /// What to tell when an object is gone.
    fn gone(&self, key: &Self::Key, uid: &str) -> Self::News;
    /// What to tell after the first complete list.
    fn synced(&self) -> Self::News;
}

/// One object, read.
#[derive(Debug)]
pub struct Seen<K, N> {
    /// Its key.
    pub key: K,
    /// Its UID; empty where a successor of the same name is as good.
    pub uid: String,
    /// Its version.
    pub version: String,
    /// What to tell; `None`: it exists, but cannot be used, and what was told before stands.
    pub news: Option<N>,
}

/// How CiliumEndpoints are watched.
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
    let (sender, receiver) = mpsc::channel(BATCHES_MAX);
    let start = Start { client, sender, stop };
    start.follow(kinds::Pods { node: node_name.to_owned() });
    start.follow(kinds::Namespaces);
    for kind in PolicyKind::ALL {
        start.follow(kinds::Policies { kind, settings });
    }
    start.follow(kinds::CidrGroups);
    start.follow(kinds::Services);
    start.follow(kinds::Backends);
    start.follow(kinds::LocalRedirects);
    start.follow(kinds::Identities);
    start.follow(kinds::Slices);
    start.follow(kinds::Nodes);
    let kind = kinds::Endpoints { required: endpoints.required };
    follow(client.clone(), kind, start.sender.clone(), endpoints.until.clone());
    receiver
}

struct Start<'a> {
    client: &'a Client,
    sender: mpsc::Sender<Vec<Change>>,
    stop: &'a CancellationToken,
}

impl Start<'_> {
    fn follow(&self, kind: impl Kind<News = Change>) {
        follow(self.client.clone(), kind, self.sender.clone(), self.stop.clone());
    }
}

/// Watches CiliumEndpoints, which the cluster must know, until `stop`; each is told as a slice of its own ([`crate::convert::endpoint_slice_name`]).
pub fn endpoints(client: &Client, sender: mpsc::Sender<Vec<Change>>, stop: CancellationToken) {
    follow(client.clone(), kinds::Endpoints { required: true }, sender, stop);
}

/// Watches one kind until `stop`, or until nobody listens any more.
pub fn follow<K: Kind>(
    client: Client,
    kind: K,
    sender: mpsc::Sender<Vec<K::News>>,
    stop: CancellationToken,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(drive::Drive::new(client, kind, sender).run(stop))
}
