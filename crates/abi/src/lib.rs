//! What the kernel programs and user space share: map keys and values, event records, verdicts, drop reasons,
//! reserved identities. Layouts are asserted at compile time; a change of layout bumps [`LAYOUT_VERSION`].
//!
//! One address type serves both families: 16 bytes in network order, IPv4 as `::ffff:a.b.c.d` (RFC 4291 2.5.5.2).
//! So every map, key and stage exists once, and no feature can exist for one family alone.
#![no_std]

mod addr;
mod config;
mod drop_reason;
mod endpoint;
mod event;
mod flow;
pub mod identity;
mod policy;
mod service;

pub use addr::Addr;
pub use config::{LISTENER_MARK, NodeConfig, config_flags};
pub use drop_reason::DropReason;
pub use endpoint::{
    CidrValue, EndpointInfo, IpcacheInfo, LpmKey, RouteInfo, endpoint_flags, ipcache_flags, route_flags,
};
pub use event::{Event, event_kind, verdict};
pub use flow::{
    FlowEntry, FlowKey, FragmentKey, FragmentValue, MetricKey, MetricValue, Path, flow_flags, flow_kind,
    fragment_sender, path_action,
};
pub use policy::{
    CLASS_ADMIN, PolicyClassKey, PolicyEntryKey, PolicyEntryValue, PolicyInfo, policy_action, policy_flags,
    policy_shape,
};

pub use service::{
    AffinityKey, AffinityValue, BackendInfo, DSR_BACKENDS_MAX, FrontendInfo, FrontendKey, HAIRPIN_V4, HAIRPIN_V6,
    MaglevKey, MaglevPart, RangeKey, SlotKey, SocketKey, SocketValue, backend_flags, client_hash, service_flags,
    socket_kind,
};

/// Version of all layouts in this crate together. It is part of the pin directory's name.
pub const LAYOUT_VERSION: u32 = 5;

/// Highest endpoint number of a node; slot 0 of the generation array is the node's own.
pub const ENDPOINT_ID_MAX: u16 = 4095;

/// Endpoint number of the node itself, as a subject of policies. Never a pod's.
pub const ENDPOINT_ID_HOST: u16 = ENDPOINT_ID_MAX;

/// MAC of every node's VXLAN device: one for all, so that encapsulated packets are addressed to the device that
/// decapsulates them, and no neighbour table is needed. Locally administered.
pub const TUNNEL_MAC: [u8; 6] = [0x0e, b'w', b'e', b'f', b't', 1];

/// Placeholder in the programs for the read of `ip_summed`, by which the loader finds the place.
pub const CHECKSUM_MARK: i32 = 0x5765_6674;

/// The same for the read of `csum_start`.
pub const CHECKSUM_START_MARK: i32 = 0x5765_6675;

/// Names of the maps, as in the ELF object and as pin names.
pub mod map_name {
    /// [`crate::Addr`] -> [`crate::EndpointInfo`]: the endpoints of this node.
    pub const ENDPOINTS: &str = "ENDPOINTS";
    /// [`crate::Addr`] -> [`crate::IpcacheInfo`]: pods and nodes of the cluster, exact.
    pub const IPCACHE: &str = "IPCACHE";
    /// [`crate::LpmKey`] -> [`crate::CidrValue`]: the prefixes that policies name.
    pub const PREFIXES: &str = "PREFIXES";
    /// [`crate::LpmKey`] -> [`crate::RouteInfo`]: pod CIDRs and prefixes that are not masqueraded.
    pub const ROUTES: &str = "ROUTES";
    /// u32 identity or prefix number -> u32 peer class: first step of the policy lookup, the same for all policies.
    pub const PEERS: &str = "PEERS";
    /// [`crate::PolicyClassKey`] -> u32 policy class: second step.
    pub const POLICY_CLASSES: &str = "POLICY_CLASSES";
    /// [`crate::PolicyEntryKey`] -> [`crate::PolicyEntryValue`]: third step.
    pub const POLICY_ENTRIES: &str = "POLICY_ENTRIES";
    /// u32 policy id -> [`crate::PolicyInfo`].
    pub const POLICY_INFO: &str = "POLICY_INFO";
    /// [`crate::FrontendKey`] -> [`crate::FrontendInfo`].
    pub const FRONTENDS: &str = "FRONTENDS";
    /// [`crate::SlotKey`] -> [`crate::BackendInfo`]: sets of backends.
    pub const SLOTS: &str = "SLOTS";
    /// u32 backend number -> [`crate::BackendInfo`].
    pub const BACKENDS: &str = "BACKENDS";
    /// [`crate::MaglevKey`] -> [`crate::MaglevPart`].
    pub const MAGLEV: &str = "MAGLEV";
    /// [`crate::RangeKey`] -> u32 1: source ranges of Services.
    pub const RANGES: &str = "RANGES";
    /// [`crate::AffinityKey`] -> [`crate::AffinityValue`].
    pub const AFFINITY: &str = "AFFINITY";
    /// [`crate::SocketKey`] -> [`crate::SocketValue`]: translated sockets: backend and frontend of each.
    pub const SOCKETS: &str = "SOCKETS";
    /// [`crate::FlowKey`] -> [`crate::FlowEntry`]: connection tracking and NAT.
    pub const FLOWS: &str = "FLOWS";
    /// [`crate::FragmentKey`] -> [`crate::FragmentValue`].
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// Array of u32: index 0 the node, then one per endpoint id: the revision at which it was last touched.
    pub const GENERATIONS: &str = "GENERATIONS";
    /// Array of one [`crate::NodeConfig`].
    pub const CONFIG: &str = "CONFIG";
    /// Ring buffer of [`crate::Event`].
    pub const EVENTS: &str = "EVENTS";
    /// Per-CPU array of [`crate::MetricValue`], index [`crate::MetricKey`].
    pub const METRICS: &str = "METRICS";
}

