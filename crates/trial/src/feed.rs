//! Converts a [`World`] to the inputs of one node's agent: objects as watchers deliver them, endpoints, identities. Changes
//! are the difference of two such views.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use weft_control::identity::subject_labels;
use weft_control::policy::{Change, LocalEndpoint};
use weft_model::id::{EndpointId, Identity};
use weft_model::intent::{self, Backends, CidrGroup, Node, ObjectName, Policy, PolicyName, RemoteEndpoint, Service};
use weft_model::label::LabelSet;
use weft_oracle::{End, Judge, World};

/// Identity numbers for the label sets of a world's pods, stable while the world changes.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    by_labels: BTreeMap<Arc<LabelSet>, Identity>,
    reuse: bool,
}

impl Numbers {
    /// Numbers are reused as soon as no pod has them.
    #[must_use]
    pub fn scarce() -> Self {
        Self { reuse: true, ..Self::default() }
    }

    /// The identity of each pod without `hostNetwork`. New label sets get numbers.
    pub fn identities(&mut self, world: &World) -> BTreeMap<usize, Identity> {
        let judge = Judge::new(world);
        if self.reuse {
            let used = (0..world.pods.len()).map(|n| LabelSet(judge.identity(n).collect()));
            let used: BTreeSet<LabelSet> = used.collect();
            self.by_labels.retain(|labels, _| used.contains(&**labels));
        }
        let mut identities = BTreeMap::new();
        for (n, pod) in world.pods.iter().enumerate().filter(|(_, pod)| !pod.host_network) {
            let identity = pod.reserved.unwrap_or_else(|| self.number_of(LabelSet(judge.identity(n).collect())));
            identities.insert(n, identity);
        }
        identities
    }

    fn number_of(&mut self, labels: LabelSet) -> Identity {
        if let Some(identity) = self.by_labels.get(&labels) {
            return *identity;
        }
        let taken: BTreeSet<Identity> = self.by_labels.values().copied().collect();
        let mut free = Identity::ALLOCATED.filter_map(Identity::allocated).filter(|number| !taken.contains(number));
        let identity = free.next().expect("worlds are small");
        self.by_labels.insert(Arc::new(labels), identity);
        identity
    }

    /// The labels of all numbers allocated so far.
    pub fn iter(&self) -> impl Iterator<Item = (Identity, &Arc<LabelSet>)> {
        self.by_labels.iter().map(|(labels, identity)| (*identity, labels))
    }
}

/// The endpoint number of a pod: its index and one.
#[must_use]
pub fn endpoint_id(pod: usize) -> EndpointId {
    let n = u16::try_from(pod + 1).expect("worlds are small");
    EndpointId::new(n).expect("worlds are small")
}

#[must_use]
pub fn uid(pod: usize) -> String {
    format!("pod-uid-{pod}")
}

/// The inputs of one node's agent.
#[derive(Clone, Debug, Default)]
pub struct View {
    policies: BTreeMap<PolicyName, Policy>,
    groups: BTreeMap<String, CidrGroup>,
    services: BTreeMap<ObjectName, Service>,
    backends: BTreeMap<ObjectName, Backends>,
    nodes: BTreeMap<String, Node>,
    identities: BTreeMap<Identity, Arc<LabelSet>>,
    locals: BTreeMap<EndpointId, LocalEndpoint>,
    remotes: BTreeMap<String, Arc<RemoteEndpoint>>,
}

/// A change of one input: for the expander, or for the engine directly.
#[derive(Clone, Debug)]
pub enum Input {
    Object(intent::Change),
    /// Of an endpoint or an identity.
    Direct(Change),
}

impl View {
    /// The inputs of `node` when all sources have synced.
    #[must_use]
    pub fn of(world: &World, node: usize, numbers: &mut Numbers) -> Self {
        let identities = numbers.identities(world);
        let mut view = Self::default();
        view.put_objects(world);
        let used: BTreeSet<Identity> = identities.values().copied().collect();
        let labels: BTreeMap<Identity, Arc<LabelSet>> =
            numbers.iter().filter(|(id, _)| used.contains(id)).map(|(id, labels)| (id, Arc::clone(labels))).collect();
        for (n, identity) in identities {
            let Some(labels) = labels.get(&identity) else { continue };
            let pod = &world.pods[n];
            if pod.node == node {
                let endpoint = LocalEndpoint {
                    id: endpoint_id(n),
                    pod: pod.object(),
                    labels: subject_labels(labels, &pod.labels),
                    identity,
                    addresses: pod.addresses.clone(),
                    named_ports: pod.named_ports.clone(),
                };
                view.locals.insert(endpoint.id, endpoint);
            } else {
                let endpoint = RemoteEndpoint {
                    name: pod.object(),
                    pod_uid: uid(n),
                    identity,
                    addresses: pod.addresses.clone(),
                    node: world.nodes[pod.node].addresses[0],
                    named_ports: pod.named_ports.clone(),
                };
                view.remotes.insert(uid(n), Arc::new(endpoint));
            }
        }
        view.identities = labels;
        if world.settings.host_firewall {
            let own = &world.nodes[node];
            let host = LocalEndpoint {
                id: EndpointId::HOST,
                pod: ObjectName { namespace: String::new(), name: own.name.clone() },
                labels: LabelSet(own.labels.clone()),
                identity: Identity::HOST,
                addresses: own.addresses.clone(),
                named_ports: Vec::new(),
            };
            view.locals.insert(EndpointId::HOST, host);
        }
        view
    }

