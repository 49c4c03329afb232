//! The scheduler: spreads pods over the nodes that can take them.
//!
//! It honours node selectors, required node affinity, taints and tolerations; pods of one owner go to different
//! nodes while that is possible. Requests of CPU and memory, and affinity between pods, are not weighed.

use super::{event, unless_lost};
use crate::api::Api;
use crate::error::ApiError;
use crate::object::{controller_of, is_terminating, is_true, items, name, namespace, set, set_condition, text};
use crate::selector::LabelSelector;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Gives a pod to a node, as `pods/binding` does.
///
/// # Errors
/// That the pod has a node, or there is no such pod.
pub async fn bind(api: &Api, (namespace, pod): (&str, &str), node: &str) -> Result<(), ApiError> {
    let pods = api.builtin("", "pods");
    let present = api.get(&pods, namespace, pod)?;
    let other = text(&present.value, &["spec", "nodeName"]);
    if !other.is_empty() {
        let why = format!("pod {pod} is already assigned to node {other:?}");
        return Err(ApiError::conflict("pods/binding", pod, why));
    }
    let edit = |old: &Value| {
        // Somebody else may have been faster.
        if !text(old, &["spec", "nodeName"]).is_empty() {
            return None;
        }
        let mut new = old.clone();
        set(&mut new, &["spec"], "nodeName", node);
        Some(new)
    };
    api.edit(&pods, (namespace, pod), "", edit).await?;
    let edit = |old: &Value| {
        let mut new = old.clone();
        set_condition(&mut new, "PodScheduled", "True", "", "").then_some(new)
    };
    unless_lost(api.edit(&pods, (namespace, pod), "status", edit).await)
}

pub(super) async fn pass(api: &Api) -> Result<(), ApiError> {
    let pods = api.store().list("pods", "").objects;
    let waiting = |pod: &Value| {
        text(pod, &["spec", "nodeName"]).is_empty()
            && !is_terminating(pod)
            && text(pod, &["spec", "schedulerName"]) == "default-scheduler"
    };
    if !pods.iter().any(|p| waiting(&p.value)) {
        return Ok(());
    }
    let nodes = api.store().list("nodes", "").objects;
    let mut load: BTreeMap<String, i64> = BTreeMap::new();
    let mut siblings: BTreeMap<(String, String), i64> = BTreeMap::new();
    for pod in pods.iter().map(|p| &p.value) {
        let node = text(pod, &["spec", "nodeName"]).to_owned();
        if !node.is_empty() && super::condition::is_active(pod) {
            *siblings.entry((owner(pod), node.clone())).or_default() += 1;
            *load.entry(node).or_default() += 1;
        }
    }
    let mut bound = Vec::new();
    for pod in pods.iter().map(|p| &p.value).filter(|p| waiting(p)) {
        let mut reasons: BTreeMap<&'static str, usize> = BTreeMap::new();
        let mut fitting = Vec::new();
        for node in nodes.iter().map(|n| &n.value) {
            match obstacle(pod, node) {
                None => fitting.push(name(node).to_owned()),
                Some(reason) => *reasons.entry(reason).or_default() += 1,
            }
        }
        let own = owner(pod);
        let place = fitting.into_iter().min_by_key(|node| {
            let near = siblings.get(&(own.clone(), node.clone())).copied().unwrap_or(0);
            (near, load.get(node).copied().unwrap_or(0), node.clone())
        });
        match place {
            Some(node) => {
                *siblings.entry((own, node.clone())).or_default() += 1;
                *load.entry(node.clone()).or_default() += 1;
                bound.push((pod, node));
            }
            None => refuse(api, pod, nodes.len(), &reasons).await?,
        }
    }
    // Together they share a commit to disk.
    let all = bound.iter().map(|(pod, node)| bind(api, (namespace(pod), name(pod)), node));
    for (done, (pod, node)) in futures::future::join_all(all).await.into_iter().zip(&bound) {
        unless_lost(done)?;
        let message = format!("Successfully assigned {}/{} to {node}", namespace(pod), name(pod));
        event::tell(api, pod, false, "Scheduled", &message, "default-scheduler").await;
    }
    Ok(())
}

/// Who made the pod.
fn owner(pod: &Value) -> String {
    controller_of(pod).map_or_else(String::new, |o| text(o, &["uid"]).to_owned())
}

async fn refuse(api: &Api, pod: &Value, nodes: usize, reasons: &BTreeMap<&str, usize>) -> Result<(), ApiError> {
    let list: Vec<String> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    let message = match list.as_slice() {
        [] => "no nodes available to schedule pods".to_owned(),
        list => format!("0/{nodes} nodes are available: {}.", list.join(", ")),
    };
    let edit = |old: &Value| {
        let mut new = old.clone();
        set_condition(&mut new, "PodScheduled", "False", "Unschedulable", &message).then_some(new)
    };
    // Once told, it is only told again when the reason is another.
    if edit(pod).is_none() {
        return Ok(());
    }
    let pods = api.builtin("", "pods");
    unless_lost(api.edit(&pods, (namespace(pod), name(pod)), "status", edit).await)?;
    event::tell(api, pod, true, "FailedScheduling", &message, "default-scheduler").await;
    Ok(())
}

