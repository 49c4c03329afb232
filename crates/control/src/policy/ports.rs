//! Ports as prefixes of their bits, and reduced sets of entries on them.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use weft_model::desired::{Action, PortPrefix, Verdict, precedence};
use weft_model::id::PolicyClass;

/// Any protocol and port.
pub const ANYTHING: PortPrefix = PortPrefix { protocol: 0, port: 0, prefix_len: 0 };

/// The key of an entry within its set. Entries of the Admin tier are kept apart from the others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct EntryKey {
    /// The entry is of the Admin tier.
    pub admin: bool,
    pub ports: PortPrefix,
}

impl EntryKey {
    /// The key in the compiled policy for an entry of policy class `class`.
    #[must_use]
    pub const fn of(self, class: PolicyClass) -> (PolicyClass, PortPrefix) {
        (if self.admin { class.admin() } else { class }, self.ports)
    }
}

/// Verdicts by ports. Reduced: no entry is always overridden by another.
pub type Entries = BTreeMap<EntryKey, Verdict>;

/// The fewest prefixes that cover exactly `first..=last` of `protocol`: at most 30, none if the range is empty.
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

/// Whether an entry is redundant: everything that it matches is matched by one of `entries` of higher precedence, or
/// of equal precedence and action.
#[must_use]
pub fn is_redundant(entries: &Entries, key: EntryKey, verdict: &Verdict) -> bool {
    let overridden = |ports: PortPrefix| {
        let wider = entries.get(&EntryKey { ports, ..key });
        wider.is_some_and(|wider| {
            wider.precedence > verdict.precedence
                || (wider.precedence == verdict.precedence && wider.action == verdict.action)
        })
    };
    let ports = key.ports;
    !entries.is_empty()
        && (overridden(ANYTHING)
            || (ports.protocol != 0 && (0..=ports.prefix_len).any(|len| overridden(shorten(ports, len)))))
}

/// Reduces `entries`, and drops those that the entries for any peer, `any`, make redundant. If several rules have the same
/// verdict on the same ports, the lowest rule number is kept.
#[must_use]
pub fn reduce(mut entries: Vec<(PortPrefix, Verdict)>, any: &Entries) -> Entries {
    // In order of precedence: only entries that are already in can make a later one redundant.
    entries.sort_unstable_by_key(|(ports, verdict)| {
        (Reverse(verdict.precedence), ports.protocol != 0, ports.prefix_len, *ports, verdict.rule)
    });
    let mut reduced = Entries::new();
    for (ports, verdict) in entries {
        let key = EntryKey { admin: verdict.precedence >= precedence::ADMIN, ports };
        if !is_redundant(any, key, &verdict) && !is_redundant(&reduced, key, &verdict) {
            // No valid policy has two actions of the same precedence. If one did, the first would stay.
            reduced.entry(key).or_insert(verdict);
        }
    }
    reduced
}

/// Whether a peer that moves from `before` to `after` is allowed at least as much. `false` if in doubt.
#[must_use]
pub fn only_grows(before: &Entries, after: &Entries) -> bool {
    let allows = |entries: &Entries| entries.values().all(|verdict| verdict.action == Action::Allow);
    allows(before) && allows(after) && before.iter().all(|(key, verdict)| is_redundant(after, *key, verdict))
}

#[cfg(test)]
mod tests;
