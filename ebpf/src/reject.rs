//! How a dropped packet is rejected: chosen where it is dropped, sent by [`crate::icmp::reject`].

use weft_abi::DropReason;

use crate::packet::{ETH, FIRST_FRAGMENT, LATER_FRAGMENT, TCP, TCP_RST};
use crate::scratch::Scratch;

/// In the place of ICMP's type and code, which have none such: a reset of TCP.
pub const RESET: u32 = 0xffff;

/// The service has no backend. TCP gets a reset, since Linux discards an ICMP error while connect(2) holds the socket; others
/// get port unreachable (RFC 1122 3.2.2.1,
/// RFC 4443 3.1). A reset is not answered, nor is a fragment that is not the first.
#[inline(always)]
pub fn reject_no_backend(s: &mut Scratch) -> Result<(), DropReason> {
    let v4 = s.packet.version == 4;
    let tcp = s.packet.protocol == TCP;
    let plain = u32::from(s.packet.l4) == ETH + if v4 { 20 } else { 40 } && s.packet.flags & FIRST_FRAGMENT == 0;
    s.reject = if s.packet.flags & LATER_FRAGMENT != 0 || tcp && s.packet.tcp_flags & TCP_RST != 0 {
        0
    } else if tcp && plain {
        RESET
    } else if v4 {
        3 | 3 << 8
    } else {
        1 | 4 << 8
    };
    Err(DropReason::NoServiceBackend)
}

/// The packet is larger than what its way behind a service carries: fragmentation needed (RFC 1191), packet too big
/// (RFC 4443 3.2).
#[inline(always)]
pub fn reject_too_big(s: &mut Scratch, mtu: u32) -> Result<(), DropReason> {
    s.reject = mtu << 16 | if s.packet.version == 4 { 3 | 4 << 8 } else { 2 };
    Err(DropReason::FragmentationNeeded)
}
