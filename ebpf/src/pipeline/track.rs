//! The established path, where one lookup of a packet's connection is all.

use weft_abi::{DropReason, FlowEntry, NodeConfig, Path, config_flags, flow_flags, flow_kind, path_action};

use crate::conntrack::entry::{is_closing, is_current, record};
use crate::conntrack::key::canonical_key;
use crate::forward::send::{send_entry, send_established, send_new};
use crate::hook::Hook;
use crate::lb::backend::unbind;
use crate::lb::choice::{is_other_services, store_choice};
use crate::lb::translate::{EVICTED, UNCHANGED, translate};
use crate::maps::{FLOWS, config};
use crate::notify;
use crate::packet::{Skb, TCP, TCP_ACK, TCP_SYN, UNKNOWN_PORTS};
use crate::parse::icmp::is_echo_request;
use crate::pipeline::decide::{decide, untracked};
use crate::scratch::Scratch;
use crate::step::step;

/// Finds or creates the packet's connection and sends the packet.
#[inline(always)]
pub fn track(skb: Skb, s: &mut Scratch, hook: Hook, config: &NodeConfig) -> Result<(), DropReason> {
    let none = core::ptr::null_mut();
    track_with::<false>(
        skb,
        s,
        hook,
        config,
        none,
        |s, entry| send_established(skb, s, Some(entry), config),
        |s| send_new(skb, s),
    )
}

step!(track_translated(hook: Hook, choice: *mut FlowEntry) = weft_step_track_translated: track_translated_body);

/// The same of a packet that was translated for a service. Apart from it, so that neither is a loop. `choice` is the
/// entry between client and frontend, null: not looked up yet.
#[inline(always)]
fn track_translated_body(skb: Skb, s: &mut Scratch, hook: Hook, choice: *mut FlowEntry) -> Result<(), DropReason> {
    let Some(config) = config() else { return Err(DropReason::NoConfig) };
    track_with::<true>(skb, s, hook, config, choice, |s, entry| send_entry(skb, s, entry), |s| send_new(skb, s))
}

/// Finds or creates the packet's connection; `go` sends the packet of a decided one, `send` all others.
#[inline(always)]
pub fn track_with<const TRANSLATED_PACKET: bool>(
    skb: Skb,
    s: &mut Scratch,
    hook: Hook,
    config: &NodeConfig,
    choice: *mut FlowEntry,
    go: impl FnOnce(&mut Scratch, &mut FlowEntry) -> Result<(), DropReason>,
    send: impl FnOnce(&mut Scratch) -> Result<(), DropReason>,
) -> Result<(), DropReason> {
    if s.packet.flags & UNKNOWN_PORTS != 0 {
        untracked(skb, s, hook)?;
        return send(s);
    }
    // Services are looked up where packets of clients come in: off the established path, since their entries have no
    // path of their own.
    let serves = TRANSLATED_PACKET || matches!(hook, Hook::FromPod | Hook::FromDevice);
    let low = canonical_key(&s.packet, flow_kind::FLOW, &mut s.key);
    s.low = u8::from(low);
    let mut existing = FLOWS.get_ptr_mut(&s.key);
    if let Some(pointer) = existing {
        // SAFETY: a map value stays readable for the length of the program; other CPUs may write fields meanwhile,
        // each of which is one word that is right before and after.
        let entry = unsafe { &mut *pointer };
        let forward = (entry.flags & flow_flags::ORIGIN_LOW != 0) == low;
        s.reply = u8::from(!forward);
        let syn = s.packet.protocol == TCP && s.packet.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN;
        let opening = syn && is_closing(entry.flags);
        if !forward && (is_echo_request(s) || syn && !opening) {
            // No reply, whatever its ports: its sender opens a connection of its own.
            if TRANSLATED_PACKET {
                return Err(DropReason::NoNatMapping);
            }
            untracked(skb, s, hook)?;
            return send(s);
        }
        let path: &Path = if forward { &entry.forward } else { &entry.reply };
        if path.in_ifindex == s.packet.ifindex
            && path.action != path_action::NONE
            && !opening
            && !(serves && is_other_services(s, entry, forward))
            && is_current(entry)
            && record(s, entry, forward)
        {
            if config.flags & config_flags::OBSERVE != 0 {
                notify::report_flow(skb, s, entry, hook);
            }
            return go(s, entry);
        }
        // SAFETY: as above.
        if unsafe { core::ptr::read_volatile(&raw const entry.last_seen_s) } == FlowEntry::DELETING {
            existing = None;
        }
    }
    let mut existing = existing.unwrap_or(core::ptr::null_mut());
    if !TRANSLATED_PACKET && serves {
        translate(skb, s, hook, existing)?;
        match s.output {
            UNCHANGED => {}
            EVICTED => existing = core::ptr::null_mut(),
            _ => return track_translated(skb, s, hook, existing),
        }
    }
    let decided = decide(skb, s, hook, existing);
    if TRANSLATED_PACKET {
        if decided.is_err() {
            unbind(s);
        } else {
            store_choice(s, choice)?;
        }
    }
    decided?;
    if config.flags & config_flags::OBSERVE != 0 && s.audited == 0 {
        notify::report_verdict(skb, s, hook);
    }
    send(s)
}
