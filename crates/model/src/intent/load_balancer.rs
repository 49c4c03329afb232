//! LB IPAM: address pools and the Services that request addresses.

use super::name::ObjectName;
use super::policy::Protocol;
use crate::selector::Selector;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// A CiliumLoadBalancerIPPool.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct IpPool {
    pub name: String,
    /// Creation time as RFC 3339, which sorts. Of two pools that overlap, the older one is used.
    pub created: String,
    pub ranges: Vec<AddressRange>,
    /// The Services that it serves, by their labels and [`LoadBalancerRequest::NAME`] and `NAMESPACE`.
    pub selector: Selector,
    /// No new address is allocated.
    pub disabled: bool,
}

/// Addresses of one family, both ends inclusive.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AddressRange {
    pub first: IpAddr,
    pub last: IpAddr,
}

/// A Service of type LoadBalancer that this operator serves.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct LoadBalancerRequest {
    pub name: ObjectName,
    /// Creation time as RFC 3339, which sorts: older Services are served first.
    pub created: String,
    pub labels: BTreeMap<String, String>,
    /// It requests an IPv4 address.
    pub ipv4: bool,
    /// It requests an IPv6 address.
    pub ipv6: bool,
    /// One address of either family suffices (`ipFamilyPolicy: PreferDualStack`).
    pub either: bool,
    /// The particular addresses that it requests; empty: any.
    pub wanted: Vec<IpAddr>,
    /// Services with equal keys may share an address if their ports differ.
    pub sharing_key: Option<String>,
    /// Other namespaces whose Services it may share with.
    pub sharing_namespaces: SharingNamespaces,
    pub ports: BTreeSet<(u16, Protocol)>,
    /// Its pod selector, with `externalTrafficPolicy: Local`. Such Services share only with Services of the same pods, since
    /// a node attracts traffic only for the pods that it has.
    pub local_pods: Option<BTreeMap<String, String>>,
    /// Addresses in its status.
    pub held: Vec<IpAddr>,
    /// Why the request is invalid: the Service keeps what it has.
    pub problem: Option<String>,
}

impl LoadBalancerRequest {
    /// Label of the Service's name, for pool selectors.
    pub const NAME: &str = "io.kubernetes.service.name";
    /// Label of the Service's namespace, for pool selectors.
    pub const NAMESPACE: &str = "io.kubernetes.service.namespace";
}

/// Namespaces with whose Services an address is shared.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum SharingNamespaces {
    All,
    These(BTreeSet<String>),
}

impl Default for SharingNamespaces {
    fn default() -> Self {
        Self::These(BTreeSet::new())
    }
}

impl SharingNamespaces {
    #[must_use]
    pub fn contains(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::These(names) => names.contains(namespace),
        }
    }
}
