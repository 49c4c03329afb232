//! Events, which the programs write into the ring buffer.

use crate::Addr;

/// One record.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Event {
    /// Monotonic nanoseconds.
    pub time_ns: u64,
    /// Source of the packet.
    pub source: Addr,
    /// Destination of the packet.
    pub destination: Addr,
    /// The service's address that the originator sends to; [`Addr::NONE`]: the packet was not translated. The packet is
    /// shown with the backend's.
    pub frontend: Addr,
    /// Source identity.
    pub source_identity: u32,
    /// Destination identity.
    pub destination_identity: u32,
    /// The rule that decided; 0: none.
    pub rule: u32,
    /// The policy that was evaluated; 0: not isolated.
    pub policy: u32,
    /// Bytes of IP.
    pub length: u32,
    /// Device on which the program runs.
    pub ifindex: u32,
    /// Events suppressed on this CPU since the last one that was sent.
    pub suppressed: u32,
    /// Source port (network order), or ICMP type in the low byte as in the packet.
    pub source_port_be: u16,
    /// Destination port (network order), or ICMP code.
    pub destination_port_be: u16,
    /// Endpoint id of the source, 0: not local.
    pub source_endpoint: u16,
    /// Endpoint id of the destination, 0: not local.
    pub destination_endpoint: u16,
    /// [`event_kind`].
    pub kind: u8,
    /// [`verdict`].
    pub verdict: u8,
    /// [`crate::DropReason`] number, also of what an audit let pass; 0: forwarded.
    pub reason: u8,
    /// IP protocol.
    pub protocol: u8,
    /// TCP flags.
    pub tcp_flags: u8,
    /// 0 ingress, 1 egress: the direction of `policy`, else of the hook.
    pub egress: u8,
    /// 1: the packet is of the replying direction.
    pub reply: u8,
    /// IP version, 4 or 6; 0 when not parsed.
    pub ip_version: u8,
    /// Port of `frontend`, network order.
    pub frontend_port_be: u16,
    /// Zero.
    pub pad: u16,
}

/// Kinds, numbered as in Hubble's ring.
pub mod event_kind {
    /// A packet was dropped.
    pub const DROP: u8 = 1;
    /// A packet passed (aggregated per connection).
    pub const TRACE: u8 = 4;
    /// A connection was decided.
    pub const POLICY_VERDICT: u8 = 5;
}

/// Verdicts.
pub mod verdict {
    /// Passed.
    pub const FORWARDED: u8 = 1;
    /// Dropped.
    pub const DROPPED: u8 = 2;
    /// Passed, though a policy in audit mode denies it, with `reason`.
    pub const AUDIT: u8 = 4;
}

const _: () = assert!(size_of::<Event>() == 104);
