//! The reference model of policies: a naive evaluator that the compiler and the kernel programs are tested against.
//!
//! Written from the specifications alone, packet by packet and rule by rule, without identities, classes, entries or any
//! other notion of the compiler. It must stay that way: this crate knows policies as written ([`weft_model::intent`]) and
//! nothing of their compiled form, and it matches labels and selectors with code of its own.
//!
//! Where the specifications leave a choice, Weft's is:
//! - Traffic from a node to its own pods is always allowed; traffic from a pod to its node is subject to the policies of both.
//! - A pod with `hostNetwork` is its node: never a subject and never selected as a pod.
//! - A CIDR matches addresses, whoever has them; [`weft_model::intent::Covers`] limits it within the cluster.
//! - A named port is resolved in a pod that the rule selects by labels. Peers matched by CIDR, and nodes, have none.
//! - Labels that identities exclude select subjects but never peers.
//! - For rules of equal priority and index in the Admin and Baseline tiers, deny comes before pass, and pass before allow.
//! - A Service without a selector stands for its addresses outside and on nodes, never for pods.
//! - Host policies leave the connections between nodes and the API server open, unless a rule denies them.

mod labels;
mod peers;

pub mod effort;
pub mod generate;
pub mod judge;
pub mod minimize;
pub mod random;
pub mod show;
pub mod world;

pub use judge::{Decision, Judge, Reason, RuleRef, may_enter, may_leave, verdict};
pub use random::Random;
pub use world::{End, Node, Packet, Pod, Service, Settings, World};
