//! Deployments: a ReplicaSet for each template, and the way from the old ones to the new one.

mod rollout;

use super::condition::{is_controlled_by, reference};
use super::{event, unless_lost};
use crate::api::{Api, DeleteOptions, WriteOptions};
use crate::error::ApiError;
use crate::object::{is_terminating, name, namespace, number, set, set_condition, text, uid};
use crate::resource::Resource;
use crate::store::Stored;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::sync::Arc;

const REVISION: &str = "deployment.kubernetes.io/revision";
const HASH: &str = "pod-template-hash";
const COMPONENT: &str = "deployment-controller";

pub(super) async fn pass(api: &Api) -> Result<(), ApiError> {
    let (deployments, sets) = (api.builtin("apps", "deployments"), api.builtin("apps", "replicasets"));
    let all_sets = api.store().list("replicasets.apps", "").objects;
    for deployment in api.store().list("deployments.apps", "").objects {
        if is_terminating(&deployment.value) {
            continue;
        }
        let own = all_sets.iter().filter(|s| is_controlled_by(&s.value, &deployment.value)).cloned().collect();
        reconcile(api, (&deployments, &sets), &deployment.value, own).await?;
    }
    Ok(())
}

/// Number wanted of a set.
fn wanted(object: &Value) -> i64 {
    number(object, &["spec", "replicas"]).unwrap_or(1)
}

fn status(object: &Value, field: &str) -> i64 {
    number(object, &["status", field]).unwrap_or(0)
}

fn revision(object: &Value) -> i64 {
    object["metadata"]["annotations"][REVISION].as_str().and_then(|r| r.parse().ok()).unwrap_or(0)
}

/// The template as the deployment has it.
fn template(set_object: &Value) -> Value {
    let mut template = set_object["spec"]["template"].clone();
    if let Some(labels) = template.get_mut("metadata").and_then(|m| m.get_mut("labels")).and_then(Value::as_object_mut)
    {
        labels.remove(HASH);
    }
    template
}

async fn reconcile(
    api: &Api,
    (deployments, sets): (&Resource, &Resource),
    deployment: &Value,
    own: Vec<Arc<Stored>>,
) -> Result<(), ApiError> {
    let place = namespace(deployment);
    let own: Vec<&Value> = own.iter().map(|s| &s.value).filter(|s| !is_terminating(s)).collect();
    let (new, old): (Vec<&Value>, Vec<&Value>) =
        own.iter().copied().partition(|s| template(s) == deployment["spec"]["template"]);
    let paused = deployment["spec"]["paused"] == Value::Bool(true);
    let last = own.iter().map(|s| revision(s)).max().unwrap_or(0);
    let Some(new) = new.first().copied() else {
        if paused {
            return report(api, deployments, deployment, None, &old).await;
        }
        return create(api, sets, deployment, last + 1, &old).await;
    };
    if revision(new) < last {
        // Back to an earlier template: it is the newest revision now.
        let edit = |object: &Value| Some(with_revision(object, last + 1));
        unless_lost(api.edit(sets, (place, name(new)), "", edit).await)?;
        return Ok(());
    }
    if revision(deployment) != revision(new) {
        let edit = |object: &Value| Some(with_revision(object, revision(new)));
        unless_lost(api.edit(deployments, (place, name(deployment)), "", edit).await)?;
    }
    let seconds = &deployment["spec"]["minReadySeconds"];
    if new["spec"]["minReadySeconds"] != *seconds {
        let edit = |object: &Value| {
            let mut object = object.clone();
            set(&mut object, &["spec"], "minReadySeconds", seconds.clone());
            Some(object)
        };
        unless_lost(api.edit(sets, (place, name(new)), "", edit).await)?;
    }
    for (set_object, replicas) in rollout::plan(deployment, new, &old) {
        if wanted(set_object) == replicas {
            continue;
        }
        scale(api, sets, deployment, set_object, replicas).await?;
    }
    if !paused {
        forget(api, sets, deployment, &old).await?;
    }
    report(api, deployments, deployment, Some(new), &old).await
}

fn with_revision(object: &Value, revision: i64) -> Value {
    let mut object = object.clone();
    set(&mut object, &["metadata", "annotations"], REVISION, revision.to_string());
    object
}

async fn scale(
    api: &Api,
    sets: &Resource,
    deployment: &Value,
    set_object: &Value,
    replicas: i64,
) -> Result<(), ApiError> {
    let (own, before) = (name(set_object), wanted(set_object));
    let edit = |object: &Value| {
        let mut object = object.clone();
        set(&mut object, &["spec"], "replicas", replicas);
        Some(object)
    };
    unless_lost(api.edit(sets, (namespace(deployment), own), "", edit).await)?;
    let way = if replicas > before { "up" } else { "down" };
    let message = format!("Scaled {way} replica set {own} from {before} to {replicas}");
    event::tell(api, deployment, false, "ScalingReplicaSet", &message, COMPONENT).await;
    Ok(())
}

