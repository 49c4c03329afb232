//! Answers to the local API. What only reads takes the published snapshot; what needs the compilers, or changes
//! something, has its turn with the writer.

use super::snapshot::Progress;
use crate::attach::Attachments;
use crate::server::Handler;
use crate::writer::Writer;
use crate::writer::explain::QueryError;
use crate::writer::preview::Seen;
use crate::writer::thread::{Handle, Unavailable};
use futures::future::{BoxFuture, FutureExt as _};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use weft_abi::{DropReason, MetricKey};
use weft_api::agent::{AuditRequest, Preview, PreviewRequest, Request, Response, Status, WaitRequest};
use weft_api::failure::{Failure, Kind};
use weft_api::flow::{Direction as FlowDirection, Flow, FlowFilter, PolicyRef, Verdict};
use weft_control::policy::Direction;
use weft_datapath::{Flows, Metrics};
use weft_model::id::{EndpointId, Identity, RuleId};
use weft_model::intent::{Change, ObjectName, PolicyKind, PolicyName, Protocol};
use weft_observe::{Directory, Observer, Party};

/// Longest wait that is granted.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// Connections that are listed.
const CONNECTIONS_MAX: usize = 65_536;
/// Recent drops that a preview looks at.
const DROPS_MAX: usize = 4096;

/// Answers.
pub struct Local {
    /// The tables' writer, and what it publishes.
    pub writer: Handle,
    /// CNI.
    pub attachments: Attachments,
    /// How far the tables are.
    pub progress: watch::Receiver<Progress>,
    /// Counters of the kernel.
    pub metrics: Metrics,
    /// Connections in the kernel.
    pub flows: Flows,
    /// Events.
    pub observer: Arc<Observer>,
    /// How policies are read.
    pub conversion: weft_k8s::convert::Settings,
}

impl Handler for Local {
    fn handle(self: Arc<Self>, request: Request, answers: mpsc::Sender<Response>) -> BoxFuture<'static, ()> {
        async move {
            if let Request::Observe { filter, last, follow } = request {
                self.observer.answer(filter, last, follow, &answers).await;
                return;
            }
            let answer = self.answer(request).await.unwrap_or_else(Response::Error);
            let _ = answers.send(answer).await;
        }
        .boxed()
    }
}

impl Local {
    async fn answer(&self, request: Request) -> Result<Response, Failure> {
        let done = |()| Response::Done;
        match request {
            Request::CniAdd(request) => self.attachments.add(request).await.map(Response::CniResult),
            Request::CniDel(request) => self.attachments.del(request).await.map(done),
            Request::CniCheck(request) => self.attachments.check(request).await.map(done),
            Request::CniStatus => self.attachments.status().map(done),
            Request::CniGc(request) => self.attachments.gc(request).await.map(done),
            Request::Status => self.status().await.map(Response::Status),
            Request::Endpoints => Ok(Response::Endpoints(self.writer.snapshot().list_endpoints())),
            Request::Identities => Ok(Response::Identities(self.writer.snapshot().list_identities())),
            Request::Policies => Ok(Response::Policies(self.writer.snapshot().policy.list())),
            Request::Services => {
                self.writer.call(|writer| writer.list_services()).await.map_err(gone).map(Response::Services)
            }
            Request::Ipcache => Ok(Response::Ipcache(self.writer.snapshot().list_ipcache())),
            Request::Connections => self.connections().await,
            Request::Maps => {
                let maps = self.writer.call(|writer| writer.maps()).await.map_err(gone)?;
                maps.map(Response::Maps).map_err(|error| kernel(&error))
            }
            Request::Explain(request) => {
                let explained = self.writer.call(move |writer| writer.explain(&request)).await.map_err(gone)?;
                explained.map(Response::Explanation).map_err(unanswered)
            }
            Request::Preview(request) => self.preview(request).await.map(Response::Preview),
            Request::Audit(AuditRequest { namespace, pod, on }) => {
                let name = ObjectName { namespace, name: pod };
                let set = self.writer.call(move |writer| writer.set_audit(&name, on)).await.map_err(gone)?;
                set.map(done).map_err(Failure::from)
            }
            Request::Wait(request) => self.wait(request).await.map(Response::Status),
            Request::Observe { .. } => Err(refusal(Kind::Refused, "observe has many answers", "")),
        }
    }

