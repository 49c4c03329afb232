//! CNI: attaching pods and taking them off. Calls about one attachment run one after the other, others side by side.
//!
//! Every step of ADD has its opposite, and a failure walks back through them; the record of the endpoint is written
//! before the first and removed after the last, so that a successor can do the same for a predecessor that died.

use super::snapshot::Progress;
use crate::ports::{Cluster, ClusterError, Created, LinkError, LinkSpec, Links};
use crate::snapshot::Snapshot;
use crate::state::EndpointRecord;
use crate::tables::endpoints::Endpoint;
use crate::writer::endpoints::{EndpointError, Reservation};
use crate::writer::thread::{Handle, Unavailable};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{OwnedMutexGuard, watch};
use tokio::time::Instant;
use weft_api::cni::{AddRequest, AddResult, Attachment, CheckRequest, DelRequest, GcRequest};
use weft_api::failure::{Failure, Kind};
use weft_control::identity::{Exhausted, NumberOf};
use weft_daemon::tasks::lock;
use weft_model::id::Identity;
use weft_model::intent::{Change, IdentityLabels, Namespace, ObjectName, Pod};
use weft_model::label::LabelSet;
use weft_sys::error::describe;

/// Gateways of every pod. Nobody has them; the link has permanent neighbours for them.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// See [`GATEWAY_V4`].
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// An ADD answers within this, whatever happens: `weft-cni` waits a little longer.
const ADD_TIMEOUT: Duration = Duration::from_secs(50);
/// Longest wait for an address that another pod may give back, or the cloud may give.
const ADDRESS_WAIT: Duration = Duration::from_secs(10);
/// First pause between two questions to an API server that does not answer.
const RETRY_MIN: Duration = Duration::from_millis(100);
/// Longest.
const RETRY_MAX: Duration = Duration::from_secs(2);

/// See the module.
pub struct Attachments {
    writer: Handle,
    links: Arc<dyn Links>,
    cluster: Arc<dyn Cluster>,
    progress: watch::Receiver<Progress>,
    /// Largest packet of the pod network.
    mtu: Arc<AtomicU32>,
    locks: Mutex<BTreeMap<Attachment, Arc<tokio::sync::Mutex<()>>>>,
    timeout: Duration,
}

impl Attachments {
    /// Wires it up.
    #[must_use]
    pub fn new(
        writer: Handle,
        links: Arc<dyn Links>,
        cluster: Arc<dyn Cluster>,
        progress: watch::Receiver<Progress>,
        mtu: Arc<AtomicU32>,
    ) -> Self {
        Self { writer, links, cluster, progress, mtu, locks: Mutex::default(), timeout: ADD_TIMEOUT }
    }

    /// Gives up on an ADD after `timeout`.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Attaches a pod. When this returns, its policy is in force and it can be reached. The same call again gives
    /// the same answer.
    ///
    /// # Errors
    /// Everything is as before the call.
    pub async fn add(&self, request: AddRequest) -> Result<AddResult, Failure> {
        let until = Instant::now() + self.timeout;
        self.wait_ready(until).await?;
        self.check_source(&request).await?;
        let _alone = self.lock(&request.attachment).await;
        let attachment = request.attachment.clone();
        if let Some(present) = self.writer.call(move |writer| writer.endpoint_of(&attachment)).await.map_err(gone)? {
            if self.is_whole(&present, &request).await {
                return Ok(result(&present.record));
            }
            self.take_off(present.record.clone()).await?;
        }
        let name = ObjectName { namespace: request.pod_namespace.clone(), name: request.pod_name.clone() };
        let (pod, labels) = self.pod_and_labels(&name, request.pod_uid.as_deref(), until).await?;
        let identity = self.identity(&labels, until).await?;
        let mtu = self.mtu.load(Ordering::Relaxed);
        let mtu = request.mtu.map_or(mtu, |wanted| wanted.min(mtu));
        let (attachment, netns, addresses) = (request.attachment, request.netns, request.addresses);
        let record =
            self.reserve(Reservation { attachment, netns, pod, labels, identity, mtu, addresses }, until).await?;
        match self.put_on(&record).await {
            Ok(record) => {
                tracing::info!(endpoint = %record.id, pod = %record.pod, addresses = ?record.addresses, "attached");
                Ok(result(&record))
            }
            Err(error) => {
                tracing::warn!(endpoint = %record.id, pod = %record.pod, %error, "ADD failed; taking everything back");
                if let Err(rest) = self.take_off(record).await {
                    // The record stays, so the runtime's DEL (or the next start) does the rest.
                    tracing::warn!(error = %rest, "something of it is left for now");
                }
                Err(error)
            }
        }
    }

