//! The desired state of the kernel, and the trait of the data plane that applies it.

use crate::id::{EndpointId, Identity, PeerClass, PolicyClass, PolicyId, RuleId};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

mod service;

pub use service::{
    BackendEntry, BackendId, BackendSet, Frontend, FrontendEntry, FrontendKind, ServiceId, ServicePatch, ServiceTables,
    SetId,
};

/// A local endpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    pub id: EndpointId,
    /// One per family.
    pub addresses: Vec<IpAddr>,
    /// Host side of its link.
    pub ifindex: u32,
    /// MAC inside the pod.
    pub pod_mac: [u8; 6],
    /// MAC of the host side.
    pub host_mac: [u8; 6],
    pub identity: Identity,
    pub ingress: PolicyId,
    pub egress: PolicyId,
    /// Drop all traffic, since its policy does not fit.
    pub blocked: bool,
    /// Audit mode: denied traffic is reported and forwarded.
    pub audit: bool,
}

/// The node itself as a subject of policies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Host {
    pub ingress: PolicyId,
    pub egress: PolicyId,
    /// Audit mode: denied traffic is reported and forwarded.
    pub audit: bool,
}

/// The ipcache entry of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IpcacheEntry {
    pub identity: Identity,
    /// Address of its node; `None`: this one.
    pub node: Option<IpAddr>,
    /// The address belongs to the node itself.
    pub is_node: bool,
}

/// The route of a prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// Pods of this node.
    LocalPool,
    /// Pods of the node with this address.
    RemotePool(IpAddr),
    /// Pods reach it without masquerading.
    NoMasquerade,
}

/// Ports of one protocol, as a prefix of the bits of the port number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortPrefix {
    /// IP protocol, 0: any (then `prefix_len` is 0).
    pub protocol: u8,
    /// Host order; the bits after the prefix are zero.
    pub port: u16,
    /// 0..=16.
    pub prefix_len: u8,
}

/// The action of a policy entry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Action {
    Allow,
    Deny,
    /// Only in the Admin tier: the lower tiers decide.
    Pass,
}

/// Precedences of entries: of all that match, the highest decides.
pub mod precedence {
    use crate::intent::RuleAction;

    /// The lowest of the Admin tier.
    pub const ADMIN: u32 = 0x8000_0000;
    /// A deny of the Normal tier.
    pub const DENY: u32 = 0x4000_00ff;
    /// An allow of the Normal tier. The gap below [`DENY`] is reserved for redirects.
    pub const ALLOW: u32 = 0x4000_0001;
    /// The lowest of the Baseline tier.
    pub const BASELINE: u32 = 1;

    /// The order within a tier: by priority, then by the index of the rule in its policy. The specification leaves the order
    /// of rules with equal priority and index open; the safe one is deny, pass, allow.
    const fn ordered(priority: u16, index: u16, action: RuleAction) -> u32 {
        let action = match action {
            RuleAction::Allow => 0,
            RuleAction::Pass => 1,
            RuleAction::Deny => 2,
        };
        let index = if index > 255 { 255 } else { index };
        (((u16::MAX - priority) as u32) << 10) | ((255 - index as u32) << 2) | action
    }

    /// Of a rule of the Admin tier.
    #[must_use]
    pub const fn admin(priority: u16, index: u16, action: RuleAction) -> u32 {
        ADMIN + ordered(priority, index, action)
    }

    /// Of a rule of the Baseline tier.
    #[must_use]
    pub const fn baseline(priority: u16, index: u16, action: RuleAction) -> u32 {
        BASELINE + ordered(priority, index, action)
    }
}

/// A policy entry's value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Verdict {
    pub action: Action,
    /// The highest one decides.
    pub precedence: u32,
    /// The rule that made it.
    pub rule: RuleId,
}

/// A resolved policy of one direction.
///
/// Lookup: a peer (its identity, and the number of the longest prefix that contains its address) maps to a [`PeerClass`],
/// which all policies of the node share; here it maps to a [`PolicyClass`], and that and the port map to entries.
/// [`PolicyClass::ANY`] is always probed. The Admin tier's entries are kept under [`PolicyClass::admin`] and probed first;
/// the others only if no entry matches there or a `Pass` decides.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CompiledPolicy {
    /// The policy classes of peer classes.
    pub classes: BTreeMap<PeerClass, PolicyClass>,
    /// The policy class of all other classes of identities (not of prefixes).
    pub rest: PolicyClass,
    /// Traffic that no entry matches is allowed.
    pub default_allow: bool,
    pub entries: BTreeMap<(PolicyClass, PortPrefix), Verdict>,
}

/// A change of a policy in use. Applied in the order of the fields, so that no peer class maps to a policy class whose
/// entries are not written yet or already removed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PolicyPatch {
    pub put_entries: BTreeMap<(PolicyClass, PortPrefix), Verdict>,
    pub put_classes: BTreeMap<PeerClass, PolicyClass>,
    pub del_classes: BTreeSet<PeerClass>,
    pub del_entries: BTreeSet<(PolicyClass, PortPrefix)>,
}

