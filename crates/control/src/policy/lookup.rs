//! What the kernel's two-step search makes of a compiled policy.

use super::ports::{self, ANYTHING};
use weft_model::desired::{CompiledPolicy, PortPrefix, Verdict};
use weft_model::id::{ClassId, Identity};

/// The verdict of `policy` on a new connection, `None`: no entry, so it is dropped. `prefix` is the number of the
/// longest prefix in use that holds the peer's address. `port` is the destination port, 0 where there is none.
#[must_use]
pub fn lookup(
    policy: &CompiledPolicy,
    identity: Identity,
    prefix: Option<Identity>,
    protocol: u8,
    port: u16,
) -> Option<Verdict> {
    let classes = [policy.peers.get(&identity).copied(), prefix.and_then(|number| policy.peers.get(&number).copied())];
    let mut best: Option<Verdict> = None;
    for class in classes.into_iter().flatten().chain([ClassId::ANY]) {
        for entry in probes(protocol, port) {
            if let Some(verdict) = policy.entries.get(&(class, entry))
                && best.is_none_or(|best| verdict.precedence > best.precedence)
            {
                best = Some(*verdict);
            }
        }
    }
    best
}

/// Every entry that could match, narrowest first.
fn probes(protocol: u8, port: u16) -> impl Iterator<Item = PortPrefix> {
    let exact = PortPrefix { protocol, port, prefix_len: 16 };
    (0..=16).rev().map(move |len| ports::shorten(exact, len)).chain([ANYTHING])
}
