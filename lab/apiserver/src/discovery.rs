//! What there is: groups, versions, resources.

use super::request::Form;
use super::resource::{Registry, Resource};
use super::response::{self, Body};
use http::{HeaderValue, Response, StatusCode};
use serde_json::{Value, json};

/// Media type of the document that holds everything; clients go by it.
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// The version of Kubernetes whose API this is.
pub fn version() -> Value {
    json!({
        "major": "1", "minor": "32", "gitVersion": "v1.32.0", "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "2024-12-11T00:00:00Z", "goVersion": "rust", "compiler": "rustc",
        "platform": format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }),
    })
}

/// Answers a discovery path; `None` when the path is none.
pub fn answer(registry: &Registry, path: &str, form: Form) -> Option<Response<Body>> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let answer = match parts.as_slice() {
        [""] => json!({"paths": ["/api", "/apis", "/healthz", "/livez", "/openapi/v3", "/readyz", "/version"]}),
        ["api"] if form == Form::Aggregated => return Some(aggregated(registry, true)),
        ["apis"] if form == Form::Aggregated => return Some(aggregated(registry, false)),
        ["api"] => json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}),
        ["apis"] => {
            let groups: Vec<Value> =
                registry.groups().iter().filter(|(g, _)| !g.is_empty()).map(|(g, v)| group(g, v)).collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        }
        ["api", version] => resources(registry, "", version)?,
        ["apis", name] => {
            let groups = registry.groups();
            let mut found = group(name, groups.get(*name).filter(|_| !name.is_empty())?);
            found["kind"] = "APIGroup".into();
            found["apiVersion"] = "v1".into();
            found
        }
        ["apis", group, version] => resources(registry, group, version)?,
        _ => return None,
    };
    Some(response::json(StatusCode::OK, &answer))
}

fn group(name: &str, versions: &[String]) -> Value {
    let versions: Vec<Value> =
        versions.iter().map(|v| json!({"groupVersion": format!("{name}/{v}"), "version": v})).collect();
    json!({"name": name, "versions": versions, "preferredVersion": versions.first()})
}

fn subresources(resource: &Resource) -> Vec<(&'static str, Value, Vec<&'static str>)> {
    let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let own = kind(&resource.group, &resource.storage_version, &resource.kind);
    let mut found = Vec::new();
    if resource.has_status {
        found.push(("status", own.clone(), vec!["get", "patch", "update"]));
    }
    if resource.scale.is_some() {
        found.push(("scale", kind("autoscaling", "v1", "Scale"), vec!["get", "patch", "update"]));
    }
    if resource.group_resource() == "pods" {
        found.push(("binding", kind("", "v1", "Binding"), vec!["create"]));
        found.push(("eviction", kind("policy", "v1", "Eviction"), vec!["create"]));
        found.push(("log", own, vec!["get"]));
        found.push(("exec", kind("", "v1", "PodExecOptions"), vec!["create", "get"]));
        found.push(("attach", kind("", "v1", "PodAttachOptions"), vec!["create", "get"]));
    }
    found
}

fn resources(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    for resource in served(registry, group, version) {
        let mut entry = json!({
            "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
            "kind": resource.kind, "verbs": VERBS,
        });
        if !resource.short_names.is_empty() {
            entry["shortNames"] = json!(resource.short_names);
        }
        if !resource.categories.is_empty() {
            entry["categories"] = json!(resource.categories);
        }
        list.push(entry);
        for (name, kind, verbs) in subresources(resource) {
            let mut entry = json!({
                "name": format!("{}/{name}", resource.plural), "singularName": "",
                "namespaced": resource.namespaced, "kind": kind["kind"], "verbs": verbs,
            });
            if kind["group"] != resource.group.as_str() {
                entry["group"] = kind["group"].clone();
                entry["version"] = kind["version"].clone();
            }
            list.push(entry);
        }
    }
    if list.is_empty() {
        return None;
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    Some(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list}))
}

fn served<'a>(registry: &'a Registry, group: &'a str, version: &'a str) -> impl Iterator<Item = &'a Resource> {
    registry.all().map(AsRef::as_ref).filter(move |r| r.group == group && r.versions.iter().any(|v| v == version))
}

fn aggregated(registry: &Registry, core: bool) -> Response<Body> {
    let mut items = Vec::new();
    for (group, versions) in registry.groups() {
        if group.is_empty() != core {
            continue;
        }
        let versions: Vec<Value> = versions
            .iter()
            .map(|version| {
                let resources: Vec<Value> =
                    served(registry, &group, version).map(|r| aggregated_resource(r, version)).collect();
                json!({"version": version, "freshness": "Current", "resources": resources})
            })
            .collect();
        items.push(json!({"metadata": {"name": group, "creationTimestamp": null}, "versions": versions}));
    }
    let list = json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {},
        "items": items});
    let mut answer = response::json(StatusCode::OK, &list);
    answer.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static(AGGREGATED));
    answer
}

fn aggregated_resource(resource: &Resource, version: &str) -> Value {
    let subresources: Vec<Value> = subresources(resource)
        .into_iter()
        .map(|(name, kind, verbs)| json!({"subresource": name, "responseKind": kind, "verbs": verbs}))
        .collect();
    let mut entry = json!({
        "resource": resource.plural, "singularResource": resource.singular,
        "responseKind": {"group": resource.group, "version": version, "kind": resource.kind},
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" }, "verbs": VERBS,
    });
    if !resource.short_names.is_empty() {
        entry["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        entry["categories"] = json!(resource.categories);
    }
    if !subresources.is_empty() {
        entry["subresources"] = subresources.into();
    }
    entry
}
