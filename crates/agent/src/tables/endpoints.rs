//! Endpoints of this node: their rows, by number, attachment and address.

use crate::state::{EndpointRecord, Phase};
use rpds::RedBlackTreeMapSync;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;
use weft_api::cni::Attachment;
use weft_control::policy::EndpointPolicy;
use weft_model::desired;
use weft_model::id::{EndpointId, Identity};
use weft_model::table::{self, Consumer, Table};

/// An endpoint of this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// What its file on disk has of it.
    pub record: EndpointRecord,
    /// Index of the host side; 0 until the link is made.
    pub ifindex: u32,
    /// As the kernel has it; `None` until it has.
    pub in_kernel: Option<desired::Endpoint>,
    /// A former agent made it and this one has not confirmed it yet.
    pub restoring: bool,
    /// Waits for the identity of its new labels.
    pub waiting: bool,
    /// Why it is not as it should be.
    pub problem: Option<String>,
    /// Order of creation.
    pub sequence: u64,
}

impl Endpoint {
    /// One that is not in the kernel yet.
    #[must_use]
    pub fn new(record: EndpointRecord) -> Self {
        Self { record, ifindex: 0, in_kernel: None, restoring: false, waiting: false, problem: None, sequence: 0 }
    }

    /// It has, or is about to get, traffic.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.record.phase == Phase::Ready
    }

    /// What the kernel shall hold of it; `audit`: the whole node is in audit mode.
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

    /// Whether the kernel has it so. Asked of every endpoint when any has changed, so nothing is allocated.
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

/// All of them as of one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    rows: table::Snapshot<EndpointId, Endpoint>,
    by_address: RedBlackTreeMapSync<IpAddr, EndpointId>,
}

impl Deref for Snapshot {
    type Target = table::Snapshot<EndpointId, Endpoint>;

    fn deref(&self) -> &Self::Target {
        &self.rows
    }
}

impl Snapshot {
    /// The endpoint that has an address.
    #[must_use]
    pub fn with_address(&self, address: IpAddr) -> Option<&Arc<Endpoint>> {
        self.rows.get(self.by_address.get(&address)?)
    }

    /// The endpoint of a pod, by UID; of several attachments any.
    #[must_use]
    pub fn of_pod(&self, uid: &str) -> Option<&Arc<Endpoint>> {
        self.rows.values().find(|endpoint| endpoint.record.pod_uid == uid)
    }
}

/// The table.
#[derive(Debug, Default)]
pub struct Endpoints {
    rows: Table<EndpointId, Endpoint>,
    by_address: RedBlackTreeMapSync<IpAddr, EndpointId>,
    attachments: BTreeMap<Attachment, EndpointId>,
    /// Where the search for a free number starts: a number rests as long as possible before it is used again.
    next_id: u16,
    sequence: u64,
}

impl Deref for Endpoints {
    type Target = table::Snapshot<EndpointId, Endpoint>;

    fn deref(&self) -> &Self::Target {
        &self.rows
    }
}

impl Endpoints {
    /// Adds one.
    pub fn insert(&mut self, mut endpoint: Endpoint) {
        self.sequence += 1;
        endpoint.sequence = self.sequence;
        let id = endpoint.record.id;
        self.attachments.insert(endpoint.record.attachment.clone(), id);
        for address in &endpoint.record.addresses {
            self.by_address.insert_mut(*address, id);
        }
        self.rows.insert(id, endpoint);
    }

    /// Removes one.
    pub fn remove(&mut self, id: EndpointId) -> Option<Arc<Endpoint>> {
        let endpoint = self.rows.remove(&id)?;
        self.attachments.remove(&endpoint.record.attachment);
        for address in &endpoint.record.addresses {
            if self.by_address.get(address) == Some(&id) {
                self.by_address.remove_mut(address);
            }
        }
        Some(endpoint)
    }

    /// Changes one, but not its addresses or attachment.
    pub fn update(&mut self, id: EndpointId, change: impl FnOnce(&mut Endpoint)) -> bool {
        self.rows.update(&id, change)
    }

    /// By attachment.
    #[must_use]
    pub fn find(&self, attachment: &Attachment) -> Option<&Arc<Endpoint>> {
        self.rows.get(self.attachments.get(attachment)?)
    }

    /// The endpoint that has an address.
    #[must_use]
    pub fn with_address(&self, address: IpAddr) -> Option<&Arc<Endpoint>> {
        self.rows.get(self.by_address.get(&address)?)
    }

    /// Whether any has this identity.
    #[must_use]
    pub fn uses(&self, identity: Identity) -> bool {
        self.rows.values().any(|endpoint| endpoint.record.identity == identity)
    }

    /// A number that no endpoint has. The last number is the node's own.
    pub fn free_id(&mut self) -> Option<EndpointId> {
        let count = EndpointId::HOST.raw() - 1;
        let free = (0..count)
            .filter_map(|step| EndpointId::new((self.next_id + step) % count + 1))
            .find(|id| !self.rows.contains_key(id))?;
        self.next_id = free.raw() % count;
        Some(free)
    }

    /// Follows the table: see [`Table::subscribe`].
    pub fn subscribe(&mut self) -> Consumer {
        self.rows.subscribe()
    }

    /// See [`Table::drain`].
    pub fn drain(&mut self, consumer: &Consumer) -> Vec<(EndpointId, Option<Arc<Endpoint>>)> {
        self.rows.drain(consumer)
    }

    /// See [`Table::has_changed`].
    #[must_use]
    pub fn has_changed(&self, consumer: &Consumer) -> bool {
        self.rows.has_changed(consumer)
    }

    /// All as they are now, for readers.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { rows: self.rows.snapshot(), by_address: self.by_address.clone() }
    }
}
