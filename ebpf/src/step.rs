//! Steps: stages that the kernel verifies once for a program and by themselves (global functions), not anew for every way
//! that leads to them. What a packet passes only off the established path is a step: so loading takes little time, and what
//! is added to one step costs nothing in the others. What steps have in common is in the scratch memory.
//!
//! A step is declared beside its body, in the file of its stage: `step!(route(hook: Hook) = weft_step_route: route_body);`

use weft_abi::DropReason;

/// The result of a step as the kernel wants it: a plain number.
#[inline(always)]
pub fn number(result: Result<(), DropReason>) -> u32 {
    match result {
        Ok(()) => 0,
        Err(reason) => reason as u32,
    }
}

/// The reverse of [`number`].
#[inline(always)]
pub fn result(number: u32) -> Result<(), DropReason> {
    if number == 0 {
        return Ok(());
    }
    // SAFETY: made by `number` of a reason.
    Err(unsafe { core::mem::transmute::<u8, DropReason>(number as u8) })
}

/// Declares `name`, which calls the body as a global function of that symbol. The kernel allows five arguments.
macro_rules! step {
    ($name:ident($($arg:ident: $type:ty),*) = $symbol:ident: $body:path) => {
        #[inline(always)]
        pub fn $name(skb: Skb, s: &mut Scratch $(, $arg: $type)*) -> Result<(), DropReason> {
            #[inline(never)]
            #[unsafe(no_mangle)]
            extern "C" fn $symbol(skb: Skb, s: *mut Scratch $(, $arg: $type)*) -> u32 {
                // A step that needs no context gets it all the same; the compiler would pass what lies in the register.
                // SAFETY: no instruction.
                unsafe { core::arch::asm!("/* {0} */", in(reg) skb) };
                // The verifier supposes that it may be.
                if s.is_null() {
                    return DropReason::InvalidPacket as u32;
                }
                // SAFETY: this CPU's own memory, lent by the only caller.
                $crate::step::number($body(skb, unsafe { &mut *s } $(, $arg)*))
            }
            $crate::step::result($symbol(skb, s $(, $arg)*))
        }
    };
}
pub(crate) use step;
