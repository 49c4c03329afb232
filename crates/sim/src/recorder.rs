//! The data plane's place: takes everything, remembers what must be read back, and tells when an address became known.

use crate::tracker::Tracker;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use weft_agent::ports::{Kernel, LinkError, LinkSpec, Links};
use weft_datapath::NodeSettings;
use weft_model::desired::{
    CompiledPolicy, Dataplane, DataplaneError, Endpoint, Host, IpcacheEntry, MapUsage, PolicyPatch, Route,
    ServicePatch, ServiceTables, Touched,
};
use weft_model::id::{Identity, PeerClass, PolicyId};

/// An agent's maps and links, for it and those that come after it on the same node. Of what is written nothing is kept
/// but links: a kernel's maps are not the agent's memory. The rest is kept where an agent shall find the addresses that
/// the one before it left.
#[derive(Clone)]
pub struct Recorder {
    tracker: Arc<Tracker>,
    links: Arc<Mutex<BTreeMap<String, u32>>>,
    kept: Option<Arc<Mutex<Kept>>>,
}

/// What is kept.
#[derive(Default)]
struct Kept {
    ipcache: BTreeMap<IpAddr, IpcacheEntry>,
    peers: BTreeMap<Identity, PeerClass>,
    /// The classes that each policy names.
    policies: BTreeMap<PolicyId, BTreeSet<PeerClass>>,
}

impl Kept {
    /// The addresses of those of the peers that a policy in force names: to it they would be nobody's without their rows.
    fn named(&self, peers: &BTreeSet<Identity>) -> Vec<IpAddr> {
        let is_named = |peer: &Identity| {
            self.peers.get(peer).is_some_and(|class| self.policies.values().any(|classes| classes.contains(class)))
        };
        let named: BTreeSet<&Identity> = peers.iter().filter(|peer| is_named(peer)).collect();
        let of_them = self.ipcache.iter().filter(|(_, entry)| named.contains(&entry.identity));
        of_them.map(|(address, _)| *address).collect()
    }
}

impl Recorder {
    /// Empty; `keeps`: addresses are kept.
    #[must_use]
    pub fn new(tracker: Arc<Tracker>, keeps: bool) -> Self {
        Self { tracker, links: Arc::default(), kept: keeps.then(Arc::default) }
    }

    /// The addresses that are kept.
    #[must_use]
    pub fn addresses(&self) -> BTreeMap<IpAddr, IpcacheEntry> {
        self.kept.as_ref().map(|kept| lock(kept).ipcache.clone()).unwrap_or_default()
    }

