//! Ports as prefixes of their bits, and sets of them in which nothing is said twice.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use weft_model::desired::{Action, PortPrefix, Verdict, precedence};
use weft_model::id::PolicyClass;

/// Any protocol, any port.
pub const ANYTHING: PortPrefix = PortPrefix { protocol: 0, port: 0, prefix_len: 0 };

/// Where an entry stands in a content: the Admin tier apart from the others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Place {
    /// Among those of the Admin tier.
    pub admin: bool,
    /// For these ports.
    pub ports: PortPrefix,
}

impl Place {
    /// As the key of an entry of a class.
    #[must_use]
    pub const fn of(self, class: PolicyClass) -> (PolicyClass, PortPrefix) {
        (if self.admin { class.admin() } else { class }, self.ports)
    }
}

/// What is decided for which ports. Reduced: there is no entry that another one always beats.
pub type Content = BTreeMap<Place, Verdict>;

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

/// Whether all that an entry matches, some entry of `content` matches too and comes first or says the same.
#[must_use]
pub fn is_idle(content: &Content, place: Place, verdict: &Verdict) -> bool {
    let beaten = |ports: PortPrefix| {
        let wider = content.get(&Place { ports, ..place });
        wider.is_some_and(|wider| {
            wider.precedence > verdict.precedence
                || (wider.precedence == verdict.precedence && wider.action == verdict.action)
        })
    };
    let ports = place.ports;
    !content.is_empty()
        && (beaten(ANYTHING) || (ports.protocol != 0 && (0..=ports.prefix_len).any(|len| beaten(shorten(ports, len)))))
}

/// The reduced content of `entries`, less what those for any peer, `any`, decide anyway. Of several rules that say the
/// same of the same ports the one with the lowest number gets the credit.
#[must_use]
pub fn reduce(mut entries: Vec<(PortPrefix, Verdict)>, any: &Content) -> Content {
    // What comes first beats what comes later, wherever both match: so only what is in already can make an entry idle.
    entries.sort_unstable_by_key(|(ports, verdict)| {
        (Reverse(verdict.precedence), ports.protocol != 0, ports.prefix_len, *ports, verdict.rule)
    });
    let mut content = Content::new();
    for (ports, verdict) in entries {
        let place = Place { admin: verdict.precedence >= precedence::ADMIN, ports };
        if !is_idle(any, place, &verdict) && !is_idle(&content, place, &verdict) {
            // An entry of the same precedence with another action, which no valid policy makes: the first stays.
            content.entry(place).or_insert(verdict);
        }
    }
    content
}

/// Whether a peer that goes from `before` to `after` loses nothing, as far as that is plain to see.
#[must_use]
pub fn only_grows(before: &Content, after: &Content) -> bool {
    let allows = |content: &Content| content.values().all(|verdict| verdict.action == Action::Allow);
    allows(before) && allows(after) && before.iter().all(|(place, verdict)| is_idle(after, *place, verdict))
}

#[cfg(test)]
mod tests;
