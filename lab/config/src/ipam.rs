//! Where a cluster's pods get their addresses, and what that means for its network, agents and operator.

use crate::options::{Config, FABRIC_V4, FABRIC_V6, NODE_MASK_V4, OptionError, wrong};
use ipnet::IpNet;
pub use weft_settings::value::IpamMode;

/// Whether the node's prefixes are in its Node object from the beginning.
#[must_use]
pub const fn comes_with_node(mode: IpamMode) -> bool {
    matches!(mode, IpamMode::Kubernetes | IpamMode::Delegated)
}

/// What a mode sets and `--agent` may set otherwise.
const DEFAULTS: [&str; 1] = ["no-masquerade"];

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

    /// Command line of the nth node's agent, counting from 1: `place` (its directories, sockets and the like), what
    /// follows from the cluster's options, and the settings of `--agent`. `host_local` is where the plugin of delegated
    /// addresses keeps them. Whether the agent knows a setting and takes its value, the agent says.
    ///
    /// # Errors
    /// `--agent` has a setting that the cluster sets itself.
    pub fn agent_arguments(
        &self,
        number: u8,
        mut place: Vec<(&'static str, String)>,
        host_local: &std::path::Path,
    ) -> Result<Vec<String>, OptionError> {
        place.extend([("routing", self.routing.name().to_owned()), ("ip-families", self.families())]);
        place.extend(self.ipam_settings(number, host_local));
        let fixed = || place.iter().map(|(key, _)| *key).filter(|key| !DEFAULTS.contains(key));
        if let Some((key, value)) = self.agent.iter().find(|(key, _)| fixed().any(|fixed| fixed == *key)) {
            let taken = fixed().collect::<Vec<_>>().join(", ");
            let expected = format!("expected a setting other than those that the cluster sets itself: {taken}");
            return Err(wrong("agent", format!("{key}={value}"), expected));
        }
        let given = self.agent.iter().map(|(key, value)| (key.as_str(), value.clone()));
        let own = place.into_iter().filter(|(key, _)| !self.agent.contains_key(*key));
        Ok(own.chain(given).flat_map(|(key, value)| [format!("--{key}"), value]).collect())
    }

    /// Settings of a node's agent that follow from the mode.
    fn ipam_settings(&self, number: u8, host_local: &std::path::Path) -> Vec<(&'static str, String)> {
        let list = |nets: &[IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let mut settings = vec![("ipam", self.ipam.name().to_owned()), ("max-pods", self.max_pods.to_string())];
        match self.ipam {
            IpamMode::Overlay => settings.push(("pod-cidr", list(&self.pod_cidrs))),
            IpamMode::PodSubnet | IpamMode::PodSubnetBlock => settings.push(("pod-cidr", list(&self.pod_subnets))),
            // Inside the virtual network pods are known by their own addresses.
            IpamMode::NodeSubnet => settings.push(("no-masquerade", list(&self.vnet()))),
            IpamMode::Delegated => {
                let ranges: Vec<_> = self
                    .node_prefixes(number)
                    .iter()
                    .map(|net| serde_json::json!([{"subnet": net.to_string()}]))
                    .collect();
                let plugin = serde_json::json!({"type": "host-local", "ranges": ranges, "dataDir": host_local});
                settings.push(("ipam-plugin", plugin.to_string()));
            }
            IpamMode::ClusterPool | IpamMode::Kubernetes | IpamMode::MultiPool => {}
        }
        settings
    }
}
