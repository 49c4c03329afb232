//! Services to what the kernel holds of them, change by change.
//!
//! [`Engine::plan`] compares what is wanted of the objects that changed with what is in force and returns a patch;
//! [`Engine::done`] tells what became of it. A change costs its own objects. What does not fit is refused object by
//! object: the others go through, and what was in force of the refused one stays in force.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use weft_model::desired::{BackendEntry, Frontend, FrontendEntry};
use weft_model::intent::{Algorithm, Forwarding, HostPort, ObjectName, Protocol};

mod backends;
mod claims;
mod engine;
mod events;
mod held;
mod list;
pub mod maglev;
mod redirect;
mod wanted;

pub use engine::{Engine, Outcome};
pub use events::Event;

/// What the engine must know of the node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The node's name, by which backends are local.
    pub node_name: String,
    /// Frontends and backends of IPv4.
    pub ipv4: bool,
    /// Frontends and backends of IPv6.
    pub ipv6: bool,
    /// Ports that Services may have at the nodes' addresses.
    pub node_ports: RangeInclusive<u16>,
    /// How packets of clients outside reach backends of other nodes, where a Service says nothing.
    pub forwarding: Forwarding,
    /// Entries of Maglev's tables: a prime.
    pub table_size: u32,
}

impl Settings {
    fn has_family_of(&self, address: IpAddr) -> bool {
        if address.is_ipv4() { self.ipv4 } else { self.ipv6 }
    }
}

/// A pod of this node, as far as Services care.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalPod {
    /// Namespace and name.
    pub name: ObjectName,
    /// Labels as written.
    pub labels: BTreeMap<String, String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its condition `Ready` is true.
    pub ready: bool,
    /// Ports of the node that it asks for.
    pub host_ports: Vec<HostPort>,
}

/// Whose frontends they are. Of two that want the same one, neither having it, the lesser gets it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Object {
    /// A Service.
    Service(ObjectName),
    /// A pod of this node, with its hostPorts.
    Pod(ObjectName),
    /// A CiliumLocalRedirectPolicy.
    Redirect(ObjectName),
}

impl Object {
    /// Its namespace and name.
    #[must_use]
    pub const fn name(&self) -> &ObjectName {
        match self {
            Self::Service(name) | Self::Pod(name) | Self::Redirect(name) => name,
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => write!(f, "Service {name}"),
            Self::Pod(name) => write!(f, "Pod {name}"),
            Self::Redirect(name) => write!(f, "CiliumLocalRedirectPolicy {name}"),
        }
    }
}

/// Why something of an object is not in force as it was written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Reason {
    /// Another object has the frontend.
    FrontendConflict,
    /// A NodePort outside the node's range.
    NodePortOutOfRange,
    /// The kernel's maps are full. What was in force before is in force still.
    NoRoom,
    /// More backends than a set holds: the first ones are used.
    TooManyBackends,
    /// A CiliumLocalRedirectPolicy that does not fit what it redirects.
    RedirectNotApplicable,
}

impl Reason {
    /// As an Event's reason.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FrontendConflict => "FrontendConflict",
            Self::NodePortOutOfRange => "NodePortOutOfRange",
            Self::NoRoom => "NoRoom",
            Self::TooManyBackends => "TooManyBackends",
            Self::RedirectNotApplicable => "RedirectNotApplicable",
        }
    }
}

/// What is not in force, and why.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Problem {
    /// Why.
    pub reason: Reason,
    /// In words.
    pub text: String,
}

/// One port of an object, as it is in force.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListedPort {
    /// The object.
    pub object: Object,
    /// The port.
    pub port: u16,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Where clients send to.
    pub frontends: Vec<(Frontend, FrontendEntry)>,
    /// What is behind it.
    pub backends: Vec<ListedBackend>,
    /// How one of them is chosen.
    pub algorithm: Algorithm,
}

/// A backend, as it is in force.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ListedBackend {
    /// It.
    pub entry: BackendEntry,
    /// New connections of this node's clients may go to it.
    pub internal: bool,
    /// New connections of clients outside may go to it.
    pub external: bool,
}
