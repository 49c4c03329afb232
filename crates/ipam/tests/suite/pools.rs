//! Addresses: never two owners of one, none lost, both families or none.

use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use weft_ipam::{
    Advice, AllocateError, AllocatePrefixError, Block, Choice, ClusterPool, Edges, Family, NodePool, Placement,
    PoolSpec, RestoreError, SharedPools, State,
};
use weft_oracle::Random;
use weft_oracle::effort::seeds;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn block(text: &str) -> Block {
    Block { net: net(text), edges: Edges::Reserved, programmed: true }
}

fn single(text: &str) -> Block {
    Block { net: net(text), edges: Edges::Usable, programmed: true }
}

/// A node with these prefixes in pool `p`, first and last address of each reserved.
fn node(prefixes: &[&str]) -> NodePool {
    let mut pool = NodePool::new(Advice::Prefix);
    let blocks: Vec<Block> = prefixes.iter().map(|prefix| block(prefix)).collect();
    assert_eq!(pool.set_blocks("p", &blocks), []);
    pool
}

fn v4() -> Choice {
    Choice { v4: Some("p".to_owned()), v6: None }
}

fn v6() -> Choice {
    Choice { v4: None, v6: Some("p".to_owned()) }
}

fn both() -> Choice {
    Choice::both("p")
}

#[test]
fn the_first_and_the_last_address_are_never_given() {
    for (prefix, choice, first, last) in
        [("10.0.0.8/29", v4(), "10.0.0.9", "10.0.0.14"), ("fd00::10/124", v6(), "fd00::11", "fd00::1e")]
    {
        let mut pool = node(&[prefix]);
        let capacity = block(prefix).capacity();
        let mut give = |n: u128| pool.allocate(&n.to_string(), &choice).map(|given| given.addresses()[0]);
        let given: Vec<IpAddr> = (0..capacity).map(|n| give(n).unwrap()).collect();
        assert_eq!((given.first(), given.last()), (Some(&ip(first)), Some(&ip(last))));
        assert!(given.is_sorted());
        let full = give(capacity).unwrap_err();
        let family = if given[0].is_ipv4() { Family::V4 } else { Family::V6 };
        let prefixes = vec![block(prefix).net.trunc()];
        let expected =
            AllocateError::Exhausted { pool: "p".to_owned(), prefixes, family, capacity, advice: Advice::Prefix };
        assert_eq!(full, expected);
    }
    for tiny in ["10.0.0.0/31", "10.0.0.0/32"] {
        assert!(node(&[tiny]).allocate("x", &v4()).is_err());
    }
    assert!(node(&["fd00::/128"]).allocate("x", &v6()).is_err());
    assert_eq!(node(&["::/0"]).allocate("x", &v6()).unwrap().v6, Some(ip("::1")));
}

#[test]
fn a_piece_of_a_larger_network_is_used_whole() {
    let mut pool = NodePool::new(Advice::Growing);
    assert_eq!(pool.set_blocks("p", &[single("10.0.0.0/31"), single("10.0.0.9/32"), single("ffff::ffff/128")]), []);
    let given: Vec<IpAddr> = (0..3).map(|n| pool.allocate(&n.to_string(), &v4()).unwrap().v4.unwrap()).collect();
    assert_eq!(given, [ip("10.0.0.0"), ip("10.0.0.1"), ip("10.0.0.9")]);
    assert_eq!(pool.allocate("x", &v6()).unwrap().v6, Some(ip("ffff::ffff")));
}

#[test]
fn an_exhausted_pool_says_what_would_help_and_recovers() {
    let mut pool = node(&["10.0.0.8/29", "fd00::/64"]);
    for n in 0..6 {
        pool.allocate(&n.to_string(), &both()).unwrap();
    }
    let text = pool.allocate("x", &both()).unwrap_err().to_string();
    assert!(
        text.starts_with("no free IPv4 address in pool p (10.0.0.8/29): all 6 of this node are in use; run fewer"),
        "{text}"
    );
    assert_eq!(pool.iter().count(), 12, "the IPv6 address was not kept");
    pool.release("3");
    assert_eq!(pool.allocate("x", &both()).unwrap().v4, Some(ip("10.0.0.12")));
    let empty = pool.allocate("y", &Choice::both("q")).unwrap_err();
    assert_eq!(empty.to_string(), "this node has no IPv4 addresses of pool q yet");
}

