//! The options of `weft up`, and the settings that they amount to once checked.

mod routes;

pub use routes::FabricRoute;

use crate::ipam::IpamMode;
use crate::paths::Paths;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use weft_settings::value::{one_of, within};

/// Prefix length of a node's IPv4 pod prefix.
pub const NODE_MASK_V4: u8 = 24;
/// Prefix length of a node's IPv6 pod prefix.
pub const NODE_MASK_V6: u8 = 64;
/// The most nodes that one machine's fabric has addresses for.
pub const NODES_MAX: u8 = 200;

/// The domain of the names of services and pods.
pub const DOMAIN: &str = "cluster.local";

/// The network of the node addresses.
pub const FABRIC_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(172, 31, 0, 0), 24);
/// The network of the node addresses.
pub const FABRIC_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd31, 0, 0, 0, 0, 0, 0, 0), 64);
/// The world outside.
pub const OUTSIDE_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 51, 100, 0), 24);
/// The world outside.
pub const OUTSIDE_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 0), 64);

/// Options of `weft up`. What is not given has a default, or stays as it is when the cluster exists.
#[derive(Clone, Default, PartialEq, Eq, Debug, clap::Args)]
pub struct UpOptions {
    /// Name of the cluster; any number of clusters run side by side
    #[arg(long, default_value = "weft", env = "WEFT_CLUSTER")]
    pub name: String,
    /// Number of nodes [default: 3]
    #[arg(long, value_name = "N", value_parser = within(1..=NODES_MAX))]
    pub nodes: Option<u8>,
    /// Address families of pods: ipv4,ipv6 or one of them [default: ipv4,ipv6]
    #[arg(long, value_name = "LIST")]
    pub ip_families: Option<String>,
    /// How pod packets travel between nodes: native or vxlan [default: native]
    #[arg(long, value_name = "MODE")]
    pub routing: Option<String>,
    /// Addresses for pods, /24 (IPv4) or /64 (IPv6) of it per node; repeatable [default: 10.244.0.0/16 and fd44::/48]
    #[arg(long, value_name = "CIDR")]
    pub pod_cidr: Vec<String>,
    /// Addresses for services; repeatable [default: 10.96.0.0/16 and fd96::/108]
    #[arg(long, value_name = "CIDR")]
    pub service_cidr: Vec<String>,
    /// How pods get their addresses, see docs/ipam.md [default: `cluster-pool`]
    #[arg(long, value_name = "MODE", value_parser = one_of(IpamMode::ALL))]
    pub ipam: Option<IpamMode>,
    /// Subnet of pods' addresses in the pod subnet modes; repeatable [default: 10.241.0.0/16 and fd45::/64]
    #[arg(long, value_name = "CIDR")]
    pub pod_subnet: Vec<String>,
    /// Prefix length of a node's share of an IPv6 pod CIDR [default: 64]
    #[arg(long, value_name = "BITS", hide = true, value_parser = within(48..=120_u8))]
    pub node_mask_v6: Option<u8>,
    /// Cluster DNS' address in the service range of its family [default: the tenth]
    #[arg(long, value_name = "ADDRESS", hide = true)]
    pub dns_service_ip: Option<IpAddr>,
    /// Pods on a node, at most [default: 250; 30 with azure-node-subnet]
    #[arg(long, value_name = "N", value_parser = within(1..=250_u16))]
    pub max_pods: Option<u16>,
    /// A prefix that the network routes to nodes, for load balancer addresses and externalIPs; connections are spread over
    /// all nodes of the prefix; repeatable
    #[arg(long, value_name = "CIDR=NODE[,NODE]")]
    pub fabric_route: Vec<String>,
    /// Nodes may send packets with any source address, as DSR requires [default: only their own and their pods']
    #[arg(long)]
    pub fabric_ip_forwarding: bool,
    /// How connections from outside reach backends on other nodes: snat, or dsr, which implies --fabric-ip-forwarding
    /// [default: snat]
    #[arg(long, value_name = "MODE")]
    pub node_port_mode: Option<String>,
    /// Zones, assigned to the nodes in turn as topology.kubernetes.io/zone
    #[arg(long, value_name = "LIST")]
    pub zones: Vec<String>,
    /// No cluster DNS: pods use the machine's name servers
    #[arg(long)]
    pub no_dns: bool,
    /// Upstream name server of cluster DNS for other domains, as ADDRESS or ADDRESS:PORT; repeatable
    #[arg(long, value_name = "SERVER")]
    pub dns_upstream: Vec<String>,
    /// A setting of the nodes' agents, such as policy-audit-mode=true; repeatable
    #[arg(long = "agent", value_name = "SETTING=VALUE")]
    pub agent: Vec<String>,
    /// Use the Kubernetes API server of this kubeconfig instead of the built-in one
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Directory of weft-lab, weft-agent, weft-operator and weft-cni, if they are not all in one place
    #[arg(long, value_name = "DIR", env = "WEFT_BIN_DIR", hide = true)]
    pub bin_dir: Option<PathBuf>,
}

