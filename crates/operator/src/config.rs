//! Settings: from a file, the environment and flags; a flag beats the environment, which beats the file.

use anyhow::{Context, bail};
use clap::Parser;
use ipnet::IpNet;
use serde::Deserialize;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;
use weft_control::pack::Rate;
use weft_k8s::convert::Settings;
use weft_k8s::endpoint::Propagation;

/// Weft's operator: gives nodes their pod CIDRs and cleans up after nodes that are gone.
#[derive(Parser, Clone, Debug, Default, Deserialize)]
#[command(name = "weft-operator", version)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Flags {
    /// Settings, as YAML; keys are the flags' names without the dashes in front.
    #[arg(long, env = "WEFT_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// How to reach the API server [default: the service account of the pod it runs in].
    #[arg(long, env = "WEFT_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Pools of pod addresses, at least one prefix for each family in use. Add only at the end
    /// [default: 10.244.0.0/16,fd44::/48].
    #[arg(long, env = "WEFT_POD_CIDR", value_name = "CIDR,...", value_delimiter = ',')]
    pub pod_cidr: Option<Vec<IpNet>>,
    /// Prefix length of a node's share of an IPv4 pool [default: 24].
    #[arg(long, env = "WEFT_NODE_MASK_V4", value_name = "BITS")]
    pub node_mask_v4: Option<u8>,
    /// Prefix length of a node's share of an IPv6 pool [default: 64].
    #[arg(long, env = "WEFT_NODE_MASK_V6", value_name = "BITS")]
    pub node_mask_v6: Option<u8>,
    /// Where pods get their addresses, as the agents': cluster-pool, kubernetes, multi-pool, azure-overlay,
    /// azure-pod-subnet, azure-pod-subnet-block, azure-node-subnet or delegated [default: cluster-pool].
    #[arg(long, env = "WEFT_IPAM", value_name = "MODE")]
    pub ipam: Option<String>,
    /// Who assigns addresses to nodes in the azure modes: azure, or unix:FILE (the socket of a cluster on one machine)
    /// [default: azure].
    #[arg(long, env = "WEFT_CLOUD", value_name = "CLOUD")]
    pub cloud: Option<String>,
    /// Resource id of the subnet of pod addresses, for the pod subnet modes on azure.
    #[arg(long, env = "WEFT_POD_SUBNET_ID", value_name = "ID")]
    pub pod_subnet_id: Option<String>,
    /// Client id of the managed identity to use on azure, if the machine has several.
    #[arg(long, env = "WEFT_AZURE_CLIENT_ID", value_name = "ID")]
    pub azure_client_id: Option<String>,
    /// Where the Lease is kept by which operators agree who leads [default: kube-system].
    #[arg(long, env = "WEFT_LEASE_NAMESPACE", value_name = "NAMESPACE")]
    pub lease_namespace: Option<String>,
    /// After how many seconds without a sign of life another operator takes over [default: 15].
    #[arg(long, env = "WEFT_LEASE_SECONDS", value_name = "SECONDS")]
    pub lease_seconds: Option<u64>,
    /// Create the custom resource definitions that the cluster lacks [default: true].
    #[arg(long, env = "WEFT_INSTALL_CRDS", value_name = "BOOL")]
    pub install_crds: Option<bool>,
    /// Seconds between two rounds of housekeeping; 0: none at all [default: 300].
    #[arg(long, env = "WEFT_GC_SECONDS", value_name = "SECONDS")]
    pub gc_seconds: Option<u64>,
    /// How many seconds a node must be gone before what it wrote is deleted [default: 60].
    #[arg(long, env = "WEFT_NODE_GRACE_SECONDS", value_name = "SECONDS")]
    pub node_grace_seconds: Option<u64>,
    /// How many seconds an identity must be unused before it is deleted; 0: never [default: 1800].
    #[arg(long, env = "WEFT_IDENTITY_GRACE_SECONDS", value_name = "SECONDS")]
    pub identity_grace_seconds: Option<u64>,
    /// How endpoints become known to other nodes: set it as the agents'. With `ces-operator` this operator makes slices
    /// of CiliumEndpoints; it does so as well while any agent says that it reads them [default: ces-node].
    #[arg(long, env = "WEFT_ENDPOINT_PROPAGATION", value_name = "MODE")]
    pub endpoint_propagation: Option<String>,
    /// CiliumEndpoints in one slice, at most [default: 100].
    #[arg(long, env = "WEFT_CES_ENDPOINTS_MAX", value_name = "COUNT")]
    pub ces_endpoints_max: Option<usize>,
    /// How long changes to a slice gather before it is written, in milliseconds [default: 500].
    #[arg(long, env = "WEFT_CES_DELAY_MS", value_name = "MILLISECONDS")]
    pub ces_delay_ms: Option<u64>,
    /// How fast slices are written, in steps by the number of nodes, as JSON
    /// [default: [{"nodes":0,"limit":10,"burst":20}]].
    #[arg(long, env = "WEFT_CES_RATE_LIMITS", value_name = "JSON")]
    pub ces_rate_limits: Option<String>,
    /// Address to serve `/metrics` and `/healthz` on, such as 127.0.0.1:9963 [default: not served].
    #[arg(long, env = "WEFT_METRICS_ADDRESS", value_name = "ADDRESS:PORT")]
    pub metrics_address: Option<SocketAddr>,
    /// Take policies on nodes (nodeSelector) for valid: set it as the agents' [default: true].
    #[arg(long, env = "WEFT_HOST_FIREWALL", value_name = "BOOL")]
    pub host_firewall: Option<bool>,
    /// Ports that Services may have at the nodes' addresses: set it as the agents' [default: 30000-32767].
    #[arg(long, env = "WEFT_NODE_PORT_RANGE", value_name = "FIRST-LAST")]
    pub node_port_range: Option<String>,
    /// Take protocols without ports, such as VRRP, in policies for valid: set it as the agents' [default: false].
    #[arg(long, env = "WEFT_EXTENDED_PROTOCOLS", value_name = "BOOL")]
    pub extended_protocols: Option<bool>,
}