/// The endpoints whose established flows must be decided again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Touched {
    /// All of the node.
    Node,
    Endpoints(BTreeSet<EndpointId>),
}

/// How full a map is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapUsage {
    pub name: String,
    pub entries: u64,
    pub entries_max: u64,
    /// Bytes of kernel memory.
    pub memory_bytes: u64,
}

/// Why a call did not put the desired state in force. The refused call has changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// The map has no room: refuse the object, or raise the map's size.
    #[error("map {map} is full: {entries} entries of {entries_max}, {wanted} more wanted")]
    MapFull {
        map: &'static str,
        entries: u64,
        entries_max: u64,
        /// Entries that the call would have added.
        wanted: u64,
    },
    /// The call contradicts what is in force, or names what does not exist. To repeat it does not help.
    #[error("{what}: {why}")]
    Invalid {
        /// What was attempted on what.
        what: String,
        /// What is wrong with it, and what was expected.
        why: String,
    },
    /// A system call failed. It may succeed when repeated.
    #[error("{what}")]
    System {
        /// What was attempted on what.
        what: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

/// Writes the kernel's maps. Every call is idempotent; removing something that does not exist is `Ok`. Changes apply to new
/// flows at once, to established ones only after [`Dataplane::bump`].
pub trait Dataplane: Send {
    /// Writes a policy that no endpoint uses yet, all or nothing.
    ///
    /// # Errors
    /// [`DataplaneError`]; nothing of the policy is left behind.
    fn put_policy(&mut self, id: PolicyId, policy: &CompiledPolicy) -> Result<(), DataplaneError>;
    /// Changes a policy in use, all or nothing.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn patch_policy(&mut self, id: PolicyId, patch: &PolicyPatch) -> Result<(), DataplaneError>;
    /// Removes a policy that no endpoint uses any more.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn remove_policy(&mut self, id: PolicyId) -> Result<(), DataplaneError>;
    /// The policies in the kernel, after a restart those of the previous agent.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn policies(&mut self) -> Result<BTreeMap<PolicyId, CompiledPolicy>, DataplaneError>;
    /// Writes the classes of peers, all or nothing: identities, and prefixes by their numbers (see [`Identity::in_scope`]).
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn put_peers(&mut self, peers: &BTreeMap<Identity, PeerClass>) -> Result<(), DataplaneError>;
    /// # Errors
    /// [`DataplaneError`]
    fn remove_peers(&mut self, peers: &BTreeSet<Identity>) -> Result<(), DataplaneError>;
    /// The peers in the kernel.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn peers(&mut self) -> Result<BTreeMap<Identity, PeerClass>, DataplaneError>;
    /// Sets the policies of the node itself; `None`: it has none.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn set_host(&mut self, host: Option<&Host>) -> Result<(), DataplaneError>;
    /// # Errors
    /// [`DataplaneError`]
    fn put_endpoint(&mut self, endpoint: &Endpoint) -> Result<(), DataplaneError>;
    /// Removes an endpoint's addresses and their connections.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn remove_endpoint(&mut self, addresses: &[IpAddr]) -> Result<(), DataplaneError>;
    /// The endpoints in the kernel.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn endpoints(&mut self) -> Result<Vec<Endpoint>, DataplaneError>;
    /// Upserts (`Some`) or deletes (`None`) an address in the ipcache.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn set_ipcache(&mut self, address: IpAddr, entry: Option<&IpcacheEntry>) -> Result<(), DataplaneError>;
    /// The ipcache in the kernel.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn ipcache(&mut self) -> Result<BTreeMap<IpAddr, IpcacheEntry>, DataplaneError>;
    /// Upserts or deletes a prefix that policies name.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn set_cidr(&mut self, cidr: IpNet, identity: Option<Identity>) -> Result<(), DataplaneError>;
    /// The prefixes of policies in the kernel.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn cidrs(&mut self) -> Result<BTreeMap<IpNet, Identity>, DataplaneError>;
    /// Upserts or deletes a route.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn set_route(&mut self, cidr: IpNet, route: Option<Route>) -> Result<(), DataplaneError>;
    /// The routes in the kernel.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn routes(&mut self) -> Result<BTreeMap<IpNet, Route>, DataplaneError>;
    /// Changes services. Nothing is written if it does not fit; if a write fails midway, the same patch again completes it.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn patch_services(&mut self, patch: &ServicePatch) -> Result<(), DataplaneError>;
    /// The services in the kernel.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn services(&mut self) -> Result<ServiceTables, DataplaneError>;
    /// Applies everything written so far to the established flows of `touched`: when this returns, the next packet of each is
    /// decided again.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn bump(&mut self, touched: &Touched) -> Result<(), DataplaneError>;
    /// How full every map is.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn usage(&mut self) -> Result<Vec<MapUsage>, DataplaneError>;
}