    /// Addresses come from one side or the other, as the agent is configured, never from both.
    async fn check_source(&self, request: &AddRequest) -> Result<(), Failure> {
        let delegated = self.writer.call(|writer| writer.is_delegated()).await.map_err(gone)?;
        match (delegated, request.addresses.is_some()) {
            (true, false) => Err(refusal(
                Kind::Misconfigured,
                "no addresses",
                "the agent runs with ipam=delegated: the network configuration must have an ipam plugin",
            )),
            (false, true) => Err(refusal(
                Kind::Misconfigured,
                "addresses from elsewhere",
                "ipam: the agent gives addresses itself; remove the key, or run the agent with ipam=delegated",
            )),
            _ => Ok(()),
        }
    }

    /// Takes a number and addresses. Where addresses come as pods come, waits for a while for some.
    async fn reserve(&self, wanted: Reservation, until: Instant) -> Result<EndpointRecord, Failure> {
        let until = until.min(Instant::now() + ADDRESS_WAIT);
        let signals = self.writer.call(|writer| writer.signals()).await.map_err(gone)?;
        loop {
            // Whatever comes after the attempt wakes it.
            let mut more = std::pin::pin!(signals.blocks.notified());
            more.as_mut().enable();
            let attempt = wanted.clone();
            let (taken, may_grow) =
                self.writer.call(move |writer| (writer.reserve(attempt), writer.may_grow())).await.map_err(gone)?;
            match taken {
                Err(error @ EndpointError::NoAddresses(_)) if may_grow => {
                    if tokio::time::timeout_at(until, more).await.is_err() {
                        return Err(error.into());
                    }
                }
                other => return Ok(other?),
            }
        }
    }

    async fn put_on(&self, record: &EndpointRecord) -> Result<EndpointRecord, Failure> {
        let (links, wanted) = (self.links.clone(), spec(record));
        let ifindex = blocking(move || links.create(&wanted)).await?.map_err(|error| link_refusal(&error))?;
        let id = record.id;
        Ok(self.writer.call(move |writer| writer.activate(id, ifindex)).await.map_err(gone)??)
    }

    /// Everything that ADD made, backwards. Can be called at any stage, and again.
    async fn take_off(&self, record: EndpointRecord) -> Result<(), Failure> {
        let id = record.id;
        self.writer.call(move |writer| writer.deactivate(id)).await.map_err(gone)??;
        let links = self.links.clone();
        blocking(move || links.remove(&record.device)).await?.map_err(|error| link_refusal(&error))?;
        Ok(self.writer.call(move |writer| writer.release(id)).await.map_err(gone)??)
    }

    /// Takes a pod off. What is not there is off.
    ///
    /// # Errors
    /// Something could not be removed; the next call goes on from there.
    pub async fn del(&self, request: DelRequest) -> Result<(), Failure> {
        let _alone = self.lock(&request.attachment).await;
        let attachment = request.attachment;
        match self.writer.call(move |writer| writer.endpoint_of(&attachment)).await.map_err(gone)? {
            Some(endpoint) => {
                tracing::info!(endpoint = %endpoint.record.id, pod = %endpoint.record.pod, "detaching");
                self.take_off(endpoint.record.clone()).await
            }
            None => Ok(()),
        }
    }

