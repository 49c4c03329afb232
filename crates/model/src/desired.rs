//! What the kernel shall hold, and the trait of that which makes it so.

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
    /// Number.
    pub id: EndpointId,
    /// Its addresses, one per family.
    pub addresses: Vec<IpAddr>,
    /// Host side of its link.
    pub ifindex: u32,
    /// MAC inside the pod.
    pub pod_mac: [u8; 6],
    /// MAC of the host side.
    pub host_mac: [u8; 6],
    /// Identity.
    pub identity: Identity,
    /// Policy for packets to it.
    pub ingress: PolicyId,
    /// Policy for packets from it.
    pub egress: PolicyId,
    /// Drop everything: its policy could not be put in force.
    pub blocked: bool,
    /// What its policies would drop is reported and passes all the same.
    pub audit: bool,
}

/// The node itself as a subject of policies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Host {
    /// Policy for packets to the node.
    pub ingress: PolicyId,
    /// Policy for packets from it.
    pub egress: PolicyId,
    /// What they would drop is reported and passes all the same.
    pub audit: bool,
}

/// Who has an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IpcacheEntry {
    /// Identity.
    pub identity: Identity,
    /// Its node; `None`: this one.
    pub node: Option<IpAddr>,
    /// The address is the node's own.
    pub is_node: bool,
}

/// What is known of a prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// Pods of this node.
    LocalPool,
    /// Pods of the node with this address.
    RemotePool(IpAddr),
    /// Reached with the pod's own address.
    NoMasquerade,
}

/// Ports of one protocol as a prefix of the port number's bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortPrefix {
    /// IP protocol, 0: any (then `prefix_len` is 0).
    pub protocol: u8,
    /// Port, host order, bits after the prefix are zero.
    pub port: u16,
    /// 0..=16.
    pub prefix_len: u8,
}

/// What an entry does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Action {
    /// Let it pass.
    Allow,
    /// Drop.
    Deny,
    /// Only in the Admin tier: the best entry of the other tiers decides.
    Pass,
}

/// Precedences of entries: of all that match a packet, the highest decides.
pub mod precedence {
    use crate::intent::RuleAction;

    /// Lowest of the Admin tier; all below are of the Normal and the Baseline tier.
    pub const ADMIN: u32 = 0x8000_0000;
    /// A deny of the Normal tier.
    pub const DENY: u32 = 0x4000_00ff;
    /// An allow of the Normal tier. Between the two is room for redirects.
    pub const ALLOW: u32 = 0x4000_0001;
    /// Lowest of the Baseline tier.
    pub const BASELINE: u32 = 1;

    /// Of the rule at `index` of a policy with this priority, within its tier. Lower priorities first, then lower
    /// indices. What the documents leave open, rules of equal priority and index in several policies, is decided for
    /// the safe side: deny, then pass, then allow.
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

/// What an entry says.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Verdict {
    /// Action.
    pub action: Action,
    /// Higher wins.
    pub precedence: u32,
    /// The rule that made it.
    pub rule: RuleId,
}

/// A resolved policy of one direction.
///
/// A lookup goes: peer (identity, and number of the longest prefix of its address) -> [`PeerClass`], which all policies
/// of the node share; (policy, peer class) -> [`PolicyClass`]; (policy class, port) -> entries. [`PolicyClass::ANY`] is
/// always probed. The entries of the Admin tier are under [`PolicyClass::admin`] of each class: they are probed first, and
/// the others only if none matches or the best is a [`Action::Pass`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CompiledPolicy {
    /// Peer class -> policy class.
    pub classes: BTreeMap<PeerClass, PolicyClass>,
    /// The policy class of identities (not of prefixes) whose [`PeerClass`] is absent above; [`PolicyClass::ANY`]: none.
    pub rest: PolicyClass,
    /// What no entry matches passes.
    pub default_allow: bool,
    /// Entries.
    pub entries: BTreeMap<(PolicyClass, PortPrefix), Verdict>,
}

/// A change of a compiled policy that is in force. Applied in the order of the fields, so that no packet meets a
/// peer whose class has no entries yet, or entries whose class lost its meaning.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PolicyPatch {
    /// Entries to write.
    pub put_entries: BTreeMap<(PolicyClass, PortPrefix), Verdict>,
    /// Classes to write.
    pub put_classes: BTreeMap<PeerClass, PolicyClass>,
    /// Classes to remove.
    pub del_classes: BTreeSet<PeerClass>,
    /// Entries to remove.
    pub del_entries: BTreeSet<(PolicyClass, PortPrefix)>,
}