#[test]
fn the_address_that_was_free_for_the_longest_time_is_given_again() {
    let mut pool = node(&["10.0.0.0/29"]);
    for owner in ["a", "b", "c", "d"] {
        pool.allocate(owner, &v4()).unwrap();
    }
    pool.release("c");
    pool.release("a");
    // Two were never used, then that of c, then that of a.
    let next: Vec<String> =
        (0..4).map(|n| pool.allocate(&format!("new {n}"), &v4()).unwrap().addresses()[0].to_string()).collect();
    assert_eq!(next, ["10.0.0.5", "10.0.0.6", "10.0.0.3", "10.0.0.1"]);
}

#[test]
fn an_owner_keeps_its_address() {
    let mut pool = node(&["10.0.0.0/24", "fd00::/64"]);
    let first = pool.allocate("a", &both()).unwrap();
    assert_eq!(pool.allocate("a", &both()).unwrap(), first);
    assert_eq!(first.addresses(), [ip("10.0.0.1"), ip("fd00::1")]);
    assert_eq!(pool.release("a"), first.addresses());
    assert!(pool.release("a").is_empty());
}

#[test]
fn what_exists_is_restored() {
    let mut pool = node(&["10.0.0.0/24", "fd00::/64"]);
    pool.restore("a", ip("10.0.0.1")).unwrap();
    pool.restore("a", ip("10.0.0.1")).unwrap();
    pool.restore("a", ip("fd00::77")).unwrap();
    assert_eq!(pool.allocate("a", &both()).unwrap().addresses(), [ip("10.0.0.1"), ip("fd00::77")]);
    assert_eq!(pool.allocate("b", &both()).unwrap().addresses(), [ip("10.0.0.2"), ip("fd00::1")]);
    let taken = RestoreError::Taken { address: ip("10.0.0.1"), owner: "c".to_owned(), holder: "a".to_owned() };
    assert_eq!(pool.restore("c", ip("10.0.0.1")), Err(taken));
    let another = RestoreError::HasAnother { owner: "a".to_owned(), address: ip("10.0.0.9"), held: ip("10.0.0.1") };
    assert_eq!(pool.restore("a", ip("10.0.0.9")), Err(another));
    for (n, foreign) in ["10.0.1.1", "10.0.0.0", "10.0.0.255", "fd00::", "fd01::1"].into_iter().enumerate() {
        assert_eq!(pool.restore(&format!("stray {n}"), ip(foreign)), Ok(Placement::Stray));
    }
}

#[test]
fn an_address_that_was_restored_before_its_block_came_is_never_given() {
    let mut pool = NodePool::new(Advice::Growing);
    assert_eq!(pool.restore("old", ip("10.0.0.5")), Ok(Placement::Stray));
    pool.set_blocks("p", &[single("10.0.0.5/32"), single("10.0.0.6/32")]);
    assert_eq!(pool.allocate("new", &v4()).unwrap().v4, Some(ip("10.0.0.6")));
    assert!(matches!(pool.allocate("more", &v4()), Err(AllocateError::Exhausted { capacity: 2, .. })));
    pool.release("old");
    assert_eq!(pool.allocate("more", &v4()).unwrap().v4, Some(ip("10.0.0.5")));
}

#[test]
fn a_block_that_is_taken_away_goes_with_its_last_owner() {
    let mut pool = NodePool::new(Advice::Growing);
    pool.set_blocks("p", &[single("10.0.0.0/31"), single("10.0.0.4/31")]);
    let first = pool.allocate("a", &v4()).unwrap().v4.unwrap();
    pool.set_blocks("p", &[single("10.0.0.4/31")]);
    assert_eq!(pool.addresses_of("a"), [first]);
    assert_eq!(pool.state(ip("10.0.0.1")), Some(State::PendingRelease));
    assert_eq!((pool.held("p", Family::V4), pool.usage().len()), (2, 2));
    pool.allocate("b", &v4()).unwrap();
    pool.allocate("c", &v4()).unwrap();
    assert!(pool.allocate("d", &v4()).is_err(), "nothing more of it is given");
    pool.release("a");
    assert_eq!((pool.state(first), pool.usage().len()), (None, 1));
    // And back again, with an owner still there.
    pool.set_blocks("p", &[]);
    pool.set_blocks("p", &[single("10.0.0.4/31")]);
    pool.release("b");
    assert_eq!(pool.allocate("e", &v4()).unwrap().v4, Some(ip("10.0.0.4")));
}

