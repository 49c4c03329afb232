//! Services and what stands behind them.

use super::{NamedPort, ObjectName, Protocol};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// A Service.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its pods, by their plain labels; empty: it has no selector.
    pub selector: BTreeMap<String, String>,
    /// How it is reached; `None`: not through this network (headless, an external name, another proxy's).
    pub routing: Option<Routing>,
}

/// How a Service is reached.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Routing {
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Its addresses inside the cluster, at most one per family.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip`, those that the nodes shall serve (`ipMode: VIP`).
    pub load_balancer_ips: Vec<IpAddr>,
    /// Its ports are reached at the nodes' addresses, too (`ports[].node_port`).
    pub node_ports: bool,
    /// Seconds for which a client stays with its backend (`sessionAffinity: ClientIP`); `None`: it does not.
    pub affinity_s: Option<u32>,
    /// Only backends of the client's own node, for clients inside the cluster.
    pub internal_local: bool,
    /// Only backends of the node that the packet came to, for clients outside.
    pub external_local: bool,
    /// Clients outside that may use load-balancer addresses; empty: all.
    pub source_ranges: Vec<IpNet>,
    /// `healthCheckNodePort`, where it has one.
    pub health_check_node_port: Option<u16>,
    /// Pods that are not ready count as if they were.
    pub publish_not_ready: bool,
    /// Prefer backends that the hints (or, without hints, `trafficDistribution`) name for the client's zone.
    pub topology: Topology,
    /// How a backend is chosen.
    pub algorithm: Algorithm,
    /// How packets of clients outside reach backends of other nodes; `None`: as the node is set.
    pub forwarding: Option<Forwarding>,
}

/// One port of a Service.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ServicePort {
    /// Its name, empty if it is the only one. EndpointSlices name their ports so.
    pub name: String,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Port at the Service's addresses.
    pub port: u16,
    /// Port at the nodes' addresses; 0: none.
    pub node_port: u16,
}

/// Whose backends are preferred.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Topology {
    /// Any.
    #[default]
    None,
    /// Those that the slices' hints give to the client's zone, if all endpoints have hints and one is the zone's.
    Hints,
    /// Those of the client's own node, then as [`Topology::Hints`] (`trafficDistribution: PreferSameNode`).
    SameNode,
}

/// How a backend is chosen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Algorithm {
    /// At random.
    #[default]
    Random,
    /// By consistent hashing of the client (Maglev, NSDI 2016): all nodes choose the same.
    Maglev,
}

/// How packets of clients outside reach backends of other nodes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Forwarding {
    /// With the node's address; answers come back through it.
    #[default]
    Snat,
    /// With the client's address; the backend's node answers directly.
    Dsr,
}

/// One EndpointSlice (discovery.k8s.io) of a Service.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Backends {
    /// The slice.
    pub slice: ObjectName,
    /// The Service that it belongs to.
    pub service: ObjectName,
    /// Ports of every endpoint of the slice.
    pub ports: Vec<NamedPort>,
    /// Its endpoints.
    pub endpoints: Vec<Backend>,
}

/// One endpoint of an EndpointSlice.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Backend {
    /// Its address: the first one, of the slice's family.
    pub address: IpAddr,
    /// Takes new connections (`conditions.ready`; absent: yes).
    pub ready: bool,
    /// Answers, perhaps while it ends (`conditions.serving`; absent: as `ready`).
    pub serving: bool,
    /// Is about to end (`conditions.terminating`).
    pub terminating: bool,
    /// Its node.
    pub node: Option<String>,
    /// Its zone.
    pub zone: Option<String>,
    /// Zones whose clients it is meant for (`hints.forZones`).
    pub for_zones: BTreeSet<String>,
}

impl Backend {
    /// One that is ready, of which nothing but the address is known.
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

/// A CiliumLocalRedirectPolicy: what is sent to a frontend goes to pods of the client's own node.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct LocalRedirect {
    /// Namespace and name.
    pub name: ObjectName,
    /// What is redirected.
    pub frontend: RedirectFrontend,
    /// The pods of the policy's namespace that it goes to.
    pub selector: crate::selector::Selector,
    /// Ports of these pods. With a name each is for the frontend's port of that name.
    pub ports: Vec<RedirectPort>,
    /// The pods themselves reach what is behind the frontend.
    pub skip_from_backend: bool,
}

/// What a [`LocalRedirect`] redirects.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum RedirectFrontend {
    /// An address. Without a backend the traffic goes to the address itself.
    Address {
        /// The address.
        address: IpAddr,
        /// Its ports.
        ports: Vec<RedirectPort>,
    },
    /// A Service of kind ClusterIP in the policy's namespace. Without a backend the Service's own are used.
    Service {
        /// The Service.
        name: ObjectName,
        /// Which of its ports; empty: all.
        ports: Vec<RedirectPort>,
    },
}

/// A port of a [`LocalRedirect`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct RedirectPort {
    /// Name, may be empty where there is one port.
    pub name: String,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Number.
    pub port: u16,
}

/// A port of the node that a container asks for (`hostPort`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HostPort {
    /// At which address of the node; `None`: at all.
    pub host_ip: Option<IpAddr>,
    /// Port of the node.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Port of the pod.
    pub container_port: u16,
}
