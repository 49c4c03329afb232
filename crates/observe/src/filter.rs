//! Which flows somebody wants to see. What the raw event can answer is asked first, so that an unwanted event costs
//! no names.

use crate::decode::has_ports;
use std::net::IpAddr;
use weft_abi::Event;
use weft_api::flow::{Flow, FlowFilter, Peer, Verdict};

/// A [`FlowFilter`], prepared.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filter {
    wanted: FlowFilter,
    protocols: Option<Vec<u8>>,
}

impl From<FlowFilter> for Filter {
    fn from(wanted: FlowFilter) -> Self {
        let protocols = wanted.protocol.as_deref().map(protocol_numbers);
        Self { wanted, protocols }
    }
}

/// The numbers of a protocol's name in any case, or of a number; none if there is no such protocol.
#[must_use]
pub fn protocol_numbers(name: &str) -> Vec<u8> {
    match name.to_ascii_lowercase().as_str() {
        "tcp" => vec![6],
        "udp" => vec![17],
        "sctp" => vec![132],
        "icmp" => vec![1, 58],
        "icmpv4" => vec![1],
        "icmpv6" => vec![58],
        other => other.parse().into_iter().collect(),
    }
}

impl Filter {
    /// Whether the event may be wanted, as far as it says itself.
    #[must_use]
    pub fn wants_event(&self, event: &Event, verdict: Verdict) -> bool {
        let ports = [u16::from_be(event.source_port_be), u16::from_be(event.destination_port_be)];
        let ends = [IpAddr::from(event.source), IpAddr::from(event.destination)];
        self.wanted.verdict.is_none_or(|wanted| wanted == verdict)
            && self.wanted.port.is_none_or(|port| has_ports(event.protocol) && ports.contains(&port))
            && self.protocols.as_ref().is_none_or(|protocols| protocols.contains(&event.protocol))
            && self.wanted.ip.is_none_or(|ip| ends.contains(&ip.to_canonical()))
    }

    /// Whether the flow of a wanted event is wanted.
    #[must_use]
    pub fn wants_flow(&self, flow: &Flow) -> bool {
        let (source, destination) = (&flow.source, &flow.destination);
        let wanted = &self.wanted;
        wanted.pod.as_deref().is_none_or(|pod| is_pod(source, pod) || is_pod(destination, pod))
            && wanted.from_pod.as_deref().is_none_or(|pod| is_pod(source, pod))
            && wanted.to_pod.as_deref().is_none_or(|pod| is_pod(destination, pod))
            && wanted.namespace.as_deref().is_none_or(|namespace| {
                [source, destination].iter().any(|end| end.namespace.as_deref() == Some(namespace))
            })
    }
}

/// Whether `wanted` is a prefix of the peer's `namespace/name`.
fn is_pod(peer: &Peer, wanted: &str) -> bool {
    let (Some(namespace), Some(pod)) = (&peer.namespace, &peer.pod) else { return false };
    match wanted.split_once('/') {
        Some((in_namespace, name)) => namespace == in_namespace && pod.starts_with(name),
        None => namespace.starts_with(wanted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enrich;
    use weft_abi::{event_kind, verdict};

    fn event() -> Event {
        Event {
            source: IpAddr::from([10, 0, 0, 1]).into(),
            destination: IpAddr::from([10, 0, 0, 2]).into(),
            source_port_be: 40_000u16.to_be(),
            destination_port_be: 80u16.to_be(),
            kind: event_kind::TRACE,
            verdict: verdict::FORWARDED,
            protocol: 6,
            ip_version: 4,
            ..Event::default()
        }
    }

    fn flow() -> Flow {
        let mut flow = enrich::flow(&event(), Verdict::Forwarded, 0, "node-1", &enrich::Nameless);
        (flow.source.namespace, flow.source.pod) = (Some("default".into()), Some("client-1".into()));
        (flow.destination.namespace, flow.destination.pod) = (Some("shop".into()), Some("web-1".into()));
        flow
    }

    #[test]
    fn every_field_that_is_set_must_match() {
        let wants = |filter: FlowFilter| {
            let filter = Filter::from(filter);
            filter.wants_event(&event(), Verdict::Forwarded) && filter.wants_flow(&flow())
        };
        let set = FlowFilter::default;
        assert!(wants(set()));
        assert!(wants(FlowFilter { pod: Some("shop/web".into()), ..set() }));
        assert!(wants(FlowFilter { pod: Some("default/client-1".into()), ..set() }));
        assert!(!wants(FlowFilter { pod: Some("shop/client".into()), ..set() }));
        assert!(wants(FlowFilter { from_pod: Some("default/".into()), to_pod: Some("shop/".into()), ..set() }));
        assert!(!wants(FlowFilter { from_pod: Some("shop/web".into()), ..set() }));
        assert!(wants(FlowFilter { namespace: Some("shop".into()), ..set() }));
        assert!(!wants(FlowFilter { namespace: Some("sho".into()), ..set() }));
        assert!(wants(FlowFilter { verdict: Some(Verdict::Forwarded), port: Some(80), ..set() }));
        assert!(!wants(FlowFilter { verdict: Some(Verdict::Dropped), ..set() }));
        assert!(!wants(FlowFilter { port: Some(81), ..set() }));
        assert!(wants(FlowFilter { protocol: Some("tcp".into()), ..set() }));
        assert!(wants(FlowFilter { protocol: Some("6".into()), ..set() }));
        assert!(!wants(FlowFilter { protocol: Some("Udp".into()), ..set() }));
        assert!(!wants(FlowFilter { protocol: Some("nothing".into()), ..set() }));
        assert!(wants(FlowFilter { ip: Some([10, 0, 0, 2].into()), ..set() }));
        assert!(wants(FlowFilter { ip: Some("::ffff:10.0.0.2".parse().expect("address")), ..set() }));
        assert!(!wants(FlowFilter { ip: Some([10, 0, 0, 3].into()), ..set() }));
    }

    #[test]
    fn icmp_has_no_ports() {
        let echo = Event { protocol: 1, source_port_be: 80u16.to_be(), ..event() };
        let filter = Filter::from(FlowFilter { port: Some(80), ..FlowFilter::default() });
        assert!(!filter.wants_event(&echo, Verdict::Forwarded));
        let filter = Filter::from(FlowFilter { protocol: Some("ICMP".into()), ..FlowFilter::default() });
        assert!(filter.wants_event(&echo, Verdict::Forwarded));
    }
}
