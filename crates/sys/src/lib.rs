//! What the system is asked for, in one way everywhere: network namespaces, netlink, processes, control groups, files.

pub mod cgroup;
pub mod netlink;
pub mod netns;
pub mod process;
