//! Attaches the programs to devices. Every link is pinned, so that traffic is judged while no agent runs; a new agent
//! replaces the program of the pinned link, atomically and without losing a packet.

use crate::error::OpenError;
use crate::pins::remove_if_there;
use crate::rcu::Expedited;
use crate::sys::{self, Side};
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::{fs, io};

mod edge;
mod links;
mod sockets;

pub use links::Hooks;
pub(crate) use links::Programs;
use links::{pinned, update};

const FROM_POD: &str = "weft_from_pod";
const TO_POD: &str = "weft_to_pod";
const FROM_DEVICE: &str = "weft_from_device";
const TO_DEVICE: &str = "weft_to_device";
const FROM_TUNNEL: &str = "weft_from_tunnel";
const TO_TUNNEL: &str = "weft_to_tunnel";
const COLLECT: &str = "weft_collect";

/// Every program that the object must have.
pub(crate) fn programs() -> impl Iterator<Item = &'static str> {
    let of_packets = [FROM_POD, TO_POD, FROM_DEVICE, TO_DEVICE, FROM_TUNNEL, TO_TUNNEL, COLLECT];
    of_packets.into_iter().chain([edge::PROGRAM]).chain(sockets::HOOKS.iter().map(|hook| hook.program))
}

/// What a device is to the node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    Endpoint,
    Device,
    Tunnel,
}

impl Role {
    const ALL: [Self; 3] = [Self::Endpoint, Self::Device, Self::Tunnel];

    const fn program(self, side: Side) -> &'static str {
        match (self, side) {
            (Self::Endpoint, Side::Ingress) => FROM_POD,
            (Self::Endpoint, Side::Egress) => TO_POD,
            (Self::Device, Side::Ingress) => FROM_DEVICE,
            (Self::Device, Side::Egress) => TO_DEVICE,
            (Self::Tunnel, Side::Ingress) => FROM_TUNNEL,
            (Self::Tunnel, Side::Egress) => TO_TUNNEL,
        }
    }

    /// End of the pin's name.
    const fn suffix(self, side: Side) -> &'static str {
        match (self, side) {
            (Self::Endpoint, Side::Ingress) => "-ingress",
            (Self::Endpoint, Side::Egress) => "-egress",
            (Self::Device, Side::Ingress) => "-device-ingress",
            (Self::Device, Side::Egress) => "-device-egress",
            (Self::Tunnel, Side::Ingress) => "-tunnel-ingress",
            (Self::Tunnel, Side::Egress) => "-tunnel-egress",
        }
    }

    /// The pin of a device. A pin's name must not contain dots, a device's no colons.
    fn pin(self, ifname: &str, side: Side) -> String {
        format!("{}{}", ifname.replace('.', ":"), self.suffix(side))
    }

    /// The device, role and side of a pin's name.
    fn parse(pin: &str) -> Option<(String, Self, Side)> {
        // Longer endings first: "-device-ingress" ends in "-ingress" too.
        let endings = Self::ALL.into_iter().rev().flat_map(|role| [(role, Side::Ingress), (role, Side::Egress)]);
        endings.into_iter().find_map(|(role, side)| {
            pin.strip_suffix(role.suffix(side)).map(|name| (name.replace(':', "."), role, side))
        })
    }
}

const SIDES: [Side; 2] = [Side::Ingress, Side::Egress];

impl Hooks {
    /// The host side of a pod's link: judges what the pod sends (ingress) and receives (egress).
    ///
    /// # Errors
    /// A system call failed; the device is as it was before.
    pub fn attach_endpoint(&self, ifname: &str, ifindex: u32) -> io::Result<()> {
        let _short = Expedited::begin();
        self.attach(Role::Endpoint, ifname, ifindex)
    }

    /// The node's device.
    ///
    /// # Errors
    /// A system call failed; the device is as it was before.
    pub fn attach_device(&self, ifname: &str, ifindex: u32) -> io::Result<()> {
        self.attach(Role::Device, ifname, ifindex)
    }

    /// The VXLAN device.
    ///
    /// # Errors
    /// A system call failed; the device is as it was before.
    pub fn attach_tunnel(&self, ifname: &str, ifindex: u32) -> io::Result<()> {
        self.attach(Role::Tunnel, ifname, ifindex)
    }

    /// Detaches all programs from a device of that name; `false` if there were none.
    ///
    /// # Errors
    /// A system call failed.
    pub fn detach(&self, ifname: &str) -> io::Result<bool> {
        let mut any = false;
        for role in Role::ALL {
            for side in SIDES {
                any |= self.unpin(&role.pin(ifname, side))?;
            }
        }
        any |= self.unpin(&edge::pin(ifname))?;
        Ok(any)
    }

