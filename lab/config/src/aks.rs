//! `weft cluster create`: the flags of `az aks create` that shape a network, by Azure's rules, and the cluster on this
//! machine that they amount to.

mod acns;

pub use acns::AcnsOptions;

use super::ipam::IpamMode;
use super::options::UpOptions;
use ipnet::IpNet;
use std::net::IpAddr;
use std::path::PathBuf;

/// Address ranges that a cluster's own must stay clear of.
const RESTRICTED: [&str; 4] = ["169.254.0.0/16", "172.30.0.0/16", "172.31.0.0/16", "192.0.2.0/24"];
/// Azure's defaults.
const POD_CIDRS: [&str; 2] = ["10.244.0.0/16", "fd12:3456:789a::/64"];
const SERVICE_CIDRS: [&str; 2] = ["10.0.0.0/16", "fd12:3456:789a:1::/108"];
/// What a node gets of an IPv6 pod CIDR.
const NODE_MASK_V6: u8 = 80;

/// Flags of `az aks create`.
#[derive(Clone, Default, PartialEq, Eq, Debug, clap::Args)]
pub struct CreateOptions {
    /// Name of the managed cluster
    #[arg(long, short)]
    pub name: String,
    /// Name of the resource group
    #[arg(long, short = 'g')]
    pub resource_group: String,
    /// Location
    #[arg(long, short)]
    pub location: Option<String>,
    /// Number of nodes [default: 3]
    #[arg(long, short = 'c', value_name = "N")]
    pub node_count: Option<u8>,
    /// Network plugin: azure
    #[arg(long, value_name = "PLUGIN")]
    pub network_plugin: Option<String>,
    /// Mode of the plugin: overlay or none
    #[arg(long, value_name = "MODE")]
    pub network_plugin_mode: Option<String>,
    /// Data plane: cilium or weft, which are the same here
    #[arg(long, value_name = "DATAPLANE")]
    pub network_dataplane: Option<String>,
    /// Network policy engine: cilium, weft or none
    #[arg(long, value_name = "POLICY")]
    pub network_policy: Option<String>,
    /// Address families: ipv4 or ipv4,ipv6
    #[arg(long, value_name = "LIST")]
    pub ip_families: Option<String>,
    /// Pods' addresses, with overlay
    #[arg(long, value_name = "CIDR")]
    pub pod_cidr: Option<String>,
    /// The same, one of each family, in the order of --ip-families
    #[arg(long, value_name = "CIDR,...")]
    pub pod_cidrs: Option<String>,
    /// Services' addresses
    #[arg(long, value_name = "CIDR")]
    pub service_cidr: Option<String>,
    /// The same, one of each family, in the order of --ip-families
    #[arg(long, value_name = "CIDR,...")]
    pub service_cidrs: Option<String>,
    /// Address of the cluster's DNS service
    #[arg(long, value_name = "ADDRESS")]
    pub dns_service_ip: Option<String>,
    /// Resource id of the nodes' subnet
    #[arg(long, value_name = "ID")]
    pub vnet_subnet_id: Option<String>,
    /// Resource id of the pods' subnet
    #[arg(long, value_name = "ID")]
    pub pod_subnet_id: Option<String>,
    /// How pods get addresses of that subnet: DynamicIndividual or StaticBlock
    #[arg(long, value_name = "MODE")]
    pub pod_ip_allocation_mode: Option<String>,
    /// Most pods of a node
    #[arg(long, short = 'm', value_name = "N")]
    pub max_pods: Option<u16>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would take it for the program's own description")]
    pub acns: AcnsOptions,
    /// Directory of the programs, if they are not beside this one
    #[arg(long, value_name = "DIR", env = "WEFT_BIN_DIR", hide = true)]
    pub bin_dir: Option<PathBuf>,
}

/// Pods' and services' addresses, and cluster DNS' if it was asked for.
struct Ranges {
    pods: Vec<IpNet>,
    services: Vec<IpNet>,
    dns: Option<IpAddr>,
}

