//! From the kernel's events to flows that people can read: [`decode`] -> [`enrich`] -> [`ring`] -> [`filter`] ->
//! [`serve`].
//!
//! One thread feeds [`Observer::push_all`]; any number of readers take [`Observer::snapshot`]s or follow. Nobody who reads
//! slowly holds up anybody else: he loses flows, and is told how many.

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
