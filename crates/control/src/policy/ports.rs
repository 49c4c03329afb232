//! Ports as prefixes of their bits, and sets of them in which nothing is said twice.

use std::collections::BTreeMap;
use weft_model::desired::PortPrefix;
use weft_model::id::RuleId;

/// Any protocol, any port.
pub const ANYTHING: PortPrefix = PortPrefix { protocol: 0, port: 0, prefix_len: 0 };

/// Which rule allows which ports. Reduced: no entry is covered by another one.
pub type Content = BTreeMap<PortPrefix, RuleId>;

/// The fewest prefixes that hold exactly `first..=last` of `protocol`: at most 30, none if the range is empty.
#[must_use]
pub fn split(protocol: u8, first: u16, last: u16) -> Vec<PortPrefix> {
    let mut prefixes = Vec::new();
    let (mut next, last) = (u32::from(first), u32::from(last));
    while next <= last {
        // The largest aligned block that starts here and does not reach beyond the end.
        let mut bits = next.trailing_zeros().min(16);
        while next + (1 << bits) - 1 > last {
            bits -= 1;
        }
        let port = u16::try_from(next).expect("next <= last <= 65535");
        let prefix_len = u8::try_from(16 - bits).expect("bits <= 16");
        prefixes.push(PortPrefix { protocol, port, prefix_len });
        next += 1 << bits;
    }
    prefixes
}

/// `prefix` shortened to `len` bits.
#[must_use]
pub fn shorten(prefix: PortPrefix, len: u8) -> PortPrefix {
    PortPrefix { protocol: prefix.protocol, port: truncate(prefix.port, len), prefix_len: len }
}

/// The first `len` bits of a port.
#[must_use]
pub fn truncate(port: u16, len: u8) -> u16 {
    match len {
        0 => 0,
        1..16 => port & (u16::MAX << (16 - len)),
        _ => port,
    }
}

/// Whether `content` allows all of `prefix`.
#[must_use]
pub fn covers(content: &Content, prefix: PortPrefix) -> bool {
    !content.is_empty()
        && (content.contains_key(&ANYTHING)
            || (prefix.protocol != 0 && (0..=prefix.prefix_len).any(|len| content.contains_key(&shorten(prefix, len)))))
}

/// The reduced content of `entries`, less what `wider` allows anyway. Of several rules for the same ports the one
/// with the lowest number gets the credit.
#[must_use]
pub fn reduce(entries: impl IntoIterator<Item = (PortPrefix, RuleId)>, wider: &Content) -> Content {
    let mut sorted: Vec<_> = entries.into_iter().collect();
    sorted.sort_unstable_by_key(|(prefix, rule)| (prefix.protocol != 0, prefix.prefix_len, *prefix, *rule));
    let mut content = Content::new();
    for (prefix, rule) in sorted {
        if !covers(wider, prefix) && !covers(&content, prefix) {
            content.insert(prefix, rule);
        }
    }
    content
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(prefixes: &[PortPrefix]) -> Vec<u16> {
        let mut ports: Vec<u16> = prefixes
            .iter()
            .flat_map(|p| (0..1u32 << (16 - p.prefix_len)).map(|n| u16::try_from(u32::from(p.port) + n).unwrap()))
            .collect();
        ports.sort_unstable();
        ports
    }

    #[test]
    fn ranges_split_exactly() {
        assert_eq!(split(6, 0, u16::MAX), [PortPrefix { protocol: 6, port: 0, prefix_len: 0 }]);
        assert_eq!(split(6, 80, 80), [PortPrefix { protocol: 6, port: 80, prefix_len: 16 }]);
        assert_eq!(split(6, 1024, u16::MAX).len(), 6);
        assert_eq!(split(6, 1, u16::MAX - 1).len(), 30);
        assert!(split(6, 2, 1).is_empty());
        for (first, last) in [(1, 65534), (0, 0), (65535, 65535), (8000, 8100), (1000, 1024), (3, 40000)] {
            let prefixes = split(17, first, last);
            assert!(prefixes.len() <= 30);
            assert_eq!(ports(&prefixes), (first..=last).collect::<Vec<_>>(), "{first}-{last}");
        }
    }

    #[test]
    fn reduction_keeps_the_widest() {
        let exact = PortPrefix { protocol: 6, port: 8080, prefix_len: 16 };
        let wide = shorten(exact, 8);
        let none = Content::new();
        let content = reduce([(exact, RuleId(1)), (wide, RuleId(3)), (wide, RuleId(2))], &none);
        assert_eq!(content, Content::from([(wide, RuleId(2))]));
        assert!(reduce([(exact, RuleId(1))], &Content::from([(ANYTHING, RuleId(9))])).is_empty());
        let udp = PortPrefix { protocol: 17, ..exact };
        assert_eq!(reduce([(exact, RuleId(1)), (udp, RuleId(1))], &none).len(), 2);
        assert_eq!(reduce([(exact, RuleId(1)), (ANYTHING, RuleId(5))], &none), Content::from([(ANYTHING, RuleId(5))]));
    }
}