/// How pod packets travel between nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Routing {
    /// The fabric knows the pod prefixes.
    Native,
    /// In VXLAN packets between node addresses.
    Vxlan,
}

impl Routing {
    /// As the options write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Vxlan => "vxlan",
        }
    }
}

/// Settings of a cluster, checked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Config {
    /// Its name.
    pub name: String,
    /// Number of nodes.
    pub nodes: u8,
    /// Uses IPv4.
    pub ipv4: bool,
    /// Uses IPv6.
    pub ipv6: bool,
    /// Between nodes.
    pub routing: Routing,
    /// For pods.
    pub pod_cidrs: Vec<IpNet>,
    /// For services.
    pub service_cidrs: Vec<IpNet>,
    /// Where pods get their addresses.
    #[serde(default)]
    pub ipam: IpamMode,
    /// Subnets of pods' addresses.
    #[serde(default)]
    pub pod_subnets: Vec<IpNet>,
    /// Prefix length of a node's share of an IPv6 pod CIDR.
    #[serde(default = "node_mask_v6_default")]
    pub node_mask_v6: u8,
    /// Most pods of a node.
    #[serde(default = "max_pods_default")]
    pub max_pods: u16,
    /// Settings of the agents beside those that the cluster gives them.
    #[serde(default)]
    pub agent: BTreeMap<String, String>,
    /// Prefixes that the fabric takes to nodes.
    #[serde(default)]
    pub fabric_routes: Vec<FabricRoute>,
    /// Nodes may send with any source.
    #[serde(default)]
    pub ip_forwarding: bool,
    /// Zones, given to the nodes in turn.
    #[serde(default)]
    pub zones: Vec<String>,
    /// Has cluster DNS.
    #[serde(default)]
    pub dns: bool,
    /// Its address in the service range of the address's family; `None`: the tenth.
    #[serde(default)]
    pub dns_service_ip: Option<IpAddr>,
    /// Name servers for what is not of this cluster.
    #[serde(default)]
    pub dns_upstreams: Vec<SocketAddr>,
    /// Another API server.
    pub kubeconfig: Option<PathBuf>,
    /// Port on 127.0.0.1 of the built-in API server.
    pub port: u16,
    /// Directory of the programs.
    pub bin_dir: PathBuf,
}

const fn node_mask_v6_default() -> u8 {
    NODE_MASK_V6
}

const fn max_pods_default() -> u16 {
    IpamMode::ClusterPool.max_pods()
}

/// A wrong option: which one, what was given, what was expected.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("--{option} {given}: {expected}")]
pub struct OptionError {
    /// Without the dashes.
    pub option: &'static str,
    /// As given.
    pub given: String,
    /// What was expected.
    pub expected: String,
}

pub(crate) fn wrong(option: &'static str, given: impl ToString, expected: impl Into<String>) -> OptionError {
    OptionError { option, given: given.to_string(), expected: expected.into() }
}

/// Checks a cluster's name.
///
/// # Errors
/// What a name looks like.
pub fn check_name(name: &str) -> Result<(), OptionError> {
    if weft_api::cluster::is_name(name) { Ok(()) } else { Err(wrong("name", name, weft_api::cluster::NAME_EXPECTED)) }
}

