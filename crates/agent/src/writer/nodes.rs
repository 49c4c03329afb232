//! Nodes, their addresses and pod prefixes.

use super::flush::Writer;
use crate::reconcile::routes::{carried_by, tunnel_peer};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weft_model::desired::IpcacheEntry;
use weft_model::id::Identity;
use weft_model::intent::Node;

impl Writer {
    pub(super) fn set_node(&mut self, node: Node) {
        let carried = self.carried(&node.name);
        let old = self.tables.nodes.insert(node.name.clone(), node.clone());
        let kept: BTreeSet<_> = node.addresses.iter().copied().collect();
        for address in old.iter().flat_map(|old| &old.addresses).filter(|address| !kept.contains(address)) {
            self.tables.addresses.remove_node(*address);
        }
        let own = node.name == self.settings.node_name;
        for address in &node.addresses {
            let identity = if own { Identity::HOST } else { Identity::REMOTE_NODE };
            let peer = if own { None } else { tunnel_peer(&node, self.settings.tunnel, *address) };
            self.tables.addresses.set_node(*address, &node.name, IpcacheEntry { identity, node: peer, is_node: true });
        }
        if own {
            self.reconcilers.policy.set_own_addresses(&node.addresses);
            if self.settings.host_firewall {
                self.reconcilers.policy.set_host(&node);
            }
            self.set_prefixes(&node.pod_cidrs);
            // Only for this one: a node that comes or goes must not make a thousand others write about themselves.
            self.signals.nodes_announce.notify_one();
            // Blocks count among this node's own prefixes, too.
            return self.nodes_changed();
        }
        self.node_changed(&carried, Some(&node));
    }

    pub(super) fn remove_node(&mut self, name: &str) {
        // This node stays what it is while its object is away: its pods are still here.
        if name == self.settings.node_name {
            return;
        }
        let carried = self.carried(name);
        let Some(node) = self.tables.nodes.remove(name) else { return };
        for address in &node.addresses {
            self.tables.addresses.remove_node(*address);
        }
        self.node_changed(&carried, None);
    }

    fn carried(&self, name: &str) -> Vec<ipnet::IpNet> {
        self.tables.nodes.get(name).map(|node| carried_by(node, &self.tables).into_owned()).unwrap_or_default()
    }

    fn node_changed(&mut self, carried: &[ipnet::IpNet], after: Option<&Node>) {
        self.signals.nodes.notify_one();
        self.reconcilers.routes.node_changed(carried, after, &self.tables, &self.settings);
    }

    /// Prefixes are to be worked out anew from all nodes, once for all that change together.
    pub(super) fn nodes_changed(&mut self) {
        self.reconcilers.routes.all_changed();
        self.signals.nodes.notify_one();
    }

    /// All nodes with the prefixes that packets reach their pods by, wherever these are written.
    #[must_use]
    pub fn carried_nodes(&self) -> BTreeMap<String, Node> {
        let carried =
            |node: &Arc<Node>| Node { pod_cidrs: carried_by(node, &self.tables).into_owned(), ..(**node).clone() };
        self.tables.nodes.iter().map(|(name, node)| (name.clone(), carried(node))).collect()
    }

    /// This node, once its object is known.
    #[must_use]
    pub fn own_node(&self) -> Option<Node> {
        self.tables.own_node().map(|node| (**node).clone())
    }
}
