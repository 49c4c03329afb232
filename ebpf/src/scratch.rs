//! The working memory of one packet, a value of a per-CPU map: a program has 512 bytes of stack.
//!
//! It holds data alone and knows no stage. What a stage keeps between its functions is declared here, since one map
//! value holds all of it; what is done with it is the stage's business.

use weft_abi::{
    Addr, AffinityKey, BackendInfo, DropReason, FlowEntry, FlowKey, FragmentKey, FrontendInfo, FrontendKey, Path,
    PolicyEntryKey,
};

use crate::packet::Packet;

/// Working memory of one packet; a program has 512 bytes of stack, so it lives in a per-CPU map.
#[repr(C, align(8))]
pub struct Scratch {
    pub head: [u8; PAD + HEAD + 2],
    /// Bytes of the frame that `head` holds.
    pub copied: u32,
    pub packet: Packet,
    pub key: FlowKey,
    pub nat_key: FlowKey,
    pub entry: FlowEntry,
    pub nat_entry: FlowEntry,
    pub path: Path,
    pub next_hop: Addr,
    /// The node that a packet came from through the tunnel.
    pub tunnel_peer: Addr,
    pub source_identity: u32,
    pub destination_identity: u32,
    pub rule: u32,
    pub policy: u32,
    pub source_endpoint: u16,
    pub destination_endpoint: u16,
    /// 1: the direction of `policy` is egress.
    pub egress: u8,
    pub reply: u8,
    /// 1: a policy in audit mode denies the packet.
    pub audited: u8,
    /// 1: the connection was decided under policies that have not changed since; only this direction's path is missing.
    pub known: u8,
    /// 1: one end is the node itself, which is subject to policies.
    pub host: u8,
    /// [`translated`].
    pub translated: u8,
    /// 1: the source is the low end of `key`. In memory, so that the verifier does not walk all that follows twice.
    pub low: u8,
    /// 1: the node's own stack sent the packet.
    pub from_node: u8,
    /// Bytes of `head` up to the last one that was changed there alone, see [`crate::nat::rewrite::flush_head`].
    pub unwritten: u8,
    /// Bytes of the DSR option that the packet gets; 0: none.
    pub dsr_option: u32,
    /// The frontend, if `translated` is not 0.
    pub frontend: Addr,
    pub frontend_port: u16,
    pub service: Service,
    pub sctp: Append,
    pub icmp_edit: Edit,
    pub from: End,
    pub to: End,
    pub query: Query,
    pub search: Search,
    pub fragment: FragmentKey,
    /// What the program shall return. Functions give it here and return `Result<(), DropReason>`, which is one byte:
    /// a larger result is a pair of registers, one half of which is undefined, and the verifier sees that.
    pub action: i32,
    /// The output of a function that has one, likewise.
    pub output: u32,
    /// Why the packet is dropped.
    pub reason: u32,
    /// Not 0: how it is rejected, see [`crate::reject`].
    pub reject: u32,
    /// The packet, while `packet` is the one that an ICMP error quotes.
    pub saved: Packet,
}

impl End {
    /// Not of this node, or not subject to policies.
    pub const NONE: Self = Self { ingress: 0, egress: 0, flags: 0, is_pod: 0, pad: 0 };
}

/// How a packet of a service was translated.
pub mod translated {
    /// It is from a client and has the backend's address now.
    pub const FORWARD: u8 = 1;
    /// The backend is the client itself.
    pub const HAIRPIN: u8 = 2;
    /// It is a reply to a client.
    pub const REPLY: u8 = 4;
    /// It is from a client and came with the backend's address (direct server return).
    pub const DSR: u8 = 8;
}

/// The choice of a backend.
#[repr(C)]
pub struct Service {
    /// Between the client and the frontend.
    pub key: FlowKey,
    pub frontend: FrontendKey,
    pub info: FrontendInfo,
    pub backend: BackendInfo,
    /// The set that counts for the client, its size, and that of Maglev's table.
    pub set: u32,
    pub count: u32,
    pub table: u32,
    /// 1: the client is the low end of `key`.
    pub low: u8,
    /// 1: the choice is in FLOWS already.
    pub stored: u8,
    /// 1: the client is outside.
    pub outside: u8,
    /// 1: this packet bound its client to the backend.
    pub bound: u8,
    /// 1: direct server return: the backend's node replies to the client.
    pub dsr: u8,
    /// 1: there is a choice that no longer counts, to be replaced.
    pub stale: u8,
    /// How many backends were chosen for this packet and could not be used.
    pub tried: u8,
    pub pad: u8,
    /// Where in the set the last one was.
    pub slot: u32,
    /// What an ICMP error quotes.
    pub quote: [u8; QUOTE],
    /// The client's affinity as it was read, see [`crate::lb::backend::packed`]; 0: none.
    pub observed: u64,
    pub affinity: AffinityKey,
}

