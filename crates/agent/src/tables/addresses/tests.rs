use super::{Addresses, LINGER};
use std::net::IpAddr;
use std::time::Duration;
use weft_model::desired::IpcacheEntry;
use weft_model::id::Identity;
use weft_model::intent::{EndpointSlice, ObjectName, RemoteEndpoint, Written};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

fn endpoint(name: &str, uid: &str, identity: u32, address: &str, node: &str) -> RemoteEndpoint {
    RemoteEndpoint {
        name: ObjectName { namespace: "shop".into(), name: name.into() },
        pod_uid: uid.into(),
        identity: Identity::from_raw(identity),
        addresses: vec![ip(address)],
        node: ip(node),
        named_ports: Vec::new(),
    }
}

fn slice(name: &str, endpoints: &[RemoteEndpoint]) -> EndpointSlice {
    EndpointSlice { name: name.into(), endpoints: endpoints.to_vec(), written: Written::default() }
}

/// Applies a slice and checks that whatever is written to the kernel is an entry, never a removal, of `watched`.
fn step(addresses: &mut Addresses, change: &EndpointSlice, now_s: u64, watched: &str) -> u32 {
    addresses.set_slice(change, Duration::from_secs(now_s), |_| false);
    addresses.expire(Duration::from_secs(now_s));
    for address in addresses.drain() {
        assert!(address != ip(watched) || addresses.get(address).is_some(), "a hole at {address}");
    }
    addresses.get(ip(watched)).expect("an entry").identity.raw()
}

const A: &str = "10.244.1.5";
const N1: &str = "172.31.0.11";
const N2: &str = "172.31.0.12";

#[test]
fn moving_between_slices_leaves_no_hole() {
    let web = endpoint("web", "u1", 300, A, N1);
    for delete_first in [false, true] {
        let mut addresses = Addresses::default();
        assert_eq!(step(&mut addresses, &slice("one", std::slice::from_ref(&web)), 0, A), 300);
        let (leave, join) = (slice("one", &[]), slice("two", std::slice::from_ref(&web)));
        for change in if delete_first { [&leave, &join] } else { [&join, &leave] } {
            assert_eq!(step(&mut addresses, change, 1, A), 300);
        }
        // And the old claim does not linger beside the new one.
        addresses.expire(Duration::from_secs(100));
        assert_eq!(addresses.get(ip(A)).map(|entry| entry.identity.raw()), Some(300));
    }
}

#[test]
fn late_removal_of_the_former_pod_does_not_touch_the_new_one() {
    let mut addresses = Addresses::default();
    let (old, new) = (endpoint("web-1", "u1", 300, A, N1), endpoint("web-2", "u2", 400, A, N1));
    step(&mut addresses, &slice("one", std::slice::from_ref(&old)), 0, A);
    assert_eq!(step(&mut addresses, &slice("two", std::slice::from_ref(&new)), 1, A), 400);
    assert_eq!(step(&mut addresses, &slice("one", &[]), 2, A), 400);
    // Both in one slice, the old one removed later.
    let mut addresses = Addresses::default();
    step(&mut addresses, &slice("one", std::slice::from_ref(&old)), 0, A);
    assert_eq!(step(&mut addresses, &slice("one", &[old, new.clone()]), 1, A), 400);
    assert_eq!(step(&mut addresses, &slice("one", &[new]), 2, A), 400);
}

/// An agent that starts hears of all slices in any order: that a pod is gone may not be written yet where it was.
#[test]
fn an_address_that_went_to_another_node_is_its_newest_owners_in_whatever_order_it_is_told() {
    let (old, new) = (endpoint("web-1", "u1", 300, A, N1), endpoint("web-2", "u2", 400, A, N2));
    let was = EndpointSlice { written: Written(10), ..slice("one", std::slice::from_ref(&old)) };
    let is = EndpointSlice { written: Written(20), ..slice("two", std::slice::from_ref(&new)) };
    for order in [[&was, &is], [&is, &was]] {
        let mut addresses = Addresses::default();
        step(&mut addresses, order[0], 0, A);
        assert_eq!(step(&mut addresses, order[1], 1, A), 400);
        assert_eq!(addresses.get(ip(A)).and_then(|entry| entry.node), Some(ip(N2)));
        assert_eq!(addresses.pod(ip(A)).map(|name| name.name.clone()), Some("web-2".to_owned()));
        // What says the same later is no newer word.
        step(&mut addresses, &EndpointSlice { written: Written(30), ..was.clone() }, 2, A);
        assert_eq!(step(&mut addresses, &is, 2, A), 400);
        let ends = EndpointSlice { written: Written(40), ..slice("two", &[]) };
        assert_eq!(step(&mut addresses, &ends, 3, A), 300);
    }
}

