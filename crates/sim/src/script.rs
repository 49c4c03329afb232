//! What happens to the cluster: pods that come and go, by way of the API server and of their nodes' agents.

use crate::node::{self, Node};
use crate::options::Run;
use crate::tracker::Tracker;
use anyhow::Context as _;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use weft_api::cni::{AddRequest, Attachment, DelRequest};
use weft_k8s::Client;
use weft_k8s::client::{PatchKind, Preconditions};
use weft_k8s::endpoint::Propagation;

/// Pods that are on their way at once, at most: as many as kubelets would have.
const PARALLEL: usize = 256;

/// A generator that gives the same numbers for the same seed everywhere.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Seeded.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from((self.0 >> 11) % (n as u64)).unwrap_or(0)
    }
}

/// A pod that runs.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its node.
    pub node: usize,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    deployment: usize,
}

/// The cluster as the script knows it.
pub struct Cluster {
    options: Run,
    mode: Propagation,
    nodes: Vec<Node>,
    /// One for every node's kubelet, in turn.
    kubelets: Vec<Client>,
    tracker: Arc<Tracker>,
    pods: Mutex<BTreeMap<usize, Pod>>,
    next: AtomicUsize,
    lost: Mutex<Vec<usize>>,
    /// From the CNI call to its answer, while measured.
    pub starts: Mutex<Vec<Duration>>,
    /// What did not work.
    pub failures: Mutex<Vec<String>>,
    permits: Semaphore,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cluster {
    /// Around nodes that run.
    #[must_use]
    pub fn new(
        options: Run,
        mode: Propagation,
        nodes: Vec<Node>,
        kubelets: Vec<Client>,
        tracker: Arc<Tracker>,
    ) -> Self {
        Self {
            options,
            mode,
            nodes,
            kubelets,
            tracker,
            pods: Mutex::default(),
            next: AtomicUsize::new(0),
            lost: Mutex::default(),
            starts: Mutex::default(),
            failures: Mutex::default(),
            permits: Semaphore::new(PARALLEL),
        }
    }

    /// The pods that run.
    #[must_use]
    pub fn pods(&self) -> Vec<Pod> {
        lock(&self.pods).values().cloned().collect()
    }

    fn kubelet(&self, node: usize) -> &Client {
        &self.kubelets[node % self.kubelets.len()]
    }

    fn namespace(&self, deployment: usize) -> String {
        format!("ns-{}", deployment % self.options.namespaces.max(1))
    }

    /// A node for a new pod.
    fn pick(&self, dice: &mut Dice) -> usize {
        loop {
            let node = dice.below(self.nodes.len());
            if !lock(&self.lost).contains(&node) {
                return node;
            }
        }
    }

    /// A pod of the deployment comes up on the node.
    ///
    /// # Errors
    /// What did not work.
    async fn start(&self, deployment: usize, on: usize) -> anyhow::Result<()> {
        let _permit = self.permits.acquire().await?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (namespace, name) = (self.namespace(deployment), format!("app-{deployment}-7d9c5b6f8-{number:05}"));
        let kubelet = self.kubelet(on);
        let collection = format!("/api/v1/namespaces/{namespace}/pods");
        let object = json!({
            "metadata": {"name": name, "labels": {"app": format!("app-{deployment}"), "pod-template-hash": "7d9c5b6f8"}},
            "spec": {"nodeName": node::name(on), "containers": [{"name": "main", "image": "main", "ports": [{"name": "http", "containerPort": 8080}]}]},
        });
        let made: Value = kubelet.create(&collection, &object).await?;
        let uid = made["metadata"]["uid"].as_str().context("a pod without UID")?.to_owned();
        let attachment = Attachment { container_id: format!("container-{number}"), ifname: "eth0".to_owned() };
        let begun = Instant::now();
        let request = AddRequest {
            attachment,
            netns: format!("/run/netns/{number}"),
            pod_namespace: namespace.clone(),
            pod_name: name.clone(),
            pod_uid: Some(uid.clone()),
            mtu: None,
            addresses: None,
        };
        let added = self.nodes[on].attachments.add(request).await.map_err(|error| anyhow::anyhow!("ADD: {error:?}"))?;
        lock(&self.starts).push(begun.elapsed());
        // Of several addresses the last one written.
        let addresses: Vec<IpAddr> = added
            .addresses
            .iter()
            .filter_map(|(text, _)| text.parse::<ipnet::IpNet>().ok())
            .map(|net| net.addr())
            .collect();
        for address in &addresses {
            anyhow::ensure!(self.tracker.lives(*address), "{address} was given twice");
        }
        if let Some(address) = addresses.iter().max() {
            self.tracker.begun(*address, begun);
        }
        let ips: Vec<Value> = addresses.iter().map(|address| json!({"ip": address.to_string()})).collect();
        let status = json!({"status": {"phase": "Running", "podIP": ips[0]["ip"], "podIPs": ips,
            "conditions": [{"type": "Ready", "status": "True"}]}});
        kubelet.patch::<IgnoredAny>(&format!("{collection}/{name}/status"), PatchKind::Merge, &status).await?;
        lock(&self.pods).insert(number, Pod { namespace, name, uid, node: on, addresses, deployment });
        Ok(())
    }

    async fn stop(&self, number: usize, pod: Pod) -> anyhow::Result<()> {
        let _permit = self.permits.acquire().await?;
        let attachment = Attachment { container_id: format!("container-{number}"), ifname: "eth0".to_owned() };
        let node = &self.nodes[pod.node];
        let request = DelRequest { attachment, netns: None };
        self.tracker.forget_all(&pod.addresses);
        node.attachments.del(request).await.map_err(|error| anyhow::anyhow!("DEL: {error:?}"))?;
        self.delete(&pod).await
    }

    async fn delete(&self, pod: &Pod) -> anyhow::Result<()> {
        let path = format!("/api/v1/namespaces/{}/pods/{}?gracePeriodSeconds=0", pod.namespace, pod.name);
        self.kubelet(pod.node).delete(&path, &Preconditions::default()).await?;
        Ok(())
    }

    fn note(&self, what: &str, outcome: anyhow::Result<()>) {
        if let Err(error) = outcome {
            let mut failures = lock(&self.failures);
            if failures.len() < 1000 {
                failures.push(format!("{what}: {error:#}"));
            }
        }
    }

    /// Brings up the pods that are there when the churn begins, node by node.
    pub async fn fill(self: &Arc<Self>, dice: &mut Dice) {
        let mut tasks = JoinSet::new();
        for number in 0..self.options.pods {
            let (cluster, on) = (self.clone(), number * self.nodes.len() / self.options.pods);
            let deployment = dice.below(self.options.deployments.max(1));
            tasks.spawn(async move {
                let outcome = cluster.start(deployment, on).await;
                cluster.note("start", outcome);
            });
            while tasks.len() >= PARALLEL {
                tasks.join_next().await;
            }
        }
        while tasks.join_next().await.is_some() {}
    }

    /// Roll-outs at their times. Open loop: what is late does not slow it down.
    pub async fn roll_out(self: &Arc<Self>, dice: &mut Dice, rate: f64, seconds: f64) {
        let mut tasks = JoinSet::new();
        let mut rolling = dice.below(self.options.deployments.max(1));
        let began = tokio::time::Instant::now();
        for turn in 0..(rate * seconds) as usize {
            tokio::time::sleep_until(began + Duration::from_secs_f64(turn as f64 / rate)).await;
            self.replace_one(dice, turn, &mut rolling, &mut tasks);
        }
        while tasks.join_next().await.is_some() {}
    }

    /// Roll-outs, then many pods at once, then nodes, at their times. Open loop, too.
    pub async fn churn(self: &Arc<Self>, dice: &mut Dice) {
        let options = self.options.clone();
        let total = (options.rate * options.seconds) as usize;
        let (began, mut tasks) = (tokio::time::Instant::now(), JoinSet::new());
        let (mut scaled, mut lost) = (options.scale_to_zero <= 0.0, options.lost_nodes == 0);
        let mut rolling = dice.below(self.options.deployments.max(1));
        for turn in 0..total {
            let at = turn as f64 / options.rate;
            tokio::time::sleep_until(began + Duration::from_secs_f64(at)).await;
            if !scaled && at >= options.seconds / 2.0 {
                scaled = true;
                self.scale_to_zero(dice, &mut tasks);
            }
            if !lost && at >= options.seconds * 0.75 {
                lost = true;
                for _ in 0..options.lost_nodes.min(self.nodes.len() / 2) {
                    self.lose(self.pick(dice), &mut tasks);
                }
                self.tracker.set_agents(self.nodes.len() - lock(&self.lost).len());
            }
            self.replace_one(dice, turn, &mut rolling, &mut tasks);
        }
        while tasks.join_next().await.is_some() {}
    }

    /// One comes up, then another goes; forty of a deployment, then forty of the next.
    fn replace_one(self: &Arc<Self>, dice: &mut Dice, turn: usize, rolling: &mut usize, tasks: &mut JoinSet<()>) {
        if turn.is_multiple_of(40) {
            *rolling = dice.below(self.options.deployments.max(1));
        }
        let (cluster, on, deployment) = (self.clone(), self.pick(dice), *rolling);
        let old = self.take_one(deployment);
        tasks.spawn(async move {
            let outcome = cluster.start(deployment, on).await;
            cluster.note("start", outcome);
            if let Some((number, pod)) = old {
                let outcome = cluster.stop(number, pod).await;
                cluster.note("stop", outcome);
            }
        });
        while tasks.try_join_next().is_some() {}
    }

    /// A pod of the deployment, or else the oldest of all.
    fn take_one(&self, deployment: usize) -> Option<(usize, Pod)> {
        let mut pods = lock(&self.pods);
        let lost = lock(&self.lost);
        let alive = |pod: &Pod| !lost.contains(&pod.node);
        let of = pods.iter().find(|(_, pod)| pod.deployment == deployment && alive(pod));
        let number = *of.or_else(|| pods.iter().find(|(_, pod)| alive(pod)))?.0;
        pods.remove(&number).map(|pod| (number, pod))
    }

    /// All pods of deployments, one after the other until it is enough, wherever they run.
    fn scale_to_zero(self: &Arc<Self>, dice: &mut Dice, tasks: &mut JoinSet<()>) {
        let count = (self.options.pods as f64 * self.options.scale_to_zero / 100.0) as usize;
        let mut zeroed = dice.below(self.options.deployments.max(1));
        for _ in 0..count {
            if !lock(&self.pods).values().any(|pod| pod.deployment == zeroed) {
                zeroed = dice.below(self.options.deployments.max(1));
            }
            let Some((number, pod)) = self.take_one(zeroed) else { return };
            let cluster = self.clone();
            tasks.spawn(async move {
                let outcome = cluster.stop(number, pod).await;
                cluster.note("scale to zero", outcome);
            });
        }
    }

    /// The machine is off; its Node and its pods are deleted, and what they own is collected.
    fn lose(self: &Arc<Self>, index: usize, tasks: &mut JoinSet<()>) {
        self.nodes[index].lose();
        lock(&self.lost).push(index);
        let gone: Vec<Pod> = {
            let mut pods = lock(&self.pods);
            let numbers: Vec<usize> =
                pods.iter().filter(|(_, pod)| pod.node == index).map(|(number, _)| *number).collect();
            numbers.iter().filter_map(|number| pods.remove(number)).collect()
        };
        let cluster = self.clone();
        tasks.spawn(async move {
            let kubelet = cluster.kubelet(index);
            let node = format!("/api/v1/nodes/{}", node::name(index));
            let outcome = kubelet.delete(&node, &Preconditions::default()).await.map_err(Into::into);
            cluster.note("lose a node", outcome);
            for pod in gone {
                cluster.tracker.forget_all(&pod.addresses);
                let outcome = cluster.delete(&pod).await;
                cluster.note("lose a pod", outcome);
                if cluster.mode != Propagation::CesNode {
                    // The garbage collector's part: the object's owner is gone.
                    let path = format!("/apis/cilium.io/v2/namespaces/{}/ciliumendpoints/{}", pod.namespace, pod.name);
                    let outcome = kubelet.delete(&path, &Preconditions::default()).await.map_err(Into::into);
                    cluster.note("collect an endpoint", outcome);
                }
            }
        });
    }
}

/// Nodes, namespaces and policies, before any agent runs.
///
/// # Errors
/// The API server refuses.
pub async fn set_up(options: &Run, client: &Client) -> anyhow::Result<()> {
    for namespace in ["kube-system".to_owned()].into_iter().chain((0..options.namespaces).map(|n| format!("ns-{n}"))) {
        let made = client.create::<IgnoredAny>("/api/v1/namespaces", &json!({"metadata": {"name": namespace}})).await;
        if let Err(error) = made
            && !error.is_already_exists()
        {
            return Err(error.into());
        }
    }
    for index in 0..options.nodes {
        let cidrs = node::pod_cidrs(index);
        add_node(index, &json!({"podCIDR": cidrs[0], "podCIDRs": cidrs}), client).await?;
    }
    for deployment in 0..options.policies.min(options.deployments) {
        let namespace = format!("ns-{}", deployment % options.namespaces.max(1));
        let app = |n: usize| json!({"matchLabels": {"app": format!("app-{n}")}});
        let peer = (deployment + options.namespaces) % options.deployments.max(1);
        let object = json!({
            "metadata": {"name": format!("allow-{deployment}")},
            "spec": {"podSelector": app(deployment), "ingress": [{"from": [{"podSelector": app(peer)}], "ports": [{"port": 8080}]}]},
        });
        let path = format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies");
        client.create::<IgnoredAny>(&path, &object).await?;
    }
    Ok(())
}

/// A Node joins, of that `spec`.
///
/// # Errors
/// The API server refuses.
pub async fn add_node(index: usize, spec: &Value, client: &Client) -> anyhow::Result<()> {
    let object = json!({"metadata": {"name": node::name(index)}, "spec": spec});
    client.create::<IgnoredAny>("/api/v1/nodes", &object).await?;
    let addresses = node::addresses(index).map(|address| json!({"type": "InternalIP", "address": address}));
    let status = json!({"status": {"addresses": addresses}});
    let path = format!("/api/v1/nodes/{}/status", node::name(index));
    client.patch::<IgnoredAny>(&path, PatchKind::Merge, &status).await?;
    Ok(())
}
