//! Nodes, their addresses and pod prefixes.

use super::Core;
use foldhash::HashMap;
use ipnet::IpNet;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use weft_model::desired::{IpcacheEntry, Route};
use weft_model::id::Identity;
use weft_model::intent::Node;

/// Prefixes: what the kernel shall know of them. One node that comes or goes in a cluster of thousands shall not cost
/// each of them a look at all the others.
#[derive(Debug, Default)]
pub struct Routes {
    wanted: BTreeMap<IpNet, Route>,
    /// What was written; what differs from `wanted` is to do.
    written: BTreeMap<IpNet, Route>,
    /// How many nodes, or settings, say something of a prefix. Where more than one does, only all of them together tell
    /// what holds.
    said: HashMap<IpNet, usize>,
    /// `wanted` is to be worked out from all nodes.
    stale: bool,
    /// Prefixes of which `written` may differ from `wanted`.
    unsure: BTreeSet<IpNet>,
}

impl Routes {
    /// None; what settings say comes with the first look.
    pub(super) fn new() -> Self {
        Self { stale: true, ..Self::default() }
    }

    /// What one node said of its prefixes, and what it says now. False: others say something of one of them, too.
    fn change(&mut self, before: &[IpNet], after: &[(IpNet, Option<Route>)]) -> bool {
        let mut alone = true;
        for cidr in before {
            alone &= self.said.get(cidr) == Some(&1);
            self.said.remove(cidr);
            self.wanted.remove(cidr);
        }
        for (cidr, route) in after {
            alone &= self.said.insert(*cidr, 1).is_none();
            if let Some(route) = route {
                self.wanted.insert(*cidr, *route);
            }
        }
        self.unsure.extend(before.iter().chain(after.iter().map(|(cidr, _)| cidr)));
        alone
    }

    /// All that is said, in an order in which the last word on a prefix holds.
    fn replace(&mut self, all: Vec<(IpNet, Option<Route>)>) {
        self.unsure.extend(self.wanted.keys());
        (self.wanted, self.said) = (BTreeMap::new(), HashMap::default());
        for (cidr, route) in all {
            *self.said.entry(cidr).or_default() += 1;
            if let Some(route) = route {
                self.wanted.insert(cidr, route);
            }
        }
        self.unsure.extend(self.wanted.keys());
    }
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
        self.node_changed(old.as_ref(), Some(&node));
    }

    pub(super) fn remove_node(&mut self, name: &str) {
        // This node stays what it is while its object is away: its pods are still here.
        if name == self.settings.node_name {
            return;
        }
        let Some(node) = self.nodes.remove(name) else { return };
        for address in &node.addresses {
            self.addresses.remove_node(*address);
        }
        self.node_changed(Some(&node), None);
    }

    /// One node is another, or is gone.
    fn node_changed(&mut self, before: Option<&Node>, after: Option<&Node>) {
        // Of this node's own prefixes other parts have their word, too.
        if after.is_some_and(|node| node.name == self.settings.node_name) {
            return self.nodes_changed();
        }
        self.signals.nodes.notify_one();
        if self.routes.stale {
            return;
        }
        let before = before.map(|node| self.carried_by(node)).unwrap_or_default();
        let after: Vec<_> = after.into_iter().flat_map(|node| self.routes_to(node)).collect();
        let alone = self.routes.change(&before, &after);
        self.routes.stale = !alone;
    }

    /// Says that prefixes are to be worked out anew from all nodes, once for all that change together.
    pub(super) fn nodes_changed(&mut self) {
        self.routes.stale = true;
        self.signals.nodes.notify_one();
    }

    /// Works out which prefixes the kernel shall know, if nodes have changed.
    pub(super) fn settle_routes(&mut self) {
        if !std::mem::take(&mut self.routes.stale) {
            return;
        }
        let no_masquerade = self.settings.no_masquerade.iter().map(|cidr| (*cidr, Some(Route::NoMasquerade)));
        // Pods of any node, without saying whose: an address that is not known yet is no stranger's.
        let nobody = |cidr: &IpNet| {
            if cidr.addr().is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
        };
        let ranges = self.settings.pod_ranges.iter().map(|cidr| (*cidr, Some(Route::RemotePool(nobody(cidr)))));
        let nodes = self.nodes.values().flat_map(|node| self.routes_to(node));
        let all = no_masquerade.chain(ranges).chain(nodes).collect();
        self.routes.replace(all);
    }

    /// What the kernel shall know of a node's prefixes; `None`: nothing, for want of an address to reach the node by.
    fn routes_to(&self, node: &Node) -> Vec<(IpNet, Option<Route>)> {
        let route = |cidr: &IpNet| {
            if node.name == self.settings.node_name {
                return Some(Route::LocalPool);
            }
            tunnel_peer(node, self.settings.tunnel, cidr.addr()).map(Route::RemotePool)
        };
        self.carried_by(node).iter().map(|cidr| (*cidr, route(cidr))).collect()
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
        if self.routes.unsure.is_empty() {
            return Ok(());
        }
        let mut result = Ok(());
        // What is there first, so that no packet goes astray in between.
        let unsure = std::mem::take(&mut self.routes.unsure).into_iter();
        let routes = unsure.map(|cidr| (cidr, self.routes.wanted.get(&cidr).copied()));
        let (mut changes, gone): (Vec<_>, Vec<_>) = routes
            .filter(|(cidr, route)| self.routes.written.get(cidr) != route.as_ref())
            .partition(|(_, route)| route.is_some());
        changes.extend(gone);
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
                    self.routes.unsure.insert(cidr);
                    result = Err(());
                }
            }
        }
        if changed {
            self.touched_node = true;
        }
        if result.is_ok() {
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
        let routes = &mut self.routes;
        routes.unsure.extend(routes.written.keys().chain(routes.wanted.keys()));
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

#[cfg(test)]
mod tests;
