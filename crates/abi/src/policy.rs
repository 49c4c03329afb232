//! The policy lookup: peer -> peer class, (policy, peer class) -> policy class, (policy, policy class, protocol, port
//! prefix) -> verdict.
//!
//! A policy id stands for one direction. Peers are identities and, by their own numbers
//! ([`crate::identity::CIDR_SCOPE`]), CIDR prefixes; their peer classes are the same for all policies, so that a
//! new peer is one write. Policy class 0 holds the rules for any peer and is always probed as well.
//! Of all entries that match, the highest precedence is the verdict. The administrator's first tier is evaluated before all
//! others: its entries are under the same classes with [`CLASS_ADMIN`] set. Where it has none that matches, or the best is
//! a [`policy_action::PASS`], the others decide. No entry is a drop, unless the policy has
//! [`policy_flags::DEFAULT_ALLOW`].

/// Bit of the policy classes of the administrator's first tier.
pub const CLASS_ADMIN: u32 = 0x8000_0000;

/// Key of the second step: the policy class of a peer class.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct PolicyClassKey {
    /// Policy id.
    pub policy: u32,
    /// Peer class, never 0.
    pub peer_class: u32,
}

/// Key of the third step.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct PolicyEntryKey {
    /// Policy id.
    pub policy: u32,
    /// Policy class.
    pub class: u32,
    /// Destination port, network order, masked to `port_prefix_len` bits; of ICMP the type of the message.
    pub port_be: u16,
    /// 0..=16; 0: any port.
    pub port_prefix_len: u8,
    /// IP protocol, 0: any (then any port).
    pub protocol: u8,
}

/// A verdict.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct PolicyEntryValue {
    /// Higher wins.
    pub precedence: u32,
    /// Number of the rule that made the entry.
    pub rule: u32,
    /// [`policy_action`].
    pub action: u32,
}

/// Actions.
pub mod policy_action {
    /// Let it pass.
    pub const ALLOW: u32 = 1;
    /// Drop it.
    pub const DENY: u32 = 2;
    /// Leave it to the tiers after the first.
    pub const PASS: u32 = 3;
}

/// A policy's row: what a lookup must probe.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct PolicyInfo {
    /// Shapes that the policy's entries use: [`policy_shape`].
    pub shapes: u32,
    /// The same of the entries of the first tier; 0: there are none.
    pub admin_shapes: u32,
    /// [`policy_flags`].
    pub flags: u32,
    /// Policy class of the identities whose peer class the policy has no row for; 0: none.
    pub rest: u32,
}

/// Flags of [`PolicyInfo`].
pub mod policy_flags {
    /// Policy class 0 has entries: some rule of the later tiers is for any peer.
    pub const ANY_PEER: u32 = 1;
    /// What no entry matches passes.
    pub const DEFAULT_ALLOW: u32 = 2;
}

/// Bits of [`PolicyInfo::shapes`].
pub mod policy_shape {
    /// Any protocol.
    pub const ANY: u32 = 1;
    /// A protocol with a port prefix of `n` bits (0: any port).
    #[must_use]
    #[inline(always)]
    pub const fn port_prefix(n: u32) -> u32 {
        2 << n
    }
}

const _: () = assert!(size_of::<PolicyClassKey>() == 8);
const _: () = assert!(size_of::<PolicyEntryKey>() == 12);
const _: () = assert!(size_of::<PolicyEntryValue>() == 12);
const _: () = assert!(size_of::<PolicyInfo>() == 16);
