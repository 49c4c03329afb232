//! [`Datapath`]: the owner of a node's maps.

use crate::cidr;
use crate::collect::Collector;
use crate::error::OpenError;
use crate::event::EventReader;
use crate::flows::Flows;
use crate::hooks::Hooks;
use crate::map::TypedMap;
use crate::metrics::Metrics;
use crate::open::{self, Adopted, Options};
use crate::page::{ConfigPage, ObserveSwitch};
use crate::pins::PinDir;
use crate::settings::NodeSettings;
use crate::sockets::Destroyer;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use weft_abi::{
    Addr, CidrValue, EndpointInfo, FlowEntry, FlowKey, FragmentKey, FragmentValue, IpcacheInfo, LpmKey, MetricValue,
    NodeConfig, RouteInfo, endpoint_flags, ipcache_flags, map_name, route_flags,
};
use weft_model::desired::{
    CompiledPolicy, Dataplane, DataplaneError, Endpoint, Host, IpcacheEntry, MapUsage, PolicyPatch, Route,
    ServicePatch, ServiceTables, Touched,
};
use weft_model::id::{EndpointId, Identity, PeerClass, PolicyId};

mod peers;
mod policy;
mod services;
use peers::Peers;
use policy::Policies;
use services::Services;

/// A node's data path: the maps, the programs and the pin directory. Exactly one exists per directory.
///
/// It belongs to one thread, which writes what the tables say. Everything that other threads need comes as a handle of
/// its own ([`Hooks`], [`EventReader`], [`Flows`], [`Metrics`], [`Collector`], [`ObserveSwitch`]).
pub struct Datapath {
    maps: BTreeMap<&'static str, Arc<OwnedFd>>,
    endpoints: Counted<EndpointInfo>,
    ipcache: Counted<IpcacheInfo>,
    cidrs: Trie<CidrValue>,
    routes: Trie<RouteInfo>,
    peers: Peers,
    policies: Policies,
    services: Services,
    flows: Flows,
    page: Arc<ConfigPage>,
    hooks: Hooks,
    _pins: PinDir,
}

/// A hash by address that counts its entries.
struct Counted<V> {
    map: TypedMap<Addr, V>,
    entries: u64,
}

impl<V: aya::Pod> Counted<V> {
    fn put(&mut self, key: &Addr, value: &V) -> Result<(), DataplaneError> {
        if self.map.replace(key, value)? {
            return Ok(());
        }
        self.map.reserve(self.entries, 1)?;
        self.map.put(key, value)?;
        self.entries += 1;
        Ok(())
    }

    fn remove(&mut self, key: &Addr) -> Result<bool, DataplaneError> {
        let removed = self.map.remove(key)?;
        self.entries -= u64::from(removed);
        Ok(removed)
    }
}

/// A prefix trie that knows its keys: kernels before 6.13 do not say whether a write added one.
struct Trie<V> {
    map: TypedMap<LpmKey, V>,
    keys: HashSet<(u32, Addr)>,
    /// The value of an empty row for all of IPv4, see [`cidr::V4_ALL`].
    empty: V,
}

impl<V: aya::Pod> Trie<V> {
    fn open(map: TypedMap<LpmKey, V>, empty: V) -> Result<Self, DataplaneError> {
        let keys = map.dump()?.into_iter().map(|(key, _)| (key.prefix_len, key.addr)).collect();
        let mut trie = Self { map, keys, empty };
        if !trie.keys.contains(&(cidr::V4_ALL.prefix_len, cidr::V4_ALL.addr)) {
            trie.put(cidr::V4_ALL, &empty)?;
        }
        Ok(trie)
    }

    fn set(&mut self, cidr: IpNet, value: Option<V>) -> Result<(), DataplaneError> {
        let key = cidr::key(cidr);
        match value {
            Some(value) => self.put(key, &value),
            None if key == cidr::V4_ALL => self.map.put(&key, &self.empty),
            None => {
                self.map.remove(&key)?;
                self.keys.remove(&(key.prefix_len, key.addr));
                Ok(())
            }
        }
    }

