//! Where pods get their addresses: the modes, and what belongs to them.

use super::{ConfigError, value};

/// Where pods get their addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IpamMode {
    /// The node's prefixes, which the operator gives.
    ClusterPool,
    /// The node's prefixes, which Kubernetes gives.
    Kubernetes,
    /// Prefixes of shared pools, as pods need them.
    MultiPool,
    /// The node's prefixes of a private network that the cloud knows.
    Overlay,
    /// Addresses of a subnet for pods, in batches as pods need them.
    PodSubnet,
    /// Blocks of a subnet for pods, settled when the node is made.
    PodSubnetBlock,
    /// Secondary addresses of the node's interface.
    NodeSubnet,
    /// Another CNI plugin gives them.
    Delegated,
}

impl IpamMode {
    /// All, with their names.
    pub const ALL: [(&'static str, Self); 8] = [
        ("cluster-pool", Self::ClusterPool),
        ("kubernetes", Self::Kubernetes),
        ("multi-pool", Self::MultiPool),
        ("azure-overlay", Self::Overlay),
        ("azure-pod-subnet", Self::PodSubnet),
        ("azure-pod-subnet-block", Self::PodSubnetBlock),
        ("azure-node-subnet", Self::NodeSubnet),
        ("delegated", Self::Delegated),
    ];

    pub(super) fn named(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(name, _)| *name == text).map(|(_, mode)| mode)
    }

    /// Pods have addresses of the network between the nodes, and keep them outside the cluster.
    #[must_use]
    pub fn routable(self) -> bool {
        matches!(self, Self::PodSubnet | Self::PodSubnetBlock)
    }

    /// The network between the nodes must know pods' addresses.
    #[must_use]
    pub fn native_only(self) -> bool {
        matches!(self, Self::Overlay | Self::PodSubnet | Self::PodSubnetBlock | Self::NodeSubnet)
    }
}

/// The configuration of the plugin that gives addresses.
pub(super) fn plugin(mode: IpamMode, text: Option<&str>) -> Result<Option<serde_json::Value>, ConfigError> {
    let expected = "a JSON object with `type`, the name of a CNI plugin";
    match (mode, text.filter(|text| !text.is_empty())) {
        (IpamMode::Delegated, Some(text)) => {
            let parsed: serde_json::Value =
                serde_json::from_str(text).map_err(|_| value("ipam-plugin", expected, text))?;
            let named = parsed["type"].as_str().is_some_and(|name| !name.is_empty());
            if named { Ok(Some(parsed)) } else { Err(value("ipam-plugin", expected, text)) }
        }
        // Somebody else may write the network configuration.
        (IpamMode::Delegated, None) | (_, None) => Ok(None),
        (_, Some(text)) => Err(value("ipam-plugin", "nothing, unless ipam is `delegated`", text)),
    }
}
