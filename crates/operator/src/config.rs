//! The operator's settings. A field of [`Config`] is a setting: name, default, check, help and documentation
//! (`weft_settings`). What depends on several settings is checked in [`Config::check`].

use ipnet::IpNet;
use serde::Deserialize;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;
use weft_control::pack::Rate;
use weft_k8s::convert::Settings;
use weft_k8s::endpoint::Propagation;
use weft_settings::Invalid;
use weft_settings::value::{
    Expected, IpamMode, List, Maybe, Parsed, Switch, bind_address, one_of, optional, path, port_range, prefixes,
    seconds, seconds_or_off, switch, text, within,
};

#[derive(clap::Args, Clone, Debug)]
#[allow(missing_docs, reason = "clap would take a doc comment for the program's own description")]
pub struct Config {
    /// Kubeconfig of the API server [default: the pod's service account].
    #[arg(long, value_name = "FILE", default_value = "", value_parser = optional(path))]
    pub kubeconfig: Maybe<PathBuf>,
    /// How pods get their addresses. The same as the agents'.
    #[arg(long, value_name = "MODE", default_value = "cluster-pool", value_parser = one_of(IpamMode::ALL))]
    pub ipam: IpamMode,
    /// Pools of pod CIDRs: at least one prefix of each address family in use. Append new ones, and remove none that a
    /// node has a pod CIDR of.
    #[arg(long, value_name = "CIDR,...", default_value = "10.244.0.0/16,fd44::/48", value_parser = pools)]
    pub pod_cidr: List<IpNet>,
    /// Prefix length of a node's IPv4 pod CIDR.
    #[arg(long, value_name = "BITS", default_value = "24", value_parser = within(1..=32_u8))]
    pub node_mask_v4: u8,
    /// Prefix length of a node's IPv6 pod CIDR.
    #[arg(long, value_name = "BITS", default_value = "64", value_parser = within(1..=128_u8))]
    pub node_mask_v6: u8,
    /// What assigns addresses to nodes, with `--ipam azure-*`: Azure Resource Manager (`azure`), or the network of a
    /// cluster on one machine, at its socket (`unix:FILE`).
    #[arg(long, value_name = "CLOUD", default_value = "azure", value_parser = cloud)]
    pub cloud: Cloud,
    /// Resource ID of the subnet for pods, with `--ipam azure-pod-subnet` and `azure-pod-subnet-block`.
    #[arg(long, value_name = "ID", default_value = "", value_parser = optional(text))]
    pub pod_subnet_id: Maybe<String>,
    /// Client ID of the managed identity for `--cloud azure`, if the machine has several.
    #[arg(long, value_name = "ID", default_value = "", value_parser = optional(text))]
    pub azure_client_id: Maybe<String>,
    /// Namespace of the Lease `weft-operator`, for leader election.
    #[arg(long, value_name = "NAMESPACE", default_value = "kube-system", value_parser = text)]
    pub lease_namespace: String,
    /// Seconds after which another operator takes over from a leader that does not renew its Lease.
    #[arg(long, value_name = "SECONDS", default_value = "15", value_parser = seconds(3))]
    pub lease_seconds: Duration,
    /// Create custom resource definitions that the cluster lacks.
    #[arg(long, value_name = "BOOL", default_value = "true", value_parser = switch)]
    pub install_crds: Switch,
    /// Interval of garbage collection; 0 turns it off.
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds_or_off)]
    pub gc_seconds: Maybe<Duration>,
    /// How long a Node must be gone before its CiliumEndpointSlices and its CiliumNode are deleted.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds(0))]
    pub node_grace_seconds: Duration,
    /// How long a CiliumIdentity must be unused before it is deleted; 0: never.
    #[arg(long, value_name = "SECONDS", default_value = "1800", value_parser = seconds_or_off)]
    pub identity_grace_seconds: Maybe<Duration>,
    /// How endpoints are published. The same as the agents'. With `ces-operator` the operator packs CiliumEndpoints into
    /// CiliumEndpointSlices; it does so as well while any agent runs in that mode.
    #[arg(long, value_name = "MODE", default_value = "ces-node", value_parser = propagation)]
    pub endpoint_propagation: Propagation,
    /// CiliumEndpoints in one CiliumEndpointSlice, at most.
    #[arg(long, value_name = "COUNT", default_value = "100", value_parser = within(1..=1000_usize))]
    pub ces_endpoints_max: usize,
    /// Milliseconds for which changes of a CiliumEndpointSlice are collected before it is written.
    #[arg(long, value_name = "MILLISECONDS", default_value = "500", value_parser = within(0..=60_000_u64))]
    pub ces_delay_ms: u64,
    /// Writes of CiliumEndpointSlices per second, and burst, by the number of nodes.
    #[arg(
        long,
        value_name = "JSON",
        default_value = r#"[{"nodes":0,"limit":10,"burst":20}]"#,
        value_parser = rates
    )]
    pub ces_rate_limits: Rates,
    /// Ports of NodePort Services. The same as the agents'.
    #[arg(long, value_name = "FIRST-LAST", default_value = "30000-32767", value_parser = port_range)]
    pub node_port_range: RangeInclusive<u16>,
    /// Prefixes that `externalIPs` of Services may name. The same as the agents'.
    #[arg(long, value_name = "CIDR,...", default_value = "", value_parser = prefixes)]
    pub external_ips_allowed: List<IpNet>,
    /// Policies with a nodeSelector are valid. The same as the agents'.
    #[arg(long, value_name = "BOOL", default_value = "true", value_parser = switch)]
    pub host_firewall: Switch,
    /// Protocols without ports, such as VRRP, are valid in policies. The same as the agents'.
    #[arg(long, value_name = "BOOL", default_value = "false", value_parser = switch)]
    pub extended_protocols: Switch,
    /// Address and port of `/metrics` and `/healthz`: `127.0.0.1:9963`.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "", value_parser = optional(bind_address))]
    pub metrics_address: Maybe<SocketAddr>,
    /// Log level (`error`, `warn`, `info`, `debug`) or directives such as `weft_operator=debug`.
    #[arg(long, value_name = "LEVEL", default_value = "info,kube=warn", value_parser = text)]
    pub log: String,
    /// File of settings (YAML or JSON), one key per flag: `pod-cidr: [10.244.0.0/16, fd44::/48]`.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// What the operator does about the addresses of pods.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Assigns pod CIDRs to nodes.
    ClusterPool,
    /// Nothing.
    Elsewhere,
    /// Assigns prefixes of CiliumPodIPPools.
    MultiPool,
    /// Has a cloud assign blocks of these lengths.
    Cloud {
        /// Prefix length, IPv4.
        v4: u8,
        /// Prefix length, IPv6.
        v6: u8,
    },
}

