//! The only place of user space that touches the kernel's data path.
//!
//! - [`Datapath::open`] makes or adopts a node's pinned maps, loads the programs and puts them in the place of those
//!   that run. [`Datapath`] is the [`weft_model::desired::Dataplane`] of a node: one thread owns it.
//! - Handles for other threads: [`Hooks`] (programs at devices and sockets), [`EventReader`] (drops, verdicts), [`Flows`]
//!   (connections), [`Metrics`] (counters), [`Collector`] (expiry), [`sockets::Destroyer`] (sockets of removed
//!   backends), [`ObserveSwitch`].
//! - Devices, synchronous and callable from any thread: [`link`] (a pod's link in one piece), [`tunnel`] (VXLAN),
//!   [`route`], [`node`] (device, addresses, sysctls), [`netns`]. They act in the network namespace of the calling
//!   thread.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use weft_datapath::{Datapath, Options, link, netns::NetNs};
//! let (mut datapath, adopted) = Datapath::open(&Options::new("/sys/fs/bpf/weft"))?;
//! let hooks = datapath.hooks();
//! let netns = NetNs::open("/run/netns/pod".as_ref())?;
//! let spec = link::PodLinkSpec {
//!     host_name: "weft0123456789".into(),
//!     owner: "container-id/eth0".into(),
//!     netns: &netns,
//!     pod_name: "eth0".into(),
//!     host_mac: None,
//!     pod_mac: None,
//!     mtu: 1500,
//!     addresses: vec!["10.244.1.7".parse()?, "fd44:0:0:1::7".parse()?],
//! };
//! let pod = link::create_pod(&spec, |pod| hooks.attach_endpoint(&pod.host_name, pod.host_ifindex))?;
//! # Ok(()) }
//! ```

pub mod cgroup;
pub mod cidr;
mod collect;
mod dataplane;
mod error;
pub mod event;
mod flows;
mod hooks;
mod layout;
pub mod link;
mod map;
mod metrics;
pub mod netlink;
pub mod node;
mod open;
mod page;
mod pins;
mod rcu;
pub mod route;
mod settings;
pub mod sockets;
mod sys;
pub mod sysctl;
#[cfg(test)]
mod testing;
pub mod tunnel;

pub use weft_sys::netns;

pub use collect::{Collected, Collector};
pub use dataplane::Datapath;
pub use error::OpenError;
pub use event::{EventReader, EventStop};
pub use flows::{Connection, End, Flows};
pub use hooks::Hooks;
pub use metrics::{Counter, Metrics};
pub use open::{Adopted, KeptSize, Options};
pub use page::ObserveSwitch;
pub use settings::{NodeSettings, PortGuard, Timeouts, TunnelSettings};
