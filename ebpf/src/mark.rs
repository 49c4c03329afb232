//! Packets that this node made, and the mark of those that another program of this node has decided. Only the node can set
//! it: marks are taken off where a packet leaves a network namespace.

use aya_ebpf::bindings::BPF_F_INGRESS;
use aya_ebpf::helpers::generated::{bpf_redirect, bpf_skb_change_type};
use weft_abi::DropReason;

use crate::packet::Skb;
use crate::scratch::Scratch;

/// The mark of a packet that was decided by another program of this node.
const DECIDED: u32 = 0x5746_0300;

/// Whether another program has decided the packet, which is then as if it never had the mark.
#[inline(always)]
pub fn take_mark(skb: Skb) -> bool {
    // SAFETY: the context is valid for the length of the program.
    unsafe {
        let mark = &raw mut (*skb).mark;
        if core::ptr::read_volatile(mark) != DECIDED {
            return false;
        }
        core::ptr::write_volatile(mark, 0);
    }
    true
}

/// The same at the ingress of the device. The packet type is set to `PACKET_HOST`: its MAC is that of the next hop.
#[inline(always)]
pub fn returns_to_node(skb: Skb) -> bool {
    // SAFETY: no pointers but the context; 0 is PACKET_HOST.
    take_mark(skb) && unsafe { bpf_skb_change_type(skb, 0) } == 0
}

#[inline(always)]
pub fn set_mark(skb: Skb) {
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(&raw mut (*skb).mark, DECIDED) };
}

/// Whether the node's own stack made the packet: it came in by no device.
#[inline(always)]
pub fn is_locally_generated(skb: Skb) -> bool {
    // SAFETY: as above.
    (unsafe { core::ptr::read_volatile(&raw const (*skb).ingress_ifindex) }) == 0
}

/// Lets the packet come in by the device.
#[inline(always)]
pub fn redirect_ingress(s: &mut Scratch, device: u32) {
    // SAFETY: no pointers.
    s.action = unsafe { bpf_redirect(device, u64::from(BPF_F_INGRESS)) } as i32;
}

/// Sends a rejection, which was written over the packet, to the process of the node that sent the packet.
#[inline(always)]
pub fn return_to_node(skb: Skb, s: &mut Scratch) -> Result<(), DropReason> {
    let device = s.packet.ifindex;
    redirect_ingress(s, device);
    set_mark(skb);
    Ok(())
}

/// The packet was made on this node: it has a socket.
#[inline(always)]
pub fn has_socket(skb: Skb) -> bool {
    // SAFETY: the context is valid.
    !unsafe { core::ptr::read_volatile(&raw const (*skb).__bindgen_anon_2.sk) }.is_null()
}
