//! Bodies in protobuf, which kubectl's typed commands (`kubectl create deployment`) send: into JSON.
//!
//! Answers are JSON always, which every client takes. The numbers of the fields are in `schemas/numbers.yaml`:
//! `[T]` is a list, `{T}` a map, `~T` a message whose fields are those of the one around it, and `+` marks a number
//! that is above zero when it is given at all.

use super::error::ApiError;
use base64::Engine;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::OnceLock;

/// Media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

const MAGIC: &[u8] = b"k8s\0";
const DEPTH_MAX: usize = 64;

struct Field {
    name: String,
    kind: String,
    positive: bool,
}

type Messages = HashMap<String, HashMap<u64, Field>>;

fn messages() -> &'static Messages {
    static MESSAGES: OnceLock<Messages> = OnceLock::new();
    MESSAGES.get_or_init(|| load().expect("the table is part of the program, and a test reads it"))
}

fn load() -> Result<Messages, String> {
    let table: BTreeMap<String, String> =
        serde_saphyr::from_str(include_str!("schemas/numbers.yaml")).map_err(|e| e.to_string())?;
    let mut messages = Messages::new();
    for (message, text) in table {
        let mut fields = HashMap::new();
        for entry in text.split_whitespace() {
            let (name, rest) = entry.split_once('=').ok_or_else(|| format!("{message}: {entry}: expected ="))?;
            let (number, kind) = rest.split_once(':').ok_or_else(|| format!("{message}: {entry}: expected :"))?;
            let number = number.parse().map_err(|e| format!("{message}: {entry}: {e}"))?;
            let (kind, positive) = kind.strip_suffix('+').map_or((kind, false), |k| (k, true));
            fields.insert(number, Field { name: name.to_owned(), kind: kind.to_owned(), positive });
        }
        messages.insert(message, fields);
    }
    Ok(messages)
}

fn bad(what: impl std::fmt::Display) -> ApiError {
    ApiError::bad_request(format!("the body is no protobuf object: {what}"))
}

