//! The VXLAN device: one for all nodes, in collect-metadata mode (the remote end is set per packet).

use crate::netlink::{NetlinkError, Socket};
use crate::sysctl;
use std::io;
use weft_abi::TUNNEL_MAC;

/// What to make.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TunnelSpec {
    /// Name.
    pub name: String,
    /// UDP port.
    pub port: u16,
    /// Largest packet of the pod network.
    pub mtu: u32,
}

/// Bytes around a packet in the tunnel: Ethernet, VXLAN, UDP and the outer IP.
#[must_use]
pub const fn overhead(underlay_is_ipv6: bool) -> u32 {
    14 + 8 + 8 + if underlay_is_ipv6 { 40 } else { 20 }
}

/// Makes the device, or leaves the one that is as wanted. Returns its index. It is in the calling thread's namespace.
///
/// # Errors
/// The name belongs to something else, the port is taken, or the kernel refused something.
pub fn ensure(spec: &TunnelSpec) -> io::Result<u32> {
    let mut socket = Socket::open()?;
    let mut index = None;
    if let Some(found) = socket.device(&spec.name)? {
        let Some(vxlan) = found.vxlan else {
            let problem = format!("device {} exists and is no VXLAN device", spec.name);
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, problem));
        };
        let same = vxlan.port == spec.port && vxlan.collect_metadata && !vxlan.learning;
        if same && found.mac == Some(TUNNEL_MAC) && found.noarp {
            if found.mtu != spec.mtu {
                socket.set_mtu(found.index, spec.mtu)?;
            }
            index = Some(found.index);
        } else {
            socket.delete_device(found.index)?;
        }
    }
    let index = match index {
        Some(index) => index,
        None => create(&mut socket, spec)?,
    };
    // The programs know the nodes that tunnel packets may come from; routes to them need not lead through the tunnel.
    sysctl::write(&format!("net/ipv4/conf/{}/rp_filter", spec.name), "0")?;
    crate::link::quiet_ipv6(&spec.name)?;
    socket.set_up(index, true)?;
    Ok(index)
}

fn create(socket: &mut Socket, spec: &TunnelSpec) -> Result<u32, NetlinkError> {
    socket.create_vxlan(&spec.name, spec.port, spec.mtu, TUNNEL_MAC)?;
    let device = socket.device(&spec.name)?;
    device.map(|device| device.index).ok_or_else(|| {
        let source = io::Error::new(io::ErrorKind::NotFound, "it was removed right after it was made");
        NetlinkError::new(format!("find device {}", spec.name), source)
    })
}

/// Removes the device; `false` if there is none. A device of that name that is no VXLAN device is left alone.
///
/// # Errors
/// The kernel refused it.
pub fn remove(name: &str) -> io::Result<bool> {
    let mut socket = Socket::open()?;
    match socket.device(name)?.filter(|device| device.vxlan.is_some()) {
        Some(device) => Ok(socket.delete_device(device.index)?),
        None => Ok(false),
    }
}

#[cfg(test)]
mod tests;