    fn put(&mut self, key: LpmKey, value: &V) -> Result<(), DataplaneError> {
        if !self.keys.contains(&(key.prefix_len, key.addr)) {
            self.map.reserve(self.keys.len() as u64, 1)?;
        }
        self.map.put(&key, value)?;
        self.keys.insert((key.prefix_len, key.addr));
        Ok(())
    }
}

impl Datapath {
    /// Opens or creates a node's pin directory and adopts what a former agent left there. After this the programs of this
    /// build judge every packet, with the maps as they were.
    ///
    /// # Errors
    /// [`OpenError`]; what was in force is in force still.
    pub fn open(options: &Options) -> Result<(Self, Adopted), OpenError> {
        let parts = open::open(options)?;
        let typed = OpenMaps(&parts.maps);
        let page = ConfigPage::map(&parts.maps[map_name::CONFIG], &parts.maps[map_name::GENERATIONS])
            .map_err(|source| OpenError::System { what: "share the memory of map CONFIG".into(), source })?;
        let endpoints = typed.counted(map_name::ENDPOINTS)?;
        let ipcache = typed.counted(map_name::IPCACHE)?;
        let cidrs = Trie::open(typed.map(map_name::PREFIXES)?, CidrValue::default())?;
        let routes = Trie::open(typed.map(map_name::ROUTES)?, RouteInfo::default())?;
        let peers = Peers::open(typed.map(map_name::PEERS)?)?;
        let policies = Policies::open(
            typed.map(map_name::POLICY_CLASSES)?,
            typed.map(map_name::POLICY_ENTRIES)?,
            typed.map(map_name::POLICY_INFO)?,
        )?;
        let services = Services::open(services::Maps {
            frontends: typed.map(map_name::FRONTENDS)?,
            slots: typed.map(map_name::SLOTS)?,
            backends: typed.map(map_name::BACKENDS)?,
            maglev: typed.map(map_name::MAGLEV)?,
            ranges: typed.map(map_name::RANGES)?,
        })?;
        let fragments: TypedMap<FragmentKey, FragmentValue> = typed.map(map_name::FRAGMENTS)?;
        let flows: TypedMap<FlowKey, FlowEntry> = typed.map(map_name::FLOWS)?;
        if parts.revisions_lost {
            let mut newest = 0;
            flows.for_each(|_, entry| {
                newest = newest.max(entry.revision);
                true
            })?;
            page.invalidate_up_to(newest);
        }
        let datapath = Self {
            endpoints,
            ipcache,
            cidrs,
            routes,
            peers,
            policies,
            services,
            flows: Flows::new(flows, fragments),
            page: Arc::new(page),
            hooks: parts.hooks,
            maps: parts.maps,
            _pins: parts.pins,
        };
        Ok((datapath, parts.adopted))
    }

    /// The policies of the node itself, as the programs have them.
    #[must_use]
    pub fn host(&self) -> Option<Host> {
        self.page.host()
    }

    /// Writes the node's settings. The node's network namespace is the calling thread's. All flows are decided again.
    ///
    /// # Errors
    /// [`DataplaneError`]
    pub fn configure(&mut self, settings: &NodeSettings) -> Result<(), DataplaneError> {
        let cookie = crate::netns::cookie().map_err(|source| DataplaneError::System {
            what: "read the cookie of the node's network namespace".into(),
            source,
        })?;
        let netns_cookie = [cookie as u32, (cookie >> 32) as u32];
        self.page.configure(&NodeConfig { netns_cookie, ..settings.to_abi() });
        self.bump(&Touched::Node)
    }

    /// The node's settings as the programs have them.
    #[must_use]
    pub fn config(&self) -> NodeConfig {
        self.page.config()
    }

    /// The revision that new decisions are stamped with.
    #[must_use]
    pub fn revision(&self) -> u32 {
        self.page.revision()
    }

    /// Attaches programs to devices.
    #[must_use]
    pub fn hooks(&self) -> Hooks {
        self.hooks.clone()
    }