#[test]
fn only_idle_blocks_retire_and_give_nothing_meanwhile() {
    let mut pool = NodePool::new(Advice::Growing);
    let mut blocks: Vec<Block> = (0..6).map(|n| single(&format!("10.0.0.{n}/32"))).collect();
    blocks[2].programmed = false;
    pool.set_blocks("p", &blocks);
    for owner in ["a", "b", "c"] {
        pool.allocate(owner, &v4()).unwrap();
    }
    assert_eq!(
        pool.iter().map(|(address, _)| address).collect::<Vec<_>>(),
        [ip("10.0.0.0"), ip("10.0.0.1"), ip("10.0.0.3")]
    );
    assert_eq!(pool.state(ip("10.0.0.2")), Some(State::PendingProgramming));
    // First the one that is not programmed, then the last.
    assert_eq!(pool.release_idle("p", Family::V4, 2), [net("10.0.0.2/32"), net("10.0.0.5/32")]);
    assert_eq!((pool.held("p", Family::V4), pool.releasing().len()), (4, 2));
    pool.allocate("d", &v4()).unwrap();
    assert!(pool.allocate("e", &v4()).is_err());
    // The write failed: it stays after all. The other one is gone.
    pool.cancel_release("p", &net("10.0.0.5/32"));
    blocks.remove(2);
    pool.set_blocks("p", &blocks);
    assert_eq!(pool.allocate("e", &v4()).unwrap().v4, Some(ip("10.0.0.5")));
    assert!(pool.releasing().is_empty());
}

#[test]
fn blocks_that_overlap_are_refused() {
    let mut pool = node(&["10.0.0.0/24"]);
    let problems = pool.set_blocks("q", &[single("10.0.0.7/32"), single("10.0.1.7/32")]);
    let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["block 10.0.0.7/32 of pool q is ignored: it overlaps 10.0.0.0/24 of pool p"]);
    assert_eq!(pool.allocate("a", &Choice { v4: Some("q".into()), v6: None }).unwrap().v4, Some(ip("10.0.1.7")));
}

#[test]
fn an_owner_gets_both_families_or_none() {
    let mut pool = node(&["10.0.0.0/24", "fd00::/126"]);
    pool.allocate("a", &both()).unwrap();
    pool.allocate("b", &both()).unwrap();
    let error = pool.allocate("c", &both()).unwrap_err();
    assert!(error.to_string().starts_with("no free IPv6 address in pool p (fd00::/126): all 2 "), "{error}");
    assert!(pool.addresses_of("c").is_empty());
    assert_eq!(pool.iter().count(), 4);
}

#[test]
fn no_two_owners_of_an_address_and_none_lost() {
    for seed in seeds(200) {
        let mut random = Random::new(seed);
        let mut pool = node(&["10.0.0.0/28", "fd00::/124"]);
        let mut owners: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        for _ in 0..400 {
            let owner = format!("pod {}", random.below(20));
            match random.below(5) {
                0..3 => match pool.allocate(&owner, &both()) {
                    Ok(given) => {
                        let before = owners.insert(owner, given.addresses());
                        assert!(before.is_none_or(|before| before == given.addresses()));
                    }
                    Err(_) => assert!(owners.len() == 14 && !owners.contains_key(&owner), "seed {seed}: lost some"),
                },
                3 => assert_eq!(pool.release(&owner), owners.remove(&owner).unwrap_or_default()),
                _ => {
                    // Restart: a new pool learns what exists, before or after its blocks.
                    pool = NodePool::new(Advice::Prefix);
                    let blocks = [block("10.0.0.0/28"), block("fd00::/124")];
                    let early = random.below(2) == 0;
                    if early {
                        pool.set_blocks("p", &blocks);
                    }
                    for (owner, addresses) in &owners {
                        for address in addresses {
                            pool.restore(owner, *address).unwrap();
                        }
                    }
                    pool.set_blocks("p", &blocks);
                }
            }
            let in_use: Vec<IpAddr> = pool.iter().map(|(address, _)| address).collect();
            assert_eq!(in_use.len(), in_use.iter().collect::<BTreeSet<_>>().len());
            let expected: BTreeSet<IpAddr> = owners.values().flatten().copied().collect();
            assert_eq!(in_use.into_iter().collect::<BTreeSet<_>>(), expected, "seed {seed}");
        }
    }
}

