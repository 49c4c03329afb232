//! The kernel's lookup in a compiled policy.

use super::ports::{self, ANYTHING};
use weft_model::desired::{Action, CompiledPolicy, PortPrefix, Verdict};
use weft_model::id::{PeerClass, PolicyClass};

/// The entry of `policy` that decides a new connection; `None`: none matches, and [`CompiledPolicy::default_allow`]
/// decides. Never a `Pass`. `identity` is the class of the peer's identity, `prefix` the class of the longest prefix in use
/// that contains its address, in the scope of its identity. `port` is the destination port or ICMP type, else 0.
#[must_use]
pub fn lookup(
    policy: &CompiledPolicy,
    identity: Option<PeerClass>,
    prefix: Option<PeerClass>,
    protocol: u8,
    port: u16,
) -> Option<Verdict> {
    let row = |class: PeerClass| policy.classes.get(&class).copied();
    let by_identity = identity.map_or(PolicyClass::ANY, |class| row(class).unwrap_or(policy.rest));
    let by_prefix = prefix.and_then(row).unwrap_or(PolicyClass::ANY);
    let classes = [PolicyClass::ANY, by_identity, by_prefix];
    let first = best(policy, classes.map(PolicyClass::admin), protocol, port);
    first.filter(|verdict| verdict.action != Action::Pass).or_else(|| best(policy, classes, protocol, port))
}

/// Whether the result of [`lookup`] allows the connection.
#[must_use]
pub fn passes(policy: &CompiledPolicy, decision: Option<Verdict>) -> bool {
    decision.map_or(policy.default_allow, |verdict| verdict.action == Action::Allow)
}

fn best(policy: &CompiledPolicy, classes: [PolicyClass; 3], protocol: u8, port: u16) -> Option<Verdict> {
    let mut best: Option<Verdict> = None;
    for class in classes {
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

/// The keys of every entry that could match, narrowest first.
fn probes(protocol: u8, port: u16) -> impl Iterator<Item = PortPrefix> {
    let exact = PortPrefix { protocol, port, prefix_len: 16 };
    (0..=16).rev().map(move |len| ports::shorten(exact, len)).chain([ANYTHING])
}
