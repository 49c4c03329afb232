//! The embedded Kubernetes API server: what kubectl and our own programs need, and no more.
//!
//! Every client shows a certificate of the cluster's authority; whoever has one may do everything, since all of
//! them are components or administrators of a cluster on one machine. Without a certificate there are only
//! `/livez`, `/readyz`, `/healthz` and `/version`. Server-side apply is refused.

pub mod api;
mod arguments;
pub mod controller;
mod crd;
mod discovery;
pub mod error;
mod handler;
mod kinds;
pub mod object;
mod openapi;
mod patch;
pub mod pki;
mod protobuf;
mod request;
pub mod resource;
mod response;
mod schema;
pub mod selector;
mod server;
pub mod store;
mod stream;
mod table;
mod types;
mod watch;

pub use arguments::main;
pub use server::{Config, InProcess, ServeError, serve};
