//! The life of nodes: one that stops renewing its lease is not Ready, and its pods are not either.

use super::{event, unless_lost};
use crate::api::{Api, DeleteOptions};
use crate::error::ApiError;
use crate::object::{
    condition, is_terminating, is_true, items, map_mut, name, namespace, set_condition, text, time, uid,
};
use crate::store::Key;
use serde_json::{Value, json};

/// A node that is silent for longer is unreachable, in seconds.
const GRACE_S: i64 = 40;
/// Pods of a node that has been so for longer are deleted, in seconds.
const EVICTION_S: i64 = 300;

const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const NOT_READY: &str = "node.kubernetes.io/not-ready";

pub(super) async fn pass(api: &Api) -> Result<(), ApiError> {
    let nodes = api.builtin("", "nodes");
    let now = jiff::Timestamp::now().as_second();
    for node in api.store().list("nodes", "").objects {
        let node = &node.value;
        let own = name(node);
        let lease = api.store().get(&Key::new("leases.coordination.k8s.io", "kube-node-lease", own));
        let signs = [
            lease.as_ref().and_then(|l| time(&l.value, &["spec", "renewTime"])),
            condition(node, "Ready").and_then(|c| time(c, &["lastHeartbeatTime"])),
            time(node, &["metadata", "creationTimestamp"]),
        ];
        let last = signs.iter().flatten().map(|t| t.as_second()).max().unwrap_or(0);
        let silent = now - last > GRACE_S;
        let known = condition(node, "Ready").is_some_and(|c| text(c, &["status"]) == "Unknown");
        if silent && !known {
            let edit = |old: &Value| {
                let mut new = old.clone();
                let message = "Kubelet stopped posting node status.";
                set_condition(&mut new, "Ready", "Unknown", "NodeStatusUnknown", message).then_some(new)
            };
            unless_lost(api.edit(&nodes, ("", own), "status", edit).await)?;
            event::tell(api, node, true, "NodeNotReady", "the node does not renew its lease", "node-controller").await;
        }
        let ready = is_true(node, "Ready");
        let unreachable = silent || known;
        unless_lost(api.edit(&nodes, ("", own), "", |old| retaint(old, ready, unreachable)).await)?;
        if unreachable {
            desert(api, own, now - last > GRACE_S + EVICTION_S).await?;
        }
    }
    lost_pods(api).await
}

/// The taints that follow from a node's state; `None` when they are so.
fn retaint(node: &Value, ready: bool, unreachable: bool) -> Option<Value> {
    let wanted = match (ready, unreachable) {
        (_, true) => Some(UNREACHABLE),
        (false, false) => Some(NOT_READY),
        (true, false) => None,
    };
    let before = items(node, &["spec", "taints"]);
    let ours = |taint: &Value| matches!(text(taint, &["key"]), UNREACHABLE | NOT_READY);
    let mut after: Vec<Value> = before
        .iter()
        .filter(|t| !ours(t) || (Some(text(t, &["key"])) == wanted && text(t, &["effect"]) == "NoSchedule"))
        .cloned()
        .collect();
    if let Some(key) = wanted
        && !after.iter().any(|t| text(t, &["key"]) == key)
    {
        after.push(json!({"key": key, "effect": "NoSchedule"}));
    }
    if after == before {
        return None;
    }
    let mut node = node.clone();
    let spec = map_mut(&mut node, &["spec"]);
    if after.is_empty() {
        spec.remove("taints");
    } else {
        spec.insert("taints".to_owned(), after.into());
    }
    Some(node)
}

/// Pods of an unreachable node take no traffic, and after long are given up.
async fn desert(api: &Api, node: &str, evict: bool) -> Result<(), ApiError> {
    let pods = api.builtin("", "pods");
    for pod in api.store().list("pods", "").objects {
        let pod = &pod.value;
        if text(pod, &["spec", "nodeName"]) != node {
            continue;
        }
        let key = (namespace(pod), name(pod));
        if is_true(pod, "Ready") {
            let edit = |old: &Value| {
                let mut new = old.clone();
                set_condition(&mut new, "Ready", "False", "NodeNotReady", "").then_some(new)
            };
            unless_lost(api.edit(&pods, key, "status", edit).await)?;
        }
        if evict && !is_terminating(pod) {
            unless_lost(api.delete(&pods, key, &DeleteOptions::default()).await)?;
        }
    }
    Ok(())
}

/// Nobody confirms the end of pods whose node is gone for good.
async fn lost_pods(api: &Api) -> Result<(), ApiError> {
    let pods = api.builtin("", "pods");
    for pod in api.store().list("pods", "").objects {
        let pod = &pod.value;
        let node = text(pod, &["spec", "nodeName"]);
        let young = time(pod, &["metadata", "creationTimestamp"])
            .is_none_or(|t| jiff::Timestamp::now().as_second() - t.as_second() < GRACE_S);
        if node.is_empty() || young || api.store().get(&Key::new("nodes", "", node)).is_some() {
            continue;
        }
        let options = DeleteOptions { grace_s: Some(0), uid: uid(pod).to_owned(), ..DeleteOptions::default() };
        unless_lost(api.delete(&pods, (namespace(pod), name(pod)), &options).await)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_follow_the_state_and_spare_those_of_others() {
        let other = json!({"key": "other", "effect": "NoSchedule"});
        let node = json!({"spec": {"taints": [other]}});
        let down = retaint(&node, false, false).unwrap();
        assert_eq!(items(&down, &["spec", "taints"]).len(), 2);
        assert!(retaint(&down, false, false).is_none());
        let silent = retaint(&down, false, true).unwrap();
        assert_eq!(text(&silent["spec"]["taints"][1], &["key"]), UNREACHABLE);
        assert_eq!(items(&retaint(&silent, true, false).unwrap(), &["spec", "taints"]), [other]);
    }
}
