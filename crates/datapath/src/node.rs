//! The node: its device and addresses, and the kernel parameters that forwarding for pods needs.

use crate::netlink::Socket;
use crate::netlink::address::DeviceAddress;
use crate::netlink::device::Mac;
use crate::netlink::path::{Path, Target};
use crate::sysctl;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

/// The device towards the other nodes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeDevice {
    /// Name.
    pub name: String,
    /// Index.
    pub ifindex: u32,
    /// MAC; `None`: it has no link layer.
    pub mac: Option<Mac>,
    /// MTU.
    pub mtu: u32,
    /// Its first global address.
    pub v4: Option<Ipv4Addr>,
    /// Its first global address.
    pub v6: Option<Ipv6Addr>,
}

/// Finds the node's device: the given one, or the one that the default route leads through.
///
/// # Errors
/// There is none, or the kernel refused something.
pub fn discover(name: Option<&str>) -> io::Result<NodeDevice> {
    let mut socket = Socket::open()?;
    let missing = |what: String| io::Error::new(io::ErrorKind::NotFound, what);
    let device = match name {
        Some(name) => socket.device(name)?.ok_or_else(|| missing(format!("there is no device {name}")))?,
        None => {
            let index = default_device(&socket.routes()?)
                .ok_or_else(|| missing("there is no default route, so the node's device must be given".to_owned()))?;
            socket.device_at(index)?.ok_or_else(|| missing(format!("device {index} has gone")))?
        }
    };
    let addresses = socket.addresses()?;
    let v4 = first(&addresses, device.index, |address| match address {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(_) => None,
    });
    let v6 = first(&addresses, device.index, |address| match address {
        IpAddr::V6(v6) => Some(v6),
        IpAddr::V4(_) => None,
    });
    Ok(NodeDevice { v4, v6, ifindex: device.index, mac: device.mac, mtu: device.mtu, name: device.name })
}

/// Device of the best default route, IPv4 before IPv6.
fn default_device(routes: &[Path]) -> Option<u32> {
    let mut best: Option<((bool, u32), u32)> = None;
    for path in routes.iter().filter(|path| path.net.prefix_len() == 0) {
        let (Target::Device(index) | Target::Gateway(index, _)) = path.target else { continue };
        let rank = (path.net.addr().is_ipv6(), path.metric);
        if best.is_none_or(|(known, _)| rank < known) {
            best = Some((rank, index));
        }
    }
    best.map(|(_, index)| index)
}

fn first<T>(addresses: &[DeviceAddress], index: u32, family: impl Fn(IpAddr) -> Option<T>) -> Option<T> {
    let of_device = || addresses.iter().filter(|found| found.index == index && found.global);
    let usable = of_device().filter(|found| !found.second_choice).find_map(|found| family(found.net.addr()));
    usable.or_else(|| of_device().find_map(|found| family(found.net.addr())))
}

/// Enables IP forwarding. Router advertisements are still accepted at the device.
///
/// # Errors
/// A kernel parameter cannot be written.
pub fn prepare(ipv4: bool, ipv6: bool, device: &str) -> io::Result<()> {
    if ipv4 {
        sysctl::write("net/ipv4/ip_forward", "1")?;
    }
    if ipv6 {
        // With forwarding the kernel ignores router advertisements, unless accept_ra is 2.
        let accept_ra = format!("net/ipv6/conf/{device}/accept_ra");
        if sysctl::read(&accept_ra)? == "1" {
            sysctl::write(&accept_ra, "2")?;
        }
        sysctl::write("net/ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// Ports (and ICMP ids) for masquerading: the largest range above the well-known ports that holds neither the node's own
/// ephemeral ports nor those of Services at the nodes' addresses.
///
/// # Errors
/// The kernel parameter cannot be read.
pub fn nat_ports(node_ports: &RangeInclusive<u16>) -> io::Result<RangeInclusive<u16>> {
    Ok(largest_gap(&[ephemeral_ports()?, node_ports.clone()]))
}

/// Reserves ports from automatic assignment (`ip_local_reserved_ports`): a Service may get them later.
///
/// # Errors
/// A kernel parameter cannot be read or written.
pub fn reserve_ports(ports: &RangeInclusive<u16>) -> io::Result<()> {
    const RESERVED: &str = "net/ipv4/ip_local_reserved_ports";
    match reserved(&sysctl::read(RESERVED)?, &ephemeral_ports()?, ports) {
        Some(text) => sysctl::write(RESERVED, &text),
        None => Ok(()),
    }
}

/// The new list of reserved ports, after `now`; `None`: unchanged, as the ports are not ephemeral or reserved already.
fn reserved(now: &str, ephemeral: &RangeInclusive<u16>, ports: &RangeInclusive<u16>) -> Option<String> {
    if ephemeral.end() < ports.start() || ports.end() < ephemeral.start() {
        return None;
    }
    let numbers = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some((first.trim().parse::<u16>().ok()?, last.trim().parse::<u16>().ok()?))
    };
    let is_in = now.split(',').filter_map(numbers).any(|(first, last)| first <= *ports.start() && *ports.end() <= last);
    let own = format!("{}-{}", ports.start(), ports.end());
    (!is_in).then(|| if now.is_empty() { own } else { format!("{now},{own}") })
}

fn ephemeral_ports() -> io::Result<RangeInclusive<u16>> {
    let text = sysctl::read("net/ipv4/ip_local_port_range")?;
    let mut numbers = text.split_whitespace().filter_map(|number| number.parse::<u16>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(low), Some(high)) if low <= high => Ok(low..=high),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("net/ipv4/ip_local_port_range: {text:?}"))),
    }
}

