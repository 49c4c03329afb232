//! Endpoints of this node: taking numbers and addresses, putting them in force, following their labels, letting
//! them go.

use super::flush::{Part, Writer};
use crate::reconcile::Reconciler as _;
use crate::state::{EndpointRecord, Phase};
use crate::tables::endpoints::Endpoint;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use weft_api::cni::Attachment;
use weft_control::identity::{NumberOf, PodFacts, label_set};
use weft_model::desired::DataplaneError;
use weft_model::id::{EndpointId, Identity};
use weft_model::intent::{Namespace, ObjectName, Pod};
use weft_model::label::LabelSet;
use weft_sys::error::describe;

/// Why an endpoint cannot be made, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// There is one already.
    #[error("container {} has an endpoint for {} already", .0.container_id, .0.ifname)]
    Exists(Attachment),
    /// Every number is in use.
    #[error("all {} endpoint numbers of this node are in use", EndpointId::HOST.raw() - 1)]
    NoNumber,
    /// No pool has an address for it, at the moment.
    #[error("no addresses left: {0}")]
    NoAddresses(String),
    /// Another CNI plugin gave addresses that cannot be used.
    #[error("the delegated plugin's addresses cannot be used: {0}")]
    UnusableAddresses(String),
    /// It was removed meanwhile.
    #[error("endpoint {0} was removed meanwhile")]
    Gone(EndpointId),
    /// The pod has none here.
    #[error("pod {0} has no endpoint on this node")]
    NoPod(ObjectName),
    /// The kernel does not have all of it.
    #[error("the endpoint could not be put in force: {0}")]
    NotInForce(String),
    /// Its file cannot be written or removed.
    #[error("endpoint {id}: cannot {what} its file")]
    File {
        /// The endpoint.
        id: EndpointId,
        /// Write or remove.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refuses to remove it.
    #[error("endpoint {id}: cannot remove it from the kernel")]
    Kernel {
        /// The endpoint.
        id: EndpointId,
        /// Why.
        #[source]
        source: DataplaneError,
    },
}

/// What ADD knows before anything is made.
#[derive(Clone, Debug)]
pub struct Reservation {
    /// Which.
    pub attachment: Attachment,
    /// The pod's namespace.
    pub netns: String,
    /// The pod.
    pub pod: Pod,
    /// Its labels.
    pub labels: LabelSet,
    /// Its number.
    pub identity: Identity,
    /// MTU.
    pub mtu: u32,
    /// Addresses that another program gave it; `None`: they come from the node's blocks.
    pub addresses: Option<Vec<IpAddr>>,
}

impl Writer {
    /// The label set of a pod, if its namespace is known.
    #[must_use]
    pub fn labels_of(&self, pod: &Pod, namespace: Option<&Namespace>) -> Option<LabelSet> {
        let namespace = self.tables.namespaces.get(&pod.name.namespace).map(|namespace| &**namespace).or(namespace)?;
        Some(label_set(&PodFacts {
            cluster: &self.settings.cluster_name,
            namespace: &pod.name.namespace,
            namespace_labels: &namespace.labels,
            labels: &pod.labels,
            service_account: &pod.service_account,
        }))
    }

    /// The endpoint of an attachment.
    #[must_use]
    pub fn endpoint_of(&self, attachment: &Attachment) -> Option<Arc<Endpoint>> {
        self.tables.endpoints.find(attachment).cloned()
    }

    /// All attachments but those that are being made.
    #[must_use]
    pub fn finished_attachments(&self) -> Vec<Attachment> {
        let finished = self.tables.endpoints.values().filter(|endpoint| endpoint.record.phase != Phase::Reserved);
        finished.map(|endpoint| endpoint.record.attachment.clone()).collect()
    }

    fn save(&self, record: &EndpointRecord) -> Result<(), EndpointError> {
        let failed = |source| EndpointError::File { id: record.id, what: "write", source };
        self.state.write(record).map_err(failed)
    }

