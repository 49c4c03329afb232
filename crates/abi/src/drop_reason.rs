//! Why a packet was dropped. The numbers are those that Hubble clients know.

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
    ForbiddenIcmpv6 = 176, "forbidden ICMPv6 type";
    SourceRange = 177, "client is in no source range of the service";
    PolicyDenyRule = 181, "denied by a rule";
    TtlExceeded = 196, "TTL or hop limit exceeded";
    EndpointNotReady = 203, "endpoint not ready";
}
