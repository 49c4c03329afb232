//! Stand-ins for the kernel and the cluster that record what was done to them and fail on request.

use super::settings::Settings;
use super::snapshot::Progress;
use crate::ports::{Cluster, ClusterError, Created, Kernel, LinkError, LinkSpec, Links};
use crate::state::StateDir;
use crate::writer::Writer;
use crate::writer::thread::{self, Handle};
use futures::future::{BoxFuture, FutureExt as _};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::{Notify, watch};
use weft_datapath::NodeSettings;
use weft_model::desired::{
    CompiledPolicy, Dataplane, DataplaneError, Endpoint, Host, IpcacheEntry, MapUsage, PolicyPatch, Route,
    ServicePatch, ServiceTables, Touched,
};
use weft_model::id::{Identity, PeerClass, PolicyId};
use weft_model::intent::{Change, IdentityLabels, Namespace, Node, ObjectName, Pod, PoolRequest};
use weft_model::label::LabelSet;

/// What the kernel holds.
#[derive(Default, Debug)]
pub struct Held {
    pub policies: BTreeMap<PolicyId, CompiledPolicy>,
    pub peers: BTreeMap<Identity, PeerClass>,
    pub host: Option<Host>,
    pub endpoints: BTreeMap<IpAddr, Endpoint>,
    pub ipcache: BTreeMap<IpAddr, IpcacheEntry>,
    pub cidrs: BTreeMap<IpNet, Identity>,
    pub routes: BTreeMap<IpNet, Route>,
    pub services: ServiceTables,
    pub links: BTreeMap<String, u32>,
    pub link_next: u32,
    /// Every successful operation, in order.
    pub log: Vec<String>,
    /// Operations that fail (by the first word of their log line).
    pub failing: BTreeSet<&'static str>,
    /// Identities at the API server.
    pub identities: BTreeMap<Identity, LabelSet>,
    pub pods: BTreeMap<ObjectName, Pod>,
    pub namespaces: BTreeMap<String, Namespace>,
    /// Notified of every successful operation.
    acted: Arc<Notify>,
}

/// The world that a test looks at; clones share it.
#[derive(Clone, Default)]
pub struct World(Arc<Mutex<Held>>);

impl World {
    pub fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().expect("no test thread panicked with it")
    }

    fn act(&self, line: String, act: impl FnOnce(&mut Held)) -> io::Result<()> {
        let mut held = self.held();
        let verb = line.split(' ').next().unwrap_or_default();
        if held.failing.contains(verb) {
            return Err(io::Error::other(format!("{verb} was made to fail")));
        }
        act(&mut held);
        held.log.push(line);
        held.acted.notify_one();
        Ok(())
    }

    fn write(&self, line: String, act: impl FnOnce(&mut Held)) -> Result<(), DataplaneError> {
        self.act(line.clone(), act).map_err(|source| DataplaneError::System { what: line, source })
    }

    /// Waits until it is so. One test waits at a time.
    pub async fn until(&self, is_so: impl Fn(&Held) -> bool) {
        let acted = self.held().acted.clone();
        while !is_so(&self.held()) {
            acted.notified().await;
        }
    }

    /// The log since the last call.
    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.held().log)
    }

    pub fn fail(&self, verb: &'static str) {
        self.held().failing.insert(verb);
    }

    pub fn heal(&self) {
        self.held().failing.clear();
    }
}