    fn put_objects(&mut self, world: &World) {
        self.policies = world.policies.iter().map(|policy| (policy.name.clone(), policy.clone())).collect();
        self.groups = world.cidr_groups.iter().map(|group| (group.name.clone(), group.clone())).collect();
        for service in &world.services {
            let (name, addresses) = (service.object.name.clone(), service.addresses.clone());
            self.services.insert(name.clone(), service.object.clone());
            // The API server's addresses come below.
            if name.namespace != "default" {
                self.backends.insert(name.clone(), backends(name, &addresses));
            }
        }
        let name = ObjectName { namespace: "default".to_owned(), name: "kubernetes".to_owned() };
        let addresses = world.api_server.clone();
        self.backends.insert(name.clone(), backends(name, &addresses));
        for node in &world.nodes {
            let (name, addresses, labels) = (node.name.clone(), node.addresses.clone(), node.labels.clone());
            self.nodes.insert(name.clone(), Node { name, addresses, labels, pod_cidrs: Vec::new() });
        }
    }

    /// The changes from `old` to `self`.
    #[must_use]
    pub fn since(&self, old: &Self) -> Vec<Input> {
        use intent::Change as Object;
        let mut inputs = Vec::new();
        difference(&old.policies, &self.policies, |name, new| {
            inputs.push(Input::Object(match new {
                Some(policy) => Object::Policy(policy.clone()),
                None => Object::PolicyGone(name.clone()),
            }));
        });
        difference(&old.groups, &self.groups, |name, new| {
            inputs.push(Input::Object(match new {
                Some(group) => Object::CidrGroup(group.clone()),
                None => Object::CidrGroupGone(name.clone()),
            }));
        });
        difference(&old.services, &self.services, |name, new| {
            inputs.push(Input::Object(match new {
                Some(service) => Object::Service(service.clone()),
                None => Object::ServiceGone(name.clone()),
            }));
        });
        difference(&old.backends, &self.backends, |name, new| {
            inputs.push(Input::Object(match new {
                Some(backends) => Object::Backends(backends.clone()),
                None => Object::BackendsGone(name.clone()),
            }));
        });
        difference(&old.nodes, &self.nodes, |name, new| {
            inputs.push(Input::Object(match new {
                Some(node) => Object::Node(node.clone()),
                None => Object::NodeGone(name.clone()),
            }));
        });
        difference(&old.identities, &self.identities, |identity, new| {
            inputs.push(Input::Direct(match new {
                Some(labels) => Change::PutIdentity(*identity, Arc::clone(labels)),
                None => Change::RemoveIdentity(*identity),
            }));
        });
        difference(&old.locals, &self.locals, |id, new| {
            inputs.push(Input::Direct(match new {
                Some(endpoint) => Change::PutEndpoint(endpoint.clone()),
                None => Change::RemoveEndpoint(*id),
            }));
        });
        difference(&old.remotes, &self.remotes, |uid, new| {
            inputs.push(Input::Direct(match new {
                Some(endpoint) => Change::PutRemote(Arc::clone(endpoint)),
                None => Change::RemoveRemote(uid.clone()),
            }));
        });
        inputs
    }
}

/// Calls `each` for every row that differs.
fn difference<K: Ord, V: PartialEq>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>, mut each: impl FnMut(&K, Option<&V>)) {
    for (key, row) in new {
        if old.get(key) != Some(row) {
            each(key, Some(row));
        }
    }
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        each(key, None);
    }
}

/// Identity and address of an end in the ipcache of `node`.
#[must_use]
pub fn peer(
    world: &World,
    node: usize,
    end: End,
    v6: bool,
    identities: &BTreeMap<usize, Identity>,
) -> Option<(Identity, IpAddr)> {
    let of_node = |n: usize| if n == node { Identity::HOST } else { Identity::REMOTE_NODE };
    let identity = match end {
        End::Pod(n) if world.pods[n].host_network => of_node(world.pods[n].node),
        End::Pod(n) => identities[&n],
        End::Node(n) => of_node(n),
        End::World(_) if !world.settings.dual_stack => Identity::WORLD,
        End::World(IpAddr::V4(_)) => Identity::WORLD_IPV4,
        End::World(IpAddr::V6(_)) => Identity::WORLD_IPV6,
    };
    world.address(end, v6).map(|address| (identity, address))
}

fn backends(name: ObjectName, addresses: &[std::net::IpAddr]) -> Backends {
    let endpoints = addresses.iter().copied().map(intent::Backend::ready).collect();
    Backends { slice: name.clone(), service: name, ports: Vec::new(), endpoints }
}
