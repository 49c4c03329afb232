//! Addresses for load balancers: cases that have a name, and what holds whatever happens.

use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use weft_ipam::lbipam::{Plan, Reason, plan};
use weft_model::intent::{AddressRange, IpPool, LoadBalancerRequest, ObjectName, Protocol, SharingNamespaces};
use weft_model::selector::{Requirement, Selector};

type Pools = BTreeMap<String, IpPool>;
type Requests = BTreeMap<ObjectName, LoadBalancerRequest>;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn pool(name: &str, created: u32, ranges: &[(&str, &str)]) -> IpPool {
    let range = |(first, last): &(&str, &str)| AddressRange { first: ip(first), last: ip(last) };
    IpPool {
        name: name.to_owned(),
        created: created.to_string(),
        ranges: ranges.iter().map(range).collect(),
        selector: Selector::default(),
        disabled: false,
    }
}

fn request(name: &str) -> LoadBalancerRequest {
    LoadBalancerRequest {
        name: ObjectName { namespace: "n".to_owned(), name: name.to_owned() },
        created: "1".to_owned(),
        ipv4: true,
        ports: [(80, Protocol::Tcp)].into(),
        ..LoadBalancerRequest::default()
    }
}

fn all<const P: usize, const R: usize>(pools: [IpPool; P], requests: [LoadBalancerRequest; R]) -> (Pools, Requests) {
    let pools = pools.into_iter().map(|pool| (pool.name.clone(), pool)).collect();
    (pools, requests.into_iter().map(|request| (request.name.clone(), request)).collect())
}

fn made<const P: usize, const R: usize>(pools: [IpPool; P], requests: [LoadBalancerRequest; R]) -> Plan {
    let (pools, requests) = all(pools, requests);
    plan(&pools, &requests, false)
}

fn got(plan: &Plan, name: &str) -> (Vec<String>, Option<Reason>) {
    let outcome = &plan.services[&ObjectName { namespace: "n".to_owned(), name: name.to_owned() }];
    let addresses = outcome.addresses.iter().map(ToString::to_string).collect();
    (addresses, outcome.refusal.as_ref().map(|refusal| refusal.reason))
}

fn has(addresses: &[&str]) -> (Vec<String>, Option<Reason>) {
    (addresses.iter().map(ToString::to_string).collect(), None)
}

#[test]
fn each_family_that_is_asked_for_is_served() {
    let both = LoadBalancerRequest { ipv6: true, ..request("both") };
    let six = LoadBalancerRequest { ipv4: false, ipv6: true, ..request("six") };
    let pools = [pool("a", 1, &[("192.0.2.1", "192.0.2.9"), ("2001:db8::1", "2001:db8::9")])];
    let plan = made(pools, [request("four"), both.clone(), six]);
    assert_eq!(got(&plan, "both"), has(&["192.0.2.1", "2001:db8::1"]));
    assert_eq!(got(&plan, "four"), has(&["192.0.2.2"]));
    assert_eq!(got(&plan, "six"), has(&["2001:db8::2"]));
    let state = &plan.pools["a"];
    assert_eq!((state.total, state.used, &state.conflict), (18, 4, &None));
    // One family has no pool.
    let either = LoadBalancerRequest { either: true, ..both.clone() };
    let plan = made([pool("a", 1, &[("192.0.2.1", "192.0.2.9")])], [either]);
    assert_eq!(got(&plan, "both"), has(&["192.0.2.1"]));
    let plan = made([pool("a", 1, &[("192.0.2.1", "192.0.2.9")])], [both]);
    assert_eq!(got(&plan, "both"), (vec!["192.0.2.1".to_owned()], Some(Reason::NoPool)));
}

