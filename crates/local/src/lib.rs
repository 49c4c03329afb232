//! The embedded cluster: an API server, a network of namespaces, nodes, and a runner for their pods, on one machine.
//!
//! It exists so that nothing but a Linux kernel is needed to use and to test Weft. The agents and the operator that
//! run in it are the ones of a real cluster, and know nothing of it.

pub mod apiserver;
pub mod cgroup;
pub mod client;
pub mod cluster;
pub mod controller;
pub mod dns;
pub mod fabric;
pub mod internal;
pub mod kubeconfig;
pub mod netlink;
pub mod netns;
pub mod node;
pub mod pod;
pub mod process;
pub mod supervisor;
pub mod toolbox;
