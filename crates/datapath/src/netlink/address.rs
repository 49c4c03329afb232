//! Addresses of devices.

use super::{NetlinkError, Socket};
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::net::IpAddr;

/// An address of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceAddress {
    /// Index of the device.
    pub index: u32,
    /// Address and prefix.
    pub net: IpNet,
    /// Valid everywhere, not on the link or the host alone.
    pub global: bool,
    /// No more to be used for new connections, not yet usable, or only secondary.
    pub second_choice: bool,
}

impl Socket {
    /// Adds an address that is usable at once: nobody is asked whether it is taken. No route comes with it.
    ///
    /// # Errors
    /// [`NetlinkError`]
    pub fn add_address(&mut self, index: u32, net: IpNet) -> Result<(), NetlinkError> {
        let mut message = AddressMessage::default();
        message.header.family = family(net.addr());
        message.header.prefix_len = net.prefix_len();
        message.header.index = index;
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes = vec![
            AddressAttribute::Local(net.addr()),
            AddressAttribute::Address(net.addr()),
            AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Noprefixroute),
        ];
        let what = || format!("add address {net} to device {index}");
        self.request(what, RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Addresses of all devices, both families.
    ///
    /// # Errors
    /// [`NetlinkError`]
    pub fn addresses(&mut self) -> Result<Vec<DeviceAddress>, NetlinkError> {
        let all = self.dump(|| "list addresses".into(), RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        let addresses = all.iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewAddress(address) => read(address),
            _ => None,
        });
        Ok(addresses.collect())
    }
}

fn read(message: &AddressMessage) -> Option<DeviceAddress> {
    let (mut local, mut address, mut flags) = (None, None, AddressFlags::empty());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let bad = AddressFlags::Deprecated
        | AddressFlags::Tentative
        | AddressFlags::Dadfailed
        | AddressFlags::Managetempaddr
        | AddressFlags::Secondary;
    Some(DeviceAddress {
        index: message.header.index,
        // On a point-to-point device `Address` is the other end.
        net: IpNet::new(local.or(address)?, message.header.prefix_len).ok()?,
        global: message.header.scope == AddressScope::Universe,
        second_choice: flags.intersects(bad),
    })
}

pub(super) fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
