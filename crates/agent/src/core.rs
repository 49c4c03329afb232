//! The tables of this node and what follows from them. Plain state, driven by method calls from one thread; time is
//! passed in, the kernel is behind [`Kernel`], so that tests drive it step by step.
//!
//! Order rules, wherever something changes:
//! - a policy is written before an endpoint uses it, and removed after no endpoint does;
//! - an endpoint's policy is in force before its address is known to anybody;
//! - a backend's address and policy are in force before a frontend leads there;
//! - nothing that a former agent left is removed before every source said all it has.

use crate::addresses::Addresses;
use crate::ports::Kernel;
use crate::state::StateDir;
use foldhash::HashMap;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use weft_control::identity::IdentityTable;
use weft_datapath::NodeSettings;
use weft_model::desired::{DataplaneError, IpcacheEntry};
use weft_model::id::{EndpointId, Identity};
use weft_model::intent::{Change, Forwarding, IdentityLabels, Namespace, Node, ObjectName, Pod, PolicyKind, Source};
use weft_model::label::LabelSet;

pub mod endpoints;
mod explain;
pub mod ipam;
mod nodes;
mod policy;
pub mod preview;
mod queries;
mod restore;
pub mod services;
pub mod thread;

/// Every source that must have delivered before anything is removed.
pub(crate) const SOURCES: [Source; 14] = [
    Source::Pods,
    Source::Namespaces,
    Source::Policies(PolicyKind::NetworkPolicy),
    Source::Policies(PolicyKind::CiliumNetworkPolicy),
    Source::Policies(PolicyKind::CiliumClusterwideNetworkPolicy),
    Source::Policies(PolicyKind::ClusterNetworkPolicy),
    Source::CidrGroups,
    Source::Services,
    Source::Backends,
    Source::LocalRedirects,
    Source::Identities,
    Source::Slices,
    Source::Endpoints,
    Source::Nodes,
];
/// First pause after a failed write; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(50);
/// Plans that follow each other because one made room for the next; the rest waits for the next change.
const ROUNDS_MAX: usize = 8;
/// Between two looks at whether identities without an object are still in use.
const ORPHANS_EVERY: Duration = Duration::from_secs(5);
/// Longest pause between attempts.
const RETRY_MAX: Duration = Duration::from_secs(10);

/// What the core must know of the settings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// This node's name.
    pub node_name: String,
    /// Name of the cluster.
    pub cluster_name: String,
    /// Pods have IPv4 addresses.
    pub ipv4: bool,
    /// Pods have IPv6 addresses.
    pub ipv6: bool,
    /// Packets to other nodes' pods are tunnelled.
    pub tunnel: bool,
    /// How pods get their addresses.
    pub ipam: ipam::Ipam,
    /// Where pods of any node have their addresses.
    pub pod_ranges: Vec<ipnet::IpNet>,
    /// Reached with the pod's own address.
    pub no_masquerade: Vec<ipnet::IpNet>,
    /// Policies apply to the node itself, where they say so.
    pub host_firewall: bool,
    /// Policies report and do not drop.
    pub audit: bool,
    /// Where this agent reaches the API server.
    pub api_server: BTreeSet<IpAddr>,
    /// Ports of Services at the nodes' addresses.
    pub node_ports: RangeInclusive<u16>,
    /// How packets from outside reach backends of other nodes, where a Service says nothing.
    pub forwarding: Forwarding,
    /// Entries of the tables of Services with consistent hashing.
    pub maglev_table_size: u32,
}

/// How far the tables and the kernel are. Published after every flush.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Newest revision of the tables.
    pub revision: u64,
    /// Newest revision of which everything is in the kernel.
    pub in_force: u64,
    /// Pods may come.
    pub ready: bool,
}

/// Where the core tells others that there is work for them.
#[derive(Debug, Default)]
pub struct Signals {
    /// The endpoints to announce have changed.
    pub endpoints: Notify,
    /// Nodes have changed: for who sets up the machine.
    pub nodes: Notify,
    /// This node has changed: for who tells the cluster.
    pub nodes_announce: Notify,
    /// Label sets wait for a number.
    pub identities: Notify,
    /// Demand for addresses has changed.
    pub addresses: Notify,
    /// There may be an address for those who found none.
    pub blocks: Notify,
}

