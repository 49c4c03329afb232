//! Evaluates packets: the verdict, and the rules that decide.

use crate::labels::{PodLabels, selects, selects_pod};
use crate::peers::{Match, Other, matches};
use crate::world::{End, Packet, World};
use std::fmt;
use std::sync::LazyLock;
use weft_model::intent::{
    NamedPort, ObjectName, PolicyKind, PolicyName, PortMatch, PortRule, Rule, RuleAction, Spec, Subject, Tier,
};

/// A rule, by its object and its place in it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RuleRef<'a> {
    pub policy: &'a PolicyName,
    /// Field of the object: `ingress[0]`.
    pub place: &'a str,
}

impl fmt::Display for RuleRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.policy, self.place)
    }
}

/// The reason of a verdict.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reason<'a> {
    /// No policy applies: the end is no subject, or such packets always pass.
    Exempt,
    /// The matching rules of the highest precedence; each of them alone would decide the same.
    Rules(Vec<RuleRef<'a>>),
    /// No rule matches, and a policy isolates the subject.
    Isolated,
    /// No rule matches, and no policy isolates the subject.
    Open,
}

/// The verdict at one end of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decision<'a> {
    pub allowed: bool,
    pub reason: Reason<'a>,
}

impl Decision<'_> {
    const EXEMPT: Self = Decision { allowed: true, reason: Reason::Exempt };
}

impl fmt::Display for Decision<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.allowed { "allowed" } else { "denied" })?;
        match &self.reason {
            Reason::Exempt => f.write_str(", no policy applies"),
            Reason::Isolated => f.write_str(" by default"),
            Reason::Open => f.write_str(" by default"),
            Reason::Rules(rules) => {
                for (n, rule) in rules.iter().enumerate() {
                    write!(f, "{} {rule}", if n == 0 { " by" } else { " or" })?;
                }
                Ok(())
            }
        }
    }
}

/// Whether the packet passes.
#[must_use]
pub fn verdict(world: &World, packet: &Packet) -> bool {
    Judge::new(world).verdict(packet)
}

/// Whether the policies of the sender allow it.
#[must_use]
pub fn may_leave(world: &World, packet: &Packet) -> bool {
    Judge::new(world).may_leave(packet).allowed
}

/// Whether the policies of the receiver allow it.
#[must_use]
pub fn may_enter(world: &World, packet: &Packet) -> bool {
    Judge::new(world).may_enter(packet).allowed
}

/// Evaluates packets of one world.
#[derive(Clone, Debug)]
pub struct Judge<'a> {
    world: &'a World,
    labels: Vec<PodLabels>,
}

/// The subject whose policies are evaluated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Who {
    Pod(usize),
    Node(usize),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Ingress,
    Egress,
}

/// A matching rule with its order; the smaller one comes first.
type Found<'a> = ((u16, usize, RuleAction), RuleRef<'a>);

/// The implicit rules that keep nodes and the API server connected.
static GUARD: LazyLock<PolicyName> = LazyLock::new(|| PolicyName {
    kind: PolicyKind::CiliumClusterwideNetworkPolicy,
    object: ObjectName { namespace: String::new(), name: "weft:node-guard".to_owned() },
});

impl<'a> Judge<'a> {
    #[must_use]
    pub fn new(world: &'a World) -> Self {
        Self { world, labels: world.pods.iter().map(|pod| PodLabels::of(world, pod)).collect() }
    }

    /// The labels that make the identity of a pod: `source:key` and value.
    pub fn identity(&self, pod: usize) -> impl Iterator<Item = (String, String)> {
        self.labels[pod].identity.iter().map(|label| (format!("{}:{}", label.source, label.key), label.value.clone()))
    }

    /// Whether the packet passes.
    #[must_use]
    pub fn verdict(&self, packet: &Packet) -> bool {
        self.may_leave(packet).allowed && self.may_enter(packet).allowed
    }

