//! The node's settings for the programs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use weft_abi::{Addr, NodeConfig, config_flags};

/// How long connections without a packet are remembered, in seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// TCP, established.
    pub tcp_established_s: u32,
    /// TCP before both sides' SYN.
    pub tcp_syn_s: u32,
    /// TCP after both FINs or one RST.
    pub tcp_close_s: u32,
    /// Everything else.
    pub other_s: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { tcp_established_s: 8 * 3600, tcp_syn_s: 60, tcp_close_s: 10, other_s: 60 }
    }
}

/// The VXLAN tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TunnelSettings {
    /// The collect-metadata device.
    pub ifindex: u32,
    /// UDP port.
    pub port: u16,
    /// This node's end.
    pub source: IpAddr,
}

/// Which ports the node's own sockets cannot be bound to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PortGuard {
    /// They can be bound to any.
    None,
    /// Those that Services have at the node's addresses.
    Services,
    /// These as well, whether a Service has them yet or not.
    Range(RangeInclusive<u16>),
}

/// The node, as the programs must know it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeSettings {
    /// The device towards the other nodes.
    pub device_ifindex: u32,
    /// Its MAC; `None`: it has no link layer.
    pub device_mac: Option<[u8; 6]>,
    /// `None`: native routing.
    pub tunnel: Option<TunnelSettings>,
    /// The node's address; `None`: the family is off.
    pub node_v4: Option<Ipv4Addr>,
    /// The node's address; `None`: the family is off.
    pub node_v6: Option<Ipv6Addr>,
    /// Largest packet of the pod network, bytes of IP.
    pub pod_mtu: u16,
    /// Ports for masqueraded connections, outside the node's own ephemeral range.
    pub nat_ports: RangeInclusive<u16>,
    /// Which ports the node's own sockets keep off.
    pub guard: PortGuard,
    /// Pods reach the outside with the node's address, IPv4.
    pub masquerade_v4: bool,
    /// The same for IPv6.
    pub masquerade_v6: bool,
    /// Both families are on.
    pub dual_stack: bool,
    /// Lifetimes of connections.
    pub timeouts: Timeouts,
    /// Reports per second and CPU; the rest is counted.
    pub events_per_s: u32,
}

impl NodeSettings {
    /// As the programs read it, with revision 0, without the observe flag, without policies for the node itself, and without its
    /// network namespace.
    #[must_use]
    pub fn to_abi(&self) -> NodeConfig {
        let flag = |on: bool, bit: u32| if on { bit } else { 0 };
        let address = |address: Option<IpAddr>| address.map_or(Addr::NONE, Addr::from);
        let (kept_port_min, kept_port_max) = match &self.guard {
            PortGuard::Range(ports) => (*ports.start(), *ports.end()),
            PortGuard::None | PortGuard::Services => (0, 0),
        };
        NodeConfig {
            revision: 0,
            host_ingress: 0,
            host_egress: 0,
            flags: flag(self.masquerade_v4, config_flags::MASQUERADE_V4)
                | flag(self.masquerade_v6, config_flags::MASQUERADE_V6)
                | flag(self.dual_stack, config_flags::DUAL_STACK)
                | flag(self.device_mac.is_none(), config_flags::DEVICE_L3)
                | flag(self.guard == PortGuard::None, config_flags::PORTS_FREE),
            device_ifindex: self.device_ifindex,
            tunnel_ifindex: self.tunnel.map_or(0, |tunnel| tunnel.ifindex),
            node_v4: address(self.node_v4.map(IpAddr::V4)),
            node_v6: address(self.node_v6.map(IpAddr::V6)),
            tunnel_source: address(self.tunnel.map(|tunnel| tunnel.source)),
            tunnel_port_be: self.tunnel.map_or(0, |tunnel| tunnel.port).to_be(),
            pod_mtu: self.pod_mtu,
            nat_port_min: *self.nat_ports.start(),
            nat_port_max: *self.nat_ports.end(),
            kept_port_min,
            kept_port_max,
            device_mac: self.device_mac.unwrap_or_default(),
            pad: [0; 2],
            tcp_established_s: self.timeouts.tcp_established_s,
            tcp_syn_s: self.timeouts.tcp_syn_s,
            tcp_close_s: self.timeouts.tcp_close_s,
            other_s: self.timeouts.other_s,
            events_per_s: self.events_per_s,
            netns_cookie: [0; 2],
        }
    }
}
