//! Reserved security identities, numbered as users of the cilium.io kinds know them, and scopes.
//! An identity is a u32 of which 24 bits travel on tunnels.

/// Unknown.
pub const UNKNOWN: u32 = 0;
/// This node.
pub const HOST: u32 = 1;
/// Outside the cluster (single stack).
pub const WORLD: u32 = 2;
/// A pod that this network does not manage.
pub const UNMANAGED: u32 = 3;
/// Health endpoints.
pub const HEALTH: u32 = 4;
/// An endpoint whose labels are not known yet.
pub const INIT: u32 = 5;
/// Any other node of the cluster.
pub const REMOTE_NODE: u32 = 6;
/// The API server.
pub const KUBE_APISERVER: u32 = 7;
/// Ingress proxies.
pub const INGRESS: u32 = 8;
/// Outside the cluster, IPv4.
pub const WORLD_IPV4: u32 = 9;
/// Outside the cluster, IPv6.
pub const WORLD_IPV6: u32 = 10;
/// First number given to label sets.
pub const ALLOCATED_MIN: u32 = 256;
/// Last number given to label sets.
pub const ALLOCATED_MAX: u32 = 65_535;
/// Scope of the numbers that a node gives to CIDR prefixes; never leaves the node. The two lowest bits of such a
/// number are the [`scope`] of the peers that it stands for, so a prefix has three numbers.
pub const CIDR_SCOPE: u32 = 0x0100_0000;
/// Scope of peers outside the cluster.
pub const SCOPE_WORLD: u32 = 0;
/// Scope of nodes.
pub const SCOPE_NODE: u32 = 1;
/// Scope of pods, and of unknown identities.
pub const SCOPE_POD: u32 = 2;
/// Bits that a tunnel carries.
pub const TUNNEL_MASK: u32 = 0x00ff_ffff;

/// How prefixes apply to a peer with this identity: what to add to a prefix's number.
#[inline(always)]
#[must_use]
pub const fn scope(identity: u32) -> u32 {
    match identity {
        WORLD | WORLD_IPV4 | WORLD_IPV6 => SCOPE_WORLD,
        HOST | REMOTE_NODE | KUBE_APISERVER => SCOPE_NODE,
        _ => SCOPE_POD,
    }
}
