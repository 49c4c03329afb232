//! Claims of objects on frontends. The highest rank gets it; of equal ones the oldest object, on every node and after
//! every restart. So what a tenant writes takes nothing from a higher kind, and nothing from an older object.

use super::interface::Object;
use super::wanted::any;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use weft_model::desired::{Frontend, FrontendKind};
use weft_model::intent::{Age, Protocol};

/// What decides between claims; the least wins.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Standing {
    rank: Rank,
    age: Age,
}

/// By who assigns an address: the cluster, its administrators, the object itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Rank {
    ClusterIp,
    LoadBalancer,
    NodePort,
    ExternalIp,
    HostPort,
    Redirect,
}

impl Standing {
    pub(super) const fn new(kind: FrontendKind, age: Age) -> Self {
        let rank = match kind {
            FrontendKind::ClusterIp => Rank::ClusterIp,
            FrontendKind::LoadBalancer => Rank::LoadBalancer,
            FrontendKind::NodePort => Rank::NodePort,
            FrontendKind::ExternalIp => Rank::ExternalIp,
            FrontendKind::HostPort => Rank::HostPort,
            FrontendKind::Redirect => Rank::Redirect,
        };
        Self { rank, age }
    }
}

type Claimant = (Standing, Arc<Object>);

/// A frontend, ordered so that those of a port stand together, all addresses of the node first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Place {
    protocol: Protocol,
    port: u16,
    v6: bool,
    address: IpAddr,
}

impl Place {
    const fn of(frontend: &Frontend) -> Self {
        let Frontend { address, port, protocol } = *frontend;
        Self { protocol, port, v6: address.is_ipv6(), address }
    }

    const fn frontend(&self) -> Frontend {
        Frontend { address: self.address, port: self.port, protocol: self.protocol }
    }

    const fn at_all_addresses(&self) -> Self {
        Self { address: any(self.v6), ..*self }
    }
}

#[derive(Default)]
struct Claim {
    claimants: BTreeSet<Claimant>,
    /// As decided last.
    owner: Option<Arc<Object>>,
}

/// All claimed frontends.
#[derive(Default)]
pub(super) struct Claims {
    claims: BTreeMap<Place, Claim>,
    /// Places with claimants that do not get them.
    contested: BTreeSet<Place>,
}

impl Claims {
    pub(super) fn owner(&self, frontend: &Frontend) -> Option<&Arc<Object>> {
        self.claims.get(&Place::of(frontend))?.owner.as_ref()
    }

    pub(super) fn is_contested(&self, frontend: &Frontend) -> bool {
        self.contested.contains(&Place::of(frontend))
    }

    /// Contested frontends: who has them, and an object that does not get it.
    pub(super) fn contested(&self) -> impl Iterator<Item = (Frontend, &Arc<Object>, &Arc<Object>)> {
        self.contested.iter().flat_map(|place| {
            let claimants = self.claims.get(place).into_iter().flat_map(|claim| &claim.claimants);
            let winner = self.winner(place).map(|(_, object)| object);
            let losers = claimants.map(|(_, object)| object);
            losers.filter_map(move |loser| Some((place.frontend(), winner?, loser)).filter(|_| winner != Some(loser)))
        })
    }

    /// Claims a frontend; takes effect with [`Claims::decide`].
    pub(super) fn claim(&mut self, frontend: &Frontend, standing: Standing, object: &Arc<Object>) {
        self.claims.entry(Place::of(frontend)).or_default().claimants.insert((standing, object.clone()));
    }

    /// Withdraws a claim; takes effect with [`Claims::decide`].
    pub(super) fn release(&mut self, frontend: &Frontend, standing: Standing, object: &Arc<Object>) {
        if let Some(claim) = self.claims.get_mut(&Place::of(frontend)) {
            claim.claimants.remove(&(standing, object.clone()));
        }
    }

    /// The claimant that gets packets to this place, by this claim or by one on all addresses of the node.
    fn winner(&self, place: &Place) -> Option<&Claimant> {
        let first = self.claims.get(place)?.claimants.first()?;
        // Only a hostPort is at one of the node's addresses by the choice of its author.
        let chosen = first.0.rank == Rank::HostPort && *place != place.at_all_addresses();
        let wide = self.claims.get(&place.at_all_addresses()).filter(|_| chosen);
        match wide.and_then(|wide| wide.claimants.first()) {
            Some(wide) if wide < first && wide.1 != first.1 => Some(wide),
            _ => Some(first),
        }
    }

    /// Decides the owner after a batch of claims and releases, also of frontends at single addresses of the node. Returns
    /// the objects that had and have what changed hands.
    pub(super) fn decide(&mut self, frontend: &Frontend) -> Vec<Arc<Object>> {
        let place = Place::of(frontend);
        let places: Vec<Place> = if place == place.at_all_addresses() {
            let same = |other: &Place| other.at_all_addresses() == place;
            self.claims.range(place..).map(|(other, _)| *other).take_while(same).collect()
        } else {
            vec![place]
        };
        let mut affected = Vec::new();
        for place in places {
            let Some(claim) = self.claims.get(&place) else { continue };
            let winner = self.winner(&place);
            let lost = claim.claimants.iter().any(|claimant| winner.is_some_and(|winner| winner.1 != claimant.1));
            let new = winner.filter(|winner| claim.claimants.contains(*winner)).map(|(_, object)| object.clone());
            if lost {
                self.contested.insert(place);
            } else {
                self.contested.remove(&place);
            }
            let Some(claim) = self.claims.get_mut(&place) else { continue };
            if claim.owner != new {
                affected.extend(std::mem::replace(&mut claim.owner, new.clone()));
                affected.extend(new);
            }
            if claim.claimants.is_empty() {
                self.claims.remove(&place);
            }
        }
        affected
    }
}
