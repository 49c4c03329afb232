//! Neighbours: which MAC an address has on a link.

use super::address::family;
use super::device::Mac;
use super::{NetlinkError, Socket};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::RouteType;
use std::net::IpAddr;

impl Socket {
    /// Sets a neighbour for good: nobody is ever asked.
    ///
    /// # Errors
    /// [`NetlinkError`]
    pub fn set_neighbour(&mut self, index: u32, address: IpAddr, mac: Mac) -> Result<(), NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(address);
        message.header.ifindex = index;
        message.header.state = NeighbourState::Permanent;
        message.header.kind = RouteType::Unicast;
        let destination = match address {
            IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
            IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
        };
        message.attributes =
            vec![NeighbourAttribute::Destination(destination), NeighbourAttribute::LinkLayerAddress(mac.to_vec())];
        let what = || format!("set neighbour {address} of device {index}");
        self.request(what, RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Permanent neighbours of a device.
    ///
    /// # Errors
    /// [`NetlinkError`]
    pub fn neighbours(&mut self, index: u32) -> Result<Vec<(IpAddr, Mac)>, NetlinkError> {
        let all =
            self.dump(|| "list neighbours".into(), RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()))?;
        let mut found = Vec::new();
        for message in all {
            let RouteNetlinkMessage::NewNeighbour(neighbour) = message else { continue };
            if neighbour.header.ifindex != index || neighbour.header.state != NeighbourState::Permanent {
                continue;
            }
            let (mut address, mut mac) = (None, None);
            for attribute in &neighbour.attributes {
                match attribute {
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
                    NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
                    NeighbourAttribute::LinkLayerAddress(bytes) => mac = Mac::try_from(bytes.as_slice()).ok(),
                    _ => {}
                }
            }
            found.extend(address.zip(mac));
        }
        Ok(found)
    }
}
