//! Create, update and patch.

use super::{Api, check_preconditions};
use crate::error::{ApiError, Cause};
use crate::object::{items, map_mut, name, now, set, text};
use crate::patch::Patch;
use crate::resource::Resource;
use crate::schema::{self, Mode};
use crate::store::{Key, Stored, Transaction};
use crate::{kinds, types};
use bytes::Bytes;
use serde_json::Value;
use std::sync::Arc;
use weft_lab_config::names;

/// Largest object, serialised.
const OBJECT_MAX: usize = 2 * 1024 * 1024;

/// What happens to fields that the schema does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// They are dropped silently.
    Ignore,
    /// They are dropped, and the client is told.
    #[default]
    Warn,
    /// They refuse the request.
    Strict,
}

/// How a write is meant.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteOptions {
    /// What happens to unknown fields.
    pub field_validation: FieldValidation,
    /// Whether only the outcome is asked for.
    pub dry_run: bool,
}

/// The outcome of a write.
#[derive(Debug)]
pub struct Written {
    /// The object as it is now.
    pub object: Arc<Stored>,
    /// What the client should know.
    pub warnings: Vec<String>,
    /// Whether the object is new.
    pub created: bool,
}

/// Which part of an object a write is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Main,
    Status,
}

impl Api {
    /// Creates an object.
    ///
    /// # Errors
    /// Why it is refused.
    pub async fn create(
        &self,
        resource: &Resource,
        version: &str,
        namespace: &str,
        object: Value,
        options: WriteOptions,
    ) -> Result<Written, ApiError> {
        let (mut object, warnings) = decode(resource, version, object, options.field_validation)?;
        place(resource, namespace, "", &mut object)?;
        if !text(&object, &["metadata", "resourceVersion"]).is_empty() {
            return Err(ApiError::bad_request("metadata.resourceVersion: expected none on objects to be created"));
        }
        let generate = name(&object).is_empty() && !text(&object, &["metadata", "generateName"]).is_empty();
        if generate {
            // The suffix must fit as well.
            let prefix: String = text(&object, &["metadata", "generateName"]).chars().take(58).collect();
            set(&mut object, &["metadata"], "name", format!("{prefix}{}", names::suffix()));
        }
        let metadata = map_mut(&mut object, &["metadata"]);
        for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "managedFields", "selfLink", "generation"] {
            metadata.remove(field);
        }
        metadata.insert("uid".to_owned(), uuid::Uuid::new_v4().to_string().into());
        metadata.insert("creationTimestamp".to_owned(), now().into());
        if resource.counts_generation {
            metadata.insert("generation".to_owned(), 1.into());
        }
        if resource.has_status && resource.custom.is_some() {
            map_mut(&mut object, &[]).remove("status");
        }
        let group_resource = resource.group_resource();
        let is_definition = group_resource == kinds::DEFINITIONS;
        kinds::prepare_new(&group_resource, &mut object);
        validate(resource, version, &object, None)?;
        object["apiVersion"] = resource.api_version(&resource.storage_version).into();
        let key = Key::new(&group_resource, namespace, name(&object));
        let settings = self.settings();
        let work = |transaction: &mut Transaction<'_>| {
            if transaction.get(&key).is_some() {
                return Err(ApiError::already_exists(&group_resource, &key.name));
            }
            if resource.namespaced {
                check_namespace(transaction, &group_resource, &key)?;
            }
            kinds::admit(&group_resource, transaction, settings, &mut object, None)?;
            limit(&object)?;
            Ok(transaction.put(key.clone(), object))
        };
        let object = self.commit(work, options.dry_run).await?;
        if is_definition && !options.dry_run {
            self.reload_definitions();
        }
        Ok(Written { object, warnings, created: true })
    }

    /// Replaces an object, or (with `subresource` `status`) its status.
    ///
    /// # Errors
    /// Why it is refused.
    pub async fn update(
        &self,
        resource: &Resource,
        version: &str,
        (namespace, name): (&str, &str),
        subresource: &str,
        object: Value,
        options: WriteOptions,
    ) -> Result<Written, ApiError> {
        let (mut object, warnings) = decode(resource, version, object, options.field_validation)?;
        place(resource, namespace, name, &mut object)?;
        let part = part(subresource)?;
        let change = |_: &Value| Ok((object, warnings));
        self.modify(resource, version, (namespace, name), part, change, options).await
    }

    /// Patches an object, or its status.
    ///
    /// # Errors
    /// Why it is refused.
    pub async fn patch(
        &self,
        resource: &Resource,
        version: &str,
        (namespace, name): (&str, &str),
        subresource: &str,
        patch: &Patch,
        options: WriteOptions,
    ) -> Result<Written, ApiError> {
        let part = part(subresource)?;
        let types = types::builtin();
        let schema = if resource.custom.is_some() { None } else { types.schema(&resource.kind) };
        let change = |old: &Value| {
            let mut object = super::in_version(resource, version, old).unwrap_or_else(|| old.clone());
            // Only a revision that the patch itself names is a precondition.
            let metadata = map_mut(&mut object, &["metadata"]);
            let revision = metadata.get("resourceVersion").cloned();
            patch.apply(&mut object, types, schema)?;
            let (mut object, warnings) = decode(resource, version, object, options.field_validation)?;
            place(resource, namespace, name, &mut object)?;
            let metadata = map_mut(&mut object, &["metadata"]);
            if metadata.get("resourceVersion") == revision.as_ref() {
                metadata.remove("resourceVersion");
            }
            Ok((object, warnings))
        };
        self.modify(resource, version, (namespace, name), part, change, options).await
    }

    /// Changes an object in one step, whatever its revision is; `None` leaves it alone. For controllers.
    ///
    /// # Errors
    /// Why the outcome is refused.
    pub async fn edit(
        &self,
        resource: &Resource,
        (namespace, name): (&str, &str),
        subresource: &str,
        change: impl FnOnce(&Value) -> Option<Value>,
    ) -> Result<(), ApiError> {
        let part = part(subresource)?;
        let change = |old: &Value| match change(old) {
            None => Ok((old.clone(), Vec::new())),
            Some(mut object) => {
                map_mut(&mut object, &["metadata"]).remove("resourceVersion");
                decode(resource, &resource.storage_version, object, FieldValidation::Ignore)
            }
        };
        let version = resource.storage_version.as_str();
        self.modify(resource, version, (namespace, name), part, change, WriteOptions::default()).await.map(drop)
    }

    async fn modify(
        &self,
        resource: &Resource,
        version: &str,
        (namespace, name): (&str, &str),
        part: Part,
        change: impl FnOnce(&Value) -> Result<(Value, Vec<String>), ApiError>,
        options: WriteOptions,
    ) -> Result<Written, ApiError> {
        let group_resource = resource.group_resource();
        let key = Key::new(&group_resource, namespace, name);
        let mut warnings = Vec::new();
        let settings = self.settings();
        let work = |transaction: &mut Transaction<'_>| {
            let old = transaction.get(&key).ok_or_else(|| ApiError::not_found(&group_resource, name))?;
            let (mut new, told) = change(&old.value)?;
            warnings = told;
            let (uid, revision) = (text(&new, &["metadata", "uid"]), text(&new, &["metadata", "resourceVersion"]));
            check_preconditions(resource, &old.value, uid, revision)?;
            carry_over(resource, part, &old.value, &mut new);
            if part == Part::Main {
                kinds::prepare_changed(&group_resource, &old.value, &mut new);
            }
            validate(resource, version, &new, Some(&old.value))?;
            new["apiVersion"] = resource.api_version(&resource.storage_version).into();
            count_generation(resource, &old.value, &mut new);
            kinds::admit(&group_resource, transaction, settings, &mut new, Some(&old.value))?;
            limit(&new)?;
            if is_released(&new) {
                return Ok(transaction.remove(key.clone(), new));
            }
            set(&mut new, &["metadata"], "resourceVersion", old.revision.to_string());
            if new == old.value {
                return Ok(old);
            }
            Ok(transaction.put(key.clone(), new))
        };
        let object = self.commit(work, options.dry_run).await?;
        if group_resource == kinds::DEFINITIONS && !options.dry_run {
            self.reload_definitions();
        }
        Ok(Written { object, warnings, created: false })
    }

    /// Runs a transaction and waits for the disk; a dry run keeps nothing.
    pub(super) async fn commit<T>(
        &self,
        work: impl FnOnce(&mut Transaction<'_>) -> Result<T, ApiError>,
        dry_run: bool,
    ) -> Result<T, ApiError> {
        if dry_run {
            let mut outcome = None;
            // The refusal is what keeps the transaction from happening.
            let refused = self.store().transact(|transaction| {
                outcome = Some(work(transaction));
                Err::<(), ApiError>(ApiError::internal("dry run"))
            });
            drop(refused);
            return outcome.unwrap_or_else(|| Err(ApiError::internal("the store accepts no changes")));
        }
        let (result, ticket) = self.store().transact(work)?;
        ticket.done().await?;
        Ok(result)
    }
}

