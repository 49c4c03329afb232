//! List and watch: the cluster's objects as a stream of changes.
//!
//! Per kind one task: list in pages, watch from there, list again when the server has forgotten our version. A table of
//! keys and hashes (no objects) turns all of that into differences, so a relist, a duplicate, a heartbeat that changes
//! nothing of interest or an event out of order costs the receivers nothing.
//!
//! Nothing counts as gone but by the server's own word: a deletion, a complete list without it, or discovery documents
//! without its kind. A refusal (401, 403), an error, a timeout or a lone 404 is none: what was listed stays in force.

mod drive;
mod kind;
mod kinds;
mod table;

use crate::client::Client;
use crate::convert::Settings;
use crate::discovery::Resource;
pub use crate::watch::kind::{Absence, EndpointsWatch, Kind, Seen, Timing};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use weft_model::intent::{Change, Source};

/// Batches that may wait for the receiver before the watches stop reading.
const BATCHES_MAX: usize = 64;

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
