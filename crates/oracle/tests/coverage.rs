//! The dice hit everything: in a few thousand random worlds every kind of policy, peer and port decides packets.

use std::collections::BTreeMap;
use weft_model::intent::{CidrGroups, Entity, Peer, PolicyKind, PortMatch, Rule, RuleAction, Services, Tier};
use weft_oracle::effort::seeds;
use weft_oracle::{Decision, Judge, Random, Reason, World, generate};

/// What a rule is made of.
fn features(kind: PolicyKind, tier: Tier, rule: &Rule) -> Vec<String> {
    let tier = match tier {
        Tier::Admin(_) => "Admin",
        Tier::Normal => "Normal",
        Tier::Baseline(_) => "Baseline",
    };
    let mut all = vec![kind.to_string(), format!("{tier} {:?}", rule.action)];
    match &rule.peers {
        None => all.push("any peer".to_owned()),
        // Of several peers nobody tells which one it was.
        Some(peers) if peers.len() == 1 => all.push(match &peers[0] {
            Peer::Endpoints(_) => "endpoints".to_owned(),
            Peer::Cidr { except, covers, .. } => {
                let except = if except.is_empty() { "" } else { " but" };
                format!("prefix{except}, pods {}, nodes {}", covers.pods, covers.nodes)
            }
            Peer::Entity(entity) => format!("{entity:?}"),
            Peer::CidrGroups { groups: CidrGroups::Name(_), .. } => "group by name".to_owned(),
            Peer::CidrGroups { .. } => "groups by labels".to_owned(),
            Peer::Services(Services::Name(_)) => "Service by name".to_owned(),
            Peer::Services(_) => "Services by labels".to_owned(),
            Peer::Nodes(_) => "nodes by labels".to_owned(),
        }),
        Some(_) => {}
    }
    match &rule.ports {
        None => all.push("any port".to_owned()),
        Some(ports) if ports.len() == 1 => {
            let port = match &ports[0].port {
                PortMatch::Any => "all",
                PortMatch::Range(first, last) if first == last => "one",
                PortMatch::Range(..) => "range",
                PortMatch::Name(_) => "name",
            };
            all.push(format!("{:?} {port}", ports[0].protocol));
        }
        Some(_) => {}
    }
    all
}

fn count(world: &World, decision: &Decision<'_>, counts: &mut BTreeMap<String, usize>) {
    let mut one = |what: String| *counts.entry(what).or_default() += 1;
    match &decision.reason {
        Reason::Exempt => one("exempt".to_owned()),
        Reason::Open => one("open".to_owned()),
        Reason::Isolated => one("isolated".to_owned()),
        Reason::Rules(rules) => {
            if rules.len() > 1 {
                one("several rules".to_owned());
            }
            for named in rules {
                let Some(policy) = world.policies.iter().find(|policy| policy.name == *named.policy) else {
                    one("guard".to_owned());
                    continue;
                };
                for spec in &policy.specs {
                    for rule in spec.ingress.iter().chain(&spec.egress).filter(|rule| *rule.place == *named.place) {
                        features(policy.name.kind, spec.tier, rule).into_iter().for_each(&mut one);
                    }
                }
            }
        }
    }
}

#[test]
fn everything_decides_some_packets() {
    let (mut counts, mut packets, mut allowed) = (BTreeMap::new(), 0, 0);
    for seed in seeds(20_000) {
        let mut random = Random::new(seed);
        let mut world = generate::world(&mut random);
        generate::change(&mut random, &mut world);
        let judge = Judge::new(&world);
        for _ in 0..40 {
            let Some(packet) = generate::packet(&mut random, &world) else { continue };
            for decision in [judge.may_leave(&packet), judge.may_enter(&packet)] {
                count(&world, &decision, &mut counts);
                packets += 1;
                allowed += usize::from(decision.allowed);
            }
        }
    }
    println!("{packets} decisions, {allowed} allowed\n{counts:#?}");
    for kind in PolicyKind::ALL {
        assert!(counts[kind.name()] > 1000, "{kind}");
    }
    for tier in ["Admin", "Baseline", "Normal"] {
        for action in [RuleAction::Allow, RuleAction::Deny] {
            assert!(counts[&format!("{tier} {action:?}")] > 1000, "{tier} {action:?}");
        }
    }
    let entities = [Entity::All, Entity::World, Entity::WorldIpv4, Entity::WorldIpv6, Entity::Host];
    let entities = entities.iter().chain(&[Entity::RemoteNode, Entity::KubeApiserver, Entity::Cluster]);
    let rare = [Entity::Ingress, Entity::Health, Entity::Init, Entity::Unmanaged];
    let mut wanted: Vec<String> = entities.chain(&rare).map(|entity| format!("{entity:?}")).collect();
    for more in [
        "any peer",
        "endpoints",
        "group by name",
        "groups by labels",
        "Service by name",
        "Services by labels",
        "nodes by labels",
        "prefix but, pods true, nodes true",
        "prefix but, pods false, nodes false",
        "prefix, pods true, nodes false",
        "prefix, pods false, nodes true",
        "Tcp name",
        "Udp range",
        "Sctp one",
        "Icmp one",
        "Icmpv6 one",
        "Gre all",
        "several rules",
        "isolated",
        "open",
        "guard",
    ] {
        wanted.push(more.to_owned());
    }
    let missing: Vec<_> = wanted.iter().filter(|what| counts.get(*what).copied().unwrap_or(0) < 10).collect();
    assert!(missing.is_empty(), "hardly ever: {missing:?}");
}