    /// Reads the events of the programs. There should be one reader: each event goes to one.
    ///
    /// # Errors
    /// A system call failed.
    pub fn events(&self) -> std::io::Result<EventReader> {
        EventReader::open(&self.maps[map_name::EVENTS])
    }

    /// Tracked connections.
    #[must_use]
    pub fn flows(&self) -> Flows {
        self.flows.clone()
    }

    /// Packet counters.
    ///
    /// # Errors
    /// A system call failed.
    pub fn metrics(&self) -> std::io::Result<Metrics> {
        let map: TypedMap<u32, MetricValue> = TypedMap::new(map_name::METRICS, self.maps[map_name::METRICS].clone())?;
        Metrics::new(map, self.maps[map_name::METRICS].clone())
    }

    /// Removes expired connections.
    #[must_use]
    pub fn collector(&self) -> Collector {
        Collector::new(self.hooks.collector(), &self.flows)
    }

    /// Destroys sockets that were redirected to removed backends. The node's network namespace is the calling thread's.
    ///
    /// # Errors
    /// A system call failed.
    pub fn destroyer(&self) -> std::io::Result<Destroyer> {
        let sockets = TypedMap::new(map_name::SOCKETS, self.maps[map_name::SOCKETS].clone())?;
        let backends = TypedMap::new(map_name::BACKENDS, self.maps[map_name::BACKENDS].clone())?;
        Destroyer::new(sockets, backends)
    }

    /// Turns events of allowed flows on and off.
    #[must_use]
    pub fn observe(&self) -> ObserveSwitch {
        ObserveSwitch::new(self.page.clone())
    }
}

impl fmt::Debug for Datapath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Datapath").field("revision", &self.revision()).finish_non_exhaustive()
    }
}

/// Open maps by name.
struct OpenMaps<'a>(&'a BTreeMap<&'static str, Arc<OwnedFd>>);

impl OpenMaps<'_> {
    fn map<K: aya::Pod, V: aya::Pod>(&self, name: &'static str) -> Result<TypedMap<K, V>, OpenError> {
        TypedMap::new(name, self.0[name].clone()).map_err(|source| OpenError::map("open", name, source))
    }

    fn counted<V: aya::Pod>(&self, name: &'static str) -> Result<Counted<V>, DataplaneError> {
        let map: TypedMap<Addr, V> = TypedMap::new(name, self.0[name].clone())
            .map_err(|source| DataplaneError::System { what: format!("open map {name}"), source })?;
        let mut entries = 0;
        map.for_each(|_, _| {
            entries += 1;
            true
        })?;
        Ok(Counted { map, entries })
    }
}

impl Dataplane for Datapath {
    fn put_policy(&mut self, id: PolicyId, policy: &CompiledPolicy) -> Result<(), DataplaneError> {
        self.policies.put(id, policy)
    }

    fn patch_policy(&mut self, id: PolicyId, patch: &PolicyPatch) -> Result<(), DataplaneError> {
        self.policies.patch(id, patch)
    }

    fn remove_policy(&mut self, id: PolicyId) -> Result<(), DataplaneError> {
        self.policies.remove(id)
    }

    fn policies(&mut self) -> Result<BTreeMap<PolicyId, CompiledPolicy>, DataplaneError> {
        self.policies.read()
    }

    fn put_peers(&mut self, peers: &BTreeMap<Identity, PeerClass>) -> Result<(), DataplaneError> {
        self.peers.put(peers)
    }

    fn remove_peers(&mut self, peers: &BTreeSet<Identity>) -> Result<(), DataplaneError> {
        self.peers.remove(peers)
    }

    fn peers(&mut self) -> Result<BTreeMap<Identity, PeerClass>, DataplaneError> {
        self.peers.read()
    }

    fn set_host(&mut self, host: Option<&Host>) -> Result<(), DataplaneError> {
        if self.page.set_host(host) {
            // Entries of before do not have the node as an endpoint: a later bump of its slot would not reach them.
            self.page.bump([0]);
        }
        Ok(())
    }