/// Below are ports that somebody may listen on for good reason.
const NAT_PORT_MIN: u16 = 12_000;

/// The largest range of ports that is in none of `taken`.
fn largest_gap(taken: &[RangeInclusive<u16>]) -> RangeInclusive<u16> {
    let mut taken: Vec<(u32, u32)> =
        taken.iter().map(|range| (u32::from(*range.start()), u32::from(*range.end()))).collect();
    taken.push((u32::from(u16::MAX) + 1, u32::MAX));
    taken.sort_unstable();
    let (mut best, mut free) = ((1, 0), u32::from(NAT_PORT_MIN));
    for (low, high) in taken {
        if low > free && (best.0 > best.1 || low - 1 - free > best.1 - best.0) {
            best = (free, low - 1);
        }
        free = free.max(high.saturating_add(1));
    }
    if best.0 > best.1 {
        // Everything is taken: what is masqueraded may collide with the node's own connections.
        best = (u32::from(NAT_PORT_MIN), u32::from(u16::MAX));
    }
    let port = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    port(best.0)..=port(best.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kubernetes' usual range.
    const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;

    #[test]
    fn ports_of_services_are_given_to_nobody_who_asks_for_any() {
        let ask = |now: &str, ephemeral| reserved(now, &ephemeral, &NODE_PORTS);
        assert_eq!(ask("", 32_768..=60_999), None, "they are not given anyway");
        assert_eq!(ask("", 10_000..=29_999), None);
        assert_eq!(ask("", 32_767..=60_999).as_deref(), Some("30000-32767"));
        assert_eq!(ask("8080,9000-9100", 1024..=65_535).as_deref(), Some("8080,9000-9100,30000-32767"));
        assert_eq!(ask("8080,29000-40000", 1024..=65_535), None, "they are reserved");
        let netns = crate::netns::NetNs::create().unwrap();
        netns
            .run(|| {
                sysctl::write("net/ipv4/ip_local_port_range", "30000 30009").unwrap();
                reserve_ports(&(30_000..=30_004)).unwrap();
                reserve_ports(&(30_000..=30_004)).unwrap();
                assert_eq!(sysctl::read("net/ipv4/ip_local_reserved_ports").unwrap(), "30000-30004");
                let any = |_| std::net::UdpSocket::bind("127.0.0.1:0").map(|socket| (socket.local_addr(), socket));
                for socket in (0..5).map(any).collect::<io::Result<Vec<_>>>().unwrap() {
                    assert!(socket.0.unwrap().port() > 30_004);
                }
            })
            .unwrap();
    }

    #[test]
    fn masquerading_keeps_away_from_the_nodes_own_ports() {
        assert_eq!(largest_gap(&[32_768..=60_999, NODE_PORTS]), 12_000..=29_999);
        assert_eq!(largest_gap(&[10_000..=65_535]), 12_000..=65_535, "nothing is free");
        assert_eq!(largest_gap(&[12_000..=40_000, NODE_PORTS]), 40_001..=65_535);
        assert_eq!(largest_gap(&[12_000..=65_535]), 12_000..=65_535);
        assert_eq!(largest_gap(&[]), 12_000..=65_535);
    }

    #[test]
    fn the_best_default_route_names_the_device() {
        let path = |net: &str, target, metric| Path { metric, ..Path::new(net.parse().unwrap(), target) };
        let gateway = |index| Target::Gateway(index, "10.0.0.1".parse().unwrap());
        assert_eq!(default_device(&[]), None);
        assert_eq!(default_device(&[path("10.0.0.0/8", Target::Device(4), 0)]), None);
        let routes = [
            path("::/0", gateway(9), 1),
            path("0.0.0.0/0", gateway(5), 200),
            path("0.0.0.0/0", gateway(3), 100),
            path("0.0.0.0/0", Target::Unreachable, 0),
        ];
        assert_eq!(default_device(&routes), Some(3));
        assert_eq!(default_device(&routes[..1]), Some(9));
    }
}
