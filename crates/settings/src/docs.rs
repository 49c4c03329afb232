//! Tables of settings in the documentation, made from the definitions.

use crate::{FILE, Invalid, invalid};
use clap::{Arg, Args, Command};
use std::path::Path;

/// Set in the environment: write the tables instead of comparing them. `cargo xtask docs` does.
const WRITE: &str = "WEFT_WRITE_DOCS";

/// The settings as a Markdown table.
///
/// What a value must look like is in the words of the error that refuses another; a default that depends on something is
/// at the end of the help text: `[default: 250; 30 with azure-node-subnet]`.
#[must_use]
pub fn table<C: Args>() -> String {
    let command = C::augment_args(Command::default());
    let mut table = "| Flag | Value | Default | |\n|---|---|---|---|\n".to_owned();
    for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
        let Some(flag) = arg.get_long() else { continue };
        let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
        let (help, default) = split_default(&help.replace('\n', " "));
        let given: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        let default = default.unwrap_or_else(|| match given.join(",") {
            _ if !arg.get_action().takes_values() => "off".to_owned(),
            text if text.is_empty() => "none".to_owned(),
            text => format!("`{text}`"),
        });
        let value = if flag == FILE { String::new() } else { expected(&command, arg) };
        let cells = [format!("`--{flag}`"), value, default, help].map(|cell| cell.replace('|', "\\|"));
        table.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
    table
}

/// The help text without what it says about the default.
fn split_default(help: &str) -> (String, Option<String>) {
    match help.rsplit_once(" [default: ").and_then(|(help, rest)| Some((help, rest.strip_suffix(']')?))) {
        Some((help, default)) => (help.to_owned(), Some(default.to_owned())),
        None => (help.to_owned(), None),
    }
}

/// What the setting's parser expects: it says so when it is given what nothing can be. Empty for any text.
fn expected(command: &Command, arg: &Arg) -> String {
    let Some(flag) = arg.get_long() else { return String::new() };
    let answer = command.clone().try_get_matches_from(["", &format!("--{flag}=\u{1}")]);
    answer.err().and_then(|error| invalid(&error)).map(|Invalid { expected, .. }| expected).unwrap_or_default()
}

/// Compares the table between `<!-- settings: NAME -->` and `<!-- end -->` in a file with what it must be.
///
/// # Errors
/// The file has no such place, or another table there.
pub fn compare(path: &Path, name: &str, table: &str) -> Result<(), String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let (begin, end) = (format!("<!-- settings: {name} -->\n"), "<!-- end -->");
    let found = text.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(end)?)));
    let Some((before, (found, after))) = found else {
        return Err(format!("{}: expected {} and {end} around the table", path.display(), begin.trim_end()));
    };
    if found == table {
        return Ok(());
    }
    if std::env::var_os(WRITE).is_some() {
        let text = format!("{before}{begin}{table}{end}{after}");
        return std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()));
    }
    let differs = table.lines().skip(2).find(|line| !found.lines().any(|other| other == *line));
    let row = differs.unwrap_or("fewer settings");
    Err(format!("{}: the settings of {name} have changed: run `cargo xtask docs`. Expected {row}", path.display()))
}
