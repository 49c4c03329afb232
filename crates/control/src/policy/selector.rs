//! The peers of a rule in the form that the engine indexes.

use super::resolved::PortName;
use ipnet::IpNet;
use std::sync::Arc;
use weft_model::id::PeerScope;
use weft_model::intent::{Covers, EndpointSelector, Entity, Peer};
use weft_model::label::{LabelSet, NAMESPACE, is_carried};
use weft_model::selector::Requirement;

/// One peer of a rule.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum PeerSelector {
    /// Endpoints by the labels of their identity.
    Endpoints(EndpointSelector),
    Entity(Entity),
    Cidr {
        cidr: IpNet,
        /// Prefixes inside `cidr` that are excluded.
        except: Arc<[IpNet]>,
        /// Which addresses of the cluster it matches.
        covers: Covers,
    },
}

impl PeerSelector {
    pub const EVERY_POD: Self = Self::Endpoints(EndpointSelector::EVERY_POD);

    /// Converts a peer of a rule. `Ok(None)`: it matches nothing, by intent. `Err`: it matches nothing although its author
    /// meant it to; with the reason.
    pub fn new(peer: &Peer) -> Result<Option<Self>, String> {
        Ok(Some(match peer {
            Peer::Endpoints(selector) => {
                match selector.requirements.iter().map(Requirement::key).find(|key| !is_carried(key)) {
                    None => {
                        let mut selector = selector.clone();
                        selector.requirements.sort();
                        selector.requirements.dedup();
                        Self::Endpoints(selector)
                    }
                    Some(key) => {
                        return Err(format!(
                            "selects by the pod label {:?}, which is excluded from identities, so it matches nothing",
                            super::labels::bare(key)
                        ));
                    }
                }
            }
            Peer::Cidr { cidr, except, covers } => {
                let except = except.iter().map(IpNet::trunc).collect();
                Self::Cidr { cidr: cidr.trunc(), except, covers: *covers }
            }
            Peer::Entity(Entity::None) => return Ok(None),
            Peer::Entity(Entity::KubeApiserver) => return Err(unresolved("the API server")),
            Peer::Entity(entity) => Self::Entity(*entity),
            Peer::CidrGroups { .. } => return Err(unresolved("CIDR groups")),
            Peer::Services(_) => return Err(unresolved("Services")),
            Peer::Nodes(_) => return Err(unresolved("nodes")),
        }))
    }

    /// Whether it selects an identity with these labels. Prefixes select no identities.
    #[must_use]
    pub fn matches(&self, labels: &LabelSet) -> bool {
        match self {
            Self::Endpoints(selector) => selector.matches(labels),
            Self::Entity(entity) => entity_matches(*entity, labels),
            Self::Cidr { .. } => false,
        }
    }

    /// Whether it selects every address of `net` for peers of a scope.
    #[must_use]
    pub fn holds(&self, net: &IpNet, scope: PeerScope) -> bool {
        let Self::Cidr { cidr, except, covers } = self else { return false };
        let covered = match scope {
            PeerScope::World => true,
            PeerScope::Node => covers.nodes,
            PeerScope::Pod => covers.pods,
        };
        covered && cidr.contains(net) && !except.iter().any(|except| except.contains(net))
    }
}

fn unresolved(what: &str) -> String {
    format!("names {what}, which were not expanded to addresses, so it matches nothing")
}

fn entity_matches(entity: Entity, labels: &LabelSet) -> bool {
    let is = |name: &str| labels.get(name).is_some();
    match entity {
        Entity::All => true,
        Entity::World => is("reserved:world"),
        Entity::WorldIpv4 => is("reserved:world-ipv4"),
        Entity::WorldIpv6 => is("reserved:world-ipv6"),
        Entity::Host => is("reserved:host"),
        Entity::RemoteNode => is("reserved:remote-node"),
        Entity::KubeApiserver => is("reserved:kube-apiserver"),
        Entity::Ingress => is("reserved:ingress"),
        Entity::Health => is("reserved:health"),
        Entity::Init => is("reserved:init"),
        Entity::Unmanaged => is("reserved:unmanaged"),
        Entity::Cluster => {
            !is("reserved:world") && (is(NAMESPACE) || labels.0.keys().any(|key| key.starts_with("reserved:")))
        }
        Entity::None => false,
    }
}

/// A predicate that splits peers into classes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Select {
    /// Whether the selector selects the peer.
    Peer(Arc<PeerSelector>),
    /// Which port numbers a name stands for in a peer that the selector selects.
    Named(Arc<PeerSelector>, PortName),
}
