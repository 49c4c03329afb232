//! Requests to the agent and its answers.

use crate::cni;
use crate::flow::{Flow, FlowFilter, PolicyRef};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::sync::Arc;

/// A request: one line of JSON, `{"method": "status"}`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// CNI ADD. Answer: [`Response::CniResult`].
    CniAdd(cni::AddRequest),
    /// CNI DEL. Answer: [`Response::Done`].
    CniDel(cni::DelRequest),
    /// CNI CHECK. Answer: [`Response::Done`].
    CniCheck(cni::CheckRequest),
    /// CNI STATUS. Answer: [`Response::Done`].
    CniStatus,
    /// CNI GC. Answer: [`Response::Done`].
    CniGc(cni::GcRequest),
    /// State of the agent. Answer: [`Response::Status`].
    Status,
    /// Local endpoints.
    Endpoints,
    /// Identities known here.
    Identities,
    /// Policies in force.
    Policies,
    /// Addresses.
    Ipcache,
    /// Services in force.
    Services,
    /// Connections.
    Connections,
    /// Fill of the maps.
    Maps,
    /// Would a new connection pass? Answer: [`Response::Explanation`].
    Explain(ExplainRequest),
    /// What would change if these objects were applied, or deleted?
    Preview(PreviewRequest),
    /// Put an endpoint in audit mode, or back. Answer: [`Response::Done`].
    Audit(AuditRequest),
    /// Wait until something is in force. Answer: [`Response::Status`].
    Wait(WaitRequest),
    /// Flows: any number of [`Response::Flow`], then [`Response::Done`] unless `follow`.
    Observe {
        /// What to show.
        filter: FlowFilter,
        /// How many of the past, newest last.
        last: usize,
        /// Go on with new ones.
        follow: bool,
    },
}

/// An answer: one line of JSON.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", content = "value", rename_all = "snake_case")]
pub enum Response {
    /// It failed.
    Error(crate::failure::Failure),
    /// It is done.
    Done,
    /// Of an ADD.
    CniResult(cni::AddResult),
    /// See [`Status`].
    Status(Status),
    /// See [`Endpoint`].
    Endpoints(Vec<Endpoint>),
    /// See [`Identity`].
    Identities(Vec<Identity>),
    /// See [`Policy`].
    Policies(Vec<Policy>),
    /// See [`IpcacheEntry`].
    Ipcache(Vec<IpcacheEntry>),
    /// See [`Service`].
    Services(Vec<Service>),
    /// See [`Connection`].
    Connections(Vec<Connection>),
    /// See [`Map`].
    Maps(Vec<Map>),
    /// See [`Explanation`].
    Explanation(Explanation),
    /// See [`Preview`].
    Preview(Preview),
    /// See [`Flow`].
    Flow(Arc<Flow>),
    /// Number of matching flows that are missing here: the reader was too slow.
    Lost(u64),
}

/// State of the agent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Its node.
    pub node: String,
    /// Version of the program.
    pub version: String,
    /// Everything was synced and is in force: pods may come.
    pub ready: bool,
    /// What it is not ready for want of, one line each.
    pub waiting_for: Vec<String>,
    /// Newest revision of the tables.
    pub revision: u64,
    /// Newest revision of which everything is in the kernel.
    pub revision_in_force: u64,
    /// Current problems: object or map, and cause.
    pub problems: Vec<String>,
    /// Number of endpoints.
    pub endpoints: usize,
    /// Number of Services in force.
    #[serde(default)]
    pub services: usize,
    /// `native` or `vxlan`.
    pub routing: String,
    /// The node's addresses.
    pub addresses: Vec<IpAddr>,
    /// The node's pod prefixes.
    pub pod_cidrs: Vec<String>,
    /// Addresses in use and in all, per prefix.
    pub ipam: Vec<(String, u64, u64)>,
    /// Dropped packets by reason since boot: text, direction, packets, bytes.
    pub drops: Vec<(String, String, u64, u64)>,
    /// Events that were not reported, for the rate limit.
    pub events_suppressed: u64,
    /// Packets of clients outside that passed through the node at its device (XDP), since boot.
    #[serde(default)]
    pub accelerated: u64,
}

