//! Custom kinds: from a CustomResourceDefinition to what serves its objects and judges them.

use super::error::Cause;
use super::object::{at, items, text};
use super::resource::{Resource, Scale};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is particular to a custom kind.
#[derive(Debug)]
pub struct Custom {
    /// `WidgetList`.
    pub list_kind: String,
    versions: BTreeMap<String, Version>,
}

#[derive(Debug)]
struct Version {
    schema: Value,
    validator: jsonschema::Validator,
    columns: Vec<Column>,
    selectable: Vec<String>,
}

/// A column of `kubectl get`.
#[derive(Clone, Debug)]
pub struct Column {
    /// Heading.
    pub name: String,
    /// `string`, `integer`, `date`, ...
    pub kind: String,
    /// Above 0: only in wide output.
    pub priority: i64,
    /// Where the value is.
    pub path: String,
    /// What it means.
    pub description: String,
}

impl Custom {
    /// The OpenAPI schema of a version.
    pub fn schema(&self, version: &str) -> Option<&Value> {
        self.versions.get(version).map(|v| &v.schema)
    }

    /// The columns of a version.
    pub fn columns(&self, version: &str) -> &[Column] {
        self.versions.get(version).map_or(&[], |v| v.columns.as_slice())
    }

    /// The fields that can be selected by.
    pub fn selectable(&self, version: &str) -> &[String] {
        self.versions.get(version).map_or(&[], |v| v.selectable.as_slice())
    }

    /// What is wrong with an object, or with what it was changed to.
    pub fn judge(&self, version: &str, object: &Value, old: Option<&Value>) -> Vec<Cause> {
        let Some(version) = self.versions.get(version) else { return Vec::new() };
        let mut causes: Vec<Cause> = version.validator.iter_errors(object).take(20).map(|e| cause(&e)).collect();
        sets(&version.schema, object, &mut String::new(), &mut causes);
        if let Some(old) = old {
            immutable(&version.schema, old, object, "", &mut causes);
        }
        causes
    }
}

/// The only rule of CEL that this server knows: a value may not change once it is set.
const IMMUTABLE: &str = "self == oldSelf";

/// Finds values that changed and may not.
fn immutable(schema: &Value, old: &Value, new: &Value, path: &str, causes: &mut Vec<Cause>) {
    for rule in items(schema, &["x-kubernetes-validations"]).iter().filter(|_| old != new) {
        let message = Some(text(rule, &["message"])).filter(|message| !message.is_empty());
        causes.push(Cause::invalid(path, new, message.unwrap_or("may not change once set")));
    }
    for (field, inner) in schema["properties"].as_object().into_iter().flatten() {
        if let (Some(old), Some(new)) = (old.get(field), new.get(field)) {
            let path = if path.is_empty() { field.clone() } else { format!("{path}.{field}") };
            immutable(inner, old, new, &path, causes);
        }
    }
}

/// Whether all rules are [`IMMUTABLE`], and of a place that is the same before and after, as [`immutable`] walks there.
fn known_rules(rules: &Value, path: &str) -> bool {
    let elsewhere = [".items", ".additionalProperties", ".not", "allOf[", "anyOf[", "oneOf["];
    let known = |rule: &Value| text(rule, &["rule"]) == IMMUTABLE && !elsewhere.iter().any(|part| path.contains(part));
    rules.as_array().is_some_and(|rules| rules.iter().all(known))
}

fn cause(error: &jsonschema::ValidationError<'_>) -> Cause {
    use jsonschema::error::ValidationErrorKind as Kind;
    let field = dotted(&error.instance_path().to_string());
    match error.kind() {
        Kind::Required { property } => {
            let property = property.as_str().unwrap_or_default();
            let field = if field.is_empty() { property.to_owned() } else { format!("{field}.{property}") };
            Cause::required(field, "")
        }
        Kind::Enum { options } => {
            let options: Vec<&str> =
                options.as_array().map_or(&[][..], Vec::as_slice).iter().filter_map(Value::as_str).collect();
            Cause::unsupported(field, error.instance(), &options)
        }
        _ => Cause::invalid(field, error.instance(), error.masked()),
    }
}

