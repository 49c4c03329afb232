//! What policy documents say, evaluated naively: the judge of the compiler and of the kernel programs.
//!
//! Written from the documents alone, packet by packet and rule by rule, without identities, classes, entries or any
//! other notion of the compiler. It must stay that way: this crate knows the form in which policies are written
//! ([`weft_model::intent`]) and nothing of what is made of them, and it reads labels and selectors with code of its own.
//!
//! Where the documents leave a choice, this is ours:
//! - Packets between a node and its own pods: those to the pod are always allowed, those from the pod are up to the
//!   policies of both.
//! - A pod with its node's network is the node: never a subject and never selected as a pod.
//! - A prefix means addresses, whoever has them; [`weft_model::intent::Covers`] says whose in the cluster count.
//! - A port's name is one of a pod that the rule selects as a pod; behind a prefix no address has named ports, and a node
//!   has none.
//! - Labels that are no part of identities choose subjects but never peers.
//! - Of rules of equal priority and place in the tiers of the administrator deny comes first, then pass.
//! - A Service without a selector stands for its addresses outside and on nodes, never for pods.
//! - Policies for nodes leave the way between nodes and the API server open, unless a rule denies it.

mod labels;
mod peers;

pub mod generate;
pub mod judge;
pub mod minimize;
pub mod random;
pub mod show;
pub mod world;

pub use judge::{Decision, Judge, Reason, RuleRef, may_enter, may_leave, verdict};
pub use random::Random;
pub use world::{End, Node, Packet, Pod, Service, Settings, World};