    /// Whether an attachment is as ADD left it.
    ///
    /// # Errors
    /// Says what is not.
    pub async fn check(&self, request: CheckRequest) -> Result<(), Failure> {
        let _alone = self.lock(&request.attachment).await;
        let attachment = request.attachment.clone();
        let found = self.writer.call(move |writer| writer.endpoint_of(&attachment)).await.map_err(gone)?;
        let Some(endpoint) = found.filter(|endpoint| endpoint.is_active()) else {
            return Err(refusal(Kind::NoContainer, "unknown container", &request.attachment.container_id));
        };
        let record = &endpoint.record;
        let has: BTreeSet<_> = record.addresses.iter().collect();
        if !request.addresses.iter().collect::<BTreeSet<_>>().is_subset(&has) {
            let details = format!("expected {:?}, found {:?}", request.addresses, record.addresses);
            return Err(refusal(Kind::Refused, "addresses differ from prevResult", &details));
        }
        if endpoint.in_kernel.is_none() && !endpoint.restoring {
            let why = endpoint.problem.clone().unwrap_or_default();
            return Err(refusal(Kind::Refused, "the endpoint is not in force", &why));
        }
        let (links, mut wanted) = (self.links.clone(), spec(record));
        wanted.netns = request.netns.into();
        blocking(move || links.check(&wanted)).await?.map_err(|error| link_refusal(&error))
    }

    /// Takes off everything that the runtime does not know of.
    ///
    /// # Errors
    /// The first of those that could not be taken off; the others are.
    pub async fn gc(&self, request: GcRequest) -> Result<(), Failure> {
        let valid: BTreeSet<Attachment> = request.valid.into_iter().collect();
        let present = self.writer.call(|writer| writer.finished_attachments()).await.map_err(gone)?;
        let mut outcome = Ok(());
        for attachment in present.into_iter().filter(|attachment| !valid.contains(attachment)) {
            let done = self.del(DelRequest { attachment, netns: None }).await;
            outcome = outcome.and(done);
        }
        outcome
    }

