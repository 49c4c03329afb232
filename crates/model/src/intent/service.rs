//! Services, their EndpointSlices and local redirects.

use super::name::{Age, NamedPort, ObjectName};
use super::policy::Protocol;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Service {
    pub name: ObjectName,
    pub labels: BTreeMap<String, String>,
    /// On pod labels; empty: it has no selector.
    pub selector: BTreeMap<String, String>,
    /// `None`: not served here (headless, ExternalName, or labelled for another proxy).
    pub routing: Option<Routing>,
    pub age: Age,
}

/// The routing of a Service.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Routing {
    pub ports: Vec<ServicePort>,
    /// At most one per family.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip`, those that nodes serve (`ipMode: VIP`).
    pub load_balancer_ips: Vec<IpAddr>,
    /// It has NodePorts (`ports[].node_port`).
    pub node_ports: bool,
    /// `sessionAffinity: ClientIP` with its timeout in seconds.
    pub affinity_s: Option<u32>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `loadBalancerSourceRanges`; empty: all.
    pub source_ranges: Vec<IpNet>,
    /// `healthCheckNodePort`.
    pub health_check_node_port: Option<u16>,
    /// `publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// Preference by hints or `trafficDistribution`.
    pub topology: Topology,
    pub algorithm: Algorithm,
    /// `None`: the default of the node.
    pub forwarding: Option<Forwarding>,
}

/// One port of a Service.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ServicePort {
    /// Refers to the ports of EndpointSlices. May be empty if it is the only one.
    pub name: String,
    pub protocol: Protocol,
    /// Port on the Service's addresses.
    pub port: u16,
    /// 0: none.
    pub node_port: u16,
}

/// Which backends are preferred.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Topology {
    #[default]
    None,
    /// Those with a hint for the client's zone, if all endpoints have hints and at least one is for the zone.
    Hints,
    /// Those of the client's own node, then as [`Topology::Hints`] (`trafficDistribution: PreferSameNode`).
    SameNode,
}

/// How a backend is selected.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Algorithm {
    #[default]
    Random,
    /// Consistent hashing of the client (Maglev, NSDI 2016): all nodes select the same backend.
    Maglev,
}

/// How packets of external clients reach backends on other nodes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Forwarding {
    /// With the node's source address, so that replies come back through it.
    #[default]
    Snat,
    /// With the client's source address; the backend's node replies directly.
    Dsr,
}

/// One EndpointSlice (discovery.k8s.io) of a Service.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Backends {
    pub slice: ObjectName,
    /// The Service that it belongs to.
    pub service: ObjectName,
    /// The same for all endpoints.
    pub ports: Vec<NamedPort>,
    pub endpoints: Vec<Backend>,
}

/// One endpoint of an EndpointSlice.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Backend {
    /// The first one, of the slice's family.
    pub address: IpAddr,
    /// `conditions.ready`; absent: true.
    pub ready: bool,
    /// `conditions.serving`; absent: as `ready`.
    pub serving: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
    pub node: Option<String>,
    pub zone: Option<String>,
    /// `hints.forZones`.
    pub for_zones: BTreeSet<String>,
}

impl Backend {
    /// A ready endpoint with nothing but an address.
    #[must_use]
    pub const fn ready(address: IpAddr) -> Self {
        Self {
            address,
            ready: true,
            serving: true,
            terminating: false,
            node: None,
            zone: None,
            for_zones: BTreeSet::new(),
        }
    }
}

/// A CiliumLocalRedirectPolicy: traffic to a frontend is redirected to pods on the client's own node.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct LocalRedirect {
    pub name: ObjectName,
    pub frontend: RedirectFrontend,
    /// The backend pods, in the policy's namespace.
    pub selector: crate::selector::Selector,
    /// Ports of these pods. A named one is for the frontend's port of that name.
    pub ports: Vec<RedirectPort>,
    /// The backend pods themselves are not redirected.
    pub skip_from_backend: bool,
    pub age: Age,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum RedirectFrontend {
    /// Without a local backend, traffic goes to the address itself.
    Address { address: IpAddr, ports: Vec<RedirectPort> },
    /// A Service of type ClusterIP in the policy's namespace. Without a local backend, its own backends are used.
    Service {
        name: ObjectName,
        /// Empty: all ports.
        ports: Vec<RedirectPort>,
    },
}

/// A port of a [`LocalRedirect`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct RedirectPort {
    /// May be empty if there is one port.
    pub name: String,
    /// TCP or UDP.
    pub protocol: Protocol,
    pub port: u16,
}

/// A `hostPort` of a container.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HostPort {
    /// `None`: all addresses of the node.
    pub host_ip: Option<IpAddr>,
    /// Port on the node.
    pub port: u16,
    pub protocol: Protocol,
    pub container_port: u16,
}
