//! What tests of packets have in common: nodes to run on, addresses of services, how to read what came out, and how to
//! begin anew.

use super::kernel::{DROP, Kernel, Outcome, REDIRECT};
use super::site::{FAMILIES, Family, Routing, V4, on_node};
use super::{ACK, Read, SYN, TCP, UDP, ip, read};
use anyhow::Result;
use std::net::IpAddr;
use weft_abi::{DropReason, FlowEntry, flow_kind, identity};

/// A test of both families on a node of native routing.
pub fn native(test: impl Fn(&mut Kernel, Family) -> Result<()> + Send + Sync + Copy + 'static) {
    on_node(Routing::Native, move |kernel| FAMILIES.iter().try_for_each(|family| test(kernel, *family)));
}

/// The same on a node of each routing.
pub fn everywhere(test: impl Fn(&mut Kernel, Family, Routing) -> Result<()> + Send + Sync + Copy + 'static) {
    for routing in [Routing::Native, Routing::Vxlan] {
        on_node(routing, move |kernel| FAMILIES.iter().try_for_each(|family| test(kernel, *family, routing)));
    }
}

/// An address.
///
/// # Panics
/// If the text is none.
#[must_use]
pub fn parsed(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// An address of a service inside the cluster.
#[must_use]
pub fn vip(f: Family) -> &'static str {
    if f.v6 { "fd96::5" } else { "10.96.0.5" }
}

/// An address of a load balancer, which is no node's.
#[must_use]
pub fn balancer(f: Family) -> &'static str {
    if f.v6 { "2001:db8:7::7" } else { "203.0.113.7" }
}

/// The frontend address that stands for every address of the node.
#[must_use]
pub fn any(f: Family) -> &'static str {
    if f.v6 { "::" } else { "0.0.0.0" }
}

/// The hairpin address.
#[must_use]
pub fn hairpin(f: Family) -> &'static str {
    if f.v6 { "100::2a:1" } else { "169.254.42.1" }
}

/// The identity of the outside.
#[must_use]
pub fn world(f: Family) -> u32 {
    if f.v6 { identity::WORLD_IPV6 } else { identity::WORLD_IPV4 }
}

/// The fields of the forwarded frame.
///
/// # Panics
/// If it was not.
#[must_use]
pub fn passed(outcome: &Outcome) -> Read {
    assert_eq!(outcome.action, REDIRECT);
    read(&outcome.frame)
}

/// Source, its port, destination, its port.
#[must_use]
pub fn ends(read: &Read) -> (IpAddr, u16, IpAddr, u16) {
    (read.source, read.source_port(), read.destination, read.destination_port())
}

/// The frame was dropped for this reason, with an event.
///
/// # Panics
/// If not.
pub fn dropped(kernel: &mut Kernel, outcome: &Outcome, reason: DropReason) {
    let event = kernel.drain().pop().expect("an event");
    assert_eq!((outcome.action, DropReason::from_raw(event.reason)), (DROP, Some(reason)));
}

/// The entry of a connection.
///
/// # Errors
/// If the map cannot be read.
pub fn flow(kernel: &Kernel, one: &str, other: &str) -> Result<Option<FlowEntry>> {
    Ok(kernel.connection(flow_kind::FLOW, one.parse()?, other.parse()?)?.map(|(_, entry)| entry))
}

/// Forgets all connections.
///
/// # Errors
/// If the map cannot be written.
pub fn forget(kernel: &mut Kernel) -> Result<()> {
    for key in kernel.flows.keys().collect::<Result<Vec<_>, _>>()? {
        kernel.flows.remove(&key)?;
    }
    Ok(())
}

/// Forgets all connections and all services.
///
/// # Errors
/// If a map cannot be written.
pub fn forget_all(kernel: &mut Kernel) -> Result<()> {
    for key in kernel.frontends.keys().collect::<Result<Vec<_>, _>>()? {
        kernel.frontends.remove(&key)?;
    }
    forget(kernel)
}

/// A request and its reply by a protocol.
#[must_use]
pub fn talk(protocol: u8, from: (&str, u16), to: (&str, u16), answer: bool) -> Vec<u8> {
    let header = ip(from.0, to.0);
    match protocol {
        TCP => header.tcp(from.1, to.1, if answer { SYN | ACK } else { SYN }, b""),
        UDP => header.udp(from.1, to.1, b"some text"),
        _ => header.sctp(from.1, to.1),
    }
}

/// The inner frame of a VXLAN packet to the other node, with its VNI.
///
/// # Panics
/// If it is none.
#[must_use]
pub fn unwrap(frame: &[u8]) -> (u32, Vec<u8>) {
    let outer = read(frame);
    assert_eq!((outer.source, outer.destination, outer.protocol), (parsed(V4.node), parsed(V4.peer), UDP));
    assert_eq!(outer.destination_port(), 8472);
    assert_eq!(outer.rest[8], 8, "the flag of a valid VNI");
    assert_eq!(usize::from(u16::from_be_bytes([outer.rest[4], outer.rest[5]])), outer.rest.len());
    let vni = u32::from_be_bytes([0, outer.rest[12], outer.rest[13], outer.rest[14]]);
    (vni, outer.rest[16..].to_vec())
}

/// A VXLAN packet from the other node.
#[must_use]
pub fn wrap(vni: u32, inner: &[u8]) -> Vec<u8> {
    let mut payload = vec![8, 0, 0, 0];
    payload.extend(&vni.to_be_bytes()[1..]);
    payload.push(0);
    payload.extend(inner);
    ip(V4.peer, V4.node).udp(50000, 8472, &payload)
}
