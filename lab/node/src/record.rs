//! What a pod runner must remember across its own restarts: one directory per pod, written before and after each step.

use crate::pod::ContainerDir;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use weft_lab_config::paths::POD_ID_LENGTH;
use weft_sys::files::{PRIVATE, write_atomically};

/// The short id in a pod's namespace and cgroup names, from its UID.
#[must_use]
pub fn short_id(uid: &str) -> String {
    let digits: String = uid.chars().filter(char::is_ascii_hexdigit).take(POD_ID_LENGTH).collect();
    format!("{:0>width$}", digits.to_ascii_lowercase(), width = POD_ID_LENGTH)
}

/// A pod as this node runs it.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Record {
    /// UID.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uses the node's network.
    pub host_network: bool,
    /// Container id of its network attachment; empty before the first attempt.
    pub sandbox: String,
    /// Network namespace.
    pub netns: PathBuf,
    /// The network configuration that ADD was called with, and what it answered: DEL wants both.
    pub attachment: Option<Attachment>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// Containers by name.
    pub containers: BTreeMap<String, ContainerRecord>,
    /// When the pod was first seen here, RFC 3339.
    pub started: String,
}

/// A network attachment.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Attachment {
    /// The configuration list.
    pub config: Value,
    /// Result of ADD; null while it has not succeeded.
    pub result: Value,
}

/// A container.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// How often it was started anew.
    pub restarts: u32,
    /// Number of the current start, from 0; none before the first.
    pub attempt: Option<u32>,
    /// Id of the current start.
    pub id: String,
    /// When it was started, RFC 3339.
    pub started: String,
    /// How the start before ended, as `containerStatuses[].lastState.terminated`.
    pub last: Value,
}

/// A pod's directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodDir(pub PathBuf);

impl PodDir {
    /// Of a pod, below the node's `pods` directory.
    #[must_use]
    pub fn new(pods: &Path, uid: &str) -> Self {
        Self(pods.join(short_id(uid)))
    }

    /// One start of one container.
    #[must_use]
    pub fn container(&self, name: &str, attempt: u32) -> ContainerDir {
        ContainerDir(self.0.join(name).join(attempt.to_string()))
    }

    /// Volumes that live as long as the pod.
    #[must_use]
    pub fn volumes(&self) -> PathBuf {
        self.0.join(".volumes")
    }

    /// Keeps the record.
    ///
    /// # Errors
    /// Of the file system.
    pub fn save(&self, record: &Record) -> io::Result<()> {
        fs::create_dir_all(&self.0)?;
        write_atomically(&self.0.join("pod.json"), &serde_json::to_vec(record).map_err(io::Error::other)?, PRIVATE)
    }

    /// Reads the record.
    ///
    /// # Errors
    /// Of the file system, or that it is none.
    pub fn load(&self) -> io::Result<Record> {
        serde_json::from_slice(&fs::read(self.0.join("pod.json"))?).map_err(io::Error::other)
    }

    /// Forgets the pod.
    ///
    /// # Errors
    /// Of the file system.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

/// All records below a directory. What cannot be read is skipped: nothing can be done with it.
#[must_use]
pub fn load_all(pods: &Path) -> Vec<Record> {
    let Ok(entries) = fs::read_dir(pods) else { return Vec::new() };
    entries.flatten().filter_map(|e| PodDir(e.path()).load().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_ids_have_one_form() {
        assert_eq!(short_id("0F1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"), "0f1e2d3c4b");
        assert_eq!(short_id("abc"), "0000000abc");
    }
}
