//! What goes into the Service compiler and comes out of it: settings, pods, owners, problems, rows for people.

use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use weft_model::desired::{BackendEntry, Frontend, FrontendEntry};
use weft_model::intent::{Age, Algorithm, Forwarding, HostPort, ObjectName, Protocol};

/// Configuration of the engine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Backends of this node are local.
    pub node_name: String,
    pub ipv4: bool,
    pub ipv6: bool,
    /// The range of NodePorts.
    pub node_ports: RangeInclusive<u16>,
    /// The default for Services without an annotation.
    pub forwarding: Forwarding,
    /// Size of Maglev lookup tables, a prime.
    pub table_size: u32,
    pub allowed: Allowed,
}

/// What objects may claim by their own choice of address or port.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Allowed {
    /// `externalIPs` are in these prefixes: a Service takes over their traffic in the whole cluster
    /// (CVE-2020-8554).
    pub external_ips: Vec<IpNet>,
    /// Ports of the node's own programs, which no hostPort takes.
    pub reserved_ports: Vec<RangeInclusive<u16>>,
    /// Pods of any node have their addresses here, beside the nodes' own prefixes.
    pub pod_ranges: Vec<IpNet>,
    /// Where agents reach the API server.
    pub api_server: BTreeSet<IpAddr>,
}

impl Settings {
    pub(super) fn has_family_of(&self, address: IpAddr) -> bool {
        if address.is_ipv4() { self.ipv4 } else { self.ipv6 }
    }
}

/// A pod of this node, as the engine needs it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalPod {
    pub name: ObjectName,
    pub labels: BTreeMap<String, String>,
    pub addresses: Vec<IpAddr>,
    pub ready: bool,
    pub host_ports: Vec<HostPort>,
    pub age: Age,
}

/// The owner of frontends. Of objects of equal rank and age the lesser in this order gets one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Object {
    Service(ObjectName),
    /// A pod of this node, for its hostPorts.
    Pod(ObjectName),
    /// A CiliumLocalRedirectPolicy.
    Redirect(ObjectName),
}

impl Object {
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

/// Why something of an object is not in force as written. The spelling is that of the Events.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Reason {
    /// Another object owns the frontend.
    FrontendConflict,
    /// An address or a port that is not for such an object to take.
    FrontendRefused,
    /// A NodePort outside the node's range.
    NodePortOutOfRange,
    /// The maps are full. The previous version stays in force.
    NoRoom,
    /// More backends than a set holds; the first ones are used.
    TooManyBackends,
    /// A CiliumLocalRedirectPolicy does not match its Service or its own ports.
    RedirectNotApplicable,
}

impl Reason {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FrontendConflict => "FrontendConflict",
            Self::FrontendRefused => "FrontendRefused",
            Self::NodePortOutOfRange => "NodePortOutOfRange",
            Self::NoRoom => "NoRoom",
            Self::TooManyBackends => "TooManyBackends",
            Self::RedirectNotApplicable => "RedirectNotApplicable",
        }
    }
}

/// Part of an object that is not in force as written.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Problem {
    pub reason: Reason,
    /// For Events and the status.
    pub text: String,
}

/// One port of an object, as in force.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListedPort {
    pub object: Object,
    pub port: u16,
    pub protocol: Protocol,
    pub frontends: Vec<(Frontend, FrontendEntry)>,
    pub backends: Vec<ListedBackend>,
    pub algorithm: Algorithm,
}

/// A backend, as in force.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ListedBackend {
    pub entry: BackendEntry,
    /// It takes new connections of clients of this node.
    pub internal: bool,
    /// It takes new connections of external clients.
    pub external: bool,
}
