//! Endpoints: identity lookup by address, and ARP and neighbour discovery of pods.

pub mod lookup;
pub mod neighbour;