#[test]
fn who_is_older_is_served_first_and_who_has_one_keeps_it() {
    let holds = |name, created: &str, held: &[&str]| LoadBalancerRequest {
        created: created.to_owned(),
        held: held.iter().map(|text| ip(text)).collect(),
        ..request(name)
    };
    let pools = || [pool("a", 1, &[("192.0.2.1", "192.0.2.2")])];
    let plan = made(pools(), [holds("a", "3", &[]), holds("b", "2", &[]), holds("c", "1", &[])]);
    assert_eq!(got(&plan, "c"), has(&["192.0.2.1"]));
    assert_eq!(got(&plan, "b"), has(&["192.0.2.2"]));
    assert_eq!(got(&plan, "a"), (Vec::new(), Some(Reason::OutOfAddresses)));
    let plan = made(pools(), [holds("a", "3", &["192.0.2.1"]), holds("b", "2", &[]), holds("c", "1", &[])]);
    assert_eq!(got(&plan, "a"), has(&["192.0.2.1"]));
    assert_eq!(got(&plan, "c"), has(&["192.0.2.2"]));
    // Two that claim the same, and one that has more than it may.
    let plan = made(pools(), [holds("a", "2", &["192.0.2.1"]), holds("b", "1", &["192.0.2.1"])]);
    assert_eq!((got(&plan, "b"), got(&plan, "a")), (has(&["192.0.2.1"]), has(&["192.0.2.2"])));
    let plan = made(pools(), [holds("a", "1", &["203.0.113.9", "192.0.2.2", "192.0.2.1"])]);
    assert_eq!(got(&plan, "a"), has(&["192.0.2.2"]));
}

#[test]
fn pools_choose_their_services() {
    let mut for_red = pool("red", 1, &[("192.0.2.1", "192.0.2.9")]);
    let color = |value: &str| Requirement::In("color".to_owned(), BTreeSet::from([value.to_owned()]));
    for_red.selector = Selector { requirements: vec![color("red")] };
    let red = LoadBalancerRequest { labels: [("color".to_owned(), "red".to_owned())].into(), ..request("red") };
    let blue = LoadBalancerRequest { held: vec![ip("192.0.2.1")], ..request("blue") };
    let plan = made([for_red], [red, blue]);
    assert_eq!(got(&plan, "red"), has(&["192.0.2.1"]));
    assert_eq!(got(&plan, "blue"), (Vec::new(), Some(Reason::NoPool)), "it is not for it any more");
}

#[test]
fn a_pool_that_overlaps_an_older_one_gives_nothing_and_takes_nothing_away() {
    let older = pool("older", 1, &[("192.0.2.1", "192.0.2.1")]);
    let younger = pool("a-younger", 2, &[("192.0.2.1", "192.0.2.99")]);
    let holder = LoadBalancerRequest { held: vec![ip("192.0.2.50")], ..request("a-holder") };
    let plan = made([older.clone(), younger.clone()], [holder, request("b"), request("c")]);
    assert_eq!(plan.pools["older"].conflict, None);
    let conflict = plan.pools["a-younger"].conflict.clone().expect("a conflict");
    assert_eq!(conflict, "192.0.2.1-192.0.2.99 overlaps 192.0.2.1-192.0.2.1 of the older pool older");
    assert_eq!(got(&plan, "a-holder"), has(&["192.0.2.50"]));
    assert_eq!(got(&plan, "b"), has(&["192.0.2.1"]));
    assert_eq!(got(&plan, "c"), (Vec::new(), Some(Reason::OutOfAddresses)));
    let disabled = IpPool { disabled: true, ..pool("p", 1, &[("192.0.2.1", "192.0.2.9")]) };
    let holder = LoadBalancerRequest { held: vec![ip("192.0.2.5")], ..request("a") };
    let plan = made([disabled], [holder, request("b")]);
    assert_eq!((got(&plan, "a"), got(&plan, "b")), (has(&["192.0.2.5"]), (Vec::new(), Some(Reason::NoPool))));
    let twice = pool("p", 1, &[("192.0.2.1", "192.0.2.9"), ("192.0.2.9", "192.0.2.10")]);
    assert!(made([twice], []).pools["p"].conflict.as_ref().is_some_and(|why| why.starts_with("its blocks")));
}