impl UpOptions {
    /// Checks everything and fills in the defaults.
    ///
    /// # Errors
    /// The first option that is wrong.
    pub fn check(&self) -> Result<Config, OptionError> {
        check_name(&self.name)?;
        let nodes = self.nodes.unwrap_or(3);
        if !(1..=NODES_MAX).contains(&nodes) {
            return Err(wrong("nodes", nodes, format!("expected 1 to {NODES_MAX}")));
        }
        let (ipv4, ipv6) = parse_families(self.ip_families.as_deref().unwrap_or("ipv4,ipv6"))?;
        let routing = match self.routing.as_deref() {
            None | Some("native") => Routing::Native,
            Some("vxlan") => Routing::Vxlan,
            Some(other) => return Err(wrong("routing", other, "expected native or vxlan")),
        };
        let families = (ipv4, ipv6);
        let pod_cidrs = parse_cidrs("pod-cidr", &self.pod_cidr, families, ["10.244.0.0/16", "fd44::/48"])?;
        let service_cidrs = parse_cidrs("service-cidr", &self.service_cidr, families, ["10.96.0.0/16", "fd96::/108"])?;
        let ipam = self.ipam.unwrap_or_default();
        if ipam.native_only() && routing == Routing::Vxlan {
            return Err(wrong("routing", "vxlan", format!("expected native with --ipam {}", ipam.name())));
        }
        let max_pods = self.max_pods.unwrap_or(ipam.max_pods());
        if !(1..=250).contains(&max_pods) {
            return Err(wrong("max-pods", max_pods, "expected 1 to 250"));
        }
        let pod_subnets = match (ipam.routable(), self.pod_subnet.first()) {
            (true, _) => parse_cidrs("pod-subnet", &self.pod_subnet, families, ["10.241.0.0/16", "fd45::/64"])?,
            (false, Some(given)) => {
                return Err(wrong("pod-subnet", given, "expected --ipam azure-pod-subnet or azure-pod-subnet-block"));
            }
            (false, None) => Vec::new(),
        };
        // Each node gets a block of it.
        let short = |net: &&IpNet| ipam == IpamMode::PodSubnet && net.addr().is_ipv6() && net.prefix_len() > 79;
        if let Some(net) = pod_subnets.iter().find(short) {
            return Err(wrong("pod-subnet", net, "expected /79 or shorter"));
        }
        check_node_subnet(ipam, nodes, max_pods, ipv4)?;
        let node_mask_v6 = self.node_mask_v6.unwrap_or(NODE_MASK_V6);
        if !(48..=120).contains(&node_mask_v6) {
            return Err(wrong("node-mask-v6", node_mask_v6, "expected 48 to 120"));
        }
        check_capacity(&pod_cidrs, nodes, families, node_mask_v6)?;
        check_overlaps(&[pod_cidrs.clone(), pod_subnets.clone()].concat(), &service_cidrs)?;
        if let Some(file) = &self.kubeconfig
            && !file.is_file()
        {
            return Err(wrong("kubeconfig", file.display(), "expected an existing file"));
        }
        let kubeconfig = match &self.kubeconfig {
            Some(file) => {
                Some(std::path::absolute(file).map_err(|e| wrong("kubeconfig", file.display(), e.to_string()))?)
            }
            None => None,
        };
        let bin_dir = self.bin_dir.clone().unwrap_or_default();
        let name = self.name.clone();
        let mut agent = parse_agent(&self.agent)?;
        match self.node_port_mode.as_deref() {
            None => {}
            Some(mode @ ("snat" | "dsr")) => {
                agent.insert("node-port-mode".to_owned(), mode.to_owned());
            }
            Some(other) => return Err(wrong("node-port-mode", other, "expected snat or dsr")),
        }
        let direct = agent.get("node-port-mode").is_some_and(|mode| mode == "dsr");
        if let Some(address) = self.dns_service_ip {
            let api = service_cidrs.first().and_then(|range| nth_address(range, API_ADDRESS));
            if !service_cidrs.iter().any(|range| range.contains(&address)) || Some(address) == api {
                return Err(wrong("dns-service-ip", address, "expected an address of --service-cidr, not its first"));
            }
        }
        let mut config = Config {
            name,
            nodes,
            ipv4,
            ipv6,
            routing,
            pod_cidrs,
            service_cidrs,
            ipam,
            pod_subnets,
            node_mask_v6,
            max_pods,
            agent,
            fabric_routes: Vec::new(),
            ip_forwarding: self.fabric_ip_forwarding || direct,
            zones: routes::parse_zones(&self.zones)?,
            // Somebody else's cluster has its own.
            dns: !self.no_dns && self.kubeconfig.is_none(),
            dns_service_ip: self.dns_service_ip,
            dns_upstreams: parse_upstreams(&self.dns_upstream)?,
            kubeconfig,
            port: 0,
            bin_dir,
        };
        config.fabric_routes = routes::parse_routes(&self.fabric_route, &config)?;
        Ok(config)
    }

