//! The three patches: JSON patch, merge patch, strategic merge patch.

use super::error::ApiError;
use super::types::Types;
use serde_json::{Map, Value};

/// Media type of a JSON patch (RFC 6902).
pub const JSON: &str = "application/json-patch+json";
/// Media type of a merge patch (RFC 7386).
pub const MERGE: &str = "application/merge-patch+json";
/// Media type of a strategic merge patch.
pub const STRATEGIC: &str = "application/strategic-merge-patch+json";
/// Media types of server-side apply, which this server does not do.
pub const APPLY: [&str; 2] = ["application/apply-patch+yaml", "application/apply-patch+cbor"];

/// Most operations of one JSON patch.
const OPERATIONS_MAX: usize = 10_000;

/// A patch, ready to be applied.
#[derive(Debug)]
pub enum Patch {
    /// RFC 6902.
    Json(json_patch::Patch),
    /// RFC 7386.
    Merge(Value),
    /// By the schema's merge keys.
    Strategic(Value),
}

impl Patch {
    /// Reads a patch.
    ///
    /// # Errors
    /// That the media type is not supported, or the body is no such patch.
    pub fn read(media_type: &str, body: &[u8]) -> Result<Self, ApiError> {
        let bad = |e: serde_json::Error| ApiError::bad_request(format!("the body is no patch: {e}"));
        let object = |body: &[u8]| match serde_json::from_slice::<Value>(body) {
            Ok(value) if value.is_object() => Ok(value),
            Ok(_) => Err(ApiError::bad_request("the body is no patch: expected an object")),
            Err(e) => Err(bad(e)),
        };
        match media_type {
            JSON => {
                let patch: json_patch::Patch = serde_json::from_slice(body).map_err(bad)?;
                if patch.0.len() > OPERATIONS_MAX {
                    return Err(ApiError::bad_request(format!("expected at most {OPERATIONS_MAX} operations")));
                }
                Ok(Self::Json(patch))
            }
            MERGE => object(body).map(Self::Merge),
            STRATEGIC => object(body).map(Self::Strategic),
            other if APPLY.contains(&other) => Err(ApiError::unsupported_media_type(format!(
                "server-side apply ({other}) is not done by this server: use client-side apply, {JSON}, {MERGE} \
                 or {STRATEGIC}"
            ))),
            other => Err(ApiError::unsupported_media_type(format!(
                "the body of the request was in an unknown format - accepted media types include: {JSON}, {MERGE}, \
                 {STRATEGIC}; got {other:?}"
            ))),
        }
    }

    /// Applies it. `schema` is that of the object, `None` for kinds without merge keys.
    ///
    /// # Errors
    /// That it does not fit the object.
    pub fn apply(&self, object: &mut Value, types: &Types, schema: Option<&Value>) -> Result<(), ApiError> {
        match self {
            Self::Json(patch) => json_patch::patch(object, patch)
                .map_err(|e| ApiError::bad_request(format!("the server rejected our request: {e}"))),
            Self::Merge(patch) => {
                json_patch::merge(object, patch);
                Ok(())
            }
            Self::Strategic(patch) => {
                let Some(schema) = schema else {
                    return Err(ApiError::unsupported_media_type(format!(
                        "{STRATEGIC} is not supported for custom resources: expected {MERGE} or {JSON}"
                    )));
                };
                merge_object(types, schema, object, patch, "")
            }
        }
    }
}

fn bad(path: &str, expected: &str) -> ApiError {
    ApiError::bad_request(format!(
        "strategic merge patch: {}: expected {expected}",
        if path.is_empty() { "." } else { path }
    ))
}

fn merge_object(types: &Types, schema: &Value, target: &mut Value, patch: &Value, path: &str) -> Result<(), ApiError> {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return Ok(());
    };
    match patch.get("$patch").and_then(Value::as_str) {
        Some("replace") => {
            *target = without_directives(patch);
            return Ok(());
        }
        Some("delete") => {
            *target = Value::Object(Map::new());
            return Ok(());
        }
        None | Some("merge") => {}
        Some(_) => return Err(bad(&format!("{path}.$patch"), "replace, merge or delete")),
    }
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(map) = target else { return Ok(()) };
    let schema = types.resolve(schema);
    if let Some(kept) = patch.get("$retainKeys") {
        let kept = kept.as_array().ok_or_else(|| bad(&format!("{path}.$retainKeys"), "a list"))?;
        map.retain(|field, _| kept.iter().any(|k| k.as_str() == Some(field)));
    }
    for (field, value) in patch {
        if field.starts_with('$') {
            list_directive(types, schema, map, field, value, path)?;
            continue;
        }
        let here = format!("{path}.{field}");
        let inner = schema.get("properties").and_then(|p| p.get(field)).or_else(|| schema.get("additionalProperties"));
        match (value, inner) {
            (Value::Null, _) => {
                map.remove(field);
            }
            (Value::Object(_), Some(inner)) => {
                merge_object(types, inner, map.entry(field.clone()).or_insert(Value::Null), value, &here)?;
            }
            (Value::Object(_), None) => {
                merge_object(types, &Value::Null, map.entry(field.clone()).or_insert(Value::Null), value, &here)?;
            }
            (Value::Array(list), Some(inner)) => {
                let order = patch.get(&format!("$setElementOrder/{field}"));
                merge_list(types, inner, map.entry(field.clone()).or_insert(Value::Null), list, order, &here)?;
            }
            _ => {
                map.insert(field.clone(), value.clone());
            }
        }
    }
    Ok(())
}

