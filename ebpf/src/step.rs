//! The steps that a packet may have to take off the established path. Each is a function that the kernel verifies once
//! for a program and by itself (a global function), not anew for every way that leads to it: so loading takes little
//! time, and what is added to one step costs nothing in the others. What they have in common is in the scratch memory.

use core::arch::asm;

use weft_abi::{DropReason, FlowEntry};

use crate::packet::{Scratch, Skb};
use crate::{
    Hook, decide as judged, direct, forward, icmp, nat, notify, own, policy as policies, refuse, route as routes,
    service,
};
use crate::{track, tunnel};

/// The answer of a step as the kernel wants it: a plain number.
#[inline(always)]
fn number(result: Result<(), DropReason>) -> u32 {
    match result {
        Ok(()) => 0,
        Err(reason) => reason as u32,
    }
}

#[inline(always)]
fn result(number: u32) -> Result<(), DropReason> {
    if number == 0 {
        return Ok(());
    }
    // SAFETY: made by `number` of a reason.
    Err(unsafe { core::mem::transmute::<u8, DropReason>(number as u8) })
}

/// Follows `s.path`.
#[inline(always)]
pub fn send(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    go(skb, s, core::ptr::null_mut())
}

macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $type:ty),*) = $symbol:ident: $body:path;)*) => { $(
        $(#[$doc])*
        #[inline(always)]
        pub fn $name(skb: Skb, s: &mut Scratch $(, $arg: $type)*) -> Result<(), DropReason> {
            #[inline(never)]
            #[unsafe(no_mangle)]
            extern "C" fn $symbol(skb: Skb, s: *mut Scratch $(, $arg: $type)*) -> u32 {
                // A step that needs no context gets it all the same; the compiler would pass what lies in the register.
                // SAFETY: no instruction.
                unsafe { asm!("/* {0} */", in(reg) skb) };
                // The verifier supposes that it may be.
                if s.is_null() {
                    return DropReason::InvalidPacket as u32;
                }
                // SAFETY: this CPU's own memory, lent by the only caller.
                number($body(skb, unsafe { &mut *s } $(, $arg)*))
            }
            result($symbol(skb, s $(, $arg)*))
        }
    )* };
}

steps! {
    /// See [`judged::decide`].
    decide(hook: Hook, existing: *mut FlowEntry) = weft_step_decide: judged::decide;
    /// See [`judged::untracked`].
    untracked(hook: Hook) = weft_step_untracked: judged::untracked;
    /// See [`judged::destination`].
    destination(hook: Hook) = weft_step_destination: judged::destination;
    /// See [`judged::source`].
    source(hook: Hook) = weft_step_source: judged::source;
    /// See [`judged::ask`].
    ask(forward: bool) = weft_step_ask: judged::ask;
    /// See [`policies::judge`].
    policy() = weft_step_policy: policies::judge;
    /// See [`routes::route`].
    route(hook: Hook, forward: bool) = weft_step_route: routes::route;
    /// See [`nat::reserve`].
    reserve() = weft_step_reserve: nat::reserve;
    /// See [`nat::inbound`].
    unmasquerade() = weft_step_unmasquerade: nat::inbound;
    /// See [`forward::send`].
    go(entry: *mut FlowEntry) = weft_step_go: forward::send;
    /// See [`routes::lookup`].
    lookup() = weft_step_lookup: routes::lookup;
    /// See [`service::choose`].
    choose() = weft_step_choose: service::choose;
    /// See [`icmp::follow`].
    related(hook: Hook) = weft_step_related: icmp::follow;
    /// See [`service::translate`].
    translate(hook: Hook, existing: *mut FlowEntry) = weft_step_translate: service::translate;
    /// See [`service::enter`].
    enter() = weft_step_enter: service::enter;
    /// See [`own::leave`].
    leave() = weft_step_leave: own::leave;
    /// See [`own::depart`].
    depart() = weft_step_depart: own::depart;
    /// See [`service::apply`].
    apply() = weft_step_apply: service::apply;
    /// See [`service::back`].
    back(flags: u16) = weft_step_back: service::back;
    /// See [`track::behind`].
    behind(hook: Hook, choice: *mut FlowEntry) = weft_step_behind: track::behind;
    /// See [`tunnel::take_off`].
    take_off() = weft_step_take_off: tunnel::take_off;
    /// See [`tunnel::inner`].
    inner(sender: u32) = weft_step_inner: tunnel::inner;
    /// See [`notify::dropped`].
    dropped(hook: Hook, reason: u32) = weft_step_dropped: notify::dropped;
    /// See [`direct::prepare`].
    prepare(entry: *mut FlowEntry) = weft_step_prepare: direct::prepare;
    /// See [`direct::tell`].
    tell() = weft_step_tell: direct::tell;
    /// See [`direct::arrive`].
    arrive() = weft_step_arrive: direct::arrive;
    /// See [`direct::again`].
    again() = weft_step_again: direct::again;
    /// See [`refuse::answer`].
    refuse() = weft_step_refuse: refuse::answer;
    /// See [`refuse::reset`].
    reset() = weft_step_reset: refuse::reset;
}
