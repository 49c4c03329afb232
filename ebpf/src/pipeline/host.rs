//! The node's own traffic under policies.

use weft_abi::{DropReason, NodeConfig};

use crate::hook::{Hook, PASS};
use crate::notify;
use crate::packet::Skb;
use crate::pipeline::track::track_with;
use crate::policy::host::is_exempt_egress;
use crate::scratch::Scratch;

/// Judges a packet that leaves by the node's device, if the node made it.
#[inline(always)]
pub fn from_host(skb: Skb, s: &mut Scratch, config: &NodeConfig) -> Result<(), DropReason> {
    if is_exempt_egress(skb, s) { s.act(PASS) } else { track_host(skb, s, config) }
}

/// Judges and tracks what the node sends.
#[inline(always)]
pub fn track_host(skb: Skb, s: &mut Scratch, config: &NodeConfig) -> Result<(), DropReason> {
    track_with::<false>(skb, s, Hook::ToDevice, config, core::ptr::null_mut(), |s, _| pass(s), pass)
}

#[inline(always)]
fn pass(s: &mut Scratch) -> Result<(), DropReason> {
    notify::count_forwarded(s);
    s.act(PASS)
}