    /// The first option that was given and differs from what an existing cluster has.
    #[must_use]
    pub fn conflict(&self, existing: &Config, wanted: &Config) -> Option<OptionError> {
        let differs = |option, given: String, has: String| {
            wrong(option, given, format!("cluster {} exists with {has}; `weft down` removes it", existing.name))
        };
        let list = |nets: &[IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        if self.nodes.is_some() && wanted.nodes != existing.nodes {
            return Some(differs("nodes", wanted.nodes.to_string(), existing.nodes.to_string()));
        }
        if let Some(given) = &self.ip_families
            && (wanted.ipv4, wanted.ipv6) != (existing.ipv4, existing.ipv6)
        {
            return Some(differs("ip-families", given.clone(), existing.families()));
        }
        if self.routing.is_some() && wanted.routing != existing.routing {
            return Some(differs("routing", wanted.routing.name().into(), existing.routing.name().into()));
        }
        if !self.pod_cidr.is_empty() && wanted.pod_cidrs != existing.pod_cidrs {
            return Some(differs("pod-cidr", list(&wanted.pod_cidrs), list(&existing.pod_cidrs)));
        }
        if !self.service_cidr.is_empty() && wanted.service_cidrs != existing.service_cidrs {
            return Some(differs("service-cidr", list(&wanted.service_cidrs), list(&existing.service_cidrs)));
        }
        if self.ipam.is_some() && wanted.ipam != existing.ipam {
            return Some(differs("ipam", wanted.ipam.name().into(), existing.ipam.name().into()));
        }
        if !self.pod_subnet.is_empty() && wanted.pod_subnets != existing.pod_subnets {
            return Some(differs("pod-subnet", list(&wanted.pod_subnets), list(&existing.pod_subnets)));
        }
        if let Some(address) = self.dns_service_ip.filter(|address| existing.dns_service_ip != Some(*address)) {
            let has = existing.dns_addresses().iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            return Some(differs("dns-service-ip", address.to_string(), has));
        }
        if self.max_pods.is_some() && wanted.max_pods != existing.max_pods {
            return Some(differs("max-pods", wanted.max_pods.to_string(), existing.max_pods.to_string()));
        }
        if (!self.agent.is_empty() || self.node_port_mode.is_some()) && wanted.agent != existing.agent {
            let text = |settings: &BTreeMap<String, String>| {
                settings.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
            };
            return Some(differs("agent", text(&wanted.agent), format!("{:?}", text(&existing.agent))));
        }
        let routes =
            |config: &Config| config.fabric_routes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        if !self.fabric_route.is_empty() && wanted.fabric_routes != existing.fabric_routes {
            return Some(differs("fabric-route", routes(wanted), format!("{:?}", routes(existing))));
        }
        if wanted.ip_forwarding && !existing.ip_forwarding {
            return Some(differs("fabric-ip-forwarding", "true".into(), "false".into()));
        }
        if !self.zones.is_empty() && wanted.zones != existing.zones {
            return Some(differs("zones", wanted.zones.join(","), format!("{:?}", existing.zones.join(","))));
        }
        if self.no_dns && existing.dns {
            return Some(differs("no-dns", "true".into(), "cluster DNS".into()));
        }
        if !self.dns_upstream.is_empty() && wanted.dns_upstreams != existing.dns_upstreams {
            let text = |servers: &[SocketAddr]| servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            let has = format!("{:?}", text(&existing.dns_upstreams));
            return Some(differs("dns-upstream", text(&wanted.dns_upstreams), has));
        }
        if let Some(given) = &wanted.kubeconfig
            && existing.kubeconfig.as_ref() != Some(given)
        {
            return Some(differs("kubeconfig", given.display().to_string(), "another API server".into()));
        }
        None
    }
}

impl Config {
    /// Names of the nodes.
    #[must_use]
    pub fn node_names(&self) -> Vec<String> {
        (1..=self.nodes).map(super::paths::node_name).collect()
    }

    /// Connections at the edge pass through the nodes at their devices.
    #[must_use]
    pub fn accelerates(&self) -> bool {
        self.agent.get("node-port-acceleration").is_some_and(|how| how != "disabled")
    }

