//! Label selectors, as text and as objects, and field selectors.

use super::error::ApiError;
use super::object::{at, items, text};
use serde_json::Value;

/// One requirement on a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// The label is there, with one of these values.
    In(String, Vec<String>),
    /// The label is not there, or has none of these values.
    NotIn(String, Vec<String>),
    /// The label is there.
    Exists(String),
    /// The label is not there.
    Absent(String),
}

/// All of these must hold; none: everything matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(pub Vec<Requirement>);

impl LabelSelector {
    /// Reads `a=b,c!=d,e in (f,g),h notin (i),j,!k`.
    ///
    /// # Errors
    /// That the text is no selector.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        let mut requirements = Vec::new();
        let mut rest = text.trim();
        while !rest.is_empty() {
            let end = requirement_end(rest);
            let (head, tail) = rest.split_at(end);
            requirements.push(requirement(head.trim()).ok_or_else(|| {
                ApiError::bad_request(format!("unable to parse requirement: label selector: {:?}", head.trim()))
            })?);
            rest = tail.strip_prefix(',').unwrap_or(tail).trim_start();
        }
        Ok(Self(requirements))
    }

    /// Reads a `LabelSelector` object that has passed validation. What is no requirement matches nothing.
    pub fn from_object(selector: &Value) -> Self {
        let mut requirements = Vec::new();
        if let Some(labels) = at(selector, &["matchLabels"]).and_then(Value::as_object) {
            for (key, value) in labels {
                requirements.push(Requirement::In(key.clone(), vec![value.as_str().unwrap_or_default().to_owned()]));
            }
        }
        for expression in items(selector, &["matchExpressions"]) {
            let key = text(expression, &["key"]).to_owned();
            let values = items(expression, &["values"]).iter().filter_map(Value::as_str).map(str::to_owned).collect();
            requirements.push(match text(expression, &["operator"]) {
                "NotIn" => Requirement::NotIn(key, values),
                "Exists" => Requirement::Exists(key),
                "DoesNotExist" => Requirement::Absent(key),
                _ => Requirement::In(key, values),
            });
        }
        Self(requirements)
    }

    /// Reads a plain map of labels.
    pub fn from_map(labels: &Value) -> Self {
        Self::from_object(&serde_json::json!({"matchLabels": labels}))
    }

    /// Whether an object's labels fit.
    pub fn matches(&self, object: &Value) -> bool {
        self.fits(|key| super::object::label(object, key))
    }

    /// Whether these labels fit.
    pub fn fits<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => label(key).is_some_and(|v| values.iter().any(|w| w == v)),
            Requirement::NotIn(key, values) => label(key).is_none_or(|v| values.iter().all(|w| w != v)),
            Requirement::Exists(key) => label(key).is_some(),
            Requirement::Absent(key) => label(key).is_none(),
        })
    }
}

impl std::fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, requirement) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            match requirement {
                Requirement::In(key, values) if values.len() == 1 => write!(f, "{key}={}", values[0])?,
                Requirement::In(key, values) => write!(f, "{key} in ({})", values.join(","))?,
                Requirement::NotIn(key, values) if values.len() == 1 => write!(f, "{key}!={}", values[0])?,
                Requirement::NotIn(key, values) => write!(f, "{key} notin ({})", values.join(","))?,
                Requirement::Exists(key) => write!(f, "{key}")?,
                Requirement::Absent(key) => write!(f, "!{key}")?,
            }
        }
        Ok(())
    }
}

/// The comma behind the first requirement, outside of parentheses.
fn requirement_end(text: &str) -> usize {
    let mut depth = 0_u32;
    for (index, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => return index,
            _ => {}
        }
    }
    text.len()
}

fn requirement(text: &str) -> Option<Requirement> {
    let key_ok = |key: &str| weft_lab_config::names::label_key(key).is_ok().then(|| key.to_owned());
    if let Some(key) = text.strip_prefix('!') {
        return Some(Requirement::Absent(key_ok(key.trim())?));
    }
    for (sign, negative) in [("!=", true), ("==", false), ("=", false)] {
        if let Some((key, value)) = text.split_once(sign) {
            let (key, value) = (key_ok(key.trim())?, value.trim());
            weft_lab_config::names::label_value(value).ok()?;
            let values = vec![value.to_owned()];
            return Some(if negative { Requirement::NotIn(key, values) } else { Requirement::In(key, values) });
        }
    }
    if let Some(open) = text.find('(') {
        let inside = text[open + 1..].strip_suffix(')')?;
        let values: Vec<String> = inside.split(',').map(|v| v.trim().to_owned()).collect();
        let mut words = text[..open].split_whitespace();
        let (key, operator) = (key_ok(words.next()?)?, words.next()?);
        return match (operator, words.next()) {
            ("in", None) => Some(Requirement::In(key, values)),
            ("notin", None) => Some(Requirement::NotIn(key, values)),
            _ => None,
        };
    }
    Some(Requirement::Exists(key_ok(text)?))
}

