//! The desired rows of Services.
//!
//! A frontend points to sets of backends. Sets are immutable: a change of backends is written as new sets, then the frontends
//! are switched, one write each, then the old sets are removed. So no packet meets half a change.

use crate::intent::{Forwarding, Protocol};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Number of one port of a Service. All frontends of the port share it, and so the affinity of clients.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ServiceId(pub u32);

/// Number of a backend of one [`ServiceId`]. Not reused before it was removed from the kernel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BackendId(pub u32);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SetId(pub u32);

/// The address and port that clients connect to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Frontend {
    /// The unspecified address stands for all own addresses of the node of its family.
    pub address: IpAddr,
    /// Host order.
    pub port: u16,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
}

/// The kind of a frontend, as far as the programs treat it differently.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FrontendKind {
    /// Dropped for external clients.
    ClusterIp,
    NodePort,
    HostPort,
    LoadBalancer,
    /// One of `spec.externalIPs`.
    ExternalIp,
    /// An address that a CiliumLocalRedirectPolicy redirects.
    Redirect,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrontendEntry {
    pub service: ServiceId,
    pub kind: FrontendKind,
    /// Backends for clients of this node: pods and the node itself. `None`: connections are refused.
    pub internal: Option<SetId>,
    /// Backends for external clients. `None`: connections are dropped with `external_local`, else refused.
    pub external: Option<SetId>,
    /// Timeout of session affinity, counted from the client's last new connection.
    pub affinity_s: Option<u32>,
    pub forwarding: Forwarding,
    /// External clients must be in one of the source ranges of `service`.
    pub source_ranges: bool,
    /// External clients reach local backends only, with their own address.
    pub external_local: bool,
    /// The same for clients of this node.
    pub internal_local: bool,
    /// Connections of the backends themselves are not translated.
    pub skip_from_backend: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BackendEntry {
    pub service: ServiceId,
    pub address: IpAddr,
    pub port: u16,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// It is on this node.
    pub local: bool,
    /// It keeps its connections, but affinity no longer selects it.
    pub terminating: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackendSet {
    /// Never empty.
    pub backends: Vec<BackendId>,
    /// Maglev lookup table of indexes into `backends`. Empty: select at random.
    pub table: Vec<u16>,
}

/// A change of services. Applied in the order of the fields.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServicePatch {
    pub put_backends: BTreeMap<BackendId, BackendEntry>,
    /// None of them is in the kernel.
    pub put_sets: BTreeMap<SetId, BackendSet>,
    /// Source ranges.
    pub put_ranges: BTreeSet<(ServiceId, IpNet)>,
    pub put_frontends: BTreeMap<Frontend, FrontendEntry>,
    pub del_frontends: BTreeSet<Frontend>,
    pub del_ranges: BTreeSet<(ServiceId, IpNet)>,
    /// No frontend points to them.
    pub del_sets: BTreeSet<SetId>,
    /// No set has them. Their affinity and socket state is removed too.
    pub del_backends: BTreeSet<BackendId>,
}

impl ServicePatch {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// All rows of services.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServiceTables {
    pub frontends: BTreeMap<Frontend, FrontendEntry>,
    pub sets: BTreeMap<SetId, BackendSet>,
    pub backends: BTreeMap<BackendId, BackendEntry>,
    /// Source ranges.
    pub ranges: BTreeSet<(ServiceId, IpNet)>,
}

impl ServiceTables {
    /// Applies a patch.
    pub fn apply(&mut self, patch: &ServicePatch) {
        self.backends.extend(patch.put_backends.iter().map(|(id, backend)| (*id, *backend)));
        self.sets.extend(patch.put_sets.iter().map(|(id, set)| (*id, set.clone())));
        self.ranges.extend(patch.put_ranges.iter().copied());
        self.frontends.extend(patch.put_frontends.iter().map(|(key, entry)| (*key, *entry)));
        // One by one: few of many are removed.
        for frontend in &patch.del_frontends {
            self.frontends.remove(frontend);
        }
        for range in &patch.del_ranges {
            self.ranges.remove(range);
        }
        for set in &patch.del_sets {
            self.sets.remove(set);
        }
        for backend in &patch.del_backends {
            self.backends.remove(backend);
        }
    }
}
