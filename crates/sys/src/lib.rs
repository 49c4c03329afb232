//! What the system is asked for, in one way everywhere: network namespaces, netlink, processes, control groups, files.

pub mod cgroup;
pub mod error;
pub mod files;
pub mod memory;
pub mod mount;
pub mod netlink;
pub mod netns;
pub mod process;
