//! The domain: ids, labels, selectors, what users want ([`intent`]), what the kernel shall hold ([`desired`]).
//! Typed tables ([`table`]) and what reconcilers keep per row ([`reconcile`]). No I/O, no clocks.

pub mod desired;
pub mod id;
pub mod intent;
pub mod label;
pub mod reconcile;
pub mod selector;
pub mod table;