#[test]
fn shared_pools_give_each_prefix_once_and_say_what_is_wrong() {
    let spec = |cidrs: &[&str], v4, v6| PoolSpec {
        cidrs: cidrs.iter().map(|cidr| net(cidr)).collect(),
        mask_v4: Some(v4),
        mask_v6: Some(v6),
    };
    let mut pools = SharedPools::default();
    pools.restore("early", "blue", net("10.1.0.0/27")).unwrap();
    pools.set("blue", &spec(&["10.1.0.0/25", "fd01::/96"], 27, 112)).unwrap();
    let refused = pools.set("green", &spec(&["10.1.0.64/26"], 28, 112)).unwrap_err();
    assert_eq!(refused.to_string(), "10.1.0.64/26 overlaps 10.1.0.0/25 of pool blue");
    let given: Vec<IpNet> = (0..3).map(|_| pools.allocate("n1", "blue", Family::V4).unwrap()).collect();
    assert_eq!(given, [net("10.1.0.32/27"), net("10.1.0.64/27"), net("10.1.0.96/27")]);
    let full = pools.allocate("n2", "blue", Family::V4).unwrap_err().to_string();
    assert!(full.starts_with("pool blue is exhausted: nothing of 10.1.0.0/25 is free for node n2"), "{full}");
    pools.release("n2", "blue", &net("10.1.0.32/27"));
    assert!(pools.allocate("n2", "blue", Family::V4).is_err(), "it was not n2's");
    pools.release("n1", "blue", &net("10.1.0.32/27"));
    assert_eq!(pools.allocate("n2", "blue", Family::V4).unwrap(), net("10.1.0.32/27"));
    assert_eq!(pools.allocate("n2", "red", Family::V4), Err(AllocatePrefixError::UnknownPool("red".into())));
    // The pool grows at its end; what was given stays.
    pools.set("blue", &spec(&["10.1.0.0/25", "10.2.0.0/26"], 27, 112)).unwrap();
    assert_eq!(pools.allocate("n2", "blue", Family::V4).unwrap(), net("10.2.0.0/27"));
    assert!(matches!(pools.allocate("n2", "blue", Family::V6), Err(AllocatePrefixError::NoFamily { .. })));
    // It goes; nodes keep what they have, and another pool of that name or prefix cannot give it again.
    pools.remove("blue");
    assert_eq!(pools.of_node("n2").len(), 2);
    pools.set("blue", &spec(&["10.1.0.0/25"], 27, 112)).unwrap();
    assert!(pools.allocate("n3", "blue", Family::V4).is_err());
    assert!(pools.restore("n3", "other", net("10.1.0.0/26")).is_err());
    pools.release_node("n1");
    assert_eq!(pools.allocate("n3", "blue", Family::V4).unwrap(), net("10.1.0.64/27"));
}

#[test]
fn pools_that_make_no_sense_are_refused() {
    let refused = |pools: &[&str], v4, v6| {
        let pools: Vec<IpNet> = pools.iter().map(|pool| net(pool)).collect();
        ClusterPool::new(&pools, v4, v6).unwrap_err().to_string()
    };
    assert_eq!(refused(&["10.0.0.0/16", "10.0.3.0/24"], 24, 64), "pools 10.0.0.0/16 and 10.0.3.0/24 overlap");
    assert_eq!(refused(&["10.0.0.0/26"], 24, 64), "pool 10.0.0.0/26 is too small for a node's /24");
    assert_eq!(refused(&["fd44::/48"], 24, 127), "a node's prefix length is /127, expected at most /126");
}

