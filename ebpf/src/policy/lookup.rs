//! The policy lookup: peer -> peer class -> policy class, then policy class and port shape -> verdict.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use aya_ebpf::maps::lpm_trie::Key;
use weft_abi::{
    CLASS_ADMIN, CidrValue, DropReason, PolicyClassKey, identity, policy_action, policy_flags, policy_shape,
};

use crate::maps::{PEERS, POLICY_CLASSES, POLICY_ENTRIES, POLICY_INFO, PREFIXES};
use crate::packet::{ICMP, ICMPV6, SCTP, Skb, TCP, UDP, UNKNOWN_PORTS};
use crate::parse::icmp::originator_type;
use crate::scratch::{Best, Scratch, Search};
use crate::step::step;

step!(lookup() = weft_step_policy: lookup_body);

/// Looks up the verdict for `s.query`. The rule that decided is left in `s.rule`.
///
/// A fragment whose first fragment was not seen has no ports. It passes if the entries for all ports allow it, or if they do
/// not match while there are rules for the peer: the receiver cannot complete the datagram without the first fragment,
/// which is judged in full.
#[inline(always)]
fn lookup_body(_skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let policy = s.query.policy;
    s.policy = policy;
    s.rule = 0;
    // SAFETY: values of these maps are replaced, never changed in place.
    let Some(info) = (unsafe { POLICY_INFO.get(&policy) }) else { return Err(DropReason::EndpointNotReady) };
    let flags = info.flags;
    // An unknown identity has no policy class.
    let peer = s.query.identity;
    let by_identity = if peer == identity::UNKNOWN { 0 } else { class(policy, peer, info.rest) };
    let by_prefix = match PREFIXES.get(&Key::new(128, s.query.address)) {
        // Number 0 keeps `::/0` from matching IPv4.
        Some(CidrValue { identity }) if *identity != 0 => class(policy, *identity | identity::scope(peer), 0),
        _ => 0,
    };
    let portless = s.packet.flags & UNKNOWN_PORTS != 0;
    let port = match s.packet.protocol {
        TCP | UDP | SCTP => u32::from(u16::from_be(s.query.port)),
        ICMP | ICMPV6 => originator_type(s),
        _ => 0,
    };
    let search = &mut s.search;
    search.key.policy = policy;
    let mask = if portless { ALL_PORTS } else { u32::MAX };
    let (admin_shapes, shapes) = (info.admin_shapes & mask, info.shapes & mask);
    search.port = port;
    search.protocol = u32::from(s.packet.protocol);
    search.by_identity = by_identity;
    search.by_prefix = by_prefix;
    let any_peer = flags & policy_flags::ANY_PEER;
    let has_rules = any_peer | by_identity | by_prefix != 0;
    (search.best.action, search.best.rule) = (0, 0);
    if admin_shapes != 0 {
        search.run(admin_shapes, CLASS_ADMIN, 1);
    }
    if !matches!(search.best.action, policy_action::ALLOW | policy_action::DENY) {
        (search.best.action, search.best.rule) = (0, 0);
        search.run(shapes, 0, any_peer);
    }
    let best = search.best;
    s.rule = best.rule;
    match best.action {
        policy_action::ALLOW => Ok(()),
        0 => {
            if flags & policy_flags::DEFAULT_ALLOW != 0 || portless && has_rules {
                Ok(())
            } else {
                Err(DropReason::PolicyDenied)
            }
        }
        _ => Err(DropReason::PolicyDenyRule),
    }
}

impl Search {
    /// Probes these shapes in a tier's classes. By callback: the verifier walks it once, not for every shape.
    #[inline(never)]
    fn run(&mut self, shapes: u32, tier: u32, any_peer: u32) -> i32 {
        self.shapes = shapes;
        self.tier = tier;
        self.any_peer = any_peer;
        // The argument must lie on the stack.
        let mut this = core::ptr::from_mut(self);
        // SAFETY: a callback of the right shape and its argument, which outlives the call.
        unsafe { bpf_loop(SHAPES, probe_shape as *mut c_void, (&raw mut this).cast(), 0) as i32 }
    }

    /// Probes the entry of a class.
    #[inline(always)]
    fn probe(&mut self, class: u32) {
        self.key.class = class | self.tier;
        // SAFETY: copied at once; entries are replaced, never changed in place.
        let Some(value) = (unsafe { POLICY_ENTRIES.get(&self.key) }) else { return };
        let found = Best { precedence: value.precedence, action: value.action, rule: value.rule };
        if self.best.action == 0 || found.precedence > self.best.precedence {
            self.best = found;
        }
    }
}

/// Any protocol, and port prefixes of 0 to 16 bits.
const SHAPES: u32 = 18;

/// Those of them that match any port.
const ALL_PORTS: u32 = policy_shape::ANY | policy_shape::port_prefix(0);

unsafe extern "C" fn probe_shape(n: u32, search: *mut c_void) -> i64 {
    // SAFETY: the argument of the loop.
    let search = unsafe { &mut **search.cast::<*mut Search>() };
    if search.shapes >> (n & 31) & 1 == 0 {
        return 0;
    }
    if n == 0 {
        search.key.protocol = 0;
        search.key.port_prefix_len = 0;
        search.key.port_be = 0;
    } else {
        let bits = n - 1;
        let mask = 0xffff_0000_u32 >> (bits & 31);
        search.key.protocol = search.protocol as u8;
        search.key.port_prefix_len = bits as u8;
        search.key.port_be = ((search.port & mask) as u16).to_be();
    }
    if search.any_peer != 0 {
        search.probe(0);
    }
    if search.by_identity != 0 {
        search.probe(search.by_identity);
    }
    if search.by_prefix != 0 {
        search.probe(search.by_prefix);
    }
    0
}

/// The policy class of a peer; `rest` for a peer class that the policy has no row for.
#[inline(always)]
fn class(policy: u32, peer: u32, rest: u32) -> u32 {
    // SAFETY: a u32, copied at once.
    let Some(peer_class) = unsafe { PEERS.get(&peer) }.copied() else { return 0 };
    // SAFETY: as above.
    unsafe { POLICY_CLASSES.get(&PolicyClassKey { policy, peer_class }) }.copied().unwrap_or(rest)
}