    /// Whether ADD could work now.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn status(&self) -> Result<(), Failure> {
        let snapshot = self.writer.snapshot();
        if snapshot.progress.ready {
            return Ok(());
        }
        Err(refusal(Kind::NotReady, "the agent is not ready", &waiting_for(&snapshot)))
    }

    async fn wait_ready(&self, until: Instant) -> Result<(), Failure> {
        let mut progress = self.progress.clone();
        let ready = tokio::time::timeout_at(until, progress.wait_for(|progress| progress.ready))
            .await
            .map(|waited| waited.map(drop));
        match ready {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(gone(Unavailable)),
            Err(_) => {
                let missing = waiting_for(&self.writer.snapshot());
                Err(refusal(Kind::TryAgain, "the agent is not ready", &missing))
            }
        }
    }

    async fn is_whole(&self, endpoint: &Endpoint, request: &AddRequest) -> bool {
        let record = &endpoint.record;
        let same = endpoint.is_active()
            && endpoint.in_kernel.is_some()
            && record.netns == request.netns
            && record.pod.namespace == request.pod_namespace
            && record.pod.name == request.pod_name;
        let (links, spec) = (self.links.clone(), spec(record));
        same && matches!(blocking(move || links.check(&spec)).await, Ok(Ok(())))
    }

    /// The pod and its labels: from the tables, else from the API server, until they can be had. A pod whose labels
    /// cannot be read waits; it never runs with the wrong ones.
    async fn pod_and_labels(
        &self,
        name: &ObjectName,
        uid: Option<&str>,
        until: Instant,
    ) -> Result<(Pod, LabelSet), Failure> {
        let right = |pod: &Pod| uid.is_none_or(|uid| pod.uid == uid);
        let mut pause = RETRY_MIN;
        loop {
            let wanted = name.clone();
            let known = self.writer.call(move |writer| writer.pod(&wanted)).await.map_err(gone)?;
            let pod = match known.filter(|pod| right(pod)) {
                Some(pod) => Ok((*pod).clone()),
                None => match self.cluster.pod(name).await {
                    Ok(Some(pod)) if right(&pod) => Ok(pod),
                    Ok(Some(other)) => {
                        let details = format!("{name}: expected uid {}, found {}", uid.unwrap_or_default(), other.uid);
                        return Err(refusal(Kind::Refused, "the pod was replaced", &details));
                    }
                    Ok(None) => return Err(refusal(Kind::Refused, "no such pod", &name.to_string())),
                    Err(error) => Err(describe(&error)),
                },
            };
            let problem = match pod {
                Ok(pod) => match self.labels(&pod).await {
                    Ok(labels) => return Ok((pod, labels)),
                    Err(LabelsError::Unavailable(error)) => return Err(gone(error)),
                    Err(LabelsError::Namespace(problem)) => problem,
                },
                Err(problem) => problem,
            };
            wait(&mut pause, until, "the pod's labels cannot be read", &problem).await?;
        }
    }

    async fn labels(&self, pod: &Pod) -> Result<LabelSet, LabelsError> {
        let labels_with = |namespace: Option<Namespace>| {
            let pod = pod.clone();
            self.writer.call(move |writer| writer.labels_of(&pod, namespace.as_ref()))
        };
        if let Some(labels) = labels_with(None).await? {
            return Ok(labels);
        }
        let name = &pod.name.namespace;
        let problem = match self.cluster.namespace(name).await {
            Ok(Some(namespace)) => match labels_with(Some(namespace)).await? {
                Some(labels) => return Ok(labels),
                None => format!("namespace {name} is not known"),
            },
            Ok(None) => format!("namespace {name} does not exist"),
            Err(error) => describe(&error),
        };
        Err(LabelsError::Namespace(problem))
    }

    /// The identity of a label set. One that is known costs nothing; a new one is made under the number that every
    /// node would try.
    async fn identity(&self, labels: &LabelSet, until: Instant) -> Result<Identity, Failure> {
        let mut pause = RETRY_MIN;
        loop {
            match obtain_identity(&self.writer, &*self.cluster, labels).await {
                Ok(identity) => return Ok(identity),
                Err(IdentityError::Unavailable(error)) => return Err(gone(error)),
                Err(IdentityError::Exhausted(error)) => {
                    return Err(refusal(Kind::Refused, "no identity", &error.to_string()));
                }
                Err(IdentityError::Cluster(error)) => {
                    wait(&mut pause, until, "no identity for the pod's labels", &describe(&error)).await?;
                }
            }
        }
    }

    async fn lock(&self, attachment: &Attachment) -> AttachmentGuard<'_> {
        let lock = {
            let mut locks = lock(&self.locks);
            locks.entry(attachment.clone()).or_default().clone()
        };
        AttachmentGuard { all: &self.locks, attachment: attachment.clone(), held: Some(lock.lock_owned().await) }
    }
}

/// Why the labels of a pod are not known.
enum LabelsError {
    /// The agent ends.
    Unavailable(Unavailable),
    /// Its namespace cannot be read: worth another try.
    Namespace(String),
}

impl From<Unavailable> for LabelsError {
    fn from(error: Unavailable) -> Self {
        Self::Unavailable(error)
    }
}

/// Why a label set has no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The agent ends.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// All numbers are taken.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// The API server refuses, or does not answer: worth another try.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

/// The identity of a label set, making it if need be.
///
/// # Errors
/// [`IdentityError`]
pub async fn obtain_identity(
    writer: &Handle,
    cluster: &dyn Cluster,
    labels: &LabelSet,
) -> Result<Identity, IdentityError> {
    loop {
        let wanted = labels.clone();
        let identity = match writer.call(move |writer| writer.number_of(&wanted)).await?? {
            NumberOf::Known(identity) => return Ok(identity),
            NumberOf::Proposed(identity) => identity,
        };
        let proposed = IdentityLabels { identity, labels: labels.clone(), unused: false };
        // Either way the tables learn whose the number is: then it is known, or the next one is proposed.
        let learned = match cluster.create_identity(&proposed).await? {
            Created::Yes => proposed,
            Created::Taken(other) => other,
        };
        writer.call(move |writer| writer.apply(vec![Change::Identity(learned)])).await?;
    }
}