/// The policies of one end of a connection.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct End {
    pub ingress: u32,
    pub egress: u32,
    /// [`endpoint_flags`].
    pub flags: u16,
    /// 1: a pod of this node.
    pub is_pod: u8,
    pub pad: u8,
}

/// The input of a policy lookup.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Query {
    pub policy: u32,
    /// Identity and address of the other end.
    pub identity: u32,
    pub address: Addr,
    /// The responder's port, as it lies in the packet; of ICMP the type counts instead.
    pub port: u16,
    pub pad: u16,
}

/// Bytes before the frame in the buffer, so that the network header is aligned.
pub const PAD: usize = 2;

/// Bytes of the frame that are copied at most.
pub const HEAD: usize = 80;

/// Looking for the best entry, in the scratch memory: what of the packet counts, and the best so far.
#[repr(C)]
pub struct Search {
    pub key: PolicyEntryKey,
    pub shapes: u32,
    pub port: u32,
    pub protocol: u32,
    /// Bit of the tier's classes.
    pub tier: u32,
    /// Which classes: not 0 if that of any peer has entries; the peer's, by its identity and by its address.
    pub any_peer: u32,
    pub by_identity: u32,
    pub by_prefix: u32,
    pub best: Best,
}

/// An entry that matches.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Best {
    pub precedence: u32,
    pub action: u32,
    pub rule: u32,
}

/// Appending zeros.
#[repr(C)]
pub struct Append {
    pub difference: u32,
    /// How many bytes are still to come, from the bit of this step on.
    pub behind: u32,
    /// x^(8 * 2^n) for step n.
    pub power: u32,
}

/// Offsets in the frame of the quoted packet's source address and transport header.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Quote {
    pub source: u32,
    pub l4: u32,
}

/// What is changed in an ICMP error so that its quote matches what its receiver sent.
#[repr(C)]
pub struct Edit {
    pub quote: Quote,
    pub responder: Addr,
    /// The quoted packet's.
    pub destination_port: u16,
    pub hairpin: u8,
    /// [`NONE`], [`FOUND`] or [`CHANGED`].
    pub found: u8,
}

/// Most bytes of the packet that are quoted. A multiple of 8, and all that stacks read.
pub const QUOTE: usize = 128;

/// Zeroes a value where it lies: a temporary would take more stack than there is.
#[inline(always)]
pub fn clear(entry: &mut FlowEntry) {
    const WORDS: usize = size_of::<FlowEntry>() / 8;
    const _: () = assert!(size_of::<FlowEntry>() % 8 == 0 && align_of::<FlowEntry>() == 8, "whole words");
    let words = core::ptr::from_mut(entry).cast::<u64>();
    for n in 0..WORDS {
        // SAFETY: plain words of the value, all of which may be zero. Volatile: else it becomes a call that goes byte by
        // byte.
        unsafe { words.add(n).write_volatile(0) };
    }
}

impl Scratch {
    /// Lets the program return `action`.
    #[inline(always)]
    pub fn act(&mut self, action: i32) -> Result<(), DropReason> {
        self.action = action;
        Ok(())
    }

    /// A value at an offset of the frame that the verifier can bound.
    #[inline(always)]
    pub fn at<T: Copy>(&self, offset: usize) -> T {
        // SAFETY: every caller passes offsets that end inside the buffer; the verifier refuses the program otherwise.
        unsafe { *self.head.as_ptr().add(PAD + offset).cast::<T>() }
    }

    /// Start of the frame's copy.
    #[inline(always)]
    pub fn frame(&mut self) -> *mut u8 {
        // SAFETY: inside the buffer.
        unsafe { self.head.as_mut_ptr().add(PAD) }
    }
}
