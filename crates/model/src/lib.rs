//! The domain: ids, labels, selectors, what users want ([`intent`]), what the kernel shall hold ([`desired`]).
//! No I/O, no clocks.

pub mod desired;
pub mod id;
pub mod intent;
pub mod label;
pub mod selector;
