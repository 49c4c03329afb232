//! What is particular to the built-in kinds: defaults that a schema cannot say, admission, and validation.

mod defaults;
mod meta;
mod pod;
mod policy;
mod service;
mod small;
mod workload;

use super::api::Settings;
use super::error::{ApiError, Cause};
use super::object::{map_mut, name, set};
use super::resource::Resource;
use super::store::Transaction;
use serde_json::{Value, json};

/// Group resource of the definitions of custom kinds.
pub const DEFINITIONS: &str = "customresourcedefinitions.apiextensions.k8s.io";
/// Holds a definition until its objects are gone.
pub const DEFINITION_FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Completes a new object, and takes away what its creator cannot say.
pub fn prepare_new(group_resource: &str, object: &mut Value) {
    match group_resource {
        "pods" => {
            let map = map_mut(object, &[]);
            map.insert("status".to_owned(), json!({"phase": "Pending", "qosClass": "BestEffort"}));
            defaults::pod_spec(map_mut(object, &["spec"]));
        }
        "services" => {
            set(object, &["status"], "loadBalancer", json!({}));
            service::complete(object);
        }
        "namespaces" => {
            set(object, &["spec"], "finalizers", json!(["kubernetes"]));
            set(object, &[], "status", json!({"phase": "Active"}));
            let own = name(object).to_owned();
            set(object, &["metadata", "labels"], "kubernetes.io/metadata.name", own);
        }
        "deployments.apps" | "replicasets.apps" => {
            set(object, &[], "status", json!({}));
            defaults::workload(group_resource, object);
        }
        DEFINITIONS => defaults::definition(object),
        "networkpolicies.networking.k8s.io" => defaults::network_policy(object),
        "secrets" => defaults::secret(object),
        _ => {}
    }
}

/// Completes a changed object.
pub fn prepare_changed(group_resource: &str, old: &Value, new: &mut Value) {
    match group_resource {
        "pods" => defaults::pod_spec(map_mut(new, &["spec"])),
        "namespaces" => {
            let finalizers = old["spec"]["finalizers"].clone();
            set(new, &["spec"], "finalizers", finalizers);
            let own = name(new).to_owned();
            set(new, &["metadata", "labels"], "kubernetes.io/metadata.name", own);
        }
        "deployments.apps" | "replicasets.apps" => defaults::workload(group_resource, new),
        DEFINITIONS => defaults::definition(new),
        "networkpolicies.networking.k8s.io" => defaults::network_policy(new),
        "secrets" => defaults::secret(new),
        "services" => {
            service::keep(old, new);
            service::complete(new);
        }
        _ => {}
    }
}

/// What needs a look at other objects, in the same step as the write.
///
/// # Errors
/// Why the object is refused.
pub fn admit(
    group_resource: &str,
    transaction: &mut Transaction<'_>,
    settings: &Settings,
    object: &mut Value,
    old: Option<&Value>,
) -> Result<(), ApiError> {
    match group_resource {
        "services" => service::allocate(transaction, settings, object, old),
        "pods" if old.is_none() => pod::admit(transaction, object),
        _ => Ok(()),
    }
}

/// Refuses the deletion of what the cluster cannot be without.
///
/// # Errors
/// That the object is such.
pub fn may_delete(group_resource: &str, object: &Value) -> Result<(), ApiError> {
    let name = name(object);
    if group_resource == "namespaces" && matches!(name, "default" | "kube-system") {
        return Err(ApiError::forbidden(format!(
            "namespaces {name:?} is forbidden: this namespace may not be deleted"
        )));
    }
    Ok(())
}

/// What is wrong with an object; `old` is what it replaces.
pub fn judge(resource: &Resource, object: &Value, old: Option<&Value>) -> Vec<Cause> {
    let group_resource = resource.group_resource();
    let mut causes = Vec::new();
    meta::judge(&group_resource, object, old, &mut causes);
    match group_resource.as_str() {
        "pods" => pod::judge(object, old, &mut causes),
        "services" => service::judge(object, old, &mut causes),
        "deployments.apps" | "replicasets.apps" => workload::judge(&group_resource, object, old, &mut causes),
        "networkpolicies.networking.k8s.io" => policy::judge(object, &mut causes),
        "endpointslices.discovery.k8s.io" => small::endpoint_slice(object, old, &mut causes),
        "configmaps" | "secrets" => small::data(object, old, &mut causes),
        "nodes" => small::node(object, old, &mut causes),
        "leases.coordination.k8s.io" => small::lease(object, &mut causes),
        "events" => small::event(object, &mut causes),
        DEFINITIONS => match super::crd::resource(object) {
            Ok(_) => small::definition(object, old, &mut causes),
            Err(wrong) => causes.extend(wrong),
        },
        _ => {}
    }
    causes
}
