//! Owners and what they own: dependents go when their last owner is gone, first or not at all, as asked.

use super::unless_lost;
use crate::api::{Api, DeleteOptions, FOREGROUND, ORPHAN};
use crate::error::ApiError;
use crate::object::{is_terminating, items, name, namespace, text, uid};
use crate::resource::Resource;
use crate::store::Stored;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// An object and its kind.
type Found = (Arc<Resource>, Arc<Stored>);

pub(super) async fn pass(api: &Api) -> Result<(), ApiError> {
    let registry = api.registry();
    // Dependents first: an owner that is there is older than they are, and is found afterwards.
    let mut dependents: Vec<Found> = Vec::new();
    for resource in registry.all() {
        for object in api.store().list(&resource.group_resource(), "").objects {
            if !items(&object.value, &["metadata", "ownerReferences"]).is_empty() {
                dependents.push((resource.clone(), object));
            }
        }
    }
    let mut present = BTreeSet::new();
    let mut leaving: Vec<Found> = Vec::new();
    for resource in registry.all() {
        for object in api.store().list(&resource.group_resource(), "").objects {
            present.insert(uid(&object.value).to_owned());
            let finalizers = items(&object.value, &["metadata", "finalizers"]);
            if is_terminating(&object.value) && finalizers.iter().any(|f| f == FOREGROUND || f == ORPHAN) {
                leaving.push((resource.clone(), object));
            }
        }
    }
    let mut owned: BTreeMap<&str, Vec<&Found>> = BTreeMap::new();
    for dependent in &dependents {
        let owners = items(&dependent.1.value, &["metadata", "ownerReferences"]);
        for owner in owners {
            owned.entry(text(owner, &["uid"])).or_default().push(dependent);
        }
        let gone = |owner: &Value| {
            // Of a kind that is not served nothing is known.
            registry.of_kind(text(owner, &["apiVersion"]), text(owner, &["kind"])).is_some()
                && !present.contains(text(owner, &["uid"]))
        };
        if owners.iter().all(gone) && !is_terminating(&dependent.1.value) {
            remove(api, dependent).await?;
        }
    }
    for (resource, object) in &leaving {
        let key = (namespace(&object.value), name(&object.value));
        let held_by = |f: &str| items(&object.value, &["metadata", "finalizers"]).iter().any(|h| h == f);
        let own = owned.get(uid(&object.value)).map_or(&[][..], Vec::as_slice);
        if held_by(ORPHAN) {
            for (dependent, found) in own {
                let edit = |old: &Value| without_owner(old, uid(&object.value));
                let place = (namespace(&found.value), name(&found.value));
                unless_lost(api.edit(dependent, place, "", edit).await)?;
            }
            unless_lost(api.release(resource, key, ORPHAN).await)?;
        } else if own.is_empty() {
            unless_lost(api.release(resource, key, FOREGROUND).await)?;
        } else {
            for dependent in own.iter().filter(|d| !is_terminating(&d.1.value)) {
                remove(api, dependent).await?;
            }
        }
    }
    Ok(())
}

async fn remove(api: &Api, (resource, object): &Found) -> Result<(), ApiError> {
    let options = DeleteOptions { uid: uid(&object.value).to_owned(), ..DeleteOptions::default() };
    unless_lost(api.delete(resource, (namespace(&object.value), name(&object.value)), &options).await)
}

/// The object without that owner.
pub(super) fn without_owner(object: &Value, owner: &str) -> Option<Value> {
    let mut object = object.clone();
    let owners = object.get_mut("metadata")?.get_mut("ownerReferences")?.as_array_mut()?;
    owners.retain(|o| text(o, &["uid"]) != owner);
    Some(object)
}