/// Why a node cannot take a pod.
fn obstacle(pod: &Value, node: &Value) -> Option<&'static str> {
    if is_terminating(node) {
        return Some("node(s) were being deleted");
    }
    if !is_true(node, "Ready") {
        return Some("node(s) were not ready");
    }
    let tolerations = items(pod, &["spec", "tolerations"]);
    let unschedulable = json!({"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"});
    if node["spec"]["unschedulable"] == Value::Bool(true) && !tolerations.iter().any(|t| tolerates(t, &unschedulable)) {
        return Some("node(s) were unschedulable");
    }
    let hard = |taint: &&Value| matches!(text(taint, &["effect"]), "NoSchedule" | "NoExecute");
    for taint in items(node, &["spec", "taints"]).iter().filter(hard) {
        if !tolerations.iter().any(|t| tolerates(t, taint)) {
            return Some("node(s) had untolerated taint(s)");
        }
    }
    let fits = LabelSelector::from_map(&pod["spec"]["nodeSelector"]).matches(node)
        && affinity(&pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"], node);
    (!fits).then_some("node(s) didn't match Pod's node affinity/selector")
}

fn tolerates(toleration: &Value, taint: &Value) -> bool {
    let effect = text(toleration, &["effect"]);
    let key = text(toleration, &["key"]);
    (effect.is_empty() || effect == text(taint, &["effect"]))
        && (key.is_empty() || key == text(taint, &["key"]))
        && (text(toleration, &["operator"]) == "Exists" || text(toleration, &["value"]) == text(taint, &["value"]))
}

/// One of the terms must fit, if there are any.
fn affinity(required: &Value, node: &Value) -> bool {
    let terms = items(required, &["nodeSelectorTerms"]);
    required.is_null()
        || terms.iter().any(|term| {
            let named = items(term, &["matchFields"]).iter().all(|field| {
                let listed = items(field, &["values"]).iter().any(|v| v == name(node));
                listed == (text(field, &["operator"]) == "In")
            });
            let (plain, compared): (Vec<&Value>, Vec<&Value>) =
                items(term, &["matchExpressions"]).iter().partition(|e| !matches!(text(e, &["operator"]), "Gt" | "Lt"));
            let plain = LabelSelector::from_object(&json!({"matchExpressions": plain}));
            named && plain.matches(node) && compared.iter().all(|e| compare(e, node))
        })
}

fn compare(expression: &Value, node: &Value) -> bool {
    let found = crate::object::label(node, text(expression, &["key"])).and_then(|v| v.parse::<i64>().ok());
    let bound = items(expression, &["values"]).first().and_then(|v| v.as_str()?.parse::<i64>().ok());
    match (found, bound) {
        (Some(found), Some(bound)) if text(expression, &["operator"]) == "Gt" => found > bound,
        (Some(found), Some(bound)) => found < bound,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_that_cannot_take_a_pod_say_why() {
        let node = |spec: Value| {
            json!({"metadata": {"name": "n", "labels": {"zone": "a", "cores": "4"}}, "spec": spec,
                "status": {"conditions": [{"type": "Ready", "status": "True"}]}})
        };
        let pod = |spec: Value| json!({"spec": spec});
        let tainted = node(json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}));
        assert!(obstacle(&pod(json!({})), &node(json!({}))).is_none());
        assert!(obstacle(&pod(json!({})), &tainted).is_some());
        let tolerant =
            json!({"tolerations": [{"key": "k", "operator": "Equal", "value": "v", "effect": "NoSchedule"}]});
        assert!(obstacle(&pod(tolerant), &tainted).is_none());
        assert!(obstacle(&pod(json!({"tolerations": [{"operator": "Exists"}]})), &tainted).is_none());
        assert!(obstacle(&pod(json!({})), &node(json!({"unschedulable": true}))).is_some());
        assert!(obstacle(&pod(json!({"nodeSelector": {"zone": "b"}})), &node(json!({}))).is_some());
        assert!(obstacle(&pod(json!({"nodeSelector": {"zone": "a"}})), &node(json!({}))).is_none());
        let wants = |operator: &str, value: &str| {
            pod(json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "cores", "operator": operator, "values": [value]}]}]}}}}))
        };
        assert!(obstacle(&wants("Gt", "2"), &node(json!({}))).is_none());
        assert!(obstacle(&wants("Lt", "2"), &node(json!({}))).is_some());
        assert!(obstacle(&wants("NotIn", "4"), &node(json!({}))).is_some());
    }
}
