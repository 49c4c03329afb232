//! What the agent remembers of its endpoints: one file each, written before anything is made in the kernel and removed
//! after everything is gone from it. So whatever moment the agent dies at, its successor knows what may be there.
//!
//! The files mean something until the machine restarts, no longer; they are renamed into place, not synced.

use ipnet::IpNet;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use weft_api::cni::{Attachment, DelRequest, QUEUE_LOCK};
use weft_model::id::{EndpointId, Identity};
use weft_model::intent::{NamedPort, ObjectName};
use weft_model::label::LabelSet;
use weft_sys::files::{lock_file, private_dir, write_atomically};

/// How far an endpoint has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Numbers are taken; a link may exist. No ADD was answered with it: a successor removes it.
    Reserved,
    /// ADD was answered, or is about to be.
    Ready,
    /// DEL has begun.
    Leaving,
}

/// One endpoint.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointRecord {
    /// Number.
    pub id: EndpointId,
    /// How far.
    pub phase: Phase,
    /// CNI's name of it.
    pub attachment: Attachment,
    /// Path of the pod's network namespace.
    pub netns: String,
    /// The pod.
    pub pod: ObjectName,
    /// Its UID.
    pub pod_uid: String,
    /// Its service account.
    pub service_account: String,
    /// Its plain labels.
    pub pod_labels: std::collections::BTreeMap<String, String>,
    /// Its named ports.
    pub named_ports: Vec<NamedPort>,
    /// Addresses, one per family.
    pub addresses: Vec<IpAddr>,
    /// Identity.
    pub identity: Identity,
    /// The identity's labels.
    pub labels: LabelSet,
    /// Name of the host side of the link.
    pub device: String,
    /// MAC inside the pod.
    pub pod_mac: [u8; 6],
    /// MAC of the host side.
    pub host_mac: [u8; 6],
    /// MTU.
    pub mtu: u32,
    /// What its policies would drop is reported and passes.
    #[serde(default)]
    pub audit: bool,
}

/// A file that could not be used.
#[derive(Debug)]
pub struct Unusable {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub problem: String,
}

/// The directory. Only one agent can hold it.
#[derive(Debug)]
pub struct StateDir {
    root: PathBuf,
    _lock: Flock<File>,
}

impl StateDir {
    /// Takes the directory, making it if need be.
    ///
    /// # Errors
    /// It cannot be made, or another agent has it.
    pub fn open(root: &Path) -> io::Result<Self> {
        for dir in [root.to_owned(), root.join("endpoints"), root.join("delete-queue")] {
            private_dir(&dir)?;
        }
        let lock = lock_file(&root.join("lock"))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
            let kind = io::Error::from(errno).kind();
            io::Error::new(kind, format!("{}: another agent runs with this state directory ({errno})", root.display()))
        })?;
        Ok(Self { root: root.to_owned(), _lock: lock })
    }

    /// Where deletes wait.
    #[must_use]
    pub fn queue_dir(&self) -> PathBuf {
        self.root.join("delete-queue")
    }

    fn endpoint_path(&self, id: EndpointId) -> PathBuf {
        self.root.join("endpoints").join(format!("{id}.json"))
    }

    /// Writes an endpoint.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn write(&self, record: &EndpointRecord) -> io::Result<()> {
        let text = serde_json::to_vec(record).map_err(io::Error::other)?;
        write_atomically(&self.endpoint_path(record.id), &text, 0o600)
    }

    /// Forgets an endpoint.
    ///
    /// # Errors
    /// The file system refuses; a file that is not there is fine.
    pub fn remove(&self, id: EndpointId) -> io::Result<()> {
        match fs::remove_file(self.endpoint_path(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Everything remembered. What cannot be understood is set aside under another name and reported.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn read(&self) -> io::Result<(Vec<EndpointRecord>, Vec<Unusable>)> {
        let (mut records, mut unusable) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(self.root.join("endpoints"))? {
            let path = entry?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if name.starts_with('.') {
                // A write that was cut short: the old content is still under the real name.
                fs::remove_file(&path)?;
                continue;
            }
            let Some(number) = name.strip_suffix(".json") else { continue };
            let parsed = fs::read(&path)
                .map_err(|error| error.to_string())
                .and_then(|text| serde_json::from_slice::<EndpointRecord>(&text).map_err(|error| error.to_string()));
            match parsed {
                Ok(record) if record.id.to_string() == number => records.push(record),
                Ok(record) => {
                    unusable.push(Unusable { problem: format!("id: expected {number}, found {}", record.id), path })
                }
                Err(problem) => unusable.push(Unusable { problem, path }),
            }
        }
        for file in &unusable {
            fs::rename(&file.path, file.path.with_extension("unusable"))?;
        }
        records.sort_by_key(|record| record.id);
        Ok((records, unusable))
    }

    /// Deletes that arrived while no agent ran.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn queued_deletes(&self) -> io::Result<Vec<(PathBuf, DelRequest)>> {
        let dir = self.queue_dir();
        let lock = lock_file(&dir.join(QUEUE_LOCK))?;
        lock.lock()?;
        let mut requests = Vec::new();
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            let whole = path.extension().is_some_and(|extension| extension == "json")
                && !path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with('.'));
            if !whole {
                continue;
            }
            match fs::read(&path).map(|text| serde_json::from_slice(&text)) {
                Ok(Ok(request)) => requests.push((path, request)),
                Ok(Err(error)) => {
                    tracing::warn!(path = %path.display(), %error, "a queued delete makes no sense; it is dropped");
                    fs::remove_file(&path)?;
                }
                Err(error) => tracing::warn!(path = %path.display(), %error, "a queued delete cannot be read"),
            }
        }
        Ok(requests)
    }

    /// Pod prefixes that this node had last; endpoints can be restored before the API server answers.
    #[must_use]
    pub fn pod_cidrs(&self) -> Vec<IpNet> {
        fs::read(self.root.join("pod-cidrs.json"))
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default()
    }

    /// Remembers them.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn set_pod_cidrs(&self, cidrs: &[IpNet]) -> io::Result<()> {
        let text = serde_json::to_vec(cidrs).map_err(io::Error::other)?;
        write_atomically(&self.root.join("pod-cidrs.json"), &text, 0o600)
    }
}

#[cfg(test)]
mod tests;