/// A local endpoint.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Endpoint {
    /// Number.
    pub id: u16,
    /// Pod.
    pub namespace: String,
    /// Pod.
    pub pod: String,
    /// Container id of the attachment.
    pub container_id: String,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// Identity.
    pub identity: u32,
    /// Labels.
    pub labels: Vec<String>,
    /// `ready`, `restoring`, `blocked`, ...
    pub state: String,
    /// Why it is not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Isolated on ingress by these.
    pub ingress: Option<Vec<PolicyRef>>,
    /// Isolated on egress by these.
    pub egress: Option<Vec<PolicyRef>>,
    /// Host side of its link.
    pub device: String,
    /// What policies would drop is reported and passes.
    #[serde(default)]
    pub audit: bool,
}

/// An identity.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Identity {
    /// Number.
    pub identity: u32,
    /// Labels.
    pub labels: Vec<String>,
    /// Local endpoints that have it.
    pub endpoints: usize,
}

/// A policy object as this node has it in force.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Policy {
    /// Which.
    pub policy: PolicyRef,
    /// Version of the object that is in force; empty: none.
    pub resource_version: String,
    /// Local endpoints that it selects.
    pub endpoints: Vec<u16>,
    /// Why the newest version is not in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// An address.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct IpcacheEntry {
    /// Prefix or address.
    pub prefix: String,
    /// Identity.
    pub identity: u32,
    /// Its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<IpAddr>,
    /// `pod`, `node`, `cidr`, `pool`.
    pub kind: String,
}

/// One port of a Service, of a pod's hostPorts or of a local redirect policy, as this node has it in force.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Service {
    /// `Service`, `HostPort` (of a pod) or `LocalRedirect` (of a CiliumLocalRedirectPolicy).
    pub kind: String,
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// The port.
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Where clients send to.
    pub frontends: Vec<ServiceFrontend>,
    /// What is behind it.
    pub backends: Vec<ServiceBackend>,
    /// Seconds that a client stays with its backend; absent: it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity_s: Option<u32>,
    /// `random` or `maglev`.
    pub algorithm: String,
    /// How packets from outside reach backends of other nodes: `snat` or `dsr`.
    pub forwarding: String,
}

/// Where clients send to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServiceFrontend {
    /// `ClusterIP`, `NodePort`, `HostPort`, `LoadBalancer`, `ExternalIP` or `LocalRedirect`.
    pub kind: String,
    /// Address; unspecified: every address of the node.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Clients of this node get backends of this node only.
    pub internal_local: bool,
    /// Clients outside get backends of this node only.
    pub external_local: bool,
    /// Clients outside must be in a source range.
    pub source_ranges: bool,
}

/// What is behind it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServiceBackend {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// `active` or `terminating`.
    pub state: String,
    /// On this node.
    pub local: bool,
    /// New connections of this node's clients may go to it.
    pub internal: bool,
    /// New connections of clients outside may go to it.
    pub external: bool,
}

/// A tracked connection.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Connection {
    /// Protocol.
    pub protocol: String,
    /// Originator.
    pub source: IpAddr,
    /// Its port.
    pub source_port: u16,
    /// Responder.
    pub destination: IpAddr,
    /// Its port.
    pub destination_port: u16,
    /// `syn`, `established`, `closing`, `unreplied`, ...
    pub state: String,
    /// Seconds since the last packet.
    pub idle_s: u64,
    /// Packets each way.
    pub packets: (u64, u64),
    /// Bytes each way.
    pub bytes: (u64, u64),
    /// Outside address and port if masqueraded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub masquerade: Option<(IpAddr, u16)>,
}

/// A map.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Map {
    /// Name.
    pub name: String,
    /// Entries.
    pub entries: u64,
    /// Capacity.
    pub entries_max: u64,
    /// Kernel memory.
    pub memory_bytes: u64,
}

/// One end of a question: a pod `ns/name`, or an address.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExplainPeer {
    /// `ns/name`
    Pod(String),
    /// Address.
    Ip(IpAddr),
}

