//! From a request to an answer.

mod body;
mod scale;

use super::api::{Api, DeleteOptions, Deleted, FieldValidation, List, ListOptions, WriteOptions, Written};
use super::error::ApiError;
use super::object::{set, text};
use super::patch::Patch;
use super::request::{Form, Query, Target, accepted, content_type, target};
use super::resource::Resource;
use super::response::{self, Body};
use super::selector::{FieldSelector, LabelSelector};
use super::{api, discovery, openapi, stream, table, watch};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Common name of the certificate.
    pub name: String,
    /// Organisations of the certificate.
    pub groups: Vec<String>,
}

/// Answers requests.
#[derive(Debug)]
pub struct Handler {
    api: Api,
    run_dir: PathBuf,
    stop: CancellationToken,
}

/// A request for a resource, taken apart.
struct Call<'a> {
    resource: Arc<Resource>,
    target: Target,
    query: Query,
    form: Form,
    user: &'a User,
}

impl Call<'_> {
    fn key(&self) -> (&str, &str) {
        (&self.target.namespace, &self.target.name)
    }
}

impl Handler {
    /// A handler over this API.
    pub fn new(api: Api, run_dir: PathBuf, stop: CancellationToken) -> Self {
        Self { api, run_dir, stop }
    }

    /// Answers.
    pub async fn answer(&self, request: Request<Incoming>, user: Option<&User>) -> Response<Body> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let answer = self.route(request, user).await.unwrap_or_else(|error| response::refusal(&error));
        tracing::debug!(%method, path, status = answer.status().as_u16(), user = user.map(|u| u.name.as_str()), "request");
        answer
    }

    async fn route(&self, request: Request<Incoming>, user: Option<&User>) -> Result<Response<Body>, ApiError> {
        let path = request.uri().path().to_owned();
        match path.as_str() {
            "/livez" | "/readyz" | "/healthz" => {
                return if self.api.store().is_healthy() {
                    Ok(response::bytes(StatusCode::OK, "text/plain", "ok"))
                } else {
                    Err(ApiError::internal("the store accepts no changes"))
                };
            }
            "/version" | "/version/" => return Ok(response::json(StatusCode::OK, &discovery::version())),
            _ => {}
        }
        let Some(user) = user else {
            return Err(ApiError::unauthorized(
                "Unauthorized: expected a client certificate of this cluster's authority",
            ));
        };
        let form = accepted(request.headers())?;
        let registry = self.api.registry();
        if path.starts_with("/openapi/") {
            only_get(request.method())?;
            return openapi::answer(&registry, &path, request.headers());
        }
        if let Some(answer) = discovery::answer(&registry, &path, form) {
            only_get(request.method())?;
            return Ok(answer);
        }
        let target = target(&path).ok_or_else(ApiError::no_such_path)?;
        let resource = registry
            .find(&target.group, &target.version, &target.resource)
            .cloned()
            .ok_or_else(ApiError::no_such_path)?;
        let query = Query::parse(request.uri().query())?;
        if !resource.namespaced && !target.namespace.is_empty() {
            return Err(ApiError::no_such_path());
        }
        let call = Call { resource, target, query, form, user };
        if call.target.subresource.is_empty() {
            return if call.target.name.is_empty() {
                self.collection(request, call).await
            } else {
                self.object(request, call).await
            };
        }
        self.subresource(request, call).await
    }

    async fn collection(&self, request: Request<Incoming>, call: Call<'_>) -> Result<Response<Body>, ApiError> {
        match *request.method() {
            Method::GET => {
                if call.query.flag("watch")? {
                    return self.watch(&call);
                }
                self.list(&call)
            }
            Method::POST => {
                if call.resource.namespaced && call.target.namespace.is_empty() {
                    return Err(ApiError::method_not_allowed("objects are created below a namespace"));
                }
                let options = write_options(&call.query)?;
                let object = body::object(request).await?;
                let Call { resource, target, .. } = &call;
                let written = self.api.create(resource, &target.version, &target.namespace, object, options).await?;
                Ok(show(&call, &written))
            }
            Method::DELETE => self.delete_collection(request, &call).await,
            _ => Err(wrong_method(request.method())),
        }
    }

    async fn object(&self, request: Request<Incoming>, call: Call<'_>) -> Result<Response<Body>, ApiError> {
        match *request.method() {
            Method::GET => {
                if call.query.flag("watch")? {
                    return self.watch(&call);
                }
                let object = self.api.get(&call.resource, &call.target.namespace, &call.target.name)?;
                Ok(show_value(&call, StatusCode::OK, &object.value))
            }
            Method::PUT | Method::PATCH => self.write(request, &call, "").await,
            Method::DELETE => {
                let options = delete_options(&call.query, body::optional(request).await?)?;
                let deleted = self.api.delete(&call.resource, call.key(), &options).await?;
                Ok(show_deleted(&call, &deleted))
            }
            _ => Err(wrong_method(request.method())),
        }
    }

    async fn write(&self, request: Request<Incoming>, call: &Call<'_>, part: &str) -> Result<Response<Body>, ApiError> {
        let options = write_options(&call.query)?;
        let version = call.target.version.as_str();
        let written = if request.method() == Method::PUT {
            let object = body::object(request).await?;
            self.api.update(&call.resource, version, call.key(), part, object, options).await?
        } else {
            let media_type = content_type(request.headers()).to_owned();
            if !media_type.ends_with("json") {
                Patch::read(&media_type, b"")?;
            }
            let patch = Patch::read(&media_type, &body::bytes(request).await?)?;
            self.api.patch(&call.resource, version, call.key(), part, &patch, options).await?
        };
        Ok(show(call, &written))
    }

    async fn subresource(&self, request: Request<Incoming>, call: Call<'_>) -> Result<Response<Body>, ApiError> {
        let pods = call.resource.group_resource() == "pods";
        match call.target.subresource.as_str() {
            "status" if call.resource.has_status => match *request.method() {
                Method::GET => {
                    let object = self.api.get(&call.resource, &call.target.namespace, &call.target.name)?;
                    Ok(show_value(&call, StatusCode::OK, &object.value))
                }
                Method::PUT | Method::PATCH => self.write(request, &call, "status").await,
                _ => Err(wrong_method(request.method())),
            },
            "scale" if call.resource.scale.is_some() => self.scale(request, &call).await,
            "binding" if pods && request.method() == Method::POST => self.bind(request, &call).await,
            "eviction" if pods && request.method() == Method::POST => {
                let eviction = body::object(request).await?;
                let options = eviction.get("deleteOptions").cloned().unwrap_or_else(|| json!({}));
                let options = delete_options(&call.query, Some(options))?;
                self.api.delete(&call.resource, call.key(), &options).await?;
                Ok(response::json(StatusCode::CREATED, &success(&call, "")))
            }
            "log" if pods => {
                only_get(request.method())?;
                stream::logs(&self.api, &self.run_dir, call.key(), &call.query).await
            }
            "exec" | "attach" | "portforward" if pods => {
                let kind = call.target.subresource.clone();
                tracing::info!(user = call.user.name, pod = call.target.name, kind, "a stream is asked for");
                if kind == "portforward" {
                    return stream::forward(&self.api, &self.run_dir, call.key(), request);
                }
                stream::terminal(&self.api, &self.run_dir, call.key(), &kind, &call.query, request).await
            }
            _ => Err(ApiError::no_such_path()),
        }
    }

    async fn bind(&self, request: Request<Incoming>, call: &Call<'_>) -> Result<Response<Body>, ApiError> {
        let dry_run = call.query.dry_run()?;
        let binding = body::object(request).await?;
        let node = text(&binding, &["target", "name"]).to_owned();
        if node.is_empty() {
            return Err(ApiError::bad_request("target.name: expected the name of a node"));
        }
        if !dry_run {
            crate::controller::scheduler::bind(&self.api, call.key(), &node).await?;
        }
        Ok(response::json(StatusCode::CREATED, &success(call, "")))
    }

    fn selection(call: &Call<'_>) -> Result<ListOptions, ApiError> {
        let group_resource = call.resource.group_resource();
        let custom = call.resource.custom.as_ref().map_or(&[][..], |c| c.selectable(&call.target.version));
        let mut fields = call.query.text("fieldSelector").to_owned();
        if !call.target.name.is_empty() {
            // A watch of one object is one of its collection.
            fields = format!("metadata.name={},{fields}", call.target.name);
        }
        Ok(ListOptions {
            labels: LabelSelector::parse(call.query.text("labelSelector"))?,
            fields: FieldSelector::parse(&fields, &group_resource, custom)?,
            limit: usize::try_from(call.query.number("limit")?.unwrap_or(0)).unwrap_or(usize::MAX),
            proceed: call.query.text("continue").to_owned(),
        })
    }

    fn list(&self, call: &Call<'_>) -> Result<Response<Body>, ApiError> {
        let options = Self::selection(call)?;
        let asked = call.query.number("resourceVersion")?.unwrap_or(0);
        let list = self.api.list(&call.resource, &call.target.namespace, &options)?;
        if asked > list.revision {
            return Err(ApiError::timeout(format!("Too large resource version: {asked}, current: {}", list.revision)));
        }
        match call.query.text("resourceVersionMatch") {
            "" | "NotOlderThan" => {}
            "Exact" if asked == list.revision => {}
            "Exact" => {
                return Err(ApiError::expired(format!("the state at resource version {asked} is not kept")));
            }
            other => {
                return Err(ApiError::bad_request(format!(
                    "query resourceVersionMatch: {other:?}: expected Exact or NotOlderThan"
                )));
            }
        }
        Ok(show_list(call, &list))
    }

    fn watch(&self, call: &Call<'_>) -> Result<Response<Body>, ApiError> {
        let initial_events = call.query.flag("sendInitialEvents")?;
        if initial_events && call.query.text("resourceVersionMatch") != "NotOlderThan" {
            return Err(ApiError::bad_request(
                "query resourceVersionMatch: expected NotOlderThan with sendInitialEvents",
            ));
        }
        let request = watch::Request {
            resource: call.resource.clone(),
            version: call.target.version.clone(),
            namespace: call.target.namespace.clone(),
            selection: ListOptions { limit: 0, proceed: String::new(), ..Self::selection(call)? },
            from: call.query.text("resourceVersion").to_owned(),
            bookmarks: call.query.flag("allowWatchBookmarks")?,
            initial_events,
            timeout: call
                .query
                .number("timeoutSeconds")?
                .filter(|s| *s > 0)
                .map(|s| Duration::from_secs(s.min(86_400))),
            form: call.form,
        };
        watch::begin(&self.api, request, self.stop.clone())
    }

    async fn delete_collection(&self, request: Request<Incoming>, call: &Call<'_>) -> Result<Response<Body>, ApiError> {
        if call.resource.namespaced && call.target.namespace.is_empty() {
            return Err(ApiError::method_not_allowed("collections are deleted below a namespace"));
        }
        let options = delete_options(&call.query, body::optional(request).await?)?;
        let selection = ListOptions { limit: 0, proceed: String::new(), ..Self::selection(call)? };
        let list = self.api.list(&call.resource, &call.target.namespace, &selection)?;
        for object in &list.objects {
            let name = super::object::name(&object.value);
            match self.api.delete(&call.resource, (&call.target.namespace, name), &options).await {
                Err(error) if error.code != 404 => return Err(error),
                _ => {}
            }
        }
        Ok(show_list(call, &list))
    }
}