    fn put_endpoint(&mut self, endpoint: &Endpoint) -> Result<(), DataplaneError> {
        let info = EndpointInfo {
            ifindex: endpoint.ifindex,
            identity: endpoint.identity.raw(),
            policy_ingress: endpoint.ingress.0,
            policy_egress: endpoint.egress.0,
            id: endpoint.id.raw(),
            flags: if endpoint.blocked { endpoint_flags::BLOCKED } else { 0 }
                | if endpoint.audit { endpoint_flags::AUDIT } else { 0 },
            pod_mac: endpoint.pod_mac,
            host_mac: endpoint.host_mac,
        };
        let mut new = 0;
        for address in &endpoint.addresses {
            new += u64::from(self.endpoints.map.get(&Addr::from(*address))?.is_none());
        }
        self.endpoints.map.reserve(self.endpoints.entries, new)?;
        for address in &endpoint.addresses {
            self.endpoints.put(&Addr::from(*address), &info)?;
        }
        Ok(())
    }

    fn remove_endpoint(&mut self, addresses: &[IpAddr]) -> Result<(), DataplaneError> {
        // First no connection can be tracked any more, then the tracked ones are removed.
        for address in addresses {
            self.endpoints.remove(&Addr::from(*address))?;
        }
        self.flows.remove_of(addresses).map(drop)
    }

    fn endpoints(&mut self) -> Result<Vec<Endpoint>, DataplaneError> {
        let all = self.endpoints.map.dump()?;
        self.endpoints.entries = all.len() as u64;
        let mut by_id: BTreeMap<(u16, u32), Endpoint> = BTreeMap::new();
        for (address, info) in all {
            // Not written by an agent: no endpoint has this number.
            let Some(id) = EndpointId::new(info.id) else { continue };
            let endpoint = by_id.entry((info.id, info.ifindex)).or_insert_with(|| Endpoint {
                id,
                addresses: Vec::new(),
                ifindex: info.ifindex,
                pod_mac: info.pod_mac,
                host_mac: info.host_mac,
                identity: Identity::from_raw(info.identity),
                ingress: PolicyId(info.policy_ingress),
                egress: PolicyId(info.policy_egress),
                blocked: info.flags & endpoint_flags::BLOCKED != 0,
                audit: info.flags & endpoint_flags::AUDIT != 0,
            });
            endpoint.addresses.push(address.into());
        }
        let mut endpoints: Vec<Endpoint> = by_id.into_values().collect();
        for endpoint in &mut endpoints {
            endpoint.addresses.sort();
        }
        Ok(endpoints)
    }

    fn set_ipcache(&mut self, address: IpAddr, entry: Option<&IpcacheEntry>) -> Result<(), DataplaneError> {
        let key = Addr::from(address);
        let Some(entry) = entry else { return self.ipcache.remove(&key).map(drop) };
        let (node, local) = match entry.node {
            Some(node) => (node.into(), 0),
            None => (Addr::NONE, ipcache_flags::LOCAL),
        };
        let flags = local | if entry.is_node { ipcache_flags::NODE } else { 0 };
        self.ipcache.put(&key, &IpcacheInfo { identity: entry.identity.raw(), flags, node })
    }

    fn ipcache(&mut self) -> Result<BTreeMap<IpAddr, IpcacheEntry>, DataplaneError> {
        let all = self.ipcache.map.dump()?;
        self.ipcache.entries = all.len() as u64;
        let entry = |info: IpcacheInfo| IpcacheEntry {
            identity: Identity::from_raw(info.identity),
            node: (!info.node.is_none()).then(|| info.node.into()),
            is_node: info.flags & ipcache_flags::NODE != 0,
        };
        Ok(all.into_iter().map(|(address, info)| (address.into(), entry(info))).collect())
    }

    fn set_cidr(&mut self, cidr: IpNet, identity: Option<Identity>) -> Result<(), DataplaneError> {
        check_notation(cidr)?;
        self.cidrs.set(cidr, identity.map(|identity| CidrValue { identity: identity.raw() }))
    }