/// What assigns addresses to nodes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cloud {
    /// Azure Resource Manager.
    Azure,
    /// The network of a cluster on one machine, at this socket.
    Unix(PathBuf),
}

/// Rates by the number of nodes from which on they hold, ascending.
#[derive(Clone, Debug, PartialEq)]
pub struct Rates(Vec<(usize, Rate)>);

impl Rates {
    /// The rate for a cluster of so many nodes.
    #[must_use]
    pub fn of(&self, nodes: usize) -> Rate {
        let step = self.0.iter().rev().find(|(from, _)| *from <= nodes).or(self.0.first());
        step.map(|(_, rate)| *rate).expect("`rates` makes none without steps")
    }
}

impl Config {
    /// Checks the settings against each other.
    ///
    /// # Errors
    /// The first setting that does not fit the others.
    pub fn check(self) -> Result<Self, Invalid> {
        if self.cloud == Cloud::Azure {
            let subnet = self.pod_subnet_id.as_deref().unwrap_or_default();
            if self.ipam == IpamMode::Overlay {
                let expected = "unix:FILE with ipam azure-overlay (Azure Resource Manager assigns no overlay prefixes), or \
                                ipam cluster-pool with vxlan routing";
                return Err(Invalid::new("cloud", expected, "azure"));
            }
            if self.ipam == IpamMode::NodeSubnet && !subnet.is_empty() {
                let expected = "nothing with ipam azure-node-subnet, whose pods are in the nodes' subnet";
                return Err(Invalid::new("pod-subnet-id", expected, subnet));
            }
            if self.ipam.routable() && subnet.is_empty() {
                return Err(Invalid::new(
                    "pod-subnet-id",
                    "the resource ID of the subnet for pods, with this ipam mode",
                    "",
                ));
            }
        }
        Ok(self)
    }

