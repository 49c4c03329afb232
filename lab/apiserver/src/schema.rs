//! Decoding by schema: types, unknown fields, defaults, and what a schema alone can say about values.
//!
//! One walk over the object does for built-in kinds what Kubernetes does while decoding: a wrong type refuses the
//! request (400), an unknown field is dropped and reported, `null` is as good as absent, a missing field gets its
//! default. Wrong values are collected as causes (422). Custom resources are pruned and given defaults by the same
//! walk; their values are judged by [`super::crd`].

use super::error::{ApiError, Cause};
use super::types::Types;
use serde_json::{Map, Value};

/// Deepest nesting of an object.
const DEPTH_MAX: usize = 64;

/// How an object is walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A built-in kind: types and values are judged here.
    Builtin,
    /// A custom resource: only pruned and defaulted.
    Custom,
}

/// What was found on the way.
#[derive(Debug, Default)]
pub struct Findings {
    /// Paths of fields that the schema does not have; they have been dropped.
    pub unknown: Vec<String>,
    /// Values that are wrong.
    pub causes: Vec<Cause>,
    /// First value of a wrong type.
    wrong_type: Option<String>,
}

/// Walks an object, and changes it as said above.
///
/// # Errors
/// That a value is of a wrong type.
pub fn decode(types: &Types, schema: &Value, mode: Mode, object: &mut Value) -> Result<Findings, ApiError> {
    let mut walk = Walk { types, mode, findings: Findings::default() };
    walk.value(schema, object, &mut String::new(), 0);
    match walk.findings.wrong_type.take() {
        Some(message) => Err(ApiError::bad_request(message)),
        None => Ok(walk.findings),
    }
}

struct Walk<'a> {
    types: &'a Types,
    mode: Mode,
    findings: Findings,
}