/// `/spec/ports/0/name` as `spec.ports[0].name`.
fn dotted(pointer: &str) -> String {
    let mut path = String::new();
    for part in pointer.split('/').skip(1) {
        let part = part.replace("~1", "/").replace("~0", "~");
        if !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) {
            path.push_str(&format!("[{part}]"));
        } else {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(&part);
        }
    }
    path
}

/// Lists that are sets or maps hold nothing twice.
fn sets(schema: &Value, value: &Value, path: &mut String, causes: &mut Vec<Cause>) {
    match value {
        Value::Array(list) => {
            let keys: Vec<&str> =
                items(schema, &["x-kubernetes-list-map-keys"]).iter().filter_map(Value::as_str).collect();
            let kind = text(schema, &["x-kubernetes-list-type"]);
            let mut seen: Vec<Value> = Vec::new();
            for (index, item) in list.iter().enumerate() {
                let length = path.len();
                path.push_str(&format!("[{index}]"));
                if matches!(kind, "set" | "map") {
                    let id = if kind == "set" { item.clone() } else { keys.iter().map(|k| item[*k].clone()).collect() };
                    if seen.contains(&id) {
                        causes.push(Cause::duplicate(path.as_str(), &id));
                    }
                    seen.push(id);
                }
                if let Some(items) = schema.get("items") {
                    sets(items, item, path, causes);
                }
                path.truncate(length);
            }
        }
        Value::Object(map) => {
            for (field, value) in map {
                let inner = at(schema, &["properties", field]).or_else(|| schema.get("additionalProperties"));
                let Some(inner) = inner else { continue };
                let length = path.len();
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(field);
                sets(inner, value, path, causes);
                path.truncate(length);
            }
        }
        _ => {}
    }
}

/// The structural schema as a JSON schema of draft 4, whose bounds have the same form.
fn json_schema(schema: &Value) -> Value {
    let Value::Object(map) = schema else { return schema.clone() };
    let mut out = Map::new();
    for (field, value) in map {
        match field.as_str() {
            "properties" | "patternProperties" | "definitions" => {
                let inner: Map<String, Value> = value
                    .as_object()
                    .map(|m| m.iter().map(|(k, v)| (k.clone(), json_schema(v))).collect())
                    .unwrap_or_default();
                out.insert(field.clone(), inner.into());
            }
            "items" | "not" | "additionalProperties" => {
                out.insert(field.clone(), json_schema(value));
            }
            "allOf" | "anyOf" | "oneOf" => {
                let inner: Vec<Value> =
                    value.as_array().map(|l| l.iter().map(json_schema).collect()).unwrap_or_default();
                out.insert(field.clone(), inner.into());
            }
            "type" | "required" | "enum" | "pattern" | "minLength" | "maxLength" | "minimum" | "maximum"
            | "exclusiveMinimum" | "exclusiveMaximum" | "multipleOf" | "minItems" | "maxItems" | "uniqueItems"
            | "minProperties" | "maxProperties" => {
                out.insert(field.clone(), value.clone());
            }
            // Words, defaults and formats judge nothing.
            _ => {}
        }
    }
    if schema.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
        out.insert("type".to_owned(), json!(["integer", "string"]));
    }
    if schema.get("nullable") == Some(&Value::Bool(true)) {
        let types = match out.get("type") {
            Some(Value::String(t)) => Some(json!([t, "null"])),
            Some(Value::Array(list)) => Some(list.iter().cloned().chain([json!("null")]).collect()),
            _ => None,
        };
        if let Some(types) = types {
            out.insert("type".to_owned(), types);
        }
        if let Some(Value::Array(values)) = out.get_mut("enum") {
            values.push(Value::Null);
        }
    }
    // Pruning has been done by the walk before, and keeps apiVersion, kind and metadata.
    if out.get("additionalProperties") == Some(&Value::Bool(false)) && out.contains_key("properties") {
        out.remove("additionalProperties");
    }
    out.into()
}

