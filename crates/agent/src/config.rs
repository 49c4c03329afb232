//! The agent's settings. A field of [`Config`] is a setting: name, default, check, help and documentation
//! (`weft_settings`). What depends on several settings is checked in [`Config::check`].

pub(crate) mod maps;
mod parse;

pub use parse::{Acceleration, BindProtection, Routing};
pub use weft_settings::value::IpamMode;

use super::settings::Ipam;
use ipnet::IpNet;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use weft_datapath::PortGuard;
use weft_datapath::sockets::Protocols;
use weft_k8s::endpoint::Propagation;
use weft_model::intent::{Covers, Forwarding};
use weft_settings::Invalid;
use weft_settings::value::{
    Families, List, Maybe, Switch, absolute_path, bind_address, families, one_of, optional, path, port_range,
    port_ranges, prefixes, switch, text, within,
};

#[derive(clap::Args, Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "clap would take a doc comment for the program's own description")]
pub struct Config {
    /// Name of this machine's Node object [default: required].
    #[arg(long, value_name = "NAME", default_value = "", value_parser = text)]
    pub node_name: String,
    /// Kubeconfig of the API server [default: the pod's service account, or `$KUBECONFIG`].
    #[arg(long, value_name = "FILE", default_value = "", value_parser = optional(path))]
    pub kubeconfig: Maybe<PathBuf>,
    /// Unix socket for CNI and `weft`.
    #[arg(long, value_name = "FILE", default_value = "/run/weft/agent.sock", value_parser = absolute_path)]
    pub socket: PathBuf,
    /// Directory of endpoints, the agent's lock and the queue of CNI DELs. Must not outlive a reboot.
    #[arg(long, value_name = "DIR", default_value = "/run/weft/state", value_parser = absolute_path)]
    pub state_dir: PathBuf,
    /// Directory of pinned maps, programs and links, on a bpffs.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/weft", value_parser = absolute_path)]
    pub bpf_dir: PathBuf,
    /// Network device towards the other nodes [default: the one with the node's address].
    #[arg(long, value_name = "NAME", default_value = "", value_parser = optional(text))]
    pub device: Maybe<String>,
    /// How packets reach pods on other nodes: routed by the network between the nodes (`native`) or encapsulated
    /// (`vxlan`).
    #[arg(long, value_name = "MODE", default_value = "native", value_parser = one_of(Routing::ALL))]
    pub routing: Routing,
    /// Address families of pods.
    #[arg(long, value_name = "LIST", default_value = "ipv4,ipv6", value_parser = families)]
    pub ip_families: Families,
    /// Where to install `weft-cni`; empty: not installed.
    #[arg(long, value_name = "DIR", default_value = "", value_parser = optional(absolute_path))]
    pub cni_bin_dir: Maybe<PathBuf>,
    /// Where to install the CNI configuration `05-weft.conflist`; empty: not installed.
    #[arg(long, value_name = "DIR", default_value = "", value_parser = optional(absolute_path))]
    pub cni_conf_dir: Maybe<PathBuf>,
    /// Name of the cluster, a label of every identity. The same on all nodes.
    #[arg(long, value_name = "NAME", default_value = "default", value_parser = parse::cluster_name)]
    pub cluster_name: String,
    /// How pods get their addresses: from the node's pod CIDRs, assigned by Weft's operator (`cluster-pool`) or by the
    /// controller manager (`kubernetes`); from CiliumPodIPPools (`multi-pool`); from Azure (`azure-*`); from another CNI
    /// plugin (`delegated`, see `--ipam-plugin`). The same as the operator's.
    #[arg(long, value_name = "MODE", default_value = "cluster-pool", value_parser = one_of(IpamMode::ALL))]
    pub ipam: IpamMode,
    /// Configuration of the CNI plugin that assigns addresses, with `--ipam delegated`.
    #[arg(long, value_name = "JSON", default_value = "", value_parser = optional(parse::plugin))]
    pub ipam_plugin: Maybe<serde_json::Value>,
    /// Prefixes of all nodes' pods, with `--ipam azure-*`. An unknown address in them is not treated as outside the
    /// cluster.
    #[arg(long, value_name = "CIDR,...", default_value = "", value_parser = prefixes)]
    pub pod_cidr: List<IpNet>,
    /// Pods on this node, at most: the number of addresses where they are assigned in advance
    /// [default: 250; 30 with `azure-node-subnet`].
    #[arg(long, value_name = "COUNT", default_value = "", value_parser = optional(within(1..=4094_u32)))]
    pub max_pods: Maybe<u32>,
    /// Addresses requested at once, with `--ipam azure-pod-subnet`.
    #[arg(long, value_name = "COUNT", default_value = "16", value_parser = within(1..=256_u32))]
    pub ipam_batch: u32,
    /// Addresses held in advance, with `--ipam multi-pool`.
    #[arg(long, value_name = "COUNT", default_value = "8", value_parser = within(0..=4096_u32))]
    pub ipam_preallocate: u32,
    /// Masquerade connections of pods that leave the cluster: with the node's address as source
    /// [default: `true`; `false` with `azure-pod-subnet` and `azure-pod-subnet-block`].
    #[arg(long, value_name = "BOOL", default_value = "", value_parser = optional(switch))]
    pub masquerade: Maybe<bool>,
    /// Prefixes outside the cluster that are reached without masquerading.
    #[arg(long, value_name = "CIDR,...", default_value = "", value_parser = prefixes)]
    pub no_masquerade: List<IpNet>,
    /// MTU of pods, from 1280 on with IPv6 [default: the device's, less the tunnel's header].
    #[arg(long, value_name = "BYTES", default_value = "", value_parser = optional(within(576..=65_535_u32)))]
    pub mtu: Maybe<u32>,
    /// UDP port of VXLAN. The same on all nodes.
    #[arg(long, value_name = "PORT", default_value = "8472", value_parser = within(1..=65_535_u16))]
    pub tunnel_port: u16,
    /// Enforce policies with a nodeSelector on the node's own traffic. Without it such policies are refused.
    #[arg(long, value_name = "BOOL", default_value = "true", value_parser = switch)]
    pub host_firewall: Switch,
    /// Audit mode for all policies: what they would drop is reported and forwarded.
    #[arg(long, value_name = "BOOL", default_value = "false", value_parser = switch)]
    pub policy_audit_mode: Switch,
    /// Addresses in the cluster that CIDR rules of the cilium.io kinds select, beside those outside. The ipBlock of a
    /// NetworkPolicy always selects both.
    #[arg(long, value_name = "LIST", default_value = "", value_parser = parse::covers)]
    pub policy_cidr_match_mode: Covers,
    /// Allow VRRP, IGMP, GRE, IPIP, IPv6, ESP and AH in policies and for pods.
    #[arg(long, value_name = "BOOL", default_value = "false", value_parser = switch)]
    pub extended_protocols: Switch,
    /// How this node's endpoints are published: as CiliumEndpointSlices written by the agent (`ces-node`), as
    /// CiliumEndpoints that the operator packs into slices (`ces-operator`), or as CiliumEndpoints that every agent
    /// watches (`cep`). The same as the operator's; may change while the cluster runs.
    #[arg(long, value_name = "MODE", default_value = "ces-node", value_parser = parse::propagation)]
    pub endpoint_propagation: Propagation,
    /// Translate Services at the sockets of pods and node, instead of per packet.
    #[arg(long, value_name = "BOOL", default_value = "true", value_parser = switch)]
    pub socket_lb: Switch,
    /// Directory of the cgroup (version 2) that contains the node's processes and pods [default: the root cgroup].
    #[arg(long, value_name = "DIR", default_value = "", value_parser = optional(absolute_path))]
    pub cgroup_root: Maybe<PathBuf>,
    /// Protocols whose sockets are aborted when their backend is removed, with `--socket-lb`.
    #[arg(long, value_name = "LIST", default_value = "udp", value_parser = parse::protocols)]
    pub close_removed_backends: Protocols,
    /// Ports of NodePort Services. The same as the API server's `--service-node-port-range`.
    #[arg(long, value_name = "FIRST-LAST", default_value = "30000-32767", value_parser = port_range)]
    pub node_port_range: RangeInclusive<u16>,
    /// TCP and UDP ports that processes in the node's network namespace cannot bind, with `--socket-lb`: those of
    /// Services at the node's addresses (`services`), the whole `--node-port-range` as well (`range`), or none.
    #[arg(long, value_name = "PORTS", default_value = "services", value_parser = one_of(BindProtection::ALL))]
    pub node_port_bind_protection: BindProtection,
    /// Prefixes that `externalIPs` of Services may name; all others are refused. A Service takes over all traffic of the
    /// cluster to such an address, so none of them should have another user. The same on all nodes, and the operator's.
    #[arg(long, value_name = "CIDR,...", default_value = "", value_parser = prefixes)]
    pub external_ips_allowed: List<IpNet>,
    /// Ports of the node's own programs, which no `hostPort` takes, beside those of this agent.
    #[arg(
        long,
        value_name = "FIRST-LAST,...",
        default_value = "22,2379-2381,6443,10248-10260",
        value_parser = port_ranges
    )]
    pub host_ports_reserved: List<RangeInclusive<u16>>,
    /// How connections from outside reach backends on other nodes, unless the Service says otherwise: with the node's
    /// source address (`snat`), or with the client's and a direct answer of the backend's node (`dsr`), for which the
    /// network must allow nodes to send with source addresses that are not theirs.
    #[arg(long, value_name = "MODE", default_value = "snat", value_parser = one_of(parse::FORWARDING))]
    pub node_port_mode: Forwarding,
    /// Forward established connections from outside to backends on other nodes in XDP, with `--routing native`: never
    /// (`disabled`), always (`native`, requires driver support) or where the driver supports it (`best-effort`).
    #[arg(long, value_name = "MODE", default_value = "disabled", value_parser = one_of(Acceleration::ALL))]
    pub node_port_acceleration: Acceleration,
    /// Size of the lookup tables of Services with Maglev hashing: at least a hundred times their backends. The same on
    /// all nodes.
    #[arg(long, value_name = "PRIME", default_value = "16381", value_parser = parse::maglev_table_size)]
    pub maglev_table_size: u32,
    /// Address and port of the health check of load balancers, as kube-proxy's: `0.0.0.0:10256`.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "", value_parser = optional(bind_address))]
    pub healthz_bind_address: Maybe<SocketAddr>,
    /// Address and port of `/metrics`: `127.0.0.1:9962`.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "", value_parser = optional(bind_address))]
    pub metrics_address: Maybe<SocketAddr>,
    /// Certificate for requests between agents, which resolve addresses that no watch has delivered yet (PEM;
    /// organisation `weft:agents`, DNS name of the node). Requires `--peer-key` and `--peer-authority`. Without it, agents
    /// send each other no requests.
    #[arg(long, value_name = "FILE", default_value = "", value_parser = optional(path))]
    pub peer_certificate: Maybe<PathBuf>,
    /// Private key of `--peer-certificate`, PEM.
    #[arg(long, value_name = "FILE", default_value = "", value_parser = optional(path))]
    pub peer_key: Maybe<PathBuf>,
    /// CA certificates of agents, PEM.
    #[arg(long, value_name = "FILE", default_value = "", value_parser = optional(path))]
    pub peer_authority: Maybe<PathBuf>,
    /// TCP port of requests between agents. The same on all nodes.
    #[arg(long, value_name = "PORT", default_value = "4241", value_parser = within(1..=65_535_u16))]
    pub peer_port: u16,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would take a doc comment for the program's own description")]
    pub maps: maps::MapSizes,
    /// Log level (`error`, `warn`, `info`, `debug`) or directives such as `weft_agent=debug`.
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = text)]
    pub log: String,
    /// File of settings (YAML or JSON), one key per flag: `node-name: n1`.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