fn part(subresource: &str) -> Result<Part, ApiError> {
    match subresource {
        "" => Ok(Part::Main),
        "status" => Ok(Part::Status),
        _ => Err(ApiError::no_such_path()),
    }
}

/// Reads an object of a request: type, fields, defaults.
fn decode(
    resource: &Resource,
    version: &str,
    mut object: Value,
    unknown: FieldValidation,
) -> Result<(Value, Vec<String>), ApiError> {
    if !object.is_object() {
        return Err(ApiError::bad_request("the body: expected an object"));
    }
    let api_version = resource.api_version(version);
    for (field, expected) in [("apiVersion", api_version.as_str()), ("kind", resource.kind.as_str())] {
        match text(&object, &[field]) {
            "" => object[field] = expected.into(),
            found if found == expected => {}
            found => {
                return Err(ApiError::bad_request(format!(
                    "{field}: the body is for {found:?}, the path is for {expected:?}"
                )));
            }
        }
    }
    let types = types::builtin();
    let metadata = types.schema("ObjectMeta").unwrap_or(&Value::Null);
    let mut meta = object.get_mut("metadata").map_or(Value::Null, Value::take);
    if meta.is_null() {
        meta = Value::Object(serde_json::Map::new());
    }
    let mut found = schema::decode(types, metadata, Mode::Builtin, &mut meta).map_err(|mut e| {
        e.message = format!("metadata.{}", e.message);
        e
    })?;
    let mut paths: Vec<String> = found.unknown.drain(..).map(|p| format!("metadata.{p}")).collect();
    let mut causes = found.causes;
    for cause in &mut causes {
        cause.field = format!("metadata.{}", cause.field);
    }
    map_mut(&mut object, &[]).remove("metadata");
    let found = match &resource.custom {
        None => {
            let schema = types.schema(&resource.kind).ok_or_else(|| ApiError::internal("a kind has no schema"))?;
            schema::decode(types, schema, Mode::Builtin, &mut object)?
        }
        Some(custom) => match custom.schema(version) {
            Some(schema) => schema::decode(types, schema, Mode::Custom, &mut object)?,
            None => schema::Findings::default(),
        },
    };
    object["metadata"] = meta;
    paths.extend(found.unknown);
    causes.extend(found.causes);
    if !causes.is_empty() {
        return Err(ApiError::invalid(&resource.group_kind(), name(&object), &causes));
    }
    let told: Vec<String> = paths.iter().map(|p| format!("unknown field {p:?}")).collect();
    match unknown {
        FieldValidation::Strict if !told.is_empty() => {
            let kind = &resource.kind;
            Err(ApiError::bad_request(format!(
                "{kind} in version {version:?} cannot be handled as a {kind}: strict decoding error: {}",
                told.join(", ")
            )))
        }
        FieldValidation::Warn => Ok((object, told)),
        _ => Ok((object, Vec::new())),
    }
}

