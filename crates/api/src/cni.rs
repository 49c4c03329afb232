//! Requests of the CNI executable to the agent.

use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// The attachment that a call is about.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Attachment {
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_IFNAME.
    pub ifname: String,
}

/// ADD.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AddRequest {
    /// Which.
    pub attachment: Attachment,
    /// CNI_NETNS.
    pub netns: String,
    /// K8S_POD_NAMESPACE of CNI_ARGS.
    pub pod_namespace: String,
    /// K8S_POD_NAME.
    pub pod_name: String,
    /// K8S_POD_UID, where given.
    pub pod_uid: Option<String>,
    /// MTU wanted by the network configuration.
    pub mtu: Option<u32>,
    /// Addresses that another plugin gave; `None`: the agent gives some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addresses: Option<Vec<IpAddr>>,
}

/// DEL.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DelRequest {
    /// Which.
    pub attachment: Attachment,
    /// CNI_NETNS, if it still exists.
    pub netns: Option<String>,
}

/// CHECK.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CheckRequest {
    /// Which.
    pub attachment: Attachment,
    /// CNI_NETNS.
    pub netns: String,
    /// Addresses of prevResult.
    pub addresses: Vec<IpAddr>,
}

/// GC.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GcRequest {
    /// `cni.dev/valid-attachments`; everything else goes.
    pub valid: Vec<Attachment>,
}

/// What ADD made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AddResult {
    /// Host side of the link.
    pub host_ifname: String,
    /// Its MAC, `aa:bb:cc:dd:ee:ff`.
    pub host_mac: String,
    /// MAC inside the pod.
    pub pod_mac: String,
    /// MTU.
    pub mtu: u32,
    /// Addresses with prefix length (`10.0.1.5/32`) and gateway.
    pub addresses: Vec<(String, IpAddr)>,
}

/// Most deletes that may wait for an agent that is down.
pub const QUEUE_FILES_MAX: usize = 256;
/// Name of the queue's lock file (flock).
pub const QUEUE_LOCK: &str = "lock";

/// Name of the file in which a delete waits: a JSON [`DelRequest`].
#[must_use]
pub fn queue_file_name(attachment: &Attachment) -> String {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    attachment.hash(&mut hasher);
    // The hash sets apart what the cut-off id does not; the id is for people.
    format!("{:.128}-{}-{:016x}.json", attachment.container_id, attachment.ifname, hasher.finish())
}
