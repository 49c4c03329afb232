//! What a pod's link is made from, what was made, and what can go wrong.

use crate::netlink::NetlinkError;
use crate::netlink::device::Mac;
use crate::netns::NetNs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The pod's IPv4 gateway.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The pod's IPv6 gateway.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// What to make.
#[derive(Clone, Debug)]
pub struct PodLinkSpec<'a> {
    /// Name of the host's end.
    pub host_name: String,
    /// Whose it is. A device of that name and the same owner is a leftover and replaced; one of another owner is an
    /// error.
    pub owner: String,
    /// The pod's network namespace.
    pub netns: &'a NetNs,
    /// Name of the pod's end.
    pub pod_name: String,
    /// MAC of the host's end; `None`: a random one.
    pub host_mac: Option<Mac>,
    /// MAC of the pod's end; `None`: a random one.
    pub pod_mac: Option<Mac>,
    /// MTU of both ends.
    pub mtu: u32,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
}

/// What was made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodLink {
    /// Index of the host's end.
    pub host_ifindex: u32,
    /// Name of the host's end.
    pub host_name: String,
    /// MAC of the host's end: the pod's gateways have it.
    pub host_mac: Mac,
    /// Index of the pod's end, in the pod's namespace.
    pub pod_ifindex: u32,
    /// MAC of the pod's end.
    pub pod_mac: Mac,
}

/// Why a link could not be made. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// A field of the specification.
    #[error("{field}: {problem}")]
    Invalid {
        /// Which.
        field: &'static str,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// Somebody else's device.
    #[error("device name {name} is taken{}", owner.as_ref().map(|owner| format!(" by {owner}")).unwrap_or_default())]
    NameTaken {
        /// The name.
        name: String,
        /// Whose it is, if it is one of ours.
        owner: Option<String>,
    },
    /// The pod has such a device.
    #[error("the pod already has a device {name}")]
    PodNameTaken {
        /// The name.
        name: String,
    },
    /// The programs could not be attached.
    #[error("attach the programs to {name}")]
    Attach {
        /// The host's end.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused something.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A system call failed.
    #[error("{what}")]
    System {
        /// What was attempted on what.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl LinkError {
    pub(super) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        |source| Self::System { what, source }
    }
}