/// Where pods get their addresses, as far as the operator has to do with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Nodes' pod CIDRs.
    ClusterPool,
    /// Somebody else's work.
    Elsewhere,
    /// Prefixes of CiliumPodIPPools.
    MultiPool,
    /// A cloud assigns blocks of these lengths (IPv4, IPv6).
    Cloud {
        /// IPv4.
        v4: u8,
        /// IPv6.
        v6: u8,
    },
}

/// Who assigns.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CloudKind {
    /// Azure Resource Manager.
    Azure {
        /// Resource id of the subnet for pods; `None`: the interface's own.
        subnet: Option<String>,
        /// Which identity.
        client_id: Option<String>,
    },
    /// The network of a cluster on one machine.
    Unix(PathBuf),
}

/// Settings, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// How to reach the API server; `None`: from within a pod.
    pub kubeconfig: Option<PathBuf>,
    /// Pools.
    pub pod_cidrs: Vec<IpNet>,
    /// Length of a node's IPv4 prefix.
    pub node_mask_v4: u8,
    /// Length of a node's IPv6 prefix.
    pub node_mask_v6: u8,
    /// Where pods get their addresses.
    pub mode: Mode,
    /// Who assigns them, in the cloud modes.
    pub cloud: CloudKind,
    /// Namespace of the Lease.
    pub lease_namespace: String,
    /// How long a Lease lasts without renewal.
    pub lease_duration: Duration,
    /// Whether missing definitions are created.
    pub install_crds: bool,
    /// Between two rounds of housekeeping; `None`: no housekeeping.
    pub gc_interval: Option<Duration>,
    /// How long a node must be gone.
    pub node_grace: Duration,
    /// How long an identity must be unused; `None`: identities stay.
    pub identity_grace: Option<Duration>,
    /// Ports that Services may have at the nodes' addresses.
    pub node_ports: RangeInclusive<u16>,
    /// How slices are made of CiliumEndpoints.
    pub slices: Slices,
    /// Where metrics and health are served, if anywhere.
    pub metrics_address: Option<SocketAddr>,
    /// What is valid in policies.
    pub policies: Settings,
}