#[test]
fn addresses_by_name() {
    let wants = |name, addresses: &[&str]| LoadBalancerRequest {
        wanted: addresses.iter().map(|text| ip(text)).collect(),
        ipv6: true,
        ..request(name)
    };
    let pools = || [pool("a", 1, &[("192.0.2.1", "192.0.2.9"), ("2001:db8::1", "2001:db8::9")])];
    let plan = made(pools(), [wants("a", &["2001:db8::7", "192.0.2.7", "192.0.2.6"]), wants("b", &["192.0.2.7"])]);
    assert_eq!(got(&plan, "a"), has(&["2001:db8::7", "192.0.2.7", "192.0.2.6"]));
    assert_eq!(got(&plan, "b"), (Vec::new(), Some(Reason::AlreadyAllocated)));
    let plan = made(pools(), [wants("a", &["203.0.113.1", "192.0.2.7"])]);
    assert_eq!(got(&plan, "a"), (vec!["192.0.2.7".to_owned()], Some(Reason::NoPool)));
    let plan = made(pools(), [LoadBalancerRequest { ipv6: false, ..wants("a", &["2001:db8::7"]) }]);
    assert_eq!(got(&plan, "a"), (Vec::new(), Some(Reason::InvalidRequest)));
    // What is not asked for any more is given back; what cannot be understood changes nothing.
    let held = LoadBalancerRequest { held: vec![ip("192.0.2.3")], ..wants("a", &["192.0.2.7"]) };
    assert_eq!(got(&made(pools(), [held.clone()]), "a"), has(&["192.0.2.7"]));
    let odd = LoadBalancerRequest { wanted: Vec::new(), problem: Some("x".to_owned()), ..held };
    assert_eq!(got(&made(pools(), [odd]), "a"), (vec!["192.0.2.3".to_owned()], Some(Reason::InvalidRequest)));
}

#[test]
fn services_with_the_same_key_share_if_their_ports_differ() {
    let shares = |namespace: &str, name: &str, port: u16, with: SharingNamespaces| LoadBalancerRequest {
        name: ObjectName { namespace: namespace.to_owned(), name: name.to_owned() },
        ports: [(port, Protocol::Tcp)].into(),
        sharing_key: Some("k".to_owned()),
        sharing_namespaces: with,
        ..request(name)
    };
    let none = SharingNamespaces::default;
    let these = |name: &str| SharingNamespaces::These(BTreeSet::from([name.to_owned()]));
    let pools = || [pool("a", 1, &[("192.0.2.1", "192.0.2.9")])];
    let first = |plan: &Plan, namespace: &str, name: &str| {
        plan.services[&ObjectName { namespace: namespace.to_owned(), name: name.to_owned() }].addresses[0].to_string()
    };
    let plan = made(
        pools(),
        [
            shares("n", "a", 80, these("m")),
            shares("n", "b", 81, none()),
            shares("n", "c", 80, none()),
            shares("m", "d", 82, none()),
            shares("m", "e", 83, SharingNamespaces::All),
        ],
    );
    assert_eq!(first(&plan, "m", "d"), "192.0.2.1");
    assert_eq!(first(&plan, "m", "e"), "192.0.2.1");
    assert_eq!(first(&plan, "n", "a"), "192.0.2.2", "d does not share with n");
    assert_eq!(first(&plan, "n", "b"), "192.0.2.2");
    assert_eq!(first(&plan, "n", "c"), "192.0.2.3", "a uses its port");
    let local = |name: &str, port, app: &str| LoadBalancerRequest {
        local_pods: Some([("app".to_owned(), app.to_owned())].into()),
        ..shares("n", name, port, none())
    };
    let plan = made(pools(), [local("a", 1, "x"), local("b", 2, "y"), local("c", 3, "x")]);
    assert_eq!(first(&plan, "n", "a"), first(&plan, "n", "c"));
    assert_ne!(first(&plan, "n", "a"), first(&plan, "n", "b"), "their pods are on other nodes");
}

