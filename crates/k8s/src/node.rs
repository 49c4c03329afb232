//! Nodes: what the agent says of its own node, and the pod CIDRs that the operator gives.
//!
//! The truth about a node is its Node object: `status.addresses` (InternalIP, the first of each family) and
//! `spec.podCIDRs`. The CiliumNode of the same name repeats it for tools that know that kind; nothing of ours reads it.

use crate::client::{Client, PatchKind, Preconditions, segment};
use crate::convert;
use crate::endpoint::{PROPAGATION, Propagation};
use crate::error::Error;
use crate::wire::{
    CILIUM_V2, CiliumNode, CiliumNodeAddress, CiliumNodeIpam, CiliumNodeSpec, Metadata, Named, OwnerReference,
    WireNode, path,
};
use ipnet::IpNet;
use serde_json::{Value, json};
use std::net::IpAddr;
use weft_model::intent::Node;

/// Taint of a node whose network is not up; users set it on new nodes so that no pod comes too early.
pub const NOT_READY_TAINT: &str = "node.cilium.io/agent-not-ready";
/// How often a conditional write is tried anew when somebody else wrote first.
const CONFLICTS_MAX: usize = 8;

/// What an agent announces of its node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Announcement {
    pub name: String,
    pub addresses: Vec<IpAddr>,
    pub pod_cidrs: Vec<IpNet>,
    pub propagation: Propagation,
    pub boot_id: Option<String>,
}

/// A node, as the API server has it now.
pub async fn get(client: &Client, name: &str) -> Result<Option<Node>, Error> {
    let path = node_path(name)?;
    let Some(node) = client.find::<WireNode>(&path).await? else { return Ok(None) };
    let unusable =
        |problem: convert::Problem| Error::Manifest { what: format!("Node {name}"), problem: problem.to_string() };
    convert::node(&node).map(Some).map_err(unusable)
}

/// Writes the CiliumNode, which then goes away with its Node.
pub async fn announce(client: &Client, announcement: &Announcement) -> Result<(), Error> {
    let node: WireNode = client.get(&node_path(&announcement.name)?).await?;
    let wanted = cilium_node(announcement, node.metadata);
    let object_path = format!("{}/{}", path::CILIUM_NODES, announcement.name);
    match client.find::<CiliumNode>(&object_path).await? {
        Some(found)
            if found.spec == wanted.spec
                && found.metadata.owner_references == wanted.metadata.owner_references
                && found.metadata.annotations.get(PROPAGATION) == wanted.metadata.annotations.get(PROPAGATION) =>
        {
            Ok(())
        }
        // A patch of what is ours: other fields of the kind belong to others.
        Some(_) => {
            let patch = json!({
                "metadata": {
                    "labels": wanted.metadata.labels,
                    "annotations": wanted.metadata.annotations,
                    "ownerReferences": wanted.metadata.owner_references,
                },
                "spec": wanted.spec,
            });
            client.patch::<serde::de::IgnoredAny>(&object_path, PatchKind::Merge, &patch).await.map(|_| ())
        }
        None => client.create::<serde::de::IgnoredAny>(path::CILIUM_NODES, &wanted).await.map(|_| ()),
    }
}

fn cilium_node(announcement: &Announcement, node: Metadata) -> CiliumNode {
    let address = |ip: &IpAddr| CiliumNodeAddress { kind: "InternalIP".to_owned(), ip: ip.to_string() };
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: announcement.name.clone(),
        uid: node.uid,
    };
    CiliumNode {
        api_version: CILIUM_V2.to_owned(),
        kind: "CiliumNode".to_owned(),
        metadata: Metadata {
            name: announcement.name.clone(),
            labels: node.labels,
            annotations: [(PROPAGATION.to_owned(), announcement.propagation.as_str().to_owned())].into(),
            owner_references: vec![owner],
            ..Metadata::default()
        },
        spec: CiliumNodeSpec {
            addresses: announcement.addresses.iter().map(address).collect(),
            ipam: CiliumNodeIpam { pod_cidrs: announcement.pod_cidrs.iter().map(ToString::to_string).collect() },
            bootid: announcement.boot_id.clone(),
        },
    }
}

