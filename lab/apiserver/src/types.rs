//! The schemas of the built-in kinds: short tables in `schemas/*.yaml`, written out as OpenAPI.
//!
//! A field's type is written `TYPE[!][ retain][ = DEFAULT]`, where `!` means required, and TYPE is
//! `string`, `bytes`, `bool`, `int32`, `int64`, `number`, `quantity`, `intstr`, `time`, `microtime`, `any`,
//! `string(A B)` for one of those, `int32(1..65535)` for a range, the name of a type of the tables,
//! `{T}` for a map, `[T]` for a list that patches replace, `[T by key]` for one that strategic patches merge by
//! that key, `[T set]` for a set that they merge.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::OnceLock;

const FILES: [(&str, &str); 9] = [
    ("meta", include_str!("schemas/meta.yaml")),
    ("core", include_str!("schemas/core.yaml")),
    ("apps", include_str!("schemas/apps.yaml")),
    ("autoscaling", include_str!("schemas/autoscaling.yaml")),
    ("coordination", include_str!("schemas/coordination.yaml")),
    ("discovery", include_str!("schemas/discovery.yaml")),
    ("networking", include_str!("schemas/networking.yaml")),
    ("policy", include_str!("schemas/policy.yaml")),
    ("apiextensions", include_str!("schemas/apiextensions.yaml")),
];
const WORDS: &str = include_str!("schemas/words.yaml");

/// All types, by their full names (`io.k8s.api.core.v1.Pod`), as OpenAPI component schemas.
#[derive(Debug)]
pub struct Types {
    components: Map<String, Value>,
    full_names: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct File {
    package: String,
    types: BTreeMap<String, BTreeMap<String, String>>,
}

/// The types of the tables.
pub fn builtin() -> &'static Types {
    static TYPES: OnceLock<Types> = OnceLock::new();
    TYPES.get_or_init(|| load().expect("the tables are part of the program, and a test reads them"))
}

fn load() -> Result<Types, String> {
    let words: BTreeMap<String, String> =
        serde_saphyr::from_str(WORDS).map_err(|e| format!("schemas/words.yaml: {e}"))?;
    let mut files = Vec::new();
    let mut full_names = BTreeMap::new();
    for (name, text) in FILES {
        let file: File = serde_saphyr::from_str(text).map_err(|e| format!("schemas/{name}.yaml: {e}"))?;
        for short in file.types.keys() {
            if full_names.insert(short.clone(), format!("{}.{short}", file.package)).is_some() {
                return Err(format!("schemas/{name}.yaml: {short}: given before"));
            }
        }
        files.push(file);
    }
    let mut components = Map::new();
    for (short, fields) in files.into_iter().flat_map(|f| f.types) {
        let mut properties = Map::new();
        let mut required = Vec::new();
        for (field, text) in fields {
            let at = format!("{short}.{field}");
            let parsed = parse_field(&text, &full_names).map_err(|e| format!("{at}: {text:?}: {e}"))?;
            let mut schema = parsed.schema;
            if let Some(description) = words.get(&at) {
                schema["description"] = description.as_str().into();
            }
            if parsed.required {
                required.push(Value::from(field.as_str()));
            }
            properties.insert(field, schema);
        }
        let mut schema = json!({"type": "object", "properties": properties});
        if !required.is_empty() {
            schema["required"] = required.into();
        }
        if let Some(description) = words.get(&short) {
            schema["description"] = description.as_str().into();
        }
        components.insert(full_names[&short].clone(), schema);
    }
    Ok(Types { components, full_names })
}

struct Field {
    schema: Value,
    required: bool,
}

fn parse_field(text: &str, names: &BTreeMap<String, String>) -> Result<Field, String> {
    let (head, default) = match text.split_once(" = ") {
        None => (text, None),
        Some((head, default)) => {
            (head, Some(serde_json::from_str::<Value>(default).map_err(|e| format!("default: {e}"))?))
        }
    };
    let (head, retain) = head.strip_suffix(" retain").map_or((head, false), |h| (h, true));
    let (head, required) = head.strip_suffix('!').map_or((head, false), |h| (h, true));
    let mut schema = parse_type(head, names)?;
    if retain {
        let strategy = match schema.get("x-kubernetes-patch-strategy").and_then(Value::as_str) {
            Some(s) => format!("{s},retainKeys"),
            None => "retainKeys".to_owned(),
        };
        schema["x-kubernetes-patch-strategy"] = strategy.into();
    }
    if let Some(default) = default {
        schema["default"] = default;
    }
    Ok(Field { schema, required })
}

