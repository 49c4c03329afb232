//! Matches a peer of a rule against the other end of a packet.

use crate::labels::{Label, PodLabels, selects, selects_pod, selects_reserved};
use crate::world::{End, World};
use std::net::IpAddr;
use weft_model::intent::{CidrGroups, Covers, EndpointSelector, Entity, Peer, Services};

/// The kind of the other end, from the point of view of the subject's node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Who {
    /// A pod without `hostNetwork`, by index.
    Pod(usize),
    /// The subject's own node.
    Host,
    /// Another node.
    RemoteNode,
    World,
}

/// The other end of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Other {
    pub who: Who,
    pub address: IpAddr,
}

impl Other {
    /// `end` from the point of view of `node`.
    pub fn new(world: &World, node: usize, end: End, address: IpAddr) -> Self {
        let who = match (world.pod(end), world.node(end)) {
            (Some(pod), _) => Who::Pod(pod),
            (None, Some(other)) if other == node => Who::Host,
            (None, Some(_)) => Who::RemoteNode,
            (None, None) => Who::World,
        };
        Self { who, address }
    }
}

/// How a peer of a rule matched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Match {
    No,
    /// By its address alone, so named ports do not apply.
    ByAddress,
    /// By its labels or kind.
    AsItself,
}

impl Match {
    const fn as_itself(matches: bool) -> Self {
        if matches { Self::AsItself } else { Self::No }
    }

    const fn by_address(matches: bool) -> Self {
        if matches { Self::ByAddress } else { Self::No }
    }
}

pub fn matches(world: &World, labels: &[PodLabels], peer: &Peer, other: &Other) -> Match {
    match peer {
        Peer::Endpoints(selector) => Match::as_itself(endpoint(world, labels, selector, other)),
        Peer::Entity(Entity::KubeApiserver) => Match::by_address(world.api_server.contains(&other.address)),
        Peer::Entity(entity) => Match::as_itself(is_entity(world, *entity, other)),
        Peer::Cidr { cidr, except, covers } => Match::by_address(
            covered(other, *covers)
                && cidr.contains(&other.address)
                && !except.iter().any(|except| except.contains(&other.address)),
        ),
        Peer::CidrGroups { groups, covers } => {
            let named = world.cidr_groups.iter().filter(|group| match groups {
                CidrGroups::Name(name) => group.name == *name,
                CidrGroups::Selector(selector) => selects(selector, &group.labels),
            });
            let mut cidrs = named.flat_map(|group| &group.cidrs);
            Match::by_address(covered(other, *covers) && cidrs.any(|cidr| cidr.contains(&other.address)))
        }
        Peer::Nodes(selector) => {
            let mut named = world.nodes.iter().filter(|node| selects(selector, &node.labels));
            let is_node = matches!(other.who, Who::Host | Who::RemoteNode);
            Match::by_address(is_node && named.any(|node| node.addresses.contains(&other.address)))
        }
        Peer::Services(services) => service(world, labels, services, other),
    }
}

/// Whether CIDRs apply to it.
fn covered(other: &Other, covers: Covers) -> bool {
    match other.who {
        Who::Pod(_) => covers.pods,
        Who::Host | Who::RemoteNode => covers.nodes,
        Who::World => true,
    }
}

fn endpoint(world: &World, labels: &[PodLabels], selector: &EndpointSelector, other: &Other) -> bool {
    let reserved = |names: &[&str]| {
        let labels: Vec<Label> = names.iter().map(|name| Label::reserved(name)).collect();
        selects_reserved(selector, &labels)
    };
    match other.who {
        Who::Pod(n) => {
            let (pod, labels) = (&world.pods[n], &labels[n].identity);
            match pod.reserved {
                None => selects_pod(selector, &pod.namespace, labels),
                Some(_) => selects_reserved(selector, labels),
            }
        }
        Who::Host => reserved(&["host"]),
        Who::RemoteNode => reserved(&["remote-node"]),
        Who::World if !world.settings.dual_stack => reserved(&["world"]),
        Who::World if other.address.is_ipv4() => reserved(&["world", "world-ipv4"]),
        Who::World => reserved(&["world", "world-ipv6"]),
    }
}

fn is_entity(world: &World, entity: Entity, other: &Other) -> bool {
    let reserved = match other.who {
        Who::Pod(n) => world.pods[n].reserved.map(|identity| identity.raw()),
        Who::Host | Who::RemoteNode | Who::World => None,
    };
    match entity {
        Entity::All => true,
        Entity::World => other.who == Who::World,
        Entity::WorldIpv4 => other.who == Who::World && other.address.is_ipv4(),
        Entity::WorldIpv6 => other.who == Who::World && other.address.is_ipv6(),
        Entity::Host => other.who == Who::Host,
        Entity::RemoteNode => other.who == Who::RemoteNode,
        Entity::KubeApiserver => world.api_server.contains(&other.address),
        Entity::Unmanaged => reserved == Some(3),
        Entity::Health => reserved == Some(4),
        Entity::Init => reserved == Some(5),
        Entity::Ingress => reserved == Some(8),
        // An unknown identity may be anything, also outside the cluster.
        Entity::Cluster => other.who != Who::World && reserved != Some(0),
        Entity::None => false,
    }
}

fn service(world: &World, labels: &[PodLabels], services: &Services, other: &Other) -> Match {
    let mut best = Match::No;
    for service in &world.services {
        let object = &service.object;
        let named = match services {
            Services::Name(name) => object.name == *name,
            Services::Selector { namespace, selector } => {
                namespace.as_ref().is_none_or(|own| *own == object.name.namespace) && selects(selector, &object.labels)
            }
        };
        if !named {
            continue;
        }
        if object.selector.is_empty() {
            let is_pod = matches!(other.who, Who::Pod(_));
            if !is_pod && service.addresses.contains(&other.address) && best == Match::No {
                best = Match::ByAddress;
            }
        } else if let Who::Pod(n) = other.who {
            let pod = &world.pods[n];
            let has = |key: &String, value: &String| {
                labels[n]
                    .identity
                    .iter()
                    .any(|label| label.source == "k8s" && label.key == *key && label.value == *value)
            };
            if pod.reserved.is_none()
                && pod.namespace == object.name.namespace
                && object.selector.iter().all(|(key, value)| has(key, value))
            {
                best = Match::AsItself;
            }
        }
    }
    best
}
