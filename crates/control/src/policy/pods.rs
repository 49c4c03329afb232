//! The pods of the cluster by identity, and their named ports.

use super::resolved::PortName;
use foldhash::{HashMap, HashSet};
use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use weft_model::id::Identity;
use weft_model::intent::RemoteEndpoint;

/// An endpoint, hashed by its pod's UID.
#[derive(Clone, Debug)]
struct ByUid(Arc<RemoteEndpoint>);

impl Borrow<str> for ByUid {
    fn borrow(&self) -> &str {
        &self.0.pod_uid
    }
}

impl PartialEq for ByUid {
    fn eq(&self, other: &Self) -> bool {
        self.0.pod_uid == other.0.pod_uid
    }
}

impl Eq for ByUid {}

impl Hash for ByUid {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.pod_uid.as_str().hash(state);
    }
}

#[derive(Clone, Debug, Default)]
pub struct Pods {
    all: HashSet<ByUid>,
    by_identity: HashMap<Identity, Vec<Arc<RemoteEndpoint>>>,
}

impl Pods {
    /// Upserts an endpoint. Returns the identities whose named ports may have changed.
    pub fn put(&mut self, pod: Arc<RemoteEndpoint>) -> BTreeSet<Identity> {
        if self.all.get(pod.pod_uid.as_str()).is_some_and(|known| known.0 == pod) {
            return BTreeSet::new();
        }
        let mut changed = self.remove(&pod.pod_uid);
        changed.insert(pod.identity);
        self.by_identity.entry(pod.identity).or_default().push(Arc::clone(&pod));
        self.all.insert(ByUid(pod));
        changed
    }

    /// Deletes an endpoint, likewise.
    pub fn remove(&mut self, uid: &str) -> BTreeSet<Identity> {
        let Some(ByUid(pod)) = self.all.take(uid) else { return BTreeSet::new() };
        if let Some(pods) = self.by_identity.get_mut(&pod.identity) {
            // Comparing pointers is much cheaper than reading the UID of every pod of the identity.
            if let Some(at) = pods.iter().position(|other| Arc::ptr_eq(other, &pod)) {
                pods.swap_remove(at);
            }
            if pods.is_empty() {
                self.by_identity.remove(&pod.identity);
            }
        }
        BTreeSet::from([pod.identity])
    }

    pub fn of(&self, identity: Identity) -> &[Arc<RemoteEndpoint>] {
        self.by_identity.get(&identity).map_or(&[], Vec::as_slice)
    }

    /// The port numbers of a named port, if they are the same in all pods of an identity.
    pub fn common_ports(&self, identity: Identity, name: &PortName) -> Option<Vec<u16>> {
        let mut pods = self.of(identity).iter();
        let first = pods.next().map(|pod| numbers(pod, name)).unwrap_or_default();
        pods.all(|pod| numbers(pod, name) == first).then_some(first)
    }
}

/// The port numbers of a named port in a pod, sorted.
pub fn numbers(pod: &RemoteEndpoint, name: &PortName) -> Vec<u16> {
    let ports = pod.named_ports.iter().filter(|port| port.protocol == name.0 && port.name == name.1);
    let mut numbers: Vec<u16> = ports.map(|port| port.port).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}