    async fn status(&self) -> Result<Status, Failure> {
        let mut status = self.writer.snapshot().status();
        let metrics = self.metrics.clone();
        let read = move || Ok::<_, std::io::Error>((metrics.read()?, metrics.suppressed()?));
        let read = tokio::task::spawn_blocking(read).await.map_err(|error| kernel(&error))?;
        let (counters, suppressed) = read.map_err(|error| kernel(&error))?;
        status.events_suppressed = suppressed;
        for counter in counters {
            let direction = if counter.egress { "egress" } else { "ingress" }.to_owned();
            match DropReason::from_raw(counter.reason) {
                Some(reason) => {
                    status.drops.push((reason.name().to_owned(), direction, counter.packets, counter.bytes))
                }
                // What passed, in audit mode or not.
                None if matches!(counter.reason, 0 | MetricKey::AUDITED) => {}
                None if counter.reason == MetricKey::ACCELERATED => status.accelerated += counter.packets,
                None => {
                    status.drops.push((format!("reason {}", counter.reason), direction, counter.packets, counter.bytes))
                }
            }
        }
        Ok(status)
    }

    async fn connections(&self) -> Result<Response, Failure> {
        let flows = self.flows.clone();
        let listed =
            tokio::task::spawn_blocking(move || flows.list(CONNECTIONS_MAX)).await.map_err(|error| kernel(&error))?;
        let connections = listed.map_err(|error| kernel(&error))?;
        let now_s = monotonic_s();
        Ok(Response::Connections(connections.into_iter().map(|row| connection(row, now_s)).collect()))
    }

    async fn preview(&self, request: PreviewRequest) -> Result<Preview, Failure> {
        let mut changes = Vec::new();
        for (n, object) in request.objects.iter().enumerate() {
            let change = weft_k8s::convert::object(object, &self.conversion);
            let change = change.map_err(|problem| {
                refusal(Kind::Malformed, "an object is not valid", &format!("object {n}: {problem}"))
            })?;
            changes.push(match change {
                Change::Policy(policy) if request.delete => Change::PolicyGone(policy.name),
                Change::CidrGroup(group) if request.delete => Change::CidrGroupGone(group.name),
                change => change,
            });
        }
        let flows = self.flows.clone();
        let listed =
            tokio::task::spawn_blocking(move || flows.list(CONNECTIONS_MAX)).await.map_err(|error| kernel(&error))?;
        let live: Vec<Seen> = listed
            .map_err(|error| kernel(&error))?
            .into_iter()
            .map(|row| Seen {
                from: row.source.address,
                to: row.destination.address,
                protocol: row.protocol,
                // Of ICMP only echoes are connections.
                port: match row.protocol {
                    1 => 8,
                    58 => 128,
                    _ => row.destination.port,
                },
            })
            .collect();
        let filter = FlowFilter { verdict: Some(Verdict::Dropped), ..FlowFilter::default() };
        let dropped: Vec<Seen> =
            self.observer.snapshot(filter, DROPS_MAX).iter().filter_map(|flow| seen(flow)).collect();
        let compare = move |writer: &mut Writer| writer.compare(&changes, &live, &dropped);
        let comparison = self.writer.call(compare).await.map_err(gone)?;
        tokio::task::spawn_blocking(move || comparison.run()).await.map_err(|error| kernel(&error))
    }

    async fn wait(&self, request: WaitRequest) -> Result<Status, Failure> {
        let timeout_ms = match &request {
            WaitRequest::Ready { timeout_ms }
            | WaitRequest::Revision { timeout_ms, .. }
            | WaitRequest::Policy { timeout_ms, .. } => *timeout_ms,
        };
        let until = Instant::now() + Duration::from_millis(timeout_ms).min(WAIT_MAX);
        let mut progress = self.progress.clone();
        loop {
            progress.borrow_and_update();
            if self.holds(&request)? {
                return self.status().await;
            }
            match tokio::time::timeout_at(until, progress.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(gone(Unavailable)),
                Err(_) => {
                    let status = self.writer.snapshot().status();
                    let why = [status.waiting_for, status.problems].concat().join("; ");
                    return Err(refusal(Kind::TryAgain, "not within the time given", &why));
                }
            }
        }
    }

    /// Whether the fact holds; an error if it never will.
    fn holds(&self, request: &WaitRequest) -> Result<bool, Failure> {
        let snapshot = self.writer.snapshot();
        match request {
            WaitRequest::Ready { .. } => Ok(snapshot.progress.ready),
            WaitRequest::Revision { revision, .. } => Ok(snapshot.progress.in_force >= *revision),
            WaitRequest::Policy { kind, namespace, name, resource_version, .. } => {
                let Some(kind) = PolicyKind::ALL.into_iter().find(|known| known.name() == kind) else {
                    let details = format!("kind: expected NetworkPolicy or another kind of policy, found {kind:?}");
                    return Err(refusal(Kind::Malformed, "malformed request", &details));
                };
                let object = ObjectName { namespace: namespace.clone(), name: name.clone() };
                let name = PolicyName { kind, object };
                let Some(version) = resource_version else { return Ok(snapshot.policy_is_gone(&name)) };
                if let Some(problem) = snapshot.policy.problem_of(&name, version) {
                    return Err(refusal(Kind::Refused, "this version is refused", &problem));
                }
                Ok(snapshot.policy_in_force(&name) == Some(version.as_str()))
            }
        }
    }
}