#[test]
fn a_refusal_names_the_same_holder_after_a_restart() {
    let shares = |name, created: &str, port: u16| LoadBalancerRequest {
        created: created.to_owned(),
        ports: [(port, Protocol::Tcp)].into(),
        sharing_key: Some("k".to_owned()),
        ..request(name)
    };
    // b holds it; a asks for it and is refused; c, older than b, is served after a and shares it.
    let b = LoadBalancerRequest { held: vec![ip("192.0.2.1")], ..shares("b", "3", 81) };
    let a = LoadBalancerRequest { created: "0".to_owned(), wanted: vec![ip("192.0.2.1")], ..request("a") };
    let c = shares("c", "2", 82);
    let (pools, mut requests) = all([pool("p", 1, &[("192.0.2.1", "192.0.2.1")])], [a, b, c]);
    let first = plan(&pools, &requests, false);
    assert_eq!(got(&first, "c"), has(&["192.0.2.1"]));
    for (name, request) in &mut requests {
        request.held.clone_from(&first.services[name].addresses);
    }
    assert_eq!(plan(&pools, &requests, false), first);
}

#[test]
fn a_pool_that_cannot_be_read_takes_nothing_away() {
    let (pools, requests) = all([], [LoadBalancerRequest { held: vec![ip("192.0.2.5")], ..request("a") }]);
    let kept = plan(&pools, &requests, true);
    assert_eq!(kept.services.values().next().expect("one").addresses, [ip("192.0.2.5")]);
    let lost = plan(&pools, &requests, false);
    assert_eq!(lost.services.values().next().expect("one").addresses, [] as [IpAddr; 0]);
}

#[test]
fn ten_thousand_services_have_addresses_of_their_own() {
    let (pools, mut requests) = all([pool("a", 1, &[("10.0.0.0", "10.0.255.255")])], []);
    for n in 0..10_000 {
        let request = request(&format!("s{n}"));
        requests.insert(request.name.clone(), request);
    }
    let plan = plan(&pools, &requests, false);
    assert_eq!(plan.pools["a"].used, 10_000);
    let given: std::collections::BTreeSet<_> = plan.services.values().flat_map(|given| &given.addresses).collect();
    assert_eq!(given.len(), 10_000);
}

fn some_address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0_u8..12).prop_map(|n| IpAddr::from([192, 0, 2, n])),
        (0_u16..12).prop_map(|n| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n]))
    ]
}

prop_compose! {
    fn some_pool()(ends in prop::collection::vec((some_address(), some_address()), 0..3), created in 0_u32..3,
        color in prop::option::of(0_u8..2), disabled in prop::bool::weighted(0.2)) -> IpPool {
        let range = |(a, b): (IpAddr, IpAddr)| (a.is_ipv4() == b.is_ipv4()).then(|| AddressRange { first: a.min(b), last: a.max(b) });
        let requirements = color.map(|color| Requirement::In("color".to_owned(), BTreeSet::from([color.to_string()])));
        IpPool { name: String::new(), created: created.to_string(), ranges: ends.into_iter().filter_map(range).collect(),
            selector: Selector { requirements: requirements.into_iter().collect() }, disabled }
    }
}

prop_compose! {
    fn some_request()(created in 0_u32..3, color in 0_u8..2, families in 1_u8..4, either in any::<bool>(),
        wanted in prop::collection::vec(some_address(), 0..2), held in prop::collection::vec(some_address(), 0..3),
        key in prop::option::of(0_u8..2), ports in prop::collection::btree_set(80_u16..84, 1..3), all_namespaces in any::<bool>(),
        local in any::<bool>(), namespace in 0_u8..2) -> LoadBalancerRequest {
        LoadBalancerRequest {
            name: ObjectName { namespace: namespace.to_string(), name: String::new() },
            created: created.to_string(), labels: [("color".to_owned(), color.to_string())].into(),
            ipv4: families & 1 > 0, ipv6: families & 2 > 0, either, wanted, sharing_key: key.map(|key| key.to_string()),
            sharing_namespaces: if all_namespaces { SharingNamespaces::All } else { SharingNamespaces::default() },
            ports: ports.into_iter().map(|port| (port, Protocol::Tcp)).collect(),
            local_pods: local.then(BTreeMap::new), held, problem: None,
        }
    }
}

