//! The writer itself: what watchers deliver (`apply`), what is worked out, written and published (`flush`).

use super::{identities, ipam};
use crate::ports::Kernel;
use crate::reconcile::{Context, Reconciler as _, Reconcilers, Stale};
use crate::settings::Settings;
use crate::snapshot::{Progress, Snapshot, Waiting};
use crate::state::StateDir;
use crate::tables::Tables;
use arc_swap::ArcSwap;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use weft_datapath::NodeSettings;
use weft_model::desired::DataplaneError;
use weft_model::id::{EndpointId, Revision};
use weft_model::intent::{Change, IdentityLabels, Namespace, ObjectName, Pod, Source};

/// Passes that follow each other because one made room for the next; the rest waits for the next change.
const ROUNDS_MAX: usize = 8;

/// Wakes the tasks that have work to do.
#[derive(Debug, Default)]
pub struct Signals {
    /// The endpoints to announce have changed.
    pub endpoints: Notify,
    /// Nodes have changed: for the set-up of the machine.
    pub nodes: Notify,
    /// This node has changed: for its objects in the API.
    pub nodes_announce: Notify,
    /// Label sets wait for an identity.
    pub identities: Notify,
    /// Demand for addresses has changed.
    pub addresses: Notify,
    /// There may be an address for an ADD that found none.
    pub blocks: Notify,
}

/// What a lasting problem that is no object's is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Part {
    /// The machine's device, sysctls and routes.
    Node,
    /// This node's blocks of addresses.
    Blocks,
    /// The file with them.
    PodCidrs,
    /// What the operator says of this node's demand for addresses.
    Addresses,
    /// Identities of label sets.
    Identities,
    /// This node's objects in the API.
    NodeObject,
    /// This node's CiliumEndpointSlices.
    EndpointSlices,
    /// This node's CiliumEndpoints.
    EndpointObjects,
    /// The file or the programs of an endpoint.
    Endpoint(EndpointId),
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Node => "node",
            Self::Blocks => "blocks",
            Self::PodCidrs => "pod-cidrs",
            Self::Addresses => "addresses",
            Self::Identities => "identities",
            Self::NodeObject => "node object",
            Self::EndpointSlices => "endpoint slices",
            Self::EndpointObjects => "endpoint objects",
            Self::Endpoint(id) => return write!(f, "endpoint {id}"),
        })
    }
}

/// See the module.
pub struct Writer {
    pub(super) settings: Arc<Settings>,
    pub(super) state: StateDir,
    pub(super) kernel: Box<dyn Kernel>,
    pub(crate) now: Duration,
    pub(super) tables: Tables,
    pub(super) reconcilers: Reconcilers,
    /// Flows that must decide again once everything is written.
    pub(super) stale: Stale,
    pub(super) own_pool: ipam::Addresses,
    pub(super) identities: identities::Lifecycle,
    /// Slices that came before all nodes were known.
    pub(super) deferred: Vec<Change>,
    /// Restored endpoints were compared with their pods.
    pub(super) confirmed: bool,
    /// What a former agent left was compared with what is wanted, and the rest removed.
    pub(super) pruned: bool,
    /// The machine is set up (device, sysctls, routes).
    pub(super) node_ready: bool,
    pub(super) problems: BTreeMap<Part, String>,
    pub(super) revision: u64,
    /// The tables have changed since the last pass.
    pub(super) dirty: bool,
    /// Something that readers see has changed since the last snapshot.
    pub(super) unpublished: bool,
    /// With the next snapshot there are endpoints to announce.
    pub(super) announce: bool,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) published: Arc<ArcSwap<Snapshot>>,
    pub(super) signals: Arc<Signals>,
}