async fn wait(pause: &mut Duration, until: Instant, what: &str, problem: &str) -> Result<(), Failure> {
    let next = Instant::now() + *pause;
    if next >= until {
        return Err(refusal(Kind::TryAgain, what, problem));
    }
    tracing::warn!(problem, "{what}; trying again");
    tokio::time::sleep_until(next).await;
    *pause = (*pause * 2).min(RETRY_MAX);
    Ok(())
}

/// Holds an attachment's lock; the last one out removes it.
struct AttachmentGuard<'a> {
    all: &'a Mutex<BTreeMap<Attachment, Arc<tokio::sync::Mutex<()>>>>,
    attachment: Attachment,
    held: Option<OwnedMutexGuard<()>>,
}

impl Drop for AttachmentGuard<'_> {
    fn drop(&mut self) {
        self.held = None;
        let mut locks = lock(self.all);
        if locks.get(&self.attachment).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            locks.remove(&self.attachment);
        }
    }
}

/// The link that a record stands for.
#[must_use]
pub fn spec(record: &EndpointRecord) -> LinkSpec {
    LinkSpec {
        id: record.id,
        netns: record.netns.clone().into(),
        ifname: record.attachment.ifname.clone(),
        device: record.device.clone(),
        addresses: record.addresses.clone(),
        mtu: record.mtu,
        pod_mac: record.pod_mac,
        host_mac: record.host_mac,
    }
}

fn result(record: &EndpointRecord) -> AddResult {
    let address = |address: &IpAddr| match address {
        IpAddr::V4(v4) => (format!("{v4}/32"), IpAddr::V4(GATEWAY_V4)),
        IpAddr::V6(v6) => (format!("{v6}/128"), IpAddr::V6(GATEWAY_V6)),
    };
    AddResult {
        host_ifname: record.device.clone(),
        host_mac: mac(record.host_mac),
        pod_mac: mac(record.pod_mac),
        mtu: record.mtu,
        addresses: record.addresses.iter().map(address).collect(),
    }
}

fn mac(octets: [u8; 6]) -> String {
    octets.map(|octet| format!("{octet:02x}")).join(":")
}

fn waiting_for(snapshot: &Snapshot) -> String {
    let waiting: Vec<String> = snapshot.waiting_for.iter().map(ToString::to_string).collect();
    format!("waiting for {}", waiting.join(", "))
}

fn refusal(kind: Kind, summary: &str, details: &str) -> Failure {
    Failure::new(kind, summary, details)
}

impl From<EndpointError> for Failure {
    fn from(error: EndpointError) -> Self {
        let (kind, summary) = match &error {
            EndpointError::Exists(_) => (Kind::Refused, "the attachment is there already"),
            EndpointError::NoNumber => (Kind::Refused, "too many endpoints"),
            EndpointError::NoAddresses(details) => return refusal(Kind::NoAddresses, "no addresses left", details),
            EndpointError::UnusableAddresses(details) => {
                return refusal(Kind::Misconfigured, "the delegated plugin's addresses cannot be used", details);
            }
            EndpointError::Gone(_) => (Kind::Refused, "the endpoint was removed meanwhile"),
            EndpointError::NoPod(_) => (Kind::Refused, "no such pod"),
            EndpointError::NotInForce(details) => {
                return refusal(Kind::Refused, "the endpoint could not be put in force", details);
            }
            EndpointError::File { .. } => (Kind::System, "the endpoint's file"),
            EndpointError::Kernel { .. } => (Kind::Refused, "cannot remove the endpoint"),
        };
        refusal(kind, summary, &describe(&error))
    }
}

fn link_refusal(error: &LinkError) -> Failure {
    let kind = if error.netns_gone { Kind::NoContainer } else { Kind::Refused };
    refusal(kind, "the pod's link", &describe(error))
}

fn gone(_: Unavailable) -> Failure {
    refusal(Kind::TryAgain, "the agent is stopping", "")
}

async fn blocking<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> Result<R, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| refusal(Kind::Refused, "the agent is stopping", &error.to_string()))
}

#[cfg(test)]
mod tests;
