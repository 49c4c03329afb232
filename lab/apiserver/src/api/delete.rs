//! Delete: at once, or when the last that holds the object lets go.

use super::{Api, check_preconditions};
use crate::error::ApiError;
use crate::object::{items, map_mut, number, set, text, time_text};
use crate::resource::Resource;
use crate::store::{Key, Stored, Transaction};
use crate::{kinds, object, schema, types};
use serde_json::Value;
use std::sync::Arc;

/// What becomes of the objects that the deleted one owns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    /// They are deleted afterwards.
    #[default]
    Background,
    /// They are deleted first.
    Foreground,
    /// They stay, without owner.
    Orphan,
}

/// Finalizer of a foreground deletion.
pub const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of a deletion that leaves dependents.
pub const ORPHAN: &str = "orphan";

/// How a deletion is meant.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Time for a pod to end, in seconds.
    pub grace_s: Option<i64>,
    /// What becomes of dependents.
    pub propagation: Propagation,
    /// The object must be this one.
    pub uid: String,
    /// The object must be in this state.
    pub revision: String,
    /// Whether only the outcome is asked for.
    pub dry_run: bool,
}

impl DeleteOptions {
    /// Reads a `DeleteOptions` object.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(mut options: Value) -> Result<Self, ApiError> {
        let types = types::builtin();
        let schema = types.schema("DeleteOptions").ok_or_else(|| ApiError::internal("no schema of DeleteOptions"))?;
        let found = schema::decode(types, schema, schema::Mode::Builtin, &mut options)?;
        if !found.causes.is_empty() {
            return Err(ApiError::invalid("DeleteOptions", "", &found.causes));
        }
        let propagation = match text(&options, &["propagationPolicy"]) {
            "Foreground" => Propagation::Foreground,
            "Orphan" => Propagation::Orphan,
            _ if options["orphanDependents"] == Value::Bool(true) => Propagation::Orphan,
            _ => Propagation::Background,
        };
        let dry_run = match items(&options, &["dryRun"]) {
            [] => false,
            all if all.iter().all(|v| v == "All") => true,
            _ => return Err(ApiError::bad_request("dryRun: expected All")),
        };
        Ok(Self {
            grace_s: number(&options, &["gracePeriodSeconds"]),
            propagation,
            uid: text(&options, &["preconditions", "uid"]).to_owned(),
            revision: text(&options, &["preconditions", "resourceVersion"]).to_owned(),
            dry_run,
        })
    }
}

/// What a deletion came to.
#[derive(Debug)]
pub enum Deleted {
    /// The object is gone; this was its last state.
    Gone(Arc<Stored>),
    /// The object is still held.
    Pending(Arc<Stored>),
}

impl Api {
    /// Deletes an object.
    ///
    /// # Errors
    /// Why it is refused.
    pub async fn delete(
        &self,
        resource: &Resource,
        (namespace, name): (&str, &str),
        options: &DeleteOptions,
    ) -> Result<Deleted, ApiError> {
        let group_resource = resource.group_resource();
        let key = Key::new(&group_resource, namespace, name);
        let work = |transaction: &mut Transaction<'_>| {
            let old = transaction.get(&key).ok_or_else(|| ApiError::not_found(&group_resource, name))?;
            check_preconditions(resource, &old.value, &options.uid, &options.revision)?;
            kinds::may_delete(&group_resource, &old.value)?;
            let mut new = old.value.clone();
            let grace = grace_s(&group_resource, &new, options.grace_s);
            hold(&group_resource, &mut new, options.propagation);
            let held = !items(&new, &["metadata", "finalizers"]).is_empty()
                || !items(&new, &["spec", "finalizers"]).is_empty();
            if grace == 0 && !held {
                return Ok(Deleted::Gone(transaction.remove(key.clone(), new)));
            }
            let running = number(&new, &["metadata", "deletionGracePeriodSeconds"]);
            if running.is_none_or(|r| grace < r) {
                let end = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(grace);
                set(&mut new, &["metadata"], "deletionTimestamp", time_text(end));
                set(&mut new, &["metadata"], "deletionGracePeriodSeconds", grace);
            }
            if new == old.value {
                return Ok(Deleted::Pending(old));
            }
            if resource.counts_generation {
                let generation = number(&new, &["metadata", "generation"]).unwrap_or(0) + 1;
                set(&mut new, &["metadata"], "generation", generation);
            }
            Ok(Deleted::Pending(transaction.put(key.clone(), new)))
        };
        let deleted = self.commit(work, options.dry_run).await?;
        if group_resource == kinds::DEFINITIONS && !options.dry_run {
            self.reload_definitions();
        }
        Ok(deleted)
    }
}

/// How long the object's node may take to end it, in seconds.
fn grace_s(group_resource: &str, object: &Value, asked: Option<i64>) -> i64 {
    if group_resource != "pods" || text(object, &["spec", "nodeName"]).is_empty() {
        return 0;
    }
    if matches!(text(object, &["status", "phase"]), "Succeeded" | "Failed") {
        return 0;
    }
    asked.or_else(|| number(object, &["spec", "terminationGracePeriodSeconds"])).unwrap_or(30).clamp(0, 1_000_000)
}

/// Adds what holds the object until others have done their part.
fn hold(group_resource: &str, object: &mut Value, propagation: Propagation) {
    if object::is_terminating(object) {
        return;
    }
    let mut finalizers = items(object, &["metadata", "finalizers"]).to_vec();
    let length = finalizers.len();
    match propagation {
        Propagation::Background => {}
        Propagation::Foreground => finalizers.push(FOREGROUND.into()),
        Propagation::Orphan => finalizers.push(ORPHAN.into()),
    }
    if group_resource == kinds::DEFINITIONS {
        finalizers.push(kinds::DEFINITION_FINALIZER.into());
        object::set_condition(object, "Terminating", "True", "InstanceDeletionPending", "objects are being deleted");
    }
    if group_resource == "namespaces" {
        set(object, &["status"], "phase", "Terminating");
    }
    if finalizers.len() > length {
        map_mut(object, &["metadata"]).insert("finalizers".to_owned(), finalizers.into());
    }
}

impl Api {
    /// Lets go of an object: removes a finalizer, and the object when nothing else holds it.
    ///
    /// # Errors
    /// That there is no such object.
    pub async fn release(
        &self,
        resource: &Resource,
        (namespace, name): (&str, &str),
        finalizer: &str,
    ) -> Result<(), ApiError> {
        let group_resource = resource.group_resource();
        let key = Key::new(&group_resource, namespace, name);
        let work = |transaction: &mut Transaction<'_>| {
            let old = transaction.get(&key).ok_or_else(|| ApiError::not_found(&group_resource, name))?;
            let mut new = old.value.clone();
            for part in ["metadata", "spec"] {
                let list = new.get_mut(part).and_then(|p| p.get_mut("finalizers")).and_then(Value::as_array_mut);
                if let Some(list) = list {
                    list.retain(|f| f != finalizer);
                }
            }
            if super::write::is_released(&new) {
                transaction.remove(key.clone(), new);
            } else if new != old.value {
                transaction.put(key.clone(), new);
            }
            Ok(())
        };
        self.commit(work, false).await?;
        if group_resource == kinds::DEFINITIONS {
            self.reload_definitions();
        }
        Ok(())
    }
}
