//! The node's object: registered, its condition kept true to the facts, its lease renewed.

use super::{Node, RETRY};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use weft_lab_client::ClientError;

/// What keeps pods away until the node is ready, as on every Kubernetes node.
const NOT_READY_TAINT: &str = "node.kubernetes.io/not-ready";
/// Kubernetes version whose kubelet this stands for.
const KUBELET_VERSION: &str = "v1.32.0";
const LEASE_SECONDS: u32 = 40;
/// How often the network is asked while it is not ready, and while it is.
const ASK_SOON: Duration = Duration::from_millis(100);
const ASK_LATER: Duration = Duration::from_secs(10);
/// A ready node stays so until the network said no this often in a row: an agent that restarts says no once.
const NO_MAX: u32 = 3;

/// Keeps the node registered, for ever.
pub(super) async fn keep(node: Arc<Node>) {
    while let Err(error) = register(&node).await {
        tracing::warn!(%error, "register the node");
        tokio::time::sleep(RETRY).await;
    }
    let lease = async {
        loop {
            if let Err(error) = renew(&node).await {
                tracing::warn!(%error, "renew the lease");
            }
            tokio::time::sleep(ASK_LATER).await;
        }
    };
    tokio::join!(lease, watch_network(&node));
}

async fn register(node: &Node) -> Result<(), ClientError> {
    let path = format!("/api/v1/nodes/{}", node.name);
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": node.name,
            "labels": {
                "kubernetes.io/hostname": node.name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": architecture(),
            },
        },
        "spec": {"taints": [{"key": NOT_READY_TAINT, "effect": "NoSchedule"}]},
    });
    if weft_lab_config::ipam::comes_with_node(node.config.ipam) {
        let prefixes: Vec<String> = node.config.node_prefixes(node.number).iter().map(ToString::to_string).collect();
        object["spec"]["podCIDR"] = json!(prefixes.first());
        object["spec"]["podCIDRs"] = json!(prefixes);
    }
    if let Some(zone) = node.config.zone(node.number) {
        object["metadata"]["labels"]["topology.kubernetes.io/zone"] = zone.into();
    }
    match node.client.create("/api/v1/nodes", &object).await {
        Ok(_) => {}
        Err(error) if error.code() == Some(409) => {}
        Err(error) => return Err(error),
    }
    let existing = node.client.get(&path).await?;
    let ready = conditions(&existing).iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
    let mut status = json!({
        "addresses": addresses(node),
        "capacity": capacity(node),
        "allocatable": capacity(node),
        "nodeInfo": info(),
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 0}},
    });
    if !ready {
        let list = with_condition(&existing, false, "KubeletNotReady", "the network was not asked yet");
        status["conditions"] = list;
    }
    node.client.merge(&format!("{path}/status"), &json!({"status": status})).await.map(drop)
}

const fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

fn addresses(node: &Node) -> Vec<Value> {
    let mut list: Vec<Value> = node
        .config
        .node_addresses(node.number)
        .iter()
        .map(|address| json!({"type": "InternalIP", "address": address.to_string()}))
        .collect();
    list.push(json!({"type": "Hostname", "address": node.name}));
    list
}

fn capacity(node: &Node) -> Value {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = std::fs::read_to_string("/proc/meminfo")
        .unwrap_or_default()
        .lines()
        .find_map(|l| l.strip_prefix("MemTotal:"))
        .and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .unwrap_or(1 << 20);
    json!({"cpu": cpus.to_string(), "memory": format!("{memory}Ki"), "pods": node.config.max_pods.to_string()})
}

fn info() -> Value {
    let kernel = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default();
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default().trim().to_owned();
    let os = read("/etc/os-release")
        .lines()
        .find_map(|l| l.strip_prefix("PRETTY_NAME=").map(|n| n.trim_matches('"').to_owned()))
        .unwrap_or_else(|| "Linux".to_owned());
    let version = env!("CARGO_PKG_VERSION");
    json!({
        "architecture": architecture(),
        "bootID": read("/proc/sys/kernel/random/boot_id"),
        "containerRuntimeVersion": format!("weft://{version}"),
        "kernelVersion": kernel,
        "kubeProxyVersion": "",
        "kubeletVersion": KUBELET_VERSION,
        "machineID": read("/etc/machine-id"),
        "operatingSystem": "linux",
        "osImage": os,
        "systemUUID": "",
    })
}

