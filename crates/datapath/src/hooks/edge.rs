//! The program before the kernel (XDP) of the node's device.

use super::links::{Hooks, pinned, update};
use crate::pins::remove_if_there;
use crate::sys;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Name of the program.
pub(super) const PROGRAM: &str = "weft_edge";
/// End of the pin's name.
const SUFFIX: &str = "-device-xdp";

/// The pin of a device.
pub(super) fn pin(ifname: &str) -> String {
    format!("{}{SUFFIX}", ifname.replace('.', ":"))
}

/// The device of a pin.
pub(super) fn device(pin: &str) -> Option<String> {
    pin.strip_suffix(SUFFIX).map(|name| name.replace(':', "."))
}

/// Whether a link has its device still.
pub(super) fn has_device(link: &OwnedFd) -> io::Result<bool> {
    Ok(sys::xdp_info(link.as_fd())?.is_some_and(|link| link.ifindex != 0))
}

impl Hooks {
    /// Lets connections of clients outside to backends elsewhere, once decided, pass through the node at its device,
    /// where the device's driver can do that. No other device does it any more.
    ///
    /// # Errors
    /// A system call failed, or the driver does not support it. What was attached before stays.
    pub fn attach_edge(&self, ifname: &str, ifindex: u32) -> io::Result<()> {
        let name = pin(ifname);
        let path = self.links.join(&name);
        let program = self.programs.get(PROGRAM);
        if let Some(link) = pinned(&path)? {
            let same = sys::xdp_info(link.as_fd())?.is_some_and(|link| link.ifindex == ifindex);
            if same && update(&link, program)? {
                return self.detach_edges(Some(&name)).map(drop);
            }
            drop(link);
            remove_if_there(&path)?;
        }
        let link = sys::xdp_attach(program, ifindex)?;
        sys::object_pin(link.as_fd(), &path)?;
        self.detach_edges(Some(&name)).map(drop)
    }

    /// Undoes [`Hooks::attach_edge`] on all devices; `false` if there was nothing to undo. The packets pass by the programs
    /// behind.
    ///
    /// # Errors
    /// A system call failed.
    pub fn detach_edge(&self) -> io::Result<bool> {
        self.detach_edges(None)
    }

    fn detach_edges(&self, but: Option<&str>) -> io::Result<bool> {
        let mut any = false;
        for name in self.pins()? {
            if device(&name).is_some() && Some(name.as_str()) != but {
                any |= self.unpin(&name)?;
            }
        }
        Ok(any)
    }
}
