//! Numbers become names. Who has the names implements [`Directory`]: the agent, from its tables.

use crate::clock;
use crate::decode::{drop_reason, has_ports, is_icmp, protocol_name, tcp_flags};
use std::net::IpAddr;
use weft_abi::{Addr, Event};
use weft_api::flow::{Direction, Flow, Peer, PolicyRef, Verdict};
use weft_model::id::{EndpointId, Identity, RuleId};

/// Who has an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Party {
    /// A pod of the cluster.
    Pod {
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
    },
    /// A node of the cluster.
    Node(String),
}

/// What the numbers of an event mean. Called on the thread that pushes events (drops, and everything while somebody
/// follows) and on readers' threads; answers must come at once, from memory.
pub trait Directory: Send + Sync {
    /// Who has the address now.
    fn party(&self, address: IpAddr) -> Option<Party>;
    /// The Service, `namespace/name`, that has a frontend or a backend at an address and port.
    fn service(&self, address: IpAddr, port: u16, protocol: u8) -> Option<String>;
    /// Labels of an identity, `source:key=value`. Not asked for reserved identities.
    fn labels(&self, identity: Identity) -> Option<Vec<String>>;
    /// The object that has the rule, with [`PolicyRef::rule`] set.
    fn rule(&self, rule: RuleId) -> Option<PolicyRef>;
    /// The policies that isolate a local endpoint in this direction, for a default deny.
    fn isolating(&self, endpoint: EndpointId, direction: Direction) -> Vec<PolicyRef>;
}

/// Knows nothing: numbers stay numbers.
#[derive(Clone, Copy, Default, Debug)]
pub struct Nameless;

impl Directory for Nameless {
    fn party(&self, _: IpAddr) -> Option<Party> {
        None
    }
    fn service(&self, _: IpAddr, _: u16, _: u8) -> Option<String> {
        None
    }
    fn labels(&self, _: Identity) -> Option<Vec<String>> {
        None
    }
    fn rule(&self, _: RuleId) -> Option<PolicyRef> {
        None
    }
    fn isolating(&self, _: EndpointId, _: Direction) -> Vec<PolicyRef> {
        Vec::new()
    }
}

/// The flow of an event that [`crate::decode::check`] found good, with `offset_ns` from monotonic time to the time
/// of day.
#[must_use]
pub fn flow(event: &Event, verdict: Verdict, offset_ns: i64, node: &str, directory: &dyn Directory) -> Flow {
    let ports = has_ports(event.protocol);
    let direction = if event.egress == 0 { Direction::Ingress } else { Direction::Egress };
    // A packet that was translated says to what; of one that was translated at its socket the backend tells.
    let service = |address: Addr, port_be: u16, answers: bool| {
        let (address, port_be) =
            if event.frontend.is_none() { (address, port_be) } else { (event.frontend, event.frontend_port_be) };
        answers.then(|| directory.service(address.into(), u16::from_be(port_be), event.protocol)).flatten()
    };
    Flow {
        time: clock::rfc3339(event.time_ns, offset_ns),
        node: node.to_owned(),
        verdict,
        drop_reason: (verdict != Verdict::Forwarded).then(|| drop_reason(event.reason)),
        direction,
        is_reply: event.reply != 0,
        source: Peer {
            // A Service is the end that answers.
            service: service(event.source, event.source_port_be, ports && event.reply != 0),
            ..peer(event.source, event.source_identity, directory)
        },
        destination: Peer {
            service: service(event.destination, event.destination_port_be, ports && event.reply == 0),
            ..peer(event.destination, event.destination_identity, directory)
        },
        protocol: protocol_name(event.protocol),
        source_port: ports.then(|| u16::from_be(event.source_port_be)),
        destination_port: ports.then(|| u16::from_be(event.destination_port_be)),
        icmp: is_icmp(event.protocol)
            .then(|| (event.source_port_be.to_ne_bytes()[0], event.destination_port_be.to_ne_bytes()[0])),
        tcp_flags: if event.protocol == 6 { tcp_flags(event.tcp_flags) } else { String::new() },
        length: event.length,
        policies: policies(event, verdict, direction, directory),
        suppressed: event.suppressed,
    }
}

fn peer(address: Addr, identity: u32, directory: &dyn Directory) -> Peer {
    let ip = IpAddr::from(address);
    let identity = Identity::from_raw(identity);
    let labels = match identity.reserved_name() {
        Some(name) => vec![format!("reserved:{name}")],
        None => directory.labels(identity).unwrap_or_default(),
    };
    let (mut namespace, mut pod, mut node) = (None, None, None);
    match directory.party(ip) {
        Some(Party::Pod { namespace: in_namespace, name }) => (namespace, pod) = (Some(in_namespace), Some(name)),
        Some(Party::Node(name)) => node = Some(name),
        None => {}
    }
    Peer { ip, identity: identity.raw(), labels, namespace, pod, node, service: None }
}

/// The rule that decided. A packet that a policy dropped without a rule met the default deny: the policies that
/// isolate the endpoint.
fn policies(event: &Event, verdict: Verdict, direction: Direction, directory: &dyn Directory) -> Vec<PolicyRef> {
    if event.rule != 0 {
        return directory.rule(RuleId(event.rule)).into_iter().collect();
    }
    if verdict == Verdict::Forwarded || event.policy == 0 {
        return Vec::new();
    }
    let endpoint = match direction {
        Direction::Ingress => event.destination_endpoint,
        Direction::Egress => event.source_endpoint,
    };
    EndpointId::new(endpoint).map(|endpoint| directory.isolating(endpoint, direction)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
