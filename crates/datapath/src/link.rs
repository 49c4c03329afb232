//! A pod's link: a pair of devices, one end in the pod, with everything that both ends need. It is made in one piece:
//! whatever fails, nothing stays behind, and no packet passes before the caller's programs are attached.
//!
//! The pod has its addresses without a subnet, and default routes through [`GATEWAY_V4`] and [`GATEWAY_V6`], whose MAC
//! is permanent; so no neighbour is ever resolved. The host has a route and a neighbour for each address.

use crate::netlink::Socket;
use crate::netlink::device::{Device, Mac, VethEnd};
use crate::netlink::path::{Path, Target};
use crate::rcu::Expedited;
use crate::sysctl;
use ipnet::IpNet;
use std::io;
use std::os::fd::AsFd;

mod pod;
mod spec;
pub use crate::link::spec::{GATEWAY_V4, GATEWAY_V6, LinkError, PodLink, PodLinkSpec};
pub(crate) use pod::quiet_ipv6;

/// Marks our devices, with the owner behind it.
const ALIAS: &str = "weft:";
/// Longest name of a device.
const NAME_MAX: usize = 15;
/// Longest owner: an alias holds 254 bytes.
const OWNER_MAX: usize = 254 - ALIAS.len();

/// A host's end that exists.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostLink {
    /// Name.
    pub name: String,
    /// Index.
    pub ifindex: u32,
    /// Whose it is.
    pub owner: String,
    /// MAC.
    pub mac: Option<Mac>,
    /// Index of the other end, in its namespace.
    pub pod_ifindex: Option<u32>,
    /// It was completed.
    pub up: bool,
}

/// Removes the device unless the link was completed, after a panic as well.
struct Rollback<'a> {
    socket: &'a mut Socket,
    index: u32,
    armed: bool,
}

impl Drop for Rollback<'_> {
    fn drop(&mut self) {
        if self.armed
            && let Err(error) = self.socket.delete_device(self.index)
        {
            tracing::error!(%error, "remove an unfinished link");
        }
    }
}

/// Makes a pod's link. `attach` is called while both ends are down: there the caller attaches its programs to the host's
/// end. The host's end is in the calling thread's network namespace.
///
/// # Errors
/// [`LinkError`]; nothing is left behind.
pub fn create_pod(
    spec: &PodLinkSpec<'_>,
    attach: impl FnOnce(&PodLink) -> io::Result<()>,
) -> Result<PodLink, LinkError> {
    check_spec(spec)?;
    let mut socket = Socket::open().map_err(LinkError::system("open netlink"))?;
    let host_mac = spec.host_mac.map_or_else(random_mac, Ok).map_err(LinkError::system("make a MAC"))?;
    let pod_mac = spec.pod_mac.map_or_else(random_mac, Ok).map_err(LinkError::system("make a MAC"))?;
    let create = |socket: &mut Socket| {
        let here = VethEnd { name: &spec.host_name, mac: host_mac };
        let there = VethEnd { name: &spec.pod_name, mac: pod_mac };
        socket.create_veth(here, there, spec.netns.as_fd(), spec.mtu)
    };
    match create(&mut socket) {
        Ok(()) => {}
        Err(error) if error.is(libc::EEXIST) => {
            remove_stale(&mut socket, spec)?;
            create(&mut socket)?;
        }
        Err(error) => return Err(error.into()),
    }
    let vanished = || LinkError::System {
        what: format!("find device {}", spec.host_name),
        source: io::Error::new(io::ErrorKind::NotFound, "it was removed right after it was made"),
    };
    let device = socket.device(&spec.host_name)?.ok_or_else(vanished)?;
    let mut rollback = Rollback { socket: &mut socket, index: device.index, armed: true };
    let link = PodLink {
        host_ifindex: device.index,
        host_name: spec.host_name.clone(),
        host_mac,
        pod_ifindex: device.peer.ok_or_else(vanished)?,
        pod_mac,
    };
    rollback.socket.set_alias(link.host_ifindex, &format!("{ALIAS}{}", spec.owner))?;
    attach(&link).map_err(|source| LinkError::Attach { name: spec.host_name.clone(), source })?;
    set_host_sysctls(&spec.host_name).map_err(LinkError::system(format!("prepare device {}", spec.host_name)))?;
    // The host's end first: an end that comes up after its peer can send at once. The other one can when the kernel gets
    // round to noticing the carrier, and drops packets until then; a query of the device makes it notice.
    rollback.socket.set_up(link.host_ifindex, true)?;
    let entered = spec.netns.run(|| pod::set_up(spec, &link));
    entered.map_err(LinkError::system("enter the pod's network namespace"))??;
    rollback.socket.device_at(link.host_ifindex)?.ok_or_else(vanished)?;
    for address in &spec.addresses {
        rollback.socket.set_neighbour(link.host_ifindex, *address, pod_mac)?;
        rollback.socket.set_route(&Path::new(IpNet::from(*address), Target::Device(link.host_ifindex)))?;
    }
    rollback.armed = false;
    Ok(link)
}

/// Removes a pod's link with everything that belongs to it; `false` if there is none. A device that is not ours is left
/// alone.
///
/// # Errors
/// [`LinkError`]
pub fn delete(host_name: &str) -> Result<bool, LinkError> {
    let mut socket = Socket::open().map_err(LinkError::system("open netlink"))?;
    let Some(device) = socket.device(host_name)? else { return Ok(false) };
    if owner(&device).is_none() && !is_unfinished(&device) {
        return Err(LinkError::NameTaken { name: host_name.to_owned(), owner: None });
    }
    let _short = Expedited::begin();
    Ok(socket.delete_device(device.index)?)
}

