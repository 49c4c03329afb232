//! The node's routes of ours. Each call makes one kind of them exactly what is given; other people's routes, and our
//! routes to pods, are never touched.

use crate::netlink::Socket;
use crate::netlink::path::{Path, Target};
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

/// Unreachable routes for these prefixes, for packets that no pod's own route takes (with an ICMP error): the node's own pod
/// CIDRs.
///
/// # Errors
/// The kernel refused something; what was done before stands, and the call may be repeated.
pub fn set_unreachable(nets: &[IpNet]) -> io::Result<()> {
    let wanted = nets.iter().map(|net| Path::new(net.trunc(), Target::Unreachable));
    set(wanted, |path| path.target == Target::Unreachable)
}

/// What the node itself sends to these prefixes goes through the tunnel device: the other nodes' pod CIDRs. `sources` are
/// this node's addresses, of which the one of the prefix's family is used.
///
/// # Errors
/// The kernel refused something; what was done before stands, and the call may be repeated.
pub fn set_tunnel(nets: &[IpNet], ifindex: u32, sources: &[IpAddr], mtu: u32) -> io::Result<()> {
    let wanted = nets.iter().map(|net| {
        let source = sources.iter().find(|source| source.is_ipv4() == net.addr().is_ipv4());
        Path { source: source.copied(), mtu, ..Path::new(net.trunc(), Target::Device(ifindex)) }
    });
    set(wanted, |path| path.target == Target::Device(ifindex))
}

fn set(wanted: impl Iterator<Item = Path>, of_this_kind: impl Fn(&Path) -> bool) -> io::Result<()> {
    let mut socket = Socket::open()?;
    let existing: Vec<Path> = socket.routes()?.into_iter().filter(|path| path.ours && of_this_kind(path)).collect();
    let mut nets = BTreeSet::new();
    for path in wanted {
        nets.insert(path.net);
        let same = |found: &&Path| found.net == path.net && found.source == path.source && found.mtu == path.mtu;
        if !existing.iter().any(|found| same(&found)) {
            socket.set_route(&path)?;
        }
    }
    for stale in existing.iter().filter(|path| !nets.contains(&path.net)) {
        socket.delete_route(stale)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