fn numbered(pools: Vec<IpPool>, requests: Vec<LoadBalancerRequest>) -> (Pools, Requests) {
    let pools = pools.into_iter().enumerate().map(|(n, pool)| (n.to_string(), IpPool { name: n.to_string(), ..pool }));
    let requests = requests.into_iter().enumerate().map(|(n, mut request)| {
        request.name.name = n.to_string();
        (request.name.clone(), request)
    });
    (pools.collect(), requests.collect())
}

fn inside(pool: &IpPool, address: IpAddr) -> bool {
    pool.ranges.iter().any(|r| r.first.is_ipv4() == address.is_ipv4() && r.first <= address && address <= r.last)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn whatever_happens(pools in prop::collection::vec(some_pool(), 0..4), requests in prop::collection::vec(some_request(), 0..8)) {
        let (pools, requests) = numbered(pools, requests);
        let made = plan(&pools, &requests, false);
        let mut holders: BTreeMap<IpAddr, Vec<&LoadBalancerRequest>> = BTreeMap::new();
        for (name, outcome) in &made.services {
            let request = &requests[name];
            for &address in &outcome.addresses {
                let asked = if address.is_ipv4() { request.ipv4 } else { request.ipv6 };
                prop_assert!(asked);
                let mut of = pools.values().filter(|pool| inside(pool, address) && pool.selector.matches(&request.labels));
                let new = !request.held.contains(&address);
                // New ones only from pools that may give.
                let gives = |pool: &IpPool| !new || !pool.disabled && made.pools[&pool.name].conflict.is_none();
                prop_assert!(of.any(gives), "{address} is in no pool that may give it");
                prop_assert!(request.wanted.is_empty() || request.wanted.contains(&address));
                holders.entry(address).or_default().push(request);
            }
            let distinct: BTreeSet<&IpAddr> = outcome.addresses.iter().collect();
            prop_assert_eq!(distinct.len(), outcome.addresses.len());
            if request.wanted.is_empty() {
                prop_assert!(outcome.addresses.iter().filter(|address| address.is_ipv4()).count() <= 1);
                prop_assert!(outcome.addresses.iter().filter(|address| address.is_ipv6()).count() <= 1);
            }
        }
        for (address, holders) in holders {
            for (n, a) in holders.iter().enumerate() {
                for b in &holders[..n] {
                    let reach = |a: &LoadBalancerRequest, b: &LoadBalancerRequest| {
                        a.name.namespace == b.name.namespace || a.sharing_namespaces.contains(&b.name.namespace)
                    };
                    let legal = a.sharing_key.is_some() && a.sharing_key == b.sharing_key && a.ports.is_disjoint(&b.ports)
                        && reach(a, b) && reach(b, a) && a.local_pods == b.local_pods;
                    prop_assert!(legal, "{address} of {} and {}", a.name, b.name);
                }
            }
        }
        // The oldest pool of all is never the one in conflict, unless with itself.
        if let Some(oldest) = pools.values().min_by_key(|pool| (&pool.created, &pool.name)) {
            let conflict = made.pools[&oldest.name].conflict.as_deref().unwrap_or("its blocks");
            prop_assert!(conflict.starts_with("its blocks"));
        }
        // After a restart the statuses say what was given: nothing moves.
        let mut after = requests.clone();
        for (name, request) in &mut after {
            request.held.clone_from(&made.services[name].addresses);
        }
        let again = plan(&pools, &after, false);
        prop_assert_eq!(&again, &made);
    }
}
