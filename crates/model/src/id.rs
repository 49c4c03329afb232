//! Numbers with a meaning. None crosses a function border as a bare integer.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::num::NonZeroU16;

/// A security identity: the number of a label set, or a reserved number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Identity(u32);

impl Identity {
    /// Not known.
    pub const UNKNOWN: Self = Self(0);
    /// This node.
    pub const HOST: Self = Self(1);
    /// Outside the cluster.
    pub const WORLD: Self = Self(2);
    /// Labels not known yet.
    pub const INIT: Self = Self(5);
    /// Another node.
    pub const REMOTE_NODE: Self = Self(6);
    /// Outside the cluster, IPv4 (dual stack).
    pub const WORLD_IPV4: Self = Self(9);
    /// Outside the cluster, IPv6 (dual stack).
    pub const WORLD_IPV6: Self = Self(10);
    /// First and last number given to label sets.
    pub const ALLOCATED: std::ops::RangeInclusive<u32> = 256..=65_535;
    /// Scope bit of the numbers given to CIDR prefixes; such numbers never leave their node.
    pub const CIDR_SCOPE: u32 = 0x0100_0000;

    /// An identity of a label set; `None` outside [`Self::ALLOCATED`].
    #[must_use]
    pub fn allocated(n: u32) -> Option<Self> {
        Self::ALLOCATED.contains(&n).then_some(Self(n))
    }

    /// Largest number of a CIDR prefix.
    pub const CIDR_MAX: u32 = 0x003f_ffff;

    /// The number `n` (1..=[`Self::CIDR_MAX`]) for a CIDR prefix, as it counts for peers outside the cluster. The two
    /// numbers behind it are the same prefix for peers inside: see [`Self::in_scope`].
    #[must_use]
    pub fn cidr(n: u32) -> Option<Self> {
        (1..=Self::CIDR_MAX).contains(&n).then_some(Self(Self::CIDR_SCOPE | n << 2))
    }

    /// The number of the same prefix for peers of a scope.
    #[must_use]
    pub const fn in_scope(self, scope: PeerScope) -> Self {
        Self(self.0 & !3 | scope as u32)
    }

    /// How prefixes apply to a peer with this identity.
    #[must_use]
    pub const fn scope(self) -> PeerScope {
        match self.0 {
            2 | 9 | 10 => PeerScope::World,
            1 | 6 | 7 => PeerScope::Node,
            _ => PeerScope::Pod,
        }
    }

    /// The number of a CIDR prefix.
    #[must_use]
    pub const fn is_cidr(self) -> bool {
        self.0 & !0x00ff_ffff == Self::CIDR_SCOPE && self.0 != Self::CIDR_SCOPE
    }

    /// Whatever number came from a map or an object.
    #[must_use]
    pub const fn from_raw(n: u32) -> Self {
        Self(n)
    }

    /// The number.
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

/// What a peer is, where that decides whether a prefix applies to it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u32)]
pub enum PeerScope {
    /// Outside the cluster.
    World = 0,
    /// A node.
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
    /// The node itself, as a subject of policies. Never a pod's.
    pub const HOST: Self = Self(NonZeroU16::new(Self::MAX).expect("not zero"));

    /// Checked.
    #[must_use]
    pub fn new(n: u16) -> Option<Self> {
        if n > Self::MAX { None } else { NonZeroU16::new(n).map(Self) }
    }

    /// The number.
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

/// Number of a resolved policy of one direction. Endpoints whose resolved policy is equal share it.
/// [`PolicyId::OPEN`] stands for "not isolated".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PolicyId(pub u32);

impl PolicyId {
    /// Not isolated: everything passes.
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

/// A set of peers that the same selectors of the node's policies select. 0: none, not in use.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PeerClass(pub u32);

/// A set of peers that the same rules select, within one policy. Class 0 is "any peer".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PolicyClass(pub u32);

impl PolicyClass {
    /// Any peer.
    pub const ANY: Self = Self(0);
    const ADMIN: u32 = 1 << 31;

    /// The class under which the entries of the Admin tier stand for the same peers. They stand apart, since where one
    /// of them passes on to the tiers below, an entry for the same port there must still be found.
    #[must_use]
    pub const fn admin(self) -> Self {
        Self(self.0 | Self::ADMIN)
    }

    /// Whether this is such a class.
    #[must_use]
    pub const fn is_admin(self) -> bool {
        self.0 & Self::ADMIN != 0
    }
}

/// Version of the node's tables: grows with every committed change.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);
