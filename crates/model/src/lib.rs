//! The domain model: ids, labels, selectors, what the cluster declares ([`intent`]) and the desired state of the kernel
//! ([`desired`]); typed tables ([`table`]) and the state of reconcilers per row ([`reconcile`]). No I/O, no clocks.

pub mod desired;
pub mod id;
pub mod intent;
pub mod label;
pub mod reconcile;
pub mod selector;
pub mod table;
