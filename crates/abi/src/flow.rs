//! Connection tracking: one entry per connection, both directions in it.
//!
//! The key is canonical: the lesser (address, port) pair first, so packets of both directions find the same entry
//! and it ages as one. A masqueraded connection has a second entry under its outside tuple ([`flow_kind::NAT`]), and a
//! connection to a service one between the client and the frontend ([`flow_flags::SERVICE`]): it has the chosen
//! backend and lives as long as the connection between the client and the backend.

use crate::Addr;

/// Key of a connection.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct FlowKey {
    /// The lesser of the two ends, compared as (address words, port).
    pub low: Addr,
    /// The other one.
    pub high: Addr,
    /// Port of `low`, network order; for ICMP echo the id at both ends, for other ICMP the type of the request at the
    /// responder's end; 0 without ports.
    pub low_port_be: u16,
    /// Port of `high`.
    pub high_port_be: u16,
    /// IP protocol.
    pub protocol: u8,
    /// [`flow_kind`].
    pub kind: u8,
    /// Zero.
    pub pad: u16,
}

/// Kinds of entries.
pub mod flow_kind {
    /// A connection.
    pub const FLOW: u8 = 0;
    /// The outside tuple of a masqueraded connection; the entry holds the inside one.
    pub const NAT: u8 = 1;
}

/// Where packets of one direction go.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Path {
    /// [`path_action`].
    pub action: u8,
    /// Zero.
    pub pad: [u8; 3],
    /// Device to leave by.
    pub ifindex: u32,
    /// Device by which packets of this direction come in. Another one is judged anew: this is what keeps a pod from
    /// sending on the connection of another one.
    pub in_ifindex: u32,
    /// For [`path_action::POD`] the destination and the source MAC ([`Path::macs`]), for [`path_action::TUNNEL`] the
    /// remote node, else the next hop ([`Addr::NONE`]: the neighbour is the destination itself).
    pub target: Addr,
}

impl Path {
    /// To the host's stack.
    pub const STACK: Self =
        Self { action: path_action::STACK, pad: [0; 3], ifindex: 0, in_ifindex: 0, target: Addr::NONE };

    /// `target` of two MACs.
    #[inline(always)]
    #[must_use]
    pub const fn macs(destination: [u8; 6], source: [u8; 6]) -> Addr {
        let (d, s) = (destination, source);
        Addr([
            u32::from_ne_bytes([d[0], d[1], d[2], d[3]]),
            u32::from_ne_bytes([d[4], d[5], s[0], s[1]]),
            u32::from_ne_bytes([s[2], s[3], s[4], s[5]]),
            0,
        ])
    }
}

/// What to do with a packet.
pub mod path_action {
    /// Not decided yet.
    pub const NONE: u8 = 0;
    /// Into the pod (`bpf_redirect_peer`).
    pub const POD: u8 = 1;
    /// To the host's stack.
    pub const STACK: u8 = 2;
    /// Out of the device to `next_hop` (`bpf_redirect_neigh`).
    pub const DEVICE: u8 = 3;
    /// Wrapped in VXLAN to `next_hop`.
    pub const TUNNEL: u8 = 4;
    /// Masqueraded, then out of the device.
    pub const MASQUERADE: u8 = 5;
}

/// A connection.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FlowEntry {
    /// Monotonic seconds of the last packet; [`FlowEntry::DELETING`] once the collector claimed the entry.
    pub last_seen_s: u32,
    /// The revision under which the verdict was given. It holds while it is not older than the generations of the
    /// node (slot 0) and of both endpoints; else the next packet decides again.
    pub revision: u32,
    /// Endpoint id of the originator if it is local, else 0; [`crate::ENDPOINT_ID_HOST`] while the node is subject to
    /// policies.
    pub source_endpoint: u16,
    /// Endpoint id of the responder, likewise.
    pub destination_endpoint: u16,
    /// [`flow_flags`].
    pub flags: u16,
    /// Outside port, network order (masqueraded flows); of a [`flow_flags::SERVICE`] entry the backend's port.
    pub nat_port_be: u16,
    /// Identity of the originator.
    pub source_identity: u32,
    /// Identity of the responder; of a [`flow_flags::SERVICE`] entry the number of the backend.
    pub destination_identity: u32,
    /// Masqueraded: the outside address; a [`flow_kind::NAT`] entry: the inside one; a [`flow_flags::SERVICE`] entry: the
    /// backend's; tunnelled: the next hop of the outer packet. Up to here lies all of a SERVICE entry, on one cache line.
    pub nat_addr: Addr,
    /// Rule that allowed it out of the originator; 0: not isolated.
    pub egress_rule: u32,
    /// Rule that allowed it into the responder; 0: not isolated.
    pub ingress_rule: u32,
    /// Monotonic second of the last event.
    pub reported_s: u32,
    /// From the originator to the responder.
    pub forward: Path,
    /// Packets of the originator. Counters of the two directions lie on different cache lines.
    pub forward_packets: u64,
    /// Bytes of IP of the originator.
    pub forward_bytes: u64,
    /// Back.
    pub reply: Path,
    /// Port of `frontend`, network order.
    pub frontend_port_be: u16,
    /// Zero.
    pub pad: u16,
    /// Packets of the responder.
    pub reply_packets: u64,
    /// Bytes of IP of the responder.
    pub reply_bytes: u64,
    /// [`flow_flags::TRANSLATED`]: the destination of the originator's packets and the source of its replies.
    pub frontend: Addr,
}

