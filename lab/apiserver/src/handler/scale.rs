//! The `scale` subresource.

use super::{Call, Handler, body, write_options, wrong_method};
use crate::error::{ApiError, Cause};
use crate::object::{at, map_mut, name, text};
use crate::patch::Patch;
use crate::request::content_type;
use crate::resource::{Resource, Scale};
use crate::response::{self, Body};
use crate::selector::LabelSelector;
use crate::types;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};

impl Handler {
    pub(super) async fn scale(&self, request: Request<Incoming>, call: &Call<'_>) -> Result<Response<Body>, ApiError> {
        let Call { resource, target, query, .. } = call;
        let Some(paths) = &resource.scale else { return Err(ApiError::no_such_path()) };
        let object = self.api.get(resource, &target.namespace, &target.name)?;
        let present = show(paths, &object.value);
        let wanted = match *request.method() {
            Method::GET => return Ok(response::json(StatusCode::OK, &present)),
            Method::PUT => body::object(request).await?,
            Method::PATCH => {
                let media_type = content_type(request.headers()).to_owned();
                let patch = Patch::read(&media_type, &body::bytes(request).await?)?;
                let mut wanted = present.clone();
                let types = types::builtin();
                patch.apply(&mut wanted, types, types.schema("Scale"))?;
                wanted
            }
            _ => return Err(wrong_method(request.method())),
        };
        let replicas = wanted_replicas(resource, &wanted)?;
        let mut changed = json!({"metadata": {"resourceVersion": text(&wanted, &["metadata", "resourceVersion"])}});
        let path: Vec<&str> = paths.spec_replicas.iter().map(String::as_str).collect();
        if let [parents @ .., last] = path.as_slice() {
            map_mut(&mut changed, parents).insert((*last).to_owned(), replicas.into());
        }
        let patch = Patch::Merge(changed);
        let options = write_options(query)?;
        let written = self.api.patch(resource, &target.version, call.key(), "", &patch, options).await?;
        Ok(response::json(StatusCode::OK, &show(paths, &written.object.value)))
    }
}

fn wanted_replicas(resource: &Resource, scale: &Value) -> Result<i64, ApiError> {
    // No number is 0, as in Kubernetes.
    match at(scale, &["spec", "replicas"]) {
        None | Some(Value::Null) => Ok(0),
        Some(value) => match value.as_i64() {
            Some(n) if (0..=i64::from(i32::MAX)).contains(&n) => Ok(n),
            Some(_) => {
                let cause = Cause::invalid("spec.replicas", value, "must be greater than or equal to 0");
                Err(ApiError::invalid(&format!("Scale.{}", resource.group), name(scale), &[cause]))
            }
            None => Err(ApiError::bad_request("spec.replicas: expected a whole number")),
        },
    }
}

fn show(paths: &Scale, object: &Value) -> Value {
    let number = |path: &[String]| {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        at(object, &path).and_then(Value::as_i64).unwrap_or(0)
    };
    let selector = paths.selector.as_ref().and_then(|path| {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        match at(object, &path)? {
            Value::String(text) => Some(text.clone()),
            selector => Some(LabelSelector::from_object(selector).to_string()),
        }
    });
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = at(object, &["metadata", field]) {
            metadata[field] = value.clone();
        }
    }
    let mut status = json!({"replicas": number(&paths.status_replicas)});
    if let Some(selector) = selector {
        status["selector"] = selector.into();
    }
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": {"replicas": number(&paths.spec_replicas)}, "status": status})
}
