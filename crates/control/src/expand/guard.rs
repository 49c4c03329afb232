//! Host policies must not cut a node off from the control plane: even an isolated node reaches the API server, and the API
//! server reaches the kubelet. An explicit deny still wins, since it is deliberate.

use super::{Expander, host};
use crate::policy::Change as EngineChange;
use std::net::IpAddr;
use std::sync::Arc;
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

impl Expander {
    /// Recomputes the guard from the policies and the addresses of the API server.
    pub(super) fn update_guard(&mut self) {
        let wanted = self.has_host_policy().then(|| Arc::new(policy(self.api_server().into_iter())));
        if wanted == self.guard {
            return;
        }
        self.out.push(match &wanted {
            Some(policy) => EngineChange::PutPolicy(Arc::clone(policy)),
            None => EngineChange::RemovePolicy(guard_name()),
        });
        self.guard = wanted;
    }
}

fn policy(api_server: impl Iterator<Item = IpAddr>) -> Policy {
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
