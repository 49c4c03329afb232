//! Prefixes as keys of the tries. IPv4 lies at `::ffff:0:0/96`, so `n` bits of it are `96 + n` bits of the key.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use weft_abi::{Addr, LpmKey};

/// Bits before an IPv4 address.
const V4_BITS: u32 = 96;

/// All of IPv4. Every trie holds it, with an empty value unless there is a row for `0.0.0.0/0`:
/// so a short IPv6 prefix such as `::/0` never matches an IPv4 address.
pub const V4_ALL: LpmKey = LpmKey { prefix_len: V4_BITS, addr: Addr::v4(0) };

/// The key of a prefix. Bits behind the prefix are dropped.
#[must_use]
pub fn key(cidr: IpNet) -> LpmKey {
    let cidr = cidr.trunc();
    let before = if cidr.addr().is_ipv4() { V4_BITS } else { 0 };
    LpmKey { prefix_len: before + u32::from(cidr.prefix_len()), addr: Addr::from(cidr.addr()) }
}

/// The prefix of a key; `None` if it is no key that [`key`] makes.
#[must_use]
pub fn cidr(key: LpmKey) -> Option<IpNet> {
    let bits = key.prefix_len;
    if key.addr.is_v4() && bits >= V4_BITS {
        let IpAddr::V4(addr) = IpAddr::from(key.addr) else { return None };
        let len = u8::try_from(bits - V4_BITS).ok()?;
        return Ipv4Net::new(addr, len).ok().map(IpNet::V4);
    }
    let len = u8::try_from(bits).ok()?;
    Ipv6Net::new(octets(key.addr), len).ok().map(IpNet::V6)
}

/// Whether a prefix, given as IPv6, means IPv4 addresses. Such a prefix must be given as IPv4.
#[must_use]
pub fn is_hidden_v4(cidr: IpNet) -> bool {
    let IpNet::V6(v6) = cidr else { return false };
    let mapped = Ipv4Addr::UNSPECIFIED.to_ipv6_mapped();
    u32::from(v6.prefix_len()) >= V4_BITS && Ipv6Net::new_assert(mapped, 96).contains(&v6.addr())
}

fn octets(addr: Addr) -> Ipv6Addr {
    match IpAddr::from(addr) {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn prefixes_survive_the_way_to_a_key_and_back() {
        for text in [
            "0.0.0.0/0",
            "10.0.0.0/8",
            "10.244.1.0/24",
            "10.1.2.3/32",
            "255.255.255.255/32",
            "::/0",
            "::/96",
            "2000::/3",
            "fd44::/48",
            "fd44::1/128",
            "::1/128",
            "::ffff:0:0/95",
        ] {
            let net = net(text).trunc();
            assert_eq!(cidr(key(net)), Some(net), "{text}");
        }
    }

    #[test]
    fn bits_behind_the_prefix_are_dropped() {
        assert_eq!(key(net("10.1.2.3/8")), key(net("10.0.0.0/8")));
        assert_eq!(key(net("fd44::1/48")), key(net("fd44::/48")));
    }

    #[test]
    fn all_of_ipv4_is_not_all_of_ipv6() {
        assert_eq!(key(net("0.0.0.0/0")), V4_ALL);
        assert_eq!(key(net("0.0.0.0/0")).prefix_len, 96);
        assert_eq!(key(net("::/0")).prefix_len, 0);
        assert_eq!(key(net("1.2.3.4/32")).prefix_len, 128);
    }

    #[test]
    fn ipv4_written_as_ipv6_is_recognised() {
        assert!(is_hidden_v4(net("::ffff:1.2.3.0/120")));
        assert!(is_hidden_v4(net("::ffff:0:0/96")));
        assert!(!is_hidden_v4(net("::/0")));
        assert!(!is_hidden_v4(net("::ffff:0:0/95")));
        assert!(!is_hidden_v4(net("1.2.3.0/24")));
    }

    #[test]
    fn a_broken_key_is_no_prefix() {
        assert_eq!(cidr(LpmKey { prefix_len: 129, addr: Addr::NONE }), None);
        assert_eq!(cidr(LpmKey { prefix_len: u32::MAX, addr: Addr::v4(1) }), None);
    }
}
