//! Records of the ring buffer, read with distrust: a record of another length or kind is refused, never guessed at.

use weft_abi::{Addr, DropReason, Event, event_kind, verdict};
use weft_api::flow;

/// A record that is none of ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// Too short, or longer than the ring buffer's padding explains.
    #[error("record of {0} bytes, expected {len}", len = size_of::<Event>())]
    Length(usize),
    /// Unknown kind.
    #[error("kind {0}, expected {drop}, {trace} or {policy}",
        drop = event_kind::DROP, trace = event_kind::TRACE, policy = event_kind::POLICY_VERDICT)]
    Kind(u8),
    /// Unknown verdict.
    #[error("verdict {0}, expected {forwarded}, {dropped} or {audit}",
        forwarded = verdict::FORWARDED, dropped = verdict::DROPPED, audit = verdict::AUDIT)]
    Verdict(u8),
}

/// Takes the fields out of a record one after the other.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (head, tail) = self.0.split_first_chunk::<N>().expect("the length was checked");
        self.0 = tail;
        *head
    }
    fn u8(&mut self) -> u8 {
        self.take::<1>()[0]
    }
    fn u16(&mut self) -> u16 {
        u16::from_ne_bytes(self.take())
    }
    fn u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.take())
    }
    fn u64(&mut self) -> u64 {
        u64::from_ne_bytes(self.take())
    }
    fn addr(&mut self) -> Addr {
        Addr([self.u32(), self.u32(), self.u32(), self.u32()])
    }
}

/// An event from a record of the ring buffer.
///
/// # Errors
/// [`DecodeError`]
pub fn event_from_bytes(bytes: &[u8]) -> Result<Event, DecodeError> {
    if bytes.len() != size_of::<Event>() {
        return Err(DecodeError::Length(bytes.len()));
    }
    let mut fields = Fields(bytes);
    let event = Event {
        time_ns: fields.u64(),
        source: fields.addr(),
        destination: fields.addr(),
        frontend: fields.addr(),
        source_identity: fields.u32(),
        destination_identity: fields.u32(),
        rule: fields.u32(),
        policy: fields.u32(),
        length: fields.u32(),
        ifindex: fields.u32(),
        suppressed: fields.u32(),
        source_port_be: fields.u16(),
        destination_port_be: fields.u16(),
        source_endpoint: fields.u16(),
        destination_endpoint: fields.u16(),
        kind: fields.u8(),
        verdict: fields.u8(),
        reason: fields.u8(),
        protocol: fields.u8(),
        tcp_flags: fields.u8(),
        egress: fields.u8(),
        reply: fields.u8(),
        ip_version: fields.u8(),
        frontend_port_be: fields.u16(),
        pad: fields.u16(),
    };
    check(&event)?;
    Ok(event)
}

/// What every later step relies on.
///
/// # Errors
/// [`DecodeError`]
pub fn check(event: &Event) -> Result<flow::Verdict, DecodeError> {
    if !matches!(event.kind, event_kind::DROP | event_kind::TRACE | event_kind::POLICY_VERDICT) {
        return Err(DecodeError::Kind(event.kind));
    }
    match event.verdict {
        verdict::FORWARDED => Ok(flow::Verdict::Forwarded),
        verdict::DROPPED => Ok(flow::Verdict::Dropped),
        verdict::AUDIT => Ok(flow::Verdict::Audit),
        other => Err(DecodeError::Verdict(other)),
    }
}

/// IANA number -> name; a number stays one.
#[must_use]
pub fn protocol_name(number: u8) -> String {
    match number {
        1 => "ICMPv4".into(),
        6 => "TCP".into(),
        17 => "UDP".into(),
        58 => "ICMPv6".into(),
        132 => "SCTP".into(),
        other => other.to_string(),
    }
}

/// Whether packets of this protocol have ports.
#[must_use]
pub const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, 6 | 17 | 132)
}

