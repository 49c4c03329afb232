//! Why a packet was dropped: the one place where a reason is numbered and named. Numbers and names are Cilium's: clients
//! of Hubble and dashboards on `cilium_drop_count_total` know them.
//!
//! To add a reason:
//! 1. Add a line to the list below: what it means, its name here, number and name in Cilium. Where Cilium has no such
//!    reason, take a number that it does not use.
//! 2. Return it in a program, as `Err(DropReason::Name)`.
//!
//! Counters, events, metrics and `weft observe` follow from the list. The tests below fail while no program returns the
//! reason, if a number or a name is used twice, and if a name is not spelled as Cilium spells it.

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $number:literal, $name:literal;)*) => {
        /// A reason; 0 is "forwarded" in the metrics.
        #[repr(u8)]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum DropReason { $($(#[doc = $doc])+ $variant = $number,)* }

        impl DropReason {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The reason with this number.
            #[must_use]
            pub const fn from_raw(raw: u8) -> Option<Self> {
                match raw { $($number => Some(Self::$variant),)* _ => None }
            }

            /// What Cilium calls it: in metrics, flows and status.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

drop_reasons! {
    /// The source address is not the endpoint's.
    InvalidSourceIp = 132, "Invalid source ip";
    /// No rule allows it.
    PolicyDenied = 133, "Policy denied";
    /// A header contradicts itself or another one.
    InvalidPacket = 134, "Invalid packet";
    /// The transport header is cut off.
    CtTruncatedHeader = 135, "CT: Truncated or invalid header";
    /// Larger than the path's MTU, and must not be fragmented.
    FragmentationNeeded = 136, "Fragmentation needed";
    /// Neither IPv4 nor IPv6 nor ARP.
    UnsupportedL3 = 139, "Unsupported L3 protocol";
    /// A helper refused to rewrite the packet.
    WriteError = 141, "Error writing to packet";
    /// A transport protocol that is not tracked.
    UnknownL4 = 142, "Unknown L4 protocol";
    /// A packet on the tunnel device without tunnel metadata.
    NoTunnelKey = 147, "Error retrieving tunnel key";
    /// ARP or neighbour solicitation for anything but the gateway.
    UnknownTarget = 150, "Unknown L3 target address";
    /// To an address in a pod prefix that no endpoint has.
    Unroutable = 151, "Stale or unroutable IP";
    /// The connection table is full.
    CtInsertFailed = 155, "CT: Map insertion failed";
    /// A malformed chain of IPv6 extension headers, or one that is too long.
    Ipv6ExtensionHeader = 156, "Invalid IPv6 extension header";
    /// A fragment that could overlay a transport header, or of a packet to a service.
    FragmentUnsupported = 157, "IP fragmentation not supported";
    /// The service has no backend for this client.
    NoServiceBackend = 158, "Service backend not found";
    /// No node is known to tunnel to.
    NoTunnelEndpoint = 160, "No tunnel/encapsulation endpoint (datapath BUG!)";
    /// The agent has not written its configuration.
    NoConfig = 165, "No configuration available to perform policy decision";
    /// Not Ethernet.
    UnsupportedL2 = 166, "Unsupported L2 protocol";
    /// No free port for masquerading.
    NoNatMapping = 167, "No mapping for NAT masquerade";
    /// A protocol without ports cannot be masqueraded.
    NatProtocol = 168, "Unsupported protocol for NAT masquerade";
    /// The kernel has no route.
    FibFailed = 169, "FIB lookup failed";
    /// A pod, or a client outside by way of a service, sends to the tunnel port; or a tunnel packet carries another one.
    EncapsulationProhibited = 170, "Encapsulation traffic is prohibited";
    /// A tunnel packet carries an identity that is none, or that its sender cannot have; or comes from another node than its
    /// sender's.
    InvalidIdentity = 171, "Invalid identity";
    /// From an address in a pod prefix whose identity is not known yet.
    UnknownSender = 172, "Unknown sender";
    /// From outside to a ClusterIP.
    IsClusterIp = 174, "Is a ClusterIP";
    /// A fragment whose first fragment was not seen.
    FragmentNotFound = 175, "First logical datagram fragment not found";
    /// Neighbour discovery or multicast listener reports that do not come from the link, or are for a pod.
    ForbiddenIcmpv6 = 176, "Forbidden ICMPv6 message";
    /// The client is in none of the service's source ranges.
    SourceRange = 177, "Denied by LB src range check";
    /// A deny rule.
    PolicyDenyRule = 181, "Policy denied by denylist";
    /// A pod's frame with a VLAN tag.
    VlanFiltered = 182, "VLAN traffic disallowed by VLAN filter";
    /// The endpoint is not set up yet, or is being removed.
    EndpointNotReady = 203, "Endpoint policy program not available";
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::DropReason;
    use std::collections::BTreeSet;
    use std::path::Path;
    use std::string::String;
    use std::vec::Vec;
    use std::{format, fs};

    /// Names and numbers as Cilium 1.19 has them, from its own list: a reason may be left out, none may be spelled
    /// otherwise.
    const CILIUM: &[(u8, &str)] = &[
        (132, "Invalid source ip"),
        (133, "Policy denied"),
        (134, "Invalid packet"),
        (135, "CT: Truncated or invalid header"),
        (136, "Fragmentation needed"),
        (137, "CT: Unknown L4 protocol"),
        (139, "Unsupported L3 protocol"),
        (140, "Missed tail call"),
        (141, "Error writing to packet"),
        (142, "Unknown L4 protocol"),
        (143, "Unknown ICMPv4 code"),
        (144, "Unknown ICMPv4 type"),
        (145, "Unknown ICMPv6 code"),
        (146, "Unknown ICMPv6 type"),
        (147, "Error retrieving tunnel key"),
        (150, "Unknown L3 target address"),
        (151, "Stale or unroutable IP"),
        (153, "Error while correcting L3 checksum"),
        (154, "Error while correcting L4 checksum"),
        (155, "CT: Map insertion failed"),
        (156, "Invalid IPv6 extension header"),
        (157, "IP fragmentation not supported"),
        (158, "Service backend not found"),
        (160, "No tunnel/encapsulation endpoint (datapath BUG!)"),
        (162, "Reached EDT rate-limiting drop horizon"),
        (163, "Unknown connection tracking state"),
        (164, "Local host is unreachable"),
        (165, "No configuration available to perform policy decision"),
        (166, "Unsupported L2 protocol"),
        (167, "No mapping for NAT masquerade"),
        (168, "Unsupported protocol for NAT masquerade"),
        (169, "FIB lookup failed"),
        (170, "Encapsulation traffic is prohibited"),
        (171, "Invalid identity"),
        (172, "Unknown sender"),
        (173, "NAT not needed"),
        (174, "Is a ClusterIP"),
        (175, "First logical datagram fragment not found"),
        (176, "Forbidden ICMPv6 message"),
        (177, "Denied by LB src range check"),
        (178, "Socket lookup failed"),
        (179, "Socket assign failed"),
        (180, "Proxy redirection not supported for protocol"),
        (181, "Policy denied by denylist"),
        (182, "VLAN traffic disallowed by VLAN filter"),
        (196, "TTL exceeded"),
        (203, "Endpoint policy program not available"),
    ];

    /// The sources of the programs, without comments: a reason that is only mentioned is not returned.
    fn programs() -> String {
        let mut text = String::new();
        let mut open = Vec::from([Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ebpf/src")]);
        while let Some(path) = open.pop() {
            if path.is_dir() {
                open.extend(
                    fs::read_dir(&path).expect("a folder of sources").map(|entry| entry.expect("readable").path()),
                );
            } else {
                for line in fs::read_to_string(&path).expect("a source").lines() {
                    text.push_str(line.split("//").next().unwrap_or_default());
                    text.push('\n');
                }
            }
        }
        text
    }

    #[test]
    fn programs_return_every_reason() {
        let programs = programs();
        let is_returned = |reason: &&DropReason| {
            let name = format!("DropReason::{reason:?}");
            programs.match_indices(&name).any(|(at, _)| {
                !programs[at + name.len()..].starts_with(|next: char| next.is_alphanumeric() || next == '_')
            })
        };
        let unused: Vec<_> = DropReason::ALL.iter().filter(|reason| !is_returned(reason)).collect();
        assert!(unused.is_empty(), "no program in ebpf/src returns {unused:?}: remove them from the list");
    }

    #[test]
    fn every_reason_has_a_number_of_its_own_and_is_spelled_as_cilium_spells_it() {
        let names: BTreeSet<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), DropReason::ALL.len(), "two reasons have one name");
        for reason in DropReason::ALL {
            let pair = (*reason as u8, reason.name());
            assert!(CILIUM.contains(&pair), "{pair:?} is not in Cilium's list");
            assert_eq!(DropReason::from_raw(*reason as u8), Some(*reason));
            assert!(
                crate::MetricKey::index(*reason as u8, true) < crate::MetricKey::MAX,
                "{reason:?} has no counter in METRICS"
            );
        }
        // Numbers with another meaning in METRICS.
        for taken in [0, crate::MetricKey::AUDITED, crate::MetricKey::ACCELERATED, crate::MetricKey::SUPPRESSED] {
            assert_eq!(DropReason::from_raw(taken), None, "{taken} is not a reason");
        }
    }
}
