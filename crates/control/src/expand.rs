//! Expands peers of rules that reference other objects (CIDR groups, Services, nodes, the API server) to the selectors and
//! addresses that they stand for at the moment.
//!
//! It runs before [`crate::policy::Engine`]: when a referenced object changes, the policies that may reference it are
//! expanded again, and the engine receives those whose expansion differs.

use crate::policy::Change as EngineChange;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use weft_model::intent::{
    Backends, Change, CidrGroup, CidrGroups, Covers, EndpointSelector, Entity, Node, ObjectName, Peer, Policy,
    PolicyName, Rule, RuleAction, Service, Services, Source, Spec, Subject,
};
use weft_model::selector::Requirement;

mod guard;

pub use guard::guard_name;
use guard::host;

/// The kinds of objects that a policy references.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Needs {
    groups: bool,
    services: bool,
    nodes: bool,
    api_server: bool,
}

impl Needs {
    fn of(policy: &Policy) -> Self {
        let mut needs = Self::default();
        let rules = policy.specs.iter().flat_map(|spec| spec.ingress.iter().chain(&spec.egress));
        for peer in rules.filter_map(|rule| rule.peers.as_ref()).flatten() {
            match peer {
                Peer::CidrGroups { .. } => needs.groups = true,
                Peer::Services(_) => needs.services = true,
                Peer::Nodes(_) => needs.nodes = true,
                Peer::Entity(Entity::KubeApiserver) => needs.api_server = true,
                Peer::Endpoints(_) | Peer::Cidr { .. } | Peer::Entity(_) => {}
            }
        }
        needs
    }

    const fn intersects(self, changed: Self) -> bool {
        self.groups && changed.groups
            || self.services && changed.services
            || self.nodes && changed.nodes
            || self.api_server && changed.api_server
    }
}

#[derive(Clone, Debug)]
struct Row {
    written: Arc<Policy>,
    expanded: Arc<Policy>,
    needs: Needs,
}

/// Both families.
const EVERY_ADDRESS: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
];

/// The Service whose endpoints are the API servers.
const API_SERVER: (&str, &str) = ("default", "kubernetes");

/// An object that a rule names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    CidrGroup(String),
    /// No CiliumCIDRGroup can be read, so that nobody knows which addresses they hold.
    UnreadableCidrGroups {
        /// The rule denies.
        deny: bool,
    },
    Service(ObjectName),
}

/// A rule names an object that does not exist, so that peer of the rule selects nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DanglingRef {
    pub policy: PolicyName,
    /// Field of the rule in the object.
    pub place: Arc<str>,
    pub target: Target,
}

impl fmt::Display for DanglingRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { policy, place, target } = self;
        match target {
            Target::UnreadableCidrGroups { deny } => {
                let effect = if *deny { "denies every address" } else { "matches nothing" };
                write!(f, "{policy}: {place}: the CiliumCIDRGroups cannot be read, so this peer {effect}")
            }
            Target::CidrGroup(name) => {
                write!(f, "{policy}: {place}: CiliumCIDRGroup {name} does not exist, so this peer matches nothing")
            }
            Target::Service(name) => {
                write!(f, "{policy}: {place}: Service {name} does not exist, so this peer matches nothing")
            }
        }
    }
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Expander {
    policies: BTreeMap<PolicyName, Row>,
    groups: BTreeMap<String, CidrGroup>,
    /// Nobody knows which groups there are.
    groups_unknown: bool,
    services: BTreeMap<ObjectName, Service>,
    backends: BTreeMap<ObjectName, Backends>,
    by_service: BTreeMap<ObjectName, BTreeSet<ObjectName>>,
    nodes: BTreeMap<String, Node>,
    /// The addresses by which the agent itself reaches the API server.
    api_server: BTreeSet<IpAddr>,
    /// Keeps nodes reachable while there are policies for nodes.
    guard: Option<Arc<Policy>>,
    /// The guard may be out of date.
    guard_dirty: bool,
    /// References of policies to objects that do not exist, as of the last [`Self::take_changes`].
    dangling: Arc<[DanglingRef]>,
    /// What changed since the last [`Self::take_changes`].
    changed: Needs,
    out: Vec<EngineChange>,
}