fn conditions(node: &Value) -> Vec<Value> {
    node["status"]["conditions"].as_array().cloned().unwrap_or_default()
}

/// The node's conditions with Ready (and the three about pressure) as given; others are somebody else's and stay.
fn with_condition(node: &Value, ready: bool, reason: &str, message: &str) -> Value {
    let now = format!("{:.0}", jiff::Timestamp::now());
    let mut list = conditions(node);
    let quiet = ["MemoryPressure", "DiskPressure", "PIDPressure"].map(|kind| (kind, false, "Sufficient", ""));
    for (kind, status, reason, message) in quiet.into_iter().chain([("Ready", ready, reason, message)]) {
        let status = if status { "True" } else { "False" };
        let old = list.iter().position(|c| c["type"] == kind).map(|at| list.remove(at));
        let since = old.filter(|c| c["status"] == status).map(|c| c["lastTransitionTime"].clone());
        list.push(json!({
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "lastHeartbeatTime": now,
            "lastTransitionTime": since.unwrap_or_else(|| json!(now)),
        }));
    }
    Value::Array(list)
}

/// The node is ready when the network says so, as a runtime asks it: by STATUS of the CNI executable.
async fn watch_network(node: &Node) {
    let network = node.network();
    let (mut ready, mut refusals, mut reported) = (false, 0, String::new());
    loop {
        match network.status().await {
            Ok(()) => {
                refusals = 0;
                if !ready || !reported.is_empty() {
                    let report = report(node, true, "KubeletReady", "pods can be run").await;
                    ready = settle(report);
                    reported.clear();
                }
            }
            Err(problem) => {
                refusals += 1;
                if (!ready || refusals >= NO_MAX) && reported != problem {
                    let message = format!("container runtime network not ready: {problem}");
                    if settle(report(node, false, "KubeletNotReady", &message).await) {
                        ready = false;
                        reported = problem;
                    }
                }
            }
        }
        let pause = if ready && refusals == 0 { ASK_LATER } else { ASK_SOON };
        tokio::time::sleep(pause).await;
    }
}

fn settle(result: Result<(), ClientError>) -> bool {
    result.inspect_err(|error| tracing::warn!(%error, "report the node's state")).is_ok()
}

async fn report(node: &Node, ready: bool, reason: &str, message: &str) -> Result<(), ClientError> {
    let path = format!("/api/v1/nodes/{}", node.name);
    let existing = match node.client.get(&path).await {
        Err(error) if error.code() == Some(404) => {
            register(node).await?;
            node.client.get(&path).await?
        }
        other => other?,
    };
    tracing::info!(ready, message, "the node");
    let patch = json!({
        "metadata": {"resourceVersion": existing["metadata"]["resourceVersion"]},
        "status": {"conditions": with_condition(&existing, ready, reason, message)},
    });
    let existing = node.client.merge(&format!("{path}/status"), &patch).await?;
    let taints = existing["spec"]["taints"].as_array().cloned().unwrap_or_default();
    let mut wanted: Vec<Value> = taints.iter().filter(|t| t["key"] != NOT_READY_TAINT).cloned().collect();
    if !ready {
        wanted.push(json!({"key": NOT_READY_TAINT, "effect": "NoSchedule"}));
    }
    if wanted != taints {
        let patch = json!({
            "metadata": {"resourceVersion": existing["metadata"]["resourceVersion"]},
            "spec": {"taints": wanted},
        });
        node.client.merge(&path, &patch).await?;
    }
    Ok(())
}

async fn renew(node: &Node) -> Result<(), ClientError> {
    const NAMESPACE: &str = "kube-node-lease";
    let collection = format!("/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases");
    let now = format!("{:.6}", jiff::Timestamp::now());
    let spec = json!({"holderIdentity": node.name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now});
    let path = format!("{collection}/{}", node.name);
    match node.client.merge(&path, &json!({"spec": spec})).await {
        Err(error) if error.code() == Some(404) => {}
        other => return other.map(drop),
    }
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": node.name, "namespace": NAMESPACE},
        "spec": spec,
    });
    match node.client.create(&collection, &lease).await {
        Err(error) if error.code() == Some(404) => {
            let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
            node.client.create("/api/v1/namespaces", &namespace).await?;
            node.client.create(&collection, &lease).await.map(drop)
        }
        other => other.map(drop),
    }
}
