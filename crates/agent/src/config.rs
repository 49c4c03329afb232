//! What the agent is told: file < environment (`WEFT_*`) < flags, checked once into [`Config`].

mod ipam;

pub use ipam::IpamMode;

use crate::peer;
use crate::writer::ipam::Ipam;
use clap::Parser;
use ipnet::IpNet;
use serde::Deserialize;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use weft_datapath::PortGuard;
use weft_datapath::sockets::Protocols;
use weft_k8s::endpoint::Propagation;
use weft_model::intent::{Covers, Forwarding};

/// Everything that can be said, as it was said. The same names in the file (kebab-case).
#[derive(Parser, Deserialize, Clone, Debug, Default)]
#[command(name = "weft-agent", version, about = "The node agent of Weft: pod network and network policy in eBPF")]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// Name of the Node object of this machine.
    #[arg(long, env = "WEFT_NODE_NAME")]
    pub node_name: Option<String>,
    /// How to reach the API server; without it: the pod's service account, or $KUBECONFIG.
    #[arg(long, env = "WEFT_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Unix socket to serve CNI and `weft` on.
    #[arg(long, env = "WEFT_SOCKET")]
    pub socket: Option<PathBuf>,
    /// Where the agent remembers its endpoints. Should not outlive a reboot.
    #[arg(long, env = "WEFT_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Directory on a bpffs for pinned maps and links.
    #[arg(long, env = "WEFT_BPF_DIR")]
    pub bpf_dir: Option<PathBuf>,
    /// The node's network device; without it: the one with the node's address.
    #[arg(long, env = "WEFT_DEVICE")]
    pub device: Option<String>,
    /// How packets reach pods of other nodes: `native` (the network routes pod addresses) or `vxlan`.
    #[arg(long, env = "WEFT_ROUTING")]
    pub routing: Option<String>,
    /// Address families of pods: `ipv4,ipv6`, `ipv4` or `ipv6`.
    #[arg(long, env = "WEFT_IP_FAMILIES")]
    pub ip_families: Option<String>,
    /// Where to install the CNI executable; empty: nowhere.
    #[arg(long, env = "WEFT_CNI_BIN_DIR")]
    pub cni_bin_dir: Option<String>,
    /// Where to install the CNI configuration; empty: nowhere.
    #[arg(long, env = "WEFT_CNI_CONF_DIR")]
    pub cni_conf_dir: Option<String>,
    /// Name of the cluster, part of every pod's identity.
    #[arg(long, env = "WEFT_CLUSTER_NAME")]
    pub cluster_name: Option<String>,
    /// Prefixes that pods reach with their own addresses, beside the pods' own: comma separated.
    #[arg(long, env = "WEFT_NO_MASQUERADE")]
    pub no_masquerade: Option<String>,
    /// Whether pods leave the cluster with their node's address: `true` (default) or `false`.
    #[arg(long, env = "WEFT_MASQUERADE")]
    pub masquerade: Option<String>,
    /// Largest packet of the pod network; without it: what the device carries.
    #[arg(long, env = "WEFT_MTU")]
    pub mtu: Option<u32>,
    /// UDP port of VXLAN.
    #[arg(long, env = "WEFT_TUNNEL_PORT")]
    pub tunnel_port: Option<u16>,
    /// Whether policies with a nodeSelector apply to the node's own traffic: `true` (default) or `false`; then such
    /// policies are refused.
    #[arg(long, env = "WEFT_HOST_FIREWALL")]
    pub host_firewall: Option<String>,
    /// Whether all policies are only tried out: what they would drop is reported and passes. `true` or `false`
    /// (default).
    #[arg(long, env = "WEFT_POLICY_AUDIT_MODE")]
    pub policy_audit_mode: Option<String>,
    /// Addresses of the cluster that CIDR rules of the cilium.io kinds match beside those outside: `nodes`, `pods`,
    /// `nodes,pods` or nothing (default). The ipBlock of a NetworkPolicy always matches both.
    #[arg(long, env = "WEFT_POLICY_CIDR_MATCH_MODE")]
    pub policy_cidr_match_mode: Option<String>,
    /// Whether policies may name VRRP, IGMP, GRE, IPIP, IPv6, ESP and AH, and pods use them: `true` or `false`
    /// (default).
    #[arg(long, env = "WEFT_EXTENDED_PROTOCOLS")]
    pub extended_protocols: Option<String>,
    /// Where pods get their addresses: `cluster-pool` (default: the node's pod CIDRs, which the operator gives),
    /// `kubernetes` (the same, given by the cluster's controller manager), `multi-pool` (CiliumPodIPPools),
    /// `azure-overlay`, `azure-pod-subnet`, `azure-pod-subnet-block`, `azure-node-subnet`, or `delegated` (another CNI
    /// plugin, see --ipam-plugin).
    #[arg(long, env = "WEFT_IPAM")]
    pub ipam: Option<String>,
    /// Configuration of the CNI plugin that gives addresses (JSON with `type`), for `delegated`.
    #[arg(long, env = "WEFT_IPAM_PLUGIN")]
    pub ipam_plugin: Option<String>,
    /// Where pods of any node have their addresses, for the `azure` modes: comma separated prefixes. An address in them
    /// that is not known yet is not taken for the outside.
    #[arg(long, env = "WEFT_POD_CIDR")]
    pub pod_cidr: Option<String>,
    /// Most pods on this node: how many addresses it gets where that is settled beforehand (default: 250; 30 with
    /// `azure-node-subnet`).
    #[arg(long, env = "WEFT_MAX_PODS")]
    pub max_pods: Option<u32>,
    /// Addresses asked for at once, for `azure-pod-subnet` (default: 16).
    #[arg(long, env = "WEFT_IPAM_BATCH")]
    pub ipam_batch: Option<u32>,
    /// Addresses held ahead of demand, for `multi-pool` (default: 8).
    #[arg(long, env = "WEFT_IPAM_PREALLOCATE")]
    pub ipam_preallocate: Option<u32>,
    /// How this node's endpoints become known to the others: `ces-node` (default: slices that the agent writes),
    /// `ces-operator` (a CiliumEndpoint per pod, from which the operator makes slices) or `cep` (a CiliumEndpoint per
    /// pod, which every agent watches). Set it as the operator's. It may be changed in a running cluster.
    #[arg(long, env = "WEFT_ENDPOINT_PROPAGATION")]
    pub endpoint_propagation: Option<String>,
    /// Whether Services are translated at the sockets of pods and the node, not packet by packet: `true` (default) or
    /// `false`.
    #[arg(long, env = "WEFT_SOCKET_LB")]
    pub socket_lb: Option<String>,
    /// Directory of the control group (version 2) that holds the processes of this node and its pods; without it: the
    /// root of all.
    #[arg(long, env = "WEFT_CGROUP_ROOT")]
    pub cgroup_root: Option<PathBuf>,
    /// Whose sockets are aborted when the backend that they were led to is removed: `udp` (default), `tcp`, `tcp,udp`
    /// or `none`.
    #[arg(long, env = "WEFT_CLOSE_REMOVED_BACKENDS")]
    pub close_removed_backends: Option<String>,
    /// Ports of Services at the nodes' addresses: first and last. As the API server's `--service-node-port-range`.
    #[arg(long, env = "WEFT_NODE_PORT_RANGE")]
    pub node_port_range: Option<String>,
    /// Which ports the node's own processes, and pods in its network, cannot listen at: `services` (default: those that
    /// Services have at the node's addresses), `range` (all of `--node-port-range` as well) or `none`. TCP and UDP, with
    /// `--socket-lb`.
    #[arg(long, env = "WEFT_NODE_PORT_BIND_PROTECTION")]
    pub node_port_bind_protection: Option<String>,
    /// How clients outside reach backends of other nodes, unless a Service says otherwise: `snat` (default: with the
    /// node's address, and answers come back through it) or `dsr` (with their own, and the backend's node answers; the
    /// network must let nodes send with addresses that are not theirs).
    #[arg(long, env = "WEFT_NODE_PORT_MODE")]
    pub node_port_mode: Option<String>,
    /// Whether decided connections of clients outside to backends of other nodes pass through the node at its device
    /// (XDP), in native routing: `disabled` (default), `native` (the device's driver must be able to) or `best-effort`
    /// (where it is able to).
    #[arg(long, env = "WEFT_NODE_PORT_ACCELERATION")]
    pub node_port_acceleration: Option<String>,
    /// Entries of the tables of Services with consistent hashing, the same on all nodes: a prime, best over a hundred
    /// times the backends of a Service: 251, 509, 1021, 2039, 4093, 8191, 16381 (default), 32749, 65521 or 131071.
    #[arg(long, env = "WEFT_MAGLEV_TABLE_SIZE")]
    pub maglev_table_size: Option<u32>,
    /// Address and port at which load balancers ask whether the node is well, such as 0.0.0.0:10256 or [::]:10256, as
    /// kube-proxy's; without it: nowhere.
    #[arg(long, env = "WEFT_HEALTHZ_BIND_ADDRESS")]
    pub healthz_bind_address: Option<String>,
    /// Address and port at which `/metrics` is served, such as 127.0.0.1:9962; without it: nowhere.
    #[arg(long, env = "WEFT_METRICS_ADDRESS")]
    pub metrics_address: Option<String>,
    /// Certificate of this agent, PEM, with which it asks other agents whose an address is that nobody told of yet, and
    /// answers them: for organisation `weft:agents` and the node's name (DNS). Without it, nobody is asked.
    #[arg(long, env = "WEFT_PEER_CERTIFICATE")]
    pub peer_certificate: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long, env = "WEFT_PEER_KEY")]
    pub peer_key: Option<PathBuf>,
    /// Certificates of the authority that signs those of agents, PEM.
    #[arg(long, env = "WEFT_PEER_AUTHORITY")]
    pub peer_authority: Option<PathBuf>,
    /// TCP port at which agents ask each other [default: 4241]: the same on all nodes.
    #[arg(long, env = "WEFT_PEER_PORT")]
    pub peer_port: Option<u16>,
    /// What to log: `error`, `warn`, `info`, `debug`, or directives such as `weft_agent=debug`.
    #[arg(long, env = "WEFT_LOG")]
    pub log: Option<String>,
    /// File with the same settings (YAML or JSON).
    #[arg(long, env = "WEFT_CONFIG")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
}

