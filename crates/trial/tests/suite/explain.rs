//! What the agent answers when it is asked why, and what it foretells of a change, against the oracle.

use std::collections::{BTreeMap, BTreeSet};
use weft_control::explain::{self, Question};
use weft_control::policy::Direction;
use weft_control::preview::{self, Pair, PeerInfo};
use weft_model::id::{EndpointId, Identity};
use weft_model::intent::{PortMatch, PortRule};
use weft_oracle::effort::{effort, seeds};
use weft_oracle::show::{Shown, ShownPacket};
use weft_oracle::{Decision, End, Judge, Packet, Random, Reason, World, generate};
use weft_trial::Agent;
use weft_trial::feed::{self, Numbers};

const WORLDS: u64 = 1_000;
const NODE: usize = 0;

#[test]
fn answers_name_the_rules_that_decide() {
    let (mut asked, mut by_rule) = (0, 0);
    for seed in seeds(effort(WORLDS, 10 * WORLDS)) {
        let mut random = Random::new(seed);
        let world = generate::world(&mut random);
        let (mut agent, mut numbers) = (Agent::new(NODE), Numbers::default());
        agent.update(&world, &mut numbers);
        let (judge, identities) = (Judge::new(&world), numbers.identities(&world));
        for _ in 0..100 {
            let Some(packet) = generate::packet(&mut random, &world) else { continue };
            let party = |end| agent.party(&world, &identities, end, packet.v6).expect("packets have addresses");
            let question = Question {
                from: party(packet.from),
                to: party(packet.to),
                protocol: packet.protocol,
                port: packet.port,
            };
            let answer = explain::explain(&agent.engine, &question);
            for (answer, expected) in
                [(answer.egress, judge.may_leave(&packet)), (answer.ingress, judge.may_enter(&packet))]
            {
                let Some(answer) = answer else { continue };
                let shown = || format!("seed {seed}: {}\n{}", ShownPacket(&world, &packet), Shown(&world));
                assert_eq!(answer.allowed, expected.allowed, "{answer:?}, the oracle: {expected}\n{}", shown());
                let named: BTreeSet<String> = answer.deciding.iter().map(ToString::to_string).collect();
                let deciding: BTreeSet<String> = match &expected {
                    Decision { reason: Reason::Rules(rules), .. } => rules.iter().map(ToString::to_string).collect(),
                    // Where the last tier leaves it to the default, the rule that does so may be named.
                    _ => named.clone(),
                };
                assert_eq!(named, deciding, "{answer:?}, the oracle: {expected}\n{}", shown());
                if expected.reason == Reason::Isolated {
                    assert!(!answer.isolating.is_empty() && named.is_empty(), "{answer:?}\n{}", shown());
                }
                asked += 1;
                by_rule += usize::from(!named.is_empty());
            }
        }
    }
    println!("{asked} answers, {by_rule} name rules");
    assert!(asked > 50_000 && by_rule > 5_000, "{asked} answers, {by_rule} name rules");
}

/// Between whom something changes: direction, subject, peer.
type Pairs = BTreeSet<(bool, End, End)>;

/// Every protocol and port at which some rule of the worlds begins or ceases to match.
fn points(worlds: [&World; 2]) -> BTreeSet<(u8, u16)> {
    let rules = worlds.iter().flat_map(|world| &world.policies).flat_map(|policy| &policy.specs);
    let ports = rules.flat_map(|spec| spec.ingress.iter().chain(&spec.egress)).filter_map(|rule| rule.ports.as_ref());
    let ports: Vec<&PortRule> = ports.flatten().collect();
    let mut points = BTreeSet::from([(253, 0)]);
    let mut put = |protocol: u8, port: u16| {
        points.insert((protocol, port));
        points.insert((protocol, port.saturating_add(1)));
    };
    for rule in ports {
        let protocol = rule.protocol.number();
        put(protocol, 0);
        if let PortMatch::Range(first, last) = rule.port {
            put(protocol, first);
            put(protocol, last);
        }
    }
    for named in worlds.iter().flat_map(|world| &world.pods).flat_map(|pod| &pod.named_ports) {
        put(named.protocol.number(), named.port);
    }
    // The guard of nodes.
    put(6, 10250);
    points
}

