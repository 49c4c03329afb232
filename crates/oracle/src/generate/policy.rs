//! Random policies of all kinds.

use super::world::{
    BARE_PROTOCOLS, ICMP_TYPES, KEYS, OTHER_KEYS, OWN_KEYS, PORT_NAMES, PROTOCOLS, VALUES, any_address, cidr,
    namespace, net, pick_of, port,
};
use crate::random::Random;
use crate::world::World;
use std::collections::BTreeSet;
use weft_model::intent::{
    CidrGroups, Covers, EndpointSelector, Entity, ObjectName, Peer, Policy, PolicyKind, PolicyName, PortMatch,
    PortRule, Protocol, Rule, RuleAction, Services, Spec, Subject, Tier,
};
use weft_model::label::{NAMESPACE, NAMESPACE_LABELS, SERVICE_ACCOUNT};
use weft_model::selector::{Requirement, Selector};

/// A policy for `world`, number `n` by name.
pub fn policy(random: &mut Random, world: &World, n: usize) -> Policy {
    let kind = match random.below(10) {
        0..3 => PolicyKind::NetworkPolicy,
        3..6 => PolicyKind::CiliumNetworkPolicy,
        6..8 => PolicyKind::CiliumClusterwideNetworkPolicy,
        _ => PolicyKind::ClusterNetworkPolicy,
    };
    let namespace = if kind.is_namespaced() { namespace(random, world) } else { String::new() };
    let cilium = matches!(kind, PolicyKind::CiliumNetworkPolicy | PolicyKind::CiliumClusterwideNetworkPolicy);
    let count = if cilium && random.chance(25) { 2 } else { 1 };
    let maker = Maker { world, kind, namespace: namespace.clone() };
    Policy {
        name: PolicyName { kind, object: ObjectName { namespace, name: format!("policy-{n}") } },
        uid: format!("policy-uid-{n}"),
        resource_version: random.bits().to_string(),
        specs: (0..count).map(|n| maker.spec(random, n)).collect(),
    }
}

struct Maker<'a> {
    world: &'a World,
    kind: PolicyKind,
    namespace: String,
}