/// How packets reach pods of other nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Routing {
    /// The network between the nodes routes pod addresses.
    Native,
    /// Wrapped in VXLAN.
    Vxlan,
}

impl Routing {
    /// As users write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Vxlan => "vxlan",
        }
    }
}

/// Whether decided connections at the edge pass before the kernel's network stack (XDP).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Acceleration {
    /// They do not.
    Disabled,
    /// They must.
    Native,
    /// Where the device's driver is able to.
    BestEffort,
}

/// Sizes of tables that Maglev works with: primes next to powers of two.
const TABLE_SIZES: [u32; 10] = [251, 509, 1021, 2039, 4093, 8191, 16_381, 32_749, 65_521, 131_071];

/// Checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Name of the Node object.
    pub node_name: String,
    /// How to reach the API server.
    pub kubeconfig: Option<PathBuf>,
    /// Local API.
    pub socket: PathBuf,
    /// Endpoint files, the lock, the queue of deletes.
    pub state_dir: PathBuf,
    /// Pins.
    pub bpf_dir: PathBuf,
    /// The node's device, if told.
    pub device: Option<String>,
    /// Routing.
    pub routing: Routing,
    /// Pods have IPv4 addresses.
    pub ipv4: bool,
    /// Pods have IPv6 addresses.
    pub ipv6: bool,
    /// Where CNI goes: executables and configuration.
    pub cni_bin_dir: Option<PathBuf>,
    /// See `cni_bin_dir`.
    pub cni_conf_dir: Option<PathBuf>,
    /// Name of the cluster.
    pub cluster_name: String,
    /// Reached with the pod's own address.
    pub no_masquerade: Vec<IpNet>,
    /// Masquerade at all.
    pub masquerade: bool,
    /// MTU, if told.
    pub mtu: Option<u32>,
    /// UDP port of VXLAN.
    pub tunnel_port: u16,
    /// Policies apply to the node's own traffic, where they say so.
    pub host_firewall: bool,
    /// Policies report and do not drop.
    pub policy_audit_mode: bool,
    /// Addresses of the cluster that CIDR rules of the cilium.io kinds match.
    pub cidr_covers: Covers,
    /// Protocols beside TCP, UDP, SCTP and ICMP.
    pub extended_protocols: bool,
    /// How pods get their addresses.
    pub ipam: Ipam,
    /// Configuration of the plugin that gives them.
    pub ipam_plugin: Option<serde_json::Value>,
    /// Where pods of any node have theirs.
    pub pod_ranges: Vec<IpNet>,
    /// How this node's endpoints become known.
    pub endpoint_propagation: Propagation,
    /// Services are translated at sockets.
    pub socket_lb: bool,
    /// Control group of the node's processes; `None`: the root.
    pub cgroup_root: Option<PathBuf>,
    /// Whose sockets are aborted when their backend is removed.
    pub close_removed_backends: Protocols,
    /// Ports of Services at the nodes' addresses.
    pub node_ports: RangeInclusive<u16>,
    /// Which ports the node's own sockets keep off.
    pub node_port_bind_protection: PortGuard,
    /// How clients outside reach backends of other nodes.
    pub node_port_mode: Forwarding,
    /// Whether they pass through the node at its device.
    pub node_port_acceleration: Acceleration,
    /// Entries of the tables of Services with consistent hashing.
    pub maglev_table_size: u32,
    /// Where load balancers ask whether the node is well.
    pub healthz_bind_address: Option<SocketAddr>,
    /// Where metrics are read.
    pub metrics_address: Option<SocketAddr>,
    /// How agents ask each other; `None`: they do not.
    pub peer: Option<peer::Settings>,
    /// Log directives.
    pub log: String,
}