fn only_get(method: &Method) -> Result<(), ApiError> {
    if *method == Method::GET { Ok(()) } else { Err(wrong_method(method)) }
}

fn wrong_method(method: &Method) -> ApiError {
    ApiError::method_not_allowed(format!("{method} is not allowed here"))
}

fn write_options(query: &Query) -> Result<WriteOptions, ApiError> {
    let field_validation = match query.text("fieldValidation") {
        "" | "Warn" => FieldValidation::Warn,
        "Ignore" => FieldValidation::Ignore,
        "Strict" => FieldValidation::Strict,
        other => {
            return Err(ApiError::bad_request(format!(
                "query fieldValidation: {other:?}: expected Ignore, Warn or Strict"
            )));
        }
    };
    Ok(WriteOptions { field_validation, dry_run: query.dry_run()? })
}

fn delete_options(query: &Query, body: Option<Value>) -> Result<DeleteOptions, ApiError> {
    let mut options = body.unwrap_or_else(|| json!({}));
    if let Some(grace) = query.number("gracePeriodSeconds")? {
        options["gracePeriodSeconds"] = grace.into();
    }
    if !query.text("propagationPolicy").is_empty() {
        options["propagationPolicy"] = query.text("propagationPolicy").into();
    }
    let mut options = DeleteOptions::read(options)?;
    options.dry_run |= query.dry_run()?;
    Ok(options)
}

