//! Lists that must be complete: modules, tests that run, targets that `make` tells of, and lists in the code that say of
//! themselves that they name every file of a folder:
//!
//! ```text
//! // tidy: names every file of kinds/
//! const KINDS: &[Kind] = &[...];
//! ```

use super::File;
use serde_json::Value;
use std::collections::BTreeSet;

/// Before the folder in a list's mark; in pieces, so that this file has no mark.
const MARK: &str = concat!("// tidy: ", "names every file of ");

/// What some list has forgotten.
pub fn check(files: &[File], packages: &[Value]) -> Vec<String> {
    let names: BTreeSet<&str> = files.iter().map(|file| file.name.as_str()).collect();
    let mut findings: Vec<String> = files.iter().flat_map(|file| marked(file, &names)).collect();
    findings.extend(orphans(files));
    findings.extend(tests_that_do_not_run(files, packages));
    findings.extend(files.iter().filter(|file| file.name == "Makefile").flat_map(make));
    findings
}

/// Files that a marked list does not name.
fn marked(file: &File, names: &BTreeSet<&str>) -> Vec<String> {
    let mut findings = Vec::new();
    let begins_its_line =
        |at: &usize| file.text[..*at].rsplit('\n').next().is_some_and(|before| before.trim().is_empty());
    for at in file.text.match_indices(MARK).map(|(at, _)| at).filter(begins_its_line) {
        let rest = &file.text[at + MARK.len()..];
        let (folder, below) = rest.split_once('\n').unwrap_or((rest, ""));
        let dir = file.name.rsplit_once('/').map_or("", |(dir, _)| dir);
        let folder = format!("{dir}/{}/", folder.trim().trim_end_matches('/'));
        // Up to the first line that closes what begins here.
        let end = below.match_indices('\n').find(|(at, _)| below[at + 1..].starts_with([']', '}', ')']));
        let list = &below[..end.map_or(below.len(), |(at, _)| at)];
        let words: BTreeSet<&str> = list.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
        let stems: BTreeSet<&str> = names
            .iter()
            .filter_map(|name| name.strip_prefix(folder.as_str())?.split('/').next())
            .map(|part| part.trim_end_matches(".rs"))
            .filter(|stem| *stem != "tests")
            .collect();
        if stems.is_empty() {
            findings.push(format!("{}: there is no folder {folder}", file.name));
        }
        for stem in stems.iter().filter(|stem| !words.contains(*stem)) {
            findings.push(format!("{}: the list of {folder} does not name {stem}", file.name));
        }
    }
    findings
}

/// Source files that no `mod` leads to: nothing compiles them, and no test in them runs.
fn orphans(files: &[File]) -> Vec<String> {
    let sources: Vec<&File> = files.iter().filter(|file| file.name.ends_with(".rs")).collect();
    let mut findings = Vec::new();
    for file in &sources {
        let Some((dir, own)) = file.name.rsplit_once('/') else { continue };
        let last = dir.rsplit('/').next().unwrap_or_default();
        let is_root = ["main.rs", "lib.rs", "build.rs"].contains(&own)
            || ["tests", "examples", "benches", "fuzz_targets", "bin"].contains(&last) && !dir.contains("/src/");
        if is_root {
            continue;
        }
        let stem = own.trim_end_matches(".rs");
        let declares = |parent: &File| {
            parent.text.lines().any(|line| {
                let declared = line.trim().strip_suffix(';').and_then(|line| line.rsplit_once("mod "));
                declared.is_some_and(|(before, name)| name == stem && !before.contains("//"))
            })
        };
        let parents = [format!("{dir}.rs"), format!("{dir}/main.rs"), format!("{dir}/lib.rs"), format!("{dir}/mod.rs")];
        let led_to = sources.iter().any(|parent| parents.contains(&parent.name) && declares(parent));
        let by_path =
            || sources.iter().any(|other| other.text.contains("#[path") && other.text.contains(&format!("/{own}\"")));
        if !led_to && !by_path() {
            findings.push(format!("{}: no `mod {stem};` leads to it", file.name));
        }
    }
    findings
}

