//! The incremental policy compiler: from policy objects, identities and endpoints to map contents.
//!
//! [`Engine::apply`] takes a batch of changes and returns a [`Plan`], ordered so that no packet ever meets half of a
//! change. A new identity costs only the selectors that match it, a rule only the endpoints that it selects.

mod classes;
mod engine;
mod interface;
mod labels;
mod limits;
pub mod lookup;
mod objects;
mod peers;
mod plan;
mod pods;
pub mod ports;
mod prefix;
mod queries;
mod resolve;
mod resolved;
mod rule;
mod selector;

pub use engine::Engine;
pub use interface::{Change, Desired, Direction, EndpointPolicy, LocalEndpoint, Plan, Problem, RuleRef};
pub use limits::{Blocked, Limits, Overflow, Resource};
pub use lookup::lookup;
pub(crate) use pods::numbers as pod_numbers;
pub use rule::RuleRefs;
pub(crate) use selector::PeerSelector;