    /// Names of the devices that have pins.
    ///
    /// # Errors
    /// The pin directory cannot be read.
    pub fn attached(&self) -> io::Result<BTreeSet<String>> {
        let device = |pin: &String| Role::parse(pin).map(|(name, ..)| name).or_else(|| edge::device(pin));
        Ok(self.pins()?.iter().filter_map(device).collect())
    }

    /// Removes the pins of devices that are gone and not in `keep`. Returns their names. A device that is there keeps its
    /// programs, even if it is not known: without them its packets would pass unjudged.
    ///
    /// # Errors
    /// A system call failed.
    pub fn prune(&self, keep: &BTreeSet<String>) -> io::Result<Vec<String>> {
        let mut pruned = BTreeSet::new();
        for pin in self.pins()? {
            let Some((ifname, ..)) = Role::parse(&pin).filter(|(ifname, ..)| !keep.contains(ifname)) else { continue };
            let path = self.links.join(&pin);
            let link = sys::object_get(&path)?;
            if !has_device(&link)? {
                remove_if_there(&path)?;
                pruned.insert(ifname);
            }
        }
        Ok(pruned.into_iter().collect())
    }

    /// The program that removes expired connections.
    pub(crate) fn collector(&self) -> impl AsFd + Send + use<> {
        /// Keeps all programs alive with it.
        struct Collect(Arc<Programs>);
        impl AsFd for Collect {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.0.get(COLLECT)
            }
        }
        Collect(self.programs.clone())
    }

    /// Replaces the program of every pinned link that has a device or a control group; removes the pins of the others.
    pub(crate) fn adopt(&self) -> Result<(Vec<String>, Vec<String>), OpenError> {
        let (mut adopted, mut pruned) = (Vec::new(), Vec::new());
        for pin in self.pins().map_err(|source| OpenError::path("read", &self.links, source))? {
            let path = self.links.join(&pin);
            let failed = |source| OpenError::path("adopt the link", &path, source);
            let (program, alive): (_, fn(&OwnedFd) -> io::Result<bool>) = match Role::parse(&pin) {
                Some((_, role, side)) => (role.program(side), has_device),
                None if edge::device(&pin).is_some() => (edge::PROGRAM, edge::has_device),
                None => match sockets::program(&pin) {
                    Some(program) => (program, sockets::has_group),
                    None => continue,
                },
            };
            let link = sys::object_get(&path).map_err(failed)?;
            if alive(&link).map_err(failed)? && update(&link, self.programs.get(program)).map_err(failed)? {
                adopted.push(pin);
            } else {
                drop(link);
                remove_if_there(&path).map_err(failed)?;
                pruned.push(pin);
            }
        }
        Ok((adopted, pruned))
    }

    fn attach(&self, role: Role, ifname: &str, ifindex: u32) -> io::Result<()> {
        let mut made: Vec<String> = Vec::new();
        for side in SIDES {
            let pin = role.pin(ifname, side);
            match self.attach_side(&self.links.join(&pin), self.programs.get(role.program(side)), ifindex, side) {
                Ok(false) => {}
                Ok(true) => made.push(pin),
                Err(error) => {
                    for pin in made {
                        self.unpin(&pin)?;
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// `true`: the link is new.
    fn attach_side(&self, path: &Path, program: BorrowedFd<'_>, ifindex: u32, side: Side) -> io::Result<bool> {
        if let Some(link) = pinned(path)? {
            let same = sys::tcx_info(link.as_fd())?.is_some_and(|link| link.ifindex == ifindex);
            if same && update(&link, program)? {
                return Ok(false);
            }
            drop(link);
            remove_if_there(path)?;
        }
        let link = sys::tcx_attach(program, ifindex, side)?;
        sys::object_pin(link.as_fd(), path)?;
        Ok(true)
    }

    /// Detaches at once, even if another process holds the link.
    fn unpin(&self, pin: &str) -> io::Result<bool> {
        let path = self.links.join(pin);
        let Some(link) = pinned(&path)? else { return Ok(false) };
        // A link whose device is gone is detached already.
        let _ = sys::link_detach(link.as_fd());
        remove_if_there(&path)
    }

    fn pins(&self) -> io::Result<Vec<String>> {
        let names = fs::read_dir(&self.links)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect()
    }
}

/// Whether a device's link has its device still.
fn has_device(link: &OwnedFd) -> io::Result<bool> {
    Ok(sys::tcx_info(link.as_fd())?.is_some_and(|link| link.ifindex != 0))
}

#[cfg(test)]
mod tests;