impl Config {
    /// Checks the settings against each other.
    ///
    /// # Errors
    /// The first setting that does not fit the others.
    pub fn check(self) -> Result<Self, Invalid> {
        if self.node_name.is_empty() {
            return Err(Invalid::new("node-name", "the name of this machine's Node object", ""));
        }
        if let Some(mtu) = self.mtu.filter(|mtu| self.ip_families.ipv6 && *mtu < 1280) {
            return Err(Invalid::new("mtu", "1280 to 65535 with IPv6", mtu));
        }
        if self.node_port_acceleration == Acceleration::Native && self.routing == Routing::Vxlan {
            let expected = "`disabled` or `best-effort` with routing `vxlan`";
            return Err(Invalid::new("node-port-acceleration", expected, "native"));
        }
        if self.ipam.native_only() && self.routing == Routing::Vxlan {
            return Err(Invalid::new("routing", "`native`, with this ipam mode", "vxlan"));
        }
        if let Some(net) = self.pod_cidr.first().filter(|_| !self.ipam.native_only()) {
            return Err(Invalid::new("pod-cidr", "nothing, with this ipam mode", net));
        }
        if let Some(plugin) = self.ipam_plugin.as_ref().filter(|_| self.ipam != IpamMode::Delegated) {
            return Err(Invalid::new("ipam-plugin", "nothing, unless ipam is `delegated`", plugin));
        }
        let files = [
            ("peer-certificate", &self.peer_certificate),
            ("peer-key", &self.peer_key),
            ("peer-authority", &self.peer_authority),
        ];
        if let Some((missing, _)) = files.iter().find(|(_, file)| file.is_none())
            && let Some((given, _)) = files.iter().find(|(_, file)| file.is_some())
        {
            return Err(Invalid::new(missing, format!("a file, as {given} is given"), ""));
        }
        Ok(self)
    }

