//! Network devices.

use super::{NetlinkError, Socket};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use std::os::fd::{AsRawFd, BorrowedFd};

/// A link-layer address.
pub type Mac = [u8; 6];

/// Largest batch of segments that a pod hands over at once, in bytes: an outer header must still fit before it.
const GSO_MAX: u32 = 65_000;

/// What is known of a device.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Device {
    /// Index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Administratively up.
    pub up: bool,
    /// Resolves no link-layer addresses.
    pub noarp: bool,
    /// MAC, if it has one.
    pub mac: Option<Mac>,
    /// MTU.
    pub mtu: u32,
    /// Kind, "veth" for example; empty for hardware.
    pub kind: String,
    /// Free text.
    pub alias: Option<String>,
    /// Index of the other end.
    pub peer: Option<u32>,
    /// The other end is in another network namespace.
    pub peer_elsewhere: bool,
    /// What a VXLAN device was made with.
    pub vxlan: Option<Vxlan>,
}

/// What we ask of a VXLAN device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Vxlan {
    /// UDP port.
    pub port: u16,
    /// The key comes with each packet.
    pub collect_metadata: bool,
    /// Learns from packets.
    pub learning: bool,
}

/// One end of a pair that is to be made.
#[derive(Clone, Copy, Debug)]
pub struct VethEnd<'a> {
    /// Name.
    pub name: &'a str,
    /// MAC.
    pub mac: Mac,
}