/// A combination that Azure would not take.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(String);

fn refuse<T>(text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal(text.into()))
}

fn one_of(flag: &str, given: Option<&str>, allowed: &[&str]) -> Result<Option<String>, Refusal> {
    let Some(given) = given else { return Ok(None) };
    if allowed.iter().any(|value| value.eq_ignore_ascii_case(given)) {
        return Ok(Some(given.to_ascii_lowercase()));
    }
    refuse(format!("{flag}: '{given}' is not a valid value. Allowed values: {}.", allowed.join(", ")))
}

/// `/subscriptions/S/resourceGroups/G/providers/Microsoft.Network/virtualNetworks/V/subnets/N`: the network, and all.
fn subnet(flag: &str, id: &str) -> Result<String, Refusal> {
    let parts: Vec<&str> = id.split('/').collect();
    let keys = [
        (1, "subscriptions"),
        (3, "resourcegroups"),
        (5, "providers"),
        (6, "microsoft.network"),
        (7, "virtualnetworks"),
        (9, "subnets"),
    ];
    let fits = parts.len() == 11
        && parts[0].is_empty()
        && parts[1..].iter().all(|part| !part.is_empty())
        && keys.iter().all(|(at, key)| parts[*at].eq_ignore_ascii_case(key));
    if fits {
        Ok(parts[..9].join("/").to_ascii_lowercase())
    } else {
        refuse(format!("{flag} is not a valid Azure resource ID."))
    }
}