    /// What to do about the addresses of pods.
    #[must_use]
    pub fn mode(&self) -> Mode {
        match self.ipam {
            IpamMode::ClusterPool => Mode::ClusterPool,
            IpamMode::Kubernetes | IpamMode::Delegated => Mode::Elsewhere,
            IpamMode::MultiPool => Mode::MultiPool,
            IpamMode::Overlay => Mode::Cloud { v4: self.node_mask_v4, v6: self.node_mask_v6 },
            // An interface has 256 configurations, for both families together: one IPv6 block serves all pods.
            IpamMode::PodSubnet => Mode::Cloud { v4: 32, v6: 80 },
            IpamMode::NodeSubnet => Mode::Cloud { v4: 32, v6: 128 },
            IpamMode::PodSubnetBlock => Mode::Cloud { v4: 28, v6: 124 },
        }
    }

    /// What is valid in policies.
    #[must_use]
    pub fn policies(&self) -> Settings {
        Settings {
            host_firewall: self.host_firewall,
            extended_protocols: self.extended_protocols,
            ..Settings::default()
        }
    }
}

fn pools(text: &str) -> Parsed<Vec<IpNet>> {
    let expected = || Expected::new("one or more prefixes such as 10.244.0.0/16 or fd44::/48");
    prefixes(text).ok().filter(|pools| !pools.is_empty()).ok_or_else(expected)
}

fn cloud(text: &str) -> Parsed<Cloud> {
    let socket = text.strip_prefix("unix:").filter(|path| path.starts_with('/'));
    match (text, socket) {
        ("azure", _) => Ok(Cloud::Azure),
        (_, Some(socket)) => Ok(Cloud::Unix(socket.into())),
        _ => Err(Expected::new("`azure`, or `unix:` and the absolute path of a socket")),
    }
}

fn propagation(text: &str) -> Parsed<Propagation> {
    Propagation::read(text).ok_or(Expected::new("`cep`, `ces-operator` or `ces-node`"))
}

