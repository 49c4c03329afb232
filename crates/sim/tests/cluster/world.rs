//! An API server in this process, with agents around it.

use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use weft_api::cni::{AddRequest, Attachment};
use weft_k8s::Client;
use weft_k8s::endpoint::Propagation;
use weft_k8s::endpoint::style::WriteStyle;
use weft_lab_apiserver::InProcess;
use weft_lab_apiserver::api::{Api, Settings};
use weft_lab_apiserver::store::Store;
use weft_sim::node::Node;
use weft_sim::options::Run;
use weft_sim::recorder::Recorder;
use weft_sim::script::set_up;
use weft_sim::wire::{Meter, connect, connect_late};

pub const IDENTITIES: &str = "/apis/cilium.io/v2/ciliumidentities";
pub const ENDPOINTS: &str = "/apis/cilium.io/v2/ciliumendpoints";
pub const SLICES: &str = "/apis/cilium.io/v2alpha1/ciliumendpointslices";

pub const DEADLINE: Duration = Duration::from_secs(120);

pub struct World {
    pub server: InProcess,
    pub store: Store,
    pub client: Client,
    pub meter: Meter,
    pub dir: tempfile::TempDir,
    pub stop: CancellationToken,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub fn options(nodes: usize) -> Run {
    Run {
        nodes,
        pods: 0,
        deployments: 4,
        namespaces: 1,
        policies: 0,
        rate: 1.0,
        warm_up: 0.0,
        seconds: 1.0,
        scale_to_zero: 0.0,
        lost_nodes: 0,
        drain: 1.0,
        rates: Vec::new(),
        seed: 1,
    }
}

impl World {
    pub async fn start(nodes: usize) -> Self {
        Self::with(&options(nodes)).await
    }

    pub async fn with(options: &Run) -> Self {
        let (dir, stop) = (tempfile::tempdir().expect("directory"), CancellationToken::new());
        let store = Store::open(&dir.path().join("objects.redb")).expect("store");
        let server = InProcess::new(Api::new(store.clone(), Settings::default()), dir.path().join("run"), stop.clone());
        let meter = Meter::default();
        let client = connect(&server, "test", &meter).await.expect("connected");
        weft_k8s::crd::install_missing(&client).await.expect("definitions");
        set_up(options, &client).await.expect("set up");
        Self { server, store, client, meter, dir, stop }
    }

    pub async fn node(&self, index: usize, mode: Propagation, recorder: &Recorder) -> Node {
        self.late_node(index, mode, recorder, Arc::default()).await
    }

    /// What the API server tells this one comes so many milliseconds late.
    pub async fn late_node(
        &self,
        index: usize,
        mode: Propagation,
        recorder: &Recorder,
        late_ms: Arc<AtomicU64>,
    ) -> Node {
        let client = connect_late(&self.server, "agent", &self.meter, late_ms).await.expect("connected");
        let dir = self.dir.path().join(format!("node-{index}"));
        let until = tokio::time::Instant::now() + DEADLINE;
        // The one before it lets go of the directory when its last task has ended.
        let node = loop {
            let how = (mode, WriteStyle::Coalesced);
            match Node::start(index, how, client.clone(), recorder.clone(), &dir, &self.stop).await {
                Ok(node) => break node,
                Err(error) => assert!(tokio::time::Instant::now() < until, "{error:#}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        tokio::time::timeout(DEADLINE, node.ready()).await.expect("ready in time").expect("runs");
        node
    }

    pub async fn list(&self, path: &str) -> Vec<Value> {
        let list: Value = self.client.get(path).await.expect("listed");
        list["items"].as_array().cloned().unwrap_or_default()
    }

    pub async fn until(&self, what: &str, path: &str, holds: impl Fn(&[Value]) -> bool) {
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

pub async fn add(world: &World, node: &Node, on: usize, number: usize) -> Vec<IpAddr> {
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
        addresses: None,
    };
    let added = node.attachments.add(request).await.expect("added");
    added.addresses.iter().map(|(text, _)| text.split('/').next().expect("address").parse().expect("address")).collect()
}
