//! Endpoints of this node: taking numbers and addresses, putting them in force, following their labels, letting
//! them go.

use super::{Core, describe};
use crate::state::{EndpointRecord, Phase};
use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::path::PathBuf;
use weft_api::cni::{Attachment, CniError, code};
use weft_control::identity::{NumberOf, PodFacts, label_set};
use weft_control::policy::EndpointPolicy;
use weft_k8s::endpoint::Own;
use weft_model::desired;
use weft_model::id::{EndpointId, Identity};
use weft_model::intent::{Namespace, ObjectName, Pod, RemoteEndpoint};
use weft_model::label::LabelSet;

/// An endpoint of this node.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// What is remembered of it.
    pub record: EndpointRecord,
    /// Index of the host side; 0 until the link is made.
    pub ifindex: u32,
    /// As the kernel has it; `None` until it has.
    pub in_kernel: Option<desired::Endpoint>,
    /// A former agent made it and this one has not confirmed it yet.
    pub restoring: bool,
    /// Waits for the number of its new labels.
    pub waiting: bool,
    /// Why it is not as it should be.
    pub problem: Option<String>,
    /// Order of coming into being.
    pub sequence: u64,
}

impl Endpoint {
    /// It has, or is about to get, traffic.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.record.phase == Phase::Ready
    }

    /// For the kernel; `audit`: as all of the node's.
    #[must_use]
    pub fn desired(&self, policy: &EndpointPolicy, audit: bool) -> desired::Endpoint {
        desired::Endpoint {
            id: self.record.id,
            addresses: self.record.addresses.clone(),
            ifindex: self.ifindex,
            pod_mac: self.record.pod_mac,
            host_mac: self.record.host_mac,
            identity: self.record.identity,
            ingress: policy.ingress,
            egress: policy.egress,
            blocked: policy.blocked.is_some(),
            audit: audit || self.record.audit,
        }
    }

    /// Whether the kernel has it so. Asked of every endpoint at every change of anything, so nothing is made for it.
    #[must_use]
    pub fn is_written(&self, policy: &EndpointPolicy, audit: bool) -> bool {
        let Some(written) = &self.in_kernel else { return false };
        let desired::Endpoint {
            id,
            addresses,
            ifindex,
            pod_mac,
            host_mac,
            identity,
            ingress,
            egress,
            blocked,
            audit: audited,
        } = written;
        let record = &self.record;
        (*id, *ifindex, *identity, *pod_mac, *host_mac)
            == (record.id, self.ifindex, record.identity, record.pod_mac, record.host_mac)
            && (*ingress, *egress, *blocked) == (policy.ingress, policy.egress, policy.blocked.is_some())
            && *audited == (audit || record.audit)
            && *addresses == record.addresses
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Endpoints {
    /// By number.
    pub rows: BTreeMap<EndpointId, Endpoint>,
    attachments: BTreeMap<Attachment, EndpointId>,
    /// Where the search for a free number starts: a number rests as long as possible before it is used again.
    next_id: u16,
    sequence: u64,
}

impl Endpoints {
    /// Adds one.
    pub fn insert(&mut self, mut endpoint: Endpoint) {
        self.sequence += 1;
        endpoint.sequence = self.sequence;
        self.attachments.insert(endpoint.record.attachment.clone(), endpoint.record.id);
        self.rows.insert(endpoint.record.id, endpoint);
    }

    /// Takes one out.
    pub fn remove(&mut self, id: EndpointId) -> Option<Endpoint> {
        let endpoint = self.rows.remove(&id)?;
        self.attachments.remove(&endpoint.record.attachment);
        Some(endpoint)
    }

    /// By attachment.
    #[must_use]
    pub fn find(&self, attachment: &Attachment) -> Option<&Endpoint> {
        self.rows.get(self.attachments.get(attachment)?)
    }

    /// Whether any has this identity.
    #[must_use]
    pub fn uses(&self, identity: Identity) -> bool {
        self.rows.values().any(|endpoint| endpoint.record.identity == identity)
    }

    fn free_id(&mut self) -> Option<EndpointId> {
        // The last number is the node's own.
        let count = EndpointId::HOST.raw() - 1;
        let free = (0..count)
            .filter_map(|step| EndpointId::new((self.next_id + step) % count + 1))
            .find(|id| !self.rows.contains_key(id))?;
        self.next_id = free.raw() % count;
        Some(free)
    }
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

impl Core {
    /// The label set of a pod, if its namespace is known.
    #[must_use]
    pub fn labels_of(&self, pod: &Pod, namespace: Option<&Namespace>) -> Option<LabelSet> {
        let namespace = self.namespaces.get(&pod.name.namespace).or(namespace)?;
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
    pub fn endpoint_of(&self, attachment: &Attachment) -> Option<Endpoint> {
        self.endpoints.find(attachment).cloned()
    }

    /// All attachments but those that are being made.
    #[must_use]
    pub fn finished_attachments(&self) -> Vec<Attachment> {
        let finished = self.endpoints.rows.values().filter(|endpoint| endpoint.record.phase != Phase::Reserved);
        finished.map(|endpoint| endpoint.record.attachment.clone()).collect()
    }

    /// The pods' network namespaces, as CNI named them.
    #[must_use]
    pub fn network_namespaces(&self) -> Vec<PathBuf> {
        self.endpoints.rows.values().map(|endpoint| PathBuf::from(&endpoint.record.netns)).collect()
    }

    /// Takes a number and an address of each family, and remembers that before anything is made with them.
    ///
    /// # Errors
    /// Nothing is left, or it cannot be remembered; nothing is taken then.
    pub fn reserve(&mut self, wanted: Reservation) -> Result<EndpointRecord, CniError> {
        if self.endpoints.find(&wanted.attachment).is_some() {
            return Err(refusal(code::AGENT, "the attachment is there already", &wanted.attachment.container_id));
        }
        let Some(id) = self.endpoints.free_id() else {
            return Err(refusal(
                code::AGENT,
                "too many endpoints",
                &format!("all {} numbers are in use", EndpointId::HOST.raw() - 1),
            ));
        };
        let addresses = match wanted.addresses {
            Some(addresses) => self.take_addresses(id, addresses)?,
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
        if let Err(error) = self.state.write(&record) {
            self.release_addresses(id);
            return Err(refusal(code::IO_FAILURE, "cannot write the endpoint's file", &error.to_string()));
        }
        self.endpoints.insert(Endpoint {
            record: record.clone(),
            ifindex: 0,
            in_kernel: None,
            restoring: false,
            waiting: false,
            problem: None,
            sequence: 0,
        });
        Ok(record)
    }

    /// Puts a reserved endpoint in force: policy, then the endpoint, then its addresses. When this returns, packets
    /// pass as the policy says.
    ///
    /// # Errors
    /// The kernel refuses; the endpoint is as unreachable as before, and is to be released.
    pub fn activate(&mut self, id: EndpointId, ifindex: u32) -> Result<EndpointRecord, CniError> {
        let Some(endpoint) = self.endpoints.rows.get_mut(&id) else {
            return Err(refusal(code::AGENT, "the endpoint was removed meanwhile", &id.to_string()));
        };
        endpoint.ifindex = ifindex;
        endpoint.record.phase = Phase::Ready;
        // Labels may have changed since the reservation; the newest count.
        let name = endpoint.record.pod.clone();
        self.relabel(|record| record.pod == name);
        self.policy.set_endpoint(&self.endpoints.rows[&id].record);
        self.services.note_pods();
        self.touch();
        // A failure may be about something else; what counts is whether this endpoint is complete.
        let _ = self.write_all();
        let endpoint = &self.endpoints.rows[&id];
        let known = endpoint.record.addresses.iter().all(|address| self.ipcache_written.contains_key(address));
        let in_force = !self.touched_node && !self.touched_endpoints.contains(&id);
        if endpoint.in_kernel.is_none() || !known || !in_force {
            let known = ["policy", "ipcache"].iter().find_map(|what| self.problems.get(*what));
            let why = endpoint.problem.as_ref().or(known).cloned().unwrap_or_else(|| "the agent is not ready".into());
            return Err(refusal(code::AGENT, "the endpoint could not be put in force", &why));
        }
        let record = self.endpoints.rows[&id].record.clone();
        if let Err(error) = self.state.write(&record) {
            return Err(refusal(code::IO_FAILURE, "cannot write the endpoint's file", &error.to_string()));
        }
        self.signals.endpoints.notify_one();
        Ok(record)
    }

    /// Makes an endpoint unreachable. Its link may still be there, its numbers stay taken.
    ///
    /// # Errors
    /// The kernel or the file system refuses; to be tried again.
    pub fn deactivate(&mut self, id: EndpointId) -> Result<(), CniError> {
        let Some(endpoint) = self.endpoints.rows.get_mut(&id) else { return Ok(()) };
        endpoint.record.phase = Phase::Leaving;
        let record = endpoint.record.clone();
        self.state
            .write(&record)
            .map_err(|error| refusal(code::IO_FAILURE, "cannot write the endpoint's file", &error.to_string()))?;
        self.dataplane
            .remove_endpoint(&record.addresses)
            .map_err(|error| refusal(code::AGENT, "cannot remove the endpoint", &describe(&error)))?;
        if let Some(endpoint) = self.endpoints.rows.get_mut(&id) {
            endpoint.in_kernel = None;
        }
        for address in &record.addresses {
            self.addresses.remove_local(*address);
        }
        self.policy.remove_endpoint(id);
        self.services.note_pods();
        self.touch();
        // What fails here is tried again by the flushes that follow.
        let _ = self.write_ipcache();
        self.signals.endpoints.notify_one();
        Ok(())
    }

    /// Gives back numbers and addresses, after everything of the endpoint is gone.
    ///
    /// # Errors
    /// The file cannot be removed; to be tried again.
    pub fn release(&mut self, id: EndpointId) -> Result<(), CniError> {
        if !self.endpoints.rows.contains_key(&id) {
            return Ok(());
        }
        self.state
            .remove(id)
            .map_err(|error| refusal(code::IO_FAILURE, "cannot remove the endpoint's file", &error.to_string()))?;
        self.release_addresses(id);
        self.endpoints.remove(id);
        Ok(())
    }

    /// Compares the labels of endpoints with what their pods and namespaces say now, and follows. A label set
    /// without a number keeps the endpoint as it is until it has one.
    pub(super) fn relabel(&mut self, concerned: impl Fn(&EndpointRecord) -> bool) {
        if !self.all_synced() {
            return;
        }
        let ids: Vec<_> = self.endpoints.rows.values().filter(|e| concerned(&e.record)).map(|e| e.record.id).collect();
        for id in ids {
            self.relabel_one(id);
        }
    }

    /// Puts the endpoints of a pod in audit mode, or back.
    ///
    /// # Errors
    /// The pod has none here, or it cannot be remembered.
    pub fn set_audit(&mut self, pod: &ObjectName, on: bool) -> Result<(), CniError> {
        let active = self.endpoints.rows.values().filter(|endpoint| endpoint.is_active());
        let ids: Vec<_> = active.filter(|e| e.record.pod == *pod).map(|endpoint| endpoint.record.id).collect();
        if ids.is_empty() {
            return Err(refusal(code::AGENT, "no such pod", &format!("{pod} has no endpoint on this node")));
        }
        for id in ids {
            let record = EndpointRecord { audit: on, ..self.endpoints.rows[&id].record.clone() };
            self.state
                .write(&record)
                .map_err(|error| refusal(code::IO_FAILURE, "cannot write the endpoint's file", &error.to_string()))?;
            self.endpoints.rows.get_mut(&id).expect("taken from it").record = record;
            tracing::info!(endpoint = %id, %pod, on, "audit mode");
        }
        self.touch();
        Ok(())
    }

    /// Those that wait for a number.
    pub(super) fn relabel_waiting(&mut self) {
        let ids: Vec<_> = self.endpoints.rows.values().filter(|e| e.waiting).map(|e| e.record.id).collect();
        for id in ids {
            self.relabel_one(id);
        }
    }

    fn relabel_one(&mut self, id: EndpointId) {
        let record = &self.endpoints.rows[&id].record;
        if record.phase == Phase::Leaving {
            return;
        }
        // A pod that is gone, or another one of the same name, says nothing about this endpoint.
        let Some(pod) = self.pods.get(&record.pod).filter(|pod| pod.uid == record.pod_uid) else { return };
        let Some(labels) = self.labels_of(pod, None) else { return };
        let number = match self.identities.number_of(&labels) {
            Ok(NumberOf::Known(number)) => number,
            Ok(NumberOf::Proposed(_)) | Err(_) => {
                self.endpoints.rows.get_mut(&id).expect("looked up above").waiting = true;
                self.want_identity(labels);
                return;
            }
        };
        let (pod_labels, named_ports) = (pod.labels.clone(), pod.named_ports.clone());
        let service_account = pod.service_account.clone();
        let endpoint = self.endpoints.rows.get_mut(&id).expect("looked up above");
        endpoint.waiting = false;
        let mut record = endpoint.record.clone();
        // Of several numbers for the same labels the one in use is as good as any.
        let keeps =
            record.labels == labels && self.identities.labels(record.identity).is_some_and(|known| **known == labels);
        if !keeps {
            record.identity = number;
        }
        (record.labels, record.pod_labels, record.named_ports, record.service_account) =
            (labels, pod_labels, named_ports, service_account);
        if record == endpoint.record {
            return;
        }
        endpoint.record = record.clone();
        if endpoint.is_active() {
            tracing::info!(endpoint = %id, pod = %record.pod, identity = %record.identity, "labels have changed");
            self.policy.set_endpoint(&record);
            if let Err(error) = self.state.write(&record) {
                self.set_problem(&format!("endpoint {id}"), Some(format!("cannot write its file: {error}")));
            }
            self.signals.endpoints.notify_one();
        }
        self.touch();
    }

    /// What the cluster shall know of this node's endpoints, by pod. Several attachments of one pod (a new sandbox
    /// while the old one is still there) are one entry with all their addresses.
    #[must_use]
    pub fn announced(&self) -> Option<BTreeMap<ObjectName, Own>> {
        if !self.pruned {
            return None;
        }
        let node = self.own_address()?;
        let mut announced: BTreeMap<ObjectName, Own> = BTreeMap::new();
        let mut rows: Vec<_> =
            self.endpoints.rows.values().filter(|e| e.is_active() && e.in_kernel.is_some()).collect();
        rows.sort_by_key(|endpoint| std::cmp::Reverse(endpoint.sequence));
        for endpoint in rows {
            let record = &endpoint.record;
            let entry = announced.entry(record.pod.clone()).or_insert_with(|| Own {
                endpoint: RemoteEndpoint {
                    name: record.pod.clone(),
                    pod_uid: record.pod_uid.clone(),
                    identity: record.identity,
                    addresses: Vec::new(),
                    node,
                    named_ports: record.named_ports.clone(),
                },
                id: record.id.raw(),
                labels: record.labels.0.iter().map(|(key, value)| format!("{key}={value}")).collect(),
                service_account: record.service_account.clone(),
            });
            // The newest attachment says which pod has the name now.
            if entry.endpoint.pod_uid == record.pod_uid {
                entry.endpoint.addresses.extend(&record.addresses);
            }
        }
        Some(announced)
    }
}

/// An error for the runtime.
#[must_use]
pub fn refusal(code: u32, msg: &str, details: &str) -> CniError {
    CniError { code, msg: msg.to_owned(), details: details.to_owned() }
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
