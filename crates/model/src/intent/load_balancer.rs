//! Addresses of load balancers: where they come from, and who wants one.

use super::{ObjectName, Protocol};
use crate::selector::Selector;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// A CiliumLoadBalancerIPPool.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct IpPool {
    /// Its name.
    pub name: String,
    /// When it was made, as a text that sorts by time: of two that overlap, the older one counts.
    pub created: String,
    /// Its addresses.
    pub ranges: Vec<AddressRange>,
    /// The Services that may have one, by their labels and [`LoadBalancerRequest::NAME`] and `NAMESPACE`.
    pub selector: Selector,
    /// Nobody gets a new one.
    pub disabled: bool,
}

/// Addresses of one family, the first one and the last one among them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AddressRange {
    /// The first.
    pub first: IpAddr,
    /// The last.
    pub last: IpAddr,
}

/// A Service that is to have addresses of a load balancer.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct LoadBalancerRequest {
    /// The Service.
    pub name: ObjectName,
    /// When it was made, as a text that sorts by time: who is older is served first.
    pub created: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// It is to have an IPv4 address.
    pub ipv4: bool,
    /// It is to have an IPv6 address.
    pub ipv6: bool,
    /// One of both families will do (`ipFamilyPolicy: PreferDualStack`).
    pub either: bool,
    /// The very addresses that it asks for; empty: any.
    pub wanted: Vec<IpAddr>,
    /// Services with equal keys may share an address, if their ports differ.
    pub sharing_key: Option<String>,
    /// Namespaces beside its own with whose Services it shares.
    pub sharing_namespaces: SharingNamespaces,
    /// Its ports.
    pub ports: BTreeSet<(u16, Protocol)>,
    /// Its pods, where clients outside reach those of one node only: then it shares with Services of the same pods, as
    /// else packets would come to nodes that do not serve it.
    pub local_pods: Option<BTreeMap<String, String>>,
    /// Addresses that it has.
    pub held: Vec<IpAddr>,
    /// Why it cannot be understood: it keeps what it has.
    pub problem: Option<String>,
}

impl LoadBalancerRequest {
    /// Key of the name, for selectors of pools.
    pub const NAME: &str = "io.kubernetes.service.name";
    /// Key of the namespace, for selectors of pools.
    pub const NAMESPACE: &str = "io.kubernetes.service.namespace";
}

/// Namespaces with whose Services an address is shared.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum SharingNamespaces {
    /// All.
    All,
    /// These.
    These(BTreeSet<String>),
}

impl Default for SharingNamespaces {
    fn default() -> Self {
        Self::These(BTreeSet::new())
    }
}

impl SharingNamespaces {
    /// Whether a namespace is among them.
    #[must_use]
    pub fn contains(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::These(names) => names.contains(namespace),
        }
    }
}