/// A field selector: fields that must, or must not, have a value.
#[derive(Clone, Debug, Default)]
pub struct FieldSelector(Vec<(Vec<String>, String, bool)>);

impl FieldSelector {
    /// Reads `metadata.name=a,spec.nodeName!=b` for a resource; fields that cannot be selected by are refused.
    ///
    /// # Errors
    /// That the text is no selector, or the field is not supported.
    pub fn parse(text: &str, group_resource: &str, custom: &[String]) -> Result<Self, ApiError> {
        let mut terms = Vec::new();
        for term in text.split(',').map(str::trim).filter(|t| !t.is_empty()) {
            let (field, value, equal) = if let Some((field, value)) = term.split_once("!=") {
                (field, value, false)
            } else if let Some((field, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
                (field, value, true)
            } else {
                return Err(ApiError::bad_request(format!(
                    "invalid field selector: {term:?}: expected <field>=<value>, == or !="
                )));
            };
            if !fields(group_resource).contains(&field) && !custom.iter().any(|c| c == field) {
                return Err(ApiError::bad_request(format!(
                    "field label not supported: {field:?}: {group_resource} can be selected by {}",
                    fields(group_resource).join(", ")
                )));
            }
            terms.push((field.split('.').map(str::to_owned).collect(), value.to_owned(), equal));
        }
        Ok(Self(terms))
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value that a field must have, where one is asked for.
    pub fn value_of(&self, field: &str) -> Option<&str> {
        let is = |path: &[String]| path.iter().map(String::as_str).eq(field.split('.'));
        self.0.iter().find(|(path, _, equal)| *equal && is(path)).map(|(_, value, _)| value.as_str())
    }

    /// Whether the object fits. A missing field is an empty one.
    pub fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|(path, wanted, equal)| {
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            let found = match at(object, &path) {
                Some(Value::String(text)) => text.clone(),
                None | Some(Value::Null) => String::new(),
                Some(other) => other.to_string(),
            };
            let found = if found.is_empty() && path == ["spec", "unschedulable"] { "false".to_owned() } else { found };
            (found == *wanted) == *equal
        })
    }
}

fn fields(group_resource: &str) -> &'static [&'static str] {
    match group_resource {
        "pods" => &[
            "metadata.name",
            "metadata.namespace",
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        "events" => &[
            "metadata.name",
            "metadata.namespace",
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        "nodes" => &["metadata.name", "spec.unschedulable"],
        "namespaces" => &["metadata.name", "status.phase"],
        "secrets" => &["metadata.name", "metadata.namespace", "type"],
        "services" => &["metadata.name", "metadata.namespace", "spec.clusterIP", "spec.type"],
        "replicasets.apps" => &["metadata.name", "metadata.namespace", "status.replicas"],
        _ => &["metadata.name", "metadata.namespace"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn label_selectors_are_read_as_kubectl_writes_them() {
        let object = json!({"metadata": {"labels": {"app": "web", "tier": "x"}}});
        for (text, wanted) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier!=y", true),
            ("app in (web,db),tier", true),
            ("app notin (web)", false),
            ("!missing", true),
            ("!app", false),
            ("other", false),
            ("other!=1", true),
        ] {
            assert_eq!(LabelSelector::parse(text).unwrap().matches(&object), wanted, "{text}");
        }
        for bad in ["a in b", "=x", "a=b=c", "a b", "app in (x", "-a=b"] {
            assert!(LabelSelector::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn field_selectors_know_their_fields() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n"}});
        let parse = |text| FieldSelector::parse(text, "pods", &[]);
        assert!(parse("spec.nodeName=n,metadata.name=p").unwrap().matches(&pod));
        assert!(parse("status.phase!=Running").unwrap().matches(&pod));
        assert!(!parse("spec.nodeName=").unwrap().matches(&pod));
        assert!(parse("spec.color=red").is_err());
    }
}