    /// As `--ip-families` writes it.
    #[must_use]
    pub fn families(&self) -> String {
        [(self.ipv4, "ipv4"), (self.ipv6, "ipv6")]
            .iter()
            .filter_map(|(on, name)| on.then_some(*name))
            .collect::<Vec<_>>()
            .join(",")
    }

    /// Addresses of the nth node, counting from 1.
    #[must_use]
    pub fn node_addresses(&self, number: u8) -> Vec<IpAddr> {
        self.fabric_addresses(10 + u16::from(number))
    }

    /// Addresses of the fabric, which is every node's gateway.
    #[must_use]
    pub fn gateways(&self) -> Vec<IpAddr> {
        self.fabric_addresses(1)
    }

    fn fabric_addresses(&self, host: u16) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        if self.ipv4 {
            let base = u32::from(FABRIC_V4.network());
            addresses.push(IpAddr::V4(Ipv4Addr::from(base + u32::from(host))));
        }
        if self.ipv6 {
            // Written as people read it: node 1 is fd31::11 beside 172.31.0.11.
            let digits = u16::from_str_radix(&host.to_string(), 16).unwrap_or(host);
            addresses.push(IpAddr::V6(Ipv6Addr::new(0xfd31, 0, 0, 0, 0, 0, 0, digits)));
        }
        addresses
    }

    /// Addresses of the world's only host.
    #[must_use]
    pub fn outside_addresses(&self) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        if self.ipv4 {
            addresses.push(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10)));
        }
        if self.ipv6 {
            addresses.push(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 0x10)));
        }
        addresses
    }

    /// Where pods ask for names: the tenth address of each service range, unless told. None without cluster DNS.
    #[must_use]
    pub fn dns_addresses(&self) -> Vec<IpAddr> {
        let ranges = self.service_cidrs.iter().filter(|_| self.dns);
        let told = |range: &IpNet| self.dns_service_ip.filter(|address| range.contains(address));
        ranges.filter_map(|range| told(range).or_else(|| nth_address(range, DNS_ADDRESS))).collect()
    }

    /// Where pods find the API server: the first address of the first service range. None if it is somebody else's.
    #[must_use]
    pub fn api_address(&self) -> Option<IpAddr> {
        let range = self.service_cidrs.first().filter(|_| self.kubeconfig.is_none())?;
        nth_address(range, API_ADDRESS)
    }

    /// Places.
    #[must_use]
    pub fn paths(&self) -> Paths {
        Paths::new(&self.name)
    }
}

/// Which address of the first service range is the API server's.
pub const API_ADDRESS: u32 = 1;
/// Which address of each service range is cluster DNS'.
pub const DNS_ADDRESS: u32 = 10;

/// The nth address of a range, counting from the one that names the range.
#[must_use]
pub fn nth_address(range: &IpNet, nth: u32) -> Option<IpAddr> {
    let address = match range.network() {
        IpAddr::V4(base) => IpAddr::from(Ipv4Addr::from(u32::from(base).checked_add(nth)?)),
        IpAddr::V6(base) => IpAddr::from(Ipv6Addr::from(u128::from(base).checked_add(u128::from(nth))?)),
    };
    range.contains(&address).then_some(address)
}

fn parse_agent(given: &[String]) -> Result<BTreeMap<String, String>, OptionError> {
    let mut settings = BTreeMap::new();
    for text in given {
        let named = |key: &str| key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        let Some((key, value)) =
            text.split_once('=').filter(|(key, _)| key.starts_with(|c: char| c.is_ascii_lowercase()) && named(key))
        else {
            return Err(wrong("agent", text, "expected SETTING=VALUE, such as policy-audit-mode=true"));
        };
        settings.insert(key.to_owned(), value.to_owned());
    }
    Ok(settings)
}

fn parse_upstreams(given: &[String]) -> Result<Vec<SocketAddr>, OptionError> {
    let parse = |text: &String| {
        let plain = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53));
        plain.or_else(|_| text.parse()).map_err(|_| wrong("dns-upstream", text, "expected ADDRESS or ADDRESS:PORT"))
    };
    given.iter().map(parse).collect()
}

fn parse_families(given: &str) -> Result<(bool, bool), OptionError> {
    let mut families = (false, false);
    for family in given.split(',') {
        match family.trim().to_ascii_lowercase().as_str() {
            "ipv4" => families.0 = true,
            "ipv6" => families.1 = true,
            _ => return Err(wrong("ip-families", given, "expected ipv4, ipv6 or ipv4,ipv6")),
        }
    }
    Ok(families)
}

