//! Real agents and the real operator against the embedded API server, all in this process.

mod direct;
mod failover;
mod world;

use futures::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use weft_agent::attach::obtain_identity;
use weft_agent::cluster::ApiServer;
use weft_k8s::endpoint::Propagation;
use weft_model::label::LabelSet;
use weft_sim::recorder::Recorder;
use weft_sim::tracker::Tracker;
use weft_sim::wire::connect;
use world::{DEADLINE, ENDPOINTS, IDENTITIES, SLICES, World, add};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_agents_that_race_for_a_thousand_label_sets_make_a_thousand_identities() {
    const AGENTS: usize = 50;
    const SETS: usize = 1000;
    let world = World::start(AGENTS).await;
    let tracker = Arc::new(Tracker::default());
    let mut nodes = Vec::new();
    for index in 0..AGENTS {
        nodes.push(world.node(index, Propagation::CesNode, &Recorder::new(tracker.clone(), false)).await);
    }
    let sets: Vec<LabelSet> = (0..SETS)
        .map(|n| {
            LabelSet(BTreeMap::from([("k8s:app".to_owned(), format!("a-{n}")), ("k8s:x".to_owned(), "y".to_owned())]))
        })
        .collect();
    let racers = nodes.iter().enumerate().map(|(agent, node)| {
        let (control, sets, server, meter) =
            (node.control.clone(), sets.clone(), world.server.clone(), world.meter.clone());
        tokio::spawn(async move {
            let cluster = ApiServer::new(connect(&server, "racer", &meter).await.expect("connected"));
            let mut numbers = Vec::new();
            // Everybody begins somewhere else, and all meet.
            for n in 0..SETS {
                let set = &sets[(n + agent * 7) % SETS];
                let number = obtain_identity(&control, &cluster, set).await.expect("answered");
                numbers.push((set.clone(), number));
            }
            numbers
        })
    });
    let all: Vec<_> = join_all(racers).await.into_iter().flat_map(|numbers| numbers.expect("no panic")).collect();
    let by_set: BTreeMap<LabelSet, BTreeSet<u32>> = all.into_iter().fold(BTreeMap::new(), |mut map, (set, number)| {
        map.entry(set).or_default().insert(number.raw());
        map
    });
    assert_eq!(by_set.len(), SETS);
    assert!(by_set.values().all(|numbers| numbers.len() == 1), "two agents have two numbers for one label set");
    let objects = world.list(IDENTITIES).await;
    assert_eq!(objects.len(), SETS);
    let distinct: BTreeSet<String> = objects.iter().map(|object| object["security-labels"].to_string()).collect();
    assert_eq!(distinct.len(), SETS);
}

/// Nodes change their mode one by one, in every direction; meanwhile pods come. No agent ever loses a living pod, and
/// at the end of each change nothing of the former mode is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_mode_changes_in_a_running_cluster_and_no_address_is_lost() {
    use Propagation::{Cep, CesNode, CesOperator};
    const NODES: usize = 3;
    let world = World::start(NODES).await;
    let flags =
        ["weft-operator", "--pod-cidr", "10.0.0.0/8,fd44::/48", "--node-grace-seconds", "1", "--ces-delay-ms", "100"];
    let config = weft_settings::from_args::<weft_operator::config::Config>(flags.map(Into::into)).expect("flags");
    let operator = connect(&world.server, "operator", &world.meter).await.expect("connected");
    tokio::spawn(weft_operator::run(config, operator, world.stop.clone()));
    let tracker = Arc::new(Tracker::default());
    tracker.set_agents(NODES);
    let recorders: Vec<Recorder> = (0..NODES).map(|_| Recorder::new(tracker.clone(), true)).collect();
    let mut nodes = Vec::new();
    for (index, recorder) in recorders.iter().enumerate() {
        nodes.push(Some(world.node(index, Cep, recorder).await));
    }
    let mut addresses: Vec<IpAddr> = Vec::new();
    let mut number = 0;
    for mode in [Cep, CesNode, CesOperator, Cep, CesOperator, CesNode, Cep] {
        for index in 0..NODES {
            if let Some(former) = nodes[index].take() {
                former.lose();
            }
            let node = world.node(index, mode, &recorders[index]).await;
            let new = add(&world, &node, index, number).await;
            nodes[index] = Some(node);
            number += 1;
            addresses.extend(&new);
            // Everybody learns of it, whatever mode it is in.
            let until = tokio::time::Instant::now() + DEADLINE;
            while !recorders.iter().all(|recorder| new.iter().all(|a| recorder.addresses().contains_key(a))) {
                assert!(tokio::time::Instant::now() < until, "{mode:?}: node {index}'s pod is not known to all");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert!(new.iter().all(|address| tracker.lives(*address)), "an address was given twice");
        }
        let (pods, own) = (number, mode == CesNode);
        let named = |object: &serde_json::Value| object["metadata"]["labels"]["weft.dev/node"].is_string();
        let held = |objects: &[serde_json::Value], of_nodes: bool| -> usize {
            let slices = objects.iter().filter(|object| named(object) == of_nodes);
            slices.map(|slice| slice["endpoints"].as_array().map_or(0, Vec::len)).sum()
        };
        world.until("CiliumEndpoints", ENDPOINTS, |objects| objects.len() == if own { 0 } else { pods }).await;
        world.until("nodes' slices", SLICES, |objects| held(objects, true) == if own { pods } else { 0 }).await;
        let shared = if mode == CesOperator { pods } else { 0 };
        world.until("the operator's slices", SLICES, |objects| held(objects, false) == shared).await;
        assert_eq!(tracker.holes(), 0, "after the change to {mode:?}");
        for recorder in &recorders {
            let known = recorder.addresses();
            assert!(addresses.iter().all(|address| known.contains_key(address)), "after the change to {mode:?}");
        }
    }
}