/// What is wrong with the settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("config: cannot read {path}")]
    Read {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file has an unknown field or a wrong type.
    #[error("config {path}: {problem}")]
    Parse {
        /// Its path.
        path: PathBuf,
        /// Field and what was expected.
        problem: String,
    },
    /// A value is not acceptable.
    #[error("{field}: expected {expected}, found {found}")]
    Value {
        /// Name of the flag.
        field: &'static str,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
}

impl Options {
    /// Adds what the file says where neither flag nor environment said anything.
    ///
    /// # Errors
    /// The file cannot be read or understood.
    pub fn with_file(self) -> Result<Self, ConfigError> {
        let Some(path) = self.config.clone() else { return Ok(self) };
        let text = std::fs::read_to_string(&path).map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        let file: Self =
            serde_saphyr::from_str(&text).map_err(|error| ConfigError::Parse { path, problem: error.to_string() })?;
        Ok(self.or(file))
    }

    fn or(self, other: Self) -> Self {
        Self {
            node_name: self.node_name.or(other.node_name),
            kubeconfig: self.kubeconfig.or(other.kubeconfig),
            socket: self.socket.or(other.socket),
            state_dir: self.state_dir.or(other.state_dir),
            bpf_dir: self.bpf_dir.or(other.bpf_dir),
            device: self.device.or(other.device),
            routing: self.routing.or(other.routing),
            ip_families: self.ip_families.or(other.ip_families),
            cni_bin_dir: self.cni_bin_dir.or(other.cni_bin_dir),
            cni_conf_dir: self.cni_conf_dir.or(other.cni_conf_dir),
            cluster_name: self.cluster_name.or(other.cluster_name),
            no_masquerade: self.no_masquerade.or(other.no_masquerade),
            masquerade: self.masquerade.or(other.masquerade),
            mtu: self.mtu.or(other.mtu),
            tunnel_port: self.tunnel_port.or(other.tunnel_port),
            host_firewall: self.host_firewall.or(other.host_firewall),
            policy_audit_mode: self.policy_audit_mode.or(other.policy_audit_mode),
            policy_cidr_match_mode: self.policy_cidr_match_mode.or(other.policy_cidr_match_mode),
            extended_protocols: self.extended_protocols.or(other.extended_protocols),
            ipam: self.ipam.or(other.ipam),
            ipam_plugin: self.ipam_plugin.or(other.ipam_plugin),
            pod_cidr: self.pod_cidr.or(other.pod_cidr),
            max_pods: self.max_pods.or(other.max_pods),
            ipam_batch: self.ipam_batch.or(other.ipam_batch),
            ipam_preallocate: self.ipam_preallocate.or(other.ipam_preallocate),
            endpoint_propagation: self.endpoint_propagation.or(other.endpoint_propagation),
            socket_lb: self.socket_lb.or(other.socket_lb),
            cgroup_root: self.cgroup_root.or(other.cgroup_root),
            close_removed_backends: self.close_removed_backends.or(other.close_removed_backends),
            node_port_range: self.node_port_range.or(other.node_port_range),
            node_port_bind_protection: self.node_port_bind_protection.or(other.node_port_bind_protection),
            node_port_mode: self.node_port_mode.or(other.node_port_mode),
            node_port_acceleration: self.node_port_acceleration.or(other.node_port_acceleration),
            maglev_table_size: self.maglev_table_size.or(other.maglev_table_size),
            healthz_bind_address: self.healthz_bind_address.or(other.healthz_bind_address),
            metrics_address: self.metrics_address.or(other.metrics_address),
            peer_certificate: self.peer_certificate.or(other.peer_certificate),
            peer_key: self.peer_key.or(other.peer_key),
            peer_authority: self.peer_authority.or(other.peer_authority),
            peer_port: self.peer_port.or(other.peer_port),
            log: self.log.or(other.log),
            config: self.config,
        }
    }

    /// Checks everything.
    ///
    /// # Errors
    /// The first field that is not acceptable.
    pub fn check(self) -> Result<Config, ConfigError> {
        let Some(node_name) = self.node_name.filter(|name| !name.is_empty()) else {
            return Err(value("node-name", "the name of this machine's Node object", "nothing"));
        };
        let (ipv4, ipv6) = families(self.ip_families.as_deref().unwrap_or("ipv4,ipv6"))?;
        let tunnel_port = self.tunnel_port.unwrap_or(8472);
        if tunnel_port == 0 {
            return Err(value("tunnel-port", "1 to 65535", "0"));
        }
        let peer = peer(self.peer_certificate, self.peer_key, self.peer_authority, self.peer_port)?;
        let least = if ipv6 { 1280 } else { 576 };
        if let Some(mtu) = self.mtu.filter(|mtu| !(least..=65_535).contains(mtu)) {
            return Err(value("mtu", "576 (with IPv6: 1280) to 65535", &mtu.to_string()));
        }
        if self.node_port_acceleration.as_deref() == Some("native") && self.routing.as_deref() == Some("vxlan") {
            return Err(value("node-port-acceleration", "`disabled` or `best-effort` with routing `vxlan`", "native"));
        }
        let mode = self.ipam.as_deref().unwrap_or("cluster-pool");
        let names = "`cluster-pool`, `kubernetes`, `multi-pool`, `azure-overlay`, `azure-pod-subnet`, \
                     `azure-pod-subnet-block`, `azure-node-subnet` or `delegated`";
        let mode = IpamMode::named(mode).ok_or_else(|| value("ipam", names, mode))?;
        let max_pods = self.max_pods.unwrap_or(if mode == IpamMode::NodeSubnet { 30 } else { 250 });
        let ipam = Ipam {
            mode,
            max_pods: within("max-pods", "1 to 4094", max_pods, 1..=4094)?,
            batch: within("ipam-batch", "1 to 256", self.ipam_batch.unwrap_or(16), 1..=256)?,
            preallocate: within("ipam-preallocate", "0 to 4096", self.ipam_preallocate.unwrap_or(8), 0..=4096)?,
        };
        if mode.native_only() && self.routing.as_deref() == Some("vxlan") {
            return Err(value("routing", "`native`, with this ipam mode", "vxlan"));
        }
        let pod_ranges = prefixes("pod-cidr", self.pod_cidr.as_deref().unwrap_or_default())?;
        if !pod_ranges.is_empty() && !mode.native_only() {
            return Err(value("pod-cidr", "nothing, with this ipam mode", &self.pod_cidr.unwrap_or_default()));
        }
        let ipam_plugin = ipam::plugin(mode, self.ipam_plugin.as_deref())?;
        let node_ports = ports("node-port-range", self.node_port_range.as_deref().unwrap_or("30000-32767"))?;
        let node_port_bind_protection = match self.node_port_bind_protection.as_deref().unwrap_or("services") {
            "services" => PortGuard::Services,
            "range" => PortGuard::Range(node_ports.clone()),
            "none" => PortGuard::None,
            other => return Err(value("node-port-bind-protection", "`services`, `range` or `none`", other)),
        };
        Ok(Config {
            ipam,
            ipam_plugin,
            pod_ranges,
            node_name,
            kubeconfig: self.kubeconfig,
            socket: absolute("socket", self.socket.unwrap_or_else(|| "/run/weft/agent.sock".into()))?,
            state_dir: absolute("state-dir", self.state_dir.unwrap_or_else(|| "/run/weft/state".into()))?,
            bpf_dir: absolute("bpf-dir", self.bpf_dir.unwrap_or_else(|| "/sys/fs/bpf/weft".into()))?,
            device: self.device.filter(|device| !device.is_empty()),
            routing: match self.routing.as_deref().unwrap_or("native") {
                "native" => Routing::Native,
                "vxlan" => Routing::Vxlan,
                other => return Err(value("routing", "`native` or `vxlan`", other)),
            },
            ipv4,
            ipv6,
            cni_bin_dir: directory("cni-bin-dir", self.cni_bin_dir)?,
            cni_conf_dir: directory("cni-conf-dir", self.cni_conf_dir)?,
            cluster_name: cluster_name(self.cluster_name.unwrap_or_else(|| "default".into()))?,
            no_masquerade: prefixes("no-masquerade", self.no_masquerade.as_deref().unwrap_or_default())?,
            masquerade: switch("masquerade", self.masquerade, !mode.routable())?,
            mtu: self.mtu,
            tunnel_port,
            host_firewall: switch("host-firewall", self.host_firewall, true)?,
            policy_audit_mode: switch("policy-audit-mode", self.policy_audit_mode, false)?,
            cidr_covers: covers(self.policy_cidr_match_mode.as_deref().unwrap_or_default())?,
            extended_protocols: switch("extended-protocols", self.extended_protocols, false)?,
            endpoint_propagation: propagation(self.endpoint_propagation.as_deref().unwrap_or("ces-node"))?,
            socket_lb: switch("socket-lb", self.socket_lb, true)?,
            cgroup_root: self.cgroup_root.map(|path| absolute("cgroup-root", path)).transpose()?,
            close_removed_backends: protocols(self.close_removed_backends.as_deref().unwrap_or("udp"))?,
            node_ports,
            node_port_bind_protection,
            node_port_mode: match self.node_port_mode.as_deref().unwrap_or("snat") {
                "snat" => Forwarding::Snat,
                "dsr" => Forwarding::Dsr,
                other => return Err(value("node-port-mode", "`snat` or `dsr`", other)),
            },
            node_port_acceleration: match self.node_port_acceleration.as_deref().unwrap_or("disabled") {
                "disabled" => Acceleration::Disabled,
                "native" => Acceleration::Native,
                "best-effort" => Acceleration::BestEffort,
                other => {
                    return Err(value("node-port-acceleration", "`disabled`, `native` or `best-effort`", other));
                }
            },
            maglev_table_size: table_size(self.maglev_table_size.unwrap_or(16_381))?,
            healthz_bind_address: bind_address("healthz-bind-address", self.healthz_bind_address)?,
            metrics_address: bind_address("metrics-address", self.metrics_address)?,
            peer,
            log: self.log.unwrap_or_else(|| "info".into()),
        })
    }
}

/// All three files or none.
fn peer(
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    authority: Option<PathBuf>,
    port: Option<u16>,
) -> Result<Option<peer::Settings>, ConfigError> {
    let port = port.unwrap_or(peer::PORT);
    if port == 0 {
        return Err(value("peer-port", "1 to 65535", "0"));
    }
    match (certificate, key, authority) {
        (None, None, None) => Ok(None),
        (Some(certificate), Some(key), Some(authority)) => {
            Ok(Some(peer::Settings { files: peer::tls::Files { certificate, key, authority }, port }))
        }
        (None, ..) => Err(value("peer-certificate", "a file, as peer-key and peer-authority are given", "nothing")),
        (_, None, _) => Err(value("peer-key", "a file, as peer-certificate is given", "nothing")),
        (_, _, None) => Err(value("peer-authority", "a file, as peer-certificate is given", "nothing")),
    }
}

fn value(field: &'static str, expected: &'static str, found: &str) -> ConfigError {
    ConfigError::Value { field, expected, found: found.to_owned() }
}

fn switch(field: &'static str, text: Option<String>, default: bool) -> Result<bool, ConfigError> {
    match text.as_deref() {
        None => Ok(default),
        Some("true") => Ok(true),
        Some("false") => Ok(false),
        Some(other) => Err(value(field, "`true` or `false`", other)),
    }
}

fn within(
    field: &'static str,
    expected: &'static str,
    number: u32,
    range: std::ops::RangeInclusive<u32>,
) -> Result<u32, ConfigError> {
    if range.contains(&number) { Ok(number) } else { Err(value(field, expected, &number.to_string())) }
}

fn propagation(text: &str) -> Result<Propagation, ConfigError> {
    Propagation::read(text).ok_or_else(|| value("endpoint-propagation", "`cep`, `ces-operator` or `ces-node`", text))
}

fn protocols(text: &str) -> Result<Protocols, ConfigError> {
    let mut protocols = Protocols::default();
    for part in text.split(',').map(str::trim) {
        match part {
            "tcp" => protocols.tcp = true,
            "udp" => protocols.udp = true,
            "none" if text == "none" => {}
            _ => return Err(value("close-removed-backends", "`udp`, `tcp`, `tcp,udp` or `none`", text)),
        }
    }
    Ok(protocols)
}

fn covers(text: &str) -> Result<Covers, ConfigError> {
    let mut covers = Covers::WORLD;
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        match part {
            "nodes" => covers.nodes = true,
            "pods" => covers.pods = true,
            other => return Err(value("policy-cidr-match-mode", "`nodes`, `pods` or both", other)),
        }
    }
    Ok(covers)
}