impl FlowEntry {
    /// The collector owns the entry: packets treat it as absent, and only the collector removes it.
    pub const DELETING: u32 = u32::MAX;
}

/// Flags of [`FlowEntry`].
pub mod flow_flags {
    /// The originator is the `low` end of the key.
    pub const ORIGIN_LOW: u16 = 1;
    /// The originator has sent a packet.
    pub const SEEN_FORWARD: u16 = 2;
    /// The responder has sent a packet.
    pub const SEEN_REPLY: u16 = 4;
    /// Originator closed (FIN).
    pub const FIN_FORWARD: u16 = 8;
    /// Responder closed (FIN).
    pub const FIN_REPLY: u16 = 16;
    /// Either side reset the connection.
    pub const RST: u16 = 32;
    /// Masqueraded.
    pub const MASQUERADED: u16 = 64;
    /// Between a client and a frontend: the chosen backend, not a connection. Has no path, so that no packet is sent by it.
    pub const SERVICE: u16 = 128;
    /// A connection behind a service: the originator sends to `frontend`.
    pub const TRANSLATED: u16 = 256;
    /// The originator is the responder itself, and its packets come from [`crate::HAIRPIN_V4`] or [`crate::HAIRPIN_V6`].
    pub const HAIRPIN: u16 = 512;
    /// Direct server return, at the backend's node: the node of the frontend forwarded the originator's packets with the
    /// originator's address, and this node answers it in the name of `frontend`.
    pub const DSR_BACKEND: u16 = 1024;
    /// Direct server return, at the frontend's node: the originator's packets go to another node with the originator's
    /// address, and the replies do not pass here.
    pub const DSR_FRONTEND: u16 = 2048;
    /// With [`DSR_FRONTEND`]: a packet with the DSR option was sent to the backend's node.
    pub const DSR_OPTION_SENT: u16 = 4096;
}

/// A fragmented datagram: RFC 791 3.2, RFC 8200 4.5.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct FragmentKey {
    /// Source.
    pub source: Addr,
    /// Destination.
    pub destination: Addr,
    /// Identification, as in the packet.
    pub id_be: u32,
    /// IP protocol.
    pub protocol: u8,
    /// Where it comes from: the index of a pod's device, of which three bytes tell pods apart; see [`fragment_sender`].
    pub sender: [u8; 3],
}

/// Senders of fragments that are no pods of this node.
pub mod fragment_sender {
    /// The network, or the node itself.
    pub const NETWORK: [u8; 3] = [0; 3];
    /// Another node, by the tunnel.
    pub const TUNNEL: [u8; 3] = [0xff; 3];
}

/// The ports, from the first fragment.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FragmentValue {
    /// Network order.
    pub source_port_be: u16,
    /// Network order.
    pub destination_port_be: u16,
}

/// Index of the metrics array: `reason * 2 + direction`; reason 0 is "forwarded", direction 0 ingress, 1 egress.
pub struct MetricKey;

impl MetricKey {
    /// Entries of the array.
    pub const MAX: u32 = 512;
    /// In place of a reason: what passed though a policy in audit mode denies it. It is counted as forwarded, too.
    pub const AUDITED: u8 = 1;
    /// In place of a reason: what passed through the node before the kernel saw it (XDP); direction 0. It is counted as
    /// forwarded, too.
    pub const ACCELERATED: u8 = 2;
    /// In place of a reason: events that were not reported, for the rate limit or a full ring buffer; direction 0.
    pub const SUPPRESSED: u8 = 255;

    /// The index.
    #[inline(always)]
    #[must_use]
    pub const fn index(reason: u8, egress: bool) -> u32 {
        (reason as u32) * 2 + egress as u32
    }
}

/// A counter.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct MetricValue {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

const _: () = assert!(size_of::<FlowKey>() == 40);
const _: () = assert!(size_of::<Path>() == 28);
// The largest value with which the kernel's allocator needs no more than 256 bytes for an entry.
const _: () = assert!(size_of::<FlowEntry>() == 160);
const _: () = assert!(size_of::<FragmentKey>() == 40);
