//! The only crate that knows Kubernetes: watches turn objects into [`weft_model::intent`] changes, writers turn what
//! the node has decided into objects. Nothing here decides anything about traffic.
//!
//! - [`client`]: JSON verbs over one authenticated connection pool, each with a deadline.
//! - [`watch`]: list and watch with differences, so that a relist never replays what is known.
//! - [`convert`]: objects into intents; the one place where foreign JSON is judged.
//! - [`identity`], [`slice`], [`endpoint`], [`node`], [`event`], [`lease`], [`crd`], [`status`], [`services`]: writers.
//! - [`pod`]: single reads, for when a watch is late.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "names of fields of Kubernetes objects say what they are")]

pub mod client;
pub mod convert;
pub mod crd;
pub mod discovery;
pub mod endpoint;
pub mod error;
pub mod event;
pub mod identity;
pub mod ipam;
pub mod lease;
mod list;
pub mod node;
pub mod pod;
mod retry;
pub mod services;
pub mod slice;
pub mod status;
pub mod watch;
pub mod wire;

pub use client::Client;
pub use error::Error;
