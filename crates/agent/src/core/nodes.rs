//! Nodes, their addresses and pod prefixes.

use super::Core;
use ipnet::IpNet;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use weft_model::desired::{IpcacheEntry, Route};
use weft_model::id::Identity;
use weft_model::intent::Node;

/// Prefixes: what the kernel shall know of them.
#[derive(Debug, Default)]
pub struct Routes {
    wanted: BTreeMap<IpNet, Route>,
    /// What was written; what differs from `wanted` is to do.
    written: BTreeMap<IpNet, Route>,
    /// Nodes have changed since `wanted` was worked out.
    stale: bool,
    /// `written` may differ from `wanted`: most changes touch no node, and shall not cost a look at all of them.
    differs: bool,
}

impl Core {
    pub(super) fn set_node(&mut self, node: Node) {
        let old = self.nodes.insert(node.name.clone(), node.clone());
        let kept: BTreeSet<_> = node.addresses.iter().copied().collect();
        for address in old.iter().flat_map(|old| &old.addresses).filter(|address| !kept.contains(address)) {
            self.addresses.remove_node(*address);
        }
        let own = node.name == self.settings.node_name;
        for address in &node.addresses {
            let identity = if own { Identity::HOST } else { Identity::REMOTE_NODE };
            let peer = if own { None } else { tunnel_peer(&node, self.settings.tunnel, *address) };
            self.addresses.set_node(*address, &node.name, IpcacheEntry { identity, node: peer, is_node: true });
        }
        if own {
            self.policy.set_own_addresses(&node.addresses);
            if self.settings.host_firewall {
                self.policy.set_host(&node);
            }
            self.set_prefixes(&node.pod_cidrs);
            // Only this one: a node that comes or goes must not make a thousand others speak.
            self.signals.nodes_announce.notify_one();
        }
        self.nodes_changed();
    }

    pub(super) fn remove_node(&mut self, name: &str) {
        // This node stays what it is while its object is away: its pods are still here.
        if name == self.settings.node_name {
            return;
        }
        if let Some(node) = self.nodes.remove(name) {
            for address in node.addresses {
                self.addresses.remove_node(address);
            }
        }
        self.nodes_changed();
    }

    /// Says that prefixes are to be worked out anew, once for all nodes that change together.
    pub(super) fn nodes_changed(&mut self) {
        self.routes.stale = true;
        self.signals.nodes.notify_one();
    }

    /// Works out which prefixes the kernel shall know, if nodes have changed.
    pub(super) fn settle_routes(&mut self) {
        if !std::mem::take(&mut self.routes.stale) {
            return;
        }
        self.routes.differs = true;
        let mut wanted: BTreeMap<IpNet, Route> =
            self.settings.no_masquerade.iter().map(|cidr| (*cidr, Route::NoMasquerade)).collect();
        // Pods of any node, without saying whose: an address that is not known yet is no stranger's.
        let nobody = |cidr: &IpNet| {
            if cidr.addr().is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
        };
        wanted.extend(self.settings.pod_ranges.iter().map(|cidr| (*cidr, Route::RemotePool(nobody(cidr)))));
        for node in self.nodes.values() {
            for cidr in self.carried_by(node).iter() {
                if node.name == self.settings.node_name {
                    wanted.insert(*cidr, Route::LocalPool);
                } else if let Some(peer) = tunnel_peer(node, self.settings.tunnel, cidr.addr()) {
                    wanted.insert(*cidr, Route::RemotePool(peer));
                }
            }
        }
        self.routes.wanted = wanted;
    }

