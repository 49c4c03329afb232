//! A JSON value together with its path, so that every complaint can say where.

use super::Problem;
use serde_json::{Map, Value};
use std::fmt;

/// Where a value sits; borrowed from the caller's stack.
#[derive(Clone, Copy)]
pub(super) enum Path<'a> {
    /// A top-level field.
    Root(&'a str),
    /// A field of an object.
    Field(&'a Path<'a>, &'a str),
    /// An element of a list.
    Index(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root(name) => f.write_str(name),
            Self::Field(parent, name) => write!(f, "{parent}.{name}"),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

impl Path<'_> {
    /// A complaint about this place.
    pub(super) fn problem(&self, problem: impl Into<String>) -> Problem {
        Problem::new(self, problem)
    }
}

/// What kind of JSON a value is, for messages.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// An object with no other fields than `known`. A field that we do not know could narrow a rule, so ignoring it could
/// allow too much.
pub(super) fn object<'v>(path: Path<'_>, value: &'v Value, known: &[&str]) -> Result<&'v Map<String, Value>, Problem> {
    let Value::Object(map) = value else {
        return Err(path.problem(format!("expected an object, found {}", kind(value))));
    };
    match map.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(map),
        Some(key) => {
            Err(Path::Field(&path, key).problem(format!("unknown field, expected one of: {}", known.join(", "))))
        }
    }
}

/// A field that is there and not null.
pub(super) fn get<'v>(map: &'v Map<String, Value>, name: &str) -> Option<&'v Value> {
    map.get(name).filter(|value| !value.is_null())
}

/// A list; absent and null are `None`.
pub(super) fn list<'v>(
    path: Path<'_>,
    map: &'v Map<String, Value>,
    name: &str,
) -> Result<Option<&'v [Value]>, Problem> {
    match get(map, name) {
        None => Ok(None),
        Some(Value::Array(items)) => Ok(Some(items)),
        Some(other) => Err(Path::Field(&path, name).problem(format!("expected a list, found {}", kind(other)))),
    }
}

/// A string.
pub(super) fn string<'v>(path: Path<'_>, value: &'v Value) -> Result<&'v str, Problem> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(path.problem(format!("expected a string, found {}", kind(other)))),
    }
}
