//! The control plane's logic: from intents to desired state, as pure functions and state machines over [`weft_model`].
//! No I/O, no clocks, no threads: events and time are passed in, actions are returned as data.

pub mod expand;
pub mod explain;
pub mod identity;
pub mod pack;
pub mod policy;
pub mod preview;
pub mod remotes;
pub mod service;
