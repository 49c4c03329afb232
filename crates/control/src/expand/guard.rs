//! Host policies must not cut a node off from the control plane: even an isolated node reaches the API server, and the API
//! server reaches the kubelet. An explicit deny still wins, since it is deliberate.

use ipnet::IpNet;
use std::net::IpAddr;
use weft_model::intent::{
    Covers, ObjectName, Peer, Policy, PolicyKind, PolicyName, PortMatch, PortRule, Protocol, Rule, RuleAction, Spec,
    Subject, Tier,
};
use weft_model::selector::Selector;

/// Port of the kubelet.
const KUBELET: u16 = 10250;

/// The policy name of the guard in flows and explanations. No object can have it, because of the colon.
#[must_use]
pub fn guard_name() -> PolicyName {
    PolicyName {
        kind: PolicyKind::CiliumClusterwideNetworkPolicy,
        object: ObjectName { namespace: String::new(), name: "weft:node-guard".to_owned() },
    }
}

pub(super) fn policy(api_server: impl Iterator<Item = IpAddr>) -> Policy {
    let peers: Vec<Peer> = api_server.map(|address| host(address, Covers::ALL)).collect();
    let allow = |place: &str, port: PortMatch| Rule {
        place: place.into(),
        action: RuleAction::Allow,
        peers: Some(peers.clone()),
        ports: Some(vec![PortRule { protocol: Protocol::Tcp, port }]),
    };
    Policy {
        name: guard_name(),
        uid: String::new(),
        resource_version: String::new(),
        specs: vec![Spec {
            subject: Subject::Nodes(Selector::default()),
            tier: Tier::Normal,
            isolates_ingress: false,
            isolates_egress: false,
            ingress: vec![allow("ingress[0]", PortMatch::Range(KUBELET, KUBELET))],
            egress: vec![allow("egress[0]", PortMatch::Any)],
            log: None,
        }],
    }
}

/// A peer that is one address.
pub(super) fn host(address: IpAddr, covers: Covers) -> Peer {
    Peer::Cidr { cidr: IpNet::from(address), except: Vec::new(), covers }
}
