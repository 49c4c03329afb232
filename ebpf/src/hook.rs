//! The hooks that a packet can be at.

use aya_ebpf::bindings::TC_ACT_OK;

/// The hook that the program runs at.
#[derive(Clone, Copy)]
#[repr(u8)]
pub enum Hook {
    /// A pod sent it.
    FromPod,
    /// The node's stack sends it to a pod.
    ToPod,
    /// It came from the network.
    FromDevice,
    /// The node sends it to the network.
    ToDevice,
}

pub const PASS: i32 = TC_ACT_OK as i32;
