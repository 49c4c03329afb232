//! How much fits.

use super::peers::Room;

/// How much the node takes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Entries of one resolved policy.
    pub entries_per_policy: usize,
    /// Rows of one resolved policy: classes of peers that it tells apart.
    pub rows_per_policy: usize,
    /// Resolved policies.
    pub policies: usize,
    /// Entries of all, old and new side by side while they change places.
    pub entries: usize,
    /// Rows of all, likewise.
    pub rows: usize,
    /// Peers that some selector selects: identities, and prefixes by scope.
    pub peers: usize,
    /// Prefixes.
    pub cidrs: usize,
}

impl Limits {
    /// For maps that hold this many policies, entries, rows, peers and prefixes. Half of each is used: after a restart
    /// all policies are written anew beside those that are still in force, and that must never fail for lack of room.
    #[must_use]
    pub fn for_maps(policies: usize, entries: usize, rows: usize, peers: usize, cidrs: usize) -> Self {
        Self {
            policies: policies / 2,
            entries: entries / 2,
            rows: rows / 2,
            peers: peers / 2,
            cidrs: cidrs / 2,
            ..Self::default()
        }
    }

    pub(super) const fn room(&self) -> Room {
        Room { peers: self.peers, cidrs: self.cidrs }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries_per_policy: 16_384,
            rows_per_policy: 131_072,
            policies: 8_192,
            entries: 131_072,
            rows: 131_072,
            peers: 131_072,
            cidrs: 32_768,
        }
    }
}

/// A limit would be exceeded.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("needs {wanted} {what}, of which {limit} fit")]
pub struct Overflow {
    /// Of what.
    pub what: &'static str,
    /// How many.
    pub wanted: usize,
    /// How many fit.
    pub limit: usize,
}

impl Overflow {
    pub(super) fn check(what: &'static str, wanted: usize, limit: usize) -> Result<(), Self> {
        if wanted > limit { Err(Self { what, wanted, limit }) } else { Ok(()) }
    }
}

impl Limits {
    pub(super) fn check_policy(&self, entries: usize, rows: usize) -> Result<(), Overflow> {
        Overflow::check("entries in one resolved policy", entries, self.entries_per_policy)?;
        Overflow::check("classes of peers in one resolved policy", rows, self.rows_per_policy)
    }

    pub(super) fn check_policies(&self, policies: usize) -> Result<(), Overflow> {
        Overflow::check("resolved policies on this node", policies, self.policies)
    }

    pub(super) fn check_total(&self, entries: usize, rows: usize) -> Result<(), Overflow> {
        Overflow::check("policy entries on this node", entries, self.entries)?;
        Overflow::check("classes of peers in the policies of this node", rows, self.rows)
    }
}
