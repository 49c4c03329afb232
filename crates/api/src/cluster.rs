//! An embedded cluster (`weft up`), as far as programs need to know that are no part of it: its name, its nodes, and
//! where it keeps its settings and the agents' sockets.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// The most characters of a cluster's name: namespaces, links and control groups carry it.
const NAME_MAX: usize = 20;
/// What a cluster's name looks like.
pub const NAME_EXPECTED: &str = "expected 1 to 20 lowercase letters, digits and inner hyphens";

/// Why nothing is known of a cluster.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The name cannot be one.
    #[error("--name {0}: {NAME_EXPECTED}")]
    Name(String),
    /// There is no such cluster.
    #[error("no cluster {0} on this machine (`weft up` makes one)")]
    Absent(String),
    /// Its settings cannot be read.
    #[error("{what}: {source}")]
    Read {
        /// What was attempted.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// Whether a cluster can have this name. It becomes a part of paths, so nothing else may.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=NAME_MAX).contains(&name.len())
        && name.chars().all(|c| inner(c) || c == '-')
        && name.starts_with(inner)
        && name.ends_with(inner)
}

/// What outlives a reboot: API store, certificates, kubeconfig, logs.
#[must_use]
pub fn lib_dir(name: &str) -> PathBuf {
    Path::new("/var/lib/weft").join(name)
}

/// What does not: sockets, process records, the BPF file system.
#[must_use]
pub fn run_dir(name: &str) -> PathBuf {
    Path::new("/run/weft").join(name)
}

/// The settings that the cluster was made with, as JSON.
#[must_use]
pub fn settings_file(name: &str) -> PathBuf {
    lib_dir(name).join("cluster.json")
}

/// The kubeconfig of its embedded API server, for programs of this machine.
#[must_use]
pub fn kubeconfig_file(name: &str) -> PathBuf {
    lib_dir(name).join("kubeconfig")
}

/// Socket of a node's agent.
#[must_use]
pub fn agent_socket(name: &str, node: &str) -> PathBuf {
    run_dir(name).join(node).join("agent.sock")
}

/// Name of the nth node, counting from 1.
#[must_use]
pub fn node_name(number: u8) -> String {
    format!("node-{number}")
}

/// Reads the settings that a cluster was made with, or the part of them that `T` has.
///
/// # Errors
/// That there is no such cluster, or that its settings cannot be read.
pub fn read<T: DeserializeOwned>(name: &str) -> Result<T, ClusterError> {
    if !is_name(name) {
        return Err(ClusterError::Name(name.to_owned()));
    }
    read_file(name, &settings_file(name))
}

fn read_file<T: DeserializeOwned>(name: &str, file: &Path) -> Result<T, ClusterError> {
    let text = match fs::read(file) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(ClusterError::Absent(name.to_owned())),
        Err(source) => return Err(ClusterError::Read { what: format!("read {}", file.display()), source }),
        Ok(text) => text,
    };
    serde_json::from_slice(&text).map_err(|error| ClusterError::Read {
        what: format!("{} (`weft down` removes the cluster)", file.display()),
        source: error.into(),
    })
}

/// What others need to know of a cluster.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Cluster {
    name: String,
    nodes: u8,
    kubeconfig: Option<PathBuf>,
}

impl Cluster {
    /// Reads it.
    ///
    /// # Errors
    /// That there is no such cluster, or that its settings cannot be read.
    pub fn read(name: &str) -> Result<Self, ClusterError> {
        read(name)
    }

    /// Names of its nodes.
    #[must_use]
    pub fn node_names(&self) -> Vec<String> {
        (1..=self.nodes).map(node_name).collect()
    }

    /// How its API server is reached: the embedded one, unless another was given.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig.clone().unwrap_or_else(|| kubeconfig_file(&self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_parts_of_paths() {
        for fine in ["weft", "a", "a-1", "0123456789abcdefghij"] {
            assert!(is_name(fine), "{fine}");
        }
        for wrong in ["", "-a", "a-", "a/b", "..", "A", "0123456789abcdefghijk", "a\0"] {
            assert!(!is_name(wrong), "{wrong}");
            assert!(matches!(Cluster::read(wrong), Err(ClusterError::Name(_))), "{wrong}");
        }
    }

    #[test]
    fn an_absent_cluster_is_told_from_an_unreadable_one() {
        let dir = std::env::temp_dir().join(format!("weft-api-cluster-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("temporary directory");
        let file = dir.join("cluster.json");
        let absent = read_file::<Cluster>("a", &file);
        fs::write(&file, "{").expect("written");
        let broken = read_file::<Cluster>("a", &file);
        fs::write(&file, r#"{"name": "a", "nodes": 2, "kubeconfig": null, "port": 1}"#).expect("written");
        let whole = read_file::<Cluster>("a", &file);
        fs::remove_dir_all(&dir).expect("removed");
        assert!(matches!(absent, Err(ClusterError::Absent(name)) if name == "a"));
        assert!(matches!(broken, Err(ClusterError::Read { what, .. }) if what.contains("cluster.json")));
        let whole = whole.expect("readable");
        assert_eq!(whole.node_names(), ["node-1", "node-2"]);
        assert_eq!(whole.kubeconfig(), kubeconfig_file("a"));
    }
}
