//! What tables, reconcilers and the writer must know of the agent's settings.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use weft_ipam::{Advice, Edges, Exchange, Family, Growth, Watermarks};
use weft_model::intent::Forwarding;
use weft_model::selector::Selector;
use weft_settings::value::IpamMode;

/// What the writer must know of the settings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// This node's name.
    pub node_name: String,
    /// Name of the cluster.
    pub cluster_name: String,
    /// Pods have IPv4 addresses.
    pub ipv4: bool,
    /// Pods have IPv6 addresses.
    pub ipv6: bool,
    /// Packets to other nodes' pods are tunnelled.
    pub tunnel: bool,
    /// How pods get their addresses.
    pub ipam: Ipam,
    /// Where pods of any node have their addresses.
    pub pod_ranges: Vec<ipnet::IpNet>,
    /// Reached with the pod's own address.
    pub no_masquerade: Vec<ipnet::IpNet>,
    /// Policies apply to the node itself, where they say so.
    pub host_firewall: bool,
    /// Policies report and do not drop.
    pub audit: bool,
    /// Where this agent reaches the API server.
    pub api_server: BTreeSet<IpAddr>,
    /// Ports of Services at the nodes' addresses.
    pub node_ports: RangeInclusive<u16>,
    /// How packets from outside reach backends of other nodes, where a Service says nothing.
    pub forwarding: Forwarding,
    /// Entries of the tables of Services with consistent hashing.
    pub maglev_table_size: u32,
    /// What `externalIPs` may name.
    pub external_ips_allowed: Vec<ipnet::IpNet>,
    /// What no hostPort takes.
    pub host_ports_reserved: Vec<RangeInclusive<u16>>,
}

/// How addresses are managed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipam {
    /// Where they come from.
    pub mode: IpamMode,
    /// Most pods that the node is made for.
    pub max_pods: u32,
    /// Addresses asked for at once, where they come one by one.
    pub batch: u32,
    /// Addresses held ahead of demand, where they come in prefixes of shared pools.
    pub preallocate: u32,
}

impl Default for Ipam {
    fn default() -> Self {
        Self { mode: IpamMode::ClusterPool, max_pods: 250, batch: 16, preallocate: 8 }
    }
}

impl Ipam {
    pub(crate) fn exchange(&self) -> Option<Exchange> {
        let (growth, edges) = match self.mode {
            IpamMode::ClusterPool | IpamMode::Kubernetes | IpamMode::Delegated => return None,
            IpamMode::MultiPool => (Growth::Ahead(self.preallocate), Edges::Usable),
            // Whatever the size of the one block of each family.
            IpamMode::Overlay => (Growth::Fixed(1), Edges::Reserved),
            IpamMode::PodSubnet => (
                Growth::Batches(Watermarks { batch: self.batch, max: self.max_pods, ..Watermarks::default() }),
                Edges::Usable,
            ),
            // One address per node is the platform's.
            IpamMode::PodSubnetBlock => (Growth::Fixed(self.max_pods.saturating_add(1)), Edges::Usable),
            IpamMode::NodeSubnet => (Growth::Fixed(self.max_pods), Edges::Usable),
        };
        Some(Exchange::new(growth, edges))
    }

    pub(crate) fn advice(&self) -> Advice {
        match self.mode {
            IpamMode::ClusterPool | IpamMode::Kubernetes | IpamMode::Overlay => Advice::Prefix,
            IpamMode::MultiPool | IpamMode::PodSubnet => Advice::Growing,
            IpamMode::PodSubnetBlock | IpamMode::NodeSubnet | IpamMode::Delegated => Advice::Fixed,
        }
    }
}

/// Whom a shared pool is for, beside those who ask for it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PoolRule {
    /// Pods.
    pub pods: Option<Selector>,
    /// Namespaces.
    pub namespaces: Option<Selector>,
    /// It has IPv4 and IPv6 prefixes.
    pub families: BTreeSet<Family>,
}
