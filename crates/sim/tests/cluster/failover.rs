//! The leader of two operators is killed in the middle of a roll-out: no address is given twice, no pod is lost, no slice
//! is deleted wrongly, no agent loses an address or takes it for another's, and nodes that join get prefixes of their own.

use crate::world::{DEADLINE, SLICES, World, options};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use weft_k8s::endpoint::Propagation;
use weft_lab_apiserver::store::{Effect, Topic};
use weft_sim::options::Run;
use weft_sim::recorder::Recorder;
use weft_sim::script::{Cluster, Dice, add_node};
use weft_sim::tracker::Tracker;
use weft_sim::wire::connect;

const NODES: usize = 10;
/// Nodes that join when no operator leads.
const LATE: usize = 3;
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/weft-operator";

/// An operator with a runtime of its own, so that it can be killed as a process is: all of it at once.
struct Operator {
    runtime: Option<tokio::runtime::Runtime>,
}

impl Operator {
    fn start(world: &World) -> Self {
        let flags = ["weft-operator", "--pod-cidr", "10.0.0.0/8,fd44::/48", "--lease-seconds", "3"];
        // Housekeeping that is as eager as it can be: what it would delete wrongly, it deletes soon.
        let eager = ["--gc-seconds", "1", "--node-grace-seconds", "1", "--identity-grace-seconds", "4"];
        let flags = flags.into_iter().chain(eager).map(Into::into);
        let config = weft_settings::from_args::<weft_operator::config::Config>(flags).expect("flags");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let (server, meter, stop) = (world.server.clone(), world.meter.clone(), world.stop.clone());
        runtime.spawn(async move {
            let client = connect(&server, "operator", &meter).await.expect("connected");
            weft_operator::run(config, client, stop).await
        });
        Self { runtime: Some(runtime) }
    }

    fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn leader(world: &World) -> Option<String> {
    let lease: Option<Value> = world.client.find(LEASE).await.expect("asked");
    lease?["spec"]["holderIdentity"].as_str().filter(|holder| !holder.is_empty()).map(str::to_owned)
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !holds().await {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// UIDs of the pods in slices that were deleted.
fn deletions(world: &World) -> Arc<Mutex<BTreeSet<String>>> {
    let found = Arc::new(Mutex::new(BTreeSet::new()));
    let topic = Topic::Resource("ciliumendpointslices.cilium.io".into());
    let mut follower = world.store.follow(topic, world.store.revision()).expect("followed");
    let (told, stop) = (found.clone(), world.stop.clone());
    tokio::spawn(async move {
        loop {
            for event in follower.next(1000).expect("kept") {
                if event.effect == Effect::Deleted {
                    let endpoints = event.object.value["endpoints"].as_array().cloned().unwrap_or_default();
                    let uids = endpoints.iter().filter_map(|endpoint| endpoint["pod-uid"].as_str().map(str::to_owned));
                    told.lock().unwrap_or_else(PoisonError::into_inner).extend(uids);
                }
            }
            tokio::select! {
                open = follower.changed() => if !open { return },
                () = stop.cancelled() => return,
            }
        }
    });
    found
}

/// Another one every day; `WEFT_SEED` repeats a run.
fn seed() -> u64 {
    let seed = match std::env::var("WEFT_SEED") {
        Ok(text) => text.parse().expect("WEFT_SEED: expected a number"),
        Err(_) => {
            let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
            since.as_secs() / (24 * 60 * 60)
        }
    };
    println!("WEFT_SEED={seed}");
    seed
}

async fn a_roll_out_goes_on(mode: Propagation, seed: u64) {
    // A thousand pods are replaced in twenty seconds.
    let run =
        Run { deployments: 20, namespaces: 4, policies: 10, pods: 300, rate: 50.0, seconds: 20.0, seed, ..options(0) };
    let world = World::with(&run).await;
    let mut first = Operator::start(&world);
    until("an operator leads", async || leader(&world).await.is_some()).await;
    let former = leader(&world).await;
    let _second = Operator::start(&world);

    let tracker = Arc::new(Tracker::default());
    tracker.set_agents(NODES + LATE);
    let recorders: Vec<Recorder> = (0..NODES + LATE).map(|_| Recorder::new(tracker.clone(), true)).collect();
    let mut nodes = Vec::new();
    for (index, recorder) in recorders.iter().enumerate().take(NODES) {
        add_node(index, &json!({}), &world.client).await.expect("joined");
        nodes.push(world.node(index, mode, recorder).await);
    }
    let mut kubelets = Vec::new();
    for _ in 0..4 {
        kubelets.push(connect(&world.server, "kubelet", &world.meter).await.expect("connected"));
    }
    let cluster = Arc::new(Cluster::new(run.clone(), mode, nodes, kubelets, tracker.clone()));
    let mut dice = Dice::new(run.seed);
    cluster.fill(&mut dice).await;
    let deleted = deletions(&world);
    let old: BTreeSet<String> = cluster.pods().into_iter().map(|pod| pod.uid.clone()).collect();

    let rolling = tokio::spawn({
        let cluster = cluster.clone();
        async move { cluster.churn(&mut dice).await }
    });
    let replaced = || cluster.pods().iter().filter(|pod| !old.contains(&pod.uid)).count();
    until("half of the pods are replaced", async || replaced() >= run.pods / 2).await;
    assert!(!rolling.is_finished(), "the roll-out goes on");
    first.kill();
    // Nobody leads now: nodes that join must wait for the next leader.
    let mut late = Vec::new();
    for (index, recorder) in recorders.iter().enumerate().skip(NODES) {
        add_node(index, &json!({}), &world.client).await.expect("joined");
        late.push(world.node(index, mode, recorder).await);
    }
    let next = leader(&world).await;
    assert!(next.is_some() && next != former, "the other one leads: {former:?}, {next:?}");
    rolling.await.expect("no panic");

    assert_eq!(*cluster.failures.lock().expect("failures"), Vec::<String>::new());
    let pods = cluster.pods();
    let uids: BTreeSet<String> = pods.iter().map(|pod| pod.uid.clone()).collect();
    let objects = world.list("/api/v1/pods").await;
    let living: BTreeSet<&str> = objects.iter().filter_map(|pod| pod["metadata"]["uid"].as_str()).collect();
    assert_eq!(living, uids.iter().map(String::as_str).collect(), "every pod of the API server runs, and no other");
    assert!(pods.len() >= run.pods, "{} pods", pods.len());
    let addresses: BTreeMap<IpAddr, usize> =
        pods.iter().flat_map(|pod| pod.addresses.iter().map(|address| (*address, pod.node))).collect();
    assert_eq!(addresses.len(), pods.len() * 2, "every pod has an address of each family of its own");

    // Everybody learns of everybody, and believes the pod's own node.
    let known = || {
        let tables: Vec<_> = recorders.iter().map(Recorder::addresses).collect();
        addresses.iter().all(|(address, node)| {
            let owner = tables[*node].get(address).map(|entry| entry.identity);
            owner.is_some() && tables.iter().all(|table| table.get(address).map(|entry| entry.identity) == owner)
        })
    };
    until("every agent knows every pod", async || known()).await;
    assert_eq!(tracker.holes(), 0, "no agent lost a living pod, or took it for another");
    let wrongly: Vec<_> = deleted.lock().expect("deletions").intersection(&uids).cloned().collect();
    assert_eq!(wrongly, Vec::<String>::new(), "a slice with living pods was deleted");

    // In the end every pod is in one slice, and nobody else is.
    world
        .until("slices", SLICES, |slices| {
            let held = slices.iter().filter_map(|slice| slice["endpoints"].as_array()).flatten();
            let held: Vec<&str> = held.filter_map(|endpoint| endpoint["pod-uid"].as_str()).collect();
            held.len() == uids.len() && held.iter().all(|uid| uids.contains(*uid))
        })
        .await;
    let nodes = world.list("/api/v1/nodes").await;
    let prefixes: Vec<String> = nodes
        .iter()
        .flat_map(|node| node["spec"]["podCIDRs"].as_array())
        .flatten()
        .filter_map(|prefix| prefix.as_str().map(str::to_owned))
        .collect();
    assert_eq!(prefixes.len(), (NODES + LATE) * 2);
    assert_eq!(prefixes.iter().collect::<BTreeSet<_>>().len(), prefixes.len(), "a prefix was given twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_that_makes_slices_is_killed_in_a_roll_out() {
    a_roll_out_goes_on(Propagation::CesOperator, seed()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_is_killed_in_a_roll_out_while_nodes_write_their_own_slices() {
    a_roll_out_goes_on(Propagation::CesNode, seed()).await;
}
