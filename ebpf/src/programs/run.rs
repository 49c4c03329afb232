//! Runs a program's body: clears the scratch memory, turns an error into a drop.

use aya_ebpf::bindings::TC_ACT_SHOT;
use weft_abi::DropReason;

use crate::hook::Hook;
use crate::icmp::reject::send_rejection;
use crate::maps::SCRATCH;
use crate::nat::rewrite::flush_head;
use crate::notify::report_drop;
use crate::packet::Skb;
use crate::scratch::Scratch;

/// Runs a program's body with the scratch memory; an error is a drop.
#[inline(always)]
pub fn run(skb: Skb, hook: Hook, body: impl FnOnce(Skb, &mut Scratch) -> Result<(), DropReason>) -> i32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return TC_ACT_SHOT as i32 };
    // SAFETY: this CPU's own memory; programs of these hooks do not nest.
    let s = unsafe { &mut *scratch };
    s.egress = u8::from(matches!(hook, Hook::FromPod | Hook::ToDevice));
    s.reply = 0;
    s.audited = 0;
    s.known = 0;
    s.host = 0;
    s.from_node = u8::from(matches!(hook, Hook::ToDevice));
    s.translated = 0;
    s.unwritten = 0;
    s.reject = 0;
    s.source_identity = 0;
    s.destination_identity = 0;
    s.source_endpoint = 0;
    s.destination_endpoint = 0;
    s.policy = 0;
    s.rule = 0;
    match body(skb, s).and_then(|()| flush_head(skb, s)) {
        Ok(()) => s.action,
        Err(reason) => {
            // By way of the memory: the verifier would walk the rest for every reason.
            s.reason = reason as u32;
            // SAFETY: what was just written.
            let reason = unsafe { core::ptr::read_volatile(&raw const s.reason) };
            if report_drop(skb, s, hook, reason).is_err() {
                return TC_ACT_SHOT as i32;
            }
            let refuses = !matches!(hook, Hook::ToPod) && s.reject != 0;
            if refuses && send_rejection(skb, s).is_ok() { s.action } else { TC_ACT_SHOT as i32 }
        }
    }
}

pub const ARP: u16 = 0x0806;
