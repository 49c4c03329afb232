//! Endpoints, ipcache, prefixes.

use crate::Addr;

/// A local endpoint. Key: its [`Addr`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct EndpointInfo {
    /// Host side of the endpoint's link.
    pub ifindex: u32,
    /// Security identity.
    pub identity: u32,
    /// Policy for packets to the endpoint; 0: not isolated.
    pub policy_ingress: u32,
    /// Policy for packets from the endpoint; 0: not isolated.
    pub policy_egress: u32,
    /// Number of the endpoint, 1..=[`crate::ENDPOINT_ID_MAX`]; index of its generation.
    pub id: u16,
    /// [`endpoint_flags`].
    pub flags: u16,
    /// MAC of the device inside the pod.
    pub pod_mac: [u8; 6],
    /// MAC of the host side.
    pub host_mac: [u8; 6],
}

/// Flags of [`EndpointInfo`].
pub mod endpoint_flags {
    /// Everything to and from the endpoint is dropped (its policy could not be put in force).
    pub const BLOCKED: u16 = 1;
    /// What the endpoint's policies would drop is reported and passes.
    pub const AUDIT: u16 = 2;
}

/// The identity and node of an address. Key: the [`Addr`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct IpcacheInfo {
    /// Security identity.
    pub identity: u32,
    /// [`ipcache_flags`].
    pub flags: u32,
    /// The address of the node that has it, [`Addr::NONE`] for this node.
    pub node: Addr,
}

/// Flags of [`IpcacheInfo`].
pub mod ipcache_flags {
    /// The address is a node's own (this one or another).
    pub const NODE: u32 = 1;
    /// The address is on this node.
    pub const LOCAL: u32 = 2;
}

/// Key of the prefix tries: the prefix length counts bits of the 16-byte address (IPv4: 96 + n).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct LpmKey {
    /// Bits, 0..=128.
    pub prefix_len: u32,
    /// The address.
    pub addr: Addr,
}

/// A prefix that a policy names.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct CidrValue {
    /// The prefix's number: an identity of scope [`crate::identity::CIDR_SCOPE`], as it counts for the world
    /// ([`crate::identity::scope`] is added to it).
    pub identity: u32,
}

/// A row of a whole prefix.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RouteInfo {
    /// [`route_flags`].
    pub flags: u32,
    /// The node that has the pods of this prefix; [`Addr::NONE`] where that does not apply.
    pub node: Addr,
}

/// Flags of [`RouteInfo`].
pub mod route_flags {
    /// Pod addresses of this node: one without an endpoint goes nowhere.
    pub const LOCAL_POOL: u32 = 1;
    /// Pod addresses of another node.
    pub const REMOTE_POOL: u32 = 2;
    /// Reached with the pod's own address.
    pub const NO_MASQUERADE: u32 = 4;
}

const _: () = assert!(size_of::<EndpointInfo>() == 32);
const _: () = assert!(size_of::<IpcacheInfo>() == 24);
const _: () = assert!(size_of::<LpmKey>() == 20);
const _: () = assert!(size_of::<RouteInfo>() == 20);