/// What `PartialObjectMetadata` shows of an object.
pub fn metadata_only(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

fn show(call: &Call<'_>, written: &Written) -> Response<Body> {
    let code = if written.created { StatusCode::CREATED } else { StatusCode::OK };
    let mut answer = show_value(call, code, &written.object.value);
    response::warn(&mut answer, &written.warnings);
    answer
}

fn show_value(call: &Call<'_>, code: StatusCode, object: &Value) -> Response<Body> {
    let shown = api::in_version(&call.resource, &call.target.version, object);
    let object = shown.as_ref().unwrap_or(object);
    match call.form {
        Form::Table => {
            let include = call.query.text("includeObject");
            response::json(code, &table::render(&call.resource, &call.target.version, &[object], include))
        }
        Form::Metadata => response::json(code, &metadata_only(object)),
        Form::Plain | Form::Aggregated => response::json(code, object),
    }
}

fn show_list(call: &Call<'_>, list: &List) -> Response<Body> {
    let mut metadata = json!({"resourceVersion": list.revision.to_string()});
    if !list.proceed.is_empty() {
        metadata["continue"] = list.proceed.as_str().into();
        metadata["remainingItemCount"] = list.remaining.into();
    }
    let Call { resource, target, .. } = call;
    let shown: Vec<Option<Value>> =
        list.objects.iter().map(|o| api::in_version(resource, &target.version, &o.value)).collect();
    let objects: Vec<&Value> =
        list.objects.iter().zip(&shown).map(|(o, shown)| shown.as_ref().unwrap_or(&o.value)).collect();
    match call.form {
        Form::Table => {
            let mut table = table::render(resource, &target.version, &objects, call.query.text("includeObject"));
            table["metadata"] = metadata;
            response::json(StatusCode::OK, &table)
        }
        Form::Metadata => {
            let items: Vec<Value> = objects.iter().map(|o| metadata_only(o)).collect();
            let list = json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                "metadata": metadata, "items": items});
            response::json(StatusCode::OK, &list)
        }
        Form::Plain | Form::Aggregated => {
            // Objects are stored as they are sent: no need to write them out again.
            let head = json!({"kind": resource.list_kind(), "apiVersion": resource.api_version(&target.version),
                "metadata": metadata});
            let mut text = head.to_string().into_bytes();
            text.pop();
            text.extend_from_slice(b",\"items\":[");
            for (index, (object, shown)) in list.objects.iter().zip(&shown).enumerate() {
                if index > 0 {
                    text.push(b',');
                }
                match shown {
                    None => text.extend_from_slice(&object.bytes),
                    Some(value) => text.extend_from_slice(value.to_string().as_bytes()),
                }
            }
            text.extend_from_slice(b"]}\n");
            response::bytes(StatusCode::OK, "application/json", text)
        }
    }
}

fn success(call: &Call<'_>, uid: &str) -> Value {
    let mut details = json!({"name": call.target.name, "kind": call.target.resource});
    if !call.target.group.is_empty() {
        details["group"] = call.target.group.as_str().into();
    }
    if !uid.is_empty() {
        set(&mut details, &[], "uid", uid);
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

fn show_deleted(call: &Call<'_>, deleted: &Deleted) -> Response<Body> {
    match deleted {
        Deleted::Gone(last) if call.target.resource == "pods" => show_value(call, StatusCode::OK, &last.value),
        Deleted::Gone(last) => response::json(StatusCode::OK, &success(call, super::object::uid(&last.value))),
        Deleted::Pending(object) => show_value(call, StatusCode::OK, &object.value),
    }
}