/// How slices are made of CiliumEndpoints.
#[derive(Clone, Debug, PartialEq)]
pub struct Slices {
    /// How endpoints become known.
    pub mode: Propagation,
    /// Endpoints in a slice, at most.
    pub endpoints_max: usize,
    /// How long changes gather.
    pub delay: Duration,
    /// From how many nodes on which rate holds, ascending.
    pub rates: Vec<(usize, Rate)>,
}

impl Slices {
    /// The rate for a cluster of so many nodes.
    #[must_use]
    pub fn rate(&self, nodes: usize) -> Rate {
        let steps = self.rates.iter().rev().find(|(from, _)| *from <= nodes);
        steps.or(self.rates.first()).map_or(RATE, |(_, rate)| *rate)
    }
}

/// The rate where nothing else is said.
const RATE: Rate = Rate { limit: 10.0, burst: 20 };

impl Config {
    /// Reads the file, if one is named, under the flags and the environment.
    ///
    /// # Errors
    /// A file that cannot be read or has unknown keys; a value that makes no sense.
    pub fn read(flags: Flags) -> anyhow::Result<Self> {
        let file = match &flags.config {
            None => Flags::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("--config {}", path.display()))?;
                parse(&text).with_context(|| format!("--config {}", path.display()))?
            }
        };
        Self::merge(flags, file)
    }

    fn merge(flags: Flags, file: Flags) -> anyhow::Result<Self> {
        let pools = || vec!["10.244.0.0/16".parse(), "fd44::/48".parse()].into_iter().flatten().collect();
        let seconds = |value: u64| Duration::from_secs(value);
        let some = |value: u64| (value > 0).then(|| seconds(value));
        let lease = flags.lease_seconds.or(file.lease_seconds).unwrap_or(15);
        if lease < 3 {
            bail!("lease-seconds: {lease}, expected at least 3");
        }
        let pod_cidrs: Vec<IpNet> = flags.pod_cidr.or(file.pod_cidr).unwrap_or_else(pools);
        if pod_cidrs.is_empty() {
            bail!("pod-cidr: expected at least one prefix, such as 10.244.0.0/16");
        }
        let (node_mask_v4, node_mask_v6) = (
            flags.node_mask_v4.or(file.node_mask_v4).unwrap_or(24),
            flags.node_mask_v6.or(file.node_mask_v6).unwrap_or(64),
        );
        let ipam = flags.ipam.or(file.ipam).unwrap_or_else(|| "cluster-pool".to_owned());
        let mode = match ipam.as_str() {
            "cluster-pool" => Mode::ClusterPool,
            "kubernetes" | "delegated" => Mode::Elsewhere,
            "multi-pool" => Mode::MultiPool,
            "azure-overlay" => Mode::Cloud { v4: node_mask_v4, v6: node_mask_v6 },
            // An interface has 256 configurations, those of both families together: of IPv6 one block does for all pods.
            "azure-pod-subnet" => Mode::Cloud { v4: 32, v6: 80 },
            "azure-node-subnet" => Mode::Cloud { v4: 32, v6: 128 },
            "azure-pod-subnet-block" => Mode::Cloud { v4: 28, v6: 124 },
            other => bail!(
                "ipam: {other:?}, expected cluster-pool, kubernetes, multi-pool, azure-overlay, azure-pod-subnet, \
                 azure-pod-subnet-block, azure-node-subnet or delegated"
            ),
        };
        let subnet = flags.pod_subnet_id.or(file.pod_subnet_id).filter(|id| !id.is_empty());
        let client_id = flags.azure_client_id.or(file.azure_client_id).filter(|id| !id.is_empty());
        let cloud = match flags.cloud.or(file.cloud).as_deref() {
            None | Some("azure") => CloudKind::Azure { subnet, client_id },
            Some(other) => match other.strip_prefix("unix:").filter(|path| path.starts_with('/')) {
                Some(path) => CloudKind::Unix(path.into()),
                None => bail!("cloud: {other:?}, expected azure or unix: and the absolute path of a socket"),
            },
        };
        if ipam == "azure-overlay" && matches!(cloud, CloudKind::Azure { .. }) {
            bail!(
                "ipam: azure-overlay: Resource Manager has no overlay prefixes to assign; expected the cloud to be \
                 unix:FILE, or ipam cluster-pool with vxlan routing"
            );
        }
        if ipam == "azure-node-subnet" && matches!(cloud, CloudKind::Azure { subnet: Some(_), .. }) {
            bail!("pod-subnet-id: expected none with ipam azure-node-subnet: pods get addresses of the nodes' own");
        }
        let pod_subnet = matches!(ipam.as_str(), "azure-pod-subnet" | "azure-pod-subnet-block");
        if pod_subnet && matches!(cloud, CloudKind::Azure { subnet: None, .. }) {
            bail!("pod-subnet-id: expected the resource id of the subnet for pods, with ipam {ipam}");
        }
        Ok(Self {
            mode,
            cloud,
            kubeconfig: flags.kubeconfig.or(file.kubeconfig),
            pod_cidrs,
            node_mask_v4,
            node_mask_v6,
            lease_namespace: flags.lease_namespace.or(file.lease_namespace).unwrap_or_else(|| "kube-system".to_owned()),
            lease_duration: seconds(lease),
            install_crds: flags.install_crds.or(file.install_crds).unwrap_or(true),
            gc_interval: some(flags.gc_seconds.or(file.gc_seconds).unwrap_or(300)),
            node_grace: seconds(flags.node_grace_seconds.or(file.node_grace_seconds).unwrap_or(60)),
            identity_grace: some(flags.identity_grace_seconds.or(file.identity_grace_seconds).unwrap_or(1800)),
            node_ports: ports(flags.node_port_range.or(file.node_port_range).as_deref().unwrap_or("30000-32767"))?,
            slices: Slices {
                mode: match flags.endpoint_propagation.or(file.endpoint_propagation) {
                    None => Propagation::default(),
                    Some(text) => Propagation::read(&text).with_context(|| {
                        format!("endpoint-propagation: expected `cep`, `ces-operator` or `ces-node`, found {text}")
                    })?,
                },
                endpoints_max: match flags.ces_endpoints_max.or(file.ces_endpoints_max).unwrap_or(100) {
                    found @ (0 | 1001..) => bail!("ces-endpoints-max: expected 1 to 1000, found {found}"),
                    max => max,
                },
                delay: Duration::from_millis(flags.ces_delay_ms.or(file.ces_delay_ms).unwrap_or(500)),
                rates: rates(flags.ces_rate_limits.or(file.ces_rate_limits).as_deref())?,
            },
            metrics_address: flags.metrics_address.or(file.metrics_address),
            policies: Settings {
                host_firewall: flags.host_firewall.or(file.host_firewall).unwrap_or(true),
                extended_protocols: flags.extended_protocols.or(file.extended_protocols).unwrap_or(false),
                ..Settings::default()
            },
        })
    }
}