/// Tests in targets that are said to have none (`test = false`).
fn tests_that_do_not_run(files: &[File], packages: &[Value]) -> Vec<String> {
    let mut findings = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        for target in package["targets"].as_array().into_iter().flatten() {
            let kind = target["kind"][0].as_str().unwrap_or_default();
            if target["test"] != false || !["lib", "bin"].contains(&kind) {
                continue;
            }
            let path = target["src_path"].as_str().unwrap_or_default();
            let of_target = |file: &&File| match kind {
                "lib" => file.name.find("/src/").is_some_and(|at| path_ends(path, &file.name[..at])),
                _ => path_ends(path.trim_end_matches(".rs"), file.name.trim_end_matches(".rs")),
            };
            let has_test = |file: &&File| {
                file.name.ends_with(".rs")
                    && file.text.lines().any(|line| {
                        let line = line.trim();
                        line == "#[test]" || line.starts_with("#[tokio::test") || line.starts_with("proptest! {")
                    })
            };
            for file in files.iter().filter(of_target).filter(has_test) {
                findings.push(format!("{}: has a test, but {name} says `test = false` of its {kind}", file.name));
            }
        }
    }
    findings
}

/// Whether an absolute path is that of a name relative to the root; `src/lib.rs` of the directory for a library.
fn path_ends(path: &str, own: &str) -> bool {
    let path = path.strip_suffix("/src/lib.rs").unwrap_or(path);
    path.strip_suffix(own).is_some_and(|before| before.ends_with('/'))
}

/// Targets of the Makefile that `make help` does not tell of.
fn make(file: &File) -> Vec<String> {
    let phony = file.text.lines().find_map(|line| line.strip_prefix(".PHONY:")).unwrap_or_default();
    let told = |target: &str| file.text.contains(&format!("echo \"make {target} "));
    let targets = phony.split_whitespace().filter(|target| !["help", "root"].contains(target));
    targets
        .filter(|target| !told(target))
        .map(|target| format!("Makefile: `make help` does not tell of {target}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{File, MARK, check};
    use serde_json::json;

    fn findings(files: &[(&str, &str)], packages: &[serde_json::Value]) -> Vec<String> {
        let file = |(name, text): &(&str, &str)| File { name: (*name).to_owned(), text: (*text).to_owned() };
        check(&files.iter().map(file).collect::<Vec<_>>(), packages)
    }

    #[test]
    fn a_marked_list_names_every_file() {
        let list = format!("{MARK}kinds/\nconst KINDS: &[Kind] = &[\n    kinds::pod::KIND,\n];\nmod kinds;\n");
        let kinds = ("a/src/kinds.rs", "mod pod;\npub mod node;");
        let (pod, node) = (("a/src/kinds/pod.rs", ""), ("a/src/kinds/node.rs", ""));
        assert_eq!(findings(&[("a/src/lib.rs", &list), ("a/src/kinds.rs", "mod pod;"), pod], &[]), [""; 0]);
        let found = findings(&[("a/src/lib.rs", &list), kinds, pod, node], &[]);
        assert_eq!(found, ["a/src/lib.rs: the list of a/src/kinds/ does not name node"]);
    }

    #[test]
    fn a_file_that_nothing_leads_to_is_found() {
        let found = findings(&[("a/src/lib.rs", "// mod c;\nmod b;"), ("a/src/b.rs", ""), ("a/src/c.rs", "")], &[]);
        assert_eq!(found, ["a/src/c.rs: no `mod c;` leads to it"]);
    }

    #[test]
    fn a_test_that_does_not_run_is_found() {
        let package = |test: bool| json!({"name": "a", "targets": [{"kind": ["lib"], "test": test, "src_path": "/x/crates/a/src/lib.rs"}]});
        let files = [("crates/a/src/lib.rs", "mod b;"), ("crates/a/src/b.rs", "#[test]\nfn c() {}")];
        assert_eq!(findings(&files, &[package(true)]), [""; 0]);
        assert_eq!(findings(&files, &[package(false)]).len(), 1);
    }

    #[test]
    fn a_target_without_help_is_found() {
        let found = findings(&[("Makefile", ".PHONY: help up down\nhelp:\n\techo \"make up   it\"\n")], &[]);
        assert_eq!(found, ["Makefile: `make help` does not tell of down"]);
    }
}