async fn create(api: &Api, sets: &Resource, deployment: &Value, revision: i64, old: &[&Value]) -> Result<(), ApiError> {
    let place = namespace(deployment);
    let content = canonical(&deployment["spec"]["template"]).to_string();
    for salt in 0..10 {
        let hash = short_hash(&format!("{content}{salt}"));
        let replicas = rollout::first(deployment, old);
        let set_object = set_of(deployment, &hash, replicas, revision);
        match api.create(sets, "v1", place, set_object, WriteOptions::default()).await {
            // Another template has that name.
            Err(error) if error.code == 409 => {}
            Err(error) => return Err(error),
            Ok(made) => {
                let message = format!("Scaled up replica set {} from 0 to {replicas}", name(&made.object.value));
                event::tell(api, deployment, false, "ScalingReplicaSet", &message, COMPONENT).await;
                return Ok(());
            }
        }
    }
    Err(ApiError::internal("no name is free for a ReplicaSet"))
}

fn set_of(deployment: &Value, hash: &str, replicas: i64, revision: i64) -> Value {
    let mut template = deployment["spec"]["template"].clone();
    set(&mut template, &["metadata", "labels"], HASH, hash);
    let mut selector = deployment["spec"]["selector"].clone();
    set(&mut selector, &["matchLabels"], HASH, hash);
    let mut object = json!({
        "metadata": {
            "name": format!("{}-{hash}", name(deployment)), "namespace": namespace(deployment),
            "labels": template["metadata"]["labels"], "ownerReferences": reference(deployment),
        },
        "spec": {"replicas": replicas, "selector": selector, "template": template},
    });
    if let Some(seconds) = deployment["spec"].get("minReadySeconds") {
        object["spec"]["minReadySeconds"] = seconds.clone();
    }
    with_revision(&object, revision)
}

/// The same value with its fields in order.
fn canonical(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut fields: Vec<(&String, &Value)> = map.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            fields.into_iter().map(|(name, value)| (name.clone(), canonical(value))).collect::<Map<_, _>>().into()
        }
        Value::Array(list) => list.iter().map(canonical).collect(),
        other => other.clone(),
    }
}

fn short_hash(text: &str) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let digest = Sha256::digest(text);
    digest.iter().take(10).map(|b| char::from(ALPHABET[usize::from(*b) % ALPHABET.len()])).collect()
}

/// Old sets beyond the history that is to be kept.
async fn forget(api: &Api, sets: &Resource, deployment: &Value, old: &[&Value]) -> Result<(), ApiError> {
    let kept = usize::try_from(number(deployment, &["spec", "revisionHistoryLimit"]).unwrap_or(10)).unwrap_or(10);
    let mut done: Vec<&&Value> = old.iter().filter(|s| wanted(s) == 0 && status(s, "replicas") == 0).collect();
    done.sort_by_key(|s| revision(s));
    let excess = done.len().saturating_sub(kept);
    for set_object in done.into_iter().take(excess) {
        let options = DeleteOptions { uid: uid(set_object).to_owned(), ..DeleteOptions::default() };
        unless_lost(api.delete(sets, (namespace(deployment), name(set_object)), &options).await)?;
    }
    Ok(())
}

async fn report(
    api: &Api,
    deployments: &Resource,
    deployment: &Value,
    new: Option<&Value>,
    old: &[&Value],
) -> Result<(), ApiError> {
    let sum = |field: &str| new.iter().chain(old).map(|s| status(s, field)).sum::<i64>();
    let wanted = wanted(deployment);
    let (replicas, ready, available) = (sum("replicas"), sum("readyReplicas"), sum("availableReplicas"));
    let updated = new.map_or(0, |s| status(s, "replicas"));
    let enough = available >= wanted - rollout::limits(deployment).unavailable;
    let complete = updated == wanted && replicas == updated && available >= updated;
    let generation = deployment["metadata"]["generation"].clone();
    let set_name = new.map_or("", name).to_owned();
    let edit = move |object: &Value| {
        let mut object = object.clone();
        for (field, value) in [
            ("observedGeneration", generation.clone()),
            ("replicas", replicas.into()),
            ("updatedReplicas", updated.into()),
            ("readyReplicas", ready.into()),
            ("availableReplicas", available.into()),
            ("unavailableReplicas", (wanted - available).max(0).into()),
        ] {
            set(&mut object, &["status"], field, value);
        }
        let (state, reason, message) = if enough {
            ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
        } else {
            ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
        };
        set_condition(&mut object, "Available", state, reason, message);
        let (reason, verb) = if complete {
            ("NewReplicaSetAvailable", "has successfully progressed")
        } else {
            ("ReplicaSetUpdated", "is progressing")
        };
        let message = format!("ReplicaSet {set_name:?} {verb}.");
        set_condition(&mut object, "Progressing", "True", reason, &message);
        Some(object)
    };
    let mut after = deployment.clone();
    if let Some(changed) = edit(deployment) {
        after = changed;
    }
    if text(&after, &["metadata", "uid"]).is_empty() || after == *deployment {
        return Ok(());
    }
    unless_lost(api.edit(deployments, (namespace(deployment), name(deployment)), "status", edit).await)
}
