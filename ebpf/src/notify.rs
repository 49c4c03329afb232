//! Notifies user space: counters for every packet, events for drops and, while flows are observed, for connections.

use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, TC_ACT_SHOT};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use weft_abi::{Addr, DropReason, Event, FlowEntry, MetricKey, event_kind, flow_flags, verdict};

use crate::conntrack::entry::now_s;
use crate::hook::Hook;
use crate::maps::{Bucket, CONFIG, EVENT_LIMIT, EVENTS, METRICS};
use crate::packet::{ETH, ICMP, ICMPV6, Skb, TCP, TCP_FIN, TCP_RST, skb_len};
use crate::scratch::{Scratch, translated};
use crate::step::step;

/// Bytes waiting in the ring buffer at which its reader is woken from its pause: a quarter of it.
const WAKE_BYTES: u64 = 128 * 1024;

/// It is woken again after so many more, and by every record in the first part of them: several CPUs may step over one
/// exact threshold.
const WAKE_STEP: u64 = 64 * 1024;

const WAKE_PART: u64 = 4 * 1024;

/// Seconds between two reports of a connection that goes on.
const REPORT_S: u32 = 5;

#[inline(always)]
fn count(reason: u8, egress: bool, bytes: u32) {
    if let Some(metric) = METRICS.get_ptr_mut(MetricKey::index(reason, egress)) {
        // SAFETY: this CPU's own value.
        unsafe {
            (*metric).packets += 1;
            (*metric).bytes += u64::from(bytes);
        }
    }
}

/// Counts a packet that passes.
#[inline(always)]
pub fn count_forwarded(s: &Scratch) {
    count(0, s.egress == 1, s.packet.length);
}

/// Counts a packet that never reaches the kernel.
#[inline(always)]
pub fn count_accelerated(s: &Scratch) {
    count(0, false, s.packet.length);
    count(MetricKey::ACCELERATED, false, s.packet.length);
}

step!(report_drop(hook: Hook, reason: u32) = weft_step_report_drop: report_drop_body);

/// Counts and reports a drop.
#[inline(always)]
fn report_drop_body(skb: Skb, s: &mut Scratch, hook: Hook, reason: u32) -> Result<(), DropReason> {
    const DENIED: u32 = DropReason::PolicyDenied as u32;
    const DENY_RULE: u32 = DropReason::PolicyDenyRule as u32;
    const UNKNOWN_SENDER: u32 = DropReason::UnknownSender as u32;
    let by_policy = matches!(reason, DENIED | DENY_RULE | UNKNOWN_SENDER);
    let egress = if by_policy { s.egress == 1 } else { matches!(hook, Hook::FromPod | Hook::ToDevice) };
    s.egress = u8::from(egress);
    count(reason as u8, egress, skb_len(skb).wrapping_sub(ETH));
    if !by_policy {
        s.rule = 0;
        s.policy = 0;
    }
    submit(s, event_kind::DROP, verdict::DROPPED, reason as u8);
    s.act(TC_ACT_SHOT as i32)
}

/// Counts a drop without an event: expected noise of a pod's stack.
#[inline(always)]
pub fn drop_silently(s: &mut Scratch, reason: DropReason) -> Result<(), DropReason> {
    count(reason as u8, true, s.packet.length);
    s.act(TC_ACT_SHOT as i32)
}

/// Counts and reports what a policy in audit mode denies and what passes all the same.
#[inline(never)]
pub fn report_audited(s: &mut Scratch, reason: u32) -> i32 {
    count(MetricKey::AUDITED, s.egress == 1, s.packet.length);
    submit(s, event_kind::POLICY_VERDICT, verdict::AUDIT, reason as u8)
}

/// Reports a connection that was just decided.
#[inline(never)]
pub fn report_verdict(_skb: Skb, s: &mut Scratch, _hook: Hook) -> i32 {
    s.rule = if s.egress == 1 { s.entry.egress_rule } else { s.entry.ingress_rule };
    submit(s, event_kind::POLICY_VERDICT, verdict::FORWARDED, 0)
}