/// The body's namespace and name must be those of the path.
fn place(resource: &Resource, namespace: &str, wanted: &str, object: &mut Value) -> Result<(), ApiError> {
    match text(object, &["metadata", "namespace"]) {
        "" if resource.namespaced => set(object, &["metadata"], "namespace", namespace),
        "" => {}
        found if found == namespace => {}
        found if !resource.namespaced => {
            return Err(ApiError::bad_request(format!(
                "metadata.namespace: {found:?}: expected none: {} live in no namespace",
                resource.plural
            )));
        }
        found => {
            return Err(ApiError::bad_request(format!(
                "the namespace of the provided object does not match the namespace sent on the request: \
                 metadata.namespace is {found:?}, the path says {namespace:?}"
            )));
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    match name(object) {
        "" => set(object, &["metadata"], "name", wanted),
        found if found == wanted => {}
        found => {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({found}) does not match the name on the URL ({wanted})"
            )));
        }
    }
    Ok(())
}

fn check_namespace(transaction: &Transaction<'_>, group_resource: &str, key: &Key) -> Result<(), ApiError> {
    let namespace = &key.namespace;
    match transaction.get(&Key::new("namespaces", "", namespace)) {
        None => Err(ApiError::not_found("namespaces", namespace)),
        Some(found) if crate::object::is_terminating(&found.value) && group_resource != "events" => {
            Err(ApiError::forbidden(format!(
                "{group_resource} {:?} is forbidden: unable to create new content in namespace {namespace} because \
                 it is being terminated",
                key.name
            )))
        }
        Some(_) => Ok(()),
    }
}