fn ports(text: &str) -> anyhow::Result<RangeInclusive<u16>> {
    let range = text.split_once('-').and_then(|(first, last)| Some(first.parse().ok()?..=last.parse().ok()?));
    let range = range.filter(|range: &RangeInclusive<u16>| !range.is_empty() && *range.start() > 0);
    range.with_context(|| format!("node-port-range: {text:?}, expected first and last port such as 30000-32767"))
}

/// Steps of rates, ascending.
fn rates(text: Option<&str>) -> anyhow::Result<Vec<(usize, Rate)>> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Step {
        nodes: usize,
        limit: f64,
        burst: u32,
    }
    let Some(text) = text else { return Ok(vec![(0, RATE)]) };
    let expected = "expected a list such as [{\"nodes\":0,\"limit\":10,\"burst\":20}]";
    let steps: Vec<Step> = serde_json::from_str(text).with_context(|| format!("ces-rate-limits: {expected}"))?;
    let mut rates = Vec::new();
    for (n, Step { nodes, limit, burst }) in steps.into_iter().enumerate() {
        if !(limit.is_finite() && limit > 0.0 && burst > 0) {
            bail!("ces-rate-limits[{n}]: expected limit and burst above 0");
        }
        rates.push((nodes, Rate { limit, burst }));
    }
    if rates.is_empty() {
        bail!("ces-rate-limits: {expected}");
    }
    rates.sort_by_key(|(nodes, _)| *nodes);
    Ok(rates)
}