fn rates(text: &str) -> Parsed<Rates> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Step {
        nodes: usize,
        limit: f64,
        burst: u32,
    }
    let steps = serde_json::from_str::<Vec<Step>>(text).unwrap_or_default();
    let good = |step: &Step| step.limit.is_finite() && step.limit > 0.0 && step.burst > 0;
    if steps.is_empty() || !steps.iter().all(good) {
        let expected = r#"a list such as [{"nodes":0,"limit":10,"burst":20}], with limit and burst above 0"#;
        return Err(Expected::new(expected));
    }
    let rate = |Step { nodes, limit, burst }| (nodes, Rate { limit, burst });
    let mut rates: Vec<_> = steps.into_iter().map(rate).collect();
    rates.sort_by_key(|(nodes, _)| *nodes);
    Ok(Rates(rates))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use weft_settings::docs;

    fn config(args: &[&str]) -> Result<Config, String> {
        let args = std::iter::once("weft-operator").chain(args.iter().copied()).map(Into::into);
        let config: Config = weft_settings::from_args(args).map_err(|error| error.to_string())?;
        config.check().map_err(|error| error.to_string())
    }

    fn with_file(text: &str, args: &[&str]) -> Result<Config, String> {
        let dir = tempfile::tempdir().expect("directory");
        let file = dir.path().join("operator.yaml");
        std::fs::write(&file, text).expect("file");
        config(&[&["--config", file.to_str().expect("UTF-8")], args].concat())
    }

    #[test]
    fn the_documentation_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/kubernetes.md");
        docs::compare(&path, "weft-operator", &docs::table::<Config>()).expect("current");
    }

    #[test]
    fn a_flag_beats_the_file_and_the_file_beats_the_default() {
        let file = "node-mask-v4: 26\nnode-mask-v6: 80\npod-cidr: [10.0.0.0/8]\n";
        let config = with_file(file, &["--node-mask-v4", "25"]).expect("valid");
        assert_eq!((config.node_mask_v4, config.node_mask_v6), (25, 80));
        assert_eq!(config.pod_cidr, ["10.0.0.0/8".parse::<IpNet>().expect("a prefix")]);
        assert_eq!(config.lease_namespace, "kube-system");
    }

    #[test]
    fn unknown_keys_flags_and_wrong_types_are_named() {
        let unknown = with_file("node-mask: 24\n", &[]).expect_err("unknown key");
        assert!(unknown.contains("node-mask") && !unknown.contains('\n'), "{unknown}");
        let wrong = with_file("pod-cidr: [10.0.0.0]\n", &[]).expect_err("no prefix");
        assert!(wrong.contains("pod-cidr") && !wrong.contains('\n'), "{wrong}");
        let flag = config(&["--node-mask", "24"]).expect_err("unknown flag");
        assert!(flag.contains("--node-mask"), "{flag}");
        let lease = config(&["--lease-seconds", "1"]).expect_err("too short");
        assert_eq!(lease, "lease-seconds: expected seconds, at least 3, found 1");
        for range in ["30000", "0-5", "32767-30000", "1-65536"] {
            let error = config(&["--node-port-range", range]).expect_err(range);
            assert!(error.starts_with("node-port-range: "), "{error}");
        }
    }

    #[test]
    fn rates_of_slices_go_by_the_number_of_nodes() {
        let steps = r#"[{"nodes":500,"limit":50,"burst":100},{"nodes":100,"limit":20,"burst":40}]"#;
        let found = config(&["--ces-rate-limits", steps]).expect("valid");
        let limits: Vec<f64> = [1, 100, 499, 500, 5000].map(|nodes| found.ces_rate_limits.of(nodes).limit).into();
        assert_eq!(limits, [20.0, 20.0, 20.0, 50.0, 50.0]);
        let found = with_file("ces-rate-limits: [{nodes: 0, limit: 5, burst: 1}]\n", &[]).expect("valid");
        assert_eq!(found.ces_rate_limits.of(7), Rate { limit: 5.0, burst: 1 });
        let found = config(&[]).expect("valid");
        let rate = Rate { limit: 10.0, burst: 20 };
        assert_eq!((found.ces_rate_limits.of(7), found.endpoint_propagation), (rate, Propagation::CesNode));
        for bad in [
            ["--ces-rate-limits", "[]"],
            ["--ces-rate-limits", "10"],
            ["--ces-rate-limits", r#"[{"nodes":0,"limit":0,"burst":1}]"#],
            ["--endpoint-propagation", "kvstore"],
            ["--ces-endpoints-max", "0"],
        ] {
            let error = config(&bad).expect_err("refused");
            assert!(error.contains(&bad[0][2..]), "{error}");
        }
    }

    #[test]
    fn several_pools_in_one_flag() {
        let found = config(&["--pod-cidr", "10.1.0.0/16,fd01::/48"]).expect("valid");
        assert_eq!(found.pod_cidr.len(), 2);
        assert!(found.identity_grace_seconds.is_some() && found.install_crds);
        let none = config(&["--pod-cidr", ""]).expect_err("none");
        assert!(none.starts_with("pod-cidr: expected one or more prefixes"), "{none}");
    }

    #[test]
    fn azure_modes_need_what_azure_can_assign() {
        for (args, expected) in [
            (&["--ipam", "azure-overlay"][..], Some("cloud: expected unix:FILE")),
            (&["--ipam", "azure-overlay", "--cloud", "unix:/s"], None),
            (&["--ipam", "azure-overlay", "--cloud", "unix:s"], Some("cloud: expected `azure`, or `unix:`")),
            (&["--ipam", "azure-pod-subnet"], Some("pod-subnet-id: expected the resource ID")),
            (&["--ipam", "azure-pod-subnet", "--pod-subnet-id", "/s"], None),
            (&["--ipam", "azure-node-subnet", "--pod-subnet-id", "/s"], Some("pod-subnet-id: expected nothing")),
            (&["--ipam", "elsewhere"], Some("ipam: expected `cluster-pool`")),
        ] {
            match (config(args), expected) {
                (Ok(_), None) => {}
                (Err(error), Some(expected)) => assert!(error.starts_with(expected), "{args:?}: {error}"),
                (found, _) => panic!("{args:?}: {found:?}, expected {expected:?}"),
            }
        }
    }
}