/// See the module.
pub struct Core {
    settings: Settings,
    state: StateDir,
    dataplane: Box<dyn Kernel>,
    now: Duration,
    pods: BTreeMap<ObjectName, Pod>,
    namespaces: BTreeMap<String, Namespace>,
    nodes: BTreeMap<String, Node>,
    identities: IdentityTable,
    addresses: Addresses,
    endpoints: endpoints::Endpoints,
    policy: policy::Policy,
    services: services::Services,
    routes: nodes::Routes,
    own_pool: ipam::Addresses,
    /// What other nodes have of shared pools.
    shares: BTreeMap<String, Vec<ipnet::IpNet>>,
    synced: BTreeSet<Source>,
    /// Slices that came before all nodes were known.
    deferred: Vec<Change>,
    /// Flows that must decide again once everything is written.
    touched_node: bool,
    touched_endpoints: BTreeSet<EndpointId>,
    /// Restored endpoints were compared with their pods.
    confirmed: bool,
    /// What a former agent left was compared with what is wanted, and the rest removed.
    pruned: bool,
    /// The machine is set up (device, sysctls, routes).
    node_ready: bool,
    /// Addresses as the kernel has them.
    ipcache_written: HashMap<IpAddr, IpcacheEntry>,
    /// Addresses whose write failed.
    ipcache_failed: BTreeSet<IpAddr>,
    retry_pause: Duration,
    retry_at: Option<Duration>,
    problems: BTreeMap<String, String>,
    /// Identities without an object, with their labels, and when their use is to be checked next. In force only while an
    /// address has the number: an object that was deleted in error cuts nobody off, and labels that another node vouched
    /// for end with its answer.
    orphaned: BTreeMap<Identity, LabelSet>,
    orphans_at: Duration,
    /// Label sets that need a number from the API server.
    wanted_identities: BTreeSet<LabelSet>,
    revision: u64,
    dirty: bool,
    progress: watch::Sender<Progress>,
    signals: Arc<Signals>,
}

