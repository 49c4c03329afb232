//! ReplicaSets: as many pods as wanted.

use super::condition::{is_active, is_available, is_controlled_by, is_ready, reference};
use super::garbage::without_owner;
use super::{event, unless_lost};
use crate::api::{Api, DeleteOptions, WriteOptions};
use crate::error::ApiError;
use crate::object::{controller_of, is_terminating, name, namespace, number, set, text, uid};
use crate::resource::Resource;
use crate::selector::LabelSelector;
use crate::store::Stored;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Pods made or deleted for one set in one pass.
const BURST_MAX: usize = 500;

pub(super) async fn pass(api: &Api) -> Result<(), ApiError> {
    let (sets, pods) = (api.builtin("apps", "replicasets"), api.builtin("", "pods"));
    let all = api.store().list("replicasets.apps", "").objects;
    let mut by_owner: BTreeMap<String, Vec<Arc<Stored>>> = BTreeMap::new();
    for pod in api.store().list("pods", "").objects {
        if let Some(owner) = controller_of(&pod.value) {
            by_owner.entry(text(owner, &["uid"]).to_owned()).or_default().push(pod);
        }
    }
    for set in all {
        let own = by_owner.remove(uid(&set.value)).unwrap_or_default();
        reconcile(api, (&sets, &pods), &set.value, own).await?;
    }
    Ok(())
}

async fn reconcile(
    api: &Api,
    (sets, pods): (&Resource, &Resource),
    set_object: &Value,
    own: Vec<Arc<Stored>>,
) -> Result<(), ApiError> {
    let place = namespace(set_object);
    let selector = LabelSelector::from_object(&set_object["spec"]["selector"]);
    let mut active = Vec::new();
    for pod in own {
        if !is_controlled_by(&pod.value, set_object) {
            continue;
        }
        if !selector.matches(&pod.value) {
            // It was relabelled away: it lives on without owner.
            let edit = |old: &Value| without_owner(old, uid(set_object));
            unless_lost(api.edit(pods, (place, name(&pod.value)), "", edit).await)?;
        } else if is_active(&pod.value) {
            active.push(pod);
        }
    }
    let wanted = usize::try_from(number(set_object, &["spec", "replicas"]).unwrap_or(1)).unwrap_or(0);
    if !is_terminating(set_object) {
        if active.len() < wanted {
            let mut futures = Vec::new();
            for _ in 0..(wanted - active.len()).min(BURST_MAX) {
                futures.push(api.create(pods, "v1", place, pod_of(set_object), WriteOptions::default()));
            }
            // Together they share a commit to disk.
            for made in futures::future::join_all(futures).await {
                match made {
                    Ok(made) => {
                        let message = format!("Created pod: {}", name(&made.object.value));
                        event::tell(api, set_object, false, "SuccessfulCreate", &message, "replicaset-controller")
                            .await;
                        active.push(made.object);
                    }
                    Err(error) => {
                        let message = format!("Error creating: {}", error.message);
                        event::tell(api, set_object, true, "FailedCreate", &message, "replicaset-controller").await;
                        return Err(error);
                    }
                }
            }
        } else if active.len() > wanted {
            active.sort_by_key(|p| rank(&p.value));
            for pod in active.drain(..(active.len() - wanted).min(BURST_MAX)) {
                let options = DeleteOptions { uid: uid(&pod.value).to_owned(), ..DeleteOptions::default() };
                unless_lost(api.delete(pods, (place, name(&pod.value)), &options).await)?;
                let message = format!("Deleted pod: {}", name(&pod.value));
                event::tell(api, set_object, false, "SuccessfulDelete", &message, "replicaset-controller").await;
            }
        }
    }
    let seconds = number(set_object, &["spec", "minReadySeconds"]).unwrap_or(0);
    let ready = active.iter().filter(|p| is_ready(&p.value)).count();
    let available = active.iter().filter(|p| is_available(&p.value, seconds)).count();
    let status = json!({
        "replicas": active.len(), "fullyLabeledReplicas": active.len(), "readyReplicas": ready,
        "availableReplicas": available, "observedGeneration": set_object["metadata"]["generation"],
    });
    if set_object["status"] == status {
        return Ok(());
    }
    let edit = |old: &Value| {
        let mut new = old.clone();
        set(&mut new, &[], "status", status);
        Some(new)
    };
    unless_lost(api.edit(sets, (place, name(set_object)), "status", edit).await)
}

fn pod_of(set_object: &Value) -> Value {
    let template = &set_object["spec"]["template"];
    let mut metadata = json!({
        "generateName": format!("{}-", name(set_object)), "namespace": namespace(set_object),
        "ownerReferences": reference(set_object),
    });
    for field in ["labels", "annotations", "finalizers"] {
        if let Some(value) = template["metadata"].get(field) {
            metadata[field] = value.clone();
        }
    }
    json!({"metadata": metadata, "spec": template["spec"]})
}

/// Which pods go first: without node, not ready, the youngest.
fn rank(pod: &Value) -> (bool, bool, std::cmp::Reverse<String>) {
    (
        !text(pod, &["spec", "nodeName"]).is_empty(),
        is_ready(pod),
        std::cmp::Reverse(text(pod, &["metadata", "creationTimestamp"]).to_owned()),
    )
}