impl Dataplane for World {
    fn put_policy(&mut self, id: PolicyId, policy: &CompiledPolicy) -> Result<(), DataplaneError> {
        let policy = policy.clone();
        self.write(format!("put_policy {}", id.0), |held| {
            let used = held.endpoints.values().any(|endpoint| endpoint.ingress == id || endpoint.egress == id);
            assert!(!used, "policy {} is written while in use", id.0);
            held.policies.insert(id, policy);
        })
    }
    fn patch_policy(&mut self, id: PolicyId, patch: &PolicyPatch) -> Result<(), DataplaneError> {
        let patch = patch.clone();
        self.write(format!("patch_policy {}", id.0), |held| {
            let policy = held.policies.get_mut(&id).expect("only policies that are there are patched");
            policy.entries.extend(patch.put_entries);
            policy.classes.extend(patch.put_classes);
            policy.classes.retain(|class, _| !patch.del_classes.contains(class));
            policy.entries.retain(|entry, _| !patch.del_entries.contains(entry));
        })
    }
    fn remove_policy(&mut self, id: PolicyId) -> Result<(), DataplaneError> {
        self.write(format!("remove_policy {}", id.0), |held| {
            let used = held.endpoints.values().any(|endpoint| endpoint.ingress == id || endpoint.egress == id);
            assert!(!used, "policy {} is removed while in use", id.0);
            held.policies.remove(&id);
        })
    }
    fn policies(&mut self) -> Result<BTreeMap<PolicyId, CompiledPolicy>, DataplaneError> {
        Ok(self.held().policies.clone())
    }
    fn put_peers(&mut self, peers: &BTreeMap<Identity, PeerClass>) -> Result<(), DataplaneError> {
        let peers = peers.clone();
        let names = peers.keys().map(ToString::to_string).collect::<Vec<_>>().join(",");
        self.write(format!("put_peers {names}"), |held| held.peers.extend(peers))
    }
    fn remove_peers(&mut self, peers: &BTreeSet<Identity>) -> Result<(), DataplaneError> {
        let names = peers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        self.write(format!("remove_peers {names}"), |held| held.peers.retain(|peer, _| !peers.contains(peer)))
    }
    fn peers(&mut self) -> Result<BTreeMap<Identity, PeerClass>, DataplaneError> {
        Ok(self.held().peers.clone())
    }
    fn set_host(&mut self, host: Option<&Host>) -> Result<(), DataplaneError> {
        let host = host.copied();
        self.write(format!("set_host {}", host.is_some()), |held| {
            for policy in host.iter().flat_map(|host| [host.ingress, host.egress]).filter(|id| *id != PolicyId::OPEN) {
                assert!(held.policies.contains_key(&policy), "the node uses policy {} that is not there", policy.0);
            }
            held.host = host;
        })
    }
    fn put_endpoint(&mut self, endpoint: &Endpoint) -> Result<(), DataplaneError> {
        let endpoint = endpoint.clone();
        self.write(format!("put_endpoint {} identity {}", endpoint.id, endpoint.identity), |held| {
            for policy in [endpoint.ingress, endpoint.egress].into_iter().filter(|id| *id != PolicyId::OPEN) {
                assert!(held.policies.contains_key(&policy), "an endpoint uses policy {} that is not there", policy.0);
            }
            for address in &endpoint.addresses {
                held.endpoints.insert(*address, endpoint.clone());
            }
        })
    }
    fn remove_endpoint(&mut self, addresses: &[IpAddr]) -> Result<(), DataplaneError> {
        self.write(format!("remove_endpoint {addresses:?}"), |held| {
            held.endpoints.retain(|address, _| !addresses.contains(address))
        })
    }
    fn endpoints(&mut self) -> Result<Vec<Endpoint>, DataplaneError> {
        let held = self.held();
        let by_id: BTreeMap<_, _> = held.endpoints.values().map(|endpoint| (endpoint.id, endpoint.clone())).collect();
        Ok(by_id.into_values().collect())
    }
    fn set_ipcache(&mut self, address: IpAddr, entry: Option<&IpcacheEntry>) -> Result<(), DataplaneError> {
        let what = entry.map_or("none".to_owned(), |entry| entry.identity.to_string());
        self.write(format!("set_ipcache {address} {what}"), |held| {
            match entry {
                Some(entry) => held.ipcache.insert(address, *entry),
                None => held.ipcache.remove(&address),
            };
        })
    }
    fn ipcache(&mut self) -> Result<BTreeMap<IpAddr, IpcacheEntry>, DataplaneError> {
        Ok(self.held().ipcache.clone())
    }
    fn set_cidr(&mut self, cidr: IpNet, identity: Option<Identity>) -> Result<(), DataplaneError> {
        self.write(format!("set_cidr {cidr} {}", identity.is_some()), |held| {
            match identity {
                Some(identity) => held.cidrs.insert(cidr, identity),
                None => held.cidrs.remove(&cidr),
            };
        })
    }
    fn cidrs(&mut self) -> Result<BTreeMap<IpNet, Identity>, DataplaneError> {
        Ok(self.held().cidrs.clone())
    }
    fn set_route(&mut self, cidr: IpNet, route: Option<Route>) -> Result<(), DataplaneError> {
        self.write(format!("set_route {cidr} {route:?}"), |held| {
            match route {
                Some(route) => held.routes.insert(cidr, route),
                None => held.routes.remove(&cidr),
            };
        })
    }
    fn routes(&mut self) -> Result<BTreeMap<IpNet, Route>, DataplaneError> {
        Ok(self.held().routes.clone())
    }
    fn patch_services(&mut self, patch: &ServicePatch) -> Result<(), DataplaneError> {
        let patch = patch.clone();
        self.write("patch_services".into(), |held| held.services.apply(&patch))
    }
    fn services(&mut self) -> Result<ServiceTables, DataplaneError> {
        Ok(self.held().services.clone())
    }
    fn bump(&mut self, touched: &Touched) -> Result<(), DataplaneError> {
        let text = match touched {
            Touched::Node => "bump node".to_owned(),
            Touched::Endpoints(ids) => {
                format!("bump {}", ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
            }
        };
        self.write(text, |_| {})
    }
    fn usage(&mut self) -> Result<Vec<MapUsage>, DataplaneError> {
        Ok(Vec::new())
    }
}

impl Kernel for World {
    fn configure(&mut self, _: &NodeSettings) -> Result<(), DataplaneError> {
        self.write("configure".into(), |_| {})
    }
}

fn link_error(source: io::Error) -> LinkError {
    LinkError { what: "link".into(), netns_gone: false, source: Some(Box::new(source)) }
}

impl Links for World {
    fn create(&self, spec: &LinkSpec) -> Result<u32, LinkError> {
        let mut index = 0;
        self.act(format!("create_link {}", spec.id), |held| {
            held.link_next += 1;
            index = held.link_next;
            held.links.insert(spec.device.clone(), index);
        })
        .map_err(link_error)?;
        Ok(index)
    }
    fn remove(&self, device: &str) -> Result<(), LinkError> {
        self.act("remove_link".into(), |held| {
            held.links.remove(device);
        })
        .map_err(link_error)
    }
    fn list(&self) -> Result<Vec<(String, u32)>, LinkError> {
        Ok(self.held().links.iter().map(|(name, index)| (name.clone(), *index)).collect())
    }
    fn adopt(&self, _: &str, _: u32) -> Result<(), LinkError> {
        self.act("adopt_link".into(), |_| {}).map_err(link_error)
    }
    fn prune(&self, _: &BTreeSet<String>) {}
    fn check(&self, spec: &LinkSpec) -> Result<(), LinkError> {
        if self.held().links.contains_key(&spec.device) {
            return Ok(());
        }
        Err(LinkError { what: format!("{} is not there", spec.device), netns_gone: false, source: None })
    }
}

fn cluster_error(source: io::Error) -> ClusterError {
    ClusterError { what: "API server".into(), source: Some(Box::new(source)) }
}

impl Cluster for World {
    fn pod<'a>(&'a self, name: &'a ObjectName) -> BoxFuture<'a, Result<Option<Pod>, ClusterError>> {
        let asked = self.act(format!("get_pod {name}"), |_| {}).map_err(cluster_error);
        async move { asked.map(|()| self.held().pods.get(name).cloned()) }.boxed()
    }
    fn namespace<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Namespace>, ClusterError>> {
        let asked = self.act(format!("get_namespace {name}"), |_| {}).map_err(cluster_error);
        async move { asked.map(|()| self.held().namespaces.get(name).cloned()) }.boxed()
    }
    fn create_identity<'a>(&'a self, row: &'a IdentityLabels) -> BoxFuture<'a, Result<Created, ClusterError>> {
        let mut answer = Created::Yes;
        let asked = self.act(format!("create_identity {}", row.identity), |held| {
            let labels = held.identities.entry(row.identity).or_insert_with(|| row.labels.clone());
            if *labels != row.labels {
                answer =
                    Created::Taken(IdentityLabels { identity: row.identity, labels: labels.clone(), unused: false });
            }
        });
        async move { asked.map(|()| answer).map_err(cluster_error) }.boxed()
    }
}

/// Settings of a node called `n1`.
pub fn settings() -> Settings {
    Settings {
        node_name: "n1".into(),
        cluster_name: "test".into(),
        ipv4: true,
        ipv6: true,
        tunnel: false,
        ipam: super::settings::Ipam::default(),
        pod_ranges: Vec::new(),
        no_masquerade: Vec::new(),
        host_firewall: true,
        audit: false,
        api_server: BTreeSet::new(),
        node_ports: 30_000..=32_767,
        forwarding: weft_model::intent::Forwarding::Snat,
        maglev_table_size: 251,
        external_ips_allowed: Vec::new(),
        host_ports_reserved: Vec::new(),
    }
}

/// What the programs know of that node.
pub fn node_settings() -> NodeSettings {
    NodeSettings {
        device_ifindex: 2,
        device_mac: None,
        tunnel: None,
        node_v4: Some([172, 31, 0, 11].into()),
        node_v6: None,
        pod_mtu: 1500,
        nat_ports: 50_000..=60_000,
        guard: weft_datapath::PortGuard::None,
        masquerade_v4: true,
        masquerade_v6: true,
        dual_stack: true,
        timeouts: weft_datapath::Timeouts::default(),
        events_per_s: 1000,
    }
}

pub fn writer(world: &World, dir: &Path) -> Writer {
    Writer::new(settings(), StateDir::open(dir).expect("state"), Box::new(world.clone()))
}

pub fn name(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').expect("namespace/name");
    ObjectName { namespace: namespace.into(), name: name.into() }
}

pub fn pod(text: &str, uid: &str, labels: &[(&str, &str)]) -> Pod {
    Pod {
        name: name(text),
        uid: uid.into(),
        node: Some("n1".into()),
        labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        service_account: "default".into(),
        host_network: false,
        named_ports: Vec::new(),
        address_pools: PoolRequest::default(),
        host_ports: Vec::new(),
        ready: true,
        finished: false,
        age: weft_model::intent::Age::default(),
    }
}

pub fn namespace(name: &str, labels: &[(&str, &str)]) -> Namespace {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Namespace { name: name.into(), labels, address_pools: PoolRequest::default() }
}

pub fn node(name: &str, n: u8) -> Node {
    Node {
        name: name.into(),
        addresses: vec![ip(&format!("172.31.0.{}", 10 + n)), ip(&format!("fd31::{}", 10 + n))],
        pod_cidrs: vec![
            format!("10.244.{n}.0/24").parse().expect("prefix"),
            format!("fd44:0:0:{n}::/64").parse().expect("prefix"),
        ],
        labels: BTreeMap::new(),
    }
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

pub fn synced() -> Vec<Change> {
    weft_model::intent::Source::all().map(Change::Synced).collect()
}

/// What a node with one namespace and no pods gets first.
pub fn first_news() -> Vec<Change> {
    let mut changes =
        vec![Change::Node(node("n1", 1)), Change::Node(node("n2", 2)), Change::Namespace(namespace("shop", &[]))];
    changes.extend(synced());
    changes
}

/// A writer on its thread, ready.
pub async fn ready(world: &World, dir: &Path) -> (Handle, watch::Receiver<Progress>) {
    let mut writer = writer(world, dir);
    crate::restart::take_over(&mut writer, world).expect("take over");
    let mut progress = writer.progress();
    let (handle, _) = thread::spawn(writer).expect("thread");
    handle
        .call(|writer| {
            writer.apply(first_news());
            writer.set_node_ready(None);
        })
        .await
        .expect("running");
    progress.wait_for(|progress| progress.ready).await.expect("running");
    (handle, progress)
}

pub fn mtu() -> Arc<AtomicU32> {
    Arc::new(AtomicU32::new(1500))
}
