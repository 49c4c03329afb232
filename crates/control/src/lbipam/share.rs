//! Who has which address, and with whom it may be shared.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use weft_model::intent::LoadBalancerRequest;

/// Who has which address.
#[derive(Default)]
pub(super) struct Shares<'a> {
    holders: BTreeMap<IpAddr, Vec<&'a LoadBalancerRequest>>,
    by_key: BTreeMap<&'a str, BTreeSet<IpAddr>>,
}

impl<'a> Shares<'a> {
    /// Takes an address for a Service, if it can have it.
    pub(super) fn take(&mut self, address: IpAddr, request: &'a LoadBalancerRequest) -> bool {
        if self.hindrance(address, request).is_some() {
            return false;
        }
        self.holders.entry(address).or_default().push(request);
        if let Some(key) = &request.sharing_key {
            self.by_key.entry(key).or_default().insert(address);
        }
        true
    }

    /// Why a Service cannot have an address: the first of its holders that it cannot share with, whoever took it first.
    pub(super) fn hindrance(&self, address: IpAddr, request: &LoadBalancerRequest) -> Option<String> {
        let holders = self.holders.get(&address).into_iter().flatten();
        let apart = holders.filter_map(|other| Some((other, apart(other, request)?)));
        let (other, why) = apart.min_by_key(|(other, _)| (&other.created, &other.name))?;
        Some(format!("Service {} has it, and {why}", other.name))
    }

    /// Addresses of Services that this one can share with.
    pub(super) fn of_key(&self, request: &LoadBalancerRequest) -> impl Iterator<Item = IpAddr> {
        let key = request.sharing_key.as_deref();
        let addresses = key.and_then(|key| self.by_key.get(key)).into_iter().flatten().copied();
        addresses.filter(|address| self.hindrance(*address, request).is_none())
    }

    /// Whether anybody has an address.
    pub(super) fn is_taken(&self, address: IpAddr) -> bool {
        self.holders.contains_key(&address)
    }

    /// All addresses that somebody has.
    pub(super) fn taken(&self) -> impl Iterator<Item = IpAddr> {
        self.holders.keys().copied()
    }
}

/// Why two Services cannot share an address; `None`: they can.
fn apart(a: &LoadBalancerRequest, b: &LoadBalancerRequest) -> Option<String> {
    let alike = a.sharing_key.is_some() && a.sharing_key == b.sharing_key;
    let (home, away) = (a.name.namespace.as_str(), b.name.namespace.as_str());
    let reachable = home == away || a.sharing_namespaces.contains(away) && b.sharing_namespaces.contains(home);
    if !alike {
        return Some("their sharing keys are not the same".to_owned());
    }
    if !reachable {
        return Some("they do not both share with the other's namespace".to_owned());
    }
    if let Some((port, _)) = a.ports.intersection(&b.ports).next() {
        return Some(format!("both use port {port}"));
    }
    // What one of them has on a node must be there for the other as well.
    (a.local_pods != b.local_pods).then(|| "not both have externalTrafficPolicy Local for the same pods".to_owned())
}
