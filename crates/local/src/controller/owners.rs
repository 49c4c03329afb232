//! Objects whose owners are all gone go, too; and owners that wait for their dependents are let go.

use super::settled;
use crate::apiserver::api::{Api, DeleteOptions};
use crate::apiserver::error::ApiError;
use crate::apiserver::object::{is_terminating, items, name, namespace, set, uid};
use serde_json::{Value, json};
use std::collections::HashSet;

/// Finalizers of the API server's own deletions.
const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

pub(super) async fn collect(api: &Api) -> Result<(), ApiError> {
    let registry = api.registry();
    let resources: Vec<_> = registry.all().cloned().collect();
    let mut all = Vec::new();
    for resource in &resources {
        let found = api.store().list(&resource.group_resource(), "").objects;
        all.extend(found.into_iter().map(|object| (resource.clone(), object)));
    }
    let present: HashSet<&str> = all.iter().map(|(_, o)| uid(&o.value)).collect();
    let waits = |object: &Value, finalizer: &str| {
        is_terminating(object) && items(object, &["metadata", "finalizers"]).iter().any(|f| f == finalizer)
    };
    let foreground: HashSet<&str> =
        all.iter().filter(|(_, o)| waits(&o.value, FOREGROUND)).map(|(_, o)| uid(&o.value)).collect();
    let orphaning: HashSet<&str> =
        all.iter().filter(|(_, o)| waits(&o.value, ORPHAN)).map(|(_, o)| uid(&o.value)).collect();
    let mut owners_in_use: HashSet<&str> = HashSet::new();
    for (resource, object) in &all {
        let object = &object.value;
        let owners = items(object, &["metadata", "ownerReferences"]);
        let owner_uids = || owners.iter().filter_map(|o| o["uid"].as_str());
        owners_in_use.extend(owner_uids());
        let key = (namespace(object), name(object));
        if owner_uids().any(|owner| orphaning.contains(owner)) {
            let left: Vec<Value> =
                owners.iter().filter(|o| o["uid"].as_str().is_none_or(|u| !orphaning.contains(u))).cloned().collect();
            let release = |old: &Value| {
                let mut new = old.clone();
                set(&mut new, &["metadata"], "ownerReferences", json!(left));
                Some(new)
            };
            settled(api.edit(resource, key, "", release).await)?;
        } else if !owners.is_empty()
            && !is_terminating(object)
            && owner_uids().all(|owner| !present.contains(owner) || foreground.contains(owner))
        {
            let options = DeleteOptions { uid: uid(object).to_owned(), ..DeleteOptions::default() };
            settled(api.delete(resource, key, &options).await.map(drop))?;
        }
    }
    for (resource, object) in &all {
        let own = uid(&object.value);
        if (foreground.contains(own) || orphaning.contains(own)) && !owners_in_use.contains(own) {
            let release = |old: &Value| {
                let mut new = old.clone();
                let mut left = items(old, &["metadata", "finalizers"]).to_vec();
                left.retain(|f| f != FOREGROUND && f != ORPHAN);
                set(&mut new, &["metadata"], "finalizers", json!(left));
                Some(new)
            };
            settled(api.edit(resource, (namespace(&object.value), name(&object.value)), "", release).await)?;
        }
    }
    Ok(())
}
