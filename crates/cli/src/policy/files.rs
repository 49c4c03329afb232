//! Files that users name.

use anyhow::{Context as _, Result};
use serde_json::Value;
use std::io::Read as _;
use std::path::Path;

/// The text of a file; `-` is the standard input.
pub fn read(path: &Path) -> Result<String> {
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("standard input")?;
        return Ok(text);
    }
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}

/// The objects in YAML with any number of documents; a `List` counts as what is in it.
pub fn objects(text: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)?;
    let mut objects = Vec::new();
    for document in documents {
        match document {
            Value::Null => {}
            Value::Object(mut map) if map.get("kind").and_then(Value::as_str).is_some_and(|kind| kind == "List") => {
                match map.remove("items") {
                    Some(Value::Array(items)) => objects.extend(items),
                    _ => anyhow::bail!("List: items: expected a list of objects"),
                }
            }
            other => objects.push(other),
        }
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use super::objects;

    #[test]
    fn documents_and_lists() {
        let text = "kind: A\n---\n---\nkind: List\nitems:\n- kind: B\n- kind: C\n";
        let kinds: Vec<_> =
            objects(text).expect("YAML").iter().map(|object| object["kind"].as_str().map(str::to_owned)).collect();
        assert_eq!(kinds, ["A", "B", "C"].map(|kind| Some(kind.to_owned())));
        assert!(objects("kind: [").is_err());
        assert!(objects("kind: List\nitems: 3\n").is_err());
    }
}
