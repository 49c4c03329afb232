//! Validation of what all objects have: names, labels, annotations, owners.

use crate::error::Cause;
use crate::object::{at, items, text};
use serde_json::{Map, Value};
use weft_lab_config::names;

/// Largest sum of annotations, in bytes.
const ANNOTATIONS_MAX: usize = 256 * 1024;

pub(super) fn judge(group_resource: &str, object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let name = text(object, &["metadata", "name"]);
    if name.is_empty() {
        causes.push(Cause::required("metadata.name", "name or generateName is required"));
    } else {
        let verdict = match group_resource {
            "namespaces" => names::dns_label(name),
            "services" => names::service_name(name),
            _ => names::subdomain(name),
        };
        if let Err(expected) = verdict {
            causes.push(Cause::invalid("metadata.name", &name.into(), expected));
        }
    }
    labels(object, "metadata", causes);
    let mut size = 0;
    for (key, value) in map(object, &["metadata", "annotations"]) {
        if let Err(expected) = names::label_key(&key.to_lowercase()) {
            causes.push(Cause::invalid("metadata.annotations", &key.as_str().into(), expected));
        }
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_MAX {
        let message = format!("Too long: must have at most {ANNOTATIONS_MAX} bytes");
        causes.push(Cause { reason: "FieldValueTooLong", field: "metadata.annotations".to_owned(), message });
    }
    let mut controllers = 0;
    for (index, owner) in items(object, &["metadata", "ownerReferences"]).iter().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if text(owner, &[field]).is_empty() {
                let at = format!("metadata.ownerReferences[{index}].{field}");
                causes.push(Cause::required(at, "must not be empty"));
            }
        }
        controllers += usize::from(owner["controller"] == Value::Bool(true));
    }
    if controllers > 1 {
        let owners = &object["metadata"]["ownerReferences"];
        causes.push(Cause::invalid("metadata.ownerReferences", owners, "only one owner can be the controller"));
    }
    for (index, finalizer) in items(object, &["metadata", "finalizers"]).iter().enumerate() {
        if let Err(expected) = names::label_key(finalizer.as_str().unwrap_or_default()) {
            causes.push(Cause::invalid(format!("metadata.finalizers[{index}]"), finalizer, expected));
        }
    }
    // Nothing may be added to what holds an object that is on its way out.
    if let Some(old) = old.filter(|o| crate::object::is_terminating(o)) {
        let before = items(old, &["metadata", "finalizers"]);
        for finalizer in items(object, &["metadata", "finalizers"]).iter().filter(|f| !before.contains(f)) {
            let why = format!("no new finalizers can be added if the object is being deleted, found {finalizer}");
            causes.push(Cause::forbidden("metadata.finalizers", why));
        }
    }
}

/// Judges the labels below `path` (`metadata`, `spec.template.metadata`).
pub(super) fn labels(object: &Value, path: &str, causes: &mut Vec<Cause>) {
    let parts: Vec<&str> = path.split('.').chain(["labels"]).collect();
    for (key, value) in map(object, &parts) {
        let field = format!("{path}.labels");
        if let Err(expected) = names::label_key(key) {
            causes.push(Cause::invalid(field.as_str(), &key.as_str().into(), expected));
        }
        if let Err(expected) = names::label_value(value.as_str().unwrap_or_default()) {
            causes.push(Cause::invalid(field, value, expected));
        }
    }
}

pub(super) fn map<'a>(object: &'a Value, path: &[&str]) -> impl Iterator<Item = (&'a String, &'a Value)> {
    let found: Option<&'a Map<String, Value>> = at(object, path).and_then(Value::as_object);
    found.into_iter().flatten()
}

/// Judges a `LabelSelector` object that stands at `path`.
pub fn judge_selector(selector: &Value, path: &str, causes: &mut Vec<Cause>) {
    for (key, value) in map(selector, &["matchLabels"]) {
        let field = format!("{path}.matchLabels");
        if let Err(expected) = names::label_key(key) {
            causes.push(Cause::invalid(field.as_str(), &key.as_str().into(), expected));
        }
        if let Err(expected) = names::label_value(value.as_str().unwrap_or_default()) {
            causes.push(Cause::invalid(field, value, expected));
        }
    }
    for (index, expression) in items(selector, &["matchExpressions"]).iter().enumerate() {
        let field = format!("{path}.matchExpressions[{index}]");
        let key = text(expression, &["key"]);
        if let Err(expected) = names::label_key(key) {
            causes.push(Cause::invalid(format!("{field}.key"), &key.into(), expected));
        }
        let values = items(expression, &["values"]);
        match text(expression, &["operator"]) {
            "In" | "NotIn" if values.is_empty() => {
                let expected = "must be specified when `operator` is 'In' or 'NotIn'";
                causes.push(Cause::required(format!("{field}.values"), expected));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                causes.push(Cause::forbidden(format!("{field}.values"), why));
            }
            _ => {}
        }
        for (number, value) in values.iter().enumerate() {
            if let Err(expected) = names::label_value(value.as_str().unwrap_or_default()) {
                causes.push(Cause::invalid(format!("{field}.values[{number}]"), value, expected));
            }
        }
    }
}
