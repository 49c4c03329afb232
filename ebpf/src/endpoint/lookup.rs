//! Looks up an address: a pod of this node, the node itself, another pod or node of the cluster, or the world.

use aya_ebpf::maps::lpm_trie::Key;
use weft_abi::{Addr, EndpointInfo, NodeConfig, config_flags, identity, ipcache_flags, route_flags};

use crate::maps::{ENDPOINTS, IPCACHE, ROUTES};

#[inline(always)]
pub fn endpoint(address: &Addr) -> Option<&'static EndpointInfo> {
    // SAFETY: values are replaced, never changed in place.
    unsafe { ENDPOINTS.get(address) }
}

/// The identity of an address, and its flags in the ipcache.
#[inline(always)]
pub fn identity_of(address: &Addr, config: &NodeConfig) -> (u32, u32) {
    // SAFETY: copied at once.
    if let Some(info) = unsafe { IPCACHE.get(address) } {
        return (info.identity, info.flags);
    }
    if let Some(info) = ROUTES.get(&Key::new(128, *address)) {
        use route_flags::{LOCAL_POOL, REMOTE_POOL};
        if info.flags & (LOCAL_POOL | REMOTE_POOL) != 0 {
            return (identity::UNKNOWN, if info.flags & LOCAL_POOL != 0 { ipcache_flags::LOCAL } else { 0 });
        }
    }
    let world = if config.flags & config_flags::DUAL_STACK == 0 {
        identity::WORLD
    } else if address.is_v4() {
        identity::WORLD_IPV4
    } else {
        identity::WORLD_IPV6
    };
    (world, 0)
}

/// Whether host policies are enforced.
#[inline(always)]
pub fn has_host_policy(config: &NodeConfig) -> bool {
    config.flags & config_flags::HOST_POLICY != 0
}

/// Of which node an address is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum NodeAddress {
    /// Of this one: a configured address, or one of the ipcache.
    Own,
    /// Of another one.
    Other,
    /// Of none.
    None,
}

/// Of which node this is an address.
#[inline(always)]
pub fn node_address(address: &Addr, config: &NodeConfig) -> NodeAddress {
    if *address == config.node_v4 || *address == config.node_v6 {
        return NodeAddress::Own;
    }
    const OWN: u32 = ipcache_flags::NODE | ipcache_flags::LOCAL;
    // SAFETY: read at once.
    match unsafe { IPCACHE.get(address) }.map(|info| info.flags & OWN) {
        Some(OWN) => NodeAddress::Own,
        Some(ipcache_flags::NODE) => NodeAddress::Other,
        _ => NodeAddress::None,
    }
}

/// Whether this is an address of this node.
#[inline(always)]
pub fn is_node_address(address: &Addr, config: &NodeConfig) -> bool {
    node_address(address, config) == NodeAddress::Own
}

/// Whether this is an address of a pod, here or elsewhere, or of a prefix for pods.
#[inline(always)]
pub fn is_pods_address(address: &Addr) -> bool {
    use route_flags::{LOCAL_POOL, REMOTE_POOL};
    // SAFETY: read at once.
    match unsafe { IPCACHE.get(address) }.map(|info| info.flags) {
        Some(flags) => flags & ipcache_flags::NODE == 0,
        None => ROUTES.get(&Key::new(128, *address)).is_some_and(|info| info.flags & (LOCAL_POOL | REMOTE_POOL) != 0),
    }
}

/// The tunnel address of a node: the underlay has one family, and the node may be known by its other address.
#[inline(always)]
pub fn tunnel_endpoint(node: Addr, config: &NodeConfig) -> Addr {
    if node.is_v4() == config.tunnel_source.is_v4() {
        return node;
    }
    // SAFETY: copied at once.
    unsafe { IPCACHE.get(&node) }.map_or(node, |info| info.node)
}

/// Whether this is an address of another node.
#[inline(always)]
pub fn is_other_node(address: &Addr) -> bool {
    // SAFETY: read at once.
    unsafe { IPCACHE.get(address) }
        .is_some_and(|info| info.flags & (ipcache_flags::NODE | ipcache_flags::LOCAL) == ipcache_flags::NODE)
}
