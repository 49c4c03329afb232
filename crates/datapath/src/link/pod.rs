//! The pod's end. Everything here runs in the pod's network namespace.

use super::spec::{GATEWAY_V4, GATEWAY_V6, LinkError, PodLink, PodLinkSpec};
use crate::netlink::Socket;
use crate::netlink::device::{Device, Mac};
use crate::netlink::path::{Path, Target};
use crate::sysctl;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Index of the loopback device in every namespace.
const LOOPBACK: u32 = 1;

/// Completes the pod's end.
pub(super) fn set_up(spec: &PodLinkSpec<'_>, link: &PodLink) -> Result<(), LinkError> {
    let mut socket = Socket::open().map_err(LinkError::system("open netlink in the pod"))?;
    if spec.addresses.iter().any(IpAddr::is_ipv6) {
        let disabled = LinkError::system("enable IPv6 in the pod");
        sysctl::write(&format!("net/ipv6/conf/{}/disable_ipv6", spec.pod_name), "0").map_err(disabled)?;
    }
    quiet_ipv6(&spec.pod_name).map_err(LinkError::system(format!("prepare device {} in the pod", spec.pod_name)))?;
    socket.set_up(LOOPBACK, true)?;
    socket.set_up(link.pod_ifindex, true)?;
    for address in &spec.addresses {
        let (gateway, any) = gateway(*address);
        socket.add_address(link.pod_ifindex, IpNet::from(*address))?;
        socket.set_neighbour(link.pod_ifindex, gateway, link.host_mac)?;
        socket.set_route(&Path::new(any, Target::Gateway(link.pod_ifindex, gateway)))?;
    }
    Ok(())
}

/// No link-local address, no duplicate detection, no router solicitation: nothing that a pod would send before it runs.
pub(crate) fn quiet_ipv6(name: &str) -> io::Result<()> {
    for (parameter, value) in [("addr_gen_mode", "1"), ("accept_dad", "0"), ("accept_ra", "0")] {
        match sysctl::write(&format!("net/ipv6/conf/{name}/{parameter}"), value) {
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result?,
        }
    }
    Ok(())
}

/// Compares the pod's end with the specification.
pub(super) fn check(spec: &PodLinkSpec<'_>) -> Result<(), String> {
    let text = |error: crate::netlink::NetlinkError| io::Error::from(error).to_string();
    let mut socket = Socket::open().map_err(|error| error.to_string())?;
    let device = socket
        .device(&spec.pod_name)
        .map_err(text)?
        .ok_or_else(|| format!("the pod has no device {}", spec.pod_name))?;
    check_device(&device, spec.pod_mac, spec.mtu)?;
    let addresses = socket.addresses().map_err(text)?;
    let routes = socket.routes().map_err(text)?;
    let neighbours = socket.neighbours(device.index).map_err(text)?;
    for address in &spec.addresses {
        if !addresses.iter().any(|found| found.index == device.index && found.net.addr() == *address) {
            return Err(format!("device {} of the pod has no address {address}", spec.pod_name));
        }
        let (gateway, any) = gateway(*address);
        let target = Target::Gateway(device.index, gateway);
        if !routes.iter().any(|path| path.net == any && path.target == target) {
            return Err(format!("the pod has no route to {any} through {gateway}"));
        }
        if !neighbours.iter().any(|(found, _)| *found == gateway) {
            return Err(format!("the pod does not know the MAC of {gateway}"));
        }
    }
    Ok(())
}

/// Compares what both ends have.
pub(super) fn check_device(device: &Device, mac: Option<Mac>, mtu: u32) -> Result<(), String> {
    if !device.up {
        return Err(format!("device {} is down", device.name));
    }
    if device.mtu != mtu {
        return Err(format!("device {} has an MTU of {}, expected {mtu}", device.name, device.mtu));
    }
    if mac.is_some() && device.mac != mac {
        return Err(format!("device {} has another MAC", device.name));
    }
    Ok(())
}

/// The gateway of an address's family, and that family's default destination.
fn gateway(address: IpAddr) -> (IpAddr, IpNet) {
    match address {
        IpAddr::V4(_) => (GATEWAY_V4.into(), Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0).into()),
        IpAddr::V6(_) => (GATEWAY_V6.into(), Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0).into()),
    }
}
