//! Random worlds, changes and packets from a seed, small enough that selectors, peers and ports meet often.

mod change;
mod policy;
mod world;

pub use change::change;
pub use policy::policy;
pub use world::{any_address, named_ports, namespace_labels, packet, pod, pod_labels, traffic, world};