/// Whether it is ICMP, of either family.
#[must_use]
pub const fn is_icmp(protocol: u8) -> bool {
    matches!(protocol, 1 | 58)
}

/// `SYN,ACK`; empty for none.
#[must_use]
pub fn tcp_flags(flags: u8) -> String {
    const NAMES: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
    let set: Vec<&str> =
        NAMES.iter().enumerate().filter(|(bit, _)| flags & (1 << bit) != 0).map(|(_, name)| *name).collect();
    set.join(",")
}

/// A reason with its name; an unknown number stands for itself.
#[must_use]
pub fn drop_reason(raw: u8) -> flow::DropReason {
    let text = DropReason::from_raw(raw).map_or_else(|| format!("reason {raw}"), |reason| reason.name().to_owned());
    flow::DropReason { code: raw, text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The bytes of an event, written independently of the reader: by the offsets of the layout.
    fn bytes_of(event: &Event) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(event.time_ns.to_ne_bytes());
        for word in event.source.0.iter().chain(&event.destination.0).chain(&event.frontend.0) {
            bytes.extend(word.to_ne_bytes());
        }
        for word in [
            event.source_identity,
            event.destination_identity,
            event.rule,
            event.policy,
            event.length,
            event.ifindex,
            event.suppressed,
        ] {
            bytes.extend(word.to_ne_bytes());
        }
        for half in [event.source_port_be, event.destination_port_be, event.source_endpoint, event.destination_endpoint]
        {
            bytes.extend(half.to_ne_bytes());
        }
        bytes.extend([event.kind, event.verdict, event.reason, event.protocol]);
        bytes.extend([event.tcp_flags, event.egress, event.reply, event.ip_version]);
        bytes.extend(event.frontend_port_be.to_ne_bytes());
        bytes.extend(event.pad.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_record_is_read_back() {
        let event = Event {
            time_ns: 7,
            source: Addr([1, 2, 3, 4]),
            destination: Addr([5, 6, 7, 8]),
            frontend: Addr([20, 21, 22, 23]),
            source_identity: 9,
            destination_identity: 10,
            rule: 11,
            policy: 12,
            length: 13,
            ifindex: 14,
            suppressed: 15,
            source_port_be: 16,
            destination_port_be: 17,
            source_endpoint: 18,
            destination_endpoint: 19,
            kind: event_kind::DROP,
            verdict: verdict::DROPPED,
            reason: 133,
            protocol: 6,
            tcp_flags: 2,
            egress: 1,
            reply: 0,
            ip_version: 4,
            frontend_port_be: 24,
            pad: 0,
        };
        assert_eq!(event_from_bytes(&bytes_of(&event)), Ok(event));
    }

    #[test]
    fn records_that_are_not_ours_are_refused() {
        assert_eq!(event_from_bytes(&[0; 103]), Err(DecodeError::Length(103)));
        assert_eq!(event_from_bytes(&[0; 112]), Err(DecodeError::Length(112)));
        assert_eq!(event_from_bytes(&[0; 104]), Err(DecodeError::Kind(0)));
        let event = Event { kind: event_kind::DROP, verdict: 3, ..Event::default() };
        assert_eq!(event_from_bytes(&bytes_of(&event)), Err(DecodeError::Verdict(3)));
        let event = Event { kind: event_kind::POLICY_VERDICT, verdict: verdict::AUDIT, reason: 133, ..event };
        assert_eq!(check(&event), Ok(flow::Verdict::Audit));
    }

    #[test]
    fn flags_and_reasons_have_names() {
        assert_eq!(tcp_flags(0x12), "SYN,ACK");
        assert_eq!(tcp_flags(0), "");
        assert_eq!(drop_reason(133).text, "Policy denied");
        assert_eq!(drop_reason(1).text, "reason 1");
    }

    proptest! {
        #[test]
        fn no_record_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = event_from_bytes(&bytes);
        }
    }
}