/// Default capacity of the maps; the agent's `--bpf-*-max` settings change it.
pub mod map_size {
    /// Limit of [`super::map_name::IPCACHE`].
    pub const IPCACHE: u32 = 262_144;
    /// Limit of [`super::map_name::PREFIXES`].
    pub const PREFIXES: u32 = 65_536;
    /// Limit of [`super::map_name::ROUTES`].
    pub const ROUTES: u32 = 65_536;
    /// Limit of [`super::map_name::PEERS`].
    pub const PEERS: u32 = 262_144;
    /// Limit of [`super::map_name::POLICY_CLASSES`].
    pub const POLICY_CLASSES: u32 = 262_144;
    /// Limit of [`super::map_name::POLICY_ENTRIES`].
    pub const POLICY_ENTRIES: u32 = 262_144;
    /// Limit of [`super::map_name::FRONTENDS`].
    pub const FRONTENDS: u32 = 131_072;
    /// Limit of [`super::map_name::SLOTS`].
    pub const SLOTS: u32 = 524_288;
    /// Limit of [`super::map_name::BACKENDS`].
    pub const BACKENDS: u32 = 262_144;
    /// Limit of [`super::map_name::MAGLEV`].
    pub const MAGLEV: u32 = 262_144;
    /// Limit of [`super::map_name::RANGES`].
    pub const RANGES: u32 = 65_536;
    /// Limit of [`super::map_name::AFFINITY`].
    pub const AFFINITY: u32 = 16_384;
    /// Limit of [`super::map_name::SOCKETS`].
    pub const SOCKETS: u32 = 16_384;
    /// Limit of [`super::map_name::FLOWS`].
    pub const FLOWS: u32 = 524_288;
    /// Limit of [`super::map_name::FRAGMENTS`].
    pub const FRAGMENTS: u32 = 8192;
}

#[cfg(feature = "user")]
mod pod {
    macro_rules! pod {
        ($($name:ident),* $(,)?) => { $(
            // SAFETY: `#[repr(C)]`, only integers and arrays of them, no implicit padding, any bit pattern is valid.
            unsafe impl aya::Pod for crate::$name {}
        )* };
    }
    pod!(
        SocketValue,
        SocketKey,
        SlotKey,
        RangeKey,
        MaglevPart,
        MaglevKey,
        FrontendKey,
        FrontendInfo,
        BackendInfo,
        AffinityValue,
        AffinityKey,
        Addr,
        CidrValue,
        EndpointInfo,
        Event,
        FlowEntry,
        FlowKey,
        FragmentKey,
        FragmentValue,
        IpcacheInfo,
        LpmKey,
        MetricValue,
        NodeConfig,
        PolicyClassKey,
        PolicyEntryKey,
        PolicyEntryValue,
        PolicyInfo,
        RouteInfo,
    );
}
