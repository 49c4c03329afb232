//! The incremental Service compiler: from Services, EndpointSlices, hostPorts and local redirects to map rows.
//!
//! [`Engine::apply`] enqueues the objects that a change concerns, [`Engine::plan`] diffs their desired rows with those in
//! force and returns a patch, and [`Engine::done`] reports its outcome. A change costs only its own objects. If something
//! does not fit, it is refused per object: the others are written, and the previous version of the refused one stays.

mod backends;
mod claims;
mod engine;
mod events;
mod held;
mod interface;
mod list;
pub mod maglev;
mod redirect;
mod refuse;
mod wanted;

pub use engine::{Engine, Outcome};
pub use events::Event;
pub use interface::{Allowed, ListedBackend, ListedPort, LocalPod, Object, Problem, Reason, Settings};