impl Maker<'_> {
    fn spec(&self, random: &mut Random, n: usize) -> Spec {
        let tier = match self.kind {
            PolicyKind::ClusterNetworkPolicy => {
                let priority = *random.pick(&[0, 1, 1, 2, 1000]);
                if random.chance(60) { Tier::Admin(priority) } else { Tier::Baseline(priority) }
            }
            _ => Tier::Normal,
        };
        let ways = random.below(3);
        let rules = |random: &mut Random, on: bool, egress: bool| -> Vec<Rule> {
            let count = if on { *random.pick(&[0, 1, 1, 2, 2, 3, 4]) } else { 0 };
            (0..count).map(|index| self.rule(random, n, index, egress)).collect()
        };
        let ingress = rules(random, ways != 1, false);
        let egress = rules(random, ways != 0, true);
        let isolates = |random: &mut Random, on: bool, rules: &[Rule]| match self.kind {
            PolicyKind::NetworkPolicy => on,
            PolicyKind::ClusterNetworkPolicy => false,
            _ if random.chance(25) => random.chance(20),
            _ => !rules.is_empty(),
        };
        Spec {
            subject: self.subject(random),
            tier,
            isolates_ingress: isolates(random, ways != 1, &ingress),
            isolates_egress: isolates(random, ways != 0, &egress),
            ingress,
            egress,
            log: random.chance(10).then(|| "audit".into()),
        }
    }

    fn subject(&self, random: &mut Random) -> Subject {
        if self.kind == PolicyKind::CiliumClusterwideNetworkPolicy && random.chance(40) {
            return Subject::Nodes(plain_selector(random, OTHER_KEYS, 40));
        }
        let mut requirements = requirements(random, self.world, &[KEYS, OWN_KEYS].concat(), 60);
        if !self.kind.is_namespaced() && random.chance(40) {
            requirements.push(about_namespace(random, self.world));
        }
        Subject::Endpoints(EndpointSelector {
            namespace: self.kind.is_namespaced().then(|| self.namespace.clone()),
            requirements,
        })
    }

    fn rule(&self, random: &mut Random, spec: usize, index: usize, egress: bool) -> Rule {
        let action = match (self.kind, random.below(10)) {
            (PolicyKind::NetworkPolicy, _) => RuleAction::Allow,
            (PolicyKind::ClusterNetworkPolicy, 0..3) => RuleAction::Pass,
            (PolicyKind::ClusterNetworkPolicy, 3..6) | (_, 0..3) => RuleAction::Deny,
            _ => RuleAction::Allow,
        };
        let way = if egress { "egress" } else { "ingress" };
        let deny = if action == RuleAction::Deny { "Deny" } else { "" };
        let peers = (!random.chance(15)).then(|| {
            let count = if random.chance(5) { 0 } else { 1 + random.below(3) * random.below(2) };
            (0..count).map(|_| self.peer(random, egress)).collect()
        });
        let ports = (!random.chance(45)).then(|| {
            let count = if random.chance(4) { 0 } else { 1 + random.below(3) * random.below(2) };
            (0..count).map(|_| port_rule(random)).collect()
        });
        Rule { place: format!("specs[{spec}].{way}{deny}[{index}]").into(), action, peers, ports }
    }

    fn peer(&self, random: &mut Random, egress: bool) -> Peer {
        if self.kind == PolicyKind::NetworkPolicy {
            return if random.chance(35) { self.cidr(random, Covers::ALL) } else { self.endpoints(random) };
        }
        let covers = covers(random);
        match random.below(20) {
            0..7 => self.endpoints(random),
            7..11 => self.cidr(random, covers),
            11..14 => Peer::Entity(self.entity(random)),
            14 => Peer::Nodes(plain_selector(random, OTHER_KEYS, 30)),
            15 | 16 => {
                let groups = if random.chance(60) {
                    CidrGroups::Name(format!("group-{}", random.below(2)))
                } else {
                    CidrGroups::Selector(plain_selector(random, OTHER_KEYS, 30))
                };
                Peer::CidrGroups { groups, covers }
            }
            _ if egress => Peer::Services(self.services(random)),
            _ => self.endpoints(random),
        }
    }

    fn endpoints(&self, random: &mut Random) -> Peer {
        let own = (self.kind.is_namespaced() && random.chance(50)).then(|| self.namespace.clone());
        let mut requirements = requirements(random, self.world, KEYS, 35);
        if own.is_none() {
            if random.chance(50) {
                requirements.push(about_namespace(random, self.world));
            }
            if self.kind != PolicyKind::NetworkPolicy && random.chance(20) {
                requirements = vec![about_reserved(random)];
            }
        }
        if random.chance(8) {
            let account = (*random.pick(super::world::ACCOUNTS)).to_owned();
            requirements.push(Requirement::In(SERVICE_ACCOUNT.to_owned(), BTreeSet::from([account])));
        }
        Peer::Endpoints(EndpointSelector { namespace: own, requirements })
    }

    fn entity(&self, random: &mut Random) -> Entity {
        let all = [
            Entity::All,
            Entity::World,
            Entity::Host,
            Entity::RemoteNode,
            Entity::KubeApiserver,
            Entity::Ingress,
            Entity::Health,
            Entity::Init,
            Entity::Unmanaged,
            Entity::Cluster,
            Entity::None,
            // Only where the two families are told apart.
            Entity::WorldIpv4,
            Entity::WorldIpv6,
        ];
        // Those that a pod stands for are rare.
        let reserved = self.world.pods.iter().filter_map(|pod| match pod.reserved?.raw() {
            3 => Some(Entity::Unmanaged),
            4 => Some(Entity::Health),
            5 => Some(Entity::Init),
            8 => Some(Entity::Ingress),
            _ => None,
        });
        let reserved: Vec<_> = reserved.collect();
        if !reserved.is_empty() && random.chance(60) {
            return *random.pick(&reserved);
        }
        *random.pick(if self.world.settings.dual_stack { &all } else { &all[..11] })
    }

    fn cidr(&self, random: &mut Random, covers: Covers) -> Peer {
        let cidr = cidr(random, self.world);
        let mut except = Vec::new();
        for _ in 0..random.below(3) {
            let inside = any_address(random, self.world);
            if cidr.contains(&inside) && cidr.prefix_len() < cidr.max_prefix_len() {
                let longer = usize::from(cidr.max_prefix_len() - cidr.prefix_len());
                except.push(net(inside, usize::from(cidr.prefix_len()) + 1 + random.below(longer)));
            }
        }
        Peer::Cidr { cidr, except, covers }
    }

    fn services(&self, random: &mut Random) -> Services {
        let namespace = namespace(random, self.world);
        if self.world.services.is_empty() || random.chance(40) {
            return Services::Selector {
                namespace: random.chance(40).then_some(namespace),
                selector: plain_selector(random, OTHER_KEYS, 40),
            };
        }
        Services::Name(random.pick(&self.world.services).object.name.clone())
    }
}

