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
use weft_model::id::{EndpointId, Identity, PeerClass, PolicyId, RuleId};
use weft_model::intent::{NamedPort, ObjectName, Policy, PolicyName, RemoteEndpoint};
use weft_model::label::LabelSet;

mod classes;
mod engine;
mod labels;
mod limits;
pub mod lookup;
mod objects;
mod peers;
mod plan;
mod pods;
pub mod ports;
mod prefix;
mod queries;
mod resolved;
mod rule;
mod selector;
mod settle;

pub use engine::Engine;
pub use limits::{Limits, Overflow};
pub use lookup::lookup;
pub(crate) use pods::numbers as pod_numbers;
pub use rule::RuleRefs;

/// Number of a selector while somebody uses it. Grows: what came into use later has a higher one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct SelectorId(u32);

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
    /// The object.
    pub policy: PolicyName,
    /// Which way.
    pub direction: Direction,
    /// Where it stands there.
    pub place: Arc<str>,
    /// Copied to flow records that it decided.
    pub log: Option<Arc<str>>,
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.policy, self.place)
    }
}

/// An endpoint of this node, as far as policy cares.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalEndpoint {
    /// Number.
    pub id: EndpointId,
    /// Its pod.
    pub pod: ObjectName,
    /// All labels of the pod and of its namespace, with their source: those of its identity, and those that identities
    /// leave out. Of [`EndpointId::HOST`] the labels of the Node, with plain keys.
    pub labels: LabelSet,
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
    RemovePolicy(PolicyName),
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
    /// What policies in use must know of classes that are new.
    pub patch: Vec<(PolicyId, PolicyPatch)>,
    /// Peers that are new, or may do more than before.
    pub put_peers: Vec<(Identity, PeerClass)>,
    /// Prefixes to write.
    pub add_cidrs: Vec<(IpNet, Identity)>,
    /// Endpoints to switch. After these, addresses are to point to their new identities.
    pub switch: Vec<EndpointPolicy>,
    /// Peers that may not do all that they could; `None`: those that are no more.
    pub narrow: Vec<(Identity, Option<PeerClass>)>,
    /// Then bump these: their established connections decide again.
    pub touched: BTreeSet<EndpointId>,
    /// Prefixes to remove.
    pub remove_cidrs: Vec<IpNet>,
    /// Their numbers, as peers.
    pub del_peers: Vec<Identity>,
    /// Classes that are no more. Needs no bump.
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
    /// Peers.
    pub peers: BTreeMap<Identity, PeerClass>,
    /// Prefixes.
    pub cidrs: BTreeMap<IpNet, Identity>,
    /// Endpoints.
    pub endpoints: BTreeMap<EndpointId, EndpointPolicy>,
}

/// A policy object that is not in force as it was written.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Problem {
    /// The object.
    pub policy: PolicyName,
    /// The object's version that has the problem.
    pub resource_version: String,
    /// The version was refused: the one before it is in force, if there was one.
    pub refused: bool,
    /// What and why.
    pub text: String,
}
