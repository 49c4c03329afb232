//! The two-step lookup: peer -> class, then class and port shape -> verdict.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use weft_abi::{CidrValue, DropReason, PolicyEntryKey, PolicyPeerKey, policy_action, policy_flags};

use crate::maps::{CIDRS, POLICY_ENTRIES, POLICY_INFO, POLICY_PEERS};
use crate::packet::{SCTP, Scratch, TCP, UDP, UNKNOWN_PORTS};
use aya_ebpf::maps::lpm_trie::Key;
use weft_abi::Addr;

/// Judges the packet by `policy`; `peer_identity` and `peer` are the other end's, `port` is the responder's, as it
/// lies in the packet. The rule that decided is left in `s.rule`.
#[inline(never)]
pub fn judge(s: &mut Scratch, policy: u32, peer_identity: u32, peer: *const Addr, port: u16) -> Result<(), DropReason> {
    s.policy = policy;
    s.rule = 0;
    // SAFETY: values of these maps are replaced, never changed in place.
    let Some(info) = (unsafe { POLICY_INFO.get(&policy) }) else { return Err(DropReason::EndpointNotReady) };
    let (shapes, any_peer) = (info.shapes, info.flags & policy_flags::ANY_PEER != 0);
    // SAFETY: the caller's pointer is to an address in the scratch memory.
    let peer = unsafe { *peer };
    let by_identity = class(policy, peer_identity);
    let by_prefix = match CIDRS.get(&Key::new(128, peer)) {
        // Identity 0 keeps `::/0` from matching IPv4.
        Some(CidrValue { identity }) if *identity != 0 => class(policy, *identity),
        _ => 0,
    };
    if s.packet.flags & UNKNOWN_PORTS != 0 {
        // A fragment without its first one: pass if any rule is for this peer; the first one is judged in full.
        return if any_peer || by_identity != 0 || by_prefix != 0 { Ok(()) } else { Err(DropReason::PolicyDenied) };
    }
    let ported = matches!(s.packet.protocol, TCP | UDP | SCTP);
    let mut search = Search {
        key: PolicyEntryKey { policy, class: 0, port_be: 0, port_prefix_len: 0, protocol: 0 },
        shapes,
        port: if ported { u32::from(u16::from_be(port)) } else { 0 },
        protocol: u32::from(s.packet.protocol),
        precedence: 0,
        action: 0,
        rule: 0,
    };
    if any_peer {
        search.run(0);
    }
    if by_identity != 0 {
        search.run(by_identity);
    }
    if by_prefix != 0 {
        search.run(by_prefix);
    }
    s.rule = search.rule;
    match search.action {
        policy_action::ALLOW => Ok(()),
        policy_action::DENY => Err(DropReason::PolicyDenyRule),
        _ => Err(DropReason::PolicyDenied),
    }
}

/// Looking for the best entry: what of the packet counts, and the best so far.
#[repr(C)]
struct Search {
    key: PolicyEntryKey,
    shapes: u32,
    port: u32,
    protocol: u32,
    precedence: u32,
    action: u32,
    rule: u32,
}

impl Search {
    /// Looks into every shape that the policy uses. By callback: the verifier walks it once, not for every shape.
    #[inline(always)]
    fn run(&mut self, class: u32) {
        self.key.class = class;
        // SAFETY: a callback of the right shape and its argument, which outlives the call.
        unsafe {
            bpf_loop(SHAPES, shape as *mut c_void, core::ptr::from_mut(self).cast(), 0);
        }
    }
}

/// Any protocol, and port prefixes of 0 to 16 bits.
const SHAPES: u32 = 18;

unsafe extern "C" fn shape(n: u32, search: *mut c_void) -> i64 {
    // SAFETY: the argument of the loop.
    let search = unsafe { &mut *search.cast::<Search>() };
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
    // SAFETY: copied at once; entries are replaced, never changed in place.
    if let Some(value) = unsafe { POLICY_ENTRIES.get(&search.key) } {
        if search.action == 0 || value.precedence > search.precedence {
            search.precedence = value.precedence;
            search.action = value.action;
            search.rule = value.rule;
        }
    }
    0
}

#[inline(always)]
fn class(policy: u32, peer: u32) -> u32 {
    // SAFETY: a u32, copied at once.
    unsafe { POLICY_PEERS.get(&PolicyPeerKey { policy, peer }) }.copied().unwrap_or(0)
}
