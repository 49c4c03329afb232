//! The file: YAML (and so JSON), one key for each setting.

use crate::{Error, FILE};
use clap::Command;
use serde_json::{Map, Value};
use std::ffi::OsString;
use std::path::Path;

/// A setting as the command line would have it.
pub(crate) struct FileSetting {
    pub id: String,
    pub flag: OsString,
}

/// # Errors
/// The file cannot be read, is no mapping, or has a key that is no setting.
pub(crate) fn read(path: &Path, command: &Command) -> Result<Vec<FileSetting>, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    parse(&text, command).map_err(|problem| Error::File { path: path.to_owned(), problem })
}

fn parse(text: &str, command: &Command) -> Result<Vec<FileSetting>, String> {
    // Plain text stays as it is written: `yes` is no boolean, 0123 no number.
    let options = serde_saphyr::options! {
        with_snippet: false,
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
    };
    let found: Option<Map<String, Value>> =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string().replace('\n', " "))?;
    let mut settings = Vec::new();
    for (key, value) in found.unwrap_or_default() {
        let named = |arg: &&clap::Arg| arg.get_long() == Some(key.as_str()) && arg.get_action().takes_values();
        let Some(arg) = command.get_arguments().find(named).filter(|_| key != FILE) else {
            return Err(format!("unknown setting {key}"));
        };
        if let Some(value) = plain(&value).map_err(|expected| format!("{key}: expected {expected}, found {value}"))? {
            settings.push(FileSetting { id: arg.get_id().to_string(), flag: format!("--{key}={value}").into() });
        }
    }
    Ok(settings)
}

/// A value as a flag has it; `None`: it is left out.
fn plain(value: &Value) -> Result<Option<String>, &'static str> {
    Ok(match value {
        Value::Null => None,
        Value::Bool(on) => Some(on.to_string()),
        Value::String(text) => Some(text.clone()),
        // 1.10 would become 1.1.
        Value::Number(number) if number.is_f64() => return Err("a whole number, or text in quotes"),
        Value::Number(number) => Some(number.to_string()),
        Value::Array(items) if items.iter().all(|item| !item.is_array() && !item.is_object()) => {
            let items: Result<Vec<Option<String>>, _> = items.iter().map(plain).collect();
            Some(items?.into_iter().flatten().collect::<Vec<_>>().join(","))
        }
        // Settings that take JSON.
        Value::Array(_) | Value::Object(_) => Some(value.to_string()),
    })
}
