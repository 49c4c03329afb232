//! Addresses: never two owners of one, none lost, both families or none.

use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use weft_control::ipam::{AddressPool, ClusterPool, IpamError, NodePool};
use weft_oracle::Random;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn the_first_and_the_last_address_are_never_given() {
    for (pool, first, last) in [("10.0.0.8/29", "10.0.0.9", "10.0.0.14"), ("fd00::10/124", "fd00::11", "fd00::1e")] {
        let mut pool = AddressPool::new(net(pool));
        let given: Vec<IpAddr> = (0..pool.capacity()).map(|n| pool.allocate(&n.to_string()).unwrap()).collect();
        assert_eq!((given.first(), given.last()), (Some(&ip(first)), Some(&ip(last))));
        assert!(given.is_sorted());
        let full = pool.allocate("one more").unwrap_err();
        assert_eq!(full, IpamError::Exhausted { pool: pool.net(), capacity: pool.capacity() });
    }
    let mut pool = AddressPool::new(net("10.0.0.8/29"));
    for n in 0..6 {
        pool.allocate(&n.to_string()).unwrap();
    }
    assert_eq!(pool.allocate("x").unwrap_err().to_string(), "no free address in 10.0.0.8/29: all 6 are in use");
    for tiny in ["10.0.0.0/31", "10.0.0.0/32", "fd00::/128"] {
        assert!(AddressPool::new(net(tiny)).allocate("x").is_err());
    }
    let mut huge = AddressPool::new(net("::/0"));
    assert_eq!(huge.allocate("x").unwrap(), ip("::1"));
}

#[test]
fn the_address_that_was_free_for_the_longest_time_is_given_again() {
    let mut pool = AddressPool::new(net("10.0.0.0/29"));
    for owner in ["a", "b", "c", "d"] {
        pool.allocate(owner).unwrap();
    }
    pool.release("c");
    pool.release("a");
    // Two were never used, then that of c, then that of a.
    let next: Vec<String> = (0..4).map(|n| pool.allocate(&format!("new {n}")).unwrap().to_string()).collect();
    assert_eq!(next, ["10.0.0.5", "10.0.0.6", "10.0.0.3", "10.0.0.1"]);
}

#[test]
fn an_owner_keeps_its_address() {
    let mut pool = NodePool::new(&[net("10.0.0.0/24"), net("fd00::/64")]);
    let first = pool.allocate("a").unwrap();
    assert_eq!(pool.allocate("a").unwrap(), first);
    assert_eq!(first.addresses(), [ip("10.0.0.1"), ip("fd00::1")]);
    assert_eq!(pool.release("a"), first.addresses());
    assert!(pool.release("a").is_empty());
}

#[test]
fn what_exists_is_restored() {
    let mut pool = NodePool::new(&[net("10.0.0.0/24"), net("fd00::/64")]);
    pool.restore("a", ip("10.0.0.1")).unwrap();
    pool.restore("a", ip("10.0.0.1")).unwrap();
    pool.restore("a", ip("fd00::77")).unwrap();
    assert_eq!(pool.allocate("a").unwrap().addresses(), [ip("10.0.0.1"), ip("fd00::77")]);
    assert_eq!(pool.allocate("b").unwrap().addresses(), [ip("10.0.0.2"), ip("fd00::1")]);
    let taken = IpamError::Taken { address: ip("10.0.0.1"), owner: "a".to_owned() };
    assert_eq!(pool.restore("c", ip("10.0.0.1")), Err(taken));
    let another = IpamError::HasAnother { owner: "a".to_owned(), address: ip("10.0.0.1") };
    assert_eq!(pool.restore("a", ip("10.0.0.9")), Err(another));
    for foreign in ["10.0.1.1", "10.0.0.0", "10.0.0.255", "fd00::", "fd01::1"] {
        assert_eq!(pool.restore("c", ip(foreign)), Err(IpamError::Foreign(ip(foreign))));
    }
}

#[test]
fn an_owner_gets_both_families_or_none() {
    let mut pool = NodePool::new(&[net("10.0.0.0/24"), net("fd00::/126")]);
    pool.allocate("a").unwrap();
    pool.allocate("b").unwrap();
    let error = pool.allocate("c").unwrap_err();
    assert_eq!(error.to_string(), "no free address in fd00::/126: all 2 are in use");
    assert!(pool.addresses_of("c").is_empty());
    assert_eq!(pool.iter().count(), 4);
}

#[test]
fn no_two_owners_of_an_address_and_none_lost() {
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let mut pool = NodePool::new(&[net("10.0.0.0/28"), net("fd00::/124")]);
        let mut owners: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        for _ in 0..400 {
            let owner = format!("pod {}", random.below(20));
            match random.below(5) {
                0..3 => match pool.allocate(&owner) {
                    Ok(given) => {
                        let before = owners.insert(owner, given.addresses());
                        assert!(before.is_none_or(|before| before == given.addresses()));
                    }
                    Err(_) => assert!(owners.len() == 14 && !owners.contains_key(&owner), "seed {seed}: lost some"),
                },
                3 => assert_eq!(pool.release(&owner), owners.remove(&owner).unwrap_or_default()),
                _ => {
                    // Restart: a new pool learns what exists.
                    pool = NodePool::new(&[net("10.0.0.0/28"), net("fd00::/124")]);
                    for (owner, addresses) in &owners {
                        for address in addresses {
                            pool.restore(owner, *address).unwrap();
                        }
                    }
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
fn pools_that_make_no_sense_are_refused() {
    let refused = |pools: &[&str], v4, v6| {
        let pools: Vec<IpNet> = pools.iter().map(|pool| net(pool)).collect();
        ClusterPool::new(&pools, v4, v6).unwrap_err().to_string()
    };
    assert_eq!(refused(&["10.0.0.0/16", "10.0.3.0/24"], 24, 64), "pools 10.0.0.0/16 and 10.0.3.0/24 overlap");
    assert_eq!(refused(&["10.0.0.0/26"], 24, 64), "pool 10.0.0.0/26 is smaller than a node's share, /24");
    assert_eq!(refused(&["fd44::/48"], 24, 127), "a node's share must be at most /126, not /127");
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
    assert_eq!(pool.assign("n9").unwrap_err().to_string(), "no free /24 for node n9 in 10.244.0.0/22");
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
    for seed in 0..100 {
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