/// All links of ours in the calling thread's network namespace.
///
/// # Errors
/// [`LinkError`]
pub fn list() -> Result<Vec<HostLink>, LinkError> {
    let mut socket = Socket::open().map_err(LinkError::system("open netlink"))?;
    let links = socket.devices()?.into_iter().filter_map(|device| {
        let owner = owner(&device)?.to_owned();
        Some(HostLink {
            owner,
            ifindex: device.index,
            mac: device.mac,
            pod_ifindex: device.peer,
            up: device.up,
            name: device.name,
        })
    });
    Ok(links.collect())
}

/// Whether a link is as it should be: both ends up, addresses, routes, neighbours, MTU. The MACs are compared where the
/// specification has them.
///
/// # Errors
/// What is not as it should be.
pub fn check_pod(spec: &PodLinkSpec<'_>) -> Result<(), String> {
    let text = |error: &dyn std::error::Error| {
        format!("{error}{}", error.source().map(|s| format!(": {s}")).unwrap_or_default())
    };
    let mut socket = Socket::open().map_err(|error| text(&error))?;
    let host = socket
        .device(&spec.host_name)
        .map_err(|error| text(&error))?
        .ok_or_else(|| format!("the host has no device {}", spec.host_name))?;
    if owner(&host) != Some(&spec.owner) {
        return Err(format!("device {} is not of {}", spec.host_name, spec.owner));
    }
    pod::check_device(&host, spec.host_mac, spec.mtu)?;
    let routes = socket.routes().map_err(|error| text(&error))?;
    for address in &spec.addresses {
        let net = IpNet::from(*address);
        if !routes.iter().any(|path| path.net == net && path.target == Target::Device(host.index)) {
            return Err(format!("the host has no route to {address} through {}", spec.host_name));
        }
    }
    spec.netns.run(|| pod::check(spec)).map_err(|error| text(&error))?
}

fn check_spec(spec: &PodLinkSpec<'_>) -> Result<(), LinkError> {
    for (field, name) in [("host_name", &spec.host_name), ("pod_name", &spec.pod_name)] {
        if !is_name(name) {
            let problem = format!("expected a device name of 1 to {NAME_MAX} characters, got {name:?}");
            return Err(LinkError::Invalid { field, problem });
        }
    }
    if spec.owner.is_empty() || spec.owner.len() > OWNER_MAX {
        let problem = format!("expected 1 to {OWNER_MAX} bytes, got {}", spec.owner.len());
        return Err(LinkError::Invalid { field: "owner", problem });
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    let bad = |c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace() || c.is_control();
    (1..=NAME_MAX).contains(&name.len()) && name != "." && name != ".." && !name.contains(bad)
}

/// Whose a device is, if it is one of ours.
fn owner(device: &Device) -> Option<&str> {
    if device.kind != "veth" {
        return None;
    }
    device.alias.as_deref()?.strip_prefix(ALIAS)
}

/// A device left by an agent that was killed right after creating it: it has no owner yet and never was up.
fn is_unfinished(device: &Device) -> bool {
    device.kind == "veth" && device.alias.is_none() && !device.up
}

/// Removes the device of a former attempt of the same owner.
fn remove_stale(socket: &mut Socket, spec: &PodLinkSpec<'_>) -> Result<(), LinkError> {
    if let Some(device) = socket.device(&spec.host_name)? {
        let same = owner(&device) == Some(spec.owner.as_str());
        if !same && !is_unfinished(&device) {
            let owner = owner(&device).map(str::to_owned);
            return Err(LinkError::NameTaken { name: spec.host_name.clone(), owner });
        }
        socket.delete_device(device.index)?;
    }
    let find = || -> Result<Option<Device>, LinkError> {
        let mut inside = Socket::open().map_err(LinkError::system("open netlink in the pod"))?;
        Ok(inside.device(&spec.pod_name)?)
    };
    let inside = spec.netns.run(find).map_err(LinkError::system("enter the pod's network namespace"))??;
    let Some(inside) = inside else { return Ok(()) };
    // The pod's end of another link of ours: its host's end is in this namespace and points back.
    let taken = || LinkError::PodNameTaken { name: spec.pod_name.clone() };
    let peer = inside.peer.filter(|_| inside.kind == "veth" && inside.peer_elsewhere).ok_or_else(taken)?;
    let host = socket.device_at(peer)?.filter(|host| host.peer == Some(inside.index)).ok_or_else(taken)?;
    if owner(&host) != Some(spec.owner.as_str()) {
        return Err(taken());
    }
    socket.delete_device(host.index)?;
    Ok(())
}

/// The host's end neither makes addresses of its own nor listens to routers; where packets come from is the programs' to
/// judge.
fn set_host_sysctls(name: &str) -> io::Result<()> {
    sysctl::write(&format!("net/ipv4/conf/{name}/rp_filter"), "0")?;
    pod::quiet_ipv6(name)
}

/// A locally administered unicast MAC.
fn random_mac() -> io::Result<Mac> {
    use std::io::Read;
    let mut mac = Mac::default();
    std::fs::File::open("/dev/urandom")?.read_exact(&mut mac)?;
    mac[0] = (mac[0] & 0xfc) | 0x02;
    Ok(mac)
}

#[cfg(test)]
mod tests;