fn validate(resource: &Resource, version: &str, object: &Value, old: Option<&Value>) -> Result<(), ApiError> {
    let mut causes: Vec<Cause> = kinds::judge(resource, object, old);
    if let Some(custom) = &resource.custom {
        causes.extend(custom.judge(version, object, old));
    }
    if causes.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid(&resource.group_kind(), name(object), &causes))
}

/// What a client cannot change stays as it was.
fn carry_over(resource: &Resource, part: Part, old: &Value, new: &mut Value) {
    let old_meta = old["metadata"].clone();
    match part {
        Part::Main if resource.has_status => {
            let map = map_mut(new, &[]);
            match old.get("status") {
                Some(status) => map.insert("status".to_owned(), status.clone()),
                None => map.remove("status"),
            };
        }
        Part::Main => {}
        Part::Status => {
            let mut kept = old.clone();
            let map = map_mut(&mut kept, &[]);
            match new.get("status") {
                Some(status) => map.insert("status".to_owned(), status.clone()),
                None => map.remove("status"),
            };
            if resource.custom.is_none() {
                // Components that write the status of built-in kinds label and annotate on the way.
                for field in ["labels", "annotations"] {
                    match new["metadata"].get(field) {
                        Some(value) => set(&mut kept, &["metadata"], field, value.clone()),
                        None => drop(map_mut(&mut kept, &["metadata"]).remove(field)),
                    }
                }
            }
            *new = kept;
        }
    }
    let metadata = map_mut(new, &["metadata"]);
    metadata.remove("managedFields");
    metadata.remove("selfLink");
    let fixed = [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generateName",
        "generation",
        "resourceVersion",
    ];
    for field in fixed {
        match old_meta.get(field) {
            Some(value) => metadata.insert(field.to_owned(), value.clone()),
            None => metadata.remove(field),
        };
    }
}

fn count_generation(resource: &Resource, old: &Value, new: &mut Value) {
    if !resource.counts_generation {
        return;
    }
    let beside = |field: &str| matches!(field, "metadata" | "status" | "apiVersion" | "kind");
    let content = |object: &Value| -> serde_json::Map<String, Value> {
        let Some(map) = object.as_object() else { return serde_json::Map::new() };
        map.iter().filter(|(f, _)| !beside(f)).map(|(f, v)| (f.clone(), v.clone())).collect()
    };
    if content(old) != content(new) {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        set(new, &["metadata"], "generation", generation);
    }
}

/// Whether nothing holds an object any more whose deletion was asked for.
pub(super) fn is_released(object: &Value) -> bool {
    crate::object::is_terminating(object)
        && items(object, &["metadata", "finalizers"]).is_empty()
        && items(object, &["spec", "finalizers"]).is_empty()
        && crate::object::number(object, &["metadata", "deletionGracePeriodSeconds"]).unwrap_or(0) == 0
}

fn limit(object: &Value) -> Result<(), ApiError> {
    let length = Bytes::from(object.to_string()).len();
    if length > OBJECT_MAX { Err(ApiError::too_large(OBJECT_MAX)) } else { Ok(()) }
}
