use super::*;
use proptest::prelude::*;
use weft_model::id::Identity;

fn endpoint(namespace: u8, pod: u16, identity: u32) -> RemoteEndpoint {
    RemoteEndpoint {
        name: ObjectName { namespace: format!("ns-{namespace}"), name: format!("pod-{pod}") },
        pod_uid: format!("uid-{namespace}-{pod}"),
        identity: Identity::from_raw(256 + identity),
        addresses: vec!["10.244.2.7".parse().expect("address"), "fd44:0:0:2::7".parse().expect("address")],
        node: "172.31.0.12".parse().expect("address"),
        named_ports: Vec::new(),
    }
}

fn names() -> impl FnMut() -> String {
    let mut next = 0;
    move || {
        next += 1;
        format!("ces-{next}")
    }
}

#[test]
fn a_new_endpoint_goes_to_the_fullest_slice_with_room() {
    let (mut packer, mut fresh) = (Packer::new(3), names());
    packer.adopt("full", "ns-0", (0..3).map(|pod| endpoint(0, pod, 0)).collect());
    packer.adopt("two", "ns-0", (10..12).map(|pod| endpoint(0, pod, 0)).collect());
    packer.adopt("one", "ns-0", vec![endpoint(0, 20, 0)]);
    packer.adopt("other", "ns-1", vec![endpoint(1, 20, 0)]);
    assert_eq!(packer.put(endpoint(0, 30, 0), &mut fresh).as_deref(), Some("two"));
    assert_eq!(packer.put(endpoint(0, 31, 0), &mut fresh).as_deref(), Some("one"));
    assert_eq!(packer.put(endpoint(0, 30, 0), &mut fresh), None, "nothing is new");
    assert_eq!(packer.put(endpoint(0, 30, 1), &mut fresh).as_deref(), Some("two"), "it stays where it is");
    assert_eq!(packer.put(endpoint(2, 1, 1), &mut fresh).as_deref(), Some("ces-1"));
}

#[test]
fn an_endpoint_of_two_slices_stays_in_one() {
    let mut packer = Packer::new(100);
    assert!(packer.adopt("a", "ns-0", vec![endpoint(0, 1, 0)]));
    assert!(!packer.adopt("b", "ns-0", vec![endpoint(0, 1, 0), endpoint(0, 2, 0)]));
    assert_eq!(packer.content("b").expect("there").1.len(), 1);
    assert_eq!(packer.retain(|_| false).len(), 2);
    assert!(packer.content("a").is_none());
}

proptest! {
    #[test]
    fn sizes_hold_and_every_endpoint_is_in_one_slice(
        steps in prop::collection::vec((any::<bool>(), 0_u8..2, 0_u16..40), 1..300),
    ) {
        let (mut packer, mut fresh) = (Packer::new(7), names());
        let mut model = BTreeSet::new();
        for (add, namespace, pod) in steps {
            let endpoint = endpoint(namespace, pod, 0);
            if add {
                model.insert(endpoint.name.clone());
                packer.put(endpoint, &mut fresh);
            } else {
                model.remove(&endpoint.name);
                packer.remove(&endpoint.name);
            }
        }
        let mut seen = BTreeSet::new();
        let slices: Vec<String> = packer.slices().map(|(name, _)| name.to_owned()).collect();
        for slice in &slices {
            let Some((namespace, endpoints)) = packer.content(slice) else { continue };
            prop_assert!(endpoints.len() <= 7);
            for endpoint in endpoints {
                prop_assert_eq!(&endpoint.name.namespace, namespace);
                prop_assert!(seen.insert(endpoint.name.clone()), "{} is in two slices", endpoint.name);
            }
        }
        prop_assert_eq!(seen, model);
    }
}

const MS: fn(u64) -> Duration = Duration::from_millis;

#[test]
fn changes_are_coalesced_for_the_delay_and_no_longer() {
    let mut queue = Queue::new(MS(500), Rate { limit: 10.0, burst: 20 });
    queue.changed("a", false, MS(0));
    queue.changed("a", false, MS(400));
    assert_eq!((queue.next(MS(499)), queue.wake(MS(499))), (None, Some(MS(500))));
    let turn = queue.next(MS(500)).expect("due");
    assert_eq!((turn.slice.as_str(), turn.waited), ("a", MS(500)));
    assert!(queue.is_empty());
}

#[test]
fn priority_goes_first_and_the_rate_holds() {
    let mut queue = Queue::new(MS(500), Rate { limit: 10.0, burst: 2 });
    for n in 0..4 {
        queue.changed(&format!("slice-{n}"), n == 3, MS(n));
    }
    let order: Vec<_> = std::iter::from_fn(|| queue.next(MS(600))).map(|turn| turn.slice).collect();
    assert_eq!(order, ["slice-3", "slice-0"], "the burst");
    assert_eq!(queue.wake(MS(600)), Some(MS(700)));
    assert_eq!(queue.next(MS(700)).expect("a tenth of a second later").slice, "slice-1");
    assert_eq!(queue.next(MS(750)), None);
}

#[test]
fn failed_writes_back_off_exponentially() {
    let mut queue = Queue::new(MS(0), Rate { limit: 10.0, burst: 2 });
    queue.changed("a", false, MS(0));
    let (mut now, mut pauses) = (MS(0), Vec::new());
    for _ in 0..10 {
        let turn = queue.next(now).expect("its turn");
        queue.failed(turn, now);
        let next = queue.wake(now).expect("waits");
        pauses.push((next - now).as_secs());
        now = next;
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 100, 100, 100]);
}
