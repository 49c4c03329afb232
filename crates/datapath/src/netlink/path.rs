//! Routes of the main table.

use super::address::family;
use super::{NetlinkError, Socket};
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The protocol number in our routes, by which they are told from everybody else's.
pub const PROTOCOL: u8 = 87;

/// Where packets go.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Target {
    /// To a device, on whose link the destination is.
    Device(u32),
    /// To a gateway on a device's link, whatever the device's addresses are.
    Gateway(u32, IpAddr),
    /// Nowhere: the sender is told so.
    Unreachable,
}

/// A route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Path {
    /// Destination.
    pub net: IpNet,
    /// Target.
    pub target: Target,
    /// Source address that the node itself takes.
    pub source: Option<IpAddr>,
    /// Largest packet, 0: the device's.
    pub mtu: u32,
    /// Lower is taken first; IPv6 has 1024 where nothing was given.
    pub metric: u32,
    /// It is ours.
    pub ours: bool,
}

impl Path {
    /// A route of ours.
    #[must_use]
    pub const fn new(net: IpNet, target: Target) -> Self {
        Self { net, target, source: None, mtu: 0, metric: 0, ours: true }
    }
}

impl Socket {
    /// Adds a route, in the place of one to the same destination.
    ///
    /// # Errors
    /// [`NetlinkError`]
    pub fn set_route(&mut self, path: &Path) -> Result<(), NetlinkError> {
        let what = || format!("add the route to {}", path.net);
        self.request(what, RouteNetlinkMessage::NewRoute(message(path)), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Removes a route; `false` if there is none.
    ///
    /// # Errors
    /// [`NetlinkError`]
    pub fn delete_route(&mut self, path: &Path) -> Result<bool, NetlinkError> {
        let what = || format!("delete the route to {}", path.net);
        match self.request(what, RouteNetlinkMessage::DelRoute(message(path)), 0) {
            Ok(()) => Ok(true),
            Err(error) if error.is(libc::ESRCH) || error.is(libc::ENODEV) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Routes of the main table, both families, as far as we understand them.
    ///
    /// # Errors
    /// [`NetlinkError`]
    pub fn routes(&mut self) -> Result<Vec<Path>, NetlinkError> {
        let mut paths = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            for answer in self.dump(|| "list routes".into(), RouteNetlinkMessage::GetRoute(message))? {
                if let RouteNetlinkMessage::NewRoute(route) = answer {
                    paths.extend(read(&route));
                }
            }
        }
        Ok(paths)
    }
}

fn message(path: &Path) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family(path.net.addr()),
        destination_prefix_length: path.net.prefix_len(),
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Other(PROTOCOL),
        scope: match path.target {
            Target::Device(_) => RouteScope::Link,
            _ => RouteScope::Universe,
        },
        kind: if path.target == Target::Unreachable { RouteType::Unreachable } else { RouteType::Unicast },
        ..RouteHeader::default()
    };
    message.attributes.push(RouteAttribute::Destination(path.net.network().into()));
    match path.target {
        Target::Device(index) => message.attributes.push(RouteAttribute::Oif(index)),
        Target::Gateway(index, gateway) => {
            message.header.flags = RouteFlags::Onlink;
            message.attributes.push(RouteAttribute::Gateway(gateway.into()));
            message.attributes.push(RouteAttribute::Oif(index));
        }
        Target::Unreachable => {}
    }
    if let Some(source) = path.source {
        message.attributes.push(RouteAttribute::PrefSource(source.into()));
    }
    if path.mtu > 0 {
        message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(path.mtu)]));
    }
    if path.metric > 0 {
        message.attributes.push(RouteAttribute::Priority(path.metric));
    }
    message
}

fn read(route: &RouteMessage) -> Option<Path> {
    let header = &route.header;
    let any: IpAddr = match header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let (mut destination, mut gateway, mut device, mut table) = (any, None, None, u32::from(header.table));
    let mut path = Path::new(IpNet::from(any), Target::Unreachable);
    path.ours = header.protocol == RouteProtocol::Other(PROTOCOL);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(to) => destination = ip(to)?,
            RouteAttribute::Gateway(to) => gateway = ip(to),
            RouteAttribute::PrefSource(from) => path.source = ip(from),
            RouteAttribute::Oif(index) => device = Some(*index),
            RouteAttribute::Table(id) => table = *id,
            RouteAttribute::Priority(metric) => path.metric = *metric,
            // Of several ways the first stands for all.
            RouteAttribute::MultiPath(hops) => {
                let hop = hops.first()?;
                device = Some(hop.interface_index);
                gateway = hop.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Gateway(to) => ip(to),
                    _ => None,
                });
            }
            RouteAttribute::Metrics(metrics) => {
                let mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
                path.mtu = mtu.unwrap_or(0);
            }
            _ => {}
        }
    }
    if table != u32::from(RouteHeader::RT_TABLE_MAIN) {
        return None;
    }
    path.net = IpNet::new(destination, header.destination_prefix_length).ok()?;
    path.target = match (header.kind, device, gateway) {
        (RouteType::Unreachable, ..) => Target::Unreachable,
        (RouteType::Unicast, Some(device), None) => Target::Device(device),
        (RouteType::Unicast, Some(device), Some(gateway)) => Target::Gateway(device, gateway),
        _ => return None,
    };
    Some(path)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}
