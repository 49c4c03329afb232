//! Lists that must be complete, where no compiler says that an entry was forgotten: kinds that are watched, and
//! reconcilers.

use anyhow::{Context, Result};
use std::path::Path;

/// The list of kinds, and where each must be watched.
const KINDS: (&str, &str) = ("crates/model/src/intent.rs", "crates/k8s/src/watch");
/// The list of reconcilers, and where they live.
const RECONCILERS: (&str, &str) = ("crates/agent/src/reconcile.rs", "crates/agent/src/reconcile");

/// Entries that were forgotten.
pub fn run(root: &Path) -> Result<Vec<String>> {
    let read = |name: &Path| std::fs::read_to_string(root.join(name)).with_context(|| name.display().to_string());
    let mut watched = read(&Path::new(KINDS.1).with_extension("rs"))?;
    for name in rust_files(&root.join(KINDS.1))? {
        watched += &read(&Path::new(KINDS.1).join(name))?;
    }
    let mut findings = unwatched(&read(Path::new(KINDS.0))?, &watched);
    let list = read(Path::new(RECONCILERS.0))?;
    for name in rust_files(&root.join(RECONCILERS.1))? {
        let text = read(&Path::new(RECONCILERS.1).join(&name))?;
        findings.extend(unlisted(&name, &text, &list));
    }
    Ok(findings)
}

/// Source files below a directory, by their paths from it.
fn rust_files(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            names.extend(rust_files(&path)?.into_iter().map(|below| format!("{name}/{below}")));
        } else if name.ends_with(".rs") {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The invocation of a macro at the start of a line: what is between its braces.
fn invocation<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("\n{name}! {{\n"))?;
    rest.split_once("\n}\n").map(|(inside, _)| inside)
}

/// Kinds of the list that nothing in `watched` completes: the agent would wait for them for ever.
fn unwatched(list: &str, watched: &str) -> Vec<String> {
    let Some(list) = invocation(list, "kinds") else { return vec![format!("{}: no list `kinds!`", KINDS.0)] };
    let kind = |line: &str| {
        let line = line.strip_prefix("    ").filter(|line| line.starts_with(char::is_uppercase))?;
        line.contains("=> {").then(|| line.split([' ', ',']).next().unwrap_or_default().to_owned())
    };
    let kinds: Vec<String> = list.lines().filter_map(kind).collect();
    if kinds.is_empty() {
        return vec![format!("{}: the list `kinds!` is empty", KINDS.0)];
    }
    let is_watched = |kind: &String| {
        let name = format!("Source::{kind}");
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        watched.match_indices(&name).any(|(at, _)| !watched[at + name.len()..].starts_with(is_part))
    };
    let missing = kinds.into_iter().filter(|kind| !is_watched(kind));
    missing.map(|kind| format!("{}: {kind} is not watched by anything in {}", KINDS.0, KINDS.1)).collect()
}

/// A reconciler that no pass runs.
fn unlisted(name: &str, text: &str, list: &str) -> Option<String> {
    let module = name.strip_suffix(".rs")?;
    let is_reconciler = module != "example" && text.contains("\nimpl Reconciler for ");
    let listed = invocation(list, "reconcilers").is_some_and(|list| list.contains(&format!(": {module}::")));
    (is_reconciler && !listed)
        .then(|| format!("{}/{name}: its reconciler is not in the list of {}", RECONCILERS.1, RECONCILERS.0))
}

#[cfg(test)]
mod tests {
    use super::{unlisted, unwatched};

    #[test]
    fn a_kind_that_is_not_watched_is_found() {
        let list = "\nkinds! {\n    Pods, \"pods\" => {\n        Pod(Pod),\n    }\n    Policies of Kind, name => {\n    }\n}\n";
        assert!(unwatched(list, "Change::Synced(Source::Pods) Change::Synced(Source::Policies(kind))").is_empty());
        let findings = unwatched(list, "Change::Synced(Source::Pods)");
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(findings[0].contains("Policies"), "{findings:?}");
        assert_eq!(unwatched(list, "Change::Synced(Source::PodsAndMore)").len(), 2);
        assert_eq!(unwatched("no list", "").len(), 1);
    }

    #[test]
    fn a_reconciler_that_is_not_listed_is_found() {
        let list = "\nreconcilers! {\n    first {\n        routes: routes::Routes,\n    }\n}\n";
        let text = "//! Doc.\nimpl Reconciler for It {}\n";
        assert_eq!(unlisted("routes.rs", text, list), None);
        assert!(unlisted("peers.rs", text, list).is_some());
        assert_eq!(unlisted("metrics.rs", "//! Doc.\n", list), None);
    }
}