    /// Takes a number and an address of each family, and saves that before anything is made with them.
    ///
    /// # Errors
    /// Nothing is left, or it cannot be saved; nothing is taken then.
    pub fn reserve(&mut self, wanted: Reservation) -> Result<EndpointRecord, EndpointError> {
        if self.tables.endpoints.find(&wanted.attachment).is_some() {
            return Err(EndpointError::Exists(wanted.attachment));
        }
        let id = self.tables.endpoints.free_id().ok_or(EndpointError::NoNumber)?;
        let addresses = match wanted.addresses {
            Some(addresses) => self.claim_addresses(id, addresses)?,
            None => self.allocate(id, &wanted.pod)?,
        };
        let record = EndpointRecord {
            id,
            phase: Phase::Reserved,
            device: device_name(&wanted.attachment),
            pod_mac: random_mac(),
            host_mac: random_mac(),
            attachment: wanted.attachment,
            netns: wanted.netns,
            pod: wanted.pod.name,
            pod_uid: wanted.pod.uid,
            service_account: wanted.pod.service_account,
            pod_labels: wanted.pod.labels,
            named_ports: wanted.pod.named_ports,
            addresses,
            identity: wanted.identity,
            labels: wanted.labels,
            mtu: wanted.mtu,
            audit: false,
        };
        if let Err(error) = self.save(&record) {
            self.release_addresses(id);
            return Err(error);
        }
        self.tables.endpoints.insert(Endpoint::new(record.clone()));
        self.unpublished = true;
        Ok(record)
    }

    /// Puts a reserved endpoint in force: policy, then the endpoint, then its addresses. When this returns, packets
    /// pass as the policy says.
    ///
    /// # Errors
    /// The kernel refuses; the endpoint is as unreachable as before, and is to be released.
    pub fn activate(&mut self, id: EndpointId, ifindex: u32) -> Result<EndpointRecord, EndpointError> {
        let Some(endpoint) = self.tables.endpoints.get(&id) else { return Err(EndpointError::Gone(id)) };
        let name = endpoint.record.pod.clone();
        self.tables.endpoints.update(id, |endpoint| {
            endpoint.ifindex = ifindex;
            endpoint.record.phase = Phase::Ready;
        });
        // Labels may have changed since the reservation; the newest count.
        self.relabel(|record| record.pod == name);
        self.reconcilers.policy.set_endpoint(&self.tables.endpoints[&id].record);
        self.touch();
        // A failure may be about something else; what counts is whether this endpoint is complete.
        self.pass();
        let endpoint = self.tables.endpoints[&id].clone();
        let addresses = &self.tables.addresses;
        let known = endpoint.record.addresses.iter().all(|address| addresses.in_force(*address).is_some());
        let is_decided = !self.stale.node && !self.stale.endpoints.contains(&id);
        if endpoint.in_kernel.is_none() || !known || !is_decided {
            let why = endpoint.problem.clone();
            let why = why.or_else(|| self.reconcilers.all().iter().find_map(|reconciler| reconciler.rows().failure()));
            return Err(EndpointError::NotInForce(why.unwrap_or_else(|| "the agent is not ready".into())));
        }
        self.save(&endpoint.record)?;
        self.announce = true;
        Ok(endpoint.record.clone())
    }

    /// Makes an endpoint unreachable. Its link may still be there, its numbers stay taken.
    ///
    /// # Errors
    /// The kernel or the file system refuses; to be tried again.
    pub fn deactivate(&mut self, id: EndpointId) -> Result<(), EndpointError> {
        if !self.tables.endpoints.update(id, |endpoint| endpoint.record.phase = Phase::Leaving)
            && !self.tables.endpoints.contains_key(&id)
        {
            return Ok(());
        }
        self.save(&self.tables.endpoints[&id].record)?;
        let (reconcilers, mut cx) = self.parts();
        let removed = reconcilers.endpoints.remove(id, &mut cx);
        removed.map_err(|source| EndpointError::Kernel { id, source })?;
        self.reconcilers.policy.remove_endpoint(id);
        self.touch();
        // What fails here is tried again by the flushes that follow.
        if self.tables.all_synced() {
            let (reconcilers, mut cx) = self.parts();
            reconcilers.ipcache.reconcile(&mut cx);
        }
        self.announce = true;
        Ok(())
    }

    /// Gives back numbers and addresses, after everything of the endpoint is gone.
    ///
    /// # Errors
    /// The file cannot be removed; to be tried again.
    pub fn release(&mut self, id: EndpointId) -> Result<(), EndpointError> {
        if !self.tables.endpoints.contains_key(&id) {
            return Ok(());
        }
        self.state.remove(id).map_err(|source| EndpointError::File { id, what: "remove", source })?;
        self.release_addresses(id);
        self.tables.endpoints.remove(id);
        self.unpublished = true;
        Ok(())
    }