impl Walk<'_> {
    fn wrong(&mut self, path: &str, value: &Value, expected: &str) {
        if self.mode == Mode::Builtin && self.findings.wrong_type.is_none() {
            self.findings.wrong_type = Some(format!("{path}: expected {expected}, got {}", type_name(value)));
        }
    }

    fn value(&mut self, schema: &Value, value: &mut Value, path: &mut String, depth: usize) {
        if depth > DEPTH_MAX {
            self.findings.wrong_type = Some(format!("{path}: expected at most {DEPTH_MAX} levels of nesting"));
            return;
        }
        let outer = schema;
        let schema = self.types.resolve(schema);
        if is_true(schema, "x-kubernetes-int-or-string") {
            return self.int_or_string(schema, value, path);
        }
        match schema.get("type").and_then(Value::as_str) {
            Some("object") => self.object(schema, value, path, depth),
            Some("array") => self.array(schema, value, path, depth),
            Some("string") => self.string(outer, value, path),
            Some("integer") => self.integer(outer, value, path),
            Some("number") if !value.is_number() => self.wrong(path, value, "a number"),
            Some("boolean") if !value.is_boolean() => self.wrong(path, value, "true or false"),
            _ => {}
        }
    }

    fn object(&mut self, schema: &Value, value: &mut Value, path: &mut String, depth: usize) {
        let Value::Object(map) = value else { return self.wrong(path, value, "an object") };
        let keep = is_true(schema, "x-kubernetes-preserve-unknown-fields");
        let none = Map::new();
        let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&none);
        let additional = schema.get("additionalProperties");
        let open = schema.get("properties").is_none() && additional.is_none() && self.mode == Mode::Builtin;
        let embedded = is_true(schema, "x-kubernetes-embedded-resource");
        map.retain(|field, value| match properties.get(field) {
            Some(p) => {
                let nullable = is_true(p, "nullable");
                !value.is_null() || self.mode == Mode::Custom && (nullable || p.get("default").is_none())
            }
            None => {
                let meta = (depth == 0 || embedded) && matches!(field.as_str(), "apiVersion" | "kind" | "metadata");
                let known = keep || open || meta || additional.is_some_and(|a| *a != Value::Bool(false));
                if !known {
                    self.findings.unknown.push(join(path, field));
                }
                known
            }
        });
        for (field, property) in properties {
            if !map.contains_key(field)
                && let Some(default) = property.get("default")
            {
                map.insert(field.clone(), default.clone());
            }
        }
        if self.mode == Mode::Builtin && !is_status(path) {
            let required = schema.get("required").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            for field in required.iter().filter_map(Value::as_str) {
                let elsewhere = depth == 0 && field == "metadata";
                if !elsewhere && !map.contains_key(field) {
                    self.findings.causes.push(Cause::required(join(path, field), ""));
                }
            }
        }
        for (field, value) in map.iter_mut() {
            let Some(schema) = properties.get(field).or(additional) else { continue };
            if value.is_null() && self.mode == Mode::Custom {
                continue;
            }
            let length = path.len();
            if properties.contains_key(field) {
                *path = join(path, field);
            } else {
                path.push_str(&format!("[{field}]"));
            }
            self.value(schema, value, path, depth + 1);
            path.truncate(length);
        }
    }

    fn array(&mut self, schema: &Value, value: &mut Value, path: &mut String, depth: usize) {
        let Value::Array(list) = value else { return self.wrong(path, value, "a list") };
        let Some(items) = schema.get("items") else { return };
        let merge_key = schema.get("x-kubernetes-patch-merge-key").and_then(Value::as_str);
        let mut seen: Vec<Value> = Vec::new();
        for (index, item) in list.iter_mut().enumerate() {
            let length = path.len();
            path.push_str(&format!("[{index}]"));
            self.value(items, item, path, depth + 1);
            // Ports may be the same for two protocols, and duplicates in a status are the writer's business.
            if let Some(key) = merge_key.filter(|k| *k == "name" && self.mode == Mode::Builtin && !is_status(path))
                && let Some(id) = item.get(key)
                && !path.contains(".env[")
            {
                if seen.contains(id) {
                    self.findings.causes.push(Cause::duplicate(join(path, key), id));
                }
                seen.push(id.clone());
            }
            path.truncate(length);
        }
    }

    fn string(&mut self, schema: &Value, value: &Value, path: &str) {
        let Value::String(text) = value else { return self.wrong(path, value, "a string") };
        if self.mode == Mode::Custom {
            return;
        }
        match schema.get("format").and_then(Value::as_str) {
            Some("date-time") if text.parse::<jiff::Timestamp>().is_err() => {
                self.wrong(path, value, "a time such as 2026-01-31T12:00:00Z");
            }
            Some("byte") if base64_invalid(text) => {
                self.findings.wrong_type.get_or_insert_with(|| format!("{path}: expected base64"));
            }
            _ => {}
        }
        if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
            && !text.is_empty()
            && !allowed.contains(value)
        {
            let allowed: Vec<&str> = allowed.iter().filter_map(Value::as_str).collect();
            self.findings.causes.push(Cause::unsupported(path, value, &allowed));
        }
    }

    fn integer(&mut self, schema: &Value, value: &mut Value, path: &str) {
        if let Some(float) = value.as_f64().filter(|f| value.as_i64().is_none() && f.fract() == 0.0 && f.abs() < 9e15) {
            // 3.0 is a whole number, in JSON too.
            #[expect(clippy::cast_possible_truncation, reason = "it is whole and far from the limits")]
            let whole = float as i64;
            *value = whole.into();
        }
        let Some(number) = value.as_i64() else { return self.wrong(path, value, "a whole number") };
        if self.mode == Mode::Custom {
            return;
        }
        if schema.get("format").and_then(Value::as_str) == Some("int32") && i32::try_from(number).is_err() {
            return self.wrong(path, value, "a whole number of 32 bits");
        }
        let low = schema.get("minimum").and_then(Value::as_i64);
        let high = schema.get("maximum").and_then(Value::as_i64);
        if low.is_some_and(|l| number < l) || high.is_some_and(|h| number > h) {
            let expected = match (low, high) {
                (Some(low), Some(high)) => format!("must be between {low} and {high}, inclusive"),
                (Some(low), None) => format!("must be greater than or equal to {low}"),
                _ => format!("must be less than or equal to {}", high.unwrap_or(i64::MAX)),
            };
            self.findings.causes.push(Cause::invalid(path, value, expected));
        }
    }

    fn int_or_string(&mut self, schema: &Value, value: &mut Value, path: &str) {
        let quantity = schema.get("format").and_then(Value::as_str) == Some("quantity");
        if self.mode == Mode::Builtin && quantity {
            if let Value::Number(number) = value {
                *value = Value::String(number.to_string());
            }
            match value.as_str() {
                None => self.wrong(path, value, "a quantity"),
                Some(text) if !is_quantity(text) => {
                    let expected = "quantities must match a number with an optional suffix such as m, k, M, Gi";
                    self.findings.wrong_type.get_or_insert_with(|| format!("{path}: {text:?}: {expected}"));
                }
                Some(_) => {}
            }
        } else if !(value.is_string() || value.is_i64() || value.is_u64()) {
            self.wrong(path, value, "a whole number or a string");
        }
    }
}

/// The status is written by components that may leave out what they do not know.
fn is_status(path: &str) -> bool {
    path.starts_with("status")
}

fn is_true(schema: &Value, field: &str) -> bool {
    schema.get(field) == Some(&Value::Bool(true))
}

fn join(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn base64_invalid(text: &str) -> bool {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).is_err()
}

/// Whether the text is a quantity: `100m`, `1.5Gi`, `2e3`.
fn is_quantity(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let digits = number.chars().filter(char::is_ascii_digit).count();
    if digits == 0 || number.matches('.').count() > 1 {
        return false;
    }
    let exponent = suffix.strip_prefix(['e', 'E']).is_some_and(|e| e.parse::<i32>().is_ok());
    let known = ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    exponent || known.contains(&suffix)
}
