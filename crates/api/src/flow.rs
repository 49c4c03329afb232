//! A flow as users see it.

use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// One observed event.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Flow {
    /// RFC 3339, with nanoseconds.
    pub time: String,
    /// The node that saw it.
    pub node: String,
    /// What became of it.
    pub verdict: Verdict,
    /// Why it was dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop_reason: Option<DropReason>,
    /// Direction, as its endpoint sees it.
    pub direction: Direction,
    /// The packet answers a connection.
    pub is_reply: bool,
    /// Sender.
    pub source: Peer,
    /// Receiver.
    pub destination: Peer,
    /// `TCP`, `UDP`, `SCTP`, `ICMPv4`, `ICMPv6`, or a number.
    pub protocol: String,
    /// Absent for protocols without ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// Likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,
    /// ICMP type and code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp: Option<(u8, u8)>,
    /// TCP flags, `SYN,ACK`.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub tcp_flags: String,
    /// Bytes of IP.
    pub length: u32,
    /// The rule that decided; for a default deny, the policies that isolate the endpoint.
    #[serde(default)]
    pub policies: Vec<PolicyRef>,
    /// Events that were not reported before this one, for the rate limit.
    #[serde(default)]
    pub suppressed: u32,
}

/// Forwarded or dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// Passed.
    Forwarded,
    /// Dropped.
    Dropped,
    /// Passed, since its endpoint is in audit mode; a policy would have dropped it.
    Audit,
}

/// Direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Direction {
    /// To the endpoint.
    Ingress,
    /// From the endpoint.
    Egress,
}

/// A drop reason, numbered and named as Cilium does.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DropReason {
    /// The number.
    pub code: u8,
    /// The name, or `reason N`.
    pub text: String,
}

/// One end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Peer {
    /// Address.
    pub ip: IpAddr,
    /// Identity.
    pub identity: u32,
    /// Labels of the identity, `reserved:world` for a reserved one.
    pub labels: Vec<String>,
    /// The pod, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The pod, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The node, for a node's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The Service, `namespace/name`, that this end of a connection is a backend (or the address) of.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub service: Option<String>,
}

/// Names a policy, and a rule of it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct PolicyRef {
    /// `NetworkPolicy`.
    pub kind: String,
    /// Namespace; empty for a kind without.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `ingress[0]`; absent for a default deny.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// What the policy's author wants to see in flow records.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub log: Option<String>,
}

impl std::fmt::Display for PolicyRef {
    /// `NetworkPolicy shop/web ingress[0]`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ", self.kind)?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)?;
        self.rule.as_ref().map_or(Ok(()), |rule| write!(f, " {rule}"))
    }
}

/// What to observe; every field that is set must match.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FlowFilter {
    /// Either end is this pod: `ns/name`, or a prefix of it.
    pub pod: Option<String>,
    /// The sender is.
    pub from_pod: Option<String>,
    /// The receiver is.
    pub to_pod: Option<String>,
    /// Either end is in this namespace.
    pub namespace: Option<String>,
    /// Verdict.
    pub verdict: Option<Verdict>,
    /// Either port.
    pub port: Option<u16>,
    /// Protocol, any case.
    pub protocol: Option<String>,
    /// Either address.
    pub ip: Option<IpAddr>,
}
