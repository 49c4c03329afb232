//! What the agent needs of the kernel's links and of the cluster, as traits: the tests put recording fakes in
//! their place.

use futures::future::BoxFuture;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use weft_datapath::{Datapath, NodeSettings};
use weft_model::desired::{Dataplane, DataplaneError};
use weft_model::id::EndpointId;
use weft_model::intent::{IdentityLabels, Namespace, ObjectName, Pod};

/// A pod's link as it shall be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LinkSpec {
    /// Number of the endpoint.
    pub id: EndpointId,
    /// The pod's network namespace.
    pub netns: PathBuf,
    /// Name inside it.
    pub ifname: String,
    /// Name of the host side.
    pub device: String,
    /// Addresses, one per family.
    pub addresses: Vec<IpAddr>,
    /// MTU.
    pub mtu: u32,
    /// MAC inside the pod.
    pub pod_mac: [u8; 6],
    /// MAC of the host side.
    pub host_mac: [u8; 6],
}

/// A link, or a program on it, could not be made, removed or looked at.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct LinkError {
    /// What was attempted on what.
    pub what: String,
    /// The pod's namespace does not exist (any more).
    pub netns_gone: bool,
    /// Why.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Pod links of this node. Calls block; they may come from several threads at once.
pub trait Links: Send + Sync {
    /// Makes the link with its programs attached before its host side is up: a packet that comes early meets a
    /// program that does not know its endpoint, and is dropped. Leaves nothing behind on failure. Answers the index
    /// of the host side.
    ///
    /// # Errors
    /// [`LinkError`]
    fn create(&self, spec: &LinkSpec) -> Result<u32, LinkError>;
    /// Removes the link, its programs' pins and everything of the node that points to it. Absence is fine.
    ///
    /// # Errors
    /// [`LinkError`]
    fn remove(&self, device: &str) -> Result<(), LinkError>;
    /// Host sides of all links that an agent made: name and index.
    ///
    /// # Errors
    /// [`LinkError`]
    fn list(&self) -> Result<Vec<(String, u32)>, LinkError>;
    /// Takes over the programs on a link that was made before this agent started, replacing them by the current ones.
    ///
    /// # Errors
    /// [`LinkError`]
    fn adopt(&self, device: &str, ifindex: u32) -> Result<(), LinkError>;
    /// Removes what is pinned for devices other than these.
    fn prune(&self, keep: &BTreeSet<String>);
    /// Whether the link is as [`Self::create`] left it: `Err` says what is not.
    ///
    /// # Errors
    /// [`LinkError`]
    fn check(&self, spec: &LinkSpec) -> Result<(), LinkError>;
}

/// The cluster could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct ClusterError {
    /// What was asked.
    pub what: String,
    /// Why there is no answer.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What became of an attempt to create an identity.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Created {
    /// It is there with these labels now.
    Yes,
    /// The number belongs to another label set.
    Taken(IdentityLabels),
}

/// Questions to the API server.
pub trait Cluster: Send + Sync {
    /// The pod, if it exists.
    fn pod<'a>(&'a self, name: &'a ObjectName) -> BoxFuture<'a, Result<Option<Pod>, ClusterError>>;
    /// The namespace, if it exists.
    fn namespace<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Namespace>, ClusterError>>;
    /// Makes an identity; one that is there already with the same labels is fine.
    fn create_identity<'a>(&'a self, identity: &'a IdentityLabels) -> BoxFuture<'a, Result<Created, ClusterError>>;
}

/// The maps, and the node's configuration in them.
pub trait Kernel: Dataplane {
    /// Writes what the programs must know of the node.
    ///
    /// # Errors
    /// [`DataplaneError`]
    fn configure(&mut self, settings: &NodeSettings) -> Result<(), DataplaneError>;
}

impl Kernel for Datapath {
    fn configure(&mut self, settings: &NodeSettings) -> Result<(), DataplaneError> {
        Self::configure(self, settings)
    }
}