fn ports(field: &'static str, text: &str) -> Result<RangeInclusive<u16>, ConfigError> {
    let range = text.split_once('-').and_then(|(first, last)| Some(first.parse().ok()?..=last.parse().ok()?));
    let range = range.filter(|range: &RangeInclusive<u16>| !range.is_empty() && *range.start() > 0);
    range.ok_or_else(|| value(field, "first and last port such as 30000-32767", text))
}

fn bind_address(field: &'static str, text: Option<String>) -> Result<Option<SocketAddr>, ConfigError> {
    let expected = "an address and a port such as 0.0.0.0:10256 or [::]:10256";
    let parse = |text: String| {
        let address = text.parse::<SocketAddr>().ok().filter(|address| address.port() > 0);
        address.ok_or_else(|| value(field, expected, &text))
    };
    text.filter(|text| !text.is_empty()).map(parse).transpose()
}

fn table_size(size: u32) -> Result<u32, ConfigError> {
    if TABLE_SIZES.contains(&size) {
        return Ok(size);
    }
    let expected = "251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521 or 131071";
    Err(value("maglev-table-size", expected, &size.to_string()))
}

fn families(text: &str) -> Result<(bool, bool), ConfigError> {
    let (mut ipv4, mut ipv6) = (false, false);
    for family in text.split(',').map(str::trim) {
        match family {
            "ipv4" => ipv4 = true,
            "ipv6" => ipv6 = true,
            _ => return Err(value("ip-families", "`ipv4,ipv6`, `ipv4` or `ipv6`", text)),
        }
    }
    Ok((ipv4, ipv6))
}