    fn cidrs(&mut self) -> Result<BTreeMap<IpNet, Identity>, DataplaneError> {
        let all = self.cidrs.map.dump()?;
        let said = all.into_iter().filter(|(_, value)| *value != self.cidrs.empty);
        Ok(said.filter_map(|(key, value)| Some((cidr::cidr(key)?, Identity::from_raw(value.identity)))).collect())
    }

    fn set_route(&mut self, cidr: IpNet, route: Option<Route>) -> Result<(), DataplaneError> {
        check_notation(cidr)?;
        let info = route.map(|route| match route {
            Route::LocalPool => RouteInfo { flags: route_flags::LOCAL_POOL, node: Addr::NONE },
            Route::RemotePool(node) => RouteInfo { flags: route_flags::REMOTE_POOL, node: node.into() },
            Route::NoMasquerade => RouteInfo { flags: route_flags::NO_MASQUERADE, node: Addr::NONE },
        });
        self.routes.set(cidr, info)
    }

    fn routes(&mut self) -> Result<BTreeMap<IpNet, Route>, DataplaneError> {
        let all = self.routes.map.dump()?;
        let route = |info: RouteInfo| match info.flags {
            route_flags::LOCAL_POOL => Some(Route::LocalPool),
            route_flags::REMOTE_POOL => Some(Route::RemotePool(info.node.into())),
            route_flags::NO_MASQUERADE => Some(Route::NoMasquerade),
            _ => None,
        };
        Ok(all.into_iter().filter_map(|(key, info)| Some((cidr::cidr(key)?, route(info)?))).collect())
    }

    fn patch_services(&mut self, patch: &ServicePatch) -> Result<(), DataplaneError> {
        self.services.patch(patch)
    }

    fn services(&mut self) -> Result<ServiceTables, DataplaneError> {
        self.services.read()
    }

    fn bump(&mut self, touched: &Touched) -> Result<(), DataplaneError> {
        match touched {
            Touched::Node => self.page.bump([0]),
            Touched::Endpoints(ids) => self.page.bump(ids.iter().map(|id| usize::from(id.raw()))),
        }
        Ok(())
    }

    fn usage(&mut self) -> Result<Vec<MapUsage>, DataplaneError> {
        let known: BTreeMap<&str, u64> = [
            (map_name::ENDPOINTS, self.endpoints.entries),
            (map_name::IPCACHE, self.ipcache.entries),
            (map_name::PREFIXES, self.cidrs.keys.len() as u64),
            (map_name::ROUTES, self.routes.keys.len() as u64),
            (map_name::FLOWS, self.flows.len()?),
            (map_name::PEERS, self.peers.len()),
        ]
        .into_iter()
        .chain(self.policies.entries())
        .chain(self.services.entries())
        .collect();
        let usage = self.maps.iter().map(|(name, fd)| {
            let failed = |source| DataplaneError::System { what: format!("measure map {name}"), source };
            let info = crate::sys::map_info(std::os::fd::AsFd::as_fd(fd)).map_err(failed)?;
            Ok(MapUsage {
                name: (*name).to_owned(),
                // Arrays and the ring are as large as they are.
                entries: known.get(name).copied().unwrap_or(0),
                entries_max: u64::from(info.max_entries),
                memory_bytes: crate::map::memory_bytes(std::os::fd::AsFd::as_fd(fd)).map_err(failed)?,
            })
        });
        usage.collect()
    }
}

/// Refuses an IPv6 prefix of IPv4 addresses: it would be a second key for the same row.
fn check_notation(cidr: IpNet) -> Result<(), DataplaneError> {
    if !cidr::is_hidden_v4(cidr) {
        return Ok(());
    }
    Err(DataplaneError::Invalid {
        what: format!("write prefix {cidr}"),
        why: "a v4-mapped prefix, expected IPv4 notation".to_owned(),
    })
}

#[cfg(test)]
mod tests;