/// Tells the scheduler that the node's network is up: condition `NetworkUnavailable` is False, the taint
/// [`NOT_READY_TAINT`] is gone.
pub async fn set_network_ready(client: &Client, name: &str) -> Result<(), Error> {
    set_condition(client, name, "False", "WeftIsUp", "Weft is running on this node").await?;
    remove_taint(client, name).await
}

async fn set_condition(client: &Client, name: &str, status: &str, reason: &str, message: &str) -> Result<(), Error> {
    let path = node_path(name)?;
    let node: WireNode = client.get(&path).await?;
    let held = node.status.conditions.iter().find(|condition| condition.kind == "NetworkUnavailable");
    if held.is_some_and(|held| held.status == status && held.reason == reason) {
        return Ok(());
    }
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    // Strategic: conditions merge by type, so the kubelet's own stay.
    let patch = json!({"status": {"conditions": [{
        "type": "NetworkUnavailable",
        "status": status,
        "reason": reason,
        "message": message,
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }]}});
    let path = format!("{path}/status");
    client.patch::<serde::de::IgnoredAny>(&path, PatchKind::Strategic, &patch).await.map(|_| ())
}

async fn remove_taint(client: &Client, name: &str) -> Result<(), Error> {
    let path = node_path(name)?;
    let mut tries = 0;
    loop {
        let node: WireNode = client.get(&path).await?;
        let is_ours = |taint: &Value| taint["key"] == NOT_READY_TAINT;
        if !node.spec.taints.iter().any(is_ours) {
            return Ok(());
        }
        let rest: Vec<&Value> = node.spec.taints.iter().filter(|taint| !is_ours(taint)).collect();
        let patch = json!({
            "metadata": {"resourceVersion": node.metadata.resource_version},
            "spec": {"taints": rest},
        });
        match client.patch::<serde::de::IgnoredAny>(&path, PatchKind::Merge, &patch).await {
            Err(error) if error.is_conflict() && tries < CONFLICTS_MAX => tries += 1,
            other => return other.map(|_| ()),
        }
    }
}

/// Gives a node its pod CIDRs, if it is still as it was read.
pub async fn assign_pod_cidrs(
    client: &Client,
    name: &str,
    resource_version: &str,
    pod_cidrs: &[IpNet],
) -> Result<(), Error> {
    let texts: Vec<String> = pod_cidrs.iter().map(ToString::to_string).collect();
    let patch = json!({
        "metadata": {"resourceVersion": resource_version},
        "spec": {"podCIDR": texts.first(), "podCIDRs": texts},
    });
    client.patch::<serde::de::IgnoredAny>(&node_path(name)?, PatchKind::Merge, &patch).await.map(|_| ())
}

/// Whether a Node of that name exists.
pub async fn exists(client: &Client, name: &str) -> Result<bool, Error> {
    Ok(client.find::<Named>(&node_path(name)?).await?.is_some())
}

pub async fn list_cilium_nodes(client: &Client) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    crate::list::each(client, path::CILIUM_NODES, 500, &[], |object: Named| names.push(object.metadata.name)).await?;
    Ok(names)
}

pub async fn delete_cilium_node(client: &Client, name: &str) -> Result<(), Error> {
    let path = format!("{}/{}", path::CILIUM_NODES, segment("node", name)?);
    client.delete(&path, &Preconditions::default()).await
}

fn node_path(name: &str) -> Result<String, Error> {
    Ok(format!("{}/{}", path::NODES, segment("node", name)?))
}

/// A Node as the operator's address management sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assigned {
    pub uid: String,
    pub resource_version: String,
    pub pod_cidrs: Vec<String>,
}

/// A Node's pod CIDRs as the API server has them now.
pub async fn read(client: &Client, name: &str) -> Result<Option<Assigned>, Error> {
    let node = client.find::<WireNode>(&node_path(name)?).await?;
    Ok(node.map(|node| {
        let mut pod_cidrs = node.spec.pod_cidrs;
        if pod_cidrs.is_empty() && !node.spec.pod_cidr.is_empty() {
            pod_cidrs.push(node.spec.pod_cidr);
        }
        Assigned { uid: node.metadata.uid, resource_version: node.metadata.resource_version, pod_cidrs }
    }))
}
