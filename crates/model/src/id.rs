//! Typed ids. No id crosses a function border as a bare integer.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::num::NonZeroU16;

/// A security identity: the number of a label set, or a reserved number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Identity(u32);

impl Identity {
    /// The identity of an address that is not in the ipcache.
    pub const UNKNOWN: Self = Self(0);
    /// This node.
    pub const HOST: Self = Self(1);
    /// Outside the cluster.
    pub const WORLD: Self = Self(2);
    /// An endpoint whose labels are not known yet.
    pub const INIT: Self = Self(5);
    /// Another node.
    pub const REMOTE_NODE: Self = Self(6);
    /// Outside the cluster, IPv4 (dual stack).
    pub const WORLD_IPV4: Self = Self(9);
    /// Outside the cluster, IPv6 (dual stack).
    pub const WORLD_IPV6: Self = Self(10);
    /// The numbers for label sets.
    pub const ALLOCATED: std::ops::RangeInclusive<u32> = 256..=65_535;
    /// Scope bit of the numbers for CIDR prefixes, which are local to a node.
    pub const CIDR_SCOPE: u32 = 0x0100_0000;

    /// An identity of a label set; `None` outside [`Self::ALLOCATED`].
    #[must_use]
    pub fn allocated(n: u32) -> Option<Self> {
        Self::ALLOCATED.contains(&n).then_some(Self(n))
    }

    /// Largest number of a CIDR prefix.
    pub const CIDR_MAX: u32 = 0x003f_ffff;

    /// The number of CIDR prefix `n` (1..=[`Self::CIDR_MAX`]) in scope [`PeerScope::World`]; see [`Self::in_scope`].
    #[must_use]
    pub fn cidr(n: u32) -> Option<Self> {
        (1..=Self::CIDR_MAX).contains(&n).then_some(Self(Self::CIDR_SCOPE | n << 2))
    }

    /// The number of the same CIDR prefix in another scope.
    #[must_use]
    pub const fn in_scope(self, scope: PeerScope) -> Self {
        Self(self.0 & !3 | scope as u32)
    }

    /// The scope in which CIDR prefixes apply to a peer with this identity.
    #[must_use]
    pub const fn scope(self) -> PeerScope {
        match self.0 {
            2 | 9 | 10 => PeerScope::World,
            1 | 6 | 7 => PeerScope::Node,
            _ => PeerScope::Pod,
        }
    }

    /// Whether this is the number of a CIDR prefix.
    #[must_use]
    pub const fn is_cidr(self) -> bool {
        self.0 & !0x00ff_ffff == Self::CIDR_SCOPE && self.0 != Self::CIDR_SCOPE
    }

    /// From a map or an API object, unchecked.
    #[must_use]
    pub const fn from_raw(n: u32) -> Self {
        Self(n)
    }

    #[must_use]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// The name of a reserved identity.
    #[must_use]
    pub const fn reserved_name(self) -> Option<&'static str> {
        Some(match self.0 {
            0 => "unknown",
            1 => "host",
            2 => "world",
            3 => "unmanaged",
            4 => "health",
            5 => "init",
            6 => "remote-node",
            7 => "kube-apiserver",
            8 => "ingress",
            9 => "world-ipv4",
            10 => "world-ipv6",
            _ => return None,
        })
    }
}

/// The kind of a peer, which decides whether a CIDR rule applies to its address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u32)]
pub enum PeerScope {
    World = 0,
    Node = 1,
    /// A pod, or unknown.
    Pod = 2,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of an endpoint on its node, 1..=4095.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EndpointId(NonZeroU16);

impl EndpointId {
    /// Largest number.
    pub const MAX: u16 = 4095;
    /// The node itself, as a subject of policies.
    pub const HOST: Self = Self(NonZeroU16::new(Self::MAX).expect("not zero"));

    #[must_use]
    pub fn new(n: u16) -> Option<Self> {
        if n > Self::MAX { None } else { NonZeroU16::new(n).map(Self) }
    }

    #[must_use]
    pub const fn raw(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of a resolved policy of one direction, shared by endpoints whose resolved policies are equal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PolicyId(pub u32);

impl PolicyId {
    /// No policy: everything is allowed.
    pub const OPEN: Self = Self(0);
}

/// Number of a rule: one element of an `ingress` or `egress` list of one object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RuleId(pub u32);

impl RuleId {
    /// No rule.
    pub const NONE: Self = Self(0);
}

/// A peer class: peers that the same selectors of all policies of the node select. 0: no selector selects them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PeerClass(pub u32);

/// A policy class: within one resolved policy, the peers to which the same entries (verdicts by port) apply. Every
/// [`PeerClass`] belongs to one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PolicyClass(pub u32);

impl PolicyClass {
    /// The entries that apply to every peer.
    pub const ANY: Self = Self(0);
    const ADMIN: u32 = 1 << 31;

    /// The class under which the Admin tier's entries for the same peers are kept. They are kept apart, so that after a
    /// `Pass` an entry of a lower tier on the same port is still found.
    #[must_use]
    pub const fn admin(self) -> Self {
        Self(self.0 | Self::ADMIN)
    }

    /// Whether this is a class of the Admin tier.
    #[must_use]
    pub const fn is_admin(self) -> bool {
        self.0 & Self::ADMIN != 0
    }
}

/// Revision of the node's tables; grows with every committed change.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);