/// Whose decided flows must decide again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Touched {
    /// All of the node.
    Node,
    /// Those of these endpoints.
    Endpoints(BTreeSet<EndpointId>),
}

/// Fill of a map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapUsage {
    /// Name.
    pub name: String,
    /// Entries in it.
    pub entries: u64,
    /// Entries that fit.
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
        /// Name of the map.
        map: &'static str,
        /// Entries in it.
        entries: u64,
        /// Entries that fit.
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

/// The one that fills the kernel's maps. Every call is idempotent; removal of what is not there is `Ok`.
/// Nothing takes hold on decided flows before [`Dataplane::bump`].
pub trait Dataplane: Send {
    /// Writes a policy that no endpoint uses yet. Refused whole if it does not fit.
    ///
    /// # Errors
    /// [`DataplaneError`]; nothing of the policy is left behind.
    fn put_policy(&mut self, id: PolicyId, policy: &CompiledPolicy) -> Result<(), DataplaneError>;
    /// Changes a policy in use. Refused whole if it does not fit.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn patch_policy(&mut self, id: PolicyId, patch: &PolicyPatch) -> Result<(), DataplaneError>;
    /// Removes a policy that no endpoint uses any more.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn remove_policy(&mut self, id: PolicyId) -> Result<(), DataplaneError>;
    /// Policies that the kernel holds (after a restart: from before).
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn policies(&mut self) -> Result<BTreeMap<PolicyId, CompiledPolicy>, DataplaneError>;
    /// Writes the classes of peers: identities, and prefixes by their numbers (see [`Identity::in_scope`]). Refused
    /// whole if they do not fit.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn put_peers(&mut self, peers: &BTreeMap<Identity, PeerClass>) -> Result<(), DataplaneError>;
    /// Removes peers.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn remove_peers(&mut self, peers: &BTreeSet<Identity>) -> Result<(), DataplaneError>;
    /// Peers that the kernel holds.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn peers(&mut self) -> Result<BTreeMap<Identity, PeerClass>, DataplaneError>;
    /// Makes the node a subject of policies; `None`: it is not.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn set_host(&mut self, host: Option<&Host>) -> Result<(), DataplaneError>;
    /// Writes an endpoint.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn put_endpoint(&mut self, endpoint: &Endpoint) -> Result<(), DataplaneError>;
    /// Removes an endpoint's addresses and everything tracked for them.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn remove_endpoint(&mut self, addresses: &[IpAddr]) -> Result<(), DataplaneError>;
    /// Endpoints that the kernel holds.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn endpoints(&mut self) -> Result<Vec<Endpoint>, DataplaneError>;
    /// Writes (`Some`) or removes (`None`) an address.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn set_ipcache(&mut self, address: IpAddr, entry: Option<&IpcacheEntry>) -> Result<(), DataplaneError>;
    /// Addresses that the kernel holds.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn ipcache(&mut self) -> Result<BTreeMap<IpAddr, IpcacheEntry>, DataplaneError>;
    /// Writes or removes a prefix that policies name.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn set_cidr(&mut self, cidr: IpNet, identity: Option<Identity>) -> Result<(), DataplaneError>;
    /// Prefixes that the kernel holds.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn cidrs(&mut self) -> Result<BTreeMap<IpNet, Identity>, DataplaneError>;
    /// Writes or removes what is known of a prefix.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn set_route(&mut self, cidr: IpNet, route: Option<Route>) -> Result<(), DataplaneError>;
    /// Prefixes that the kernel holds.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn routes(&mut self) -> Result<BTreeMap<IpNet, Route>, DataplaneError>;
    /// Changes services. Refused whole if it does not fit; if a write fails in the middle, the same patch again completes
    /// it.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn patch_services(&mut self, patch: &ServicePatch) -> Result<(), DataplaneError>;
    /// Services that the kernel holds.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn services(&mut self) -> Result<ServiceTables, DataplaneError>;
    /// Makes everything written so far take hold on the flows of `touched`, established ones included:
    /// when this returns, the next packet of each is judged by it.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn bump(&mut self, touched: &Touched) -> Result<(), DataplaneError>;
    /// Fill of every map.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn usage(&mut self) -> Result<Vec<MapUsage>, DataplaneError>;
}