fn absolute(field: &'static str, path: PathBuf) -> Result<PathBuf, ConfigError> {
    if path.is_absolute() { Ok(path) } else { Err(value(field, "an absolute path", &display(&path))) }
}

fn directory(field: &'static str, text: Option<String>) -> Result<Option<PathBuf>, ConfigError> {
    text.filter(|text| !text.is_empty()).map(|text| absolute(field, PathBuf::from(text))).transpose()
}

fn display(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}

/// A label value (Kubernetes: at most 63 of letters, digits, `-`, `_`, `.`).
fn cluster_name(name: String) -> Result<String, ConfigError> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    if name.len() <= 63 && name.chars().all(good) && edge(name.chars().next()) && edge(name.chars().next_back()) {
        Ok(name)
    } else {
        Err(value("cluster-name", "at most 63 letters, digits, '-', '_' and '.'", &name))
    }
}

fn prefixes(field: &'static str, text: &str) -> Result<Vec<IpNet>, ConfigError> {
    let parse = |part: &str| {
        part.parse::<IpNet>().map(|net| net.trunc()).map_err(|_| value(field, "prefixes such as 10.0.0.0/8", part))
    };
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::{Options, Routing};
    use clap::Parser as _;

    fn options(flags: &[&str]) -> Options {
        Options::try_parse_from([&["weft-agent"], flags].concat()).expect("flags")
    }

    #[test]
    fn flags_beat_the_file() {
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("agent.yaml");
        std::fs::write(&file, "node-name: from-file\nrouting: vxlan\nmtu: 1400\n").expect("write");
        let path = file.to_str().expect("UTF-8");
        let config =
            options(&["--node-name", "from-flag", "--config", path]).with_file().expect("file").check().expect("good");
        assert_eq!((config.node_name.as_str(), config.routing, config.mtu), ("from-flag", Routing::Vxlan, Some(1400)));
        for (text, problem) in [("nodename: x\n", "nodename"), ("mtu: big\n", "mtu"), ("- 1\n", "agent.yaml")] {
            std::fs::write(&file, text).expect("write");
            let error = options(&["--config", path]).with_file().expect_err(text).to_string();
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn bad_values_name_the_flag() {
        let cases: &[(&[&str], &str)] = &[
            (&[], "node-name: expected the name"),
            (&["--node-name", "n", "--routing", "bgp"], "routing: expected `native` or `vxlan`, found bgp"),
            (&["--node-name", "n", "--ip-families", "ipv5"], "ip-families: expected"),
            (&["--node-name", "n", "--socket", "x"], "socket: expected an absolute path"),
            (&["--node-name", "n", "--mtu", "100"], "mtu: expected 576"),
            (&["--node-name", "n", "--no-masquerade", "10.0.0.0/8,x"], "no-masquerade: expected prefixes"),
            (&["--node-name", "n", "--cluster-name", "a b"], "cluster-name: expected"),
            (&["--node-name", "n", "--tunnel-port", "0"], "tunnel-port: expected"),
            (&["--node-name", "n", "--masquerade", "yes"], "masquerade: expected `true` or `false`"),
            (&["--node-name", "n", "--host-firewall", "on"], "host-firewall: expected `true` or `false`"),
            (&["--node-name", "n", "--policy-cidr-match-mode", "all"], "policy-cidr-match-mode: expected `nodes`"),
            (&["--node-name", "n", "--endpoint-propagation", "kvstore"], "endpoint-propagation: expected `cep`"),
            (&["--node-name", "n", "--node-port-range", "32767-30000"], "node-port-range: expected first and last"),
            (&["--node-name", "n", "--node-port-range", "0-5"], "node-port-range: expected first and last"),
            (&["--node-name", "n", "--node-port-range", "30000"], "node-port-range: expected first and last"),
            (
                &["--node-name", "n", "--node-port-bind-protection", "true"],
                "node-port-bind-protection: expected `services`, `range` or `none`, found true",
            ),
            (&["--node-name", "n", "--node-port-mode", "DSR"], "node-port-mode: expected `snat` or `dsr`, found DSR"),
            (
                &["--node-name", "n", "--node-port-acceleration", "native", "--routing", "vxlan"],
                "node-port-acceleration: expected `disabled` or `best-effort` with routing `vxlan`, found native",
            ),
            (
                &["--node-name", "n", "--node-port-acceleration", "generic"],
                "node-port-acceleration: expected `disabled`, `native` or `best-effort`, found generic",
            ),
            (&["--node-name", "n", "--maglev-table-size", "16384"], "maglev-table-size: expected 251, 509"),
            (&["--node-name", "n", "--healthz-bind-address", "10256"], "healthz-bind-address: expected an address"),
            (&["--node-name", "n", "--metrics-address", "[::]:0"], "metrics-address: expected an address"),
            (&["--node-name", "n", "--cni-conf-dir", "etc"], "cni-conf-dir: expected an absolute path"),
            (&["--node-name", "n", "--cgroup-root", "weft"], "cgroup-root: expected an absolute path"),
            (&["--node-name", "n", "--close-removed-backends", "sctp"], "close-removed-backends: expected `udp`"),
            (&["--node-name", "n", "--close-removed-backends", ""], "close-removed-backends: expected `udp`"),
        ];
        for (flags, problem) in cases {
            let error = options(flags).check().expect_err(problem).to_string();
            assert!(error.contains(problem), "{error}");
        }
        assert!(Options::try_parse_from(["weft-agent", "--no-such-flag"]).is_err());
    }
}
