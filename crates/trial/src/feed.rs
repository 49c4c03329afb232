//! From a [`World`] to what an agent would tell the engine of one of its nodes, and the question to a compiled
//! policy that a packet poses there.

use super::{End, Packet, World};
use crate::identity::{IdentityTable, NumberOf, PodFacts, label_set};
use crate::policy::{Change, Direction, Engine, LocalEndpoint, lookup};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use weft_model::desired::CompiledPolicy;
use weft_model::id::{EndpointId, Identity, PolicyId};
use weft_model::intent::RemoteEndpoint;
use weft_model::label::LabelSet;

/// Numbers for the pods of a world, kept as the world changes.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    table: IdentityTable,
}

/// The endpoint number of a pod: its index and one.
#[must_use]
pub fn endpoint_id(pod: usize) -> EndpointId {
    let n = u16::try_from(pod + 1).expect("worlds are small");
    EndpointId::new(n).expect("worlds are small")
}

/// The service account of all pods.
const SERVICE_ACCOUNT: &str = "default";
/// The name of the cluster.
const CLUSTER: &str = "weft";

impl Numbers {
    /// The identity of each pod with a network of its own. Label sets that are new get numbers.
    pub fn identities(&mut self, world: &World) -> BTreeMap<usize, Identity> {
        let mut identities = BTreeMap::new();
        for (n, pod) in world.pods.iter().enumerate().filter(|(_, pod)| !pod.host_network) {
            let labels = label_set(&PodFacts {
                cluster: CLUSTER,
                namespace: &pod.name.namespace,
                namespace_labels: &world.namespaces[&pod.name.namespace],
                labels: &pod.labels,
                service_account: SERVICE_ACCOUNT,
            });
            let identity = match self.table.number_of(&labels).expect("worlds are small") {
                NumberOf::Known(identity) => identity,
                NumberOf::Proposed(identity) => {
                    self.table.insert(identity, labels);
                    identity
                }
            };
            identities.insert(n, identity);
        }
        identities
    }

    /// The labels of all numbers given so far.
    pub fn iter(&self) -> impl Iterator<Item = (Identity, &Arc<LabelSet>)> {
        self.table.iter()
    }
}

/// Everything that the agent of `node` tells its engine about `world`.
pub fn changes(world: &World, node: usize, numbers: &mut Numbers) -> Vec<Change> {
    let identities = numbers.identities(world);
    let mut changes: Vec<Change> =
        numbers.iter().map(|(identity, labels)| Change::PutIdentity(identity, Arc::clone(labels))).collect();
    changes.extend(world.policies.iter().map(|policy| Change::PutPolicy(Arc::new(policy.clone()))));
    changes.extend(identities.iter().map(|(n, identity)| put_pod(world, node, *n, *identity)));
    changes
}

/// What the agent of `node` tells its engine about pod `n`.
#[must_use]
pub fn put_pod(world: &World, node: usize, n: usize, identity: Identity) -> Change {
    let pod = &world.pods[n];
    if pod.node == node {
        return Change::PutEndpoint(LocalEndpoint {
            id: endpoint_id(n),
            pod: pod.name.clone(),
            labels: pod.labels.clone(),
            identity,
            addresses: pod.addresses.clone(),
            named_ports: pod.named_ports.clone(),
        });
    }
    Change::PutRemote(Arc::new(RemoteEndpoint {
        name: pod.name.clone(),
        pod_uid: uid(n),
        identity,
        addresses: pod.addresses.clone(),
        node: world.nodes[pod.node].addresses[0],
        named_ports: pod.named_ports.clone(),
    }))
}

/// The UID of a pod.
#[must_use]
pub fn uid(pod: usize) -> String {
    format!("pod-uid-{pod}")
}

/// Where a packet asks: the pod whose policy is asked, and the other end.
#[must_use]
pub fn sides(packet: &Packet, direction: Direction) -> (End, End) {
    match direction {
        Direction::Ingress => (packet.to, packet.from),
        Direction::Egress => (packet.from, packet.to),
    }
}

/// What the kernel of `node` knows of an end: its identity and its address.
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
        End::World(IpAddr::V4(_)) => Identity::WORLD_IPV4,
        End::World(IpAddr::V6(_)) => Identity::WORLD_IPV6,
    };
    world.address(end, v6).map(|address| (identity, address))
}

/// The kernel's decision about a packet at one pod, from the pod's policy (`None`: not isolated) and the number of
/// the longest prefix that holds the other end's address.
#[must_use]
pub fn decide(
    direction: Direction,
    policy: Option<&CompiledPolicy>,
    identity: Identity,
    prefix: Option<Identity>,
    packet: &Packet,
) -> bool {
    packet.from == packet.to
        || (direction == Direction::Ingress && identity == Identity::HOST)
        || policy.is_none_or(|policy| lookup(policy, identity, prefix, packet.protocol, packet.port).is_some())
}

/// The engines of all nodes of a world.
#[derive(Debug)]
pub struct Cluster {
    /// By node.
    pub engines: Vec<Engine>,
    /// By pod.
    pub identities: BTreeMap<usize, Identity>,
}

impl Cluster {
    /// Everything compiled from nothing.
    #[must_use]
    pub fn new(world: &World) -> Self {
        let mut numbers = Numbers::default();
        let mut engines = Vec::new();
        for node in 0..world.nodes.len() {
            let mut engine = Engine::default();
            engine.apply(changes(world, node, &mut numbers));
            engines.push(engine);
        }
        Self { engines, identities: numbers.identities(world) }
    }

    /// Whether one end lets the packet pass.
    #[must_use]
    pub fn allows(&self, world: &World, packet: &Packet, direction: Direction) -> bool {
        let (End::Pod(n), other) = sides(packet, direction) else { return true };
        let pod = &world.pods[n];
        if pod.host_network {
            return true;
        }
        let engine = &self.engines[pod.node];
        let Some((identity, address)) = peer(world, pod.node, other, packet.v6, &self.identities) else { return false };
        let now = engine.endpoint(endpoint_id(n)).expect("every pod with a network is an endpoint");
        let id = match direction {
            Direction::Ingress => now.ingress,
            Direction::Egress => now.egress,
        };
        let policy = (id != PolicyId::OPEN).then(|| engine.compiled(id).expect("endpoints name policies that exist"));
        now.blocked.is_none() && decide(direction, policy, identity, engine.prefix_of(address), packet)
    }

    /// Whether the packet passes.
    #[must_use]
    pub fn verdict(&self, world: &World, packet: &Packet) -> bool {
        [Direction::Egress, Direction::Ingress].iter().all(|direction| self.allows(world, packet, *direction))
    }
}
