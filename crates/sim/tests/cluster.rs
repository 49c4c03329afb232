//! Real agents and the real operator against the embedded API server, all in this process.

use futures::future::join_all;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use weft_agent::attach::obtain_identity;
use weft_agent::cluster::ApiServer;
use weft_api::cni::{AddRequest, Attachment};
use weft_k8s::Client;
use weft_k8s::endpoint::Propagation;
use weft_local::apiserver::InProcess;
use weft_local::apiserver::api::{Api, Settings};
use weft_local::apiserver::store::Store;
use weft_model::label::LabelSet;
use weft_sim::node::Node;
use weft_sim::options::Run;
use weft_sim::recorder::Recorder;
use weft_sim::script::set_up;
use weft_sim::tracker::Tracker;
use weft_sim::wire::{Meter, connect};

const DEADLINE: Duration = Duration::from_secs(120);

struct World {
    server: InProcess,
    client: Client,
    meter: Meter,
    dir: tempfile::TempDir,
    stop: CancellationToken,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn options(nodes: usize) -> Run {
    Run {
        nodes,
        pods: 0,
        deployments: 4,
        namespaces: 1,
        policies: 0,
        rate: 1.0,
        seconds: 1.0,
        scale_to_zero: 0.0,
        lost_nodes: 0,
        drain: 1.0,
        seed: 1,
    }
}

impl World {
    async fn start(nodes: usize) -> Self {
        let (dir, stop) = (tempfile::tempdir().expect("directory"), CancellationToken::new());
        let store = Store::open(&dir.path().join("objects.redb")).expect("store");
        let server = InProcess::new(Api::new(store, Settings::default()), dir.path().join("run"), stop.clone());
        let meter = Meter::default();
        let client = connect(&server, "test", &meter).await.expect("connected");
        weft_k8s::crd::install_missing(&client).await.expect("definitions");
        set_up(&options(nodes), &client).await.expect("set up");
        Self { server, client, meter, dir, stop }
    }

    async fn node(&self, index: usize, mode: Propagation, recorder: &Recorder) -> Node {
        let client = connect(&self.server, "agent", &self.meter).await.expect("connected");
        let dir = self.dir.path().join(format!("node-{index}"));
        let until = tokio::time::Instant::now() + DEADLINE;
        // The one before it lets go of the directory when its last task has ended.
        let node = loop {
            match Node::start(index, mode, client.clone(), recorder.clone(), &dir, &self.stop).await {
                Ok(node) => break node,
                Err(error) => assert!(tokio::time::Instant::now() < until, "{error:#}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        tokio::time::timeout(DEADLINE, node.ready()).await.expect("ready in time").expect("runs");
        node
    }

    async fn list(&self, path: &str) -> Vec<Value> {
        let list: Value = self.client.get(path).await.expect("listed");
        list["items"].as_array().cloned().unwrap_or_default()
    }

    async fn until(&self, what: &str, path: &str, holds: impl Fn(&[Value]) -> bool) {
        let until = tokio::time::Instant::now() + DEADLINE;
        loop {
            let found = self.list(path).await;
            if holds(&found) {
                return;
            }
            assert!(tokio::time::Instant::now() < until, "{what}: {found:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

const IDENTITIES: &str = "/apis/cilium.io/v2/ciliumidentities";
const ENDPOINTS: &str = "/apis/cilium.io/v2/ciliumendpoints";
const SLICES: &str = "/apis/cilium.io/v2alpha1/ciliumendpointslices";

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
        let (core, sets, server, meter) = (node.core.clone(), sets.clone(), world.server.clone(), world.meter.clone());
        tokio::spawn(async move {
            let cluster = ApiServer::new(connect(&server, "racer", &meter).await.expect("connected"));
            let mut numbers = Vec::new();
            // Everybody begins somewhere else, and all meet.
            for n in 0..SETS {
                let set = &sets[(n + agent * 7) % SETS];
                let number = obtain_identity(&core, &cluster, set).await.expect("running").expect("answered");
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

async fn add(world: &World, node: &Node, on: usize, number: usize) -> Vec<IpAddr> {
    let name = format!("pod-{number}");
    let pod = json!({"metadata": {"name": name, "labels": {"app": "a"}},
        "spec": {"nodeName": format!("node-{on}"), "containers": [{"name": "main", "image": "main"}]}});
    let pod: Value = world.client.create("/api/v1/namespaces/ns-0/pods", &pod).await.expect("created");
    let request = AddRequest {
        attachment: Attachment { container_id: format!("c-{number}"), ifname: "eth0".to_owned() },
        netns: format!("/run/netns/{number}"),
        pod_namespace: "ns-0".to_owned(),
        pod_name: name,
        pod_uid: pod["metadata"]["uid"].as_str().map(str::to_owned),
        mtu: None,
    };
    let added = node.attachments.add(request).await.expect("added");
    added.addresses.iter().map(|(text, _)| text.split('/').next().expect("address").parse().expect("address")).collect()
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
    let flags = <weft_operator::config::Flags as clap::Parser>::try_parse_from(flags).expect("flags");
    let config = weft_operator::config::Config::read(flags).expect("valid");
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
            new.iter().for_each(|address| tracker.lives(*address));
        }
        let (pods, own) = (number, mode == CesNode);
        let named = |object: &Value| object["metadata"]["labels"]["weft.dev/node"].is_string();
        let held = |objects: &[Value], of_nodes: bool| -> usize {
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