impl Core {
    /// Empty tables over a kernel that may hold what a former agent left.
    #[must_use]
    pub fn new(settings: Settings, state: StateDir, dataplane: Box<dyn Kernel>) -> Self {
        let (policy, services) = (policy::Policy::new(&settings), services::Services::new(&settings));
        let own_pool = ipam::Addresses::new(&settings.ipam);
        Self {
            settings,
            state,
            dataplane,
            now: Duration::ZERO,
            pods: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            nodes: BTreeMap::new(),
            identities: IdentityTable::new(),
            addresses: Addresses::default(),
            endpoints: endpoints::Endpoints::default(),
            policy,
            services,
            routes: nodes::Routes::new(),
            own_pool,
            shares: BTreeMap::new(),
            synced: BTreeSet::new(),
            deferred: Vec::new(),
            pruned: false,
            node_ready: false,
            ipcache_written: HashMap::default(),
            ipcache_failed: BTreeSet::new(),
            touched_node: false,
            touched_endpoints: BTreeSet::new(),
            confirmed: false,
            retry_pause: RETRY_MIN,
            retry_at: None,
            problems: BTreeMap::new(),
            orphaned: BTreeMap::new(),
            orphans_at: Duration::ZERO,
            wanted_identities: BTreeSet::new(),
            revision: 0,
            dirty: false,
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

    /// Monotonic time since any fixed moment.
    pub fn set_time(&mut self, now: Duration) {
        self.now = now;
    }

    /// Takes in what a watcher delivered.
    pub fn apply(&mut self, changes: Vec<Change>) {
        for change in changes {
            // Which endpoints of a slice are this node's own is known once the nodes are.
            if matches!(change, Change::Slice(_) | Change::SliceGone(_)) && !self.synced.contains(&Source::Nodes) {
                self.deferred.push(change);
                continue;
            }
            let nodes_known = change == Change::Synced(Source::Nodes);
            self.apply_one(change);
            if nodes_known {
                for change in std::mem::take(&mut self.deferred) {
                    self.apply_one(change);
                }
            }
        }
        self.settle_routes();
        self.revise();
    }

    fn apply_one(&mut self, change: Change) {
        self.policy.take(&change);
        self.services.take(&change);
        match change {
            Change::Pod(pod) => {
                let name = pod.name.clone();
                self.pods.insert(name.clone(), pod);
                self.relabel(|record| record.pod == name);
                self.signals.addresses.notify_one();
            }
            Change::PodGone(name, uid) => {
                if self.pods.get(&name).is_some_and(|pod| pod.uid == uid) {
                    self.pods.remove(&name);
                    self.signals.addresses.notify_one();
                }
            }
            Change::Namespace(namespace) => {
                let name = namespace.name.clone();
                self.namespaces.insert(name.clone(), namespace);
                self.relabel(|record| record.pod.namespace == name);
            }
            Change::NamespaceGone(name) => {
                self.namespaces.remove(&name);
            }
            // Of these only policies and services hear, above.
            Change::Policy(_)
            | Change::PolicyInvalid { .. }
            | Change::PolicyGone(_)
            | Change::CidrGroup(_)
            | Change::CidrGroupGone(_)
            | Change::Service(_)
            | Change::ServiceGone(_)
            | Change::Backends(_)
            | Change::BackendsGone(_)
            | Change::LocalRedirect(_)
            | Change::LocalRedirectGone(_) => {}
            Change::Identity(IdentityLabels { identity, labels, unused }) => {
                self.identities.insert(identity, labels.clone());
                self.identities.set_unused(identity, unused);
                self.orphaned.remove(&identity);
                self.relabel(|record| record.labels == labels || record.identity == identity);
                self.relabel_waiting();
            }
            Change::IdentityGone(identity) => self.identity_gone(identity),
            Change::Slice(slice) => {
                let own = self.own_addresses();
                self.addresses.set_slice(&slice, self.now, |endpoint| own.contains(&endpoint.node));
            }
            Change::SliceGone(name) => self.addresses.remove_slice(&name, self.now),
            Change::Node(node) => self.set_node(node),
            Change::NodeGone(name) => self.remove_node(&name),
            Change::Synced(source) => {
                self.synced.insert(source);
            }
        }
    }

    /// The tables have changed: a new revision, to be put in force by the next flush.
    fn revise(&mut self) {
        self.revision += 1;
        self.dirty = true;
    }

    /// The same if something of this node's endpoints may have changed.
    fn touch(&mut self) {
        self.policy.endpoints_differ = true;
        self.revise();
    }

    /// All sources said what they have.
    fn all_synced(&self) -> bool {
        SOURCES.iter().all(|source| self.synced.contains(source))
    }

    /// Works out what the kernel shall hold and writes what differs. Says when it wants to be called again.
    pub fn flush(&mut self) -> Option<Duration> {
        let linger = self.addresses.expire(self.now);
        let orphans = self.forget_orphans();
        let due = self.retry_at.is_some_and(|at| at <= self.now);
        if due {
            self.retry_at = None;
        }
        if self.dirty || due {
            self.dirty = false;
            let failed = self.write_all().is_err();
            if failed {
                self.retry_at = Some(self.now + self.retry_pause);
                self.retry_pause = (self.retry_pause * 2).min(RETRY_MAX);
            } else {
                self.retry_pause = RETRY_MIN;
            }
            let in_force = if failed { self.progress.borrow().in_force } else { self.revision };
            let progress = Progress { revision: self.revision, in_force, ready: self.is_ready() };
            self.progress.send_replace(progress);
        } else if self.write_ipcache().and_then(|()| self.finish_policy()).is_err() {
            // Lingering addresses that are over; no table changed.
            self.retry_at = Some(self.now + self.retry_pause);
        }
        [self.retry_at, linger, orphans].into_iter().flatten().min()
    }

    /// Everything, in the order of the rules above. Nothing is written before the sources are complete: half the
    /// policies of a cluster are another policy. What is in the kernel stays in force until then.
    fn write_all(&mut self) -> Result<(), ()> {
        if !self.all_synced() {
            return Ok(());
        }
        if !self.confirmed {
            self.confirm_restored();
            self.confirmed = true;
        }
        self.write_routes()?;
        // An error in one policy's write does not keep addresses from moving on.
        let policy = self.write_policy();
        let ipcache = self.write_ipcache();
        // What was written takes hold even if something else was refused.
        let finished = self.finish_policy();
        let services = self.write_services();
        policy.and(ipcache).and(finished).and(services)?;
        // What was refused for want of room may fit now.
        for _ in 0..ROUNDS_MAX {
            if !self.policy.ask_again() {
                break;
            }
            self.write_policy()?;
            self.finish_policy()?;
        }
        if !self.pruned {
            self.prune()?;
            self.pruned = true;
        }
        Ok(())
    }

    /// Writes addresses that changed, and those whose write failed before.
    fn write_ipcache(&mut self) -> Result<(), ()> {
        if !self.all_synced() {
            return Ok(());
        }
        let mut changes: BTreeMap<IpAddr, Option<IpcacheEntry>> = self.addresses.take_dirty().into_iter().collect();
        for address in std::mem::take(&mut self.ipcache_failed) {
            changes.entry(address).or_insert_with(|| self.addresses.get(address));
        }
        let mut result = Ok(());
        for (address, entry) in changes {
            // Before the first pruning an address that nobody claims may be one that was not announced yet.
            if entry.is_none() && !self.pruned {
                continue;
            }
            if self.ipcache_written.get(&address) == entry.as_ref() {
                continue;
            }
            // Flows to an address that was somebody else's decide again; an address that was nobody's has none.
            self.touched_node |= self.ipcache_written.contains_key(&address);
            if let Err(error) = self.dataplane.set_ipcache(address, entry.as_ref()) {
                self.note_failure("ipcache", &error);
                self.ipcache_failed.insert(address);
                result = Err(());
                continue;
            }
            match entry {
                Some(entry) => self.ipcache_written.insert(address, entry),
                None => self.ipcache_written.remove(&address),
            };
        }
        if result.is_ok() {
            self.problems.remove("ipcache");
        }
        result
    }

    fn note_failure(&mut self, what: &str, error: &DataplaneError) {
        let text = describe(error);
        tracing::warn!(what, problem = %text, "cannot write to the kernel; will be tried again");
        self.problems.insert(what.to_owned(), text);
    }

    /// Writes what the programs must know of the node.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn configure(&mut self, settings: &NodeSettings) -> Result<(), DataplaneError> {
        self.dataplane.configure(settings)?;
        // What was decided under the old configuration is decided again.
        self.touched_node = true;
        Ok(())
    }

    /// The machine is set up (or not any more).
    pub fn set_node_ready(&mut self, problem: Option<String>) {
        self.node_ready = problem.is_none();
        match problem {
            Some(problem) => self.problems.insert("node".into(), problem),
            None => self.problems.remove("node"),
        };
        self.touch();
    }

    /// Somebody else's lasting problem, for status.
    pub fn set_problem(&mut self, what: &str, problem: Option<String>) {
        match problem {
            Some(problem) => self.problems.insert(what.to_owned(), problem),
            None => self.problems.remove(what),
        };
    }

    /// Pods may come.
    fn is_ready(&self) -> bool {
        self.pruned && self.node_ready && self.missing_families().is_empty()
    }

    /// A pod of this node, as the watcher knows it.
    #[must_use]
    pub fn pod(&self, name: &ObjectName) -> Option<Pod> {
        self.pods.get(name).cloned()
    }

    /// A namespace.
    #[must_use]
    pub fn namespace(&self, name: &str) -> Option<Namespace> {
        self.namespaces.get(name).cloned()
    }

    fn identity_gone(&mut self, identity: Identity) {
        self.orphans_at = self.now;
        let Some(labels) = self.identities.labels(identity).map(|labels| (**labels).clone()) else { return };
        self.identities.remove(identity);
        self.orphaned.insert(identity, labels.clone());
        // Ours is in use: put the object back.
        if self.endpoints.uses(identity) {
            self.want_identity(labels);
        }
    }

    /// Puts labels in force that another node vouches for, if the identity has no object and is not in force. They end
    /// with the last address that has the number, and no endpoint of this node takes the number for them.
    pub fn vouch_for_identity(&mut self, identity: Identity, labels: &LabelSet) {
        if self.identity_labels(identity).is_none() {
            self.policy.put_identity(identity, labels);
            self.orphaned.insert(identity, labels.clone());
            self.orphans_at = self.now;
            self.dirty = true;
        }
    }

    /// Takes the identities out of force that have no object and that no address has any more; says when to look again.
    fn forget_orphans(&mut self) -> Option<Duration> {
        if self.orphaned.is_empty() {
            return None;
        }
        if self.orphans_at <= self.now {
            let mut used = self.addresses.using(&self.orphaned);
            // Some of our own may not have reached their addresses' entries yet.
            used.extend(self.orphaned.keys().filter(|identity| self.endpoints.uses(**identity)));
            let before = self.orphaned.len();
            for identity in self.orphaned.keys().filter(|identity| !used.contains(*identity)) {
                self.policy.remove_identity(*identity);
            }
            self.orphaned.retain(|identity, _| used.contains(identity));
            self.dirty |= self.orphaned.len() != before;
            self.orphans_at = self.now + ORPHANS_EVERY;
        }
        (!self.orphaned.is_empty()).then_some(self.orphans_at)
    }

    fn want_identity(&mut self, labels: LabelSet) {
        self.wanted_identities.insert(labels);
        self.signals.identities.notify_one();
    }

    /// A label set has its number.
    pub fn identity_obtained(&mut self, labels: &LabelSet) {
        self.wanted_identities.remove(labels);
        self.relabel_waiting();
        self.touch();
    }

    /// Label sets that need a number.
    #[must_use]
    pub fn wanted_identities(&self) -> Vec<LabelSet> {
        self.wanted_identities.iter().cloned().collect()
    }

    /// The number of a label set, or the one to try.
    ///
    /// # Errors
    /// All numbers are taken.
    pub fn number_of(
        &self,
        labels: &LabelSet,
    ) -> Result<weft_control::identity::NumberOf, weft_control::identity::Exhausted> {
        self.identities.number_of(labels)
    }
}

/// An error with its causes, for people.
#[must_use]
pub fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod races;
#[cfg(test)]
mod tests;
