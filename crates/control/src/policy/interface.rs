//! What goes into the policy compiler and comes out of it: changes, plans, problems.

use super::limits::Blocked;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use weft_model::desired::{CompiledPolicy, PolicyPatch};
use weft_model::id::{EndpointId, Identity, PeerClass, PolicyId, RuleId};
use weft_model::intent::{NamedPort, ObjectName, Policy, PolicyName, RemoteEndpoint};
use weft_model::label::LabelSet;

/// Number of a selector in use. Numbers grow: a selector that came into use later has a higher one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct SelectorId(pub(super) u32);

/// As seen from the endpoint that a policy selects.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Direction {
    Ingress,
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
    pub policy: PolicyName,
    pub direction: Direction,
    /// Field of the object: `ingress[0]`.
    pub place: Arc<str>,
    /// `spec.log.value`, copied to the flows that the rule decides.
    pub log: Option<Arc<str>>,
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.policy, self.place)
    }
}

/// An endpoint of this node, as the policy engine needs it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalEndpoint {
    pub id: EndpointId,
    pub pod: ObjectName,
    /// All labels of the pod and of its namespace, with source, including those that identities exclude. Of
    /// [`EndpointId::HOST`] the labels of the Node, with plain keys.
    pub labels: LabelSet,
    pub identity: Identity,
    pub addresses: Vec<IpAddr>,
    pub named_ports: Vec<NamedPort>,
}

/// An input of the engine. If a batch has several for one key, the last one counts.
#[derive(Clone, Debug)]
pub enum Change {
    PutPolicy(Arc<Policy>),
    RemovePolicy(PolicyName),
    PutIdentity(Identity, Arc<LabelSet>),
    RemoveIdentity(Identity),
    /// An endpoint of this node.
    PutEndpoint(LocalEndpoint),
    RemoveEndpoint(EndpointId),
    /// An endpoint of another node, keyed by its `pod_uid`.
    PutRemote(Arc<RemoteEndpoint>),
    RemoveRemote(String),
}

/// The resolved policies of an endpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointPolicy {
    pub id: EndpointId,
    pub ingress: PolicyId,
    pub egress: PolicyId,
    /// Set: the endpoint drops all traffic.
    pub blocked: Option<Blocked>,
}

/// The writes that bring the kernel's maps in line, in the order of the fields. On an error, stop and resume at the failed
/// step: what is in force stays in force until the step that replaces it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Rule numbers that events may carry from now on.
    pub rules: Vec<(RuleId, RuleRef)>,
    /// New policies, which no endpoint uses yet.
    pub put: Vec<(PolicyId, Arc<CompiledPolicy>)>,
    /// Rows of new peer classes for policies in use.
    pub patch: Vec<(PolicyId, PolicyPatch)>,
    /// Peers that are new, or that are allowed more than before.
    pub put_peers: Vec<(Identity, PeerClass)>,
    pub add_cidrs: Vec<(IpNet, Identity)>,
    /// Endpoints to switch to other policies. After these, write the ipcache.
    pub switch: Vec<EndpointPolicy>,
    /// Peers that are allowed less than before; `None`: deleted ones.
    pub narrow: Vec<(Identity, Option<PeerClass>)>,
    /// Endpoints whose established connections must be decided again.
    pub touched: BTreeSet<EndpointId>,
    pub remove_cidrs: Vec<IpNet>,
    /// The peer rows of `remove_cidrs`.
    pub del_peers: Vec<Identity>,
    /// Rows of deleted peer classes. Needs no bump.
    pub late_patch: Vec<(PolicyId, PolicyPatch)>,
    pub remove: Vec<PolicyId>,
}

impl Plan {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The complete desired state, for a full reconciliation after a restart or a failed write.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Desired {
    pub policies: BTreeMap<PolicyId, Arc<CompiledPolicy>>,
    pub peers: BTreeMap<Identity, PeerClass>,
    pub cidrs: BTreeMap<IpNet, Identity>,
    pub endpoints: BTreeMap<EndpointId, EndpointPolicy>,
}

/// A policy object that is not in force as written.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Problem {
    pub policy: PolicyName,
    /// The version of the object that has the problem.
    pub resource_version: String,
    /// The version was refused as a whole: the previous one is in force, if there was one.
    pub refused: bool,
    /// For the object's status.
    pub text: String,
}