    /// The prefixes that packets reach a node's pods by.
    fn carried_by<'a>(&self, node: &'a Node) -> Cow<'a, [IpNet]> {
        if node.name == self.settings.node_name && self.exchanges_blocks() {
            return self.own_pool.blocks().into();
        }
        match self.shares.get(&node.name) {
            Some(nets) => node.pod_cidrs.iter().chain(nets).copied().collect(),
            None => node.pod_cidrs.as_slice().into(),
        }
    }

    /// All nodes with the prefixes that packets reach their pods by, wherever these are written.
    #[must_use]
    pub fn carried_nodes(&self) -> BTreeMap<String, Node> {
        let carried = |node: &Node| Node { pod_cidrs: self.carried_by(node).into_owned(), ..node.clone() };
        self.nodes.iter().map(|(name, node)| (name.clone(), carried(node))).collect()
    }

    /// This node's addresses.
    pub(super) fn own_addresses(&self) -> Vec<IpAddr> {
        self.nodes.get(&self.settings.node_name).map(|node| node.addresses.clone()).unwrap_or_default()
    }

    /// The one by which other nodes know this node's endpoints.
    pub(super) fn own_address(&self) -> Option<IpAddr> {
        self.own_addresses().into_iter().min_by_key(|address| !address.is_ipv4())
    }

    /// Nodes of the cluster.
    #[must_use]
    pub fn count_nodes(&self) -> usize {
        self.nodes.len()
    }

    /// This node, as its object says.
    #[must_use]
    pub fn own_node(&self) -> Option<Node> {
        self.nodes.get(&self.settings.node_name).cloned()
    }

    /// Writes what differs from what was written.
    pub(super) fn write_routes(&mut self) -> Result<(), ()> {
        self.settle_routes();
        if !self.routes.differs {
            return Ok(());
        }
        let mut result = Ok(());
        let mut changes: Vec<(IpNet, Option<Route>)> = Vec::new();
        for (cidr, route) in &self.routes.wanted {
            if self.routes.written.get(cidr) != Some(route) {
                changes.push((*cidr, Some(*route)));
            }
        }
        for cidr in self.routes.written.keys().filter(|cidr| !self.routes.wanted.contains_key(cidr)) {
            changes.push((*cidr, None));
        }
        let changed = !changes.is_empty();
        for (cidr, route) in changes {
            match (self.dataplane.set_route(cidr, route), route) {
                (Ok(()), Some(route)) => {
                    self.routes.written.insert(cidr, route);
                }
                (Ok(()), None) => {
                    self.routes.written.remove(&cidr);
                }
                (Err(error), _) => {
                    self.note_failure("routes", &error);
                    result = Err(());
                }
            }
        }
        if changed {
            self.touched_node = true;
        }
        if result.is_ok() {
            self.routes.differs = false;
            self.problems.remove("routes");
        }
        result
    }

    /// Whether pods of some node have addresses like this.
    pub(super) fn in_a_pool(&self, address: IpAddr) -> bool {
        let mut pools = self.routes.wanted.iter().filter(|(_, route)| **route != Route::NoMasquerade);
        pools.any(|(cidr, _)| cidr.contains(&address))
    }

    /// Prefixes with pods in them.
    pub(super) fn list_pools(&self) -> Vec<weft_api::agent::IpcacheEntry> {
        let entry = |(cidr, route): (&IpNet, &Route)| weft_api::agent::IpcacheEntry {
            prefix: cidr.to_string(),
            identity: 0,
            node: match route {
                Route::RemotePool(node) => Some(*node),
                Route::LocalPool | Route::NoMasquerade => None,
            },
            kind: if *route == Route::NoMasquerade { "no-masquerade" } else { "pool" }.to_owned(),
        };
        self.routes.wanted.iter().map(entry).collect()
    }

    /// Takes over what the kernel holds as written, so that the next write removes what is not wanted.
    pub(super) fn adopt_routes(&mut self) -> Result<(), weft_model::desired::DataplaneError> {
        self.routes.written = self.dataplane.routes()?;
        self.routes.differs = true;
        Ok(())
    }
}

/// The address by which tunnel packets, or packets to the pods of a prefix, reach the node. A tunnel has one outer
/// family: IPv4 where the node has it.
fn tunnel_peer(node: &Node, tunnel: bool, of: IpAddr) -> Option<IpAddr> {
    let same_family = node.addresses.iter().find(|address| address.is_ipv4() == of.is_ipv4());
    let first = node.addresses.iter().min_by_key(|address| !address.is_ipv4());
    if tunnel { first.copied() } else { same_family.or(first).copied() }
}