impl Writer {
    /// Empty tables over a kernel that may hold what a former agent left.
    #[must_use]
    pub fn new(settings: Settings, state: StateDir, kernel: Box<dyn Kernel>) -> Self {
        let mut tables = Tables::new(&settings.node_name);
        let reconcilers = Reconcilers::new(&settings, &mut tables);
        let own_pool = ipam::Addresses::new(&settings.ipam);
        tables.own_blocks = own_pool.exchanges_blocks().then(Vec::new);
        let settings = Arc::new(settings);
        Self {
            published: Arc::new(ArcSwap::from_pointee(Snapshot::empty(settings.clone()))),
            settings,
            state,
            kernel,
            now: Duration::ZERO,
            tables,
            reconcilers,
            stale: Stale::default(),
            own_pool,
            identities: identities::Lifecycle::default(),
            deferred: Vec::new(),
            confirmed: false,
            pruned: false,
            node_ready: false,
            problems: BTreeMap::new(),
            revision: 0,
            dirty: false,
            unpublished: true,
            announce: false,
            progress: watch::Sender::new(Progress::default()),
            signals: Arc::new(Signals::default()),
        }
    }

    /// To wait for facts.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// To wait for work.
    #[must_use]
    pub fn signals(&self) -> Arc<Signals> {
        self.signals.clone()
    }

