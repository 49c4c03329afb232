//! A JSON value together with its path, so that every complaint can say where.

use super::problem::{Problem, Problems};
use serde_json::{Map, Value};
use std::fmt;

/// What reading a part of an object gives.
pub(super) type Read<T> = Result<T, Problems>;

/// Where a value sits; borrowed from the caller's stack.
#[derive(Clone, Copy)]
pub(super) enum Path<'a> {
    Root(&'a str),
    Field(&'a Path<'a>, &'a str),
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
    pub(super) fn problem(&self, problem: impl Into<String>) -> Problem {
        Problem::new(self, problem)
    }

    /// The same, as the end of a reading.
    pub(super) fn fail<T>(&self, problem: impl Into<String>) -> Read<T> {
        Err(self.problem(problem).into())
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
pub(super) fn object<'v>(path: Path<'_>, value: &'v Value, known: &[&str]) -> Read<&'v Map<String, Value>> {
    let map = any_object(path, value)?;
    let unknown = map.keys().filter(|key| !known.contains(&key.as_str()));
    let complain =
        |key: &String| Path::Field(&path, key).problem(format!("unknown field, expected one of: {}", known.join(", ")));
    let problems: Vec<Problem> = unknown.map(complain).collect();
    Problems::new(problems).map_or(Ok(map), Err)
}

pub(super) fn any_object<'v>(path: Path<'_>, value: &'v Value) -> Read<&'v Map<String, Value>> {
    match value {
        Value::Object(map) => Ok(map),
        other => path.fail(format!("expected an object, found {}", kind(other))),
    }
}

/// A field that is there and not null.
pub(super) fn get<'v>(map: &'v Map<String, Value>, name: &str) -> Option<&'v Value> {
    map.get(name).filter(|value| !value.is_null())
}

/// A field that must be there.
pub(super) fn required<'v>(path: Path<'_>, map: &'v Map<String, Value>, name: &str, what: &str) -> Read<&'v Value> {
    match get(map, name) {
        Some(value) => Ok(value),
        None => Path::Field(&path, name).fail(format!("required: {what}")),
    }
}

/// A list; absent and null are `None`.
pub(super) fn list<'v>(path: Path<'_>, map: &'v Map<String, Value>, name: &str) -> Read<Option<&'v [Value]>> {
    match get(map, name) {
        None => Ok(None),
        Some(Value::Array(items)) => Ok(Some(items)),
        Some(other) => Path::Field(&path, name).fail(format!("expected a list, found {}", kind(other))),
    }
}

/// A list of at most `max`.
pub(super) fn short_list<'v>(
    path: Path<'_>,
    map: &'v Map<String, Value>,
    name: &str,
    max: usize,
) -> Read<Option<&'v [Value]>> {
    let items = list(path, map, name)?;
    match items {
        Some(items) if items.len() > max => {
            Path::Field(&path, name).fail(format!("{} elements, expected at most {max}", items.len()))
        }
        items => Ok(items),
    }
}

/// Reads every element of a list, and reports what is wrong with all of them.
pub(super) fn each<T>(path: Path<'_>, items: &[Value], read: impl Fn(Path<'_>, &Value) -> Read<T>) -> Read<Vec<T>> {
    all(items.iter().enumerate().map(|(n, item)| read(Path::Index(&path, n), item)))
}

pub(super) fn all<T>(results: impl IntoIterator<Item = Read<T>>) -> Read<Vec<T>> {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(value) => good.push(value),
            Err(problems) => bad.extend(problems),
        }
    }
    Problems::new(bad).map_or(Ok(good), Err)
}

pub(super) fn both<A, B>(a: Read<A>, b: Read<B>) -> Read<(A, B)> {
    match (a, b) {
        (Ok(a), Ok(b)) => Ok((a, b)),
        (Err(a), Err(b)) => Err(a.and(b)),
        (Err(problems), _) | (_, Err(problems)) => Err(problems),
    }
}

pub(super) fn string<'v>(path: Path<'_>, value: &'v Value) -> Read<&'v str> {
    match value {
        Value::String(text) => Ok(text),
        other => path.fail(format!("expected a string, found {}", kind(other))),
    }
}

/// A boolean that may be absent.
pub(super) fn boolean(path: Path<'_>, map: &Map<String, Value>, name: &str) -> Read<Option<bool>> {
    match get(map, name) {
        None => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(other) => Path::Field(&path, name).fail(format!("expected true or false, found {}", kind(other))),
    }
}

pub(super) fn number(path: Path<'_>, value: &Value, range: std::ops::RangeInclusive<u16>) -> Read<u16> {
    let expected = format!("expected a number from {} to {}", range.start(), range.end());
    match value {
        Value::Number(number) => {
            let read = number.as_u64().and_then(|number| u16::try_from(number).ok());
            match read.filter(|number| range.contains(number)) {
                Some(number) => Ok(number),
                None => path.fail(format!("{number}, {expected}")),
            }
        }
        other => path.fail(format!("{expected}, found {}", kind(other))),
    }
}
