//! The programs of sockets, at the control group that the node's processes are in.

use super::links::{Hooks, pinned, update};
use crate::pins::remove_if_there;
use crate::sys;
use aya_obj::generated::bpf_attach_type;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A program and its place.
pub(super) struct Hook {
    /// Name of the program.
    pub(super) program: &'static str,
    /// Name of the pin.
    pin: &'static str,
    kind: bpf_attach_type,
}

const fn hook(program: &'static str, pin: &'static str, kind: bpf_attach_type) -> Hook {
    Hook { program, pin, kind }
}

/// In the order in which they are attached: programs that show the frontend come before those that redirect.
pub(super) const HOOKS: [Hook; 11] = [
    hook("weft_sock_release", "socket-release", bpf_attach_type::BPF_CGROUP_INET_SOCK_RELEASE),
    hook("weft_peername4", "socket-getpeername4", bpf_attach_type::BPF_CGROUP_INET4_GETPEERNAME),
    hook("weft_peername6", "socket-getpeername6", bpf_attach_type::BPF_CGROUP_INET6_GETPEERNAME),
    hook("weft_recvmsg4", "socket-recvmsg4", bpf_attach_type::BPF_CGROUP_UDP4_RECVMSG),
    hook("weft_recvmsg6", "socket-recvmsg6", bpf_attach_type::BPF_CGROUP_UDP6_RECVMSG),
    hook("weft_bind4", "socket-bind4", bpf_attach_type::BPF_CGROUP_INET4_BIND),
    hook("weft_bind6", "socket-bind6", bpf_attach_type::BPF_CGROUP_INET6_BIND),
    hook("weft_sendmsg4", "socket-sendmsg4", bpf_attach_type::BPF_CGROUP_UDP4_SENDMSG),
    hook("weft_sendmsg6", "socket-sendmsg6", bpf_attach_type::BPF_CGROUP_UDP6_SENDMSG),
    hook("weft_connect4", "socket-connect4", bpf_attach_type::BPF_CGROUP_INET4_CONNECT),
    hook("weft_connect6", "socket-connect6", bpf_attach_type::BPF_CGROUP_INET6_CONNECT),
];

/// End of the name of a pin that is to take another one's place.
const NEW_SUFFIX: &str = "-new";

/// The program of a pin of ours.
pub(super) fn program(pin: &str) -> Option<&'static str> {
    HOOKS.iter().find(|hook| hook.pin == pin).map(|hook| hook.program)
}

/// Whether a control group's link has its group still.
pub(super) fn has_group(link: &OwnedFd) -> io::Result<bool> {
    Ok(sys::cgroup_info(link.as_fd())?.is_some_and(|link| link.cgroup != 0))
}

impl Hooks {
    /// Leads the sockets of all processes in a control group (of version 2) and below to backends of Services. Sockets
    /// that are connected already stay as they are.
    ///
    /// # Errors
    /// A system call failed. What was attached before, by this or an earlier call, stays.
    pub fn attach_sockets(&self, group: &Path) -> io::Result<()> {
        let group = File::open(group)?;
        let number = group.metadata()?.ino();
        HOOKS.iter().try_for_each(|hook| self.attach_socket(hook, &group, number))
    }

    fn attach_socket(&self, hook: &Hook, group: &File, number: u64) -> io::Result<()> {
        let path = self.links.join(hook.pin);
        let program = self.programs.get(hook.program);
        let old = pinned(&path)?;
        if let Some(link) = &old {
            let same = sys::cgroup_info(link.as_fd())?.is_some_and(|link| link.cgroup == number);
            if same && update(link, program)? {
                return Ok(());
            }
        }
        // The new one is attached before the old one is detached: a redirect that runs twice has the effect of one.
        let new = self.links.join(format!("{}{NEW_SUFFIX}", hook.pin));
        remove_if_there(&new)?;
        let link = sys::cgroup_attach(program, group.as_fd(), hook.kind)?;
        sys::object_pin(link.as_fd(), &new)?;
        fs::rename(&new, &path)?;
        if let Some(old) = old {
            // Without a pin it would go as well, some time later. One whose group is gone is detached already.
            let _ = sys::link_detach(old.as_fd());
        }
        Ok(())
    }

    /// Undoes [`Hooks::attach_sockets`]; `false` if there was nothing to undo. Sockets that were redirected stay so,
    /// and see from now on where.
    ///
    /// # Errors
    /// A system call failed.
    pub fn detach_sockets(&self) -> io::Result<bool> {
        let mut any = false;
        for hook in HOOKS.iter().rev() {
            any |= self.unpin(hook.pin)?;
        }
        Ok(any)
    }
}