#[test]
fn same_name_on_another_node_is_another_pod() {
    let mut addresses = Addresses::default();
    let other = "10.244.2.9";
    step(&mut addresses, &slice("one", &[endpoint("db-0", "u1", 300, A, N1)]), 0, A);
    step(&mut addresses, &slice("two", &[endpoint("db-0", "u2", 300, other, N2)]), 1, other);
    assert_eq!(step(&mut addresses, &slice("one", &[]), 2, other), 300);
    assert_eq!(addresses.get(ip(other)).and_then(|entry| entry.node), Some(ip(N2)));
}

#[test]
fn an_identity_change_and_its_fall_back() {
    let mut addresses = Addresses::default();
    step(&mut addresses, &slice("one", &[endpoint("web", "u1", 300, A, N1)]), 0, A);
    assert_eq!(step(&mut addresses, &slice("one", &[endpoint("web", "u1", 301, A, N1)]), 1, A), 301);
    // A rebuilt slice with older news appears and goes: what is current falls back to the one that is left.
    assert_eq!(step(&mut addresses, &slice("two", &[endpoint("web", "u1", 300, A, N1)]), 2, A), 300);
    assert_eq!(step(&mut addresses, &slice("two", &[]), 3, A), 301);
    // The same content again (a relist) changes nothing.
    addresses.set_slice(&slice("one", &[endpoint("web", "u1", 301, A, N1)]), Duration::from_secs(4), |_| false);
    assert!(addresses.drain().is_empty());
}

#[test]
fn what_is_gone_lingers_and_then_goes() {
    let mut addresses = Addresses::default();
    step(&mut addresses, &slice("one", &[endpoint("web", "u1", 300, A, N1)]), 0, A);
    addresses.remove_slice("one", Duration::from_secs(10));
    assert_eq!(addresses.expire(Duration::from_secs(12)), Some(Duration::from_secs(10) + LINGER));
    assert!(addresses.get(ip(A)).is_some());
    assert_eq!(addresses.expire(Duration::from_secs(15)), None);
    assert_eq!(addresses.drain(), [ip(A)].into());
    assert_eq!(addresses.get(ip(A)), None);
}

/// An address that comes back while it lingers, and goes again, lingers from then on.
#[test]
fn what_came_back_lingers_anew() {
    let mut addresses = Addresses::default();
    let all = slice("one", &[endpoint("web", "u1", 300, A, N1)]);
    step(&mut addresses, &all, 0, A);
    addresses.remove_slice("one", Duration::from_secs(10));
    step(&mut addresses, &all, 12, A);
    assert_eq!(addresses.expire(Duration::from_secs(16)), None);
    addresses.remove_slice("one", Duration::from_secs(17));
    assert_eq!(addresses.expire(Duration::from_secs(18)), Some(Duration::from_secs(17) + LINGER));
    assert!(addresses.get(ip(A)).is_some());
    assert_eq!(addresses.expire(Duration::from_secs(22)), None);
    assert!(addresses.get(ip(A)).is_none());
}

/// A slice comes as a whole: of what it says again nothing changes hands, and what another said later still holds.
#[test]
fn what_a_slice_says_again_is_no_new_claim() {
    let mut addresses = Addresses::default();
    let (web, other) = (endpoint("web", "u1", 300, A, N1), endpoint("db", "u2", 301, "10.244.1.6", N1));
    step(&mut addresses, &slice("one", std::slice::from_ref(&web)), 0, A);
    let moved = endpoint("web", "u1", 400, A, N1);
    assert_eq!(step(&mut addresses, &slice("two", &[moved]), 1, A), 400);
    assert_eq!(step(&mut addresses, &slice("one", &[web, other]), 2, A), 400);
    assert_eq!(addresses.get(ip("10.244.1.6")).map(|entry| entry.identity.raw()), Some(301));
}

#[test]
fn local_beats_node_beats_slice() {
    let mut addresses = Addresses::default();
    step(&mut addresses, &slice("one", &[endpoint("web", "u1", 300, A, N1)]), 0, A);
    addresses.set_node(ip(A), "n", IpcacheEntry { identity: Identity::REMOTE_NODE, node: Some(ip(A)), is_node: true });
    assert_eq!(addresses.get(ip(A)).map(|entry| entry.identity), Some(Identity::REMOTE_NODE));
    addresses.set_local(ip(A), Identity::from_raw(500));
    assert_eq!(addresses.get(ip(A)).map(|entry| (entry.identity.raw(), entry.node)), Some((500, None)));
    addresses.remove_local(ip(A));
    addresses.remove_node(ip(A));
    assert_eq!(addresses.get(ip(A)).map(|entry| entry.identity.raw()), Some(300));
    // This node's own endpoints in a slice are left out.
    addresses
        .set_slice(&slice("own", &[endpoint("mine", "u9", 1, "10.244.3.1", N2)]), Duration::ZERO, |e| e.node == ip(N2));
    assert_eq!(addresses.get(ip("10.244.3.1")), None);
}
