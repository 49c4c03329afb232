//! Why a packet was dropped: the one place where a reason is named, numbered and described.
//!
//! To add a reason:
//! 1. Add a line to the list below: name, number, text. Where Hubble has such a reason, take its number, so that clients of
//!    Hubble show it; else a number that Hubble does not use.
//! 2. Return it in a program, as `Err(DropReason::Name)`.
//!
//! Counters, events, metrics and `weft observe` follow from the list. The tests below fail while no program returns the
//! reason, and if a number or a text is used twice.

macro_rules! drop_reasons {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        /// A reason; 0 is "forwarded" in the metrics.
        #[repr(u8)]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum DropReason { $(#[doc = $text] $name = $number,)* }

        impl DropReason {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The reason with this number.
            #[must_use]
            pub const fn from_raw(raw: u8) -> Option<Self> {
                match raw { $($number => Some(Self::$name),)* _ => None }
            }

            /// In words, for people.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

drop_reasons! {
    InvalidSourceIp = 132, "source address is not the endpoint's";
    PolicyDenied = 133, "policy denied";
    InvalidPacket = 134, "invalid packet";
    CtTruncatedHeader = 135, "truncated header";
    FragmentationNeeded = 136, "fragmentation needed";
    UnsupportedL3 = 139, "unsupported network protocol";
    WriteError = 141, "packet could not be rewritten";
    UnknownL4 = 142, "unknown transport protocol";
    NoTunnelKey = 147, "no tunnel key";
    UnknownTarget = 150, "unknown neighbour target";
    Unroutable = 151, "stale or unroutable address";
    CtInsertFailed = 155, "connection table is full";
    Ipv6ExtensionHeader = 156, "IPv6 extension header";
    FragmentUnsupported = 157, "fragment not acceptable";
    NoServiceBackend = 158, "service has no backend";
    NoTunnelEndpoint = 160, "no tunnel endpoint";
    NoConfig = 165, "no configuration";
    UnsupportedL2 = 166, "unsupported link layer";
    NoNatMapping = 167, "no free port for translation";
    NatProtocol = 168, "protocol cannot be masqueraded";
    FibFailed = 169, "no route";
    EncapsulationProhibited = 170, "tunnel traffic from a pod";
    InvalidIdentity = 171, "invalid identity";
    UnknownSender = 172, "unknown sender";
    IsClusterIp = 174, "address inside the cluster, from outside";
    FragmentNotFound = 175, "first fragment not found";
    SourceRange = 177, "client is in no source range of the service";
    PolicyDenyRule = 181, "denied by a rule";
    EndpointNotReady = 203, "endpoint not ready";
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
    fn every_reason_has_a_number_and_a_text_of_its_own() {
        let texts: BTreeSet<_> = DropReason::ALL.iter().map(|reason| reason.text()).collect();
        assert_eq!(texts.len(), DropReason::ALL.len(), "two reasons have one text");
        for reason in DropReason::ALL {
            assert!(!reason.text().trim().is_empty(), "{reason:?} has no text");
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