/// Reads a body.
///
/// # Errors
/// That it is malformed, or of a kind or with a field that this server does not know.
pub fn decode(body: &[u8]) -> Result<Value, ApiError> {
    let envelope = body.strip_prefix(MAGIC).ok_or_else(|| bad("expected the prefix k8s"))?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for field in Fields(envelope) {
        match field? {
            (1, Wire::Bytes(meta)) => {
                for field in Fields(meta) {
                    match field? {
                        (1, Wire::Bytes(text)) => api_version = string(text)?,
                        (2, Wire::Bytes(text)) => kind = string(text)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    if !messages().contains_key(&kind) {
        return Err(ApiError::unsupported_media_type(format!(
            "{api_version} {kind:?} is not read in {MEDIA_TYPE} by this server: expected application/json"
        )));
    }
    let mut object = message(&kind, raw, &kind, 0)?;
    object.insert("apiVersion".to_owned(), api_version.into());
    object.insert("kind".to_owned(), kind.into());
    Ok(object.into())
}

fn string(bytes: &[u8]) -> Result<String, ApiError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| bad("expected UTF-8"))
}

fn message(name: &str, bytes: &[u8], path: &str, depth: usize) -> Result<Map<String, Value>, ApiError> {
    if depth > DEPTH_MAX {
        return Err(bad(format!("{path}: nested too deeply")));
    }
    let fields = messages().get(name).ok_or_else(|| bad(format!("{path}: {name} is not known")))?;
    let mut object = Map::new();
    for entry in Fields(bytes) {
        let (number, wire) = entry?;
        let Some(field) = fields.get(&number) else {
            // What is empty says nothing; what is not must not get lost.
            if wire.is_empty() {
                continue;
            }
            return Err(bad(format!("{path}: field {number} of {name} is not known to this server")));
        };
        let here = format!("{path}.{}", field.name);
        let kind = field.kind.as_str();
        if let Some(inner) = kind.strip_prefix('~') {
            object.append(&mut message(inner, wire.bytes(&here)?, &here, depth + 1)?);
        } else if let Some(inner) = kind.strip_prefix('[').and_then(|k| k.strip_suffix(']')) {
            let list = object.entry(field.name.clone()).or_insert_with(|| json!([]));
            let value = value(inner, wire, &here, depth)?.unwrap_or_else(|| Value::String(String::new()));
            if let Value::Array(list) = list {
                list.push(value);
            }
        } else if let Some(inner) = kind.strip_prefix('{').and_then(|k| k.strip_suffix('}')) {
            let (key, value) = entry_of_map(inner, wire.bytes(&here)?, &here, depth)?;
            let map = object.entry(field.name.clone()).or_insert_with(|| json!({}));
            map[key] = value;
        } else if let Some(value) = value(kind, wire, &here, depth)?
            && !(field.positive && value == 0)
        {
            object.insert(field.name.clone(), value);
        }
    }
    Ok(object)
}

fn entry_of_map(kind: &str, bytes: &[u8], path: &str, depth: usize) -> Result<(String, Value), ApiError> {
    let (mut key, mut found) = (String::new(), None);
    for field in Fields(bytes) {
        match field? {
            (1, wire) => key = string(wire.bytes(path)?)?,
            (2, wire) => found = value(kind, wire, path, depth)?,
            _ => {}
        }
    }
    Ok((key, found.unwrap_or_else(|| Value::String(String::new()))))
}

/// A value; `None` when it says nothing.
fn value(kind: &str, wire: Wire<'_>, path: &str, depth: usize) -> Result<Option<Value>, ApiError> {
    let number = |field: u64| -> Result<i64, ApiError> {
        for entry in Fields(wire.bytes(path)?) {
            if let (found, Wire::Number(value)) = entry?
                && found == field
            {
                return Ok(value.cast_signed());
            }
        }
        Ok(0)
    };
    let inner_text = |field: u64| -> Result<String, ApiError> {
        for entry in Fields(wire.bytes(path)?) {
            if let (found, Wire::Bytes(text)) = entry?
                && found == field
            {
                return string(text);
            }
        }
        Ok(String::new())
    };
    Ok(match kind {
        "string" => Some(string(wire.bytes(path)?)?).filter(|s| !s.is_empty()).map(Value::from),
        "bytes" => Some(base64::engine::general_purpose::STANDARD.encode(wire.bytes(path)?).into()),
        "bool" => Some((wire.number(path)? != 0).into()),
        "int32" | "int64" => Some(wire.number(path)?.cast_signed().into()),
        "Time" | "MicroTime" => {
            if wire.is_empty() {
                return Ok(None);
            }
            let nanoseconds = i32::try_from(number(2)?).map_err(bad)?;
            let time = jiff::Timestamp::new(number(1)?, nanoseconds).map_err(|e| bad(format!("{path}: {e}")))?;
            let form = if kind == "Time" { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S.%6fZ" };
            Some(time.strftime(form).to_string().into())
        }
        "Quantity" => Some(inner_text(1)?.into()),
        "IntOrString" => Some(if number(1)? == 0 { number(2)?.into() } else { inner_text(3)?.into() }),
        // Who wrote which field is not kept.
        "FieldsV1" => None,
        "RawExtension" => Some(serde_json::from_str(&inner_text(1)?).map_err(|e| bad(format!("{path}: {e}")))?),
        name => Some(message(name, wire.bytes(path)?, path, depth + 1)?.into()),
    })
}

#[derive(Clone, Copy)]
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Wire<'a> {
    fn is_empty(self) -> bool {
        matches!(self, Self::Number(0) | Self::Bytes([]))
    }

    fn bytes(self, path: &str) -> Result<&'a [u8], ApiError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Number(_) => Err(bad(format!("{path}: expected bytes"))),
        }
    }

    fn number(self, path: &str) -> Result<u64, ApiError> {
        match self {
            Self::Number(number) => Ok(number),
            Self::Bytes(_) => Err(bad(format!("{path}: expected a number"))),
        }
    }
}

/// The fields of a message as they are on the wire.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Wire<'a>), ApiError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field().ok_or_else(|| bad("it breaks off"));
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u64, Wire<'a>)> {
        let tag = self.varint()?;
        let wire = match tag & 7 {
            0 => Wire::Number(self.varint()?),
            1 => Wire::Number(u64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Number(u64::from(u32::from_le_bytes(self.take(4)?.try_into().ok()?))),
            _ => return None,
        };
        Some((tag >> 3, wire))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..70).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            if shift < 64 {
                value |= u64::from(byte & 0x7f) << shift;
            }
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_read_and_a_broken_one_is_refused() {
        assert!(load().is_ok());
        // A ConfigMap named x with data a=b.
        let mut body = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x0f\x0a\x03\x0a\x01x\x12\x08".to_vec();
        body.extend_from_slice(b"\x0a\x01a\x12\x01b\x0a\x00");
        assert!(decode(&body).is_ok());
        for cut in 0..body.len() {
            // Never a panic, whatever is read.
            let _ = decode(&body[..cut]);
        }
        assert_eq!(decode(b"k8s\0\x0a\x0a\x0a\x02v1\x12\x04What").unwrap_err().code, 415);
        assert_eq!(decode(b"{}").unwrap_err().code, 400);
    }
}
