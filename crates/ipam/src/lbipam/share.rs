//! Which Services hold which address, and which of them may share one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use weft_model::intent::LoadBalancerRequest;

/// The holders of each address.
#[derive(Default)]
pub(super) struct Shares<'a> {
    holders: BTreeMap<IpAddr, Vec<&'a LoadBalancerRequest>>,
    by_key: BTreeMap<&'a str, BTreeSet<IpAddr>>,
}

impl<'a> Shares<'a> {
    /// Allocates an address to a Service. `false`: another Service holds it, and they cannot share.
    pub(super) fn take(&mut self, address: IpAddr, request: &'a LoadBalancerRequest) -> bool {
        if self.conflict(address, request).is_some() {
            return false;
        }
        self.holders.entry(address).or_default().push(request);
        if let Some(key) = &request.sharing_key {
            self.by_key.entry(key).or_default().insert(address);
        }
        true
    }

    /// Why a Service cannot have an address: the oldest of the holders that it cannot share with, whichever was served
    /// first.
    pub(super) fn conflict(&self, address: IpAddr, request: &LoadBalancerRequest) -> Option<String> {
        let holders = self.holders.get(&address).into_iter().flatten();
        let apart = holders.filter_map(|other| Some((other, apart(other, request)?)));
        let (other, why) = apart.min_by_key(|(other, _)| (&other.created, &other.name))?;
        Some(format!("in use by Service {}: {why}", other.name))
    }

    /// Addresses that this Service can share with their holders.
    pub(super) fn of_key(&self, request: &LoadBalancerRequest) -> impl Iterator<Item = IpAddr> {
        let key = request.sharing_key.as_deref();
        let addresses = key.and_then(|key| self.by_key.get(key)).into_iter().flatten().copied();
        addresses.filter(|address| self.conflict(*address, request).is_none())
    }

    pub(super) fn is_taken(&self, address: IpAddr) -> bool {
        self.holders.contains_key(&address)
    }

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
        return Some("their sharing keys differ".to_owned());
    }
    if !reachable {
        return Some("sharing across namespaces must be allowed by both Services".to_owned());
    }
    if let Some((port, _)) = a.ports.intersection(&b.ports).next() {
        return Some(format!("both use port {port}"));
    }
    // Nodes without pods of one would drop its traffic although they attract it for the other.
    (a.local_pods != b.local_pods).then(|| "with externalTrafficPolicy Local both must select the same pods".to_owned())
}