/// The connection that a drop would have begun.
fn seen(flow: &Flow) -> Option<Seen> {
    let protocol = *weft_observe::filter::protocol_numbers(&flow.protocol).first()?;
    let port = flow.icmp.map_or(flow.destination_port.unwrap_or(0), |(kind, _)| u16::from(kind));
    Some(Seen { from: flow.source.ip, to: flow.destination.ip, protocol, port })
}

/// The state of a connection as people call it.
fn state(protocol: u8, flags: u16) -> &'static str {
    use weft_abi::flow_flags::{FIN_FORWARD, FIN_REPLY, RST, SEEN_REPLY};
    let has = |flag: u16| flags & flag != 0;
    match protocol {
        _ if has(RST) => "reset",
        _ if has(FIN_FORWARD) && has(FIN_REPLY) => "closed",
        _ if has(FIN_FORWARD) || has(FIN_REPLY) => "closing",
        _ if has(SEEN_REPLY) => "established",
        6 => "syn",
        _ => "unreplied",
    }
}

/// The clock of [`weft_datapath::Connection::last_seen_s`].
fn monotonic_s() -> u32 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map(|now| now.tv_sec()).unwrap_or_default();
    u32::try_from(now).unwrap_or(u32::MAX)
}

fn connection(connection: weft_datapath::Connection, now_s: u32) -> weft_api::agent::Connection {
    weft_api::agent::Connection {
        protocol: weft_observe::decode::protocol_name(connection.protocol),
        source: connection.source.address,
        source_port: connection.source.port,
        destination: connection.destination.address,
        destination_port: connection.destination.port,
        state: state(connection.protocol, connection.flags).to_owned(),
        idle_s: u64::from(now_s.saturating_sub(connection.last_seen_s)),
        packets: (connection.source.packets, connection.destination.packets),
        bytes: (connection.source.bytes, connection.destination.bytes),
        masquerade: connection.masquerade,
    }
}

/// Names for flows, from the published snapshot.
pub struct Names {
    writer: Handle,
}

impl Names {
    /// From what this writer publishes.
    #[must_use]
    pub fn new(writer: Handle) -> Self {
        Self { writer }
    }
}

impl Directory for Names {
    fn party(&self, address: IpAddr) -> Option<Party> {
        let snapshot = self.writer.snapshot();
        let pod = snapshot.pod_with(address).map(|pod| Party::Pod { namespace: pod.namespace, name: pod.name });
        pod.or_else(|| snapshot.addresses.node(address).map(|name| Party::Node(name.to_string())))
    }

    fn service(&self, address: IpAddr, port: u16, protocol: u8) -> Option<String> {
        let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|p| p.number() == protocol)?;
        self.writer.snapshot().service_at(address, port, protocol).map(ToString::to_string)
    }

    fn labels(&self, identity: Identity) -> Option<Vec<String>> {
        Some(self.writer.snapshot().labels_for_people(identity))
    }

    fn rule(&self, rule: RuleId) -> Option<PolicyRef> {
        self.writer.snapshot().policy.rule(rule)
    }

    fn isolating(&self, endpoint: EndpointId, direction: FlowDirection) -> Vec<PolicyRef> {
        let direction = match direction {
            FlowDirection::Ingress => Direction::Ingress,
            FlowDirection::Egress => Direction::Egress,
        };
        self.writer.snapshot().policy.isolating(endpoint, direction).unwrap_or_default()
    }
}

fn refusal(kind: Kind, summary: &str, details: &str) -> Failure {
    Failure::new(kind, summary, details)
}

fn unanswered(error: QueryError) -> Failure {
    let (kind, summary) = match &error {
        QueryError::Malformed { .. } => (Kind::Malformed, "malformed request"),
        QueryError::UnknownPod(_) => (Kind::Refused, "no such pod"),
        QueryError::NoCommonFamily(..) => (Kind::Refused, "no address family in common"),
    };
    refusal(kind, summary, &error.to_string())
}

fn gone(_: Unavailable) -> Failure {
    refusal(Kind::TryAgain, "the agent is stopping", "")
}

fn kernel(error: &dyn std::error::Error) -> Failure {
    refusal(Kind::System, "the kernel cannot be read", &weft_sys::error::describe(error))
}
