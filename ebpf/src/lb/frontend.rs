//! The frontend that a packet is for, and whether its client may use it.

use aya_ebpf::maps::lpm_trie::Key;
use weft_abi::{DropReason, FrontendInfo, FrontendKey, NodeConfig, RangeKey, identity, service_flags};

use crate::endpoint::lookup::{NodeAddress, identity_of, is_node_address, node_address};
use crate::maps::{FRONTENDS, RANGES, RangeData, config};
use crate::packet::{SCTP, TCP, TCP_ACK, TCP_SYN, TUNNELLED, UDP};
use crate::scratch::Scratch;

/// Looks up the frontend of the packet's destination; leaves it in `s.service`.
#[inline(never)]
pub fn find_frontend(s: &mut Scratch) -> bool {
    let Some(config) = config() else { return false };
    s.service.frontend = FrontendKey {
        addr: s.packet.destination,
        port_be: s.packet.destination_port,
        protocol: s.packet.protocol,
        pad: 0,
    };
    // SAFETY: values are replaced, never changed in place; copied at once.
    let mut found = unsafe { FRONTENDS.get(&s.service.frontend) };
    if found.is_none() {
        // Few packets are for such a port, so whose address it is, is asked after.
        s.service.frontend.addr = if s.packet.version == 4 { FrontendKey::ANY_V4 } else { FrontendKey::ANY_V6 };
        // SAFETY: as above.
        found = unsafe { FRONTENDS.get(&s.service.frontend) };
        if !found.is_some_and(|info| is_asked_at_node(s, info, config)) {
            return false;
        }
    }
    let Some(info) = found else { return false };
    s.service.info = *info;
    let info = &s.service.info;
    (s.service.set, s.service.count, s.service.table) = if s.service.outside == 0 {
        (info.internal_set, info.internal_count, info.internal_table)
    } else {
        (info.external_set, info.external_count, info.external_table)
    };
    true
}

/// Whether the packet's destination is an address at which the ports of nodes are translated here.
#[inline(always)]
fn is_asked_at_node(s: &Scratch, info: &FrontendInfo, config: &NodeConfig) -> bool {
    match node_address(&s.packet.destination, config) {
        // What the node sends to itself does not come here.
        NodeAddress::Own => s.from_node == 0,
        // Where the client is, so that its policies see the pod behind; what is under way already stays with that node.
        NodeAddress::Other => s.service.outside == 0 && info.flags & service_flags::NODE_PORT != 0 && may_open(s),
        NodeAddress::None => false,
    }
}

/// Whether the packet may begin a connection.
#[inline(always)]
pub fn may_open(s: &Scratch) -> bool {
    s.packet.protocol != TCP || s.packet.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN
}

/// Whether a packet without ports is for an address that has frontends. Not if the node has the address as well: its own
/// processes may be meant.
#[inline(always)]
pub fn is_for_frontend(s: &Scratch) -> bool {
    if !matches!(s.packet.protocol, TCP | UDP | SCTP) {
        return false;
    }
    let Some(config) = config() else { return false };
    // SAFETY: nothing is read.
    !is_node_address(&s.packet.destination, config)
        && unsafe { FRONTENDS.get(&FrontendKey::of_address(s.packet.destination)) }.is_some()
}

/// Whether the client may use the frontend.
#[inline(never)]
pub fn check_client(s: &mut Scratch) -> Result<(), DropReason> {
    if s.service.outside == 0 {
        return Ok(());
    }
    let flags = s.service.info.flags;
    if flags & (service_flags::CLUSTER_IP | service_flags::REDIRECT) != 0 {
        return Err(DropReason::IsClusterIp);
    }
    if flags & service_flags::SOURCE_RANGES != 0 {
        let Some(config) = config() else { return Err(DropReason::NoConfig) };
        // The cluster's own are not meant.
        if identity::scope(client_identity(s, config)) == identity::SCOPE_WORLD {
            let range = RangeData { service_be: s.service.info.service.to_be(), addr: s.packet.source };
            const BITS: u32 = (size_of::<RangeKey>() as u32 - 4) * 8;
            // Other values are there for the trie alone.
            if RANGES.get(&Key::new(BITS, range)).is_none_or(|allowed| *allowed != 1) {
                return Err(DropReason::SourceRange);
            }
        }
    }
    Ok(())
}

#[inline(always)]
fn client_identity(s: &Scratch, config: &NodeConfig) -> u32 {
    if s.packet.flags & TUNNELLED != 0 { s.packet.tunnel_identity } else { identity_of(&s.packet.source, config).0 }
}
