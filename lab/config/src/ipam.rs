//! Where a cluster's pods get their addresses, and what that means for its network, agents and operator.

use crate::options::{Config, FABRIC_V4, FABRIC_V6, NODE_MASK_V4};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// See the agent's `--ipam`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Ipam {
    /// A prefix per node, given by the operator
    #[default]
    ClusterPool,
    /// A prefix per node, given with the node
    Kubernetes,
    /// Prefixes of shared pools (CiliumPodIPPool) as pods need them
    MultiPool,
    /// A prefix per node of a private network that the fabric knows; pods leave with their node's address
    AzureOverlay,
    /// Addresses of a subnet for pods, in batches as pods need them; pods keep them outside
    AzurePodSubnet,
    /// Blocks of 16 addresses of a subnet for pods; pods keep them outside
    AzurePodSubnetBlock,
    /// Secondary addresses of the nodes' own subnet; pods leave it with their node's address
    AzureNodeSubnet,
    /// Another CNI plugin gives them: Debian's host-local
    Delegated,
}

impl Ipam {
    /// As the options write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClusterPool => "cluster-pool",
            Self::Kubernetes => "kubernetes",
            Self::MultiPool => "multi-pool",
            Self::AzureOverlay => "azure-overlay",
            Self::AzurePodSubnet => "azure-pod-subnet",
            Self::AzurePodSubnetBlock => "azure-pod-subnet-block",
            Self::AzureNodeSubnet => "azure-node-subnet",
            Self::Delegated => "delegated",
        }
    }

    /// The fabric assigns addresses itself.
    #[must_use]
    pub const fn is_cloud(self) -> bool {
        matches!(self, Self::AzureOverlay | Self::AzurePodSubnet | Self::AzurePodSubnetBlock | Self::AzureNodeSubnet)
    }

    /// Pods' addresses come from `--pod-subnet`, and the outside knows them.
    #[must_use]
    pub const fn has_pod_subnet(self) -> bool {
        matches!(self, Self::AzurePodSubnet | Self::AzurePodSubnetBlock)
    }

    /// The node's prefix stands in its object from the beginning.
    #[must_use]
    pub const fn comes_with_node(self) -> bool {
        matches!(self, Self::Kubernetes | Self::Delegated)
    }

    /// Most pods of a node, unless told.
    #[must_use]
    pub const fn max_pods(self) -> u16 {
        if matches!(self, Self::AzureNodeSubnet) { 30 } else { 250 }
    }
}

impl Config {
    /// The network of the nodes.
    #[must_use]
    pub fn vnet(&self) -> Vec<IpNet> {
        let families = [(self.ipv4, IpNet::V4(FABRIC_V4)), (self.ipv6, IpNet::V6(FABRIC_V6))];
        families.into_iter().filter(|(on, _)| *on).map(|(_, net)| net).collect()
    }

    /// The nth node's prefix of each family, where it comes with the node.
    #[must_use]
    pub fn node_prefixes(&self, number: u8) -> Vec<IpNet> {
        let mut prefixes: Vec<IpNet> = Vec::new();
        for pool in &self.pod_cidrs {
            let mask = if pool.addr().is_ipv4() { NODE_MASK_V4 } else { self.node_mask_v6 };
            if prefixes.iter().any(|has| has.addr().is_ipv4() == pool.addr().is_ipv4()) {
                continue;
            }
            let at = usize::from(number) - 1;
            let share = match pool {
                IpNet::V4(v4) => v4.subnets(mask).ok().and_then(|mut nets| nets.nth(at)).map(IpNet::V4),
                IpNet::V6(v6) => v6.subnets(mask).ok().and_then(|mut nets| nets.nth(at)).map(IpNet::V6),
            };
            prefixes.extend(share);
        }
        prefixes
    }

    /// Settings of the nth node's agent, counting from 1, as its command line has them: those that the cluster's own
    /// amount to and the user's. `host_local` is where the plugin of delegated addresses keeps them.
    #[must_use]
    pub fn agent_arguments(&self, number: u8, host_local: &std::path::Path) -> Vec<String> {
        let mut settings = vec![("routing", self.routing.name().to_owned()), ("ip-families", self.families())];
        settings.extend(self.ipam_settings(number, host_local));
        let given = self.agent.iter().map(|(key, value)| (key.as_str(), value.clone()));
        let own = settings.into_iter().filter(|(key, _)| !self.agent.contains_key(*key));
        own.chain(given).flat_map(|(key, value)| [format!("--{key}"), value]).collect()
    }

    /// Settings of a node's agent that follow from the mode.
    fn ipam_settings(&self, number: u8, host_local: &std::path::Path) -> Vec<(&'static str, String)> {
        let list = |nets: &[IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let mut settings = vec![("ipam", self.ipam.name().to_owned()), ("max-pods", self.max_pods.to_string())];
        match self.ipam {
            Ipam::AzureOverlay => settings.push(("pod-cidr", list(&self.pod_cidrs))),
            Ipam::AzurePodSubnet | Ipam::AzurePodSubnetBlock => settings.push(("pod-cidr", list(&self.pod_subnets))),
            // Inside the virtual network pods are known by their own addresses.
            Ipam::AzureNodeSubnet => settings.push(("no-masquerade", list(&self.vnet()))),
            Ipam::Delegated => {
                let ranges: Vec<_> = self
                    .node_prefixes(number)
                    .iter()
                    .map(|net| serde_json::json!([{"subnet": net.to_string()}]))
                    .collect();
                let plugin = serde_json::json!({"type": "host-local", "ranges": ranges, "dataDir": host_local});
                settings.push(("ipam-plugin", plugin.to_string()));
            }
            Ipam::ClusterPool | Ipam::Kubernetes | Ipam::MultiPool => {}
        }
        settings
    }
}