/// `$deleteFromPrimitiveList/finalizers`, and orders of lists that the patch does not touch.
fn list_directive(
    types: &Types,
    schema: &Value,
    map: &mut Map<String, Value>,
    directive: &str,
    value: &Value,
    path: &str,
) -> Result<(), ApiError> {
    let here = format!("{path}.{directive}");
    if let Some(field) = directive.strip_prefix("$deleteFromPrimitiveList/") {
        let gone = value.as_array().ok_or_else(|| bad(&here, "a list"))?;
        if let Some(Value::Array(list)) = map.get_mut(field) {
            list.retain(|v| !gone.contains(v));
        }
    } else if let Some(field) = directive.strip_prefix("$setElementOrder/") {
        let order = value.as_array().ok_or_else(|| bad(&here, "a list"))?;
        let key = schema
            .get("properties")
            .and_then(|p| p.get(field))
            .map(|s| types.resolve(s))
            .and_then(|s| s.get("x-kubernetes-patch-merge-key"))
            .and_then(Value::as_str);
        if let Some(Value::Array(list)) = map.get_mut(field) {
            sort(list, order, key);
        }
    } else if !matches!(directive, "$patch" | "$retainKeys") {
        return Err(bad(&here, "a known directive"));
    }
    Ok(())
}

fn merge_list(
    types: &Types,
    schema: &Value,
    target: &mut Value,
    patch: &[Value],
    order: Option<&Value>,
    path: &str,
) -> Result<(), ApiError> {
    let merges = schema
        .get("x-kubernetes-patch-strategy")
        .and_then(Value::as_str)
        .is_some_and(|s| s.split(',').any(|p| p == "merge"));
    if !merges {
        *target = patch.to_vec().into();
        return Ok(());
    }
    if !target.is_array() {
        *target = Value::Array(Vec::new());
    }
    let Value::Array(list) = target else { return Ok(()) };
    let Some(key) = schema.get("x-kubernetes-patch-merge-key").and_then(Value::as_str) else {
        for value in patch {
            if !list.contains(value) {
                list.push(value.clone());
            }
        }
        if let Some(order) = order.and_then(Value::as_array) {
            sort(list, order, None);
        }
        return Ok(());
    };
    let item_schema = schema.get("items").unwrap_or(&Value::Null);
    let is = |item: &Value, directive: &str| item.get("$patch").and_then(Value::as_str) == Some(directive);
    if patch.iter().any(|item| is(item, "replace") && item.get(key).is_none()) {
        // The directive stands alone: the other items are the new list.
        *list = patch
            .iter()
            .filter(|i| !is(i, "replace"))
            .map(|i| i.as_object().map_or(Value::Null, without_directives))
            .collect();
        return Ok(());
    }
    for (index, item) in patch.iter().enumerate() {
        let here = format!("{path}[{index}]");
        let id = item.get(key).ok_or_else(|| bad(&format!("{here}.{key}"), "the merge key of this list"))?;
        if is(item, "delete") {
            list.retain(|old| old.get(key) != Some(id));
            continue;
        }
        match list.iter_mut().find(|old| old.get(key) == Some(id)) {
            Some(old) => merge_object(types, item_schema, old, item, &here)?,
            None => {
                let mut new = Value::Object(Map::new());
                merge_object(types, item_schema, &mut new, item, &here)?;
                list.push(new);
            }
        }
    }
    if let Some(order) = order.and_then(Value::as_array) {
        sort(list, order, Some(key));
    }
    Ok(())
}

/// Puts the elements that `order` names in that order; others follow, as they were.
fn sort(list: &mut [Value], order: &[Value], key: Option<&str>) {
    let place = |value: &Value| {
        let id = key.map_or(Some(value), |k| value.get(k));
        order.iter().position(|o| key.map_or(Some(o), |k| o.get(k)) == id).unwrap_or(order.len())
    };
    list.sort_by_key(place);
}

fn without_directives(map: &Map<String, Value>) -> Value {
    map.iter().filter(|(field, _)| !field.starts_with('$')).map(|(f, v)| (f.clone(), v.clone())).collect()
}

#[cfg(test)]
mod tests;