impl Socket {
    /// The device of that name.
    ///
    /// # Errors
    /// [`NetlinkError`]
    pub fn device(&mut self, name: &str) -> Result<Option<Device>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned()), skip_stats()];
        self.one_device(|| format!("find device {name}"), message)
    }

    /// The device with that index.
    ///
    /// # Errors
    /// [`NetlinkError`]
    pub fn device_at(&mut self, index: u32) -> Result<Option<Device>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![skip_stats()];
        self.one_device(|| format!("find device {index}"), message)
    }

    fn one_device(
        &mut self,
        what: impl FnOnce() -> String,
        message: LinkMessage,
    ) -> Result<Option<Device>, NetlinkError> {
        match self.get(what, RouteNetlinkMessage::GetLink(message)) {
            Ok(Some(RouteNetlinkMessage::NewLink(link))) => Ok(Some(device(&link))),
            Ok(_) => Ok(None),
            Err(error) if error.is(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All devices.
    ///
    /// # Errors
    /// [`NetlinkError`]
    pub fn devices(&mut self) -> Result<Vec<Device>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes = vec![skip_stats()];
        let all = self.dump(|| "list devices".into(), RouteNetlinkMessage::GetLink(message))?;
        let devices = all.iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(link) => Some(device(link)),
            _ => None,
        });
        Ok(devices.collect())
    }

    /// Makes a pair of devices, both down. The second one is born in `netns`.
    ///
    /// # Errors
    /// [`NetlinkError`]; `EEXIST` if one of the names is taken.
    pub fn create_veth(
        &mut self,
        here: VethEnd<'_>,
        there: VethEnd<'_>,
        netns: BorrowedFd<'_>,
        mtu: u32,
    ) -> Result<(), NetlinkError> {
        let end = |end: VethEnd<'_>| {
            vec![
                LinkAttribute::IfName(end.name.to_owned()),
                LinkAttribute::Mtu(mtu),
                LinkAttribute::Address(end.mac.to_vec()),
            ]
        };
        let mut peer = LinkMessage::default();
        peer.attributes = end(there);
        peer.attributes.extend([LinkAttribute::GsoMaxSize(GSO_MAX), LinkAttribute::GsoIpv4MaxSize(GSO_MAX)]);
        peer.attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
        let mut message = LinkMessage::default();
        message.attributes = end(here);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        let what = || format!("create the pair of devices {} and {}", here.name, there.name);
        self.request(what, RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Makes a VXLAN device that is told the tunnel's end packet by packet.
    ///
    /// # Errors
    /// [`NetlinkError`]; `EEXIST` if the name, or `EADDRINUSE` if the port is taken.
    pub fn create_vxlan(&mut self, name: &str, port: u16, mtu: u32, mac: Mac) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.flags = LinkFlags::Noarp;
        message.header.change_mask = LinkFlags::Noarp;
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::Address(mac.to_vec()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vxlan),
                LinkInfo::Data(InfoData::Vxlan(vec![
                    InfoVxlan::CollectMetadata(true),
                    InfoVxlan::Learning(false),
                    InfoVxlan::Port(port),
                    InfoVxlan::UDPCsum(false),
                    InfoVxlan::UDPZeroCsumTX(true),
                    InfoVxlan::UDPZeroCsumRX(true),
                ])),
            ]),
        ];
        let what = || format!("create the VXLAN device {name} on port {port}");
        self.request(what, RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Sets a device up or down.
    ///
    /// # Errors
    /// [`NetlinkError`]
    pub fn set_up(&mut self, index: u32, up: bool) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        message.header.change_mask = LinkFlags::Up;
        let what = || format!("set device {index} {}", if up { "up" } else { "down" });
        self.request(what, RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Gives a device its free text.
    ///
    /// # Errors
    /// [`NetlinkError`]
    pub fn set_alias(&mut self, index: u32, alias: &str) -> Result<(), NetlinkError> {
        self.set(index, "alias", LinkAttribute::IfAlias(alias.to_owned()))
    }

    /// Renames a device.
    ///
    /// # Errors
    /// [`NetlinkError`]
    pub fn rename(&mut self, index: u32, name: &str) -> Result<(), NetlinkError> {
        self.set(index, "name", LinkAttribute::IfName(name.to_owned()))
    }

    /// Changes a device's MTU.
    ///
    /// # Errors
    /// [`NetlinkError`]
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        self.set(index, "MTU", LinkAttribute::Mtu(mtu))
    }

    fn set(&mut self, index: u32, what: &str, attribute: LinkAttribute) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![attribute];
        self.request(|| format!("set the {what} of device {index}"), RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Removes a device (and its peer); `false` if there is none.
    ///
    /// # Errors
    /// [`NetlinkError`]
    pub fn delete_device(&mut self, index: u32) -> Result<bool, NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        match self.request(|| format!("delete device {index}"), RouteNetlinkMessage::DelLink(message), 0) {
            Ok(()) => Ok(true),
            Err(error) if error.is(libc::ENODEV) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn skip_stats() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}

fn device(link: &LinkMessage) -> Device {
    let mut device = Device {
        index: link.header.index,
        up: link.header.flags.contains(LinkFlags::Up),
        noarp: link.header.flags.contains(LinkFlags::Noarp),
        ..Device::default()
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name.clone_from(name),
            LinkAttribute::Address(bytes) => device.mac = Mac::try_from(bytes.as_slice()).ok(),
            LinkAttribute::Mtu(mtu) => device.mtu = *mtu,
            LinkAttribute::IfAlias(alias) => device.alias = Some(alias.clone()),
            LinkAttribute::Link(index) => device.peer = Some(*index),
            LinkAttribute::LinkNetNsId(_) => device.peer_elsewhere = true,
            LinkAttribute::LinkInfo(infos) => read_info(&mut device, infos),
            _ => {}
        }
    }
    device
}

fn read_info(device: &mut Device, infos: &[LinkInfo]) {
    for info in infos {
        match info {
            LinkInfo::Kind(kind) => device.kind = kind.to_string(),
            LinkInfo::Data(InfoData::Vxlan(data)) => {
                let mut vxlan = Vxlan::default();
                for item in data {
                    match item {
                        InfoVxlan::Port(port) => vxlan.port = *port,
                        InfoVxlan::CollectMetadata(on) => vxlan.collect_metadata = *on,
                        InfoVxlan::Learning(on) => vxlan.learning = *on,
                        _ => {}
                    }
                }
                device.vxlan = Some(vxlan);
            }
            _ => {}
        }
    }
}
