//! The compiled policies of random worlds against the oracle.

use weft_control::oracle::feed::Cluster;
use weft_control::oracle::generate::{self, Random};
use weft_control::oracle::{self, Packet, World};

const WORLDS: u64 = 10_000;
const PACKETS_PER_WORLD: usize = 100;

fn differs(world: &World, packet: &Packet) -> bool {
    Cluster::new(world).verdict(world, packet) != oracle::verdict(world, packet)
}

/// Takes away what the difference does not need.
fn shrink(mut world: World, packet: Packet) -> World {
    loop {
        let mut smaller: Vec<World> = Vec::new();
        for n in 0..world.policies.len() {
            let mut less = world.clone();
            less.policies.remove(n);
            smaller.push(less);
            for egress in [false, true] {
                let policy = &world.policies[n];
                let rules = if egress { &policy.egress } else { &policy.ingress };
                for (m, rule) in rules.iter().flatten().enumerate() {
                    let with = |rules: Vec<_>| {
                        let mut less = world.clone();
                        let list = Some(rules);
                        if egress {
                            less.policies[n].egress = list
                        } else {
                            less.policies[n].ingress = list
                        }
                        less
                    };
                    let rules = rules.clone().unwrap_or_default();
                    let mut fewer = rules.clone();
                    fewer.remove(m);
                    smaller.push(with(fewer));
                    for k in 0..rule.peers.as_ref().map_or(0, Vec::len) {
                        let mut fewer = rules.clone();
                        fewer[m].peers.as_mut().unwrap().remove(k);
                        smaller.push(with(fewer));
                    }
                    for k in 0..rule.ports.as_ref().map_or(0, Vec::len) {
                        let mut fewer = rules.clone();
                        fewer[m].ports.as_mut().unwrap().remove(k);
                        smaller.push(with(fewer));
                    }
                }
            }
        }
        for n in 0..world.pods.len() {
            if !world.pods[n].named_ports.is_empty() {
                let mut less = world.clone();
                less.pods[n].named_ports.pop();
                smaller.push(less);
            }
            if n + 1 == world.pods.len() && ![packet.from, packet.to].contains(&oracle::End::Pod(n)) {
                let mut less = world.clone();
                less.pods.pop();
                smaller.push(less);
            }
        }
        match smaller.into_iter().find(|less| differs(less, &packet)) {
            Some(less) => world = less,
            None => return world,
        }
    }
}

#[test]
fn compiled_policies_agree_with_the_documents() {
    let (mut cases, mut allowed) = (0, 0);
    for seed in 0..WORLDS {
        let mut random = Random::new(seed);
        let world = generate::world(&mut random);
        let cluster = Cluster::new(&world);
        let mut packets = 0;
        while packets < PACKETS_PER_WORLD {
            let Some(packet) = generate::packet(&mut random, &world) else { continue };
            packets += 1;
            let expected = oracle::verdict(&world, &packet);
            if cluster.verdict(&world, &packet) != expected {
                let small = shrink(world.clone(), packet);
                panic!("seed {seed}: expected {expected} for {packet:?} in {small:#?}");
            }
            allowed += usize::from(expected);
        }
        cases += packets;
    }
    assert!(cases >= 100_000, "{cases} cases");
    // A test in which nearly everything passes or drops shows little.
    let percent = allowed * 100 / cases;
    assert!((20..=80).contains(&percent), "{percent} % allowed");
    println!("{cases} cases, {percent} % allowed");
}