    /// The verdict of the sender's policies.
    #[must_use]
    pub fn may_leave(&self, packet: &Packet) -> Decision<'a> {
        let world = self.world;
        if self.is_same(packet) {
            return Decision::EXEMPT;
        }
        match (world.pod(packet.from), world.node(packet.from)) {
            (Some(pod), _) => self.decide(Who::Pod(pod), packet, packet.to, Way::Egress),
            (_, Some(node)) if !self.is_pod_of(packet.to, node) => {
                self.decide(Who::Node(node), packet, packet.to, Way::Egress)
            }
            _ => Decision::EXEMPT,
        }
    }

    /// The verdict of the receiver's policies.
    #[must_use]
    pub fn may_enter(&self, packet: &Packet) -> Decision<'a> {
        let world = self.world;
        if self.is_same(packet) {
            return Decision::EXEMPT;
        }
        match (world.pod(packet.to), world.node(packet.to)) {
            (Some(pod), _) if world.node(packet.from) != Some(world.pods[pod].node) => {
                self.decide(Who::Pod(pod), packet, packet.from, Way::Ingress)
            }
            (None, Some(node)) => self.decide(Who::Node(node), packet, packet.from, Way::Ingress),
            _ => Decision::EXEMPT,
        }
    }

    /// Traffic of a pod or node to itself is exempt.
    fn is_same(&self, packet: &Packet) -> bool {
        let nodes = (self.world.node(packet.from), self.world.node(packet.to));
        packet.from == packet.to || matches!(nodes, (Some(from), Some(to)) if from == to)
    }

    fn is_pod_of(&self, end: End, node: usize) -> bool {
        self.world.pod(end).is_some_and(|pod| self.world.pods[pod].node == node)
    }

    fn decide(&self, subject: Who, packet: &Packet, end: End, way: Way) -> Decision<'a> {
        let world = self.world;
        let node = match subject {
            Who::Pod(n) if world.pods[n].reserved.is_some() => return Decision::EXEMPT,
            Who::Pod(n) => world.pods[n].node,
            Who::Node(_) if !world.settings.host_firewall => return Decision::EXEMPT,
            Who::Node(n) => n,
        };
        let Some(address) = world.address(end, packet.v6) else { return Decision::EXEMPT };
        let other = Other::new(world, node, end, address);

        let (mut admin, mut normal, mut baseline): (Vec<Found<'a>>, Vec<Found<'a>>, Vec<Found<'a>>) =
            Default::default();
        let (mut isolated, mut any_for_nodes) = (false, false);
        for policy in &world.policies {
            for spec in &policy.specs {
                any_for_nodes |= matches!(spec.subject, Subject::Nodes(_));
                if !self.is_subject(spec, subject) {
                    continue;
                }
                let (rules, isolates) = match way {
                    Way::Ingress => (&spec.ingress, spec.isolates_ingress),
                    Way::Egress => (&spec.egress, spec.isolates_egress),
                };
                isolated |= isolates && spec.tier == Tier::Normal;
                for (index, rule) in rules.iter().enumerate() {
                    if self.applies(rule, subject, packet, &other, way) {
                        let (list, priority) = match spec.tier {
                            Tier::Admin(priority) => (&mut admin, priority),
                            Tier::Normal => (&mut normal, 0),
                            Tier::Baseline(priority) => (&mut baseline, priority),
                        };
                        let found = RuleRef { policy: &policy.name, place: &rule.place };
                        list.push(((priority, index, rule.action), found));
                    }
                }
            }
        }
        if any_for_nodes && self.is_guarded(subject, packet, &other, way) {
            let place = if way == Way::Ingress { "ingress[0]" } else { "egress[0]" };
            normal.push(((0, 0, RuleAction::Allow), RuleRef { policy: &GUARD, place }));
        }

        if let Some(decision) = first(&admin) {
            return decision;
        }
        for action in [RuleAction::Deny, RuleAction::Allow] {
            let rules: Vec<_> = normal.iter().filter(|found| found.0.2 == action).map(|found| found.1).collect();
            if !rules.is_empty() {
                return Decision { allowed: action == RuleAction::Allow, reason: Reason::Rules(rules) };
            }
        }
        if isolated {
            return Decision { allowed: false, reason: Reason::Isolated };
        }
        first(&baseline).unwrap_or(Decision { allowed: true, reason: Reason::Open })
    }

    fn is_subject(&self, spec: &Spec, subject: Who) -> bool {
        match (&spec.subject, subject) {
            (Subject::Endpoints(selector), Who::Pod(n)) => {
                selects_pod(selector, &self.world.pods[n].namespace, &self.labels[n].all)
            }
            (Subject::Nodes(selector), Who::Node(n)) => selects(selector, &self.world.nodes[n].labels),
            (Subject::Endpoints(_), Who::Node(_)) | (Subject::Nodes(_), Who::Pod(_)) => false,
        }
    }

    /// A node reaches the API server, and the API server the node's kubelet.
    fn is_guarded(&self, subject: Who, packet: &Packet, other: &Other, way: Way) -> bool {
        matches!(subject, Who::Node(_))
            && packet.protocol == 6
            && (way == Way::Egress || packet.port == 10250)
            && self.world.api_server.contains(&other.address)
    }

    fn applies(&self, rule: &Rule, subject: Who, packet: &Packet, other: &Other, way: Way) -> bool {
        // The pod in which named ports are resolved.
        let named = |matched: Match| -> &[NamedPort] {
            let pod = match (way, subject) {
                (Way::Ingress, Who::Pod(n)) => Some(n),
                (Way::Egress, _) if matched == Match::AsItself => self.world.pod(packet.to),
                _ => None,
            };
            pod.map_or(&[], |n| self.world.pods[n].named_ports.as_slice())
        };
        let port_fits = |matched: Match| match &rule.ports {
            None => true,
            Some(ports) => ports.iter().any(|port| port_matches(port, packet, named(matched))),
        };
        match &rule.peers {
            None => port_fits(Match::AsItself),
            Some(peers) => peers.iter().any(|peer| {
                let matched = matches(self.world, &self.labels, peer, other);
                matched != Match::No && port_fits(matched)
            }),
        }
    }
}

/// The verdict of an ordered tier; `None`: no rule matches, or the first one passes to the next tier.
fn first<'a>(found: &[Found<'a>]) -> Option<Decision<'a>> {
    let rank = |(priority, index, action): (u16, usize, RuleAction)| {
        let action = match action {
            RuleAction::Deny => 0,
            RuleAction::Pass => 1,
            RuleAction::Allow => 2,
        };
        (priority, index, action)
    };
    let best = found.iter().map(|found| rank(found.0)).min()?;
    let rules: Vec<_> = found.iter().filter(|found| rank(found.0) == best).map(|found| found.1).collect();
    match best.2 {
        0 => Some(Decision { allowed: false, reason: Reason::Rules(rules) }),
        1 => None,
        _ => Some(Decision { allowed: true, reason: Reason::Rules(rules) }),
    }
}

fn port_matches(rule: &PortRule, packet: &Packet, named: &[NamedPort]) -> bool {
    if rule.protocol.number() != packet.protocol {
        return false;
    }
    match &rule.port {
        PortMatch::Any => true,
        PortMatch::Range(first, last) => (*first..=*last).contains(&packet.port),
        PortMatch::Name(name) => {
            named.iter().any(|port| port.name == *name && port.protocol == rule.protocol && port.port == packet.port)
        }
    }
}
