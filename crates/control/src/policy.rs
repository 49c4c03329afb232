//! Policies to map contents, change by change.
//!
//! [`Engine::apply`] takes what changed and returns a [`Plan`]: data, in an order in which no packet is ever judged
//! by half a change. A new identity costs only the selectors that match it, a rule only the endpoints it selects.

use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use weft_model::desired::{CompiledPolicy, PolicyPatch};
use weft_model::id::{EndpointId, Identity, PolicyId, RuleId};
use weft_model::intent::{NamedPort, ObjectName, Policy, RemoteEndpoint};
use weft_model::label::LabelSet;

mod engine;
pub mod lookup;
mod peers;
mod plan;
pub mod ports;
mod prefix;
mod resolved;
mod rule;
mod selector;
mod settle;

pub use engine::Engine;
pub use lookup::lookup;
pub(crate) use peers::numbers as pod_numbers;
pub(crate) use resolved::PortName;
pub(crate) use rule::{Peers as RulePeers, Rule};

/// Which way, as seen from the pod that a policy applies to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Direction {
    /// Packets to it.
    Ingress,
    /// Packets from it.
    Egress,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// The rule that a number stands for: `NetworkPolicy shop/web ingress[0]`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RuleRef {
    /// Kind of the object.
    pub kind: &'static str,
    /// The object.
    pub object: ObjectName,
    /// Which of its lists.
    pub direction: Direction,
    /// Which element, from 0.
    pub index: usize,
}

impl RuleRef {
    /// `ingress[0]`
    #[must_use]
    pub fn place(&self) -> String {
        format!("{}[{}]", self.direction, self.index)
    }
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.kind, self.object, self.place())
    }
}

/// An endpoint of this node, as far as policy cares.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalEndpoint {
    /// Number.
    pub id: EndpointId,
    /// Its pod.
    pub pod: ObjectName,
    /// Labels of the pod, as written. Policies select by these, not by the identity's, so that a label which
    /// identities leave out selects all the same.
    pub labels: BTreeMap<String, String>,
    /// Identity.
    pub identity: Identity,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// Container ports that have a name.
    pub named_ports: Vec<NamedPort>,
}

/// News for the engine. Of several about the same thing in one batch the last counts.
#[derive(Clone, Debug)]
pub enum Change {
    /// A policy object.
    PutPolicy(Arc<Policy>),
    /// It is gone.
    RemovePolicy(ObjectName),
    /// Labels of an identity.
    PutIdentity(Identity, Arc<LabelSet>),
    /// It is gone.
    RemoveIdentity(Identity),
    /// An endpoint of this node.
    PutEndpoint(LocalEndpoint),
    /// It is gone.
    RemoveEndpoint(EndpointId),
    /// An endpoint elsewhere; its `pod_uid` is its key.
    PutRemote(Arc<RemoteEndpoint>),
    /// It is gone.
    RemoveRemote(String),
}

/// Which policies an endpoint shall have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointPolicy {
    /// The endpoint.
    pub id: EndpointId,
    /// For packets to it.
    pub ingress: PolicyId,
    /// For packets from it.
    pub egress: PolicyId,
    /// Drop everything, and why.
    pub blocked: Option<String>,
}

/// What to do so that the kernel matches, in the order of the fields. Whoever carries it out stops at the first
/// error and tries again from there: what was in force stays in force until the step that replaces it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Numbers that events may name from now on.
    pub rules: Vec<(RuleId, RuleRef)>,
    /// Policies to write that nobody uses yet.
    pub put: Vec<(PolicyId, Arc<CompiledPolicy>)>,
    /// Peers of policies in use that may do more than before.
    pub patch: Vec<(PolicyId, PolicyPatch)>,
    /// Prefixes to write.
    pub add_cidrs: Vec<(IpNet, Identity)>,
    /// Endpoints to switch. After these, addresses are to point to their new identities.
    pub switch: Vec<EndpointPolicy>,
    /// Peers of policies in use that may not do all that they could.
    pub narrow: Vec<(PolicyId, PolicyPatch)>,
    /// Then bump these: their established connections decide again.
    pub touched: BTreeSet<EndpointId>,
    /// Prefixes to remove.
    pub remove_cidrs: Vec<IpNet>,
    /// What policies need no more once those are gone. Needs no bump.
    pub late_patch: Vec<(PolicyId, PolicyPatch)>,
    /// Policies to remove.
    pub remove: Vec<PolicyId>,
}

impl Plan {
    /// Nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What shall be in the kernel, whole: to compare with after a restart or a failure.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Desired {
    /// Policies.
    pub policies: BTreeMap<PolicyId, Arc<CompiledPolicy>>,
    /// Prefixes.
    pub cidrs: BTreeMap<IpNet, Identity>,
    /// Endpoints.
    pub endpoints: BTreeMap<EndpointId, EndpointPolicy>,
}

/// A policy object that is not in force as it was written.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Problem {
    /// The object.
    pub policy: ObjectName,
    /// The object's version that has the problem.
    pub resource_version: String,
    /// The version was refused: the one before it is in force, if there was one.
    pub refused: bool,
    /// What and why.
    pub text: String,
}

/// How much the node takes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Entries of one resolved policy.
    pub entries_per_policy: usize,
    /// Peers of one resolved policy.
    pub peers_per_policy: usize,
    /// Resolved policies.
    pub policies: usize,
    /// Entries of all, old and new side by side while they change places.
    pub entries: usize,
    /// Peers of all, likewise.
    pub peers: usize,
    /// Prefixes.
    pub cidrs: usize,
}

impl Limits {
    /// For maps that hold this many policies, entries, peers and prefixes. Half of each is used: after a restart all
    /// policies are written anew beside those that are still in force, and that must never fail for lack of room.
    #[must_use]
    pub fn for_maps(policies: usize, entries: usize, peers: usize, cidrs: usize) -> Self {
        Self { policies: policies / 2, entries: entries / 2, peers: peers / 2, cidrs: cidrs / 2, ..Self::default() }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries_per_policy: 16_384,
            peers_per_policy: 131_072,
            policies: 8_192,
            entries: 131_072,
            peers: 131_072,
            cidrs: 32_768,
        }
    }
}

/// A limit would be exceeded.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("needs {wanted} {what}, of which {limit} fit")]
pub struct Overflow {
    /// Of what.
    pub what: &'static str,
    /// How many.
    pub wanted: usize,
    /// How many fit.
    pub limit: usize,
}

impl Limits {
    fn check(what: &'static str, wanted: usize, limit: usize) -> Result<(), Overflow> {
        if wanted > limit { Err(Overflow { what, wanted, limit }) } else { Ok(()) }
    }

    fn check_policy(&self, entries: usize, peers: usize) -> Result<(), Overflow> {
        Self::check("entries in one resolved policy", entries, self.entries_per_policy)?;
        Self::check("peers in one resolved policy", peers, self.peers_per_policy)
    }

    fn check_policies(&self, policies: usize) -> Result<(), Overflow> {
        Self::check("resolved policies on this node", policies, self.policies)
    }

    fn check_total(&self, entries: usize, peers: usize) -> Result<(), Overflow> {
        Self::check("policy entries on this node", entries, self.entries)?;
        Self::check("policy peers on this node", peers, self.peers)
    }
}