/// What the oracle says of both worlds.
fn expected(before: &World, after: &World) -> (Pairs, Pairs) {
    let (old, new, points) = (Judge::new(before), Judge::new(after), points([before, after]));
    let (mut denied, mut allowed) = (Pairs::new(), Pairs::new());
    let ends: Vec<End> = before.ends();
    let subjects = ends.iter().filter(|end| match end {
        End::Pod(n) => before.pods[*n].is_managed() && before.pods[*n].node == NODE,
        End::Node(n) => *n == NODE && before.settings.host_firewall,
        End::World(_) => false,
    });
    for subject in subjects {
        for peer in &ends {
            for ingress in [false, true] {
                for v6 in [false, true] {
                    if before.address(*peer, v6).is_none() {
                        continue;
                    }
                    let (from, to) = if ingress { (*peer, *subject) } else { (*subject, *peer) };
                    for (protocol, port) in &points {
                        let packet = Packet { from, to, v6, protocol: *protocol, port: *port };
                        let says = |judge: &Judge<'_>| {
                            if ingress { judge.may_enter(&packet).allowed } else { judge.may_leave(&packet).allowed }
                        };
                        match (says(&old), says(&new)) {
                            (true, false) => denied.insert((ingress, *subject, *peer)),
                            (false, true) => allowed.insert((ingress, *subject, *peer)),
                            _ => continue,
                        };
                    }
                }
            }
        }
    }
    (denied, allowed)
}

fn peers(world: &World, agent: &Agent, identities: &BTreeMap<usize, Identity>) -> Vec<PeerInfo> {
    let peer = |end: &End| {
        let parties: Vec<_> = [false, true].iter().filter_map(|v6| agent.party(world, identities, *end, *v6)).collect();
        PeerInfo {
            name: format!("{end:?}"),
            endpoint: parties[0].endpoint,
            identity: parties[0].identity,
            addresses: parties.iter().map(|party| party.address).collect(),
        }
    };
    world.ends().iter().map(peer).collect()
}

#[test]
fn previews_foretell_what_changes() {
    let (mut changed, mut denied_in_all, mut allowed_in_all) = (0, 0, 0);
    for seed in seeds(effort(WORLDS, 10 * WORLDS)) {
        let mut random = Random::new(seed);
        let before = generate::world(&mut random);
        let mut after = before.clone();
        for n in 0..=random.below(2) {
            if random.chance(50) && !after.policies.is_empty() {
                let gone = random.below(after.policies.len());
                after.policies.remove(gone);
            } else {
                let policy = generate::policy(&mut random, &after, 1000 + n);
                after.policies.push(policy);
            }
        }
        let (mut agent, mut numbers) = (Agent::new(NODE), Numbers::default());
        agent.update(&before, &mut numbers);
        let mut then = agent.clone();
        then.update(&after, &mut numbers);
        let ends = before.ends();
        let peers = peers(&before, &agent, &numbers.identities(&before));
        let changes = preview::compare(&agent.engine, &then.engine, &peers);
        let subject = |id: EndpointId| match (0..before.pods.len()).find(|n| feed::endpoint_id(*n) == id) {
            Some(n) => End::Pod(n),
            None => End::Node(NODE),
        };
        // A pod with the node's network is the node: what is foretold of one holds for the other.
        let pairs = |list: &[Pair]| -> Pairs {
            list.iter()
                .map(|pair| (pair.direction == Direction::Ingress, subject(pair.endpoint), ends[pair.peer]))
                .collect()
        };
        let (denied, allowed) = expected(&before, &after);
        let shown = || format!("seed {seed}: before\n{}\nafter\n{}", Shown(&before), Shown(&after));
        for (what, list, wanted) in [("denied", &changes.denied, &denied), ("allowed", &changes.allowed, &allowed)] {
            let found = pairs(list);
            let (more, less) = (found.difference(wanted).next(), wanted.difference(&found).next());
            assert_eq!((more, less), (None, None), "{what}: too much or missing, {}", shown());
        }
        assert_eq!((changes.denied.len(), changes.allowed.len()), (denied.len(), allowed.len()), "{}", shown());
        changed += usize::from(!denied.is_empty() || !allowed.is_empty());
        denied_in_all += denied.len();
        allowed_in_all += allowed.len();
    }
    println!("{changed} previews of changes, {denied_in_all} pairs denied, {allowed_in_all} allowed");
    assert!(changed > 200 && denied_in_all > 1_000 && allowed_in_all > 1_000);
}
