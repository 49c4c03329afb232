//! What readers see of the agent: CNI STATUS, `weft status` and the lists, names for flows, metrics, answers to other
//! agents. The writer publishes one after each flush. It shares everything with the tables, so making one costs nothing,
//! it never changes, and no reader waits for a writer.

use crate::reconcile::routes::Wanted;
use crate::reconcile::{Reconcilers, policy, services};
use crate::settings::Settings;
use crate::state::Phase;
use crate::tables::{addresses, endpoints};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use weft_api::agent as api;
use weft_control::identity::Labels;
use weft_control::policy::Direction;
use weft_k8s::endpoint::Own;
use weft_model::desired::Route;
use weft_model::id::Identity;
use weft_model::intent::{EndpointSlice, Node, ObjectName, PolicyName, Protocol, RemoteEndpoint, Source};
use weft_model::label::LabelSet;
use weft_model::{reconcile, table};
use weft_peer::Pod;

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

/// Prefix, addresses in use, addresses in all.
pub type Usage = Arc<[(String, u64, u64)]>;

/// Labels of identities that have no object.
pub type Orphaned = BTreeMap<Identity, LabelSet>;

/// What keeps pods from coming.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Waiting {
    /// A source has not delivered everything, and why, if that is known.
    Source(Source, Option<String>),
    /// The node has no prefix of this family.
    Prefix(&'static str),
    /// The machine is not set up.
    Node,
    /// Not everything is in the kernel for the first time.
    FirstPass,
}

impl std::fmt::Display for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Source(source, Some(problem)) => write!(f, "{source}: {problem}"),
            Self::Source(source, None) => write!(f, "{source} from the API server"),
            Self::Prefix(family) => write!(f, "an {family} pod prefix for this node"),
            Self::Node => f.write_str("the node's device and routes"),
            Self::FirstPass => f.write_str("the first complete write of the kernel's maps"),
        }
    }
}

