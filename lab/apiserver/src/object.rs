//! Reading and writing the parts that all objects have.

use serde_json::{Map, Value};

/// The text at a path; empty when there is none.
pub fn text<'a>(object: &'a Value, path: &[&str]) -> &'a str {
    at(object, path).and_then(Value::as_str).unwrap_or_default()
}

/// The whole number at a path.
pub fn number(object: &Value, path: &[&str]) -> Option<i64> {
    at(object, path).and_then(Value::as_i64)
}

/// The value at a path.
pub fn at<'a>(object: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(object, |value, field| value.get(field))
}

/// The elements of the list at a path; none when there is no list.
pub fn items<'a>(object: &'a Value, path: &[&str]) -> &'a [Value] {
    at(object, path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// `metadata.name`.
pub fn name(object: &Value) -> &str {
    text(object, &["metadata", "name"])
}

/// `metadata.namespace`.
pub fn namespace(object: &Value) -> &str {
    text(object, &["metadata", "namespace"])
}

/// `metadata.uid`.
pub fn uid(object: &Value) -> &str {
    text(object, &["metadata", "uid"])
}

/// Whether deletion was asked for and has not ended.
pub fn is_terminating(object: &Value) -> bool {
    !text(object, &["metadata", "deletionTimestamp"]).is_empty()
}

/// The label of that name.
pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get("metadata")?.get("labels")?.get(key)?.as_str()
}

/// The map at a path, made where it is missing. A value of another type in the way is replaced.
pub fn map_mut<'a>(object: &'a mut Value, path: &[&str]) -> &'a mut Map<String, Value> {
    let mut here = object;
    for field in path {
        here = as_map(here).entry((*field).to_owned()).or_insert(Value::Null);
    }
    as_map(here)
}

fn as_map(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("was made a map above"),
    }
}

/// Sets the value at a path whose last field is `field`.
pub fn set(object: &mut Value, path: &[&str], field: &str, value: impl Into<Value>) {
    map_mut(object, path).insert(field.to_owned(), value.into());
}

/// The condition of that type.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    items(object, &["status", "conditions"]).iter().find(|c| text(c, &["type"]) == kind)
}

/// Whether the condition of that type is `True`.
pub fn is_true(object: &Value, kind: &str) -> bool {
    condition(object, kind).is_some_and(|c| text(c, &["status"]) == "True")
}

/// Sets a condition; the transition time moves only when the status changes. Returns whether anything changed.
pub fn set_condition(object: &mut Value, kind: &str, status: &str, reason: &str, message: &str) -> bool {
    let now = now();
    let conditions = map_mut(object, &["status"]).entry("conditions").or_insert_with(|| Value::Array(Vec::new()));
    if !conditions.is_array() {
        *conditions = Value::Array(Vec::new());
    }
    let Value::Array(list) = conditions else { return false };
    let mut new = serde_json::json!({
        "type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": now,
    });
    match list.iter_mut().find(|c| text(c, &["type"]) == kind) {
        None => list.push(new),
        Some(old) => {
            if text(old, &["status"]) == status {
                new["lastTransitionTime"] = old["lastTransitionTime"].clone();
            }
            let same = ["status", "reason", "message"].iter().all(|f| old[*f] == new[*f]);
            if same {
                return false;
            }
            for field in ["status", "reason", "message", "lastTransitionTime"] {
                old[field] = new[field].take();
            }
        }
    }
    true
}

/// The time as objects carry it, in whole seconds.
pub fn now() -> String {
    time_text(jiff::Timestamp::now())
}

/// A point in time as objects carry it.
pub fn time_text(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The point in time at a path.
pub fn time(object: &Value, path: &[&str]) -> Option<jiff::Timestamp> {
    text(object, path).parse().ok()
}

/// The owner that manages the object.
pub fn controller_of(object: &Value) -> Option<&Value> {
    items(object, &["metadata", "ownerReferences"]).iter().find(|o| o["controller"] == Value::Bool(true))
}
