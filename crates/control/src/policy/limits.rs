//! How much policy state the node takes, and what happens to whatever exceeds it.

use super::peers::Room;
use std::fmt;
use weft_model::intent::PolicyName;

/// How much the node takes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Entries of one resolved policy.
    pub entries_per_policy: usize,
    /// Rows of one resolved policy: the peer classes that it tells apart.
    pub rows_per_policy: usize,
    pub policies: usize,
    /// Entries of all resolved policies, old and new versions together while they are switched.
    pub entries: usize,
    /// Rows of all resolved policies, counted likewise.
    pub rows: usize,
    /// Peers that at least one selector selects: identities, and prefixes once per scope.
    pub peers: usize,
    /// Prefixes that policies name.
    pub cidrs: usize,
}

impl Limits {
    /// For maps of these capacities. Only half of each is used: after a restart every policy is written again beside
    /// the one in force, and that must never fail for lack of room.
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

/// What a limit is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resource {
    EntriesPerPolicy,
    RowsPerPolicy,
    Policies,
    Entries,
    Rows,
    Peers,
    Cidrs,
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EntriesPerPolicy => "entries in one resolved policy",
            Self::RowsPerPolicy => "peer classes in one resolved policy",
            Self::Policies => "resolved policies on this node",
            Self::Entries => "policy entries on this node",
            Self::Rows => "peer class rows of all policies on this node",
            Self::Peers => "peers on this node",
            Self::Cidrs => "CIDR prefixes in policies on this node",
        })
    }
}

/// A limit would be exceeded; nothing was changed. Retry when something was removed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("needs {wanted} {resource}, the limit is {limit}")]
pub struct Overflow {
    pub resource: Resource,
    pub wanted: usize,
    pub limit: usize,
}

impl Overflow {
    pub(super) fn check(resource: Resource, wanted: usize, limit: usize) -> Result<(), Self> {
        if wanted > limit { Err(Self { resource, wanted, limit }) } else { Ok(()) }
    }
}

/// Why an endpoint is blocked: it drops all traffic until the cause is gone. The node itself is never blocked; its
/// previous policy stays in force.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Blocked {
    /// A policy object that selects the endpoint was refused, and the endpoint is newer than the version in force.
    #[error("{policy} does not fit: {cause}")]
    PolicyRefused { policy: PolicyName, cause: Overflow },
    /// The resolved policy of the endpoint could not be built.
    #[error("the resolved policy does not fit: {0}")]
    Unresolved(Overflow),
    /// The resolved policy lacks rows for some peers, so it would allow more than its rules do.
    #[error("the resolved policy lacks rows for some peers and would allow too much: {0}")]
    Incomplete(Overflow),
}

impl Limits {
    pub(super) fn check_policy(&self, entries: usize, rows: usize) -> Result<(), Overflow> {
        Overflow::check(Resource::EntriesPerPolicy, entries, self.entries_per_policy)?;
        Overflow::check(Resource::RowsPerPolicy, rows, self.rows_per_policy)
    }

    pub(super) fn check_policies(&self, policies: usize) -> Result<(), Overflow> {
        Overflow::check(Resource::Policies, policies, self.policies)
    }

    pub(super) fn check_total(&self, entries: usize, rows: usize) -> Result<(), Overflow> {
        Overflow::check(Resource::Entries, entries, self.entries)?;
        Overflow::check(Resource::Rows, rows, self.rows)
    }
}
