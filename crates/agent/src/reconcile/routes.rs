//! Prefixes: what the kernel shall know of them, whose pods are in them and which are reached without masquerade.
//!
//! One node that comes or goes in a cluster of thousands shall not cost each of them a pass over all the others: as long
//! as a prefix is claimed by one node alone, a change is worked out from that node.

use super::reconciler::{Context, Reconciler, Rows};
use crate::settings::Settings;
use crate::tables::Tables;
use foldhash::HashMap;
use ipnet::IpNet;
use rpds::RedBlackTreeMapSync;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use weft_model::desired::{DataplaneError, Route};
use weft_model::intent::Node;
use weft_model::reconcile::Queue;

const NAME: &str = "routes";

/// What the kernel shall know of prefixes.
pub type Wanted = RedBlackTreeMapSync<IpNet, Route>;

/// See the module.
#[derive(Debug)]
pub struct Routes {
    wanted: Wanted,
    /// What was written.
    written: BTreeMap<IpNet, Route>,
    /// How many nodes, or settings, claim a prefix. Where more than one does, only all of them together tell what
    /// holds.
    claims: HashMap<IpNet, usize>,
    /// `wanted` is to be worked out from all nodes.
    is_stale: bool,
    /// Prefixes of which `written` may differ from `wanted`.
    queue: Queue<IpNet>,
}

impl Routes {
    pub(super) fn new(_: &Settings, _: &mut Tables) -> Self {
        Self {
            wanted: Wanted::new_sync(),
            written: BTreeMap::new(),
            claims: HashMap::default(),
            // What settings claim comes with the first pass.
            is_stale: true,
            queue: Queue::default(),
        }
    }

    /// One node is another, or is gone. `carried`: the prefixes that its pods had.
    pub fn node_changed(&mut self, carried: &[IpNet], after: Option<&Node>, tables: &Tables, settings: &Settings) {
        if self.is_stale {
            return;
        }
        let after: Vec<_> = after.into_iter().flat_map(|node| routes_to(node, tables, settings)).collect();
        self.is_stale = !self.change(carried, &after);
    }

    /// All nodes are to be worked out again, once for all that change together.
    pub fn all_changed(&mut self) {
        self.is_stale = true;
    }

    /// What one node claimed, and what it claims now. False: others claim one of these, too.
    fn change(&mut self, before: &[IpNet], after: &[(IpNet, Option<Route>)]) -> bool {
        let mut alone = true;
        for cidr in before {
            alone &= self.claims.get(cidr) == Some(&1);
            self.claims.remove(cidr);
            self.wanted.remove_mut(cidr);
        }
        for (cidr, route) in after {
            alone &= self.claims.insert(*cidr, 1).is_none();
            if let Some(route) = route {
                self.wanted.insert_mut(*cidr, *route);
            }
        }
        before.iter().chain(after.iter().map(|(cidr, _)| cidr)).for_each(|cidr| self.queue.enqueue(*cidr));
        alone
    }

    /// Works out which prefixes the kernel shall know, if more than single nodes have changed.
    pub fn settle(&mut self, tables: &Tables, settings: &Settings) {
        if !std::mem::take(&mut self.is_stale) {
            return;
        }
        let no_masquerade = settings.no_masquerade.iter().map(|cidr| (*cidr, Some(Route::NoMasquerade)));
        // Pods of any node, without saying whose: an address that is not known yet is not the world's.
        let nobody = |cidr: &IpNet| {
            if cidr.addr().is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
        };
        let ranges = settings.pod_ranges.iter().map(|cidr| (*cidr, Some(Route::RemotePool(nobody(cidr)))));
        let nodes = tables.nodes.values().flat_map(|node| routes_to(node, tables, settings));
        self.wanted.keys().copied().for_each(|cidr| self.queue.enqueue(cidr));
        (self.wanted, self.claims) = (Wanted::new_sync(), HashMap::default());
        // In an order in which the last claim to a prefix holds.
        for (cidr, route) in no_masquerade.chain(ranges).chain(nodes) {
            *self.claims.entry(cidr).or_default() += 1;
            if let Some(route) = route {
                self.wanted.insert_mut(cidr, route);
            }
        }
        self.wanted.keys().copied().for_each(|cidr| self.queue.enqueue(cidr));
    }