/// Reports a connection that goes on or ends, every few seconds.
#[inline(always)]
pub fn report_flow(_skb: Skb, s: &mut Scratch, entry: &mut FlowEntry, hook: Hook) {
    let now = now_s();
    let ends = s.packet.protocol == TCP && s.packet.tcp_flags & (TCP_FIN | TCP_RST) != 0;
    let first_reply = s.reply == 1 && entry.reply_packets == 1;
    if now.wrapping_sub(entry.reported_s) < REPORT_S && !ends && !first_reply {
        return;
    }
    entry.reported_s = now;
    let forward = s.reply == 0;
    let ((a, a_endpoint), (b, b_endpoint)) =
        ((entry.source_identity, entry.source_endpoint), (entry.destination_identity, entry.destination_endpoint));
    s.source_identity = if forward { a } else { b };
    s.destination_identity = if forward { b } else { a };
    s.source_endpoint = if forward { a_endpoint } else { b_endpoint };
    s.destination_endpoint = if forward { b_endpoint } else { a_endpoint };
    s.egress = u8::from(matches!(hook, Hook::FromPod | Hook::ToDevice));
    if entry.flags & flow_flags::TRANSLATED != 0 {
        s.frontend = entry.frontend;
        s.frontend_port = entry.frontend_port_be;
        s.translated |= if forward { 0 } else { translated::REPLY };
    }
    s.policy = 0;
    s.rule = if entry.ingress_rule != 0 { entry.ingress_rule } else { entry.egress_rule };
    submit(s, event_kind::TRACE, verdict::FORWARDED, 0);
}

#[inline(never)]
fn submit(s: &mut Scratch, kind: u8, verdict: u8, reason: u8) -> i32 {
    let Some(bucket) = EVENT_LIMIT.get_ptr_mut(0) else { return 0 };
    let per_second = CONFIG.get(0).map_or(0, |config| config.events_per_s);
    // SAFETY: this CPU's own value; no argument to the clock.
    let (bucket, now) = unsafe { (&mut *bucket, bpf_ktime_get_ns()) };
    let passed = now.wrapping_sub(bucket.filled_ns);
    if passed > 1_000_000_000 {
        bucket.tokens = per_second;
        bucket.filled_ns = now;
    } else if bucket.tokens == 0 {
        let earned = (passed / 1000 * u64::from(per_second) / 1_000_000) as u32;
        if earned > 0 {
            bucket.tokens = earned;
            bucket.filled_ns = now;
        }
    }
    if bucket.tokens == 0 {
        return count_suppressed(bucket);
    }
    let Some(mut slot) = EVENTS.reserve::<Event>(0) else { return count_suppressed(bucket) };
    bucket.tokens -= 1;
    let icmp = matches!(s.packet.protocol, ICMP | ICMPV6);
    let parsed = s.packet.version != 0;
    let translated = s.translated != 0;
    slot.write(Event {
        time_ns: now,
        source: s.packet.source,
        destination: s.packet.destination,
        frontend: if translated { s.frontend } else { Addr::NONE },
        source_identity: s.source_identity,
        destination_identity: s.destination_identity,
        rule: s.rule,
        policy: s.policy,
        length: s.packet.length,
        ifindex: s.packet.ifindex,
        suppressed: bucket.suppressed,
        source_port_be: if icmp { u16::from(s.packet.icmp_type) } else { s.packet.source_port },
        destination_port_be: if icmp { u16::from(s.packet.icmp_code) } else { s.packet.destination_port },
        source_endpoint: s.source_endpoint,
        destination_endpoint: s.destination_endpoint,
        kind,
        verdict,
        reason,
        protocol: if parsed { s.packet.protocol } else { 0 },
        tcp_flags: s.packet.tcp_flags,
        egress: s.egress,
        reply: s.reply,
        ip_version: s.packet.version,
        frontend_port_be: if translated { s.frontend_port } else { 0 },
        pad: 0,
    });
    bucket.suppressed = 0;
    // The kernel wakes a reader that has read everything. The reader then pauses, and events meanwhile do not wake it.
    let waiting = EVENTS.query(u64::from(BPF_RB_AVAIL_DATA));
    let wakes = waiting >= WAKE_BYTES && waiting % WAKE_STEP < WAKE_PART;
    slot.submit(if wakes { u64::from(BPF_RB_FORCE_WAKEUP) } else { 0 });
    0
}

#[inline(always)]
fn count_suppressed(bucket: &mut Bucket) -> i32 {
    bucket.suppressed = bucket.suppressed.wrapping_add(1);
    count(MetricKey::SUPPRESSED, false, 0);
    0
}
