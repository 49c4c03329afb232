//! Would it pass? Asked of the policies in force.

use super::flush::Writer;
use crate::reconcile::policy::{reference, rule_reference};
use std::net::IpAddr;
use weft_api::agent::{Decision, ExplainPeer, ExplainRequest, Explanation};
use weft_control::explain::{self, Party, Question};
use weft_model::id::{EndpointId, Identity};
use weft_model::intent::ObjectName;

mod service;

/// Why a question has no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum QueryError {
    /// A field of the request makes no sense.
    #[error("{field}: expected {expected}, found {found:?}")]
    Malformed {
        /// The field.
        field: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// The pod has no endpoint that this node knows of.
    #[error("{0} has no endpoint that this node knows of")]
    UnknownPod(ObjectName),
    /// One end has only IPv4 addresses and the other only IPv6 ones.
    #[error("no address family in common: {0:?} and {1:?}")]
    NoCommonFamily(Vec<IpAddr>, Vec<IpAddr>),
}

impl Writer {
    /// Whether a new connection would pass, and why.
    ///
    /// # Errors
    /// Names the field that makes no sense, or the pod that is not known here.
    pub fn explain(&self, request: &ExplainRequest) -> Result<Explanation, QueryError> {
        let protocol = match request.protocol.to_ascii_uppercase().as_str() {
            "TCP" => 6,
            "UDP" => 17,
            "SCTP" => 132,
            "ICMP" | "PING" => 1,
            "ICMPV6" => 58,
            _ => {
                let expected = "TCP, UDP, SCTP, ICMP, ICMPv6 or ping";
                return Err(QueryError::Malformed { field: "protocol", expected, found: request.protocol.clone() });
            }
        };
        let (from, to) = (self.candidates(&request.from)?, self.candidates(&request.to)?);
        let pair = from.iter().find_map(|from| {
            let same = to.iter().find(|to| to.is_ipv4() == from.is_ipv4())?;
            Some((*from, *same))
        });
        let Some((from, to)) = pair else {
            return Err(QueryError::NoCommonFamily(from, to));
        };
        // An echo request is another message in each family.
        let (protocol, port) = match (request.protocol.eq_ignore_ascii_case("ping"), to.is_ipv4()) {
            (true, true) => (1, 8),
            (true, false) => (58, 128),
            (false, _) => (protocol, request.port),
        };
        let is_address = matches!(request.to, ExplainPeer::Ip(_)) && !request.as_it_stands;
        if let Some(service) = is_address.then(|| self.explain_service(from, to, port, protocol)).flatten() {
            return Ok(Explanation { egress: None, ingress: None, service: Some(service) });
        }
        let question = Question { from: self.party(from), to: self.party(to), protocol, port };
        let answer = explain::explain(&self.reconcilers.policy.engine, &question);
        Ok(Explanation { egress: answer.egress.map(decision), ingress: answer.ingress.map(decision), service: None })
    }

    fn candidates(&self, peer: &ExplainPeer) -> Result<Vec<IpAddr>, QueryError> {
        let text = match peer {
            ExplainPeer::Ip(ip) => return Ok(vec![*ip]),
            ExplainPeer::Pod(text) => text,
        };
        let Some((namespace, name)) = text.split_once('/') else {
            return Err(QueryError::Malformed { field: "pod", expected: "namespace/name", found: text.clone() });
        };
        let name = ObjectName { namespace: namespace.into(), name: name.into() };
        let local =
            self.tables.endpoints.values().filter(|endpoint| endpoint.is_active() && endpoint.record.pod == name);
        let newest = local.max_by_key(|endpoint| endpoint.sequence).map(|endpoint| endpoint.record.addresses.clone());
        let addresses = newest.unwrap_or_else(|| self.tables.addresses.of_pod(&name));
        if addresses.is_empty() {
            return Err(QueryError::UnknownPod(name));
        }
        Ok(addresses)
    }

    /// Who has an address, as the kernel takes it.
    pub(super) fn party(&self, address: IpAddr) -> Party {
        if self.tables.own_addresses().contains(&address) {
            return Party { endpoint: Some(EndpointId::HOST), identity: Identity::HOST, address };
        }
        let endpoint = self.tables.endpoints.with_address(address).filter(|endpoint| endpoint.is_active());
        let identity =
            self.tables.addresses.get(address).map_or_else(|| self.unclaimed(address), |entry| entry.identity);
        Party { endpoint: endpoint.map(|endpoint| endpoint.record.id), identity, address }
    }

    /// What the kernel takes an address for that nobody claims.
    fn unclaimed(&self, address: IpAddr) -> Identity {
        if self.reconcilers.routes.has_pods(address) {
            return Identity::UNKNOWN;
        }
        match (self.settings.ipv4 && self.settings.ipv6, address.is_ipv4()) {
            (false, _) => Identity::WORLD,
            (true, true) => Identity::WORLD_IPV4,
            (true, false) => Identity::WORLD_IPV6,
        }
    }
}

fn decision(decision: explain::Decision) -> Decision {
    let by_rule = !decision.deciding.is_empty();
    let policies = if by_rule {
        decision.deciding.iter().map(rule_reference).collect()
    } else {
        decision.isolating.iter().map(reference).collect()
    };
    let others = decision.others.iter().map(|(rule, why)| (rule_reference(rule), why.clone())).collect();
    Decision { allowed: decision.allowed, reason: decision.reason, policies, others }
}
