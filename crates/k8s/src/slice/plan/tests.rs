//! Plans, carried out on a model of the API.

use super::*;
use proptest::prelude::*;
use weft_model::id::Identity;

const STEM: &str = "node-1-abc-";

fn endpoint(namespace: u8, pod: u16, identity: u32) -> RemoteEndpoint {
    RemoteEndpoint {
        name: ObjectName { namespace: format!("ns-{namespace}"), name: format!("pod-{pod}") },
        pod_uid: format!("uid-{namespace}-{pod}"),
        identity: Identity::from_raw(identity),
        addresses: vec![format!("10.244.{namespace}.{}", pod % 250).parse().expect("an address")],
        node: "172.31.0.11".parse().expect("an address"),
        named_ports: Vec::new(),
    }
}

fn set(pods: &[(u8, u16, u32)]) -> BTreeMap<ObjectName, RemoteEndpoint> {
    let endpoints = pods.iter().map(|(namespace, pod, identity)| endpoint(*namespace, *pod, 256 + identity));
    endpoints.map(|endpoint| (endpoint.name.clone(), endpoint)).collect()
}

fn apply(held: &mut BTreeMap<String, Held>, write: Write) {
    match write {
        Write::Create { name, namespace, endpoints } => {
            let made = held.insert(name, Held { version: "1".to_owned(), namespace, endpoints });
            assert!(made.is_none(), "created over another");
        }
        Write::Update { name, endpoints } => held.get_mut(&name).expect("exists").endpoints = endpoints,
        Write::Delete { name } => drop(held.remove(&name).expect("exists")),
    }
}

fn places(held: &BTreeMap<String, Held>) -> BTreeMap<ObjectName, Vec<String>> {
    let mut places: BTreeMap<ObjectName, Vec<String>> = BTreeMap::new();
    for (slice, held) in held {
        for endpoint in &held.endpoints {
            let pod = ObjectName { namespace: held.namespace.clone(), name: endpoint.name.clone() };
            places.entry(pod).or_default().push(slice.clone());
        }
    }
    places
}

fn reach(held: &mut BTreeMap<String, Held>, wanted: &BTreeMap<ObjectName, RemoteEndpoint>) -> usize {
    let before = places(held);
    let writes = plan(wanted, held, &BTreeSet::new(), STEM);
    let count = writes.len();
    for write in writes {
        apply(held, write);
        let now = places(held);
        let kept = before.keys().filter(|pod| wanted.contains_key(*pod));
        for pod in kept {
            assert!(now.contains_key(pod), "{pod} is nowhere for a while");
        }
    }
    let after = places(held);
    assert_eq!(after.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    for (pod, slices) in &after {
        assert_eq!(slices.len(), 1, "{pod} is in {slices:?}");
        if let Some(was) = before.get(pod) {
            assert!(was.contains(&slices[0]), "{pod} moved from {was:?} to {slices:?}");
        }
    }
    for slice in held.values() {
        assert!((1..=ENDPOINTS_MAX).contains(&slice.endpoints.len()));
        for endpoint in &slice.endpoints {
            let pod = ObjectName { namespace: slice.namespace.clone(), name: endpoint.name.clone() };
            assert_eq!(*endpoint, convert::slice_endpoint(&wanted[&pod]));
        }
    }
    assert!(plan(wanted, held, &BTreeSet::new(), STEM).is_empty(), "a second look finds nothing to do");
    count
}

proptest! {
    #[test]
    fn any_sequence_of_sets_is_reached_without_holes(
        sets in prop::collection::vec(prop::collection::vec((0_u8..3, 0_u16..150, 0_u32..3), 0..260), 1..6),
    ) {
        let mut held = BTreeMap::new();
        for pods in sets {
            reach(&mut held, &set(&pods));
        }
    }
}

#[test]
fn a_pod_more_is_one_small_write_and_the_eleventh_opens_a_slice() {
    let mut pods: Vec<(u8, u16, u32)> = (0..9).map(|n| (0, n, 0)).collect();
    let mut held = BTreeMap::new();
    assert_eq!(reach(&mut held, &set(&pods)), 1);
    pods.push((0, 9, 0));
    assert_eq!(reach(&mut held, &set(&pods)), 1);
    assert_eq!(held.len(), 1);
    pods.push((0, 10, 0));
    assert_eq!(reach(&mut held, &set(&pods)), 1);
    assert_eq!(held.len(), 2);
    // Another namespace, another slice.
    pods.push((1, 0, 0));
    assert_eq!(reach(&mut held, &set(&pods)), 1);
    assert_eq!(held.len(), 3);
    // A changed identity touches the pod's slice only.
    pods[0].2 = 1;
    assert_eq!(reach(&mut held, &set(&pods)), 1);
    // What goes makes room for what comes.
    pods.remove(3);
    assert_eq!(reach(&mut held, &set(&pods)), 1);
    pods.push((0, 11, 0));
    assert_eq!(reach(&mut held, &set(&pods)), 1);
    assert_eq!(held.len(), 3);
    assert_eq!(reach(&mut held, &BTreeMap::new()), 3);
    assert!(held.is_empty());
}

#[test]
fn a_slice_that_a_former_agent_filled_more_is_left_as_it_is() {
    let mut pods: Vec<(u8, u16, u32)> = (0..80).map(|n| (0, n, 0)).collect();
    let endpoints = set(&pods).values().map(convert::slice_endpoint).collect();
    let large = Held { version: "1".to_owned(), namespace: "ns-0".to_owned(), endpoints };
    let mut held = BTreeMap::from([("node-1-abc-0".to_owned(), large)]);
    assert_eq!(reach(&mut held, &set(&pods)), 0);
    pods.push((0, 80, 0));
    assert_eq!(reach(&mut held, &set(&pods)), 1);
    assert_eq!(held["node-1-abc-0"].endpoints.len(), 80);
    assert_eq!(held["node-1-abc-1"].endpoints.len(), 1);
}

#[test]
fn pods_in_two_slices_stay_in_one_and_foreign_names_are_left_alone() {
    let wanted = set(&[(0, 1, 0)]);
    let inside = convert::slice_endpoint(wanted.values().next().expect("one"));
    let held = |name: &str| {
        let held = Held { version: "1".to_owned(), namespace: "ns-0".to_owned(), endpoints: vec![inside.clone()] };
        (name.to_owned(), held)
    };
    let mut slices = BTreeMap::from([held("node-1-abc-0"), held("node-1-abc-1")]);
    assert_eq!(reach(&mut slices, &wanted), 1);
    assert_eq!(slices.len(), 1);
    let taken = BTreeSet::from(["node-1-abc-0".to_owned()]);
    let writes = plan(&wanted, &BTreeMap::new(), &taken, STEM);
    assert!(matches!(&writes[..], [Write::Create { name, .. }] if name == "node-1-abc-1"), "{writes:?}");
}
