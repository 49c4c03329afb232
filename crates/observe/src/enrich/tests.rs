use super::*;
use weft_abi::{event_kind, verdict};

struct Names;

impl Directory for Names {
    fn party(&self, address: IpAddr) -> Option<Party> {
        match address.to_string().as_str() {
            "10.244.0.5" => Some(Party::Pod { namespace: "default".into(), name: "web-1".into() }),
            "fd31::11" => Some(Party::Node("node-1".into())),
            _ => None,
        }
    }
    fn service(&self, address: IpAddr, port: u16, protocol: u8) -> Option<String> {
        match (address.to_string().as_str(), port, protocol) {
            ("10.244.0.5", 80, 6) => Some("default/web".to_owned()),
            ("10.96.0.1", 443, 6) => Some("default/api".to_owned()),
            _ => None,
        }
    }
    fn labels(&self, identity: Identity) -> Option<Vec<String>> {
        (identity.raw() == 4711).then(|| vec!["k8s:app=web".to_owned()])
    }
    fn rule(&self, rule: RuleId) -> Option<PolicyRef> {
        (rule.0 == 3).then(|| policy("allow", Some("ingress[0]")))
    }
    fn isolating(&self, endpoint: EndpointId, direction: Direction) -> Vec<PolicyRef> {
        match (endpoint.raw(), direction) {
            (7, Direction::Ingress) => vec![policy("deny-in", None)],
            (8, Direction::Egress) => vec![policy("deny-out", None)],
            _ => Vec::new(),
        }
    }
}

fn policy(name: &str, rule: Option<&str>) -> PolicyRef {
    PolicyRef {
        kind: "NetworkPolicy".into(),
        namespace: "default".into(),
        name: name.into(),
        rule: rule.map(str::to_owned),
        log: None,
    }
}

fn event() -> Event {
    Event {
        source: "2001:db8::1".parse::<IpAddr>().expect("address").into(),
        destination: IpAddr::from([10, 244, 0, 5]).into(),
        source_identity: 10,
        destination_identity: 4711,
        policy: 12,
        length: 60,
        source_port_be: 40_000u16.to_be(),
        destination_port_be: 80u16.to_be(),
        source_endpoint: 8,
        destination_endpoint: 7,
        kind: event_kind::DROP,
        verdict: verdict::DROPPED,
        reason: 133,
        protocol: 6,
        tcp_flags: 2,
        ip_version: 4,
        suppressed: 5,
        ..Event::default()
    }
}

#[test]
fn a_default_deny_names_the_policies_that_isolate() {
    let flow = flow(&event(), Verdict::Dropped, 0, "node-1", &Names);
    assert_eq!(flow.policies, [policy("deny-in", None)]);
    assert_eq!(
        flow.drop_reason.as_ref().map(|reason| (reason.code, reason.text.as_str())),
        Some((133, "Policy denied"))
    );
    assert_eq!((flow.source_port, flow.destination_port), (Some(40_000), Some(80)));
    assert_eq!((flow.tcp_flags.as_str(), flow.length, flow.suppressed, flow.icmp), ("SYN", 60, 5, None));
    assert_eq!(flow.source.labels, ["reserved:world-ipv6"]);
    assert_eq!(flow.destination.labels, ["k8s:app=web"]);
    assert_eq!(flow.destination.pod.as_deref(), Some("web-1"));
    assert_eq!(flow.destination.namespace.as_deref(), Some("default"));
    assert_eq!(flow.source.pod, None);
}

#[test]
fn the_direction_says_whose_policies() {
    let egress = Event { egress: 1, ..event() };
    let flow = flow(&egress, Verdict::Dropped, 0, "node-1", &Names);
    assert_eq!((flow.direction, flow.policies), (Direction::Egress, vec![policy("deny-out", None)]));
}

#[test]
fn a_rule_is_named() {
    let allowed = Event { rule: 3, verdict: verdict::FORWARDED, reason: 0, ..event() };
    let flow = flow(&allowed, Verdict::Forwarded, 0, "node-1", &Names);
    assert_eq!((flow.policies, flow.drop_reason), (vec![policy("allow", Some("ingress[0]"))], None));
}

#[test]
fn drops_for_other_reasons_blame_no_policy() {
    let spoofed = Event { policy: 0, reason: 132, ..event() };
    assert!(flow(&spoofed, Verdict::Dropped, 0, "node-1", &Names).policies.is_empty());
    let unknown = Event { destination_endpoint: 0, ..event() };
    assert!(flow(&unknown, Verdict::Dropped, 0, "node-1", &Names).policies.is_empty());
}

#[test]
fn icmp_has_type_and_code() {
    let [mut kind, mut code] = [[0; 2]; 2];
    (kind[0], code[0]) = (128, 1);
    let echo = Event {
        protocol: 58,
        source: "fd31::11".parse::<IpAddr>().expect("address").into(),
        source_port_be: u16::from_ne_bytes(kind),
        destination_port_be: u16::from_ne_bytes(code),
        ip_version: 6,
        ..event()
    };
    let flow = flow(&echo, Verdict::Dropped, 0, "node-1", &Names);
    assert_eq!((flow.protocol.as_str(), flow.icmp, flow.source_port), ("ICMPv6", Some((128, 1)), None));
    assert_eq!(flow.source.node.as_deref(), Some("node-1"));
}

#[test]
fn the_end_that_answers_has_a_service() {
    let shown = |event: &Event| {
        let flow = flow(event, Verdict::Forwarded, 0, "node-1", &Names);
        (flow.source.service, flow.destination.service)
    };
    let there = event();
    assert_eq!(shown(&there), (None, Some("default/web".to_owned())));
    assert_eq!(shown(&Event { protocol: 17, ..there }), (None, None));
    let back = Event {
        source: there.destination,
        destination: there.source,
        source_port_be: there.destination_port_be,
        destination_port_be: there.source_port_be,
        ..there
    };
    assert_eq!(shown(&Event { reply: 1, ..back }), (Some("default/web".to_owned()), None));
    let translated = Event { frontend: IpAddr::from([10, 96, 0, 1]).into(), frontend_port_be: 443u16.to_be(), ..there };
    assert_eq!(shown(&translated), (None, Some("default/api".to_owned())));
    // Who opens a connection from such a port is no Service.
    assert_eq!(shown(&back), (None, None));
}
