//! The address type of all maps.

/// An IP address in network byte order; IPv4 is v4-mapped. Words, because the kernel programs load words.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Addr(pub [u32; 4]);

/// Third word of a v4-mapped address, as it lies in memory.
const V4_MAPPED: u32 = 0x0000_ffff_u32.to_be();

impl Addr {
    /// The unspecified address, used for "none".
    pub const NONE: Self = Self([0; 4]);

    /// An IPv4 address whose octets lie in `octets_be` as they do in the packet.
    #[inline(always)]
    #[must_use]
    pub const fn v4(octets_be: u32) -> Self {
        Self([0, 0, V4_MAPPED, octets_be])
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == V4_MAPPED
    }

    /// Whether this is [`Addr::NONE`].
    #[inline(always)]
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.0[0] | self.0[1] | self.0[2] | self.0[3] == 0
    }
}

#[cfg(feature = "user")]
mod user {
    extern crate std;
    use super::Addr;
    use std::net::{IpAddr, Ipv6Addr};

    impl From<IpAddr> for Addr {
        fn from(ip: IpAddr) -> Self {
            let octets = match ip {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            let mut words = [0; 4];
            for (word, chunk) in words.iter_mut().zip(octets.chunks_exact(4)) {
                *word = u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
            }
            Self(words)
        }
    }

    impl From<Addr> for IpAddr {
        fn from(addr: Addr) -> Self {
            let mut octets = [0; 16];
            for (chunk, word) in octets.chunks_exact_mut(4).zip(addr.0) {
                chunk.copy_from_slice(&word.to_ne_bytes());
            }
            Ipv6Addr::from(octets).to_canonical()
        }
    }
}
