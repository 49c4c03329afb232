//! Deployments make replica sets, replica sets make pods.

use super::{objects, settled};
use crate::apiserver::api::{Api, DeleteOptions, WriteOptions};
use crate::apiserver::error::ApiError;
use crate::apiserver::object::{controller_of, is_terminating, is_true, name, namespace, number, set, set_condition, uid};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Label that tells the pods of one template from those of another.
const HASH: &str = "pod-template-hash";

fn owned_by(object: &Value, owner: &Value) -> bool {
    controller_of(object).is_some_and(|o| o["uid"] == uid(owner))
}

fn owner_reference(kind: &str, owner: &Value) -> Value {
    json!([{
        "apiVersion": "apps/v1",
        "kind": kind,
        "name": name(owner),
        "uid": uid(owner),
        "controller": true,
        "blockOwnerDeletion": true,
    }])
}

fn replicas(object: &Value) -> i64 {
    number(object, &["spec", "replicas"]).unwrap_or(1).max(0)
}

fn hash(template: &Value) -> String {
    // Letters and digits that Kubernetes uses, too: no vowels, so no words.
    const DIGITS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let digest = Sha256::digest(template.to_string().as_bytes());
    digest.iter().take(10).map(|b| char::from(DIGITS[usize::from(*b) % DIGITS.len()])).collect()
}

/// Keeps one replica set per deployment at its size, and those of former templates at none.
pub(super) async fn deployments(api: &Api) -> Result<(), ApiError> {
    let sets = api.builtin("apps", "replicasets");
    for deployment in objects(api, "apps", "deployments", "") {
        let deployment = &deployment.value;
        if is_terminating(deployment) {
            continue;
        }
        let space = namespace(deployment);
        let template_hash = hash(&deployment["spec"]["template"]);
        let current = format!("{}-{template_hash}", name(deployment));
        let owned: Vec<_> =
            objects(api, "apps", "replicasets", space).into_iter().filter(|s| owned_by(&s.value, deployment)).collect();
        if !owned.iter().any(|s| name(&s.value) == current) {
            let set = replica_set(deployment, &current, &template_hash);
            settled(api.create(&sets, "v1", space, set, WriteOptions::default()).await.map(drop))?;
        }
        let ready = |set: &Value| number(set, &["status", "readyReplicas"]).unwrap_or(0);
        let done = owned.iter().any(|s| name(&s.value) == current && ready(&s.value) >= replicas(deployment));
        for set_object in &owned {
            // The old pods go once the new ones are ready.
            let is_current = name(&set_object.value) == current;
            let size = if is_current { replicas(deployment) } else { 0 };
            if replicas(&set_object.value) != size && (is_current || done) {
                let resize = |old: &Value| {
                    let mut new = old.clone();
                    set(&mut new, &["spec"], "replicas", size);
                    Some(new)
                };
                settled(api.edit(&sets, (space, name(&set_object.value)), "", resize).await)?;
            }
        }
        let sum = |field: &str| -> i64 { owned.iter().filter_map(|s| number(&s.value, &["status", field])).sum() };
        let updated = owned.iter().find(|s| name(&s.value) == current);
        let updated = updated.and_then(|s| number(&s.value, &["status", "replicas"])).unwrap_or(0);
        let available = sum("availableReplicas");
        let counts = [
            ("replicas", sum("replicas")),
            ("readyReplicas", sum("readyReplicas")),
            ("availableReplicas", available),
            ("updatedReplicas", updated),
            ("unavailableReplicas", (replicas(deployment) - available).max(0)),
        ];
        let enough = available >= replicas(deployment);
        let resource = api.builtin("apps", "deployments");
        settled(report(api, &resource, deployment, &counts, Some(enough)).await)?;
    }
    Ok(())
}

fn replica_set(deployment: &Value, name: &str, template_hash: &str) -> Value {
    let mut template = deployment["spec"]["template"].clone();
    template["metadata"]["labels"][HASH] = json!(template_hash);
    let mut selector = deployment["spec"]["selector"].clone();
    selector["matchLabels"][HASH] = json!(template_hash);
    json!({
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": name,
            "labels": template["metadata"]["labels"],
            "ownerReferences": owner_reference("Deployment", deployment),
        },
        "spec": {"replicas": replicas(deployment), "selector": selector, "template": template},
    })
}

/// Keeps as many pods as a replica set wants.
pub(super) async fn replica_sets(api: &Api) -> Result<(), ApiError> {
    let pods = api.builtin("", "pods");
    for set_object in objects(api, "apps", "replicasets", "") {
        let set_object = &set_object.value;
        if is_terminating(set_object) {
            continue;
        }
        let space = namespace(set_object);
        let finished = |pod: &Value| matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        let mut owned: Vec<_> = objects(api, "", "pods", space)
            .into_iter()
            .filter(|p| owned_by(&p.value, set_object) && !is_terminating(&p.value) && !finished(&p.value))
            .collect();
        let wanted = usize::try_from(replicas(set_object)).unwrap_or(0);
        for _ in owned.len()..wanted {
            let template = &set_object["spec"]["template"];
            let mut metadata = template["metadata"].clone();
            metadata["generateName"] = json!(format!("{}-", name(set_object)));
            metadata["ownerReferences"] = owner_reference("ReplicaSet", set_object);
            let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]});
            api.create(&pods, "v1", space, pod, WriteOptions::default()).await?;
        }
        // Those that are not ready go first, then the youngest.
        owned.sort_by_key(|p| (!is_true(&p.value, "Ready"), p.value["metadata"]["creationTimestamp"].to_string()));
        for pod in owned.iter().skip(wanted) {
            settled(api.delete(&pods, (space, name(&pod.value)), &DeleteOptions::default()).await.map(drop))?;
        }
        let ready = owned.iter().take(wanted).filter(|p| is_true(&p.value, "Ready")).count();
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let all = count(owned.len().min(wanted));
        let counts = [
            ("replicas", all),
            ("fullyLabeledReplicas", all),
            ("readyReplicas", count(ready)),
            ("availableReplicas", count(ready)),
        ];
        let resource = api.builtin("apps", "replicasets");
        settled(report(api, &resource, set_object, &counts, None).await)?;
    }
    Ok(())
}

/// Writes counts into a status where they differ.
async fn report(
    api: &Api,
    resource: &crate::apiserver::resource::Resource,
    object: &Value,
    counts: &[(&str, i64)],
    available: Option<bool>,
) -> Result<(), ApiError> {
    let change = |old: &Value| {
        let mut new = old.clone();
        for (field, count) in counts {
            if *count != 0 || number(old, &["status", field]).is_some() || *field == "replicas" {
                set(&mut new, &["status"], field, *count);
            }
        }
        if let Some(generation) = number(old, &["metadata", "generation"]) {
            set(&mut new, &["status"], "observedGeneration", generation);
        }
        if let Some(available) = available {
            let (status, reason) =
                if available { ("True", "MinimumReplicasAvailable") } else { ("False", "MinimumReplicasUnavailable") };
            set_condition(&mut new, "Available", status, reason, "");
            set_condition(&mut new, "Progressing", "True", "NewReplicaSetAvailable", "");
        }
        (new != *old).then_some(new)
    };
    api.edit(resource, (namespace(object), name(object)), "status", change).await
}
