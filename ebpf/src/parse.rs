//! From bytes to a tuple: Ethernet, IPv4, IPv6 with extension headers, TCP, UDP, SCTP, ICMP, fragments.
//!
//! The head of the packet is copied once into a per-CPU buffer and read from there; nothing is trusted before it was
//! compared with the packet's length. What cannot be parsed is an error, never a pass.

pub mod frame;
pub mod icmp;
pub mod ip;
pub mod transport;