    /// Whether pods of some node have addresses like this.
    #[must_use]
    pub fn has_pods(&self, address: IpAddr) -> bool {
        let mut pools = self.wanted.iter().filter(|(_, route)| **route != Route::NoMasquerade);
        pools.any(|(cidr, _)| cidr.contains(&address))
    }

    /// For readers: what shall be known of prefixes.
    #[must_use]
    pub fn view(&self) -> Wanted {
        self.wanted.clone()
    }

    fn write(&mut self, cidr: IpNet, cx: &mut Context<'_>) {
        let route = self.wanted.get(&cidr).copied();
        match cx.kernel.set_route(cidr, route) {
            Ok(()) => {
                match route {
                    Some(route) => drop(self.written.insert(cidr, route)),
                    None => drop(self.written.remove(&cidr)),
                }
                self.queue.done(&cidr);
            }
            Err(error) => super::reconciler::failed(&mut self.queue, (NAME, cidr), cx.now, &error),
        }
    }
}

impl Reconciler for Routes {
    fn name(&self) -> &'static str {
        NAME
    }

    /// Takes over what the kernel holds as written, so that the first pass removes what is not wanted.
    fn adopt(&mut self, cx: &mut Context<'_>) -> Result<(), DataplaneError> {
        self.written = cx.kernel.routes()?;
        self.written.keys().chain(self.wanted.keys()).for_each(|cidr| self.queue.enqueue(*cidr));
        Ok(())
    }

    fn reconcile(&mut self, cx: &mut Context<'_>) {
        self.settle(cx.tables, cx.settings);
        let due: BTreeSet<IpNet> = self.queue.take_due(cx.now);
        if due.is_empty() {
            return;
        }
        let (differ, same): (Vec<_>, Vec<_>) =
            due.into_iter().partition(|cidr| self.written.get(cidr) != self.wanted.get(cidr));
        same.iter().for_each(|cidr| self.queue.done(cidr));
        cx.stale.node |= !differ.is_empty();
        // What is there first, so that no packet goes astray in between.
        let (there, gone): (Vec<_>, Vec<_>) = differ.into_iter().partition(|cidr| self.wanted.contains_key(cidr));
        there.into_iter().chain(gone).for_each(|cidr| self.write(cidr, cx));
    }

    /// An address of a prefix that is not known would be taken for the world's.
    fn gates_others(&self) -> bool {
        !self.queue.is_settled()
    }

    fn rows(&self) -> &dyn Rows {
        &self.queue
    }

    fn rows_mut(&mut self) -> &mut dyn Rows {
        &mut self.queue
    }
}

/// What the kernel shall know of a node's prefixes; `None`: nothing, for want of an address to reach the node by.
fn routes_to(node: &Node, tables: &Tables, settings: &Settings) -> Vec<(IpNet, Option<Route>)> {
    let route = |cidr: &IpNet| {
        if node.name == tables.node_name {
            return Some(Route::LocalPool);
        }
        tunnel_peer(node, settings.tunnel, cidr.addr()).map(Route::RemotePool)
    };
    carried_by(node, tables).iter().map(|cidr| (*cidr, route(cidr))).collect()
}

/// The prefixes that packets reach a node's pods by.
#[must_use]
pub fn carried_by<'a>(node: &'a Node, tables: &Tables) -> Cow<'a, [IpNet]> {
    if let Some(blocks) = tables.own_blocks.as_ref().filter(|_| node.name == tables.node_name) {
        return blocks.clone().into();
    }
    match tables.shares.get(&node.name) {
        Some(nets) => node.pod_cidrs.iter().chain(nets.iter()).copied().collect(),
        None => node.pod_cidrs.as_slice().into(),
    }
}

/// The address by which tunnel packets, or packets to the pods of a prefix, reach the node. A tunnel has one outer
/// family: IPv4 where the node has it.
#[must_use]
pub fn tunnel_peer(node: &Node, tunnel: bool, of: IpAddr) -> Option<IpAddr> {
    let same_family = node.addresses.iter().find(|address| address.is_ipv4() == of.is_ipv4());
    let first = node.addresses.iter().min_by_key(|address| !address.is_ipv4());
    if tunnel { first.copied() } else { same_family.or(first).copied() }
}

#[cfg(test)]
mod tests;