fn parse(text: &str) -> anyhow::Result<Flags> {
    if text.trim().is_empty() {
        return Ok(Flags::default());
    }
    let plain = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(text, plain).map_err(|error| anyhow::anyhow!("{error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(args: &[&str]) -> Flags {
        Flags::try_parse_from(std::iter::once("weft-operator").chain(args.iter().copied())).expect("valid flags")
    }

    #[test]
    fn a_flag_beats_the_file_and_the_file_beats_the_default() {
        let file = parse("node-mask-v4: 26\nnode-mask-v6: 80\npod-cidr: [10.0.0.0/8]\n").expect("valid file");
        let config = Config::merge(flags(&["--node-mask-v4", "25"]), file).expect("valid");
        assert_eq!((config.node_mask_v4, config.node_mask_v6), (25, 80));
        assert_eq!(config.pod_cidrs, ["10.0.0.0/8".parse::<IpNet>().expect("a prefix")]);
        assert_eq!(config.lease_namespace, "kube-system");
    }

    #[test]
    fn unknown_keys_flags_and_wrong_types_are_named() {
        let unknown = parse("node-mask: 24\n").expect_err("unknown key").to_string();
        assert!(unknown.contains("node-mask") && !unknown.contains('\n'), "{unknown}");
        let wrong = parse("pod-cidr: [10.0.0.0]\n").expect_err("no prefix").to_string();
        assert!(!wrong.contains('\n'), "{wrong}");
        let flag = Flags::try_parse_from(["weft-operator", "--node-mask", "24"]).expect_err("unknown flag");
        assert!(flag.to_string().contains("--node-mask"), "{flag}");
        assert!(Config::merge(flags(&["--lease-seconds", "1"]), Flags::default()).is_err());
        for range in ["30000", "0-5", "32767-30000", "1-65536"] {
            let error = Config::merge(flags(&["--node-port-range", range]), Flags::default()).expect_err(range);
            assert!(error.to_string().starts_with("node-port-range: "), "{error}");
        }
    }

    #[test]
    fn rates_of_slices_go_by_the_number_of_nodes() {
        let steps = r#"[{"nodes":500,"limit":50,"burst":100},{"nodes":100,"limit":20,"burst":40}]"#;
        let config = Config::merge(flags(&["--ces-rate-limits", steps]), Flags::default()).expect("valid");
        let limits: Vec<f64> = [1, 100, 499, 500, 5000].map(|nodes| config.slices.rate(nodes).limit).into();
        assert_eq!(limits, [20.0, 20.0, 20.0, 50.0, 50.0]);
        let config = Config::merge(flags(&[]), Flags::default()).expect("valid");
        assert_eq!((config.slices.rate(7), config.slices.mode), (RATE, Propagation::CesNode));
        for bad in [
            ["--ces-rate-limits", "[]"],
            ["--ces-rate-limits", "10"],
            ["--ces-rate-limits", r#"[{"nodes":0,"limit":0,"burst":1}]"#],
            ["--endpoint-propagation", "kvstore"],
            ["--ces-endpoints-max", "0"],
        ] {
            let error = Config::merge(flags(&bad), Flags::default()).expect_err("refused").to_string();
            assert!(error.contains(&bad[0][2..]), "{error}");
        }
    }

    #[test]
    fn several_pools_in_one_flag() {
        let config = Config::merge(flags(&["--pod-cidr", "10.1.0.0/16,fd01::/48"]), Flags::default()).expect("valid");
        assert_eq!(config.pod_cidrs.len(), 2);
        assert!(config.identity_grace.is_some() && config.install_crds);
    }
}