#[test]
fn nodes_get_a_prefix_of_each_family_and_keep_it() {
    let mut pool = ClusterPool::new(&[net("10.244.0.0/16"), net("fd44::/48")], 24, 64).unwrap();
    assert_eq!(pool.assign("node-1").unwrap(), [net("10.244.0.0/24"), net("fd44::/64")]);
    assert_eq!(pool.assign("node-2").unwrap(), [net("10.244.1.0/24"), net("fd44:0:0:1::/64")]);
    assert_eq!(pool.assign("node-1").unwrap(), [net("10.244.0.0/24"), net("fd44::/64")]);
    pool.release("node-1");
    assert_eq!(pool.assign("node-3").unwrap()[0], net("10.244.2.0/24"), "what came free waits for its turn");
}

#[test]
fn a_restored_prefix_is_nobody_elses() {
    let mut pool = ClusterPool::new(&[net("10.244.0.0/22")], 24, 64).unwrap();
    pool.restore("old", net("10.244.1.0/24")).unwrap();
    pool.restore("old", net("10.244.1.0/24")).unwrap();
    pool.restore("foreign", net("192.168.0.0/20")).unwrap();
    let conflict = pool.restore("new", net("10.244.0.0/23")).unwrap_err();
    assert_eq!(conflict.to_string(), "10.244.0.0/23 of node new overlaps 10.244.1.0/24 of node old");
    assert!(pool.restore("new", net("192.168.3.0/24")).is_err());
    let given: Vec<String> = (0..3).map(|n| pool.assign(&format!("n{n}")).unwrap()[0].to_string()).collect();
    assert_eq!(given, ["10.244.2.0/24", "10.244.3.0/24", "10.244.0.0/24"]);
    assert_eq!(
        pool.assign("n9").unwrap_err().to_string(),
        "no free /24 for node n9 in 10.244.0.0/22: remove nodes or add a pool"
    );
    assert_eq!(pool.assign("old").unwrap(), [net("10.244.1.0/24")]);
}

#[test]
fn a_pool_may_be_appended() {
    let mut pool = ClusterPool::new(&[net("10.0.0.0/23"), net("10.1.0.0/23")], 24, 64).unwrap();
    pool.restore("a", net("10.0.0.0/24")).unwrap();
    pool.restore("b", net("10.0.1.0/24")).unwrap();
    assert_eq!(pool.assign("c").unwrap(), [net("10.1.0.0/24")]);
}

#[test]
fn when_one_family_is_exhausted_the_other_is_not_given() {
    let mut pool = ClusterPool::new(&[net("10.0.0.0/22"), net("fd00::/63")], 24, 64).unwrap();
    pool.assign("a").unwrap();
    pool.assign("b").unwrap();
    assert!(pool.assign("c").unwrap_err().to_string().contains("fd00::/63"));
    assert_eq!(pool.iter().count(), 4);
}

#[test]
fn no_two_nodes_overlap_and_no_prefix_is_lost() {
    for seed in seeds(100) {
        let mut random = Random::new(seed);
        let pools = [net("10.0.0.0/22"), net("10.9.0.0/23"), net("fd00::/61")];
        let mut pool = ClusterPool::new(&pools, 24, 64).unwrap();
        let mut nodes: BTreeMap<String, Vec<IpNet>> = BTreeMap::new();
        for _ in 0..200 {
            let node = format!("node {}", random.below(9));
            match random.below(6) {
                0..3 => match pool.assign(&node) {
                    Ok(cidrs) => {
                        let before = nodes.insert(node, cidrs.clone());
                        assert!(before.is_none_or(|before| before == cidrs));
                    }
                    Err(_) => assert!(nodes.len() == 6 && !nodes.contains_key(&node), "seed {seed}: lost some"),
                },
                3 | 4 => {
                    pool.release(&node);
                    nodes.remove(&node);
                }
                _ => {
                    pool = ClusterPool::new(&pools, 24, 64).unwrap();
                    for (node, cidr) in nodes.iter().flat_map(|(node, cidrs)| cidrs.iter().map(move |c| (node, c))) {
                        pool.restore(node, *cidr).unwrap();
                    }
                }
            }
            let all: Vec<IpNet> = pool.iter().map(|(cidr, _)| cidr).collect();
            assert_eq!(all.len(), nodes.len() * 2);
            for (n, cidr) in all.iter().enumerate() {
                assert!(pools.iter().any(|pool| pool.contains(cidr)));
                assert!(!all[..n].iter().any(|other| other.contains(cidr) || cidr.contains(other)), "seed {seed}");
            }
        }
    }
}