    /// How addresses are assigned.
    #[must_use]
    pub fn ipam(&self) -> Ipam {
        Ipam {
            mode: self.ipam,
            max_pods: self.max_pods.unwrap_or(self.ipam.max_pods().into()),
            batch: self.ipam_batch,
            preallocate: self.ipam_preallocate,
        }
    }

    /// Whether pods leave the cluster with the node's address.
    #[must_use]
    pub fn masquerades(&self) -> bool {
        self.masquerade.unwrap_or(!self.ipam.routable())
    }

    /// Ports that the node's own sockets cannot bind.
    #[must_use]
    pub fn port_guard(&self) -> PortGuard {
        match self.node_port_bind_protection {
            BindProtection::Services => PortGuard::Services,
            BindProtection::Range => PortGuard::Range(self.node_port_range.clone()),
            BindProtection::None => PortGuard::None,
        }
    }

    /// Ports of the node that no hostPort takes.
    #[must_use]
    pub fn reserved_ports(&self) -> Vec<RangeInclusive<u16>> {
        let listeners = self.healthz_bind_address.iter().chain(&self.metrics_address).map(SocketAddr::port);
        let own = listeners.chain([self.peer_port, self.tunnel_port]);
        self.host_ports_reserved.iter().cloned().chain(own.map(|port| port..=port)).collect()
    }

    /// Requests between agents; `None`: there are none.
    #[must_use]
    pub fn peer(&self) -> Option<weft_peer::Settings> {
        let files = weft_peer::tls::Files {
            certificate: self.peer_certificate.clone()?,
            key: self.peer_key.clone()?,
            authority: self.peer_authority.clone()?,
        };
        Some(weft_peer::Settings { files, port: self.peer_port })
    }
}

#[cfg(test)]
mod tests;
