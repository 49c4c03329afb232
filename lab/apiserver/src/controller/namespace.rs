//! The life of namespaces and of definitions: what they come with, and what goes with them.

use super::unless_lost;
use crate::api::{Api, DeleteOptions, WriteOptions};
use crate::error::ApiError;
use crate::object::{is_terminating, name, namespace};
use crate::store::Key;
use serde_json::json;

/// Namespaces that are always there.
const ALWAYS: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];
/// Holds a definition until its objects are gone.
const DEFINITION_FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

pub(super) async fn pass(api: &Api) -> Result<(), ApiError> {
    let namespaces = api.builtin("", "namespaces");
    for name in ALWAYS {
        if api.store().get(&Key::new("namespaces", "", name)).is_none() {
            let object = json!({"metadata": {"name": name}});
            unless_lost(api.create(&namespaces, "v1", "", object, WriteOptions::default()).await)?;
        }
    }
    let accounts = api.builtin("", "serviceaccounts");
    for found in api.store().list("namespaces", "").objects {
        let own = name(&found.value);
        if is_terminating(&found.value) {
            if empty(api, own).await? {
                unless_lost(api.release(&namespaces, ("", own), "kubernetes").await)?;
            }
        } else if api.store().get(&Key::new("serviceaccounts", own, "default")).is_none() {
            let account = json!({"metadata": {"name": "default", "namespace": own}});
            unless_lost(api.create(&accounts, "v1", own, account, WriteOptions::default()).await)?;
        }
    }
    definitions(api).await
}

/// Deletes what is in a namespace. Whether nothing is left.
async fn empty(api: &Api, own: &str) -> Result<bool, ApiError> {
    let mut left = 0;
    for resource in api.registry().all().filter(|r| r.namespaced) {
        for object in api.store().list(&resource.group_resource(), own).objects {
            if !is_terminating(&object.value) {
                unless_lost(api.delete(resource, (own, name(&object.value)), &DeleteOptions::default()).await)?;
            }
        }
        left += api.store().list(&resource.group_resource(), own).objects.len();
    }
    Ok(left == 0)
}

/// A definition goes when its objects are gone.
async fn definitions(api: &Api) -> Result<(), ApiError> {
    let definitions = api.builtin("apiextensions.k8s.io", "customresourcedefinitions");
    for definition in api.store().list(&definitions.group_resource(), "").objects {
        if !is_terminating(&definition.value) {
            continue;
        }
        let own = name(&definition.value);
        let registry = api.registry();
        let resource = registry.all().find(|r| r.custom.is_some() && r.group_resource() == own);
        let mut left = 0;
        if let Some(resource) = resource {
            for object in api.store().list(own, "").objects {
                if !is_terminating(&object.value) {
                    let key = (namespace(&object.value), name(&object.value));
                    unless_lost(api.delete(resource, key, &DeleteOptions::default()).await)?;
                }
            }
            left = api.store().list(own, "").objects.len();
        }
        if left == 0 {
            unless_lost(api.release(&definitions, ("", own), DEFINITION_FINALIZER).await)?;
        }
    }
    Ok(())
}
