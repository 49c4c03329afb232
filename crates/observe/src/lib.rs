//! From the kernel's events to flows with names: [`decode`] -> [`enrich`] -> [`ring`] -> [`filter`] ->
//! [`serve`].
//!
//! One thread feeds [`Observer::push_all`]; any number of readers take [`Observer::snapshot`]s or follow. A slow reader
//! delays nobody: it loses flows, and learns how many.

pub mod clock;
pub mod decode;
pub mod enrich;
pub mod filter;
mod remember;
pub mod ring;
pub mod serve;

pub use decode::{DecodeError, event_from_bytes};
pub use enrich::{Directory, Party};
pub use serve::{Observer, Subscription};