fn covers(random: &mut Random) -> Covers {
    match random.below(8) {
        0..3 => Covers::ALL,
        3..6 => Covers::WORLD,
        6 => Covers { pods: true, nodes: false },
        _ => Covers { pods: false, nodes: true },
    }
}

fn about_namespace(random: &mut Random, world: &World) -> Requirement {
    let name = BTreeSet::from([namespace(random, world)]);
    let value = BTreeSet::from([(*random.pick(VALUES)).to_owned()]);
    let team = format!("{NAMESPACE_LABELS}team");
    match random.below(8) {
        0 | 1 => Requirement::In(NAMESPACE.to_owned(), name),
        2 => Requirement::In(NAMESPACE.replacen("k8s:", "any:", 1), name),
        3 => Requirement::In(format!("{NAMESPACE_LABELS}kubernetes.io/metadata.name"), name),
        4 => Requirement::NotIn(NAMESPACE.to_owned(), name),
        5 => Requirement::In(team, value),
        6 => Requirement::NotIn(team, value),
        _ => Requirement::Exists(team),
    }
}

fn about_reserved(random: &mut Random) -> Requirement {
    let name = *random.pick(&["host", "remote-node", "world", "init", "health", "unmanaged", "ingress", "world"]);
    let (key, empty) = (format!("reserved:{name}"), BTreeSet::from([String::new()]));
    match random.below(6) {
        0..3 => Requirement::In(key, empty),
        3 => Requirement::Exists(key),
        4 => Requirement::NotIn(key, empty),
        _ => Requirement::DoesNotExist(key),
    }
}

fn port_rule(random: &mut Random) -> PortRule {
    match random.below(20) {
        0 | 1 => {
            let protocol = *random.pick(&[Protocol::Icmp, Protocol::Icmpv6]);
            let kind = *random.pick(ICMP_TYPES);
            PortRule { protocol, port: if random.chance(15) { PortMatch::Any } else { PortMatch::Range(kind, kind) } }
        }
        2 => PortRule { protocol: *random.pick(BARE_PROTOCOLS), port: PortMatch::Any },
        _ => PortRule { protocol: *random.pick(PROTOCOLS), port: port_match(random) },
    }
}

fn port_match(random: &mut Random) -> PortMatch {
    match random.below(6) {
        0 => PortMatch::Any,
        1 | 2 => PortMatch::Name((*random.pick(PORT_NAMES)).to_owned()),
        3 => {
            let (one, other) = (port(random), port(random));
            PortMatch::Range(one.min(other), one.max(other))
        }
        _ => {
            let port = port(random);
            PortMatch::Range(port, port)
        }
    }
}

/// A selector on plain keys, empty in `empty` of 100 cases.
fn plain_selector(random: &mut Random, keys: &[&str], empty: usize) -> Selector {
    let count = if random.chance(empty) { 0 } else { 1 + random.below(2) };
    Selector { requirements: (0..count).map(|_| requirement(random, keys, "")).collect() }
}

/// Requirements on keys with sources, none in `empty` of 100 cases.
fn requirements(random: &mut Random, world: &World, keys: &[&str], empty: usize) -> Vec<Requirement> {
    let count = if random.chance(empty) { 0 } else { 1 + random.below(2) };
    // Often a label that a pod has.
    if count == 1
        && let Some(pod) = pick_of(random, &world.pods)
        && let Some((key, value)) = pod.labels.iter().find(|(key, _)| keys.contains(&key.as_str()))
        && random.chance(50)
    {
        let source = if random.chance(50) { "k8s:" } else { "any:" };
        return vec![Requirement::In(format!("{source}{key}"), BTreeSet::from([value.clone()]))];
    }
    let source = |random: &mut Random| if random.chance(50) { "k8s:" } else { "any:" };
    (0..count)
        .map(|_| {
            let source = source(random);
            requirement(random, keys, source)
        })
        .collect()
}

fn requirement(random: &mut Random, keys: &[&str], source: &str) -> Requirement {
    let key = format!("{source}{}", random.pick(keys));
    let mut one = BTreeSet::from([(*random.pick(VALUES)).to_owned()]);
    let other = (*random.pick(VALUES)).to_owned();
    match random.below(8) {
        0..4 => Requirement::In(key, one),
        4 => {
            one.insert(other);
            Requirement::In(key, one)
        }
        5 => Requirement::NotIn(key, one),
        6 => Requirement::Exists(key),
        _ => Requirement::DoesNotExist(key),
    }
}
