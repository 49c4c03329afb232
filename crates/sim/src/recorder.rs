//! The data plane's place: takes everything, remembers what must be read back, and tells when an address became known.

use crate::tracker::Tracker;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use weft_agent::ports::{Kernel, LinkError, LinkSpec, Links};
use weft_datapath::NodeSettings;
use weft_model::desired::{
    CompiledPolicy, Dataplane, DataplaneError, Endpoint, Host, IpcacheEntry, MapUsage, PolicyPatch, Route,
    ServicePatch, ServiceTables, Touched,
};
use weft_model::id::{Identity, PeerClass, PolicyId};

/// An agent's maps and links. Of what is written, nothing is kept but what the agent's own tables keep as well: a
/// kernel's maps are not the agent's memory.
#[derive(Clone)]
pub struct Recorder {
    tracker: Arc<Tracker>,
    next_link: Arc<AtomicU32>,
}

impl Recorder {
    /// Empty.
    #[must_use]
    pub fn new(tracker: Arc<Tracker>) -> Self {
        Self { tracker, next_link: Arc::new(AtomicU32::new(1)) }
    }
}

impl Dataplane for Recorder {
    fn put_policy(&mut self, _: PolicyId, _: &CompiledPolicy) -> Result<(), DataplaneError> {
        Ok(())
    }
    fn patch_policy(&mut self, _: PolicyId, _: &PolicyPatch) -> Result<(), DataplaneError> {
        Ok(())
    }
    fn remove_policy(&mut self, _: PolicyId) -> Result<(), DataplaneError> {
        Ok(())
    }
    fn policies(&mut self) -> Result<BTreeMap<PolicyId, CompiledPolicy>, DataplaneError> {
        Ok(BTreeMap::new())
    }
    fn put_peers(&mut self, _: &BTreeMap<Identity, PeerClass>) -> Result<(), DataplaneError> {
        Ok(())
    }
    fn remove_peers(&mut self, _: &BTreeSet<Identity>) -> Result<(), DataplaneError> {
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
        if entry.is_some_and(|entry| !entry.is_node) {
            self.tracker.known(address);
        }
        Ok(())
    }
    fn ipcache(&mut self) -> Result<BTreeMap<IpAddr, IpcacheEntry>, DataplaneError> {
        Ok(BTreeMap::new())
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
    fn create(&self, _: &LinkSpec) -> Result<u32, LinkError> {
        Ok(self.next_link.fetch_add(1, Ordering::Relaxed))
    }
    fn remove(&self, _: &str) -> Result<(), LinkError> {
        Ok(())
    }
    fn list(&self) -> Result<Vec<(String, u32)>, LinkError> {
        Ok(Vec::new())
    }
    fn adopt(&self, _: &str, _: u32) -> Result<(), LinkError> {
        Ok(())
    }
    fn prune(&self, _: &BTreeSet<String>) {}
    fn check(&self, _: &LinkSpec) -> Result<(), LinkError> {
        Ok(())
    }
}