/// See the module.
pub struct Snapshot {
    /// How far the tables and the kernel are.
    pub progress: Progress,
    /// What keeps pods from coming; empty: nothing.
    pub waiting_for: Vec<Waiting>,
    /// How far each reconciler is.
    pub reconcilers: [(&'static str, reconcile::Progress); Reconcilers::COUNT],
    /// Endpoints of this node.
    pub endpoints: endpoints::Snapshot,
    /// Who has which address.
    pub addresses: addresses::Snapshot,
    /// Nodes of the cluster.
    pub nodes: table::Snapshot<String, Node>,
    /// Policies.
    pub policy: policy::View,
    /// Services.
    pub services: services::View,
    pub(crate) settings: Arc<Settings>,
    /// Problems that are no object's.
    pub(crate) problems: Vec<String>,
    /// This node's endpoints are complete, and may be announced to the cluster.
    pub(crate) announces: bool,
    pub(crate) identities: Labels,
    pub(crate) orphaned: Arc<Orphaned>,
    pub(crate) routes: Wanted,
    pub(crate) usage: Usage,
}

impl Snapshot {
    /// Before anything is known.
    #[must_use]
    pub fn empty(settings: Arc<Settings>) -> Self {
        Self {
            progress: Progress::default(),
            waiting_for: Source::all().map(|source| Waiting::Source(source, None)).collect(),
            reconcilers: [("", reconcile::Progress::default()); Reconcilers::COUNT],
            endpoints: endpoints::Snapshot::default(),
            addresses: addresses::Snapshot::default(),
            nodes: table::Snapshot::default(),
            policy: policy::View::default(),
            services: services::View::default(),
            settings,
            problems: Vec::new(),
            announces: false,
            identities: Labels::new_sync(),
            orphaned: Arc::default(),
            routes: Wanted::new_sync(),
            usage: Usage::default(),
        }
    }

    /// How the node is, but for what only the kernel knows (drops).
    #[must_use]
    pub fn status(&self) -> api::Status {
        api::Status {
            node: self.settings.node_name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: self.progress.ready,
            waiting_for: self.waiting_for.iter().map(ToString::to_string).collect(),
            revision: self.progress.revision,
            revision_in_force: self.progress.in_force,
            problems: self.problems(),
            endpoints: self.endpoints.values().filter(|endpoint| endpoint.is_active()).count(),
            services: self.services.in_force(),
            routing: if self.settings.tunnel { "vxlan" } else { "native" }.to_owned(),
            addresses: self.own_addresses().to_vec(),
            pod_cidrs: self.usage.iter().map(|(cidr, _, _)| cidr.clone()).collect(),
            ipam: self.usage.to_vec(),
            drops: Vec::new(),
            events_suppressed: 0,
            accelerated: 0,
        }
    }

    /// What is not as it should be, for people.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.problems.clone();
        problems.extend(self.policy.problem_lines());
        let services = self.services.problems().iter();
        problems.extend(services.map(|(object, reason, text)| format!("{object}: {}: {text}", reason.as_str())));
        problems.extend(self.endpoints.values().filter_map(|endpoint| {
            let problem = endpoint.problem.as_ref()?;
            Some(format!("endpoint {} ({}): {problem}", endpoint.record.id, endpoint.record.pod))
        }));
        problems
    }

    /// Endpoints of this node.
    #[must_use]
    pub fn list_endpoints(&self) -> Vec<api::Endpoint> {
        let listed = |endpoint: &Arc<endpoints::Endpoint>| {
            let record = &endpoint.record;
            let blocked = endpoint.in_kernel.as_ref().is_some_and(|written| written.blocked);
            let state = match record.phase {
                Phase::Reserved => "creating",
                Phase::Leaving => "leaving",
                Phase::Ready if endpoint.restoring => "restoring",
                Phase::Ready if blocked => "blocked",
                Phase::Ready if endpoint.waiting => "waiting-for-identity",
                Phase::Ready => "ready",
            };
            api::Endpoint {
                id: record.id.raw(),
                namespace: record.pod.namespace.clone(),
                pod: record.pod.name.clone(),
                container_id: record.attachment.container_id.clone(),
                addresses: record.addresses.clone(),
                identity: record.identity.raw(),
                labels: labels(&record.labels),
                state: state.to_owned(),
                problem: endpoint.problem.clone(),
                ingress: self.policy.isolating(record.id, Direction::Ingress),
                egress: self.policy.isolating(record.id, Direction::Egress),
                device: record.device.clone(),
                audit: record.audit || self.settings.audit,
            }
        };
        self.endpoints.values().map(listed).collect()
    }

    /// Identities known here.
    #[must_use]
    pub fn list_identities(&self) -> Vec<api::Identity> {
        let mut users: HashMap<Identity, usize> = HashMap::new();
        for endpoint in self.endpoints.values() {
            *users.entry(endpoint.record.identity).or_default() += 1;
        }
        let listed = |(identity, set): (&Identity, &Arc<LabelSet>)| api::Identity {
            identity: identity.raw(),
            labels: labels(set),
            endpoints: users.get(identity).copied().unwrap_or_default(),
        };
        self.identities.iter().map(listed).collect()
    }

    /// Addresses and prefixes.
    #[must_use]
    pub fn list_ipcache(&self) -> Vec<api::IpcacheEntry> {
        let addresses = self.addresses.all().into_iter().map(|(address, entry)| api::IpcacheEntry {
            prefix: address.to_string(),
            identity: entry.identity.raw(),
            node: entry.node,
            kind: if entry.is_node { "node" } else { "pod" }.to_owned(),
        });
        let cidrs = self.policy.cidrs().map(|(cidr, number)| api::IpcacheEntry {
            prefix: cidr.to_string(),
            identity: number.raw(),
            node: None,
            kind: "cidr".to_owned(),
        });
        let pools = self.routes.iter().map(|(cidr, route)| api::IpcacheEntry {
            prefix: cidr.to_string(),
            identity: 0,
            node: match route {
                Route::RemotePool(node) => Some(*node),
                Route::LocalPool | Route::NoMasquerade => None,
            },
            kind: if *route == Route::NoMasquerade { "no-masquerade" } else { "pool" }.to_owned(),
        });
        addresses.chain(cidrs).chain(pools).collect()
    }

    /// The version of a policy object that is in force, if any; `None` also while something is not in the kernel.
    #[must_use]
    pub fn policy_in_force(&self, name: &PolicyName) -> Option<&str> {
        if self.progress.in_force != self.progress.revision {
            return None;
        }
        Some(&self.policy.row(name)?.object.as_ref()?.resource_version)
    }

    /// Whether everything of the tables is in the kernel, and the policy is not among it.
    #[must_use]
    pub fn policy_is_gone(&self, name: &PolicyName) -> bool {
        let settled = self.progress.in_force == self.progress.revision;
        settled && self.policy.row(name).is_none_or(|row| row.object.is_none())
    }

    /// This node's addresses.
    #[must_use]
    pub fn own_addresses(&self) -> &[IpAddr] {
        let own = self.nodes.get(&self.settings.node_name);
        own.map(|node| node.addresses.as_slice()).unwrap_or_default()
    }

    /// What the cluster shall know of this node's endpoints, by pod. Several attachments of one pod (a new sandbox
    /// while the old one is still there) are one entry with all their addresses.
    #[must_use]
    pub fn announced(&self) -> Option<BTreeMap<ObjectName, Own>> {
        if !self.announces {
            return None;
        }
        let node = self.address_of_node(&self.settings.node_name)?;
        let mut announced: BTreeMap<ObjectName, Own> = BTreeMap::new();
        let active = self.endpoints.values().filter(|endpoint| endpoint.is_active() && endpoint.in_kernel.is_some());
        let mut rows: Vec<_> = active.collect();
        rows.sort_by_key(|endpoint| std::cmp::Reverse(endpoint.sequence));
        for endpoint in rows {
            let record = &endpoint.record;
            let entry = announced.entry(record.pod.clone()).or_insert_with(|| Own {
                endpoint: RemoteEndpoint {
                    name: record.pod.clone(),
                    pod_uid: record.pod_uid.clone(),
                    identity: record.identity,
                    addresses: Vec::new(),
                    node,
                    named_ports: record.named_ports.clone(),
                },
                id: record.id.raw(),
                labels: record.labels.0.iter().map(|(key, value)| format!("{key}={value}")).collect(),
                service_account: record.service_account.clone(),
            });
            // The newest attachment says which pod has the name now.
            if entry.endpoint.pod_uid == record.pod_uid {
                entry.endpoint.addresses.extend(&record.addresses);
            }
        }
        Some(announced)
    }

    /// Whether an own slice says of every endpoint in it what this node says.
    #[must_use]
    pub fn agrees_with(&self, slice: &EndpointSlice) -> bool {
        let Some(announced) = self.announced() else { return true };
        slice.endpoints.iter().all(|there| announced.get(&there.name).is_some_and(|own| own.endpoint == *there))
    }

    /// Whether a pod of this UID has an endpoint here.
    #[must_use]
    pub fn has_pod(&self, uid: &str) -> bool {
        self.endpoints.of_pod(uid).is_some()
    }

    /// Which of this node's pods have these addresses.
    #[must_use]
    pub fn own_pods(&self, addresses: &[IpAddr]) -> Vec<Pod> {
        let Some(announced) = self.announced() else { return Vec::new() };
        let asked = announced.into_values().filter(|own| own.endpoint.addresses.iter().any(|a| addresses.contains(a)));
        let labelled = asked.filter_map(|own| {
            let labels = self.endpoints.of_pod(&own.endpoint.pod_uid)?.record.labels.clone();
            Some(Pod { endpoint: own.endpoint, labels })
        });
        labelled.collect()
    }

    /// The other node, and its address, whose pods have this address, if no source has it yet.
    #[must_use]
    pub fn owner_of_unknown(&self, address: IpAddr) -> Option<(String, IpAddr)> {
        if self.addresses.get(address).is_some() {
            return None;
        }
        let node = self.nodes.values().find(|node| node.pod_cidrs.iter().any(|cidr| cidr.contains(&address)))?;
        let other = node.name != self.settings.node_name;
        other.then(|| self.address_of_node(&node.name).map(|at| (node.name.clone(), at)))?
    }

    /// Whether the address is of a pod prefix of the node.
    #[must_use]
    pub fn is_of_node(&self, node: &str, address: IpAddr) -> bool {
        self.nodes.get(node).is_some_and(|node| node.pod_cidrs.iter().any(|cidr| cidr.contains(&address)))
    }

    /// The address by which a node's endpoints are known.
    #[must_use]
    pub fn address_of_node(&self, node: &str) -> Option<IpAddr> {
        self.nodes.get(node)?.addresses.iter().copied().min_by_key(|address| !address.is_ipv4())
    }

    /// The pod that has an address, here or elsewhere.
    #[must_use]
    pub fn pod_with(&self, address: IpAddr) -> Option<ObjectName> {
        let local = self.endpoints.with_address(address).map(|endpoint| endpoint.record.pod.clone());
        local.or_else(|| self.addresses.pod(address).map(|name| (*name).clone()))
    }

    /// The object of which an address and port are a frontend, or a backend: of several the first.
    #[must_use]
    pub fn service_at(&self, address: IpAddr, port: u16, protocol: Protocol) -> Option<&ObjectName> {
        let is_own = self.own_addresses().contains(&address);
        Some(self.services.object_at(address, port, protocol, is_own)?.name())
    }

    /// Labels of an identity: of its object, or else those in force without one.
    #[must_use]
    pub fn identity_labels(&self, identity: Identity) -> Option<&LabelSet> {
        let of_object = self.identities.get(&identity).map(|labels| &**labels);
        of_object.or_else(|| self.orphaned.get(&identity))
    }

    /// Labels of an identity, for people.
    #[must_use]
    pub fn labels_for_people(&self, identity: Identity) -> Vec<String> {
        if let Some(name) = identity.reserved_name() {
            return vec![format!("reserved:{name}")];
        }
        if let Some(set) = self.identity_labels(identity) {
            return labels(set);
        }
        let local = self.endpoints.values().find(|endpoint| endpoint.record.identity == identity);
        local.map(|endpoint| labels(&endpoint.record.labels)).unwrap_or_default()
    }

    /// The pods' network namespaces, as CNI named them.
    #[must_use]
    pub fn network_namespaces(&self) -> Vec<PathBuf> {
        self.endpoints.values().map(|endpoint| PathBuf::from(&endpoint.record.netns)).collect()
    }
}

fn labels(set: &LabelSet) -> Vec<String> {
    let text = |(key, value): (&String, &String)| if value.is_empty() { key.clone() } else { format!("{key}={value}") };
    set.0.iter().map(text).collect()
}
