//! Services, as the kernel shall hold them.
//!
//! A frontend points to sets of backends. A set is never changed once it is written: whatever changes behind a Service
//! is written as new sets, then the frontends are switched to them, one write each, then the old sets go. So no packet
//! meets half a change.

use crate::intent::{Forwarding, Protocol};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Number of one port of a Service: all its frontends share it, and with it their clients' affinity.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ServiceId(pub u32);

/// Number of a backend of one [`ServiceId`]. Not given again before it was removed from the kernel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BackendId(pub u32);

/// Number of a set of backends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SetId(pub u32);

/// Where clients send to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Frontend {
    /// Address; the unspecified address of a family: every address of the node's own in it.
    pub address: IpAddr,
    /// Port, host order.
    pub port: u16,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
}

/// What a frontend is, for what the programs treat differently.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FrontendKind {
    /// An address inside the cluster: nobody outside may use it.
    ClusterIp,
    /// A port of the node.
    NodePort,
    /// A port of the node for one pod.
    HostPort,
    /// An address of a load balancer.
    LoadBalancer,
    /// One of `spec.externalIPs`.
    ExternalIp,
    /// An address that a CiliumLocalRedirectPolicy takes over.
    Redirect,
}

/// A frontend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrontendEntry {
    /// Its service port.
    pub service: ServiceId,
    /// What it is.
    pub kind: FrontendKind,
    /// For clients of this node: pods and the node itself. `None`: refused at once.
    pub internal: Option<SetId>,
    /// For clients outside. `None`: dropped where only local backends count, else refused.
    pub external: Option<SetId>,
    /// Seconds for which a client stays with its backend, since its last new connection; `None`: it does not.
    pub affinity_s: Option<u32>,
    /// How packets of clients outside reach backends of other nodes.
    pub forwarding: Forwarding,
    /// Clients outside must be in one of the source ranges of `service`.
    pub source_ranges: bool,
    /// Clients outside are for local backends only: their address is kept, and without a backend nobody answers.
    pub external_local: bool,
    /// The same for clients of this node.
    pub internal_local: bool,
    /// Clients that are themselves backends pass untranslated.
    pub skip_from_backend: bool,
}

/// A backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BackendEntry {
    /// Its service port.
    pub service: ServiceId,
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// It is on this node.
    pub local: bool,
    /// It ends: it keeps its connections, affinity does not lead to it.
    pub terminating: bool,
}

/// A set of backends: what one of them is chosen from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackendSet {
    /// The backends; never empty.
    pub backends: Vec<BackendId>,
    /// Maglev's table: indices into `backends`. Empty: choose at random.
    pub table: Vec<u16>,
}

/// A change of services. Applied in the order of the fields.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServicePatch {
    /// Backends to write.
    pub put_backends: BTreeMap<BackendId, BackendEntry>,
    /// Sets to write. None of them is in the kernel.
    pub put_sets: BTreeMap<SetId, BackendSet>,
    /// Source ranges to write.
    pub put_ranges: BTreeSet<(ServiceId, IpNet)>,
    /// Frontends to write.
    pub put_frontends: BTreeMap<Frontend, FrontendEntry>,
    /// Frontends to remove.
    pub del_frontends: BTreeSet<Frontend>,
    /// Source ranges to remove.
    pub del_ranges: BTreeSet<(ServiceId, IpNet)>,
    /// Sets to remove: no frontend points to them.
    pub del_sets: BTreeSet<SetId>,
    /// Backends to remove: no set has them. What is remembered of clients that were sent to them is forgotten.
    pub del_backends: BTreeSet<BackendId>,
}

impl ServicePatch {
    /// Nothing is to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// All that the kernel holds of services.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServiceTables {
    /// Frontends.
    pub frontends: BTreeMap<Frontend, FrontendEntry>,
    /// Sets.
    pub sets: BTreeMap<SetId, BackendSet>,
    /// Backends.
    pub backends: BTreeMap<BackendId, BackendEntry>,
    /// Source ranges.
    pub ranges: BTreeSet<(ServiceId, IpNet)>,
}

impl ServiceTables {
    /// The tables after a patch.
    pub fn apply(&mut self, patch: &ServicePatch) {
        self.backends.extend(patch.put_backends.iter().map(|(id, backend)| (*id, *backend)));
        self.sets.extend(patch.put_sets.iter().map(|(id, set)| (*id, set.clone())));
        self.ranges.extend(patch.put_ranges.iter().copied());
        self.frontends.extend(patch.put_frontends.iter().map(|(key, entry)| (*key, *entry)));
        // What goes is few among many.
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