impl Expander {
    /// Applies a change. Kinds that no policy references are ignored.
    pub fn apply(&mut self, change: &Change) {
        // These are by far the most frequent changes and never affect the guard. Checking it walks all policies.
        self.guard_dirty |=
            !matches!(change, Change::Slice(_) | Change::SliceGone(_) | Change::Identity(_) | Change::IdentityGone(_));
        match change {
            Change::Policy(policy) => {
                self.expand_changed();
                self.put(Arc::new(policy.clone()));
            }
            Change::PolicyGone(name) => {
                self.expand_changed();
                self.policies.remove(name);
                self.out.push(EngineChange::RemovePolicy(name.clone()));
            }
            Change::CidrGroup(group) => {
                self.groups.insert(group.name.clone(), group.clone());
                self.changed.groups = true;
            }
            Change::CidrGroupGone(name) => {
                self.groups.remove(name);
                self.changed.groups = true;
            }
            Change::SourceProblem(Source::CidrGroups, problem) => {
                let unknown = problem.as_ref().is_some_and(|problem| !problem.listed);
                self.changed.groups |= unknown != self.groups_unknown;
                self.groups_unknown = unknown;
            }
            Change::Service(service) => {
                self.services.insert(service.name.clone(), service.clone());
                self.changed.services = true;
            }
            Change::ServiceGone(name) => {
                self.services.remove(name);
                self.changed.services = true;
            }
            Change::Backends(backends) => {
                self.remove_backends(&backends.slice);
                self.by_service.entry(backends.service.clone()).or_default().insert(backends.slice.clone());
                self.backends.insert(backends.slice.clone(), backends.clone());
                self.backends_changed(&backends.service);
            }
            Change::BackendsGone(slice) => self.remove_backends(slice),
            Change::Node(node) => {
                let known = self.nodes.insert(node.name.clone(), node.clone());
                let same = |known: Node| known.labels == node.labels && known.addresses == node.addresses;
                self.changed.nodes |= !known.is_some_and(same);
            }
            Change::NodeGone(name) => self.changed.nodes |= self.nodes.remove(name).is_some(),
            _ => {}
        }
    }

    /// Sets where the agent reaches the API server, which is known before any object is.
    pub fn set_api_server(&mut self, addresses: BTreeSet<IpAddr>) {
        self.guard_dirty = true;
        self.changed.api_server |= addresses != self.api_server;
        self.api_server = addresses;
    }

    fn remove_backends(&mut self, slice: &ObjectName) {
        let Some(gone) = self.backends.remove(slice) else { return };
        if let Some(slices) = self.by_service.get_mut(&gone.service) {
            slices.remove(slice);
            if slices.is_empty() {
                self.by_service.remove(&gone.service);
            }
        }
        self.backends_changed(&gone.service);
    }

    fn backends_changed(&mut self, service: &ObjectName) {
        self.changed.services = true;
        self.changed.api_server |= (service.namespace.as_str(), service.name.as_str()) == API_SERVER;
    }

    fn put(&mut self, written: Arc<Policy>) {
        let expanded = self.expand(&written);
        let row = Row { needs: Needs::of(&written), expanded: Arc::clone(&expanded), written: Arc::clone(&written) };
        self.policies.insert(written.name.clone(), row);
        self.out.push(EngineChange::PutPolicy(expanded));
    }

    /// Expands the policies again that may reference what changed.
    fn expand_changed(&mut self) {
        let changed = std::mem::take(&mut self.changed);
        if changed == Needs::default() {
            return;
        }
        let affected = self.policies.values().filter(|row| row.needs.intersects(changed));
        let again: Vec<_> = affected.map(|row| (row.written.name.clone(), self.expand(&row.written))).collect();
        for (name, expanded) in again {
            let row = self.policies.get_mut(&name).expect("taken from it");
            if *row.expanded != *expanded {
                row.expanded = Arc::clone(&expanded);
                self.out.push(EngineChange::PutPolicy(expanded));
            }
        }
    }

    /// Returns the changes for the engine since the last call.
    pub fn take_changes(&mut self) -> Vec<EngineChange> {
        self.expand_changed();
        if std::mem::take(&mut self.guard_dirty) {
            self.update_guard();
            self.dangling = self.find_dangling().into();
        }
        std::mem::take(&mut self.out)
    }

    fn expand(&self, policy: &Arc<Policy>) -> Arc<Policy> {
        if Needs::of(policy) == Needs::default() {
            return Arc::clone(policy);
        }
        let rules = |rules: &[Rule]| rules.iter().map(|rule| self.expand_rule(rule)).collect();
        let spec = |spec: &Spec| Spec { ingress: rules(&spec.ingress), egress: rules(&spec.egress), ..spec.clone() };
        Arc::new(Policy { specs: policy.specs.iter().map(spec).collect(), ..(**policy).clone() })
    }

