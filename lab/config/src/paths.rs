//! Names and places of everything that a cluster has on its machine. All of them carry the cluster's name.

use std::path::PathBuf;
pub use weft_api::cluster::node_name;

/// Names and places of one cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Paths {
    /// The cluster's name, already checked.
    pub cluster: String,
}

impl Paths {
    /// Of a cluster.
    #[must_use]
    pub fn new(cluster: &str) -> Self {
        Self { cluster: cluster.to_owned() }
    }

    /// What outlives a reboot: API store, certificates, kubeconfig, logs.
    #[must_use]
    pub fn lib(&self) -> PathBuf {
        weft_api::cluster::lib_dir(&self.cluster)
    }

    /// What does not: sockets, process records, the BPF file system.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        weft_api::cluster::run_dir(&self.cluster)
    }

    /// The settings that the cluster was made with.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        weft_api::cluster::settings_file(&self.cluster)
    }

    /// For kubectl on this machine.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        weft_api::cluster::kubeconfig_file(&self.cluster)
    }

    /// For agents and the operator, inside the fabric.
    #[must_use]
    pub fn node_kubeconfig(&self) -> PathBuf {
        self.lib().join("node-kubeconfig")
    }

    /// For cluster DNS, inside the fabric.
    #[must_use]
    pub fn dns_kubeconfig(&self) -> PathBuf {
        self.lib().join("dns-kubeconfig")
    }

    /// Logs of the cluster's own processes.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.lib().join("logs")
    }

    /// Which addresses the fabric's cloud has assigned to whom.
    #[must_use]
    pub fn cloud(&self) -> PathBuf {
        self.lib().join("cloud.json")
    }

    /// Where that cloud is asked.
    #[must_use]
    pub fn cloud_socket(&self) -> PathBuf {
        self.run().join("cloud.sock")
    }

    /// The BPF file system.
    #[must_use]
    pub fn bpf(&self) -> PathBuf {
        self.run().join("bpf")
    }

    /// Records of the processes.
    #[must_use]
    pub fn processes(&self) -> PathBuf {
        self.run().join("processes")
    }

    /// A node's sockets and state.
    #[must_use]
    pub fn node(&self, node: &str) -> PathBuf {
        self.run().join(node)
    }

    /// A node's agent.
    #[must_use]
    pub fn agent_socket(&self, node: &str) -> PathBuf {
        weft_api::cluster::agent_socket(&self.cluster, node)
    }

    /// A node's pod runner.
    #[must_use]
    pub fn runner_socket(&self, node: &str) -> PathBuf {
        self.node(node).join("runner.sock")
    }

    /// Name of the namespace that stands for the network between the nodes.
    #[must_use]
    pub fn fabric_netns(&self) -> String {
        format!("weft-{}-fabric", self.cluster)
    }

    /// Name of the namespace that stands for the world.
    #[must_use]
    pub fn outside_netns(&self) -> String {
        format!("weft-{}-outside", self.cluster)
    }

    /// Name of a node's namespace.
    #[must_use]
    pub fn node_netns(&self, node: &str) -> String {
        format!("weft-{}-{node}", self.cluster)
    }

    /// Name of a pod's namespace.
    #[must_use]
    pub fn pod_netns(&self, id: &str) -> String {
        format!("weft-{}-pod-{id}", self.cluster)
    }

    /// Name of the cgroup that holds every process of the cluster.
    #[must_use]
    pub fn cgroup(&self) -> String {
        format!("weft-{}", self.cluster)
    }

    /// Name of the cgroup that holds every process of a node: its agent, its pods, whatever else runs on it.
    #[must_use]
    pub fn node_cgroup(&self, node: &str) -> String {
        format!("{}/{node}", self.cgroup())
    }

    /// The namespace belongs to this cluster. `a` and `a-b` are different clusters, so the whole form counts.
    #[must_use]
    pub fn owns_netns(&self, name: &str) -> bool {
        let Some(rest) = name.strip_prefix(&format!("weft-{}-", self.cluster)) else { return false };
        let number = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        let id = |s: &str| s.len() == POD_ID_LENGTH && s.bytes().all(|b| b.is_ascii_hexdigit());
        rest == "fabric"
            || rest == "outside"
            || rest.strip_prefix("node-").is_some_and(number)
            || rest.strip_prefix("pod-").is_some_and(id)
    }
}

/// Digits of the short id in a pod's namespace and cgroup names.
pub const POD_ID_LENGTH: usize = 10;

/// Names of all clusters that left something on this machine.
#[must_use]
pub fn clusters() -> Vec<String> {
    let mut names: Vec<String> = ["/var/lib/weft", "/run/weft"]
        .iter()
        .filter_map(|dir| std::fs::read_dir(dir).ok())
        .flat_map(|entries| entries.flatten())
        .filter(|e| e.path().is_dir())
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|name| weft_api::cluster::is_name(name))
        .collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_cluster_does_not_own_anothers_namespaces() {
        let a = Paths::new("a");
        for mine in ["weft-a-fabric", "weft-a-outside", "weft-a-node-12", "weft-a-pod-0123456789"] {
            assert!(a.owns_netns(mine), "{mine}");
        }
        for others in ["weft-a-b-fabric", "weft-a-node-1-fabric", "weft-a-pod-fabric", "weft-ab-fabric", "weft-a-node-"]
        {
            assert!(!a.owns_netns(others), "{others}");
        }
    }
}