fn parse_type(text: &str, names: &BTreeMap<String, String>) -> Result<Value, String> {
    if let Some(inner) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
        let (item, key) = inner.split_once(" by ").map_or((inner, None), |(item, key)| (item, Some(key)));
        let (item, set) = item.strip_suffix(" set").map_or((item, false), |i| (i, true));
        let mut schema = json!({"type": "array", "items": parse_type(item, names)?});
        if let Some(key) = key {
            schema["x-kubernetes-patch-strategy"] = "merge".into();
            schema["x-kubernetes-patch-merge-key"] = key.into();
        } else if set {
            schema["x-kubernetes-patch-strategy"] = "merge".into();
        }
        return Ok(schema);
    }
    if let Some(inner) = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')) {
        return Ok(json!({"type": "object", "additionalProperties": parse_type(inner, names)?}));
    }
    if let Some((base, inside)) = text.strip_suffix(')').and_then(|t| t.split_once('(')) {
        let mut schema = parse_type(base, names)?;
        match inside.split_once("..") {
            None => schema["enum"] = inside.split(' ').map(Value::from).collect::<Vec<_>>().into(),
            Some((min, max)) => {
                for (bound, field) in [(min, "minimum"), (max, "maximum")] {
                    if !bound.is_empty() {
                        schema[field] = bound.parse::<i64>().map_err(|e| format!("{bound}: {e}"))?.into();
                    }
                }
            }
        }
        return Ok(schema);
    }
    Ok(match text {
        "string" => json!({"type": "string"}),
        "bytes" => json!({"type": "string", "format": "byte"}),
        "bool" => json!({"type": "boolean"}),
        "int32" => json!({"type": "integer", "format": "int32"}),
        "int64" => json!({"type": "integer", "format": "int64"}),
        "number" => json!({"type": "number", "format": "double"}),
        "quantity" => json!({"x-kubernetes-int-or-string": true, "format": "quantity"}),
        "intstr" => json!({"x-kubernetes-int-or-string": true, "format": "int-or-string"}),
        "time" | "microtime" => json!({"type": "string", "format": "date-time"}),
        "any" => json!({"x-kubernetes-preserve-unknown-fields": true}),
        name => match names.get(name) {
            Some(full) => json!({"allOf": [{"$ref": format!("{REF}{full}")}]}),
            None => return Err(format!("{name}: no such type")),
        },
    })
}

const REF: &str = "#/components/schemas/";

impl Types {
    /// Full name of a type.
    pub fn full_name(&self, short: &str) -> Option<&str> {
        self.full_names.get(short).map(String::as_str)
    }

    /// The schema of a type, by its short name.
    pub fn schema(&self, short: &str) -> Option<&Value> {
        self.components.get(self.full_names.get(short)?)
    }

    /// Follows a reference; a schema that is none is its own end.
    pub fn resolve<'a>(&'a self, schema: &'a Value) -> &'a Value {
        let target = schema
            .get("allOf")
            .and_then(|all| all.get(0))
            .and_then(|first| first.get("$ref"))
            .and_then(Value::as_str)
            .and_then(|r| r.strip_prefix(REF));
        target.and_then(|name| self.components.get(name)).unwrap_or(schema)
    }

    /// The named types and all that they mention, for a document.
    pub fn closure(&self, roots: &[&str]) -> Map<String, Value> {
        let mut found = Map::new();
        let mut open: Vec<String> = roots.iter().filter_map(|r| self.full_names.get(*r)).cloned().collect();
        while let Some(name) = open.pop() {
            if found.contains_key(&name) {
                continue;
            }
            let Some(schema) = self.components.get(&name) else { continue };
            mentioned(schema, &mut open);
            found.insert(name, schema.clone());
        }
        found
    }
}

fn mentioned(schema: &Value, names: &mut Vec<String>) {
    match schema {
        Value::Object(map) => {
            if let Some(name) = map.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix(REF)) {
                names.push(name.to_owned());
            }
            map.values().for_each(|v| mentioned(v, names));
        }
        Value::Array(list) => list.iter().for_each(|v| mentioned(v, names)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_tables_are_readable() {
        let types = super::load().unwrap();
        assert!(types.schema("NetworkPolicySpec").is_some());
        assert!(types.closure(&["Pod"]).len() > 100);
    }
}
