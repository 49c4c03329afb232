//! Peers that are written as names of other objects (CIDR groups, Services, nodes, the API server), replaced by the
//! labels and addresses that they stand for at the moment.
//!
//! Stands between what users wrote and [`crate::policy::Engine`]: when one of the named objects changes, the policies
//! that may name it are written out again, and the engine hears of those that came out differently.

use crate::policy::Change as EngineChange;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use weft_model::intent::{
    Backends, Change, CidrGroup, CidrGroups, Covers, EndpointSelector, Entity, Node, ObjectName, Peer, Policy,
    PolicyName, Rule, Service, Services, Spec, Subject,
};
use weft_model::selector::Requirement;

mod guard;

pub use guard::guard_name;

/// What kinds of objects a policy names.
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

    const fn meets(self, changed: Self) -> bool {
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

/// The Service whose addresses are the API server's.
const API_SERVER: (&str, &str) = ("default", "kubernetes");

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Expander {
    policies: BTreeMap<PolicyName, Row>,
    groups: BTreeMap<String, CidrGroup>,
    services: BTreeMap<ObjectName, Service>,
    backends: BTreeMap<ObjectName, Backends>,
    by_service: BTreeMap<ObjectName, BTreeSet<ObjectName>>,
    nodes: BTreeMap<String, Node>,
    /// Where the agent itself found the API server.
    api_server: BTreeSet<IpAddr>,
    /// What keeps nodes reachable, if there are policies for nodes.
    guard: Option<Arc<Policy>>,
    /// Something has changed that could be the guard's business.
    unguarded: bool,
    /// What policies name and is not there, as of the last [`Self::take`].
    missing: Arc<[(PolicyName, String)]>,
    /// What changed since the last [`Self::take`].
    changed: Needs,
    out: Vec<EngineChange>,
}

impl Expander {
    /// Hears of a change; those of other kinds are none of its business.
    pub fn hear(&mut self, change: &Change) {
        // Of these there are more than of all others, and nobody shall pay for a look at all policies.
        self.unguarded |=
            !matches!(change, Change::Slice(_) | Change::SliceGone(_) | Change::Identity(_) | Change::IdentityGone(_));
        match change {
            Change::Policy(policy) => {
                self.settle();
                self.put(Arc::new(policy.clone()));
            }
            Change::PolicyGone(name) => {
                self.settle();
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
            Change::Service(service) => {
                self.services.insert(service.name.clone(), service.clone());
                self.changed.services = true;
            }
            Change::ServiceGone(name) => {
                self.services.remove(name);
                self.changed.services = true;
            }
            Change::Backends(backends) => {
                self.forget_backends(&backends.slice);
                self.by_service.entry(backends.service.clone()).or_default().insert(backends.slice.clone());
                self.backends.insert(backends.slice.clone(), backends.clone());
                self.backends_changed(&backends.service);
            }
            Change::BackendsGone(slice) => self.forget_backends(slice),
            Change::Node(node) => {
                let known = self.nodes.insert(node.name.clone(), node.clone());
                let same = |known: Node| known.labels == node.labels && known.addresses == node.addresses;
                self.changed.nodes |= !known.is_some_and(same);
            }
            Change::NodeGone(name) => self.changed.nodes |= self.nodes.remove(name).is_some(),
            _ => {}
        }
    }

    /// Where the agent reaches the API server, known before any object is.
    pub fn set_api_server(&mut self, addresses: BTreeSet<IpAddr>) {
        self.unguarded = true;
        self.changed.api_server |= addresses != self.api_server;
        self.api_server = addresses;
    }

    fn forget_backends(&mut self, slice: &ObjectName) {
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

    /// Policies that name what changed are written out again.
    fn settle(&mut self) {
        let changed = std::mem::take(&mut self.changed);
        if changed == Needs::default() {
            return;
        }
        let concerned = self.policies.values().filter(|row| row.needs.meets(changed));
        let again: Vec<_> = concerned.map(|row| (row.written.name.clone(), self.expand(&row.written))).collect();
        for (name, expanded) in again {
            let row = self.policies.get_mut(&name).expect("taken from it");
            if *row.expanded != *expanded {
                row.expanded = Arc::clone(&expanded);
                self.out.push(EngineChange::PutPolicy(expanded));
            }
        }
    }

    /// What the engine is to hear.
    pub fn take(&mut self) -> Vec<EngineChange> {
        self.settle();
        if std::mem::take(&mut self.unguarded) {
            self.guard();
            self.missing = self.find_missing().into();
        }
        std::mem::take(&mut self.out)
    }

    /// A policy as the engine has it.
    #[must_use]
    pub fn written(&self, name: &PolicyName) -> Option<&Arc<Policy>> {
        self.policies.get(name).map(|row| &row.written)
    }

    /// All policies as they were written.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.values().map(|row| &row.written)
    }

    /// `policy` as it would be compiled now.
    #[must_use]
    pub fn expand(&self, policy: &Arc<Policy>) -> Arc<Policy> {
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
                Peer::CidrGroups { groups, covers } => {
                    let cidrs = self.groups_of(groups).flat_map(|group| &group.cidrs);
                    expanded.extend(cidrs.map(|cidr| Peer::Cidr { cidr: *cidr, except: Vec::new(), covers: *covers }));
                }
                Peer::Services(services) => expanded.extend(self.services_of(services).flat_map(|s| self.behind(s))),
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

    /// The pods of a Service, or the addresses of one that has no selector: those are never pods.
    fn behind(&self, service: &Service) -> Vec<Peer> {
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

    /// What is named and is not there, as of the last [`Self::take`]: the policy, and which name selects nobody.
    #[must_use]
    pub fn missing(&self) -> &Arc<[(PolicyName, String)]> {
        &self.missing
    }

    fn find_missing(&self) -> Vec<(PolicyName, String)> {
        let mut missing = Vec::new();
        for row in self.policies.values().filter(|row| row.needs.groups || row.needs.services) {
            for rule in row.written.specs.iter().flat_map(|spec| spec.ingress.iter().chain(&spec.egress)) {
                for peer in rule.peers.iter().flatten() {
                    let name = match peer {
                        Peer::CidrGroups { groups: CidrGroups::Name(name), .. } if !self.groups.contains_key(name) => {
                            format!("CiliumCIDRGroup {name}")
                        }
                        Peer::Services(Services::Name(name)) if !self.services.contains_key(name) => {
                            format!("Service {name}")
                        }
                        _ => continue,
                    };
                    missing.push((
                        row.written.name.clone(),
                        format!("{}: there is no {name}: it selects nobody", rule.place),
                    ));
                }
            }
        }
        missing
    }
}

/// One address.
fn host(address: IpAddr, covers: Covers) -> Peer {
    Peer::Cidr { cidr: IpNet::from(address), except: Vec::new(), covers }
}

#[cfg(test)]
mod tests;