    fn keep(&self, what: impl FnOnce(&mut Kept)) {
        if let Some(kept) = &self.kept {
            what(&mut lock(kept));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Dataplane for Recorder {
    fn put_policy(&mut self, id: PolicyId, policy: &CompiledPolicy) -> Result<(), DataplaneError> {
        self.keep(|kept| drop(kept.policies.insert(id, policy.classes.keys().copied().collect())));
        Ok(())
    }
    fn patch_policy(&mut self, id: PolicyId, patch: &PolicyPatch) -> Result<(), DataplaneError> {
        self.keep(|kept| {
            let classes = kept.policies.entry(id).or_default();
            classes.extend(patch.put_classes.keys());
            classes.retain(|class| !patch.del_classes.contains(class));
        });
        Ok(())
    }
    fn remove_policy(&mut self, id: PolicyId) -> Result<(), DataplaneError> {
        self.keep(|kept| drop(kept.policies.remove(&id)));
        Ok(())
    }
    fn policies(&mut self) -> Result<BTreeMap<PolicyId, CompiledPolicy>, DataplaneError> {
        self.keep(|kept| kept.policies.clear());
        Ok(BTreeMap::new())
    }
    fn put_peers(&mut self, peers: &BTreeMap<Identity, PeerClass>) -> Result<(), DataplaneError> {
        self.keep(|kept| kept.peers.extend(peers));
        Ok(())
    }
    fn remove_peers(&mut self, peers: &BTreeSet<Identity>) -> Result<(), DataplaneError> {
        self.keep(|kept| {
            kept.named(peers).into_iter().for_each(|address| self.tracker.removed(address));
            kept.peers.retain(|peer, _| !peers.contains(peer));
        });
        Ok(())
    }
    fn peers(&mut self) -> Result<BTreeMap<Identity, PeerClass>, DataplaneError> {
        Ok(BTreeMap::new())
    }
    fn set_host(&mut self, _: Option<&Host>) -> Result<(), DataplaneError> {
        Ok(())
    }
    fn put_endpoint(&mut self, _: &Endpoint) -> Result<(), DataplaneError> {
        Ok(())
    }
    fn remove_endpoint(&mut self, _: &[IpAddr]) -> Result<(), DataplaneError> {
        Ok(())
    }
    fn endpoints(&mut self) -> Result<Vec<Endpoint>, DataplaneError> {
        Ok(Vec::new())
    }
    fn set_ipcache(&mut self, address: IpAddr, entry: Option<&IpcacheEntry>) -> Result<(), DataplaneError> {
        match entry {
            Some(entry) if !entry.is_node => self.tracker.known(address),
            Some(_) => {}
            None => self.tracker.removed(address),
        }
        if let Some(kept) = &self.kept {
            let before = match entry {
                Some(entry) => lock(kept).ipcache.insert(address, *entry),
                None => lock(kept).ipcache.remove(&address),
            };
            match (before, entry) {
                (_, Some(entry)) if entry.node.is_none() => self.tracker.owned(address, entry.identity),
                (Some(before), Some(entry)) => self.tracker.changed(address, before.identity, entry.identity),
                _ => {}
            }
        }
        Ok(())
    }
    fn ipcache(&mut self) -> Result<BTreeMap<IpAddr, IpcacheEntry>, DataplaneError> {
        Ok(self.addresses())
    }
    fn set_cidr(&mut self, _: IpNet, _: Option<Identity>) -> Result<(), DataplaneError> {
        Ok(())
    }
    fn cidrs(&mut self) -> Result<BTreeMap<IpNet, Identity>, DataplaneError> {
        Ok(BTreeMap::new())
    }
    fn set_route(&mut self, _: IpNet, _: Option<Route>) -> Result<(), DataplaneError> {
        Ok(())
    }
    fn routes(&mut self) -> Result<BTreeMap<IpNet, Route>, DataplaneError> {
        Ok(BTreeMap::new())
    }
    fn patch_services(&mut self, _: &ServicePatch) -> Result<(), DataplaneError> {
        Ok(())
    }
    fn services(&mut self) -> Result<ServiceTables, DataplaneError> {
        Ok(ServiceTables::default())
    }
    fn bump(&mut self, _: &Touched) -> Result<(), DataplaneError> {
        Ok(())
    }
    fn usage(&mut self) -> Result<Vec<MapUsage>, DataplaneError> {
        Ok(Vec::new())
    }
}

impl Kernel for Recorder {
    fn configure(&mut self, _: &NodeSettings) -> Result<(), DataplaneError> {
        Ok(())
    }
}

impl Links for Recorder {
    fn create(&self, spec: &LinkSpec) -> Result<u32, LinkError> {
        // As many links as numbers: an endpoint's own is as good as any.
        let index = u32::from(spec.id.raw());
        lock(&self.links).insert(spec.device.clone(), index);
        Ok(index)
    }
    fn remove(&self, device: &str) -> Result<(), LinkError> {
        lock(&self.links).remove(device);
        Ok(())
    }
    fn list(&self) -> Result<Vec<(String, u32)>, LinkError> {
        Ok(lock(&self.links).iter().map(|(name, index)| (name.clone(), *index)).collect())
    }
    fn adopt(&self, _: &str, _: u32) -> Result<(), LinkError> {
        Ok(())
    }
    fn prune(&self, _: &BTreeSet<String>) {}
    fn check(&self, _: &LinkSpec) -> Result<(), LinkError> {
        Ok(())
    }
}