    /// Puts the endpoints of a pod in audit mode, or back.
    ///
    /// # Errors
    /// The pod has none here, or it cannot be saved.
    pub fn set_audit(&mut self, pod: &ObjectName, on: bool) -> Result<(), EndpointError> {
        let active = self.tables.endpoints.values().filter(|endpoint| endpoint.is_active());
        let ids: Vec<_> = active.filter(|e| e.record.pod == *pod).map(|endpoint| endpoint.record.id).collect();
        if ids.is_empty() {
            return Err(EndpointError::NoPod(pod.clone()));
        }
        for id in ids {
            self.save(&EndpointRecord { audit: on, ..self.tables.endpoints[&id].record.clone() })?;
            self.tables.endpoints.update(id, |endpoint| endpoint.record.audit = on);
            tracing::info!(endpoint = %id, %pod, on, "audit mode");
        }
        self.touch();
        Ok(())
    }

    /// Compares the labels of endpoints with what their pods and namespaces say now, and follows. A label set
    /// without an identity keeps the endpoint as it is until it has one.
    pub(super) fn relabel(&mut self, concerned: impl Fn(&EndpointRecord) -> bool) {
        if !self.tables.all_synced() {
            return;
        }
        let concerned = self.tables.endpoints.values().filter(|endpoint| concerned(&endpoint.record));
        let ids: Vec<_> = concerned.map(|endpoint| endpoint.record.id).collect();
        ids.into_iter().for_each(|id| self.relabel_one(id));
    }

    /// Those that wait for an identity.
    pub(super) fn relabel_waiting(&mut self) {
        let waiting = self.tables.endpoints.values().filter(|endpoint| endpoint.waiting);
        let ids: Vec<_> = waiting.map(|endpoint| endpoint.record.id).collect();
        ids.into_iter().for_each(|id| self.relabel_one(id));
    }

    fn relabel_one(&mut self, id: EndpointId) {
        let endpoint = self.tables.endpoints[&id].clone();
        let record = &endpoint.record;
        if record.phase == Phase::Leaving {
            return;
        }
        // A pod that is gone, or another one of the same name, says nothing about this endpoint.
        let Some(pod) = self.tables.pods.get(&record.pod).filter(|pod| pod.uid == record.pod_uid).cloned() else {
            return;
        };
        let Some(labels) = self.labels_of(&pod, None) else { return };
        let number = match self.tables.identities.number_of(&labels) {
            Ok(NumberOf::Known(number)) => number,
            Ok(NumberOf::Proposed(_)) | Err(_) => {
                self.tables.endpoints.update(id, |endpoint| endpoint.waiting = true);
                self.unpublished = true;
                self.want_identity(labels);
                return;
            }
        };
        // Of several identities for the same labels the one in use is as good as any.
        let known = self.tables.identities.labels(record.identity);
        let keeps = record.labels == labels && known.is_some_and(|known| **known == labels);
        let changed = EndpointRecord {
            identity: if keeps { record.identity } else { number },
            labels,
            pod_labels: pod.labels.clone(),
            named_ports: pod.named_ports.clone(),
            service_account: pod.service_account.clone(),
            ..record.clone()
        };
        let differs = changed != *record;
        self.tables.endpoints.update(id, |endpoint| {
            endpoint.waiting = false;
            endpoint.record = changed.clone();
        });
        self.unpublished = true;
        if !differs {
            return;
        }
        if endpoint.is_active() {
            tracing::info!(endpoint = %id, pod = %changed.pod, identity = %changed.identity, "labels have changed");
            self.reconcilers.policy.set_endpoint(&changed);
            if let Err(error) = self.save(&changed) {
                self.set_problem(Part::Endpoint(id), Some(describe(&error)));
            }
            self.announce = true;
        }
        self.touch();
    }
}

/// Prefix of the host sides of all pod links.
pub const DEVICE_PREFIX: &str = "weft";

/// A name for the host side, at most 15 bytes, not used before.
fn device_name(attachment: &Attachment) -> String {
    format!("{DEVICE_PREFIX}{:011x}", RandomState::new().hash_one(attachment) >> 20)
}

/// A locally administered unicast address.
fn random_mac() -> [u8; 6] {
    let random = RandomState::new().hash_one(0u8).to_ne_bytes();
    [0x02 | (random[0] & 0xfc), random[1], random[2], random[3], random[4], random[5]]
}
