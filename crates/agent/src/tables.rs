//! What this node knows, as typed tables: rows that are shared, snapshots that cost nothing, and change streams for
//! those who follow one. Objects of policies and of Services are in the tables of their compilers
//! ([`weft_control::policy`], [`weft_control::service`]); what is here is what several parts read.

pub mod addresses;
pub mod endpoints;

use addresses::Addresses;
use endpoints::Endpoints;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use weft_control::identity::IdentityTable;
use weft_control::policy::EndpointPolicy;
use weft_model::id::EndpointId;
use weft_model::intent::{Change, Namespace, Node, ObjectName, Pod, Source};
use weft_model::table::Table;

/// See the module.
#[derive(Debug)]
pub struct Tables {
    /// This node's name.
    pub node_name: String,
    /// Pods of this node.
    pub pods: Table<ObjectName, Pod>,
    /// Namespaces.
    pub namespaces: Table<String, Namespace>,
    /// Nodes of the cluster.
    pub nodes: Table<String, Node>,
    /// What other nodes have of shared pools of addresses.
    pub shares: Table<String, Vec<IpNet>>,
    /// This node's blocks of addresses, where they come and go by its CiliumNode; `None`: they are its pod prefixes.
    pub own_blocks: Option<Vec<IpNet>>,
    /// Identities: numbers of label sets.
    pub identities: IdentityTable,
    /// Endpoints of this node.
    pub endpoints: Endpoints,
    /// Which policies each endpoint, and the node itself, shall have.
    pub targets: Table<EndpointId, EndpointPolicy>,
    /// Who has which address.
    pub addresses: Addresses,
    /// Sources whose first list is not complete.
    pub missing: BTreeSet<Source>,
    /// Why sources cannot be read.
    pub source_problems: BTreeMap<Source, String>,
}

impl Tables {
    /// Empty.
    #[must_use]
    pub fn new(node_name: &str) -> Self {
        Self {
            node_name: node_name.to_owned(),
            pods: Table::default(),
            namespaces: Table::default(),
            nodes: Table::default(),
            shares: Table::default(),
            own_blocks: None,
            identities: IdentityTable::new(),
            endpoints: Endpoints::default(),
            targets: Table::default(),
            addresses: Addresses::default(),
            missing: Source::all().collect(),
            source_problems: BTreeMap::new(),
        }
    }

    /// Every source sent all that exists.
    #[must_use]
    pub fn all_synced(&self) -> bool {
        self.missing.is_empty()
    }

    /// Takes in a change of a row that has its table here; others have theirs where they are compiled.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Pod(pod) => drop(self.pods.insert(pod.name.clone(), pod.clone())),
            // The late end of an old pod does not touch a new one of its name.
            Change::PodGone(name, uid) if self.pods.get(name).is_some_and(|pod| pod.uid == *uid) => {
                drop(self.pods.remove(name));
            }
            Change::Namespace(namespace) => {
                drop(self.namespaces.insert(namespace.name.clone(), namespace.clone()));
            }
            Change::NamespaceGone(name) => drop(self.namespaces.remove(name)),
            Change::Synced(source) => drop(self.missing.remove(source)),
            Change::SourceProblem(source, Some(problem)) => {
                drop(self.source_problems.insert(*source, problem.text.clone()));
            }
            Change::SourceProblem(source, None) => drop(self.source_problems.remove(source)),
            _ => {}
        }
    }

    /// This node, once its object is known.
    #[must_use]
    pub fn own_node(&self) -> Option<&Arc<Node>> {
        self.nodes.get(&self.node_name)
    }

    /// This node's addresses.
    #[must_use]
    pub fn own_addresses(&self) -> &[IpAddr] {
        self.own_node().map(|node| node.addresses.as_slice()).unwrap_or_default()
    }
}
