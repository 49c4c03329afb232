//! OpenAPI v3: an index, and one document per group and version.
//!
//! kubectl takes three things from it: whether the server validates fields and does dry runs (the parameters of the
//! operations), the merge keys of lists, and what `kubectl explain` says.

use super::error::ApiError;
use super::resource::{Registry, Resource};
use super::response::{self, Body};
use super::types;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// Answers a path below `/openapi/`.
///
/// # Errors
/// That there is no such document.
pub fn answer(registry: &Registry, path: &str, headers: &HeaderMap) -> Result<Response<Body>, ApiError> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').skip(1).collect();
    let (group, version) = match parts.as_slice() {
        ["v3"] => return Ok(response::json(StatusCode::OK, &index(registry))),
        ["v3", "api", version] => ("", *version),
        ["v3", "apis", group, version] => (*group, *version),
        // Clients of version 2 want another encoding; all clients since Kubernetes 1.27 prefer version 3.
        _ => return Err(ApiError::no_such_path()),
    };
    let document = document(registry, group, version).ok_or_else(ApiError::no_such_path)?;
    let text = document.to_string();
    let tag = format!("\"{}\"", hash(&text));
    if headers.get(http::header::IF_NONE_MATCH).is_some_and(|t| t.as_bytes() == tag.as_bytes()) {
        return Ok(response::bytes(StatusCode::NOT_MODIFIED, "application/json", ""));
    }
    let mut answer = response::bytes(StatusCode::OK, "application/json", text);
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        answer.headers_mut().insert(http::header::ETAG, tag);
    }
    Ok(answer)
}

fn hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(16).map(|b| format!("{b:02X}")).collect()
}

fn index(registry: &Registry) -> Value {
    let mut paths = Map::new();
    for (group, versions) in registry.groups() {
        for version in versions {
            let path = if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
            // Clients keep a document for as long as its hash stays.
            let Some(document) = document(registry, &group, &version) else { continue };
            let hash = hash(&document.to_string());
            paths.insert(path.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")}));
        }
    }
    json!({"paths": paths})
}

fn document(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let resources: Vec<&Resource> = registry
        .all()
        .map(AsRef::as_ref)
        .filter(|r| r.group == group && r.versions.iter().any(|v| v == version))
        .collect();
    if resources.is_empty() {
        return None;
    }
    let types = types::builtin();
    let mut roots = vec!["ObjectMeta", "DeleteOptions", "Status"];
    roots.extend(resources.iter().filter(|r| r.custom.is_none()).map(|r| r.kind.as_str()));
    let mut schemas = types.closure(&roots);
    let mut paths = Map::new();
    for resource in resources {
        let name = schema_name(resource, version);
        let gvk = json!([{"group": group, "version": version, "kind": resource.kind}]);
        let mut schema = match &resource.custom {
            None => types.schema(&resource.kind).cloned().unwrap_or_else(|| json!({"type": "object"})),
            Some(custom) => custom_schema(custom.schema(version)),
        };
        schema["x-kubernetes-group-version-kind"] = gvk.clone();
        schemas.insert(name.clone(), schema);
        operations(resource, version, &name, &mut paths);
    }
    Some(json!({
        "openapi": "3.0.0", "info": {"title": "Weft", "version": "v1.32.0"},
        "paths": paths, "components": {"schemas": schemas},
    }))
}

fn schema_name(resource: &Resource, version: &str) -> String {
    if resource.custom.is_none()
        && let Some(name) = types::builtin().full_name(&resource.kind)
    {
        return name.to_owned();
    }
    let reversed: Vec<&str> = resource.group.rsplit('.').collect();
    format!("{}.{version}.{}", reversed.join("."), resource.kind)
}

fn custom_schema(schema: Option<&Value>) -> Value {
    let mut schema = schema.cloned().unwrap_or_else(|| json!({"type": "object"}));
    let metadata = types::builtin().full_name("ObjectMeta").unwrap_or_default();
    let properties = super::object::map_mut(&mut schema, &["properties"]);
    properties.insert("apiVersion".to_owned(), json!({"type": "string", "description": "Group and version."}));
    properties.insert("kind".to_owned(), json!({"type": "string", "description": "Kind."}));
    let reference = json!({"$ref": format!("#/components/schemas/{metadata}")});
    properties
        .insert("metadata".to_owned(), json!({"description": "Name, labels and the like.", "allOf": [reference]}));
    schema
}

fn operations(resource: &Resource, version: &str, schema: &str, paths: &mut Map<String, Value>) {
    let base = match (resource.group.as_str(), resource.namespaced) {
        ("", true) => format!("/api/{version}/namespaces/{{namespace}}/{}", resource.plural),
        ("", false) => format!("/api/{version}/{}", resource.plural),
        (group, true) => format!("/apis/{group}/{version}/namespaces/{{namespace}}/{}", resource.plural),
        (group, false) => format!("/apis/{group}/{version}/{}", resource.plural),
    };
    let gvk = json!({"group": resource.group, "version": version, "kind": resource.kind});
    let query = |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}});
    let content = json!({"application/json": {"schema": {"$ref": format!("#/components/schemas/{schema}")}}});
    let operation = |action: &str, parameters: Vec<Value>, body: Option<Value>| {
        let mut operation = json!({
            "x-kubernetes-action": action, "x-kubernetes-group-version-kind": gvk, "parameters": parameters,
            "responses": {"200": {"description": "OK", "content": content}},
        });
        if let Some(body) = body {
            operation["requestBody"] = json!({"content": body, "required": true});
        }
        operation
    };
    let write = || vec![query("dryRun"), query("fieldValidation"), query("fieldManager")];
    let any = json!({"schema": {"type": "object"}});
    let mut patches = json!({"application/json-patch+json": any, "application/merge-patch+json": any});
    if resource.custom.is_none() {
        patches["application/strategic-merge-patch+json"] = any;
    }
    paths.insert(
        base.clone(),
        json!({
            "get": operation("list", vec![query("labelSelector"), query("fieldSelector"), query("limit"), query("continue")], None),
            "post": operation("post", write(), Some(content.clone())),
            "delete": operation("deletecollection", vec![query("dryRun"), query("labelSelector")], None),
        }),
    );
    paths.insert(
        format!("{base}/{{name}}"),
        json!({
            "get": operation("get", Vec::new(), None),
            "put": operation("put", write(), Some(content.clone())),
            "patch": operation("patch", write(), Some(patches)),
            "delete": operation("delete", vec![query("dryRun"), query("gracePeriodSeconds"), query("propagationPolicy")], None),
        }),
    );
}