    /// What was published last.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.published.load_full()
    }

    /// Where snapshots are published.
    #[must_use]
    pub fn published(&self) -> Arc<ArcSwap<Snapshot>> {
        self.published.clone()
    }

    /// What is counted of Services.
    #[must_use]
    pub fn service_metrics(&self) -> crate::metrics::Services {
        self.reconcilers.services.metrics()
    }

    /// Backends that are gone are sent there from now on.
    pub fn send_gone_backends(&mut self, to: std::sync::mpsc::Sender<crate::reconcile::services::Gone>) {
        self.reconcilers.services.send_gone_backends(to);
    }

    /// Monotonic time since any fixed moment.
    pub fn set_time(&mut self, now: Duration) {
        self.now = now;
    }

    /// Applies what a watcher delivered.
    pub fn apply(&mut self, changes: Vec<Change>) {
        for change in changes {
            // Which endpoints of a slice are this node's own is known once the nodes are.
            let nodes_known = !self.tables.missing.contains(&Source::Nodes);
            if matches!(change, Change::Slice(_) | Change::SliceGone(_)) && !nodes_known {
                self.deferred.push(change);
                continue;
            }
            let completes_nodes = change == Change::Synced(Source::Nodes);
            self.apply_one(change);
            if completes_nodes {
                for change in std::mem::take(&mut self.deferred) {
                    self.apply_one(change);
                }
            }
        }
        self.reconcilers.routes.settle(&self.tables, &self.settings);
        self.touch();
    }

    fn apply_one(&mut self, change: Change) {
        self.reconcilers.observe(&change);
        self.tables.apply(&change);
        match change {
            Change::Pod(pod) => {
                self.relabel(|record| record.pod == pod.name);
                self.signals.addresses.notify_one();
            }
            Change::PodGone(..) => self.signals.addresses.notify_one(),
            Change::Namespace(namespace) => self.relabel(|record| record.pod.namespace == namespace.name),
            Change::Identity(IdentityLabels { identity, labels, unused }) => {
                self.put_identity(identity, labels, unused);
            }
            Change::IdentityGone(identity) => self.remove_identity(identity),
            Change::Slice(slice) => {
                let own = self.tables.own_node().cloned();
                let is_own = |node: &IpAddr| own.as_ref().is_some_and(|own| own.addresses.contains(node));
                self.tables.addresses.set_slice(&slice, self.now, |endpoint| is_own(&endpoint.node));
            }
            Change::SliceGone(name) => self.tables.addresses.remove_slice(&name, self.now),
            Change::Node(node) => self.set_node(node),
            Change::NodeGone(name) => self.remove_node(&name),
            _ => {}
        }
    }

    /// The tables have changed: a new revision, to be put in force by the next flush.
    pub(super) fn touch(&mut self) {
        self.revision += 1;
        self.dirty = true;
    }

    /// Reconcilers, and what they work with.
    pub(super) fn parts(&mut self) -> (&mut Reconcilers, Context<'_>) {
        let cx = Context {
            settings: &self.settings,
            tables: &mut self.tables,
            kernel: &mut *self.kernel,
            stale: &mut self.stale,
            now: self.now,
            pruned: self.pruned,
            policies_written: true,
            endpoints_switched: true,
        };
        (&mut self.reconcilers, cx)
    }

    /// Works out what the kernel shall hold, writes what differs, and publishes a snapshot. Answers when it wants to be
    /// called again.
    pub fn flush(&mut self) -> Option<Duration> {
        let lingering = self.tables.addresses.expire(self.now);
        let orphans = self.drop_orphans();
        let is_due = self.reconcilers.next_try().is_some_and(|at| at <= self.now);
        // Flows may have to decide again though no table has changed: the node was configured anew.
        if self.dirty || is_due || self.tables.addresses.has_changed() || self.stale != Stale::default() {
            self.pass();
        }
        self.publish();
        [self.reconcilers.next_try(), lingering, orphans].into_iter().flatten().min()
    }

    /// Whether a failure is due to be tried again.
    #[must_use]
    pub fn has_due_retry(&self) -> bool {
        self.reconcilers.next_try().is_some_and(|at| at <= self.now)
    }

    /// Everything, in the order of the rules above. Nothing is written before the sources are complete: half the
    /// policies of a cluster are another policy. What is in the kernel stays in force until then.
    pub(super) fn pass(&mut self) {
        self.dirty = false;
        self.unpublished = true;
        if !self.tables.all_synced() {
            let (reconcilers, mut cx) = self.parts();
            if *cx.stale != Stale::default() {
                reconcilers.policy.finish(&mut cx);
            }
            return;
        }
        if !self.confirmed {
            self.confirm_restored();
            self.confirmed = true;
        }
        let (reconcilers, mut cx) = self.parts();
        reconcilers.pass(&mut cx);
        // What was refused for want of room may fit now.
        for _ in 0..ROUNDS_MAX {
            if !reconcilers.are_settled() || !reconcilers.want_another_pass() {
                break;
            }
            reconcilers.pass(&mut cx);
        }
        if !self.pruned && self.reconcilers.are_settled() {
            let (reconcilers, mut cx) = self.parts();
            cx.pruned = true;
            reconcilers.prune(&mut cx);
            self.pruned = self.reconcilers.are_settled();
        }
        let revision = Revision(self.revision);
        self.reconcilers.all_mut().into_iter().for_each(|reconciler| reconciler.rows_mut().end_pass(revision));
    }

    /// Publishes what readers see, if it has changed.
    fn publish(&mut self) {
        let announce = std::mem::take(&mut self.announce);
        if !std::mem::take(&mut self.unpublished) && !announce {
            return;
        }
        let complete = self.tables.all_synced() && self.reconcilers.are_settled();
        let before = self.progress.borrow().in_force;
        // Without the sources there is nothing that could be missing in the kernel.
        let in_force = if complete || !self.tables.all_synced() { self.revision } else { before };
        let progress = Progress { revision: self.revision, in_force, ready: self.is_ready() };
        let (policy, services) = (&self.reconcilers.policy, &self.reconcilers.services);
        self.published.store(Arc::new(Snapshot {
            progress: progress.clone(),
            settings: self.settings.clone(),
            waiting_for: self.waiting_for(),
            problems: self.problem_lines(),
            reconcilers: self.reconcilers.all().map(|reconciler| (reconciler.name(), reconciler.rows().progress())),
            announces: self.pruned,
            endpoints: self.tables.endpoints.snapshot(),
            addresses: self.tables.addresses.snapshot(),
            nodes: self.tables.nodes.snapshot(),
            identities: self.tables.identities.snapshot(),
            orphaned: self.orphaned(),
            policy: policy.view(),
            services: services.view(),
            routes: self.reconcilers.routes.view(),
            usage: self.own_pool.usage(),
        }));
        // Tasks that wait for progress, or for endpoints to announce, find the snapshot that belongs to it.
        self.progress.send_replace(progress);
        if announce {
            self.signals.endpoints.notify_one();
        }
    }

    fn waiting_for(&self) -> Vec<Waiting> {
        let problem = |source: &Source| self.tables.source_problems.get(source).cloned();
        let mut missing: Vec<Waiting> =
            self.tables.missing.iter().map(|source| Waiting::Source(*source, problem(source))).collect();
        missing.extend(self.missing_families().into_iter().map(Waiting::Prefix));
        if !self.node_ready {
            missing.push(Waiting::Node);
        }
        if self.tables.all_synced() && !self.pruned {
            missing.push(Waiting::FirstPass);
        }
        missing
    }

    /// Problems that are no object's.
    fn problem_lines(&self) -> Vec<String> {
        let failures = self.reconcilers.all().into_iter().filter_map(|reconciler| {
            let failure = reconciler.rows().failure()?;
            Some(format!("{}: {failure}", reconciler.name()))
        });
        let host = self.reconcilers.endpoints.host_problem().map(|problem| format!("node policy: {problem}"));
        let parts = self.problems.iter().map(|(part, problem)| format!("{part}: {problem}"));
        let sources = self.tables.source_problems.iter().map(|(source, problem)| format!("{source}: {problem}"));
        failures.chain(host).chain(parts).chain(sources).collect()
    }

    /// Writes what the programs must know of the node.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn configure(&mut self, settings: &NodeSettings) -> Result<(), DataplaneError> {
        self.kernel.configure(settings)?;
        // What was decided under the old configuration is decided again.
        self.stale.node = true;
        Ok(())
    }

    /// The machine is set up (or not any more).
    pub fn set_node_ready(&mut self, problem: Option<String>) {
        self.node_ready = problem.is_none();
        self.set_problem(Part::Node, problem);
        self.touch();
    }

    /// A lasting problem of another part, for status; `None`: there is none any more.
    pub fn set_problem(&mut self, part: Part, problem: Option<String>) {
        self.unpublished = true;
        match problem {
            Some(problem) => self.problems.insert(part, problem),
            None => self.problems.remove(&part),
        };
    }

    /// Pods may come.
    fn is_ready(&self) -> bool {
        self.pruned && self.node_ready && self.missing_families().is_empty()
    }

    /// A pod of this node, as the watcher knows it.
    #[must_use]
    pub fn pod(&self, name: &ObjectName) -> Option<Arc<Pod>> {
        self.tables.pods.get(name).cloned()
    }

    /// A namespace.
    #[must_use]
    pub fn namespace(&self, name: &str) -> Option<Arc<Namespace>> {
        self.tables.namespaces.get(name).cloned()
    }

    /// Fill of every map.
    ///
    /// # Errors
    /// The kernel cannot be read.
    pub fn maps(&mut self) -> Result<Vec<weft_api::agent::Map>, DataplaneError> {
        let map = |map: weft_model::desired::MapUsage| weft_api::agent::Map {
            name: map.name,
            entries: map.entries,
            entries_max: map.entries_max,
            memory_bytes: map.memory_bytes,
        };
        Ok(self.kernel.usage()?.into_iter().map(map).collect())
    }

    /// What is in force of Services, for people.
    #[must_use]
    pub fn list_services(&self) -> Vec<weft_api::agent::Service> {
        self.reconcilers.services.list()
    }

    /// Of remote pods, by UID: those that some source has for which `of` does not hold.
    #[must_use]
    pub fn known_from_others(&self, uids: &[String], of: impl Fn(&str) -> bool) -> BTreeSet<String> {
        let remotes = &self.reconcilers.policy.remotes;
        uids.iter().filter(|uid| remotes.has_source(uid, |source| !of(source))).cloned().collect()
    }

    /// UIDs of pods of other nodes that only sources have for which `of` holds.
    #[must_use]
    pub fn known_only_from(&self, of: impl Fn(&str) -> bool) -> BTreeSet<String> {
        self.reconcilers.policy.remotes.uids_only_from(of).map(str::to_owned).collect()
    }

    /// UIDs of pods of other nodes that some source has for which `of` holds.
    #[must_use]
    pub fn known_from(&self, of: impl Fn(&str) -> bool) -> Vec<String> {
        self.reconcilers.policy.remotes.uids_from(of).map(str::to_owned).collect()
    }
}