    fn expand_rule(&self, rule: &Rule) -> Rule {
        let Some(peers) = &rule.peers else { return rule.clone() };
        let mut expanded = Vec::new();
        for peer in peers {
            match peer {
                // What a rule may not let through, it must not let through for want of knowledge.
                Peer::CidrGroups { covers, .. } if self.groups_unknown && rule.action == RuleAction::Deny => {
                    expanded.extend(EVERY_ADDRESS.map(|cidr| Peer::Cidr { cidr, except: Vec::new(), covers: *covers }));
                }
                Peer::CidrGroups { groups, covers } => {
                    let cidrs = self.groups_of(groups).flat_map(|group| &group.cidrs);
                    expanded.extend(cidrs.map(|cidr| Peer::Cidr { cidr: *cidr, except: Vec::new(), covers: *covers }));
                }
                Peer::Services(services) => {
                    expanded.extend(self.services_of(services).flat_map(|s| self.backends_of(s)))
                }
                Peer::Nodes(selector) => {
                    let nodes = self.nodes.values().filter(|node| selector.matches(&node.labels));
                    let covers = Covers { pods: false, nodes: true };
                    expanded.extend(nodes.flat_map(|node| &node.addresses).map(|address| host(*address, covers)));
                }
                Peer::Entity(Entity::KubeApiserver) => {
                    expanded.extend(self.api_server().into_iter().map(|address| host(address, Covers::ALL)));
                }
                Peer::Endpoints(_) | Peer::Cidr { .. } | Peer::Entity(_) => expanded.push(peer.clone()),
            }
        }
        expanded.sort_unstable();
        expanded.dedup();
        Rule { peers: Some(expanded), ..rule.clone() }
    }

    fn groups_of<'a>(&'a self, groups: &'a CidrGroups) -> impl Iterator<Item = &'a CidrGroup> {
        self.groups.values().filter(move |group| match groups {
            CidrGroups::Name(name) => group.name == *name,
            CidrGroups::Selector(selector) => selector.matches(&group.labels),
        })
    }

    fn services_of<'a>(&'a self, services: &'a Services) -> impl Iterator<Item = &'a Service> {
        self.services.values().filter(move |service| match services {
            Services::Name(name) => service.name == *name,
            Services::Selector { namespace, selector } => {
                namespace.as_ref().is_none_or(|own| *own == service.name.namespace) && selector.matches(&service.labels)
            }
        })
    }

    /// The pods of a Service, or the endpoint addresses of one without a selector, which never match pods.
    fn backends_of(&self, service: &Service) -> Vec<Peer> {
        if !service.selector.is_empty() {
            let equals = |(key, value): (&String, &String)| {
                Requirement::In(format!("k8s:{key}"), BTreeSet::from([value.clone()]))
            };
            return vec![Peer::Endpoints(EndpointSelector {
                namespace: Some(service.name.namespace.clone()),
                requirements: service.selector.iter().map(equals).collect(),
            })];
        }
        let covers = Covers { pods: false, nodes: true };
        self.addresses_of(&service.name).map(|address| host(address, covers)).collect()
    }

    fn addresses_of(&self, service: &ObjectName) -> impl Iterator<Item = IpAddr> {
        let slices = self.by_service.get(service).into_iter().flatten();
        slices
            .filter_map(|slice| self.backends.get(slice))
            .flat_map(|backends| backends.endpoints.iter().map(|backend| backend.address))
    }

    fn api_server(&self) -> BTreeSet<IpAddr> {
        let service = ObjectName { namespace: API_SERVER.0.to_owned(), name: API_SERVER.1.to_owned() };
        self.addresses_of(&service).chain(self.api_server.iter().copied()).collect()
    }

    fn has_host_policy(&self) -> bool {
        let specs = |row: &Row| row.written.specs.iter().any(|spec| matches!(spec.subject, Subject::Nodes(_)));
        self.policies.values().any(specs)
    }

    /// References of policies to objects that do not exist, as of the last [`Self::take_changes`].
    #[must_use]
    pub fn dangling(&self) -> &Arc<[DanglingRef]> {
        &self.dangling
    }

    fn find_dangling(&self) -> Vec<DanglingRef> {
        let mut dangling = Vec::new();
        for row in self.policies.values().filter(|row| row.needs.groups || row.needs.services) {
            for rule in row.written.specs.iter().flat_map(|spec| spec.ingress.iter().chain(&spec.egress)) {
                for peer in rule.peers.iter().flatten() {
                    let target = match peer {
                        Peer::CidrGroups { .. } if self.groups_unknown => {
                            Target::UnreadableCidrGroups { deny: rule.action == RuleAction::Deny }
                        }
                        Peer::CidrGroups { groups: CidrGroups::Name(name), .. } if !self.groups.contains_key(name) => {
                            Target::CidrGroup(name.clone())
                        }
                        Peer::Services(Services::Name(name)) if !self.services.contains_key(name) => {
                            Target::Service(name.clone())
                        }
                        _ => continue,
                    };
                    let (policy, place) = (row.written.name.clone(), Arc::clone(&rule.place));
                    dangling.push(DanglingRef { policy, place, target });
                }
            }
        }
        dangling
    }

    /// Recomputes the guard from the policies and the addresses of the API server.
    fn update_guard(&mut self) {
        let wanted = self.has_host_policy().then(|| Arc::new(guard::policy(self.api_server().into_iter())));
        if wanted == self.guard {
            return;
        }
        self.out.push(match &wanted {
            Some(policy) => EngineChange::PutPolicy(Arc::clone(policy)),
            None => EngineChange::RemovePolicy(guard_name()),
        });
        self.guard = wanted;
    }
}

#[cfg(test)]
mod tests;
