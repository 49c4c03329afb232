//! The node's configuration, one array slot that user space may change at any time.

use crate::Addr;

/// The node's settings.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct NodeConfig {
    /// Current revision: new decisions are stamped with it. See [`crate::FlowEntry::revision`].
    pub revision: u32,
    /// [`config_flags`].
    pub flags: u32,
    /// Policy for packets to the node itself, where [`config_flags::HOST_POLICY`] is set; 0: not isolated.
    pub host_ingress: u32,
    /// The same for packets that the node itself makes.
    pub host_egress: u32,
    /// The node's device.
    pub device_ifindex: u32,
    /// The VXLAN device, 0: native routing.
    pub tunnel_ifindex: u32,
    /// The node's own addresses, [`Addr::NONE`] where the family is off.
    pub node_v4: Addr,
    /// IPv6.
    pub node_v6: Addr,
    /// Source address of the tunnel (one of the two above).
    pub tunnel_source: Addr,
    /// UDP port of the tunnel, network order.
    pub tunnel_port_be: u16,
    /// Largest packet that the pod network carries, bytes of IP.
    pub pod_mtu: u16,
    /// Ports (and ICMP ids) for masquerading, host order, inclusive. Outside the node's ephemeral range.
    pub nat_port_min: u16,
    /// Last.
    pub nat_port_max: u16,
    /// Ports to which the node's own sockets are not bound, host order, inclusive; last 0: none. See
    /// [`config_flags::PORTS_FREE`] for those that Services have.
    pub kept_port_min: u16,
    /// Last.
    pub kept_port_max: u16,
    /// MAC of the node's device.
    pub device_mac: [u8; 6],
    /// Zero.
    pub pad: [u8; 2],
    /// Timeouts in seconds: established TCP.
    pub tcp_established_s: u32,
    /// TCP before both SYNs were seen.
    pub tcp_syn_s: u32,
    /// After both FINs, or one RST.
    pub tcp_close_s: u32,
    /// Everything else.
    pub other_s: u32,
    /// Events per second and CPU, and as many at once; the rest is counted as suppressed.
    pub events_per_s: u32,
    /// Cookie of the node's network namespace, low word first; 0: not known.
    pub netns_cookie: [u32; 2],
}

/// Flags of [`NodeConfig`].
pub mod config_flags {
    /// Flows are observed: events of allowed flows are written, not of drops alone.
    pub const OBSERVE: u32 = 1;
    /// Pods reach the outside with the node's address, IPv4.
    pub const MASQUERADE_V4: u32 = 2;
    /// The same for IPv6.
    pub const MASQUERADE_V6: u32 = 4;
    /// Both families are on, so the world has two identities.
    pub const DUAL_STACK: u32 = 8;
    /// The device has no link-layer header (no MAC).
    pub const DEVICE_L3: u32 = 16;
    /// The node itself is subject to policies: its traffic is judged and tracked.
    pub const HOST_POLICY: u32 = 32;
    /// What the node's policies would drop is reported and passes.
    pub const HOST_AUDIT: u32 = 64;
    /// The node's own sockets may be bound to ports that Services have at its addresses.
    pub const PORTS_FREE: u32 = 128;
}

/// Mark of a socket (`SO_MARK`) that may be bound to any port: the agent's own, where a Service wants it to listen. Setting
/// it takes `CAP_NET_ADMIN`.
pub const LISTENER_MARK: u32 = 0x5746_0400;