/// Reads a definition.
///
/// # Errors
/// What is wrong with it.
pub fn resource(definition: &Value) -> Result<Resource, Vec<Cause>> {
    let names = |field: &str| text(definition, &["spec", "names", field]).to_owned();
    let (group, plural, kind) = (text(definition, &["spec", "group"]).to_owned(), names("plural"), names("kind"));
    let mut causes = Vec::new();
    if weft_lab_config::names::subdomain(&group).is_err() || !group.contains('.') {
        causes.push(Cause::invalid("spec.group", &json!(group), "should be a domain with at least one dot"));
    }
    if weft_lab_config::names::service_name(&plural).is_err() {
        let why = weft_lab_config::names::service_name(&plural).err().unwrap_or_default();
        causes.push(Cause::invalid("spec.names.plural", &json!(plural), why));
    }
    let name = super::object::name(definition);
    if name != format!("{plural}.{group}") {
        let expected = format!("must be spec.names.plural+\".\"+spec.group: {plural}.{group}");
        causes.push(Cause::invalid("metadata.name", &json!(name), expected));
    }
    if !kind.starts_with(|c: char| c.is_ascii_alphabetic()) || !kind.chars().all(|c| c.is_ascii_alphanumeric()) {
        causes.push(Cause::invalid("spec.names.kind", &json!(kind), "expected letters and digits, a letter first"));
    }
    if text(definition, &["spec", "conversion", "strategy"]) == "Webhook" {
        causes.push(Cause::forbidden("spec.conversion.strategy", "this server calls no conversion webhooks"));
    }
    let mut versions = BTreeMap::new();
    let (mut served, mut storage) = (Vec::new(), Vec::new());
    let (mut has_status, mut scale) = (false, None);
    for (index, version) in items(definition, &["spec", "versions"]).iter().enumerate() {
        let path = format!("spec.versions[{index}]");
        let name = text(version, &["name"]).to_owned();
        if weft_lab_config::names::dns_label(&name).is_err() {
            causes.push(Cause::invalid(format!("{path}.name"), &json!(name), "expected a name such as v1alpha1"));
        }
        let yes = |field: &str| version[field] == Value::Bool(true);
        if yes("served") {
            served.push(name.clone());
        }
        if yes("storage") {
            storage.push(name.clone());
            has_status = at(version, &["subresources", "status"]).is_some();
            scale = at(version, &["subresources", "scale"]).map(scale_paths);
        }
        match read_version(version, &path) {
            Ok(read) => {
                if versions.insert(name.clone(), read).is_some() {
                    causes.push(Cause::duplicate(format!("{path}.name"), &json!(name)));
                }
            }
            Err(wrong) => causes.extend(wrong),
        }
    }
    let [storage] = storage.as_slice() else {
        let expected = "must have exactly one version marked as storage version";
        causes.push(Cause::invalid("spec.versions", &json!(storage), expected));
        return Err(causes);
    };
    if !causes.is_empty() {
        return Err(causes);
    }
    let list = |field: &str| {
        let list = items(definition, &["spec", "names", field]);
        list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    served.sort_by_key(|v| std::cmp::Reverse(priority(v)));
    Ok(Resource {
        versions: served,
        storage_version: storage.clone(),
        singular: Some(names("singular")).filter(|s| !s.is_empty()).unwrap_or_else(|| kind.to_lowercase()),
        short_names: list("shortNames"),
        categories: list("categories"),
        namespaced: text(definition, &["spec", "scope"]) == "Namespaced",
        has_status,
        scale,
        counts_generation: true,
        custom: Some(Arc::new(Custom {
            list_kind: Some(names("listKind")).filter(|s| !s.is_empty()).unwrap_or_else(|| format!("{kind}List")),
            versions,
        })),
        group,
        kind,
        plural,
    })
}

fn scale_paths(scale: &Value) -> Scale {
    let path = |field: &str| -> Vec<String> {
        text(scale, &[field]).split('.').filter(|p| !p.is_empty()).map(str::to_owned).collect()
    };
    Scale {
        spec_replicas: path("specReplicasPath"),
        status_replicas: path("statusReplicasPath"),
        selector: Some(path("labelSelectorPath")).filter(|p| !p.is_empty()),
    }
}

/// `v2` before `v1` before `v1beta2` before `v1alpha1` before the rest.
fn priority(version: &str) -> (u8, u32, u32) {
    let digits = |text: &str| text.parse::<u32>().unwrap_or(0);
    let Some(rest) = version.strip_prefix('v') else { return (0, 0, 0) };
    if let Some((major, minor)) = rest.split_once("beta") {
        return (2, digits(major), digits(minor));
    }
    if let Some((major, minor)) = rest.split_once("alpha") {
        return (1, digits(major), digits(minor));
    }
    if rest.parse::<u32>().is_ok() { (3, digits(rest), 0) } else { (0, 0, 0) }
}

fn read_version(version: &Value, path: &str) -> Result<Version, Vec<Cause>> {
    let path = format!("{path}.schema.openAPIV3Schema");
    let Some(schema) = at(version, &["schema", "openAPIV3Schema"]).filter(|s| s.is_object()) else {
        return Err(vec![Cause::required(path, "schemas are required")]);
    };
    let mut causes = Vec::new();
    if text(schema, &["type"]) != "object" {
        causes.push(Cause::invalid(format!("{path}.type"), &schema["type"], "must be object at the root"));
    }
    unsupported(schema, &path, &mut causes, 0);
    let mut draft = json_schema(schema);
    // Metadata is judged as that of all objects is.
    if let Some(properties) = draft.get_mut("properties").and_then(Value::as_object_mut) {
        properties.remove("metadata");
    }
    let options = jsonschema::options()
        .with_draft(jsonschema::Draft::Draft4)
        .with_pattern_options(jsonschema::PatternOptions::regex());
    let validator = match options.build(&draft) {
        Ok(validator) => validator,
        Err(error) => {
            let at = dotted(&error.instance_path().to_string());
            causes.push(Cause::invalid(format!("{path}.{at}"), error.instance(), error.masked()));
            return Err(causes);
        }
    };
    if !causes.is_empty() {
        return Err(causes);
    }
    let columns = items(version, &["additionalPrinterColumns"])
        .iter()
        .map(|column| Column {
            name: text(column, &["name"]).to_owned(),
            kind: text(column, &["type"]).to_owned(),
            priority: column["priority"].as_i64().unwrap_or(0),
            path: text(column, &["jsonPath"]).to_owned(),
            description: text(column, &["description"]).to_owned(),
        })
        .collect();
    let selectable = items(version, &["selectableFields"])
        .iter()
        .map(|f| text(f, &["jsonPath"]).trim_start_matches('.').to_owned())
        .collect();
    Ok(Version { schema: schema.clone(), validator, columns, selectable })
}

/// What this server cannot honour is refused, not ignored.
fn unsupported(schema: &Value, path: &str, causes: &mut Vec<Cause>, depth: usize) {
    if depth > 60 {
        causes.push(Cause::forbidden(path, "nested too deeply"));
        return;
    }
    let Value::Object(map) = schema else { return };
    for (field, value) in map {
        let here = format!("{path}.{field}");
        match field.as_str() {
            "$ref" | "definitions" | "dependencies" | "patternProperties" | "additionalItems" => {
                causes.push(Cause::forbidden(here, "not part of a structural schema"));
            }
            "x-kubernetes-validations" if !known_rules(value, path) => {
                causes.push(Cause::forbidden(here, "this server evaluates no CEL rule but \"self == oldSelf\""));
            }
            "properties" => {
                for (name, inner) in value.as_object().into_iter().flatten() {
                    unsupported(inner, &format!("{here}[{name}]"), causes, depth + 1);
                }
            }
            "items" | "not" | "additionalProperties" => unsupported(value, &here, causes, depth + 1),
            "allOf" | "anyOf" | "oneOf" => {
                for (index, inner) in value.as_array().into_iter().flatten().enumerate() {
                    unsupported(inner, &format!("{here}[{index}]"), causes, depth + 1);
                }
            }
            _ => {}
        }
    }
}
