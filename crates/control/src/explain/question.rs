//! What is asked.

use std::net::IpAddr;
use weft_model::id::{EndpointId, Identity};

/// One end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Party {
    /// Set for an endpoint of this node and, as [`EndpointId::HOST`], for the node itself.
    pub endpoint: Option<EndpointId>,
    /// As in this node's ipcache.
    pub identity: Identity,
    pub address: IpAddr,
}

/// A new connection to evaluate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Question {
    pub from: Party,
    pub to: Party,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port, or ICMP type, or 0 for protocols that have neither.
    pub port: u16,
}
