//! The simple JSON paths of printer columns: `.spec.a`, `.status.conditions[?(@.type=="Ready")].status`, `.a[0]`,
//! `.a[*].b`, `.metadata.labels.a\.b`.

use super::age;
use serde_json::Value;

/// The cell of a column.
pub(super) fn cell(object: &Value, path: &str, kind: &str) -> Value {
    if kind == "date" {
        let names: Vec<&str> = path.split('.').filter(|p| !p.is_empty()).collect();
        return age(object, &names);
    }
    let mut found = find(object, path);
    match found.len() {
        0 => Value::String(String::new()),
        1 => match found.remove(0) {
            Value::Array(list) => Value::String(Value::Array(list).to_string()),
            other if kind == "string" && !other.is_string() => Value::String(other.to_string()),
            other => other,
        },
        _ => {
            let texts: Vec<String> =
                found.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect();
            Value::String(texts.join(","))
        }
    }
}

fn find(object: &Value, path: &str) -> Vec<Value> {
    let path = path.trim().trim_start_matches('{').trim_end_matches('}').trim_start_matches('$');
    let mut here = vec![object];
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(inside) = rest.strip_prefix('[') {
            let Some((index, tail)) = inside.split_once(']') else { return Vec::new() };
            here = step(&here, index);
            rest = tail;
        } else {
            let text = rest.strip_prefix('.').unwrap_or(rest);
            let (field, tail) = field(text);
            if field.is_empty() {
                return Vec::new();
            }
            here = here.into_iter().filter_map(|v| v.get(field.as_str())).collect();
            rest = tail;
        }
    }
    here.into_iter().filter(|v| !v.is_null()).cloned().collect()
}

/// The first field of a path, and what follows. A dot of the name itself is written `\.`.
fn field(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut characters = text.char_indices();
    while let Some((index, c)) = characters.next() {
        match c {
            '\\' => name.extend(characters.next().map(|(_, c)| c)),
            '.' | '[' => return (name, &text[index..]),
            c => name.push(c),
        }
    }
    (name, "")
}

fn step<'a>(values: &[&'a Value], index: &str) -> Vec<&'a Value> {
    let elements = || values.iter().filter_map(|v| v.as_array()).flatten();
    if index == "*" {
        return elements().collect();
    }
    if let Some(condition) = index.strip_prefix("?(@.").and_then(|c| c.strip_suffix(')')) {
        let Some((name, wanted)) = condition.split_once("==") else { return Vec::new() };
        let (name, wanted) = (name.trim(), wanted.trim().trim_matches(['"', '\'']));
        return elements().filter(|v| v.get(name).and_then(Value::as_str) == Some(wanted)).collect();
    }
    if let Ok(number) = index.parse::<usize>() {
        return values.iter().filter_map(|v| v.get(number)).collect();
    }
    let name = index.trim_matches(['"', '\'']);
    values.iter().filter_map(|v| v.get(name)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn paths_find_their_values() {
        let object = json!({"spec": {"list": [{"n": 1}, {"n": 2}]}, "metadata": {"labels": {"a.b": "x"}},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        for (path, wanted) in [
            (".spec.list[*].n", json!("1,2")),
            (".spec.list[1].n", json!(2)),
            (r".metadata.labels.a\.b", json!("x")),
            (r#".status.conditions[?(@.type=="Ready")].status"#, json!("True")),
            (".nothing.here", json!("")),
            (".broken[", json!("")),
        ] {
            assert_eq!(super::cell(&object, path, "integer"), wanted, "{path}");
        }
    }
}
