//! The kernel programs of Weft: what every packet to and from a pod passes.
//!
//! | folder | what is in it |
//! |---|---|
//! | `programs` | the entry points at devices, see the table below |
//! | `parse` | from bytes to a tuple |
//! | `conntrack` | keys and entries of connections, their collector |
//! | `endpoint` | who has an address; ARP and neighbour discovery of pods |
//! | `policy` | the policy lookup, and whose policies a packet meets |
//! | `lb` | services: frontends, backends, affinity, DNAT, direct server return |
//! | `nat` | masquerading, rewriting of addresses and ports, checksums |
//! | `forward` | the route, the redirect, VXLAN |
//! | `icmp` | ICMP errors about tracked connections; rejections (TCP reset, ICMP error) |
//! | `pipeline` | the order of the stages: track, decide, send |
//! | `notify.rs` | events and counters |
//! | `socket.rs` | services at the socket |
//! | `xdp.rs` | established connections at the edge |
//!
//! `packet.rs`, `scratch.rs`, `maps.rs`, `hook.rs` and `step.rs` are below all stages and know none of them. A stage that
//! the kernel shall verify by itself declares its step where its body is ([`step`]).
//!
//! | program | where | what it sees |
//! |---|---|---|
//! | `weft_from_pod` | tcx ingress of a pod's link, host side | everything a pod sends |
//! | `weft_to_pod` | tcx egress of the same | what the node's stack sends to the pod |
//! | `weft_from_device` | tcx ingress of the node's device | everything from the network, tunnels included |
//! | `weft_edge` | XDP of the same | the same before the kernel does, if connections at the edge are accelerated |
//! | `weft_to_device` | tcx egress of the same | what the node's own stack sends: to services, as a backend, under policies |
//! | `weft_from_tunnel`, `weft_to_tunnel` | tcx of the VXLAN device | what the device unwraps, what the stack sends to pods elsewhere |
//! | `weft_connect4`, ... | calls of sockets in the node's control group | services: the table in `socket.rs` |
//! | `weft_collect` | run by the agent | expired connections |
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod conntrack;
mod endpoint;
mod forward;
mod hook;
mod icmp;
mod lb;
mod maps;
mod mark;
mod nat;
mod notify;
mod packet;
mod parse;
mod pipeline;
mod policy;
mod programs;
mod reject;
mod scratch;
mod socket;
mod step;
mod xdp;

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";
