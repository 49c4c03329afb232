use super::*;
use crate::oracle::feed::{Cluster, endpoint_id, peer};
use crate::oracle::generate::{self, Random};
use crate::oracle::{self, End, Packet, World};
use crate::policy::Direction;
use weft_model::intent::{Peer, Policy, Protocol, Rule};
use weft_model::selector::{Requirement, Selector};

fn party(world: &World, cluster: &Cluster, node: usize, end: End, v6: bool) -> Party {
    let (identity, address) = peer(world, node, end, v6, &cluster.identities).unwrap();
    let endpoint = match end {
        End::Pod(n) if !world.pods[n].host_network && world.pods[n].node == node => Some(endpoint_id(n)),
        _ => None,
    };
    Party { endpoint, identity, address }
}

fn ask(world: &World, cluster: &Cluster, node: usize, packet: &Packet) -> Answer {
    let question = Question {
        from: party(world, cluster, node, packet.from, packet.v6),
        to: party(world, cluster, node, packet.to, packet.v6),
        protocol: packet.protocol,
        port: packet.port,
    };
    explain(&cluster.engines[node], &question)
}

#[test]
fn explanations_agree_with_the_documents() {
    let mut answers = 0;
    for seed in 0..800 {
        let mut random = Random::new(seed);
        let world = generate::world(&mut random);
        let cluster = Cluster::new(&world);
        for _ in 0..30 {
            let Some(packet) = generate::packet(&mut random, &world) else { continue };
            let node = random.below(world.nodes.len());
            let answer = ask(&world, &cluster, node, &packet);
            let sides = [
                (Direction::Egress, answer.egress, oracle::may_leave(&world, &packet)),
                (Direction::Ingress, answer.ingress, oracle::may_enter(&world, &packet)),
            ];
            for (direction, decision, expected) in sides {
                let Some(decision) = decision else { continue };
                answers += 1;
                assert_eq!(decision.allowed, expected, "seed {seed}: {direction} of {packet:?}: {decision:?}");
                if !decision.isolating.is_empty() {
                    // The rules, judged one by one, come to what the compiled policy says.
                    assert_eq!(!decision.allowing.is_empty(), expected, "seed {seed}: {packet:?}: {decision:?}");
                }
            }
        }
    }
    assert!(answers > 10_000, "{answers}");
}

fn labels(pairs: &[(&str, &str)]) -> std::collections::BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn a_denial_says_what_does_not_fit() {
    let web = Selector { requirements: vec![Requirement::In("app".to_owned(), ["web".to_owned()].into())] };
    let pod = |n: usize, app: &str| oracle::Pod {
        name: ObjectName { namespace: "shop".to_owned(), name: app.to_owned() },
        labels: labels(&[("app", app)]),
        node: 0,
        addresses: vec![format!("10.244.0.{}", n + 2).parse().unwrap()],
        host_network: false,
        named_ports: Vec::new(),
    };
    let rule = |peer: Peer, port: u16| Rule {
        peers: Some(vec![peer]),
        ports: Some(vec![PortRule { protocol: Protocol::Tcp, port: PortMatch::Range(port, port) }]),
    };
    let block = Peer::Block { cidr: "10.244.0.0/16".parse().unwrap(), except: vec!["10.244.0.4/32".parse().unwrap()] };
    let world = World {
        namespaces: [("shop".to_owned(), labels(&[]))].into(),
        nodes: vec![oracle::Node { name: "node-1".to_owned(), addresses: vec!["172.31.0.11".parse().unwrap()] }],
        pods: vec![pod(0, "db"), pod(1, "web"), pod(2, "other")],
        policies: vec![Policy {
            kind: "NetworkPolicy",
            name: ObjectName { namespace: "shop".to_owned(), name: "db".to_owned() },
            uid: String::new(),
            resource_version: "1".to_owned(),
            pod_selector: Selector { requirements: vec![Requirement::In("app".to_owned(), ["db".to_owned()].into())] },
            ingress: Some(vec![rule(Peer::Pods { namespaces: None, pods: web }, 5432), rule(block, 80)]),
            egress: None,
        }],
    };
    let cluster = Cluster::new(&world);
    let decide = |from: usize, port: u16| {
        let packet = Packet { from: End::Pod(from), to: End::Pod(0), v6: false, protocol: 6, port };
        let answer = ask(&world, &cluster, 0, &packet);
        assert!(answer.egress.unwrap().reason.contains("no policy isolates"));
        answer.ingress.unwrap()
    };
    let allowed = decide(1, 5432);
    assert_eq!((allowed.allowed, allowed.reason.as_str()), (true, "allowed by NetworkPolicy shop/db ingress[0]"));
    let denied = decide(2, 81);
    assert!(!denied.allowed);
    let identity = cluster.identities[&2];
    assert_eq!(
        denied.reason,
        format!(
            "isolated for ingress by NetworkPolicy shop/db, and no rule allows it: NetworkPolicy shop/db ingress[0]: its \
             `from` does not select 10.244.0.4 (identity {identity}); NetworkPolicy shop/db ingress[1]: 10.244.0.4 is in \
             10.244.0.0/16 but left out by except 10.244.0.4/32"
        )
    );
    assert!(decide(1, 81).reason.ends_with("ingress[1]: its ports are 80/TCP, not 81/TCP"));
}