fn parse_cidrs(
    option: &'static str,
    given: &[String],
    (ipv4, ipv6): (bool, bool),
    defaults: [&str; 2],
) -> Result<Vec<IpNet>, OptionError> {
    let mut nets: Vec<IpNet> = Vec::new();
    for text in given.iter().flat_map(|g| g.split(',')).map(str::trim) {
        let net: IpNet = text
            .parse()
            .map_err(|_| wrong(option, text, "expected address/length, such as 10.244.0.0/16 or fd44::/48"))?;
        if net.addr() != net.network() {
            return Err(wrong(option, text, format!("has bits behind its length; expected {}", net.trunc())));
        }
        let (on, family) = if net.addr().is_ipv4() { (ipv4, "IPv4") } else { (ipv6, "IPv6") };
        if !on {
            return Err(wrong(option, text, format!("is {family}, which --ip-families leaves out")));
        }
        if let Some(other) = nets.iter().find(|n| overlap(n, &net)) {
            return Err(wrong(option, text, format!("overlaps with --{option} {other}")));
        }
        nets.push(net);
    }
    for (default, on, v4) in [(defaults[0], ipv4, true), (defaults[1], ipv6, false)] {
        if on && !nets.iter().any(|n| n.addr().is_ipv4() == v4) {
            nets.push(default.parse().expect("the defaults are prefixes"));
        }
    }
    nets.sort_by_key(|n| n.addr().is_ipv6());
    Ok(nets)
}

fn check_capacity(pods: &[IpNet], nodes: u8, (ipv4, ipv6): (bool, bool), mask_v6: u8) -> Result<(), OptionError> {
    for (on, v4, mask) in [(ipv4, true, NODE_MASK_V4), (ipv6, false, mask_v6)] {
        let of_family: Vec<_> = pods.iter().filter(|n| on && n.addr().is_ipv4() == v4).collect();
        let Some(first) = of_family.first() else { continue };
        let blocks = |net: &IpNet| match mask.checked_sub(net.prefix_len()) {
            Some(bits) => 1_u64 << bits.min(32),
            None => 0,
        };
        let room: u64 = of_family.iter().map(|n| blocks(n)).sum();
        if room < u64::from(nodes) {
            let why = format!("has room for {room} nodes (/{mask} each), expected at least {nodes}");
            return Err(wrong("pod-cidr", first, why));
        }
    }
    Ok(())
}

/// Addresses of the nodes' subnet that nobody else has.
fn check_node_subnet(ipam: IpamMode, nodes: u8, max_pods: u16, ipv4: bool) -> Result<(), OptionError> {
    // Five are the network's own; nodes are numbered from 11 on.
    let room = 256 - 5;
    let wanted = u32::from(nodes) * (u32::from(max_pods) + 1);
    if ipam != IpamMode::NodeSubnet || !ipv4 || wanted <= room {
        return Ok(());
    }
    let each = u32::from(max_pods) + 1;
    let expected = format!("{nodes} nodes take {each} addresses each of {FABRIC_V4}, which has {room}");
    Err(wrong("max-pods", max_pods, expected))
}

fn check_overlaps(pods: &[IpNet], services: &[IpNet]) -> Result<(), OptionError> {
    let fabric = [
        (IpNet::V4(FABRIC_V4), "the nodes' network"),
        (IpNet::V6(FABRIC_V6), "the nodes' network"),
        (IpNet::V4(OUTSIDE_V4), "the network that stands for the outside"),
        (IpNet::V6(OUTSIDE_V6), "the network that stands for the outside"),
        (IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16)), "the link-local addresses"),
        (IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)), "the loopback addresses"),
        (IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10)), "the link-local addresses"),
    ];
    for (option, nets) in [("pod-cidr", pods), ("service-cidr", services)] {
        for net in nets {
            if let Some((other, what)) = fabric.iter().find(|(other, _)| overlap(other, net)) {
                return Err(wrong(option, net, format!("overlaps with {other}, {what}")));
            }
        }
    }
    for net in services {
        if let Some(pod) = pods.iter().find(|p| overlap(p, net)) {
            return Err(wrong("service-cidr", net, format!("overlaps with --pod-cidr {pod}")));
        }
    }
    Ok(())
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

#[cfg(test)]
mod tests;