fn cidrs(flag: &str, one: Option<&str>, list: Option<&str>, dual: bool) -> Result<Option<Vec<IpNet>>, Refusal> {
    if one.is_some() && list.is_some() {
        return refuse(format!("{flag} and {flag}s are mutually exclusive."));
    }
    let Some(text) = one.or(list) else { return Ok(None) };
    let parse = |part: &str| match part.trim().parse::<IpNet>() {
        Ok(net) if net.trunc() == net => Ok(net),
        _ => refuse(format!("{flag}: '{part}' is not a valid CIDR.")),
    };
    let nets: Vec<IpNet> = text.split(',').map(parse).collect::<Result<_, _>>()?;
    let wanted = if one.is_some() { 1 } else { 1 + usize::from(dual) };
    let order = nets.iter().enumerate().all(|(n, net)| net.addr().is_ipv4() == (n == 0));
    if nets.len() > wanted || !order || (list.is_some() && nets.len() != wanted) {
        let families = if dual { "ipv4,ipv6" } else { "ipv4" };
        return refuse(format!("{flag}s must have one CIDR of each of --ip-families ({families}), in that order."));
    }
    Ok(Some(nets))
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

impl CreateOptions {
    /// Checks the combination and says which cluster it is on this machine.
    ///
    /// # Errors
    /// What Azure would refuse, and what is not there on one machine.
    pub fn check(&self) -> Result<UpOptions, Refusal> {
        let (ipam, dual) = self.shape()?;
        self.acns.check()?;
        let node_count = self.node_count.unwrap_or(3);
        if node_count == 0 {
            return refuse("--node-count must be at least 1: a cluster needs a system node pool.");
        }
        let max_pods = self.max_pods.unwrap_or(ipam.max_pods());
        let minimum = (u16::from(node_count) * 2 + 7).div_ceil(u16::from(node_count)).max(10);
        if max_pods < minimum {
            return refuse(format!(
                "--max-pods must be at least {minimum} for a managed Kubernetes cluster to function."
            ));
        }
        if max_pods > 250 {
            return refuse("--max-pods must be at most 250.");
        }
        let ranges = self.ranges(ipam, dual, node_count)?;
        let text = |nets: &[IpNet]| nets.iter().map(ToString::to_string).collect();
        Ok(UpOptions {
            name: self.name.clone(),
            nodes: Some(node_count),
            ip_families: Some(if dual { "ipv4,ipv6" } else { "ipv4" }.to_owned()),
            pod_cidr: text(&ranges.pods),
            service_cidr: text(&ranges.services),
            node_mask_v6: Some(NODE_MASK_V6),
            ipam: Some(ipam),
            max_pods: Some(max_pods),
            dns_service_ip: ranges.dns,
            bin_dir: self.bin_dir.clone(),
            ..UpOptions::default()
        })
    }

    /// Plugin, mode and subnets: which kind of addresses.
    fn shape(&self) -> Result<(IpamMode, bool), Refusal> {
        let plugin = one_of("--network-plugin", self.network_plugin.as_deref(), &["azure", "kubenet", "none"])?;
        let mode = one_of("--network-plugin-mode", self.network_plugin_mode.as_deref(), &["overlay", "none"])?;
        let dataplane = one_of("--network-dataplane", self.network_dataplane.as_deref(), &["azure", "cilium", "weft"])?;
        let policy =
            one_of("--network-policy", self.network_policy.as_deref(), &["azure", "calico", "cilium", "weft", "none"])?;
        let overlay = mode.as_deref() == Some("overlay");
        if plugin.is_none() {
            let shaped =
                [&self.pod_cidr, &self.pod_cidrs, &self.service_cidr, &self.service_cidrs, &self.dns_service_ip];
            if policy.is_some() || shaped.iter().any(|flag| flag.is_some()) {
                return refuse("Please explicitly specify the network plugin type");
            }
        }
        if overlay && plugin.as_deref() != Some("azure") {
            return refuse("--network-plugin-mode overlay requires --network-plugin azure.");
        }
        if matches!(dataplane.as_deref(), Some("cilium" | "weft")) && plugin.as_deref() != Some("azure") {
            return refuse("--network-dataplane cilium requires --network-plugin azure.");
        }
        if plugin.as_deref() != Some("azure") {
            return refuse("--network-plugin: this cluster's network is Weft: expected azure.");
        }
        if dataplane.as_deref() == Some("azure") {
            return refuse("--network-dataplane: this cluster's data plane is Weft: expected cilium or weft.");
        }
        if matches!(policy.as_deref(), Some("azure" | "calico")) {
            return refuse("Cilium dataplane requires network policy cilium.");
        }
        let dual = match self.ip_families.as_deref().map(|text| text.to_ascii_lowercase().replace(' ', "")).as_deref() {
            None | Some("ipv4") => false,
            Some("ipv4,ipv6") => true,
            Some(other) => {
                return refuse(format!("--ip-families: '{other}' is not supported. Allowed values: ipv4; ipv4,ipv6."));
            }
        };
        let nodes = self.vnet_subnet_id.as_deref().map(|id| subnet("--vnet-subnet-id", id)).transpose()?;
        let pods = self.pod_subnet_id.as_deref().map(|id| subnet("--pod-subnet-id", id)).transpose()?;
        let allocation = self.pod_ip_allocation_mode.as_deref();
        let allocation = one_of("--pod-ip-allocation-mode", allocation, &["DynamicIndividual", "StaticBlock"])?;
        if pods.is_none() && allocation.is_some() {
            return refuse("--pod-ip-allocation-mode requires --pod-subnet-id.");
        }
        if dual && !overlay {
            return refuse("--ip-families ipv4,ipv6 requires --network-plugin-mode overlay.");
        }
        let ipam = match (&pods, overlay) {
            (Some(_), true) => return refuse("--pod-subnet-id cannot be used with --network-plugin-mode overlay."),
            (Some(network), false) => {
                match &nodes {
                    None => return refuse("--pod-subnet-id requires --vnet-subnet-id."),
                    Some(other) if other != network => {
                        return refuse(
                            "--pod-subnet-id and --vnet-subnet-id must be subnets of the same virtual network.",
                        );
                    }
                    Some(_) if self.same_subnet() => {
                        return refuse("--pod-subnet-id and --vnet-subnet-id must be different subnets.");
                    }
                    Some(_) => {}
                }
                if allocation.as_deref() == Some("staticblock") {
                    IpamMode::PodSubnetBlock
                } else {
                    IpamMode::PodSubnet
                }
            }
            (None, true) => IpamMode::Overlay,
            (None, false) => IpamMode::NodeSubnet,
        };
        if ipam != IpamMode::Overlay && (self.pod_cidr.is_some() || self.pod_cidrs.is_some()) {
            return refuse(
                "Please specify network plugin mode `overlay` when using pod_cidr or use network plugin `kubenet`. \
                 For more information about Azure CNI Overlay please see https://aka.ms/aksoverlay",
            );
        }
        Ok((ipam, dual))
    }

    fn same_subnet(&self) -> bool {
        let lower = |id: &Option<String>| id.as_deref().map(str::to_ascii_lowercase);
        lower(&self.pod_subnet_id) == lower(&self.vnet_subnet_id)
    }

    /// Pods' and services' addresses, and that of cluster DNS.
    fn ranges(&self, ipam: IpamMode, dual: bool, nodes: u8) -> Result<Ranges, Refusal> {
        let defaults = |all: [&str; 2]| -> Vec<IpNet> {
            all.iter().take(1 + usize::from(dual)).filter_map(|text| text.parse().ok()).collect()
        };
        let pods = cidrs("--pod-cidr", self.pod_cidr.as_deref(), self.pod_cidrs.as_deref(), dual)?;
        let services = cidrs("--service-cidr", self.service_cidr.as_deref(), self.service_cidrs.as_deref(), dual)?;
        let complete = |given: Option<Vec<IpNet>>, all: [&str; 2]| {
            let (mut nets, defaults) = (given.unwrap_or_default(), defaults(all));
            let missing = defaults.into_iter().skip(nets.len());
            nets.extend(missing);
            nets
        };
        let (pods, services) = (complete(pods, POD_CIDRS), complete(services, SERVICE_CIDRS));
        for net in pods.iter().chain(&services) {
            let hit = RESTRICTED.iter().find(|text| text.parse::<IpNet>().is_ok_and(|other| overlap(&other, net)));
            if let Some(other) = hit {
                return refuse(format!(
                    "{net} overlaps {other}, which pods, services and virtual networks may not use."
                ));
            }
        }
        for service in &services {
            let (least, family) = if service.addr().is_ipv4() { (13, "IPv4") } else { (108, "IPv6") };
            if service.prefix_len() < least {
                return refuse(format!("--service-cidr: {service} is too large: an {family} one is /{least} at most."));
            }
            if let Some(pod) = pods.iter().find(|pod| overlap(pod, service)) {
                return refuse(format!("--service-cidr {service} overlaps --pod-cidr {pod}."));
            }
        }
        let dns = self.dns_service_ip.as_deref().map(|text| dns_address(text, &services[0])).transpose()?;
        if ipam == IpamMode::Overlay {
            let room = 1_u32 << (24_u8.saturating_sub(pods[0].prefix_len()).min(16));
            if pods[0].prefix_len() > 24 || room < u32::from(nodes) {
                return refuse(format!("--pod-cidr {} has no /24 for each of {nodes} nodes.", pods[0]));
            }
        }
        Ok(Ranges { pods, services, dns })
    }
}

fn dns_address(text: &str, services: &IpNet) -> Result<IpAddr, Refusal> {
    let Some(address) = text.parse::<IpAddr>().ok().filter(|address| services.contains(address)) else {
        return refuse(format!("--dns-service-ip {text} must be within --service-cidr {services}."));
    };
    // The first one is the API server's.
    if address == services.network() || Some(address) == services.hosts().next() {
        return refuse(format!("--dns-service-ip {text} must not be the first address of --service-cidr."));
    }
    Ok(address)
}

#[cfg(test)]
mod tests;