/// Would a new connection pass?
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    /// Originator.
    pub from: ExplainPeer,
    /// Responder.
    pub to: ExplainPeer,
    /// Port; 0 for protocols without.
    pub port: u16,
    /// `TCP`, `UDP`, `SCTP`, `ICMP`.
    pub protocol: String,
    /// Also if `to` is an address of a Service, it is meant as it stands.
    #[serde(default)]
    pub as_it_stands: bool,
}

/// The answer. A side that is not on this node is `None`: ask its own node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Explanation {
    /// Leaving the originator.
    pub egress: Option<Decision>,
    /// Entering the responder.
    pub ingress: Option<Decision>,
    /// The destination is this Service's, as far as this node serves the originator: then policies are asked about its
    /// backends alone, and the sides are `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ExplainedService>,
}

/// A Service whose frontend was asked for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExplainedService {
    /// `Service`, `HostPort` or `LocalRedirect`.
    pub kind: String,
    /// Of the object.
    pub namespace: String,
    /// Of the object.
    pub name: String,
    /// Why the originator is not served at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Where a new connection of the originator may go.
    pub backends: Vec<ExplainedBackend>,
}

/// A backend of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExplainedBackend {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// The originator's address, as the backend and its policies see it, if it is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seen_as: Option<IpAddr>,
}

/// One direction.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Decision {
    /// It passes.
    pub allowed: bool,
    /// Why, in a sentence.
    pub reason: String,
    /// The rules that decide; for a default deny, the policies that isolate.
    pub policies: Vec<PolicyRef>,
    /// The other rules that were looked at, each with what became of it.
    #[serde(default)]
    pub others: Vec<(PolicyRef, String)>,
}

/// Objects to look at, as YAML or JSON has them.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreviewRequest {
    /// Policies of any kind, and CiliumCIDRGroups.
    pub objects: Vec<serde_json::Value>,
    /// As if they were deleted.
    #[serde(default)]
    pub delete: bool,
}

/// What would change for the endpoints of one node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Preview {
    /// Local endpoints that were looked at.
    pub endpoints: u64,
    /// Peers that were looked at: identities and prefixes.
    pub peers: u64,
    /// Pairs of endpoint and peer that could talk, and could not any more (on some port).
    pub newly_denied: PreviewChange,
    /// Pairs of which it is the other way round.
    pub newly_allowed: PreviewChange,
    /// Connections of now, and recent drops, that were looked at.
    pub connections: u64,
    /// Connections of now that would be cut.
    pub connections_cut: PreviewChange,
    /// Recent drops that would have passed.
    pub drops_passing: PreviewChange,
}

/// How many, and some of them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PreviewChange {
    /// How many.
    pub count: u64,
    /// The first ones.
    pub examples: Vec<PreviewExample>,
}

/// One of them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PreviewExample {
    /// `ingress` or `egress`, as the endpoint sees it.
    pub direction: String,
    /// The endpoint's pod, `namespace/name`.
    pub endpoint: String,
    /// The peer: a pod, an identity's labels, a prefix, or an address.
    pub peer: String,
    /// Ports: `80/TCP`, `8000-8100/TCP`, `any`.
    pub ports: Vec<String>,
    /// The rule that would decide; absent for a default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<PolicyRef>,
}

/// Which endpoint, and what.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditRequest {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// Into audit mode, or out of it.
    pub on: bool,
}

/// Wait for a fact.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum WaitRequest {
    /// The agent is ready.
    Ready {
        /// Give up after.
        timeout_ms: u64,
    },
    /// Everything of this revision is in force.
    Revision {
        /// The revision.
        revision: u64,
        /// Give up after.
        timeout_ms: u64,
    },
    /// This version of a policy is in force; `resource_version: None`: the policy is gone.
    Policy {
        /// `NetworkPolicy`, `CiliumNetworkPolicy`, ...
        kind: String,
        /// Namespace; empty for a kind without.
        namespace: String,
        /// Name.
        name: String,
        /// Version.
        resource_version: Option<String>,
        /// Give up after.
        timeout_ms: u64,
    },
}
